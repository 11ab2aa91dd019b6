"""Sidecars follow what is decided of a trace, on real Envoys."""

from __future__ import annotations

from mesh.runtime.telemetry import traces
from mesh.runtime.telemetry.tests.collector import Collector
from mesh.xds.tests.conftest import STORE
from mesh.xds.tests.lab import Lab, call, poll

GET = f"/{STORE}/GetItem"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def test_sidecars_record_what_is_recorded_and_pass_on_what_is_not(lab: Lab) -> None:
    async with Collector() as collector:
        await lab.report()
        values = f"services: {{store: {{}}, front: {{calls: [store]}}}}\ntelemetry: {{otlp: '{collector.address}'}}"
        assert (await lab.apply(values)).applied
        store = await lab.app("store-0")
        for id in ("store-0", "front-0"):
            await lab.proxy(id)
        await poll(lambda: lab.connected("store-0", "front-0"))
        await lab.report("store-0", wait=True)
        await lab.healthy("front-0", "store-0")
        async with lab.proxies["front-0"].channel() as channel:
            for flag in ("00", "01"):
                for _ in range(5):  # so many at a time are sent
                    await call(channel, GET, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-{flag}"),))

        async def sent() -> bool:
            return len(collector.spans) >= 10

        await poll(sent)
    assert {(service, span.kind, span.name) for service, span in collector.by_service} == {
        ("front.proxy", traces.CLIENT, GET),
        ("store.proxy", traces.SERVER, GET),
    }
    assert len(collector.spans) == 10
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    front = {span.span_id for service, span in collector.by_service if service == "front.proxy"}
    assert front == {span.parent_span_id for service, span in collector.by_service if service == "store.proxy"}
    passed = [headers["traceparent"] for path, headers in store.calls if path == GET]
    assert [header[:35] for header in passed] == [f"00-{TRACE}"] * 10
    assert [header[-2:] for header in passed] == ["00"] * 5 + ["01"] * 5
