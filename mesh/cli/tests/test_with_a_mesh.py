"""What the command does with a control plane and a service that run: real ones, without proxies between."""

from __future__ import annotations

import json
import os
import re
import signal

import grpc
import yaml
from nourish.mesh.v1 import registry_pb2
from nourish.mesh.v1.registry_pb2_grpc import RegistryServiceStub

from mesh.cli.failure import Exit
from mesh.identity import tokens
from mesh.values import ValuesFile, load


def test_an_edit_is_applied_described_and_recorded(run, mesh):
    assert run("apply").exit_code == 0
    done = run("apply", "--set", "services.food.canary.weight=42")
    assert done.exit_code == 0, done.stderr
    assert "42 %" in done.stdout
    recorded = load([ValuesFile("values.yaml", mesh.values.read_text())])
    assert recorded.services["food"].canary.weight == 42
    assert "in force already" in run("apply", "--set", "services.food.canary.weight=42").stdout


def test_an_edit_waits_until_the_runner_has_told_a_new_control_plane_the_values(run, new_control):
    refused = run("apply", "--timeout", "1s")
    assert refused.exit_code == Exit.NOT_RUNNING
    assert "no values yet" in refused.stderr
    assert not new_control.values.exists()


def test_a_dry_run_and_a_refused_edit_change_nothing(run, mesh, tmp_path):
    assert run("apply").exit_code == 0
    before, recorded = json.loads(run("status", "--json").stdout)["revision"], mesh.values.read_text()
    assert "42 %" in run("apply", "--dry-run", "--set", "services.food.canary.weight=42").stdout
    overlay = tmp_path / "more.yaml"
    overlay.write_text(yaml.safe_dump({"services": {"food": {"canary": {"weight": 300}}}}))
    refused = run("apply", "-f", overlay)
    assert refused.exit_code == Exit.REFUSED
    assert f"{overlay}:4: services.food.canary.weight" in refused.stderr
    answer = run("apply", "-f", overlay, "--json")
    assert (answer.exit_code, json.loads(answer.stdout)["applied"]) == (Exit.REFUSED, False)
    assert json.loads(run("status", "--json").stdout)["revision"] == before
    assert mesh.values.read_text() == recorded


def test_status_shows_instances_proxies_and_certificates(run, mesh):
    shown = run("status").stdout
    assert "food-0" in shown
    assert "not connected" in shown  # there is no proxy in this test
    assert re.search(r"in (59|60) min", shown)
    answer = json.loads(run("status", "--json").stdout)
    assert answer["instances"][0]["id"] == "food-0"
    assert answer["control"]["answers"] is True
    assert answer["certificates"]["food"]["spiffeId"] == "spiffe://nourish.local/ns/nourish/sa/food"
    (root,) = answer["roots"]
    assert answer["certificates"]["food"]["issuer"] == root["name"]
    assert f"{root['name']} ends in 365 d" in shown


def test_status_shows_which_endpoints_others_than_the_runner_hold_and_for_how_long(run, mesh):
    request = registry_pb2.ReportEndpointsRequest(source="worker")
    request.lease.FromSeconds(3600)
    request.endpoints.add(service="food", instance="food-9", subset="stable", address="10.0.0.1", port=15006)
    with grpc.insecure_channel(f"unix:{mesh.control_socket}") as channel:
        RegistryServiceStub(channel).ReportEndpoints(request, timeout=20)
    assert re.search(r"food-9 +stable +worker +10\.0\.0\.1:15006 +in (60|59) min", run("status").stdout)
    (source,) = json.loads(run("status", "--json").stdout)["sources"]
    assert (source["name"], [e["instance"] for e in source["endpoints"]]) == ("worker", ["food-9"])


def test_settings_and_flags_are_shown_with_the_file_and_line_that_they_come_of(run, mesh, tmp_path):
    overlay = tmp_path / "more.yaml"
    overlay.write_text("services: {food: {settings: {search.minScore: 0.4}, flags: {new: {shares: {enabled: 10}}}}}")
    applied = run("apply", "-f", overlay, "--set", "services.food.settings.bold=[b]")
    assert "food: setting search.minScore none -> 0.4, no proxy" in applied.stdout, applied.stderr
    shown = {line.split()[1]: line.split() for line in run("settings", "food").stdout.splitlines()[1:]}
    number = mesh.values.read_text().splitlines().index("      search.minScore: 0.4") + 1
    assert shown["search.minScore"] == ["food", "search.minScore", "0.4", f"{mesh.values}:{number}"]
    assert shown["bold"][2] == '"[b]"'
    first = json.loads(run("settings", "--json").stdout)[0]
    assert first == {"service": "food", "setting": "search.minScore", "value": 0.4, "origin": f"{mesh.values}:{number}"}
    (flag,) = json.loads(run("flags", "--json").stdout)
    assert (flag["service"], flag["flag"], flag["value"]) == ("food", "new", {"shares": {"enabled": 10}})
    assert run("flags", "profile").stdout.startswith("the values have no flags")
    assert run("settings", "fod").exit_code == Exit.FAILED
    assert run("settings", "profile").stdout.startswith("the values have no settings")


def test_status_says_that_traffic_goes_on_without_the_control_plane(run, without_control):
    shown = run("status")
    assert shown.exit_code == 0
    assert "does not answer (traffic goes on)" in shown.stdout
    assert json.loads(run("status", "--json").stdout)["control"]["answers"] is False
    refused = run("apply")
    assert refused.exit_code == Exit.NOT_RUNNING
    assert "mesh logs control" in refused.stderr


def test_the_configuration_of_an_unknown_proxy_is_a_failure_that_names_those_there_are(run, mesh):
    done = run("config", "food-7")
    assert done.exit_code == Exit.FAILED
    assert "known: none yet" in done.stderr
    assert run("config", "food-7", "--live").exit_code == Exit.NOT_RUNNING


def test_a_call_needs_no_generated_stub(run, food):
    done = run("call", "food", "getfood", '{"name": "foods/1"}')
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "foods/1"
    from_stdin = run("call", "food", "GetFood", "-", input='{"name": "foods/2"}')
    assert json.loads(from_stdin.stdout)["name"] == "foods/2"


def test_a_call_as_a_service_goes_in_at_its_sidecar(run, food):
    done = run("call", "food", "GetFood", '{"name": "foods/1"}', "--as", "food")
    assert json.loads(done.stdout)["name"] == "foods/1"
    missing = run("call", "food", "GetFood", "{}", "--as", "profile")
    assert missing.exit_code == Exit.NOT_RUNNING
    assert "those run: food" in missing.stderr


def test_a_call_as_a_user_carries_a_token_of_this_mesh(run, food):
    done = run("call", "food", "GetFood", '{"name": "foods/1"}', "--user", "alice", "--scope", "food.write")
    kind, _, token = json.loads(done.stdout)["displayName"].partition(" ")
    assert kind == "Bearer"
    claims = tokens.verify(food.identity, token)
    assert (claims.user, claims.scopes) == ("alice", ("food.write",))
    header = run("call", "food", "GetFood", '{"name": "foods/1"}', "-H", "Authorization: mine")
    assert json.loads(header.stdout)["displayName"] == "mine"


def test_a_failed_call_says_why_and_what_to_do(run, food):
    done = run("call", "food", "GetFood", '{"name": "foods/none"}', "-H", "x-request-id: 7")
    assert done.exit_code == Exit.FAILED
    assert "NOT_FOUND: foods/none does not exist" in done.stderr
    assert "request id 7" in done.stderr
    answer = json.loads(run("call", "food", "GetFood", '{"name": "x"}', "--json").stdout)
    assert (answer["code"], answer["reason"]) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert answer["violations"][0].startswith("name: ")


def test_a_request_that_is_not_of_its_type_is_a_usage_error(run, food):
    for arguments in [("GetFood", '{"nam": 1}'), ("GetFood", "{"), ("GetFod",), ("GetFood", "{}", "--user", "")]:
        done = run("call", "food", *arguments)
        assert done.exit_code == Exit.USAGE, done.output
    assert run("call", "food", "GetFood", "{}", "-H", "no colon").exit_code == Exit.USAGE
    assert "did you mean 'GetFood'?" in run("call", "food", "GetFod").stderr


def test_a_mesh_whose_runner_was_killed_is_not_running(run, mesh):
    child = os.fork()
    if child == 0:
        signal.pause()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state = json.loads(mesh.state.read_text())
    mesh.state.write_text(json.dumps({**state, "pid": child}))
    assert run("status").exit_code == Exit.NOT_RUNNING
