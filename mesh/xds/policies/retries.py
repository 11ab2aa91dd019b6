"""Which failed calls get a second attempt, at the caller's sidecar and nowhere else.

A method whose contract says that a repeat is harmless is retried once when a connection broke under it. Any other
method is retried only when it certainly did not start. What an application itself answers is an answer, UNAVAILABLE
too: to repeat it would double the load of a service that is down, once more at each hop on the way to it.
"""

from __future__ import annotations

from envoy.config.route.v3.route_components_pb2 import HeaderMatcher, RetryPolicy, RouteAction
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2

from mesh.contract import Method
from mesh.xds import pb

# An inbound sidecar says so when it could not connect to its own application, or lost it during the call.
NOT_STARTED, BROKEN = "x-nourish-not-started", "x-nourish-broken"
SIGNS = (NOT_STARTED, BROKEN)
NEVER_STARTED = "connect-failure,refused-stream,reset-before-request,retriable-headers"
SAFE_TO_REPEAT = f"reset,{NEVER_STARTED}"


def route(method: Method) -> RouteAction:
    """One more attempt after about 100 ms, on another instance, or on the other subset when it carries weight."""
    repeatable = method.idempotency != "unknown"
    return RouteAction(
        retry_policy=RetryPolicy(
            retry_on=SAFE_TO_REPEAT if repeatable else NEVER_STARTED,
            num_retries=pb.uint32(1),
            # A long base caps the rate of retries where the budget caps how many run at a time.
            retry_back_off=RetryPolicy.RetryBackOff(base_interval=pb.seconds(0.1), max_interval=pb.seconds(1)),
            retriable_headers=[HeaderMatcher(name=n, present_match=True) for n in (SIGNS if repeatable else SIGNS[:1])],
            retry_host_predicate=[
                RetryPolicy.RetryHostPredicate(
                    name="envoy.retry_host_predicates.previous_hosts",
                    typed_config=pb.pack(previous_hosts_pb2.PreviousHostsPredicate()),
                )
            ],
            host_selection_retry_max_attempts=3,
            retry_priority=RetryPolicy.RetryPriority(
                name="envoy.retry_priorities.previous_priorities",
                typed_config=pb.pack(previous_priorities_config_pb2.PreviousPrioritiesConfig(update_frequency=1)),
            ),
        )
    )
