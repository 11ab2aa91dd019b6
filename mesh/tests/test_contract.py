"""The contract model: what it reads from the descriptors, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, MethodOptions
from nourish.mesh.v1 import policy_pb2

from mesh.contract import Contract, ContractError, RestBinding

HTTP: Any = annotations_pb2.http


def method(name: str = "Get", get: str = "", **options: Any) -> MethodDescriptorProto:
    """A public read, `/nourish.shop.v1.ShopService/Get`, with other options where they are given."""
    proto = MethodDescriptorProto(name=name, input_type=".nourish.shop.v1.Ask", output_type=".nourish.shop.v1.Ask")
    proto.options.idempotency_level = options.pop("idempotency_level", MethodOptions.NO_SIDE_EFFECTS)
    defaults = {"deadline": {"seconds": 2}, "access": "ACCESS_PUBLIC"}
    policy = {key: value for key, value in {**defaults, **options}.items() if value is not None}
    proto.options.Extensions[policy_pb2.method].CopyFrom(policy_pb2.MethodPolicy(**policy))
    if get:
        proto.options.Extensions[HTTP].get = get
    return proto


def descriptors(*methods: MethodDescriptorProto, package: str = "nourish.shop.v1") -> bytes:
    file = FileDescriptorProto(name="shop.proto", package=package)
    file.message_type.add(name="Ask").field.add(
        name="name", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING
    )
    file.message_type[0].field.add(name="inner", number=2, type_name=".nourish.shop.v1.Ask")
    file.service.add(name="ShopService").method.extend(methods)
    return FileDescriptorSet(file=[file]).SerializeToString()


def refusal(*methods: MethodDescriptorProto, **options: Any) -> list[str]:
    with pytest.raises(ContractError) as error:
        Contract.load(descriptors(*methods, **options))
    return error.value.problems


def event(key: str, package: str = "nourish.shop.v1") -> list[str]:
    """What is wrong with a message of the fields name, inner and names that is an event with this key."""
    file = FileDescriptorProto.FromString(FileDescriptorSet.FromString(descriptors()).file[0].SerializeToString())
    file.package = package
    message = file.message_type.add(name="Sold")
    message.field.add(name="name", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING)
    message.field.add(name="inner", number=2, type_name=".nourish.shop.v1.Ask")
    message.field.add(name="names", number=3, label=descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED)
    message.options.Extensions[policy_pb2.event].key = key
    del file.service[:]
    try:
        Contract.load(FileDescriptorSet(file=[file]).SerializeToString())
    except ContractError as error:
        return error.problems
    return []


@pytest.mark.parametrize("key", ["", "nothing", "inner", "names"])
def test_the_key_of_an_event_is_one_of_its_singular_scalar_fields(key: str) -> None:
    assert event("name") == []
    (problem,) = event(key)
    assert problem.startswith("nourish.shop.v1.Sold: the key")


def test_an_event_belongs_to_the_package_of_a_service_or_the_mesh() -> None:
    (problem,) = event("name", package="other.shop.v1")
    assert "nobody publishes it" in problem


@pytest.fixture(scope="module")
def ours() -> Contract:
    return Contract.read()


def test_our_own_contracts_hold(ours: Contract) -> None:
    assert {"edge", "food", "nutrition", "profile"} <= ours.methods.keys()


def test_the_control_service_is_no_part_of_the_mesh(ours: Contract) -> None:
    assert ours.grpc_services("edge") == ("nourish.mesh.v1.EdgeService",)
    assert not [m.path for methods in ours.methods.values() for m in methods if "ControlService" in m.path]


def test_a_method_has_the_policy_that_its_contract_states(ours: Contract) -> None:
    update = ours.method("/nourish.food.v1.FoodService/UpdateFood")
    assert (update.idempotency, update.deadline_seconds, update.access) == ("idempotent", 3.0, "user")
    assert (update.scopes, update.rate_class) == (("food.write",), "write")
    assert update.rest == (RestBinding("PATCH", "/api/v1/{food.name=foods/*}", "food"),)
    assert (update.input_type, update.output_type) == ("nourish.food.v1.UpdateFoodRequest", "nourish.food.v1.Food")


def test_every_policy_option_is_read() -> None:
    options = {
        "cache_ttl": {"seconds": 60},
        "hedging": {"delay": {"nanos": 50_000_000}},
        "rate_class": "RATE_CLASS_HEAVY",
    }
    (read,) = Contract.load(descriptors(method(**options))).methods["shop"]
    assert (read.cache_seconds, read.hedge_seconds, read.rate_class) == (60.0, 0.05, "heavy")


def test_a_rate_class_that_is_not_said_is_read() -> None:
    (read,) = Contract.load(descriptors(method())).methods["shop"]
    assert read.rate_class == "read"


def test_a_second_binding_of_a_method_is_read_too() -> None:
    proto = method(get="/api/v1/things")
    proto.options.Extensions[HTTP].additional_bindings.add(post="/api/v1/things:list", body="*")
    proto.options.Extensions[HTTP].additional_bindings.add().custom.CopyFrom(
        annotations_pb2.google_dot_api_dot_http__pb2.CustomHttpPattern(kind="HEAD", path="/api/v1/things")
    )
    (read,) = Contract.load(descriptors(proto)).methods["shop"]
    assert [(b.verb, b.path, b.body) for b in read.rest] == [
        ("GET", "/api/v1/things", ""),
        ("POST", "/api/v1/things:list", "*"),
        ("HEAD", "/api/v1/things", ""),
    ]


def test_the_edge_offers_what_is_bound_and_not_for_services_only(ours: Contract) -> None:
    contract = Contract.load(descriptors(method("Get", get="/api/v1/things"), method("Inner", access="ACCESS_SERVICE")))
    assert [m.name for m in contract.exposed_methods()["shop"]] == ["Get"]
    assert Contract.load(descriptors(method())).exposed_methods() == {}
    assert all(m.rest and m.access != "service" for methods in ours.exposed_methods().values() for m in methods)


def test_a_method_without_a_policy_is_refused() -> None:
    bare = MethodDescriptorProto(name="Get", input_type=".nourish.shop.v1.Ask", output_type=".nourish.shop.v1.Ask")
    (problem,) = refusal(bare)
    assert problem == "nourish.shop.v1.ShopService/Get: has no policy: add option (nourish.mesh.v1.method)"


PURE_ONLY = {"idempotency_level": MethodOptions.IDEMPOTENT}
RULES: list[tuple[Callable[[], MethodDescriptorProto], str]] = [
    (lambda: method(deadline=None), "has no deadline"),
    (lambda: method(deadline={}), "the deadline of 0 s"),
    (lambda: method(deadline={"seconds": 300, "nanos": 1}), "at most 300 s"),
    (lambda: method(access=None), "has no access"),
    (lambda: method(scopes=["x"]), "scopes without ACCESS_USER"),
    (lambda: method(scopes=["x"], access="ACCESS_SERVICE"), "scopes without ACCESS_USER"),
    (lambda: method(cache_ttl={"seconds": 1}, **PURE_ONLY), "cache_ttl without NO_SIDE_EFFECTS"),
    (lambda: method(cache_ttl={"seconds": 1}, access="ACCESS_USER"), "cache_ttl without NO_SIDE_EFFECTS"),
    (lambda: method(cache_ttl={}), "cache_ttl that is not above 0 s"),
    (lambda: method(hedging={"delay": {"seconds": 1}}, **PURE_ONLY), "hedged without NO_SIDE_EFFECTS"),
    (lambda: method(hedging={}), "hedging delay"),
    (lambda: method(hedging={"delay": {"seconds": 2}}), "below the deadline"),
    (lambda: method(hash_key="nme"), "hash_key: nourish.shop.v1.Ask has no scalar field 'nme'"),
    (lambda: method(hash_key="inner"), "no scalar field 'inner'"),
    (lambda: method(get="/api/v1/x", access="ACCESS_SERVICE"), "a REST binding and ACCESS_SERVICE"),
    (lambda: method(get="/v1/x"), "does not begin with /api/v1/"),
    (lambda: method(get="/health"), "does not begin with /api/v1/"),
    (lambda: method(get="/api/v1/{nme=x/*}"), "has no field 'nme'"),
    (lambda: method(get="/api/v1/{inner.nme}"), "has no field 'inner.nme'"),
    (lambda: method(get="/api/v1/x/"), "'' is neither a literal nor a wildcard"),
    (lambda: method(get="/api/v1/x", **PURE_ONLY), "bound to GET without NO_SIDE_EFFECTS"),
]


@pytest.mark.parametrize(("build", "fault"), RULES, ids=[fault for _, fault in RULES])
def test_a_policy_that_contradicts_itself_is_refused(build: Callable[[], MethodDescriptorProto], fault: str) -> None:
    (problem,) = refusal(build())
    assert problem.startswith("nourish.shop.v1.ShopService/Get: ")
    assert fault in problem


@pytest.mark.parametrize("level", [0, 1, 2])
def test_any_idempotency_level_will_do_if_it_is_said(level: int) -> None:
    assert Contract.load(descriptors(method(idempotency_level=level))).methods["shop"]


def test_an_idempotency_level_that_is_not_said_is_refused() -> None:
    proto = method()
    proto.options.ClearField("idempotency_level")
    (problem,) = refusal(proto)
    assert "has no idempotency_level" in problem


@pytest.mark.parametrize(
    "options", [{"deadline": {"seconds": 300}}, {"deadline": {"nanos": 1}}, {"get": "/api/v1/{inner.name}"}]
)
def test_the_limits_themselves_are_allowed(options: dict[str, Any]) -> None:
    assert Contract.load(descriptors(method(**options))).methods["shop"]


def test_a_body_that_names_no_field_is_refused() -> None:
    proto = method()
    proto.options.Extensions[HTTP].post, proto.options.Extensions[HTTP].body = "/api/v1/x", "thing"
    (problem,) = refusal(proto)
    assert "has no field 'thing'" in problem


def test_two_bindings_that_one_request_would_match_are_refused() -> None:
    (problem,) = refusal(method("One", get="/api/v1/{name=x/*}"), method("Two", get="/api/v1/x/mine"))
    assert problem == (
        "nourish.shop.v1.ShopService/Two: GET /api/v1/x/mine collides with "
        "/api/v1/{name=x/*} of nourish.shop.v1.ShopService/One"
    )


def test_every_problem_is_told_at_once() -> None:
    assert len(refusal(method("One", deadline=None, access=None), method("Two", get="/x"))) == 3


def test_a_package_whose_name_cannot_be_a_service_is_refused() -> None:
    assert "is no service name" in refusal(method(), package="nourish.my_shop.v1")[0]


def test_packages_of_others_are_passed_over() -> None:
    assert Contract.load(descriptors(MethodDescriptorProto(name="X"), package="google.shop.v1")).methods == {}
