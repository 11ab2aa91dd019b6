"""Where Prometheus reads, on real Envoys."""

from __future__ import annotations

import httpx
import pytest

from mesh.runtime.telemetry import private
from mesh.xds.tests.lab import Lab, poll

VALUES = "services: {store: {}, front: {calls: [store]}}"


async def test_one_port_gives_what_app_and_proxy_count_and_nothing_else(lab: Lab) -> None:
    await lab.report()
    assert (await lab.apply(VALUES)).applied
    for id in ("front-0", "edge-0"):
        await lab.proxy(id)
    await poll(lambda: lab.connected("front-0", "edge-0"))
    assert (await lab.apply(f"{VALUES[:-1]}}}\ntelemetry: {{port: 9464}}")).applied
    for id in ("front-0", "edge-0"):
        port = await lab.proxies[id].port("metrics")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            with private.answering(lab.folder / id / "telemetry.sock"):
                assert "\nprocess_cpu_seconds_total " in (await client.get("/metrics")).text
            assert "envoy_server_live" in (await client.get("/stats/prometheus?usedonly")).text
            for path in ("/", "/config_dump", "/stats", "/stats/prometheus/..%2f..%2fcerts", "/tracer?pid=1"):
                assert (await client.get(path)).status_code == 404
            for path in ("/stats/prometheus", "/metrics", "/tracer?pid=1", "/quitquitquit", "/logging?level=trace"):
                assert (await client.post(path)).status_code == 404


@pytest.mark.parametrize(("stanza", "why"), [("otlp: collector", "otlp"), ("sampled: 2", "2"), ("port: 70000", "port")])
async def test_what_makes_no_sense_is_refused_with_its_line(lab: Lab, stanza: str, why: str) -> None:
    refused = await lab.apply(f"{VALUES}\ntelemetry: {{{stanza}}}")
    assert not refused.applied
    assert "values.yaml:2: telemetry" in str(refused)
    assert why in str(refused)
