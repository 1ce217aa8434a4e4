"""Every overlay renders, is valid, is locked down, and refers only to things that exist."""

import copy
import json
import os
import shutil
import subprocess

import kubernetes_validate
import manifests
import pytest
import series
import yaml
from manifests import FOLDER, OVERLAYS, documents, of, offences, open_doors, pods

from loopline.cli import main
from loopline.deploy import kubectl
from loopline.observability import rules
from loopline.server.run import ServerOptions

pytestmark = manifests.needed
CUSTOM = {  # API groups of custom resources -> npm package with their types and schemas
    "gateway.networking.k8s.io": "gateway-api@2.0.0",
    "monitoring.coreos.com": "prometheus-operator@6.0.0",
    "serving.knative.dev": "knative@4.0.0",
}
TYPESCRIPT, AZURE = "5.9.3", "@azure/arm-appcontainers@4.0.0"
SERVERLESS = manifests.ROOT / "serving/serverless"
CLUSTERS = ("overlays/local", "overlays/staging", "overlays/production")
KNOWN = {name: labels | {"namespace", "pod", "lane"} for name, labels in series.known().items()}


def group(document):
    return document["apiVersion"].rpartition("/")[0]


def core_problems(document):
    try:
        kubernetes_validate.validate(document, "1.37", strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    return []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_is_valid_kubernetes(overlay):
    core = [document for document in documents(overlay) if group(document) not in CUSTOM]
    assert len(core) >= 3
    for document in core:
        assert core_problems(document) == [], document["metadata"]["name"]
    wrong = copy.deepcopy(core[-1])
    wrong["spec"]["podSelektor"] = {}
    assert core_problems(wrong) != []


@pytest.mark.skipif(
    not (shutil.which("npm") or os.environ.get("LOOPLINE_REQUIRE_NPM")), reason="no npm to fetch the schemas with"
)
def test_custom_resources_are_valid_too(tmp_path, api):
    packages = [f"@kubernetes-models/{name}" for name in CUSTOM.values()]
    (tmp_path / "package.json").write_text('{"type": "module"}')
    install = [
        "npm",
        "install",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        *packages,
        AZURE,
        f"typescript@{TYPESCRIPT}",
    ]
    fetched = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True)
    if fetched.returncode and not os.environ.get("LOOPLINE_REQUIRE_NPM"):
        pytest.skip(f"npm cannot fetch the schemas: {fetched.stderr[-200:]}")
    assert fetched.returncode == 0, fetched.stderr

    def problems(resources, azure=None):
        """Errors of the schemas, about kinds, ranges and patterns, and of the types, about fields that do not exist."""
        lines = []
        if azure:  # the API nests in `properties` what the types have one level up
            content = json.dumps({"location": azure["location"], **azure["properties"]})
            lines += [
                f'import type {{ ContainerApp }} from "{AZURE.rpartition("@")[0]}";',
                f"export const azure: ContainerApp = {content};",
            ]
        for number, resource in enumerate(resources):
            kind, package = resource["kind"], CUSTOM[group(resource)].partition("@")[0]
            content = json.dumps({key: resource[key] for key in ("metadata", "spec")})
            lines += [
                f'import {{ {kind} as K{number} }} from "@kubernetes-models/{package}/{resource["apiVersion"]}/{kind}";',
                f"new K{number}({content}).validate();",
            ]
        (tmp_path / "check.ts").write_text("\n".join(lines), encoding="utf-8")
        options = ["--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"]
        typed = subprocess.run(
            ["node_modules/.bin/tsc", *options, "check.ts"], cwd=tmp_path, capture_output=True, text=True
        )
        run = subprocess.run(["node", "check.js"], cwd=tmp_path, capture_output=True, text=True)
        return typed.stdout + run.stderr

    resources = [document for overlay in OVERLAYS for document in documents(overlay) if group(document) in CUSTOM]
    assert {resource["kind"] for resource in resources} == {"HTTPRoute", "ServiceMonitor", "PrometheusRule", "Service"}
    cluster = kubectl.Cluster(FOLDER / "overlays/production")
    cluster.deploy()
    cluster.canary(0, "r/loopline:2")
    resources.append({key: api.route()[key] for key in ("apiVersion", "kind", "metadata", "spec")})  # with a mirror
    resources.append(yaml.safe_load((SERVERLESS / "cloud-run.yaml").read_text(encoding="utf-8")))
    azure = yaml.safe_load((SERVERLESS / "azure-container-app.yaml").read_text(encoding="utf-8"))
    assert problems(resources, azure) == ""
    azure["properties"]["template"]["scale"]["maximum"] = 10
    assert "maximum" in problems([], azure)
    for kind, spoil in {
        "HTTPRoute": lambda spec: spec["rules"][1]["backendRefs"][1].update(weight=-1),
        "ServiceMonitor": lambda spec: spec["endpoints"][0].update(intervall="15s"),
        "PrometheusRule": lambda spec: spec["groups"][0].update(interval="often"),
        "Service": lambda spec: spec["template"]["spec"].update(container=[]),
    }.items():
        wrong = copy.deepcopy(next(resource for resource in resources if resource["kind"] == kind))
        spoil(wrong["spec"])
        assert problems([wrong]) != "", kind


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_meet_the_restricted_standard(overlay):
    named_pods = pods(overlay)
    assert named_pods
    for name, pod in named_pods:
        assert offences(pod) == [], name
        assert pod["automountServiceAccountToken"] is False
        assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in pod["containers"])
    labels = [namespace["metadata"]["labels"] for namespace in of("Namespace", overlay)]
    assert [label["pod-security.kubernetes.io/enforce"] for label in labels] == ["restricted"]


def _own(**context):
    return lambda pod: pod["containers"][0]["securityContext"].update(context)


@pytest.mark.parametrize(
    ("offence", "spoil"),
    [
        ("hostNetwork", lambda pod: pod.update(hostNetwork=True)),
        ("hostPID", lambda pod: pod.update(hostPID=True)),
        ("hostIPC", lambda pod: pod.update(hostIPC=True)),
        (
            "sysctl kernel.msgmax",
            lambda pod: pod["securityContext"].update(sysctls=[{"name": "kernel.msgmax", "value": "1"}]),
        ),
        ("volume of hostPath", lambda pod: pod.update(volumes=[{"name": "a", "hostPath": {"path": "/"}}])),
        ("privileged", _own(privileged=True)),
        (
            "allowPrivilegeEscalation",
            lambda pod: pod["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
        ),
        ("runAsNonRoot", lambda pod: pod["securityContext"].pop("runAsNonRoot")),
        ("runAsUser", _own(runAsUser=0)),
        ("seccompProfile", lambda pod: pod["securityContext"].pop("seccompProfile")),
        ("seccompProfile", _own(seccompProfile={"type": "Unconfined"})),
        ("capabilities.drop", _own(capabilities={})),
        ("capabilities.add", _own(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]})),
        ("procMount", _own(procMount="Unmasked")),
        ("seLinuxOptions", _own(seLinuxOptions={"user": "root"})),
        ("appArmorProfile", _own(appArmorProfile={"type": "Unconfined"})),
        ("windowsOptions", _own(windowsOptions={"hostProcess": True})),
        ("hostPort", lambda pod: pod["containers"][0]["ports"][0].update(hostPort=80)),
        ("host of a probe", lambda pod: pod["containers"][0]["livenessProbe"]["httpGet"].update(host="10.0.0.1")),
        (
            "privileged",
            lambda pod: pod.update(initContainers=[pod["containers"][0] | {"securityContext": {"privileged": True}}]),
        ),
    ],
)
def test_each_control_of_the_standard_is_checked(offence, spoil):
    pod = copy.deepcopy(pods("overlays/production")[0][1])
    spoil(pod)
    assert offence in offences(pod)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_connection_is_allowed_by_default(overlay):
    policies = of("NetworkPolicy", overlay)
    assert open_doors(policies) == []
    for spoil in (
        lambda policies: policies.pop(0),  # the policy that denies all
        lambda policies: policies[1]["spec"].update(ingress=[{}]),
        lambda policies: policies[1]["spec"].update(
            egress=[{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 1}]}]
        ),
        lambda policies: policies[1]["spec"]["ingress"][0].pop("ports"),
        lambda policies: policies[1]["spec"]["ingress"][0].update({"from": [{"namespaceSelector": {}}]}),
    ):
        wrong = copy.deepcopy(policies)
        spoil(wrong)
        assert open_doors(wrong) != []


@pytest.mark.parametrize("overlay", CLUSTERS)
def test_probes_have_different_paths_and_periods(overlay):
    for _, pod in pods(overlay):
        (server,) = pod["containers"]
        start, ready, live = (server[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
        assert start["httpGet"]["path"] == ready["httpGet"]["path"] == "/v2/health/ready"
        assert live["httpGet"]["path"] == "/v2/health/live"
        until = {probe["periodSeconds"] * probe["failureThreshold"] for probe in (start, ready, live)}
        assert len(until) == 3
        # A pod leaves the Service long before it is restarted, and a slow start has more time than either.
        assert ready["periodSeconds"] * ready["failureThreshold"] < live["periodSeconds"] * live["failureThreshold"]
        assert max(until) == start["periodSeconds"] * start["failureThreshold"]


@pytest.mark.parametrize("overlay", CLUSTERS)
def test_a_pod_has_more_time_to_end_than_its_server_takes(overlay):
    for _, pod in pods(overlay):
        (server,) = pod["containers"]
        options = dict(word[2:].split("=") for word in server["args"] if "=" in word)
        drain = float(options.get("drain", ServerOptions.drain))
        assert pod["terminationGracePeriodSeconds"] > float(options["grace"]) + drain
        # A cluster's gateways notice the end of a server later than a gateway on the same machine.
        assert float(options["grace"]) > ServerOptions.grace
        assert int(options["metrics-port"]) in {port["containerPort"] for port in server["ports"]}


@pytest.mark.parametrize("overlay", CLUSTERS)
def test_selectors_match_only_their_own_lane(overlay):
    """An empty selector would select both lanes."""
    deployments = {document["metadata"]["labels"]["lane"]: document for document in of("Deployment", overlay)}
    assert set(deployments) == {"champion", "challenger"}
    for lane, deployment in deployments.items():
        labels = {"app.kubernetes.io/name": "loopline", "lane": lane}
        template = deployment["spec"]["template"]
        assert template["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"] == labels
        spread = template["spec"]["topologySpreadConstraints"]
        assert [constraint["labelSelector"]["matchLabels"] for constraint in spread] == [labels] * 2
    for service in of("Service", overlay):
        assert service["spec"]["selector"]["lane"] in service["metadata"]["name"]
    (budget,) = of("PodDisruptionBudget", overlay)
    assert budget["spec"]["selector"]["matchLabels"]["lane"] == "champion"
    assert "replicas" not in deployments["champion"]["spec"]  # the autoscaler sets them
    assert deployments["challenger"]["spec"]["replicas"] == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_have_a_tag_other_than_latest(overlay):
    for _, pod in pods(overlay):
        (container,) = pod["containers"]
        assert container["image"].rpartition(":")[2] not in ("", "latest")
        assert container["image"] != "loopline"


@pytest.mark.parametrize("overlay", ["overlays/staging", "overlays/production"])
def test_only_predictions_are_shared_between_the_lanes(overlay):
    (route,) = of("HTTPRoute", overlay)
    probes, shared, rest = route["spec"]["rules"]
    paths = [[match["path"] for match in rule["matches"]] for rule in (probes, shared)]
    assert paths[0] == paths[1]  # an exact path precedes any header, so probes need the same paths
    assert {match["headers"][0]["name"] for match in probes["matches"]} == {"x-loopline-probe"}
    assert [(ref["name"], ref["weight"]) for ref in shared["backendRefs"]] == [
        ("loopline-champion", 100),
        ("loopline-challenger", 0),
    ]
    for rule in (probes, rest):
        assert [ref["name"] for ref in rule["backendRefs"]] == ["loopline-champion"]
    services = {
        service["metadata"]["name"]: {port["port"] for port in service["spec"]["ports"]}
        for service in of("Service", overlay)
    }
    for ref in (ref for rule in route["spec"]["rules"] for ref in rule["backendRefs"]):
        assert ref["port"] in services[ref["name"]]
    public = [match["path"]["value"] for rule in route["spec"]["rules"] for match in rule["matches"]]
    assert not [path for path in public if "/metrics".startswith(path)]


def test_every_model_of_the_project_has_its_path():
    (route,) = of("HTTPRoute", "overlays/production")
    matched = [match["path"] for match in route["spec"]["rules"][1]["matches"]]
    exact = {path["value"] for path in matched if path["type"] == "Exact"}
    models = yaml.safe_load((manifests.ROOT / "params.yaml").read_text(encoding="utf-8"))["models"]
    assert exact == {f"/v2/models/{name}/infer" for name in models}


# Monitoring


def adapter():
    content = yaml.safe_load((FOLDER / "monitoring/adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = content["rules"]["custom"]
    return rule


def test_the_autoscalers_metric_comes_from_the_adapter_and_metrics_that_servers_export():
    rule = adapter()
    for overlay in ("overlays/staging", "overlays/production"):
        (autoscaler,) = of("HorizontalPodAutoscaler", overlay)
        (metric,) = autoscaler["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
        assert autoscaler["spec"]["scaleTargetRef"]["name"] in {
            deployment["metadata"]["name"] for deployment in of("Deployment", overlay)
        }
        assert autoscaler["spec"]["minReplicas"] <= autoscaler["spec"]["maxReplicas"]
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'pod="x"')
    assert series.problems(query, KNOWN) == []
    assert series.problems(rule["seriesQuery"], KNOWN) == []
    assert series.problems(query.replace("queue_seconds", "queue_time"), KNOWN) != []


def test_the_autoscalers_target_is_the_requests_in_flight_of_two_slots_at_62_percent_load():
    """Erlang's formula for two servers: 2 rho in service, and 2 rho^3 / (1 - rho^2) waiting."""
    (autoscaler,) = of("HorizontalPodAutoscaler", "overlays/production")
    target = float(autoscaler["spec"]["metrics"][0]["pods"]["target"]["averageValue"])
    (server,) = pods("overlays/production")[0][1]["containers"]
    assert server["resources"]["limits"]["cpu"] == "2"  # the slots of a server
    rho = 0.62
    assert target == pytest.approx(2 * rho + 2 * rho**3 / (1 - rho**2), abs=0.02)


def test_the_operators_rules_are_those_of_prometheus(tmp_path):
    text = (FOLDER / "monitoring/rules.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["spec"] == yaml.safe_load(
        (manifests.ROOT / "monitoring/prometheus/rules.yml").read_text(encoding="utf-8")
    )
    assert text == rules.operator(), "run `loopline rules --operator --out serving/kubernetes/monitoring/rules.yaml`"
    assert main(["rules", "--operator", "--out", str(tmp_path / "a.yaml")]) == 0
    assert (tmp_path / "a.yaml").read_text(encoding="utf-8") == text


def test_prometheus_scrapes_the_servers_under_the_job_name_of_the_rules():
    (monitor,) = of("ServiceMonitor", "overlays/production")
    for service in of("Service", "overlays/production"):
        assert service["metadata"]["labels"].items() >= monitor["spec"]["selector"]["matchLabels"].items()
        assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "loopline"
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert 'job="loopline"' in rules.text()


def test_the_token_comes_from_a_secret_and_no_secret_is_in_a_file():
    for overlay in OVERLAYS:
        assert of("Secret", overlay) == []
    for _, pod in pods("overlays/production"):
        (variable,) = pod["containers"][0]["env"]
        assert variable["name"] == "LOOPLINE_TOKEN"
        assert "value" not in variable
    assert of("ServiceMonitor", "overlays/production")[0]["spec"]["endpoints"][0]["authorization"]["type"] == "Bearer"
