"""The chart, rendered by Helm's own engine: it says of the mesh what `mesh up` reads out of the same values."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import helm_python
import httpx
import kubernetes_validate
import pytest
import yaml
from nourish.mesh.v1 import settings_pb2
from nourish.mesh.v1.settings_pb2_grpc import SettingsServiceStub

from mesh.identity.ca import sds_files
from mesh.local.envoy import binary
from mesh.runtime.environment import environment as runtime_environment
from mesh.topology import EDGE, Topology
from mesh.values import ValuesFile, load
from mesh.xds.endpoint_slices import SELECTOR, hosts
from mesh.xds.server.peer import HEADER
from tests.chart import CHART, CONTROL, ROOT, Documents, bootstraps, cluster, of_kind, pods, render

# One more service, one that is all canary, more of everything, another place.
OVERLAY = """
namespace: kitchen
trustDomain: kitchen.example
edge: { port: 9443, replicas: 3 }
database: { address: "db:5432", replicas: ["db-a:5432", "db-b:5432"], maxLagSeconds: 2 }
telemetry: { otlp: "collector.watch:4317", sampled: 0.25, port: 9464 }
services:
  food: { replicas: 4, canary: { replicas: 2, weight: 60 }, database: { poolSize: 7 }, events: {} }
  nutrition: { calls: [food, profile, meal-plan] }
  meal-plan: { calls: [food], database: {}, events: true }
  profile: { replicas: 0, canary: { replicas: 1, weight: 100 } }
"""
SETTINGS = "services: {food: {settings: {own: 1}}, profile: {settings: {secret: 2}}}"


@pytest.fixture(scope="module", params=["{}", OVERLAY], ids=["values.yaml", "overlay"])
def rendered(request: pytest.FixtureRequest) -> tuple[Topology, Documents]:
    """What `mesh up` understands of the values, and what Helm makes of them."""
    own = ValuesFile("values.yaml", (CHART / "values.yaml").read_text())
    return load([own, ValuesFile("overlay.yaml", request.param)]), render(request.param)


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in pod["containers"][0]["env"]}


def deployed(deployment: dict[str, Any]) -> tuple[str, str]:
    """The service and subset of a Deployment, which its selector, its pods and its own labels agree on."""
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    return labels["app.kubernetes.io/name"], labels["nourish.local/subset"]


def test_each_subset_with_instances_is_one_deployment_with_as_many_replicas(rendered):
    topology, documents = rendered
    expected = Counter((i.service, i.subset) for name in [*topology.services, EDGE] for i in topology.instances(name))
    found = [(deployed(d), d["spec"]["replicas"]) for d in of_kind(documents, "Deployment").values()]
    assert dict(found) == {**expected, (CONTROL, "stable"): 1}
    assert len(found) == len(dict(found))


def test_each_subset_with_instances_has_a_service_that_selects_its_pods_and_no_others(rendered):
    _, documents = rendered
    deployments = of_kind(documents, "Deployment")
    services = of_kind(documents, "Service")
    assert set(services) == set(deployments)
    for name, service in services.items():
        labels = service["spec"]["selector"].items()
        assert [n for n, d in deployments.items() if labels <= d["spec"]["template"]["metadata"]["labels"].items()] == [
            name
        ]


def test_the_control_plane_finds_the_pods_of_every_subset_by_the_labels_of_its_service(rendered):
    """The cluster copies a Service's labels onto its EndpointSlices. Nobody calls the edge or the control plane."""
    topology, documents = rendered
    wanted = [part.partition("=") for part in SELECTOR.split(",")]
    found = set()
    for name, service in of_kind(documents, "Service").items():
        labels, (port,) = service["metadata"]["labels"], service["spec"]["ports"]
        if all(labels.get(key) == value if sign else key in labels for key, sign, value in wanted):
            pod = {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": f"{name}-x7"}}
            made = {"metadata": {"labels": labels}, "endpoints": [pod], "ports": [{"name": port["name"], "port": 1}]}
            found |= {(h.service, h.subset, h.instance) for h in hosts([made])}
            assert service["spec"]["clusterIP"] == "None"
    infix = {"stable": "", "canary": "-canary"}
    subsets = {(i.service, i.subset) for name in topology.services for i in topology.instances(name)}
    assert found == {(s, subset, f"{s}{infix[subset]}-x7") for s, subset in subsets}


def test_the_control_plane_may_read_endpoint_slices_and_nothing_else(rendered):
    _, documents = rendered
    (role,) = of_kind(documents, "Role").values()
    assert role["rules"] == [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}
    ]
    (binding,) = of_kind(documents, "RoleBinding").values()
    assert [s["name"] for s in binding["subjects"]] == [CONTROL]
    for name, pod in pods(documents).items():
        tokens = [
            v["name"]
            for v in pod["volumes"]
            for s in v.get("projected", {}).get("sources", ())
            if "serviceAccountToken" in s
        ]
        assert tokens == (["account"] if name == CONTROL else [])
    proxy, app = (pods(documents)[CONTROL][key][0] for key in ("initContainers", "containers"))
    folder = app["args"][app["args"].index("--kubernetes") + 1]
    assert {"name": "account", "mountPath": folder, "readOnly": True} in app["volumeMounts"]
    assert "account" not in [mount["name"] for mount in proxy["volumeMounts"]]


def test_without_kubernetes_discovery_the_control_plane_has_no_token():
    documents = render("discovery: registry")
    assert not of_kind(documents, "Role")
    assert not of_kind(documents, "RoleBinding")
    pod = pods(documents)[CONTROL]
    assert "--kubernetes" not in pod["containers"][0]["args"]
    assert "account" not in [v["name"] for v in pod["volumes"]]


def test_every_resource_is_as_kubernetes_publishes_it(rendered):
    for document in rendered[1]:
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_a_pods_namespace_and_service_account_are_its_spiffe_id(rendered):
    topology, documents = rendered
    accounts = of_kind(documents, "ServiceAccount")
    assert set(accounts) == {*topology.services, EDGE, CONTROL}
    for deployment in of_kind(documents, "Deployment").values():
        service, _ = deployed(deployment)
        account = accounts[deployment["spec"]["template"]["spec"]["serviceAccountName"]]["metadata"]
        assert deployment["metadata"]["namespace"] == account["namespace"]
        # What cert-manager's SPIFFE driver writes into the certificate of a pod.
        spiffe_id = f"spiffe://{topology.trust_domain}/ns/{account['namespace']}/sa/{account['name']}"
        assert spiffe_id == topology.spiffe_id(service)


def test_every_resource_lies_in_the_namespace_of_the_values(rendered):
    topology, documents = rendered
    assert {d["metadata"]["namespace"] for d in documents} == {topology.namespace}


def test_every_pod_has_a_proxy_that_starts_before_its_application_and_ends_after_it(rendered):
    for pod in pods(rendered[1]).values():
        (proxy,) = pod["initContainers"]
        assert (proxy["command"], proxy["restartPolicy"]) == (["envoy"], "Always")
        assert proxy["startupProbe"]
        (svid,) = (v for v in pod["volumes"] if "csi" in v)
        assert svid["csi"]["driver"] == "spiffe.csi.cert-manager.io"


def test_an_applications_only_way_in_is_a_socket_that_it_shares_with_its_proxy(rendered):
    for name, pod in pods(rendered[1]).items():
        (app,) = pod["containers"]
        assert "ports" not in app
        (shared,) = (v["name"] for v in pod["volumes"] if v["name"] == "run" and "emptyDir" in v)
        mounts = [
            next(m["mountPath"] for m in c["volumeMounts"] if m["name"] == shared)
            for c in (app, *pod["initContainers"])
        ]
        assert mounts == ["/run/nourish"] * 2, name


def test_the_one_port_is_the_edges(rendered):
    topology, documents = rendered
    for service in of_kind(documents, "Service").values():
        assert [(p["name"], p["port"], p["targetPort"]) for p in service["spec"]["ports"]] == [
            ("grpc", topology.edge.port, "grpc")
        ]
    for pod in pods(documents).values():
        assert pod["initContainers"][0]["ports"] == [{"name": "grpc", "containerPort": topology.edge.port}]


def test_no_container_may_more_than_it_needs(rendered):
    for pod in pods(rendered[1]).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert not [v for v in pod["volumes"] if "hostPath" in v]
        for container in (*pod["initContainers"], *pod["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert container["readinessProbe"]


def test_an_application_gets_the_environment_that_the_runtime_reads(rendered, monkeypatch):
    topology, documents = rendered
    for name, deployment in of_kind(documents, "Deployment").items():
        service, subset = deployed(deployment)
        if service == CONTROL:
            continue
        env = environment(pods(documents)[name])
        with monkeypatch.context() as patch:
            for variable, value in env.items():
                patch.setenv(variable, value if isinstance(value, str) else "elsewhere")
            read = runtime_environment.__wrapped__()
        assert (read.service, read.subset) == (service, subset)
        assert (read.otlp, read.sampled) == (topology.telemetry.otlp, topology.telemetry.sampled)
        assert env["NOURISH_INSTANCE"] == {"fieldRef": {"fieldPath": "metadata.name"}}
        proxy = yaml.safe_load(bootstraps(documents)[name])
        metadata = proxy["node"]["metadata"]
        assert (read.listen, read.egress) == (f"unix:{metadata['app_socket']}", f"unix:{metadata['egress_socket']}")
        assert read.telemetry == metadata["telemetry_socket"]
        admin = f"unix:{proxy['admin']['address']['pipe']['path']}"
        assert read.admin == (admin if service == EDGE else "")


def test_prometheus_is_told_of_every_pods_port_if_there_is_one(rendered):
    topology, documents = rendered
    for name, deployment in of_kind(documents, "Deployment").items():
        told = deployment["spec"]["template"]["metadata"]["annotations"].get("prometheus.io/port")
        if name == CONTROL or not topology.telemetry.port:
            assert told is None
        else:
            metadata = yaml.safe_load(bootstraps(documents)[name])["node"]["metadata"]
            assert int(told) == metadata["metrics_port"] == topology.telemetry.port


def test_a_service_with_a_database_takes_its_address_from_its_own_secret(rendered):
    topology, documents = rendered
    for name, deployment in of_kind(documents, "Deployment").items():
        service, _ = deployed(deployment)
        stanza = topology.services.get(service)
        env = environment(pods(documents)[name]) if service != CONTROL else {}
        if stanza and stanza.database:
            assert env["NOURISH_DATABASE_URL"] == {"secretKeyRef": {"name": f"{service}-database", "key": "url"}}
            assert env["NOURISH_DATABASE_POOL"] == str(stanza.database.pool_size)
            assert env.get("NOURISH_DATABASE_REPLICAS", "") == ",".join(topology.database.replicas)
            assert float(env.get("NOURISH_DATABASE_MAX_LAG", "5")) == topology.database.max_lag_seconds
            (keys,) = (v for v in pods(documents)[name]["volumes"] if v["name"] == "keys")
            assert (keys["secret"]["secretName"], keys["secret"]["optional"]) == (f"{service}-keys", True)
            assert env["NOURISH_KEYS_DIR"] in [
                m["mountPath"] for m in pods(documents)[name]["containers"][0]["volumeMounts"]
            ]
        else:
            assert not [variable for variable in env if "DATABASE" in variable]
        if stanza and stanza.events:
            assert env["NOURISH_EVENTS_URL"] == {"secretKeyRef": {"name": f"{service}-events", "key": "url"}}
        else:
            assert "NOURISH_EVENTS_URL" not in env


def test_the_control_plane_gets_the_values_that_are_in_force(rendered):
    topology, documents = rendered
    text = of_kind(documents, "ConfigMap")["values"]["data"]["values.yaml"]
    assert load([ValuesFile("values.yaml", text)]) == topology


def test_a_proxy_is_the_laptops_but_for_its_place(rendered):
    topology, documents = rendered
    laptop = yaml.safe_load(re.sub(r"\$\{\w+\}", "0", (ROOT / "envoy/sidecar.yaml").read_text()))
    for name, text in bootstraps(documents).items():
        if name == CONTROL:
            continue
        cluster = yaml.safe_load(text)
        assert cluster["node"]["metadata"]["inbound_port"] == topology.edge.port
        for part in ("dynamic_resources", "overload_manager", "stats_config", "watchdogs"):
            assert cluster[part] == laptop[part]


def test_the_identity_files_are_the_laptops_but_for_where_the_driver_writes():
    files = of_kind(render(), "ConfigMap")["identity"]["data"]
    text = json.dumps(sds_files(Path("/var/run/secrets/spiffe.io")))
    for ours, drivers in (("cert.pem", "tls.crt"), ("key.pem", "tls.key"), ("ca.pem", "ca.crt")):
        text = text.replace(ours, drivers)
    assert {name: yaml.safe_load(f)["resources"] for name, f in files.items()} == {
        name: [secret] for name, secret in json.loads(text).items()
    }


def test_a_proxy_takes_its_configuration_from_the_control_plane_alone_and_shows_it_its_own_identity(rendered):
    topology, documents = rendered
    for name, text in bootstraps(documents).items():
        if name == CONTROL:
            continue
        (xds,) = yaml.safe_load(text)["static_resources"]["clusters"]
        tls = xds["transport_socket"]["typed_config"]["common_tls_context"]
        peers = tls["combined_validation_context"]["default_validation_context"]["match_typed_subject_alt_names"]
        assert [p["matcher"] for p in peers] == [{"exact": topology.spiffe_id(CONTROL)}]
        (endpoint,) = (e["endpoint"] for group in xds["load_assignment"]["endpoints"] for e in group["lb_endpoints"])
        assert endpoint["address"]["socket_address"] == {
            "address": f"{CONTROL}.{topology.namespace}.svc",
            "port_value": topology.edge.port,
        }


@pytest.fixture
def elsewhere(tmp_path: Path) -> Callable[[str], str]:
    """Puts a pod's paths under a scratch folder that holds the identity files."""
    for name, text in of_kind(render(), "ConfigMap")["identity"]["data"].items():
        path = tmp_path / "etc/nourish/identity" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("/var/run", f"{tmp_path}/var/run"))
    (tmp_path / "var/run/secrets/spiffe.io").mkdir(parents=True)
    return lambda text: text.replace("/etc/nourish", f"{tmp_path}/etc/nourish").replace("/run/nourish", f"{tmp_path}")


@pytest.mark.parametrize("name", ["food-canary", CONTROL])
def test_envoy_takes_the_bootstrap_and_the_name_of_its_pod(name, elsewhere, tmp_path):
    path = tmp_path / "bootstrap.yaml"
    path.write_text(elsewhere(bootstraps(render())[name]))
    flags = pods(render())[name]["initContainers"][0]["args"][2:]
    argv = [binary(), "--mode", "validate", "-c", path, *(f.replace("$(POD_NAME)", "food-canary-x7") for f in flags)]
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


FORGED = (("x-nourish-service", "profile"), (HEADER, "URI=spiffe://nourish.local/ns/nourish/sa/profile"))


async def get_mesh(port: int, root: Path, identity: Path | None) -> httpx.Response:
    """Asks the control API on the control plane's port."""
    context = ssl.create_default_context(cafile=str(root))
    context.check_hostname = False  # a SPIFFE certificate names no host
    context.set_alpn_protocols(["h2"])
    if identity:
        context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
    async with httpx.AsyncClient(http1=False, http2=True, verify=context) as client:
        url = f"https://127.0.0.1:{port}/nourish.mesh.v1.ControlService/GetMesh"
        return await client.post(url, headers={"content-type": "application/grpc", "te": "trailers"}, content=bytes(5))


async def test_the_charts_control_plane_configures_its_proxies_over_mutual_tls_and_offers_nothing_else():
    """Real Envoys and a real control plane: a bootstrap that one of them did not like would end here."""
    async with cluster(SETTINGS) as mesh:
        port = await mesh.control_plane()
        for name, service, listener in (("food-canary", "food", "inbound"), ("edge", "edge", "edge")):
            assert (await mesh.proxy(name, service, listener, port)).port
        async with grpc.aio.insecure_channel(f"unix:{mesh.folder}/food-canary/egress.sock") as channel:
            watch = SettingsServiceStub(channel).WatchSettings
            answers = watch(settings_pb2.WatchSettingsRequest(), metadata=FORGED, timeout=30, wait_for_ready=True)
            told = await anext(aiter(answers))
            assert {name: value.number_value for name, value in told.settings.items()} == {"own": 1}
        food = mesh.folder / "identity" / "food"
        answer = await get_mesh(port, food / "ca.pem", food)
        assert (answer.status_code, answer.headers["grpc-status"]) == (200, str(grpc.StatusCode.UNIMPLEMENTED.value[0]))
        with pytest.raises(httpx.TransportError):
            await get_mesh(port, food / "ca.pem", None)


@pytest.mark.parametrize(
    "overlay",
    [
        *("services: {food: {replica: 2}}", "egde: {port: 1}", "services: {food: {replicas: two}}"),
        *("services: {edge: {}}", "services: {food: {settings: {a: {b: 1}}}}", "services: {food: {settings: {on: 1}}}"),
    ],
)
def test_what_the_schema_does_not_know_is_refused(overlay):
    with helm_python.Chart.load(CHART) as chart, pytest.raises(helm_python.HelmError) as caught:
        chart.render(helm_python.values_from_yaml(overlay), name="nourish")
    assert "schema" in str(caught.value)


@pytest.mark.parametrize(
    ("overlay", "why"),
    [
        ("services: {food: {lang: go}}", "services.food.lang"),
        ("services: {food: {dataPlane: proxyless}}", "services.food.dataPlane"),
        ("services: {control-plane: {}}", "name is taken"),
    ],
)
def test_what_the_chart_cannot_run_is_refused_by_name(overlay, why):
    with helm_python.Chart.load(CHART) as chart, pytest.raises(helm_python.HelmError, match=why):
        chart.render(helm_python.values_from_yaml(overlay), name="nourish")


def test_helm_finds_nothing_to_say_but_that_there_is_no_icon():
    report = helm_python.lint(CHART, strict=True)
    assert report["errors"] == []
    assert [m["error"] for m in report["messages"]] == ["icon is recommended"]


def test_a_packaged_chart_gives_what_the_folder_gives(tmp_path):
    """The link to the repository's envoy/ is followed when the chart leaves the repository."""
    with helm_python.Chart.load(helm_python.package(CHART, destination=tmp_path)) as packed:
        manifests = packed.render(name="nourish", namespace="elsewhere")
    documents = [d for text in manifests.values() for d in yaml.safe_load_all(text) if d]
    assert documents == render()
