"""A stand-in for the Kubernetes API server: discovery, get, list, watch, server-side apply and JSON patches.

The real kubectl talks to it by HTTP. It stores objects and does at once what a cluster's controllers would do: a Deployment has its
servers, unless its image contains `broken`; an HTTPRoute is accepted, unless one of its hosts contains `refused`.
"""

import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import yaml

KINDS = {  # apiVersion -> kind -> resource
    "v1": {"Namespace": "namespaces", "Service": "services"},
    "apps/v1": {"Deployment": "deployments"},
    "autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "gateway.networking.k8s.io/v1": {"HTTPRoute": "httproutes"},
    "monitoring.coreos.com/v1": {"ServiceMonitor": "servicemonitors", "PrometheusRule": "prometheusrules"},
}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


class Cluster:
    """objects: (resource, name) -> content. config: a kubeconfig. asked: changed objects, in order. fail_after: number of changes.

    services: `namespaces/NAME/services/NAME:PORT` -> the address that its proxy leads to.
    """

    def __init__(self, folder):
        self.objects, self.asked, self.fail_after, self.services = {}, [], None, {}
        handler = type("Handler", (_Handler,), {"cluster": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.config = folder / "kubeconfig"
        address = f"http://127.0.0.1:{self.server.server_address[1]}"
        context = {"name": "here", "context": {"cluster": "here", "user": ""}}
        content = {"clusters": [{"name": "here", "cluster": {"server": address}}], "contexts": [context]}
        self.config.write_text(
            yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "here", **content})
        )

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def deployment(self, lane):
        return self.objects["deployments", f"loopline-{lane}"]

    def scale(self, lane, replicas):
        """Set the replicas, as an autoscaler or a person would."""
        content = self.deployment(lane)
        self.write("deployments", f"loopline-{lane}", content | {"spec": content["spec"] | {"replicas": replicas}})

    def route(self):
        return self.objects["httproutes", "loopline"]

    def write(self, resource, name, content):
        """Store an object in the state that the controllers would bring it to."""
        before = self.objects.get((resource, name), {"metadata": {}})
        content["metadata"]["uid"] = f"{resource}-{name}"
        content["metadata"]["resourceVersion"] = str(len(self.asked))
        if content.get("spec") != before.get("spec"):
            content["metadata"]["generation"] = before["metadata"].get("generation", 0) + 1
        if resource == "deployments":
            _roll_out(content)
        if resource == "httproutes":
            accepted = "False" if any("refused" in host for host in content["spec"].get("hostnames", ())) else "True"
            condition = {"type": "Accepted", "status": accepted, "reason": "", "message": "as the host says"}
            content["status"] = {"parents": [{"conditions": [condition]}]}
        self.objects[resource, name] = content
        return content


def _roll_out(deployment):
    replicas = deployment["spec"].setdefault("replicas", 1)
    broken = "broken" in deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    condition = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
    if broken and replicas:
        condition = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    new = 0 if broken else replicas
    deployment["status"] = {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": replicas,
        "updatedReplicas": new,
        "availableReplicas": new,
        "conditions": [condition],
    }


def merged(before, after):
    """The object after a server-side apply, if one manager owns all fields."""
    if isinstance(before, dict) and isinstance(after, dict):
        return before | {key: merged(before.get(key), value) for key, value in after.items()}
    return after


def patched(content, operations):
    """The content after JSON patch operations, of which only `add` of RFC 6902 is implemented."""
    content = json.loads(json.dumps(content))
    for operation in operations:
        assert operation["op"] == "add"
        *path, last = [part.replace("~1", "/") for part in operation["path"].split("/")[1:]]
        at = content
        for part in path:
            at = at[int(part) if isinstance(at, list) else part]
        at[int(last) if isinstance(at, list) else last] = operation["value"]
    return content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster = None

    def log_message(self, *_):
        pass

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def missing(self, path):
        self.answer(
            {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": "NotFound",
                "code": 404,
                "message": path,
            },
            404,
        )

    def do_GET(self):
        parts, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
        path = parts.path.strip("/")
        if path == "version":
            self.answer({"major": "1", "minor": "32", "gitVersion": "v1.32.0"})
        elif path == "api":
            self.answer({"kind": "APIVersions", "versions": ["v1"]})
        elif path == "apis":
            groups = [version for version in KINDS if "/" in version]
            self.answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(version) for version in groups]})
        elif (version := path.partition("/")[2]) in KINDS:
            self.answer({"kind": "APIResourceList", "groupVersion": version, "resources": _resources(version)})
        elif path.startswith("openapi/v3"):
            self.openapi(path)
        elif "/proxy/" in path:
            self.proxy(path.removeprefix("api/v1/"), parts.query)
        else:
            self.object(path, query)

    def proxy(self, path, query):
        service, _, rest = path.partition("/proxy/")
        if service not in self.cluster.services:
            return self.missing(path)
        with urllib.request.urlopen(f"{self.cluster.services[service]}/{rest}?{query}", timeout=10) as answer:
            return self.answer(json.load(answer))

    def openapi(self, path):
        """The part of the document that kubectl needs: whether the server validates fields."""
        if path == "openapi/v3":
            self.answer(
                {"paths": {_root(version): {"serverRelativeURL": f"/openapi/v3/{_root(version)}"} for version in KINDS}}
            )
            return
        version = path.removeprefix("openapi/v3/").partition("/")[2]
        parameters = [{"name": name, "in": "query"} for name in ("fieldValidation", "dryRun")]
        group, _, number = version.rpartition("/")
        paths = {
            f"/{_root(version)}/{resource}/{{name}}": {
                "patch": {
                    "parameters": parameters,
                    "x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind},
                }
            }
            for kind, resource in KINDS[version].items()
        }
        self.answer({"openapi": "3.0.0", "paths": paths})

    def object(self, path, query):
        words = path.split("/")
        resource, name = words[-2:] if words[-2] in _all() else (words[-1], "")
        if name:
            content = self.cluster.objects.get((resource, name))
            return self.answer(content) if content else self.missing(path)
        selected = query.get("fieldSelector", [""])[0].removeprefix("metadata.name=")
        items = [
            content
            for (kind, called), content in self.cluster.objects.items()
            if kind == resource and selected in ("", called)
        ]
        if "watch" in query:  # nothing changes after a write, so the stream is empty and ends
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return self.answer({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items})

    def do_PATCH(self):
        resource, name = urlsplit(self.path).path.split("/")[-2:]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.cluster.fail_after == 0:
            return self.answer({"kind": "Status", "status": "Failure", "code": 500, "message": "down"}, 500)
        if self.cluster.fail_after:
            self.cluster.fail_after -= 1
        self.cluster.asked.append(f"{resource}/{name}")
        before = self.cluster.objects.get((resource, name))
        if self.headers["Content-Type"].startswith("application/json-patch"):
            if before is None:
                return self.missing(self.path)
            content = patched(before, json.loads(body))
        else:
            content = merged(before, yaml.safe_load(body))
        return self.answer(self.cluster.write(resource, name, content))


def _root(version):
    return f"apis/{version}" if "/" in version else f"api/{version}"


def _group(version):
    name = version.partition("/")[0]
    entry = {"groupVersion": version, "version": version.partition("/")[2]}
    return {"name": name, "versions": [entry], "preferredVersion": entry}


def _resources(version):
    return [
        {
            "name": resource,
            "singularName": kind.lower(),
            "namespaced": kind != "Namespace",
            "kind": kind,
            "verbs": VERBS,
        }
        for kind, resource in KINDS[version].items()
    ]


def _all():
    return {resource for kinds in KINDS.values() for resource in kinds.values()}
