"""What serving/kubernetes becomes, and what may be said against it."""

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
    """As YAML, by the real kustomize."""
    command = ["kubectl", "kustomize", str(FOLDER / overlay)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def documents(overlay):
    return list(yaml.safe_load_all(rendered(overlay)))


def of(kind, overlay):
    return [one for one in documents(overlay) if one["kind"] == kind]


def pods(overlay):
    """[(name, pod spec)]"""
    return [
        (one["metadata"]["name"], one["spec"]["template"]["spec"])
        for one in documents(overlay)
        if "template" in one.get("spec", {})
    ]


def offences(pod):
    """What Kubernetes' restricted Pod Security Standard forbids in a pod's spec, baseline included: its list, control by control."""
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    found += [f"sysctl {one['name']}" for one in pod.get("securityContext", {}).get("sysctls", [])]
    for volume in pod.get("volumes", []):
        found += [f"volume of {kind}" for kind in volume if kind != "name" and kind not in VOLUMES]
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
        found += [name for name, is_wrong in wrong.items() if is_wrong]
    return found


def open_doors(policies):
    """What is let through though nobody is named, and directions that are open by default."""
    closed, found = set(), []
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
                    found.append(f"{policy['metadata']['name']}: {direction} for everybody")
                if not rule.get("ports"):
                    found.append(f"{policy['metadata']['name']}: {direction} on every port")
    return found + [f"{direction} is open by default" for direction in sorted({"Ingress", "Egress"} - closed)]
