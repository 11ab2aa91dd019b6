"""Who may reach what: undeclared callers, strangers without a certificate, other users of the machine."""

import json
import os
import socket
import ssl
import subprocess
import sys

import grpc
import httpx
import pytest

from tests.e2e.harness import wait_until


def endpoint(mesh, instance: str) -> tuple[str, int]:
    """Where an instance's sidecar listens for the mesh."""
    found = next(e for e in mesh.json("status")["endpoints"] if e["instance"] == instance)
    return found["address"], found["port"]


def certified(mesh, service: str | None) -> ssl.SSLContext:
    """TLS with the certificate of `service`, going round its sidecar; names are not checked, identities are URIs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(mesh.home / "identity/food/ca.pem")
    context.set_alpn_protocols(["h2"])
    if service:
        folder = mesh.home / "identity" / service
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def list_foods_as(mesh, service: str) -> str:
    """The grpc-status that `food` gives to a certificate."""
    address, port = endpoint(mesh, "food-0")
    with httpx.Client(verify=certified(mesh, service), http1=False, http2=True) as client:
        url = f"https://{address}:{port}/nourish.food.v1.FoodService/ListFoods"
        headers = {"content-type": "application/grpc", "te": "trailers"}
        return client.post(url, content=b"\0\0\0\0\0", headers=headers).headers.get("grpc-status", "0")


def test_a_caller_that_does_not_declare_the_call_is_refused_by_its_own_sidecar(mesh):
    done = mesh.run("call", "food", "ListFoods", "{}", "--as", "profile", expect=None)
    assert done.returncode != 0
    assert "PERMISSION_DENIED" in done.stdout + done.stderr


def test_and_by_the_callees_sidecar_which_logs_its_identity(mesh):
    def denials() -> list[str]:
        lines = (mesh.home / "log/food-0.envoy.log").read_text().splitlines()
        return [line for line in lines if "sa/profile" in line]

    before = len(denials())
    assert list_foods_as(mesh, "nutrition") == "0"
    assert list_foods_as(mesh, "profile") == "7"
    wait_until(lambda: len(denials()) > before, what="the refusal in the log")


def tls_handshake(mesh, instance: str, service: str | None) -> bytes:
    """What the sidecar answers after a handshake with the certificate of `service`, or with none."""
    context = certified(mesh, service)
    with socket.create_connection(endpoint(mesh, instance), timeout=5) as raw, context.wrap_socket(raw) as tls:
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        return tls.recv(100)


def test_a_client_without_a_mesh_certificate_gets_no_tls_session(mesh):
    assert tls_handshake(mesh, "food-0", "nutrition")  # the test can succeed
    with pytest.raises(ssl.SSLError):
        tls_handshake(mesh, "food-0", None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")
def test_the_apps_socket_cannot_be_reached_by_another_user(mesh):
    app = mesh.socket("food-0", "app")
    script = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({app!r})"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    other = subprocess.run(
        ["/usr/bin/env", "python3", "-c", script],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert "PermissionError" in other.stderr


def test_state_that_is_secret_is_readable_by_its_owner_only(mesh):
    for name in ("key.pem", "ca.d", "ca.d/*.pem", "token-key.json"):
        found = list(mesh.home.rglob(name))
        assert found, name
        for path in found:
            assert path.stat().st_mode & 0o077 == 0, path


def test_internal_methods_and_reflection_are_not_reachable_through_the_edge(mesh):
    for path in ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "grpc.health.v1.Health/Check"):
        with grpc.insecure_channel(f"127.0.0.1:{mesh.port}") as channel:
            call = channel.unary_unary(f"/{path}", request_serializer=bytes, response_deserializer=bytes)
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=5)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED, path


def test_headers_that_claim_an_identity_are_ignored(mesh):
    forged = {
        "x-nourish-user": "alice",
        "x-nourish-scopes": "profile.read",
        "x-forwarded-client-cert": "URI=spiffe://x",
    }
    assert httpx.get(f"{mesh.url}/api/v1/profiles", headers=forged).status_code == 401
    assert json.loads(httpx.get(f"{mesh.url}/api/v1/profiles", headers=forged).text)["code"] == 16
