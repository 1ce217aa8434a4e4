"""The cluster of `loopline deploy --target kubernetes`: a kustomize overlay describes its objects, and kubectl applies them.

There are two lanes, each a Deployment: the champion, and a challenger that has servers only during a canary. The weights of the
HTTPRoute share predictions between them. All state is in the cluster and every verb reads it first, so an interrupted verb can be
called again.
"""

from __future__ import annotations

import json
import subprocess
import urllib.parse
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError
from loopline.fleet.gateway import CHALLENGER, CHAMPION
from loopline.observability import prometheus_api

NAME = "loopline"
PREVIOUS = f"{NAME}/previous-image"  # annotation with the champion's former image, which a rollback restores
IMAGE = "/spec/template/spec/containers/0/image"
PROMETHEUS = "monitoring/prometheus-operated:9090"  # namespace/service:port, as the operator names it
SECONDS = 300  # limit until a lane has its servers; the Deployment's progressDeadlineSeconds is shorter


@dataclass(frozen=True)
class LaneReplicas:
    """replicas: target number of servers. ready: servers that run this image and are available."""

    image: str
    replicas: int
    ready: int


@dataclass(frozen=True)
class RolloutStatus:
    """The state of both lanes.

    share: percent of the predictions that the challenger answers. mirrored: the challenger gets a copy of each request, and its
    answers are discarded. previous: the image that a rollback restores; the champion's own after a rollback; empty if there is
    none.
    """

    champion: LaneReplicas
    challenger: LaneReplicas
    share: int
    mirrored: bool
    previous: str

    def __str__(self) -> str:
        """One line for each lane, with ready servers, share and image."""
        trial = f"{self.share} %" if not self.mirrored else "mirrored"
        lanes = ((CHAMPION, self.champion, f"{100 - self.share} %"), (CHALLENGER, self.challenger, trial))
        return "\n".join(
            f"{name:10} {lane.ready}/{lane.replicas} ready  {share:8}  {lane.image}" for name, lane, share in lanes
        )


class Cluster:
    """An overlay in the cluster of kubectl's current context, or of another context."""

    def __init__(self, overlay: Path, context: str = "") -> None:
        """Render the overlay. Raises LooplineError if it cannot be rendered or has no champion.

        overlay: a kustomize folder. context: of kubectl; empty: the current one.
        """
        self.context = ("--context", context) if context else ()
        self.namespace: tuple[str, ...] = ()
        self.objects = self._render(overlay)
        champion = self.objects.get(("Deployment", _name(CHAMPION)))
        if champion is None:
            raise LooplineError(
                f"{overlay} has no Deployment {_name(CHAMPION)}: is it one of serving/kubernetes/overlays?"
            )
        self.namespace = ("--namespace", champion["metadata"]["namespace"])

    def deploy(self, image: str = "") -> RolloutStatus:
        """Apply the overlay with this image as champion, server by server, and end a canary. image: default: the overlay's.

        Raises LooplineError if the new servers do not get ready; the former image then serves again.
        """
        import yaml

        before = self._get("Deployment", _name(CHAMPION))
        for lane in (CHAMPION, CHALLENGER):
            container = _container(self.objects["Deployment", _name(lane)])
            container["image"] = image = image or container["image"]
        old, previous = (_container(before)["image"], _previous(before)) if before else ("", "")
        annotations = self.objects["Deployment", _name(CHAMPION)]["metadata"].setdefault("annotations", {})
        annotations[PREVIOUS] = previous if old == image else old  # a repeated deploy keeps the former image
        words = ("apply", "--server-side", "--force-conflicts", f"--field-manager={NAME}", "--filename=-")
        self._kubectl(*words, stdin=yaml.safe_dump_all(self.objects.values()))
        self._settle(*((previous, "") if old == image else (old, previous)))
        return self.status()

    def canary(self, share: int, image: str = "") -> RolloutStatus:
        """Let the challenger answer `share` percent of the predictions, from 1 to 50. 0: send it copies and discard its answers.

        image: of the challenger; required the first time. Raises ValueError on another share, and LooplineError if there is no
        image or if the challenger's servers do not get ready; the challenger then gets no request.
        """
        if not 0 <= share <= 50:
            raise ValueError(f"a share of {share} %: choose one from 0 to 50")
        if ("HTTPRoute", NAME) not in self.objects:
            raise LooplineError("this overlay has no HTTPRoute for a canary: use staging or production, which have one")
        present = self.status()
        image = image or (present.challenger.image if present.challenger.replicas else "")
        if not image:
            raise LooplineError("there is no challenger yet: name its image")
        if image != present.challenger.image:
            self._route(0)  # a verdict on another image does not hold for this one
        # The challenger gets as many servers for each request as the champion has, but no fewer than it has now, because
        # these may answer a larger share until the route is changed.
        replicas = max(1, ceil(present.champion.replicas * (share or 100) / 100), present.challenger.replicas)
        self._patch("Deployment", _name(CHALLENGER), {"/spec/replicas": replicas, IMAGE: image})
        try:
            self._wait(CHALLENGER)
        except LooplineError:
            self._end_canary()
            raise
        self._route(share, mirrored=not share)
        return self.status()

    def promote(self) -> RolloutStatus:
        """Give the champion the challenger's image, server by server, and end the canary.

        Raises LooplineError if there is no challenger, or if the new servers do not get ready; the champion then keeps its image.
        """
        present = self.status()
        if not present.challenger.replicas:
            raise LooplineError("there is no challenger to promote: `canary` starts one")
        before, image = present.champion.image, present.challenger.image
        if before != image:
            self._serve(image, before)
        self._settle(*((present.previous, "") if before == image else (before, present.previous)))
        self._end_canary()
        return self.status()

    def rollback(self) -> RolloutStatus:
        """End a canary at once; without a canary, give the champion its former image again.

        Only one step back is possible, so a second call changes nothing. Raises LooplineError if there is no former image.
        """
        present = self.status()
        if present.challenger.replicas or present.share or present.mirrored:
            self._end_canary()
            return self.status()
        if not present.previous:
            raise LooplineError("the champion had no other image before, so there is nothing to roll back to")
        if present.champion.image != present.previous:
            self._serve(present.previous, present.previous)
        self._wait(CHAMPION)
        return self.status()

    def verify(self) -> RolloutStatus:
        """Check that every lane has all its servers with its image, and that the gateway has accepted the route.

        Raises LooplineError with a line for each fault.
        """
        present, wrong = self.status(), []
        for name, lane in ((CHAMPION, present.champion), (CHALLENGER, present.challenger)):
            if lane.ready < lane.replicas:
                wrong.append(f"{name}: {lane.ready} of {lane.replicas} servers of {lane.image} are ready")
            if lane.replicas == 0 and (name == CHAMPION or present.share):
                wrong.append(f"{name}: it gets requests and has no servers")
        if ("HTTPRoute", NAME) in self.objects:
            wrong += _refused(self._get("HTTPRoute", NAME))
        if wrong:
            raise LooplineError("\n".join(wrong))
        return present

    def status(self) -> RolloutStatus:
        """The present state of the cluster. Raises LooplineError if nothing is deployed."""
        lanes = {}
        champion = self._get("Deployment", _name(CHAMPION))
        for lane in (CHAMPION, CHALLENGER):
            deployment = champion if lane == CHAMPION else self._get("Deployment", _name(lane))
            if not deployment:
                raise LooplineError(f"there is no Deployment {_name(lane)}: `deploy` creates it")
            lanes[lane] = _lane(deployment)
        share, mirrored = 0, False
        if ("HTTPRoute", NAME) in self.objects:
            rule = self._get("HTTPRoute", NAME)["spec"]["rules"][self._rule()]
            share = next(ref["weight"] for ref in rule["backendRefs"] if ref["name"] == _name(CHALLENGER))
            mirrored = any(step["type"] == "RequestMirror" for step in rule.get("filters", []))
        return RolloutStatus(lanes[CHAMPION], lanes[CHALLENGER], share, mirrored, _previous(champion))

    def prometheus(self, where: str, expression: str) -> list[prometheus_api.Series]:
        """Evaluate an expression in Prometheus, as of now. Raises LooplineError if it does not answer.

        where: an address, or namespace/service:port. For the latter the API server passes the query on, which needs `get` of
        `services/proxy` and opens no access for others.
        """
        if where.startswith(("http://", "https://")):
            return prometheus_api.instant(where, expression)
        namespace, _, service = where.partition("/")
        query = urllib.parse.urlencode({"query": expression})
        path = f"/api/v1/namespaces/{namespace}/services/{service}/proxy/api/v1/query?{query}"
        return prometheus_api.parsed(self._kubectl("get", "--raw", path).encode(), where)

    # Helpers

    def _serve(self, image: str, previous: str) -> None:
        """Set the champion's image and the annotation of the former one in one step."""
        self._patch(
            "Deployment",
            _name(CHAMPION),
            {f"/metadata/annotations/{PREVIOUS.replace('/', '~1')}": previous, IMAGE: image},
        )

    def _settle(self, before: str, previous: str) -> None:
        """Wait for the champion. If its servers do not get ready, restore the image `before`, whose servers still run."""
        try:
            self._wait(CHAMPION)
        except LooplineError as error:
            if not before:
                raise
            self._serve(before, previous)
            raise LooplineError(f"{error}\n{before} serves again") from error

    def _wait(self, lane: str) -> None:
        self._kubectl("rollout", "status", f"deployment/{_name(lane)}", f"--timeout={SECONDS}s")

    def _end_canary(self) -> None:
        """Take the challenger out of the route, then end its servers, which finish their requests."""
        self._route(0)
        self._patch("Deployment", _name(CHALLENGER), {"/spec/replicas": 0})

    def _route(self, share: int, *, mirrored: bool = False) -> None:
        if ("HTTPRoute", NAME) not in self.objects:
            return
        rule = self._rule()
        port = self.objects["HTTPRoute", NAME]["spec"]["rules"][rule]["backendRefs"][0]["port"]
        weights = {CHAMPION: 100 - share, CHALLENGER: share}
        copy = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": _name(CHALLENGER), "port": port}}}
        self._patch(
            "HTTPRoute",
            NAME,
            {
                f"/spec/rules/{rule}/backendRefs": [
                    {"name": _name(lane), "port": port, "weight": weight} for lane, weight in weights.items()
                ],
                f"/spec/rules/{rule}/filters": [copy] if mirrored else [],
            },
        )

    def _rule(self) -> int:
        """Index of the rule that shares predictions, which is the one with the challenger as a backend."""
        rules = self.objects["HTTPRoute", NAME]["spec"]["rules"]
        names = [[ref["name"] for ref in rule["backendRefs"]] for rule in rules]
        return next(index for index, backends in enumerate(names) if _name(CHALLENGER) in backends)

    def _render(self, overlay: Path) -> dict[tuple[str, str], dict[str, Any]]:
        import yaml

        documents = yaml.safe_load_all(self._kubectl("kustomize", str(overlay)))
        return {(document["kind"], document["metadata"]["name"]): document for document in documents}

    def _get(self, kind: str, name: str) -> dict[str, Any]:
        """The object in the cluster; empty if there is none."""
        output = self._kubectl("get", kind, name, "--ignore-not-found", "--output=json")
        content: dict[str, Any] = json.loads(output) if output else {}
        return content

    def _patch(self, kind: str, name: str, changes: dict[str, Any]) -> None:
        """Change several fields of an object at once. changes: JSON path -> value."""
        operations = [{"op": "add", "path": path, "value": value} for path, value in changes.items()]
        words = ("patch", kind, name, "--type=json", f"--field-manager={NAME}", f"--patch={json.dumps(operations)}")
        self._kubectl(*words)

    def _kubectl(self, *words: str, stdin: str = "") -> str:
        try:
            done = subprocess.run(
                ["kubectl", *self.context, *self.namespace, *words],  # noqa: S607 - the user's own, from the path
                input=stdin,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError as error:
            raise LooplineError("kubectl is not on the path: https://kubernetes.io/docs/tasks/tools/") from error
        if done.returncode:
            raise LooplineError(f"kubectl {words[0]}: {done.stderr.strip()}")
        return done.stdout


def _name(lane: str) -> str:
    return f"{NAME}-{lane}"


def _container(deployment: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return container


def _previous(champion: dict[str, Any]) -> str:
    return str(champion["metadata"].get("annotations", {}).get(PREVIOUS, ""))


def _lane(deployment: dict[str, Any]) -> LaneReplicas:
    """The replicas of a lane.

    Servers of an older image do not count as ready. None counts as ready until the cluster has observed the last change.
    """
    status, replicas = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    seen = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    ready = min(status.get("updatedReplicas", 0), status.get("availableReplicas", 0)) if seen else 0
    return LaneReplicas(_container(deployment)["image"], replicas, ready)


def _refused(route: dict[str, Any]) -> list[str]:
    """Lines for each reason why a gateway refuses the route, and a line if no gateway has accepted it."""
    parents = route.get("status", {}).get("parents", [])
    wrong = [
        f"HTTPRoute: {condition['type']} is {condition['status']}: {condition.get('message', '')}"
        for parent in parents
        for condition in parent["conditions"]
        if condition["type"] in ("Accepted", "ResolvedRefs") and condition["status"] != "True"
    ]
    return wrong if parents else ["HTTPRoute: no gateway has accepted it"]
