"""What the command does when no mesh runs: help, checks, tokens, routes, logs, and errors that say what to do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.cli import main
from mesh.cli.failure import MEANINGS, Exit
from mesh.cli.logs import Tail, select
from mesh.cli.output import span
from mesh.cli.place import read_values
from mesh.cli.up import Progress, examples, rows
from mesh.contract import Contract
from mesh.identity import tokens
from mesh.identity.ca import CertificateAuthority
from mesh.local import errors
from mesh.local.events import Event, InstanceState, ProcessState, State, now
from mesh.topology import Topology
from mesh.values import ValuesFile, load

pytestmark = pytest.mark.usefixtures("home")

OVERLAY = "services:\n  food:\n    canary: { replicas: 1, weight: 300 }\n"


@pytest.mark.parametrize("verb", list(main.commands))
def test_each_verb_explains_itself_and_prints_json_for_programs(run, verb):
    done = run(verb, "--help")
    assert done.exit_code == 0
    assert "--json" in done.output
    assert main.commands[verb].get_short_help_str().endswith(".")


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from mesh.cli import main; main(['--help'], standalone_mode=False); "
        "sys.exit(str({'grpc', 'google.protobuf', 'rich', 'yaml', 'cryptography', 'jsonschema'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"
    assert "routes" in done.stdout


def test_the_exit_code_of_every_failure_of_the_runner_is_documented():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LocalError)]
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    assert set(codes.values()) <= {int(code) for code in MEANINGS}
    assert len(set(codes.values())) == len(codes)
    assert codes["AlreadyRunningError"] == Exit.ALREADY_RUNNING
    assert codes["RefusedError"] == Exit.REFUSED
    assert codes["PortTakenError"] == Exit.PORT_TAKEN


@pytest.mark.parametrize(
    "arguments",
    [("status",), ("apply",), ("config", "food-0"), ("certificates",), ("call", "food", "ListFoods")],
    ids=lambda a: a[0],
)
def test_a_verb_that_needs_a_mesh_says_how_to_start_one(run, home, arguments):
    done = run(*arguments)
    assert done.exit_code == Exit.NOT_RUNNING
    assert done.stdout == ""
    assert str(home) in done.stderr
    assert "mesh up" in done.stderr


def test_stopping_what_does_not_run_is_no_error(run):
    assert run("down").exit_code == 0
    assert json.loads(run("down", "--json").stdout) == {"stopped": False, "wiped": False}


def test_the_shipped_values_and_contracts_are_sound(run):
    done = run("check")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("ok: ")


def test_bad_values_are_refused_with_file_and_line(run, tmp_path):
    overlay = tmp_path / "more.yaml"
    overlay.write_text(OVERLAY)
    done = run("check", "-f", overlay)
    assert done.exit_code == Exit.REFUSED
    assert f"{overlay}:3: services.food.canary.weight" in done.stderr
    answer = run("check", "--json", "-f", overlay)
    assert answer.exit_code == Exit.REFUSED
    assert json.loads(answer.stdout)["ok"] is False
    assert "services.food.canary.weight" in json.loads(answer.stdout)["problems"][0]


def test_up_refuses_bad_values_before_it_starts_anything(run, home, tmp_path):
    overlay = tmp_path / "more.yaml"
    overlay.write_text(OVERLAY)
    assert run("up", "-f", overlay).exit_code == Exit.REFUSED
    assert list(home.iterdir()) == []


def test_a_service_that_is_not_there_cannot_be_brought_up(run):
    done = run("up", "fod")
    assert done.exit_code == Exit.REFUSED
    assert "fod" in done.stderr


def test_a_token_is_for_whom_and_what_it_was_asked_for(run, home):
    done = run("token", "--user", "alice", "--scope", "food.write", "--ttl", "90s")
    claims = tokens.verify(home / "identity", done.stdout.strip())
    assert (claims.user, claims.scopes, claims.expires - claims.issued) == ("alice", ("food.write",), 90)
    answer = json.loads(run("token", "--user", "alice", "--json").stdout)
    assert answer["expiresInSeconds"] == 3600
    assert tokens.verify(home / "identity", answer["token"]).scopes == ()


@pytest.mark.parametrize(
    "arguments", [(), ("--user", ""), ("--user", "a", "--ttl", "1y"), ("--user", "a", "--scope", "")]
)
def test_a_token_for_nobody_or_of_no_known_length_is_a_usage_error(run, arguments):
    assert run("token", *arguments).exit_code == Exit.USAGE


def test_routes_follow_from_the_values_and_the_contracts(run):
    routes = json.loads(run("routes", "profile", "--json").stdout)
    contract = {method.name: method for method in Contract.read().methods["profile"]}
    assert [route["method"] for route in routes] == list(contract)
    created = next(route for route in routes if route["method"] == "CreateProfile")
    assert created["callers"] == ["edge", "nutrition"]
    assert created["scopes"] == list(contract["CreateProfile"].scopes)
    assert created["deadlineSeconds"] == contract["CreateProfile"].deadline_seconds
    assert created["retries"] == "if it did not start"
    without = json.loads(run("routes", "profile", "--set", "services.nutrition.calls={food}", "--json").stdout)
    assert {tuple(route["callers"]) for route in without} == {("edge",)}


def test_routes_show_what_the_values_do_to_each_method(run, tmp_path):
    """In words what is unusual, in JSON all of it, and nothing of a method that it does not befall."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "services: {food: {canary: {replicas: 1, weight: 25, sticky: user}, traffic: {balancing: ringHash, "
        "mirror: {percent: 5}, rates: {search: {perSecond: 9}}, faults: {abort: {percent: 3}}}}}"
    )
    shown = run("routes", "food", "-f", overlay).stdout
    lines = {line.split()[0]: line for line in shown.splitlines() if line.startswith("  ")}
    assert "ring by name, canary 25 % of users, 5 % mirrored, FAULT 3 % UNAVAILABLE" in lines["GetFood"]
    assert "9/s (search)" in lines["SearchFoods"]
    assert "9/s" not in lines["GetFood"]
    routes = {r["method"]: r["policies"] for r in json.loads(run("routes", "food", "-f", overlay, "--json").stdout)}
    assert routes["GetFood"]["canary"] == {"weight": 25, "sticky": "user"}
    assert routes["SearchFoods"]["rate"] == {"class": "search", "perSecond": 9, "burst": 1}
    assert routes["GetFood"]["rate"] is None


def test_routes_for_people_name_weights_and_suggest_a_name(run):
    shown = run("routes", "food", "--set", "services.food.canary.weight=25")
    assert "stable 75 % (x1), canary 25 % (x1)" in shown.stdout
    wrong = run("routes", "fod")
    assert wrong.exit_code == Exit.FAILED
    assert "did you mean 'food'?" in wrong.stderr


def _logs(home: Path) -> Path:
    folder = home / "log"
    folder.mkdir()
    (folder / "food-0.log").write_text(
        '{"time":"2026-01-01T00:00:01.000+00:00","level":"INFO","message":"first","rows":3}\n'
        '{"time":"2026-01-01T00:00:03.000+00:00","level":"ERROR","message":"third","exception":"Traceback"}\n'
    )
    (folder / "food-0.envoy.log").write_text("[2026-01-01 00:00:02.500][1][warning] second\n")
    (folder / "food-canary-0.log").write_text("2026-01-01 00:00:04,125 INFO fourth\nwithout a time\n")
    (folder / "control.log").write_text("2026-01-01 00:00:00.000 UTC zeroth\n")
    return folder


def test_logs_of_all_processes_come_in_order_of_time(run, home):
    _logs(home)
    lines = run("logs").stdout.splitlines()
    words = ["zeroth", "first", "second", "third", "Traceback", "fourth", "without a time"]
    assert [next(word for word in words if word in line) for line in lines] == words
    assert lines[1].split() == ["food-0", "00:00:01.000", "INFO", "first", "rows=3"]
    assert len(run("logs", "-n", "2").stdout.splitlines()) == 2


def test_logs_for_programs_keep_the_fields_of_json_lines(run, home):
    _logs(home)
    lines = [json.loads(line) for line in run("logs", "food", "--json").stdout.splitlines()]
    assert [line["source"] for line in lines] == ["food-0", "food-0.envoy", "food-0", *["food-canary-0"] * 2]
    assert lines[0]["line"]["rows"] == 3
    assert lines[4] == {"source": "food-canary-0", "time": lines[3]["time"], "line": "without a time"}


def test_a_name_selects_a_service_an_instance_or_an_engine(run, home):
    folder = _logs(home)
    chosen = {name: [path.stem for path in select(folder, [name])] for name in ("food", "food-0", "control", "foo")}
    assert chosen == {
        "food": ["food-0.envoy", "food-0", "food-canary-0"],
        "food-0": ["food-0.envoy", "food-0"],
        "control": ["control"],
        "foo": [],
    }
    missing = run("logs", "foo")
    assert missing.exit_code == Exit.FAILED
    assert "food-canary-0" in missing.stderr


def test_a_followed_file_gives_whole_new_lines_and_starts_over_when_it_is_replaced(tmp_path):
    path = tmp_path / "food-0.log"
    tail = Tail(path)
    assert list(tail.read()) == []
    path.write_text("one\ntw")
    assert [entry.text for entry in tail.read()] == ["one"]
    with path.open("a") as file:
        file.write("o\n")
    assert [entry.text for entry in tail.read()] == ["two"]
    path.rename(tmp_path / "food-0.log.1")
    path.write_text("three\n")
    assert [entry.text for entry in tail.read()] == ["three"]


def test_a_long_preparation_is_told_once_a_while_and_each_new_step_at_once(capsys):
    tell = Progress(load(read_values()), detached=True)
    for done in range(1000):
        tell(Event("status", "food-0", f"importing {done:,} of 1,000"))
    tell(Event("status", "food-0", "indexing"))
    tell(Event("ready", "food-0"))
    lines = [line.split(" s  ")[1].split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["food-0", "importing", "0", "of", "1,000"]
    assert lines[-2:] == [["food-0", "indexing"], ["food-0", "ready"]]
    assert len(lines) < 10


def test_the_commands_shown_after_a_start_are_for_what_runs():
    up = ProcessState(1, True, 0)
    running = {"food-0": "food", "edge-0": "edge"}
    instances = tuple(InstanceState(i, s, "stable", i != "edge-0", 1, "", up, up) for i, s in running.items())
    state = State(1, now(), "ready", "http://127.0.0.1:9", "", "", None, up, instances)
    contract = Contract.read()
    assert examples(state, contract) == [
        "curl 'http://127.0.0.1:9/api/v1/foods?pageSize=3'",
        "curl http://127.0.0.1:9/health",
    ]
    assert examples(replace(state, instances=instances[1:]), contract) == ["curl http://127.0.0.1:9/health"]
    topology = load([*read_values(), ValuesFile("x", "services: {food: {canary: {replicas: 1, weight: 30}}}")])
    assert rows(state, topology) == [
        ("food", "stable 70 %", "1", "[green]ready[/]", ""),
        ("edge", "stable", "1", "[yellow]0 of 1 ready[/]", ""),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.143, "143 ms"), (2.5, "2.5 s"), (34.1, "34 s"), (2520, "42 min"), (10_800, "3 h"), (800_000, "9 d")],
)
def test_spans_have_one_unit(seconds, text):
    assert span(seconds) == text


def certified(home: Path) -> CertificateAuthority:
    """Certificates of two services, as a mesh that was stopped leaves them."""
    authority = CertificateAuthority(home / "identity")
    for service in ("food", "nutrition"):
        authority.issue(service, Topology({}).spiffe_id(service))
    return authority


def test_certificates_are_shown_and_replaced_by_name_or_all(run, home):
    certified(home)
    before = json.loads(run("certificates", "--json").stdout)["certificates"]
    assert before["food"]["spiffeId"] == "spiffe://nourish.local/ns/nourish/sa/food"
    shown = run("certificates").stdout
    assert re.search(r"Nourish local CA \w{8}  issues  in 365 d", shown)
    assert re.search(r"nutrition .* in (59|60) min", shown)
    one = json.loads(run("certificates", "rotate", "food", "--json").stdout)["certificates"]
    assert one["food"]["serial"] != before["food"]["serial"]
    assert one["nutrition"] == before["nutrition"]
    assert "nutrition: serial" in run("certificates", "rotate").stdout
    every = json.loads(run("certificates", "--json").stdout)["certificates"]
    assert not {c["serial"] for c in every.values()} & {c["serial"] for c in one.values()}


def test_a_replaced_root_replaces_every_certificate(run, home):
    (old,) = certified(home).roots
    done = run("certificates", "rotate", "--root")
    assert done.exit_code == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["trust", "issue", "drop"]
    now = json.loads(run("certificates", "--json").stdout)
    assert [root["name"] for root in now["roots"]] == [now["issuer"]] != [old.common_name]
    assert {c["issuer"] for c in now["certificates"].values()} == {now["issuer"]}


def test_a_rotation_that_was_left_is_shown_and_one_at_work_is_not_disturbed(run, home):
    authority = certified(home)
    authority.trust_next()
    assert "rotate --root` goes on with it" in run("certificates").stdout
    with authority.rotation():
        refused = run("certificates", "rotate", "--root")
    assert refused.exit_code == Exit.NOT_READY
    assert "another process is replacing the root" in refused.stderr
    assert len(authority.roots) == 2
    assert run("certificates", "rotate", "--root").exit_code == 0
    assert len(authority.roots) == 1


def test_what_cannot_be_rotated_is_refused_and_changes_nothing(run, home):
    authority = certified(home)
    before = authority.issued()
    unknown = run("certificates", "rotate", "nutrition", "fod")
    assert unknown.exit_code == Exit.USAGE
    assert "did you mean 'food'?" in unknown.stderr
    assert run("certificates", "rotate", "--root", "food").exit_code == Exit.USAGE
    assert authority.issued() == before


def test_roots_that_are_gone_or_no_roots_are_a_failure_that_says_what_to_do(run, home):
    certified(home)
    (path,) = (home / "identity/ca.d").glob("*.pem")
    kept = path.read_bytes()
    path.write_text("no root")
    broken = run("certificates", "rotate")
    assert broken.exit_code == Exit.STATE
    assert f"{path} is no root" in broken.stderr
    path.unlink()
    gone = run("certificates", "rotate", "--root")
    assert gone.exit_code == Exit.STATE
    assert "restart the mesh" in gone.stderr
    path.write_bytes(kept)
    assert run("certificates").exit_code == 0
