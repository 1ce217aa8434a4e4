"""The rendered objects of serving/kubernetes, and checks that list what is wrong with them."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "serving/kubernetes"
OVERLAYS = ("overlays/local", "overlays/staging", "overlays/production", "knative")
needed = pytest.mark.skipif(
    not (shutil.which("kubectl") or os.environ.get("LOOPLINE_REQUIRE_KUBECTL")), reason="no kubectl on this machine"
)
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


@cache
def rendered(overlay):
    """The YAML that the real kustomize renders."""
    command = ["kubectl", "kustomize", str(FOLDER / overlay)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def documents(overlay):
    return list(yaml.safe_load_all(rendered(overlay)))


def of(kind, overlay):
    return [document for document in documents(overlay) if document["kind"] == kind]


def pods(overlay):
    """[(name, pod spec)]"""
    return [
        (document["metadata"]["name"], document["spec"]["template"]["spec"])
        for document in documents(overlay)
        if "template" in document.get("spec", {})
    ]


def offences(pod):
    """Violations of Kubernetes' restricted Pod Security Standard, baseline included, in a pod's spec; one for each control."""
    violations = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    violations += [f"sysctl {one['name']}" for one in pod.get("securityContext", {}).get("sysctls", [])]
    for volume in pod.get("volumes", []):
        violations += [f"volume of {kind}" for kind in volume if kind != "name" and kind not in VOLUMES]
    for container in (*pod.get("containers", []), *pod.get("initContainers", []), *pod.get("ephemeralContainers", [])):
        own = container.get("securityContext", {})
        context = pod.get("securityContext", {}) | own
        capabilities = own.get("capabilities", {})
        wrong = {
            "privileged": own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
            "runAsNonRoot": context.get("runAsNonRoot") is not True,
            "runAsUser": context.get("runAsUser") == 0,
            "seccompProfile": context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"),
            "capabilities.drop": "ALL" not in capabilities.get("drop", []),
            "capabilities.add": set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"},
            "procMount": own.get("procMount", "Default") != "Default",
            "seLinuxOptions": context.get("seLinuxOptions"),
            "appArmorProfile": context.get("appArmorProfile", {}).get("type") == "Unconfined",
            "windowsOptions": context.get("windowsOptions", {}).get("hostProcess"),
            "hostPort": any(port.get("hostPort") for port in container.get("ports", [])),
            "host of a probe": any(
                how.get("host")
                for kind in ("startupProbe", "readinessProbe", "livenessProbe")
                for how in container.get(kind, {}).values()
                if isinstance(how, dict)
            ),
        }
        violations += [name for name, is_wrong in wrong.items() if is_wrong]
    return violations


def open_doors(policies):
    """Rules that admit everybody or every port, and directions that are open by default."""
    closed, doors = set(), []
    for policy in policies:
        spec = policy["spec"]
        if spec["podSelector"] == {}:
            closed |= set(spec["policyTypes"])
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(direction, []):
                named = rule.get(peers) and all(
                    any(peer.get(selector) for selector in ("podSelector", "namespaceSelector"))
                    or peer.get("ipBlock", {}).get("cidr") not in (None, "0.0.0.0/0", "::/0")
                    for peer in rule[peers]
                )
                if not named:
                    doors.append(f"{policy['metadata']['name']}: {direction} for everybody")
                if not rule.get("ports"):
                    doors.append(f"{policy['metadata']['name']}: {direction} on every port")
    return doors + [f"{direction} is open by default" for direction in sorted({"Ingress", "Egress"} - closed)]
