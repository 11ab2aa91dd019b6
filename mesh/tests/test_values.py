"""What values become, and how they are refused: every problem at once, each with its file and line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mesh.contract import Contract
from mesh.topology import Canary, Limits, Service, ServiceDatabase, Telemetry, Topology
from mesh.traffic import Abort, Delay, FaultHeader, Faults, Mirror, Outliers, Rate, Rates, Traffic
from mesh.values import CHART_VALUES, ValuesError, ValuesFile, check, load, locate, merge, read
from mesh.values.proxyless import SUPPORT


def problems(*texts: str) -> list[str]:
    """The problems of values files named 0.yaml, 1.yaml, ..."""
    with pytest.raises(ValuesError) as refusal:
        load([ValuesFile(f"{n}.yaml", text) for n, text in enumerate(texts)])
    assert str(refusal.value) == "\n".join(refusal.value.problems)
    return refusal.value.problems


def services(stanza: str) -> str:
    """Values with the service `food`, whose stanza begins on line 3, and `profile`."""
    indented = "".join(f"    {line}\n" for line in stanza.splitlines())
    return f"services:\n  food:\n{indented}  profile: {{}}\n"


def test_our_own_values_hold_and_agree_with_our_contracts() -> None:
    assert check(load(read([CHART_VALUES])), Contract.read()) == []


def test_traffic_reaches_the_model() -> None:
    text = """
services:
  food:
    traffic:
      faults: {delay: {milliseconds: 5, percent: 1}, abort: {status: ABORTED}, header: {regex: a.*}, subset: canary}
      outliers: {consecutiveErrors: 1, ejectionSeconds: 2, maxEjectionSeconds: 3, maxEjectionPercent: 4}
      mirror: {percent: 5}
      balancing: random
      rates: {search: {perSecond: 6, burst: 7}, heavy: {perSecond: 8}}
    canary: {replicas: 1}
"""
    faults = Faults(Delay(5, 1), Abort("ABORTED", 100), FaultHeader(regex="a.*"), "canary")
    assert load([ValuesFile("v.yaml", text)]).services["food"].traffic == Traffic(
        faults, Outliers(1, 2, 3, 4), Mirror(5), Rates(search=Rate(6, 7), heavy=Rate(8)), balancing="random"
    )


def test_a_stanza_of_nothing_takes_all_defaults() -> None:
    assert load([ValuesFile("v.yaml", "services: {food: {}}")]) == Topology({"food": Service("food")})


def test_every_value_reaches_the_model() -> None:
    text = """
namespace: prod
trustDomain: example.org
image: {repository: registry.example/nourish, tag: "1.10"}
edge: {port: 9000, replicas: 2, maxRequestBytes: 2048}
database: {address: "db.example:5432", maxConnections: 50}
events: {address: "nats.example:4222"}
telemetry: {otlp: "[::1]:4317", sampled: 0.5, port: 9464}
services:
  food:
    calls: [profile]
    lang: python
    dataPlane: proxyless
    replicas: 2
    canary: {replicas: 1, weight: 25}
    database: {poolSize: 7}
    limits: {maxConnections: 1, maxPendingRequests: 2, maxRequests: 3}
    settings: {search.minScore: 0.50, size: 2.0, careful: yes, greeting: "yes, \u00e9"}
    flags: {search.newOrder: {shares: {enabled: 2.5}}}
  profile: {database: {}, events: {}}
"""
    topology = load([ValuesFile("v.yaml", text)])
    settings = {"search.minScore": "0.5", "size": "2", "careful": "true", "greeting": '"yes, \u00e9"'}
    limits = Limits(1, 2, 3)
    food = Service(
        "food",
        ("profile",),
        replicas=2,
        canary=Canary(1, 25),
        database=ServiceDatabase(7),
        limits=limits,
        settings=settings,
        data_plane="proxyless",
        flags={"search.newOrder": '{"shares": {"enabled": 2.5}}'},
    )
    assert topology.services == {"food": food, "profile": Service("profile", database=ServiceDatabase(5), events=True)}
    assert (topology.namespace, topology.trust_domain) == ("prod", "example.org")
    assert (topology.image.repository, topology.image.tag) == ("registry.example/nourish", "1.10")
    assert (topology.edge.port, topology.edge.replicas, topology.edge.max_request_bytes) == (9000, 2, 2048)
    assert (topology.database.address, topology.database.max_connections) == ("db.example:5432", 50)
    assert topology.events.address == "nats.example:4222"
    assert topology.telemetry == Telemetry("[::1]:4317", sampled=0.5, port=9464)


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("{share: {enabled: 1}}", "services.food.flags.new: unknown key 'share'; did you mean 'shares'?"),
        ("true", "services.food.flags.new: true is not a map"),
        ("{shares: {on: 1}}", "shares.true: is no variant name. A word in lowerCamelCase"),
        ("{shares: {enabled: 101}}", "shares.enabled: 101 is more than the maximum of 100"),
        ("{shares: {enable: 10}}", "shares.enable: there is no variant 'enable'; did you mean 'enabled'?"),
        ("{shares: {disabled: 10}}", "shares.disabled: is the default, which takes what the others leave"),
        ("{variants: {a: 1}}", "flags.new: has variants or a default but not both"),
        ("{variants: {a: 1, b: x}, default: a}", "flags.new.variants: are of several types"),
        ("{variants: {a: 1, b: 1.5}, default: c}", "flags.new.default: there is no variant 'c'"),
        ("{variants: {a: 1, b: 2, c: 3}, default: a, shares: {b: 60, c: 50}}", "shares: are 110 percent in all"),
        ("{rules: [{users: [alice]}]}", "flags.new.rules[0]: 'variant' is missing"),
        ("{rules: [{user: [alice], variant: enabled}]}", "rules[0]: unknown key 'user'; did you mean 'users'?"),
        ("{rules: [{users: [alice], variant: on2}]}", "rules[0].variant: there is no variant 'on2'"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused_with_its_line(flag: str, problem: str) -> None:
    (found,) = problems(f"services:\n  food:\n    flags:\n      new: {flag}\n")
    assert found.startswith("0.yaml:4: services.food.flags.new")
    assert problem in found


def test_the_flags_of_a_service_fit_one_message() -> None:
    users = ", ".join(f"{'x' * 290}{n}" for n in range(1000))
    rules = ", ".join([f"{{users: [{users}], variant: enabled}}"] * 4)
    (found,) = problems(f"services: {{food: {{flags: {{new: {{rules: [{rules}]}}}}}}}}")
    assert "services.food.flags: have 118" in found


@pytest.mark.parametrize(("said", "has"), [("{}", True), ("true", True), ("false", False)])
def test_a_service_has_events_if_its_stanza_says_so(said: str, has: bool) -> None:
    assert load([ValuesFile("v.yaml", f"services: {{food: {{events: {said}}}}}")]).services["food"].events is has


@pytest.mark.parametrize(
    ("stanza", "problem"),
    [
        ("replcas: 3", "0.yaml:3: services.food: unknown key 'replcas'; did you mean 'replicas'?"),
        (
            "canary:\n  replicas: 1\n  weight: 300",
            "0.yaml:5: services.food.canary.weight: 300 is more than the maximum of 100",
        ),
        ("replicas: -1", "0.yaml:3: services.food.replicas: -1 is less than the minimum of 0"),
        ("lang: pyton", "services.food.lang: 'pyton' is none of python; did you mean 'python'?"),
        ("replicas: two", "services.food.replicas: 'two' is not a whole number"),
        ("replicas: 1.5", "services.food.replicas: 1.5 is not a whole number"),
        ("replicas: yes", "services.food.replicas: true is not a whole number"),
        ("calls: profile", "services.food.calls: 'profile' is not a list"),
        ("calls: [profile, profile]", "services.food.calls: names 'profile' twice"),
        ("database: 5", "services.food.database: 5 is not a map"),
        ("database:", "0.yaml:3: services.food.database: is empty, and Helm drops what is empty; write {}"),
        (
            "calls:\n- profile\n- profle",
            "0.yaml:5: services.food.calls[1]: there is no service 'profle'; did you mean 'profile'?",
        ),
        ("calls: [food]", "services.food.calls[0]: 'food' is the service itself"),
        ("calls: [edge]", "services.food.calls[0]: no service can call the edge"),
        ("canary: {weight: 5}", "services.food.canary.weight: canary takes 5 % of the calls but has no instance"),
        (
            "traffic:\n  faults:\n    delay: {percent: 5}",
            "0.yaml:5: services.food.traffic.faults.delay: 'milliseconds' is",
        ),
        (
            "traffic: {faults: {abort: {status: OK}}}",
            "services.food.traffic.faults.abort.status: 'OK' is none of CANCELLED",
        ),
        (
            "traffic: {faults: {abort: {}, header: {exact: a, regex: b}}}",
            "services.food.traffic.faults.header: has exact and regex; it takes 1 of them",
        ),
        ("traffic: {faults: {header: {exact: a}}}", "services.food.traffic.faults: has a header but nothing to do"),
        (
            "traffic: {outliers: {ejectionSeconds: 61}}",
            "services.food.traffic.outliers.maxEjectionSeconds: must be at least as long as the first, 61 s",
        ),
        ("traffic: {mirror: {percent: 5}}", "services.food.traffic.mirror.percent: the canary has no instance"),
        ("settings: {minScore: {a: 1}}", "settings.minScore: a map is not a text, a number or true or false. In --set"),
        ("settings: {minScore: [1]}", "services.food.settings.minScore: a list is not a text, a number or"),
        ("settings:\n  min_score: 1", "0.yaml:4: services.food.settings.min_score: is no setting name. Words in"),
        ("settings: {on: 1}", "services.food.settings.true: is no setting name. Words in"),
        (f"settings: {{{'x' * 101}: 1}}", f"services.food.settings.{'x' * 101}: is no setting name. Words in"),
        (
            f"settings: {{a: {'x' * 1001}}}",
            "services.food.settings.a: has 1001 characters, more than the maximum of 1000",
        ),
        (
            "settings: {a: 9007199254740992}",
            "settings.a: 9007199254740992 is more than the maximum of 9007199254740991",
        ),
        (
            f"settings: {{{', '.join(f'a{n}: 1' for n in range(101))}}}",
            "services.food.settings: has more than 100 keys",
        ),
        (r'settings: {a: "\ud83d"}', "0.yaml:3: holds half of a character, which no text can"),
        ("replicas: 0", "0.yaml:3: services.food.replicas: stable takes 100 % of the calls but has no instance"),
    ],
)
def test_a_mistake_in_a_service_is_named_with_its_line_and_its_cure(stanza: str, problem: str) -> None:
    (found,) = problems(services(stanza))
    assert problem in found


def test_a_fraction_that_helms_set_would_make_a_text_of_is_refused(tmp_path: Path) -> None:
    """The service would refuse it, where nobody looks; whole numbers, words and files are as they seem."""
    file = tmp_path / "v.yaml"
    file.write_text("services: {food: {settings: {version: '1.5'}}}")
    sets = [r"services.food.settings.a\.b=5", "services.food.settings.c=x1"]
    settings = {"version": '"1.5"', "a.b": "5", "c": '"x1"'}
    assert load(read([file], sets)).services["food"].settings == settings
    with pytest.raises(ValuesError, match=r"'0\.5' is a text here: as in Helm, --set makes numbers of"):
        load(read([file], [r"services.food.settings.a\.b=0.5"]))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("services: {edge: {}}", "services.edge: is no service name. "),
        ("services: {Food: {}}", "services.Food: is no service name. "),
        ("services: {food-canary: {}}", "services.food-canary: is no service name. "),
        ("services: {food-: {}}", "services.food-: is no service name. "),
        ("services: {}", "0.yaml:1: services: is empty"),
        ("namespace: x", "'services' is missing"),
        ("", "'services' is missing"),
        (
            "services: {a: {}}\nimage: {tag: 1.10}",
            "0.yaml:2: image.tag: 1.1 is not a text. The image's tag, in quotation marks",
        ),
        ("services: {a: {}}\ndatabase: {address: here}", "database.address: 'here' does not fit. host:port"),
    ],
)
def test_a_mistake_in_the_rest_is_named_too(text: str, problem: str) -> None:
    (found,) = problems(text)
    assert problem in found


@pytest.mark.parametrize(
    ("stanza", "problem"),
    [
        ("traffic: {faults: {abort: {}}}", "0.yaml:4: services.food.traffic.faults: they happen at a sidecar"),
        ("traffic: {rates: {read: {perSecond: 1}}}", "0.yaml:4: services.food.traffic.rates: a sidecar counts them"),
        ("traffic: {concurrency: {adaptive: true}}", "0.yaml:4: services.food.traffic.concurrency: a sidecar sheds"),
        ("limits: {maxRequestBytes: 1000000}", "0.yaml:4: services.food.limits.maxRequestBytes: a sidecar limits them"),
        ("limits: {connectionSeconds: 60}", "0.yaml:4: services.food.limits.connectionSeconds: a sidecar limits them"),
    ],
)
def test_what_a_service_needs_its_sidecar_for_is_refused_without_one(stanza: str, problem: str) -> None:
    (found,) = problems(services(f"dataPlane: proxyless\n{stanza}"))
    assert problem in found


@pytest.mark.parametrize(
    ("stanza", "path"),
    [
        ("traffic: {balancing: random}", "traffic.balancing"),
        ("traffic: {mirror: {percent: 5}}\ncanary: {replicas: 1}", "traffic.mirror.percent"),
        ("traffic: {outliers: {consecutiveErrors: 3}}", "traffic.outliers"),
        ("traffic: {zone: own}", "traffic.zone"),
        ("canary: {replicas: 1, sticky: user}", "canary.sticky"),
        ("limits: {maxConnections: 7}", "limits.maxConnections"),
        ("limits: {maxPendingRequests: 7}", "limits.maxPendingRequests"),
    ],
)
def test_what_a_caller_needs_a_sidecar_for_is_refused_at_the_callee(stanza: str, path: str) -> None:
    text = services(stanza)
    load([ValuesFile("0.yaml", text)])
    (found,) = problems(text, "services: {profile: {dataPlane: proxyless, calls: [food]}}")
    assert found.startswith(f"0.yaml:3: services.food.{path}: its caller profile is proxyless, ")


def test_what_grpc_can_do_is_taken_without_a_sidecar() -> None:
    text = services("traffic: {balancing: ringHash, faults: {abort: {}}}\ncanary: {replicas: 1, weight: 5}")
    load([ValuesFile("0.yaml", f"{text}  diary: {{dataPlane: proxyless, calls: [food]}}")])


def test_a_hedged_method_is_not_called_without_a_sidecar() -> None:
    """The contract asks for it, so the line is that of the caller's data plane."""
    contract = Contract.read()
    topology = load(read([CHART_VALUES]))
    bare = replace(topology.services["nutrition"], data_plane="proxyless")
    topology = replace(topology, services={**topology.services, "nutrition": bare})
    assert check(topology, contract) == []
    first, *rest = contract.methods["food"]
    hedged = replace(contract, methods={**contract.methods, "food": (replace(first, hedge_seconds=0.1), *rest)})
    (found,) = check(topology, hedged)
    assert found.startswith("services.nutrition.dataPlane: gRPC's xDS has no hedging, which the contract of ")


def test_every_feature_of_a_proxyless_service_is_in_the_decision() -> None:
    decision = next((CHART_VALUES.parents[1] / "docs" / "decisions").glob("0043-*.md")).read_text()
    assert [feature for feature in SUPPORT if f"| {feature} | {SUPPORT[feature][0]} |" not in decision] == []


def test_a_canary_may_take_all_when_stable_has_no_instance() -> None:
    text = services("replicas: 0\ncanary: {replicas: 1, weight: 100}")
    assert load([ValuesFile("v.yaml", text)]).services["food"].live_subsets == ("canary",)


def test_a_cycle_is_printed_as_the_way_round() -> None:
    text = "services:\n  a: {calls: [b]}\n  b: {calls: [c]}\n  c: {calls: [a]}\n"
    assert problems(text) == ["0.yaml:4: services.c.calls: form a cycle: a -> b -> c -> a"]


def test_a_cycle_is_named_where_the_last_file_closes_it() -> None:
    chart = "services:\n  a: {}\n  b: {calls: [a]}\n"
    cycle = "services.a.calls: form a cycle: a -> b -> a"
    assert problems(chart, "services:\n  a: {calls: [b]}\n") == [f"1.yaml:2: {cycle}"]


@pytest.mark.parametrize(
    ("database", "fault"),
    [
        ("{replicas: ['b:5432']}", "0.yaml:1: database.replicas: the embedded server has no copies"),
        ("{address: 'a:5432', replicas: ['b:5432', 'a:5432']}", "replicas[1]: a:5432 is the server itself"),
        ("{address: 'a:5432', replicas: ['b:5432', 'b:5432']}", "database.replicas"),
        ("{address: 'a:5432', replicas: ['b']}", "database.replicas[0]"),
    ],
)
def test_replicas_that_make_no_sense_are_refused(database: str, fault: str) -> None:
    with pytest.raises(ValuesError) as caught:
        load([ValuesFile("0.yaml", f"database: {database}\nservices:\n  food: {{database: {{}}}}\n")])
    assert fault in str(caught.value)


def test_pools_must_fit_on_each_replica_too() -> None:
    """A replica has no fewer connections than its primary: PostgreSQL does not start it otherwise."""
    text = """database: {address: "a:5432", replicas: ["b:5432"], maxConnections: 20}
services:
  food: {replicas: 3, database: {poolSize: 5}}
"""
    with pytest.raises(ValuesError, match="need 15 connections here and on each replica"):
        load([ValuesFile("0.yaml", text)])


def test_pools_that_do_not_fit_are_refused_with_the_arithmetic() -> None:
    text = """database: {maxConnections: 30}
services:
  food: {replicas: 2, canary: {replicas: 1}, database: {poolSize: 5}}
  profile: {database: {poolSize: 6}}
"""
    assert problems(text) == [
        "0.yaml:1: database.maxConnections: the pools of all instances need 21 connections "
        "(food 5 x 3 + profile 6 x 1), but 20 are there (30 - 10 in reserve); raise it to 31 or lower a poolSize"
    ]
    assert load([ValuesFile("v.yaml", text.replace("30", "31"))])


def test_all_problems_are_told_at_once_in_the_order_of_files_and_lines() -> None:
    first = services("replcas: 1\ncanary: {weight: 300}\ncalls: [profle]")
    found = problems(first, "edge: {port: 0}\nservices: {food: {lang: rust}}\n")
    assert [problem.split(" ")[0] for problem in found] == [
        "0.yaml:3:",
        "0.yaml:4:",
        "0.yaml:5:",
        "1.yaml:1:",
        "1.yaml:2:",
    ]


def test_a_problem_is_told_once_and_not_with_what_only_follows_from_it() -> None:
    """Without its canary replicas the weight of 5 would have no instance: a consequence, not another mistake."""
    (found,) = problems(services("canary: {replicas: one, weight: 5}"))
    assert "services.food.canary.replicas" in found


def test_a_value_is_blamed_on_the_file_that_said_it_last() -> None:
    (found,) = problems(services("replicas: 1"), "services: {food: {replicas: 1000}}")
    assert found.startswith("1.yaml:1: services.food.replicas: 1000 is more")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("services:\n\tfood: {}\n", "0.yaml:2: a tab cannot indent YAML; use spaces"),
        ("a: 1\nb: 2\na: 3\n", "0.yaml:3: the key 'a' stands here again; it is also on line 1"),
        ("a:\n  b: {c: 1, c: 2}\n", "0.yaml:2: the key 'c' stands here again"),
        ("- 1\n", "0.yaml:1: values must be a map of names to values"),
        ("5\n", "0.yaml:1: values must be a map of names to values"),
        ("a: 1\n---\nb: 1\n", "holds more than one document"),
        ("a: 1\nb: [1\n", "0.yaml:3: is not YAML: "),
        ("a: b: c\n", "0.yaml:1: is not YAML: mapping values are not allowed here"),
        ("a: *nobody\n", "0.yaml:1: is not YAML: found undefined alias 'nobody'"),
        ("a: 1\n\nb: \x07\n", r"0.yaml:3: the character '\x07' may not stand in YAML"),
        ("? [a]\n: b\n", "0.yaml:1: a key must be a name"),
        ("~: b\n", "0.yaml:1: a key must be a name"),
        ("a: .nan\n", "0.yaml:1: .nan is no number that JSON can hold"),
        ("a: !!timestamp 2024-01-01\n", "0.yaml:1: the tag 'tag:yaml.org,2002:timestamp' has no meaning here"),
        ("a: &a [*a]\n", "0.yaml: is nested too deeply, or an alias holds itself"),
        ("a: " + "[" * 1000, "0.yaml: is nested too deeply"),
        ("a: 1\nb: {<<: 5}\n", "0.yaml:2: '<<' takes a map or a list of maps"),
    ],
)
def test_what_is_not_yaml_for_us_is_refused_with_its_line(text: str, problem: str) -> None:
    (found,) = problems(text)
    assert problem in found


def test_aliases_cannot_make_a_small_file_huge() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
    )
    assert problems(bomb) == ["0.yaml: holds more than 20000 values"]


def test_broken_files_are_all_named() -> None:
    assert [problem.split(" ")[0] for problem in problems("a: [", "- 1")] == ["0.yaml:1:", "1.yaml:1:"]


def test_a_wrong_assignment_is_named_as_it_was_given() -> None:
    with pytest.raises(ValuesError) as refusal:
        load(read([CHART_VALUES], ["edge.port=0", "services.food.replicas=2"]))
    (problem,) = refusal.value.problems
    assert problem.startswith("--set edge.port=0: edge.port: 0 is less than the minimum of 1")


def test_every_malformed_assignment_is_named() -> None:
    with pytest.raises(ValuesError) as refusal:
        read([CHART_VALUES], ["edge.port", "edge.port=1", "a={x"])
    assert refusal.value.problems == [
        "--set edge.port: edge.port has no value; write name=value",
        "--set a={x: the list of a has no '}'",
    ]


def test_files_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "latin1.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(ValuesError) as refusal:
        read([tmp_path / "none.yaml", tmp_path, tmp_path / "latin1.yaml"])
    assert refusal.value.problems == [
        f"{tmp_path}/none.yaml: no such file or directory",
        f"{tmp_path}: is a directory",
        f"{tmp_path}/latin1.yaml: is not UTF-8 text",
    ]


def test_no_files_are_no_values() -> None:
    with pytest.raises(ValuesError, match="give at least one file"):
        merge([])


def test_a_value_is_found_where_it_was_written() -> None:
    files = [ValuesFile("a.yaml", services("replicas: 1")), ValuesFile("b.yaml", "\nservices: {food: {replicas: 2}}")]
    assert locate(files, "services", "food", "replicas") == "b.yaml:2"
    assert locate(files, "services", "profile") == "a.yaml:4"
    assert locate(files, "services", "food", "canary", "weight") == "b.yaml:2"


def test_of_a_misspelt_service_the_first_thing_said_is_that_there_is_none() -> None:
    """What follows from it would send whoever reads it the wrong way."""
    files = [ValuesFile("a.yaml", services("replicas: 1"))]
    for key, said in (("weight", "canary takes 10 %"), ("wieght", "unknown key 'wieght'")):
        with pytest.raises(ValuesError) as caught:
            load([*files, ValuesFile("--set", f"services: {{fod: {{canary: {{{key}: 10}}}}}}")])
        first, second = caught.value.problems
        assert first == "--set:1: services.fod: there is no service 'fod'; did you mean 'food'?"
        assert said in second


def test_a_stanza_without_a_contract_and_a_contract_without_a_stanza_are_named() -> None:
    contract = Contract.read()
    rest = {name: Service(name) for name in contract.methods if name not in ("edge", "food")}
    missing, stray = sorted(
        check(Topology({**rest, "foood": Service("foood")}), contract), key=lambda p: "missing" not in p
    )
    assert "services.food: is missing" in missing
    assert "add `food: {}` to the values" in missing
    assert "services.foood: there is no contract for it" in stray
    assert "did you mean 'food'?" in stray
