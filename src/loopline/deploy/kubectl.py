"""What `loopline deploy --target kubernetes` does: the kustomize overlay says what there is, kubectl does it.

Two lanes, each a Deployment: the champion, and a challenger that has servers only during a canary. The HTTPRoute's weights share
predictions between them. All state is in the cluster, and every verb looks there first: who was cut off calls it again.
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
PREVIOUS = f"{NAME}/previous-image"  # of the champion, before the one that it has: what a rollback goes back to
IMAGE = "/spec/template/spec/containers/0/image"
PROMETHEUS = "monitoring/prometheus-operated:9090"  # namespace/service:port, as the operator names it
SECONDS = 300  # until a lane has its servers; the Deployment's own progressDeadlineSeconds says so earlier


@dataclass(frozen=True)
class LaneReplicas:
    """replicas: wanted. ready: those that serve with this image."""

    image: str
    replicas: int
    ready: int


@dataclass(frozen=True)
class RolloutStatus:
    """share: percent of the predictions that the challenger answers. mirrored: it gets a copy of all, and nobody its answers.

    previous: the image that a rollback goes back to, the champion's own if it went back already; empty if there is none.
    """

    champion: LaneReplicas
    challenger: LaneReplicas
    share: int
    mirrored: bool
    previous: str

    def __str__(self) -> str:
        """As it is printed."""
        trial = f"{self.share} %" if not self.mirrored else "mirrored"
        lanes = ((CHAMPION, self.champion, f"{100 - self.share} %"), (CHALLENGER, self.challenger, trial))
        return "\n".join(f"{name:10} {a.ready}/{a.replicas} ready  {share:8}  {a.image}" for name, a, share in lanes)


class Cluster:
    """An overlay in the cluster of kubectl's current context, or of the one that is named."""

    def __init__(self, overlay: Path, context: str = "") -> None:
        """overlay: a kustomize folder. Raises LooplineError where it cannot be rendered, or has no champion."""
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
        """Apply the overlay with this image (else its own) as champion, server by server, and end a canary.

        Raises LooplineError if the new servers do not get ready; then the image before is back.
        """
        import yaml

        before = self._get("Deployment", _name(CHAMPION))
        for lane in (CHAMPION, CHALLENGER):
            container = _container(self.objects["Deployment", _name(lane)])
            container["image"] = image = image or container["image"]
        old, previous = (_container(before)["image"], _previous(before)) if before else ("", "")
        notes = self.objects["Deployment", _name(CHAMPION)]["metadata"].setdefault("annotations", {})
        notes[PREVIOUS] = previous if old == image else old  # of a deploy that is repeated, what it noted
        words = ("apply", "--server-side", "--force-conflicts", f"--field-manager={NAME}", "--filename=-")
        self._kubectl(*words, stdin=yaml.safe_dump_all(self.objects.values()))
        self._settle(*((previous, "") if old == image else (old, previous)))
        return self.status()

    def canary(self, share: int, image: str = "") -> RolloutStatus:
        """Let the challenger answer so many percent of the predictions, from 1 to 50; 0: it gets a copy of each and its answers are
        thrown away.

        image: of the challenger; needed the first time. Raises ValueError on another share, LooplineError where it has no image, or
        if its servers do not get ready: then it gets nothing.
        """
        if not 0 <= share <= 50:
            raise ValueError(f"a share of {share} %: from 0 to 50")
        if ("HTTPRoute", NAME) not in self.objects:
            raise LooplineError(
                "this overlay has no HTTPRoute, so there is no canary: staging's and production's have one"
            )
        present = self.status()
        image = image or (present.challenger.image if present.challenger.replicas else "")
        if not image:
            raise LooplineError("there is no challenger yet: say its image")
        if image != present.challenger.image:
            self._route(0)  # what was judged of another image does not hold for this one
        # As many servers a request as the champion has. Not fewer than there are: they have a larger share until the route is changed.
        wanted = max(1, ceil(present.champion.replicas * (share or 100) / 100), present.challenger.replicas)
        self._patch("Deployment", _name(CHALLENGER), {"/spec/replicas": wanted, IMAGE: image})
        try:
            self._wait(CHALLENGER)
        except LooplineError:
            self._end_canary()
            raise
        self._route(share, mirrored=not share)
        return self.status()

    def promote(self) -> RolloutStatus:
        """The challenger's image becomes the champion's, server by server, and the canary ends.

        Raises LooplineError if there is no challenger, or if the new servers do not get ready: then the champion is what it was.
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
        """End the canary if there is one, at once; else the champion gets the image before its own again.

        One back and no further; once more changes nothing. Raises LooplineError where there is none.
        """
        present = self.status()
        if present.challenger.replicas or present.share or present.mirrored:
            self._end_canary()
            return self.status()
        if not present.previous:
            raise LooplineError("the champion had no other image before: there is nothing to roll back to")
        if present.champion.image != present.previous:
            self._serve(present.previous, present.previous)
        self._wait(CHAMPION)
        return self.status()

    def verify(self) -> RolloutStatus:
        """Is what serves whole? Every lane has its servers, with the image that is asked for, and the gateway has taken the route.

        Raises LooplineError that says all that is wrong.
        """
        present, wrong = self.status(), []
        for name, lane in ((CHAMPION, present.champion), (CHALLENGER, present.challenger)):
            if lane.ready < lane.replicas:
                wrong.append(f"{name}: {lane.ready} of {lane.replicas} servers of {lane.image} are ready")
            if lane.replicas == 0 and (name == CHAMPION or present.share):
                wrong.append(f"{name}: requests come and there are no servers")
        if ("HTTPRoute", NAME) in self.objects:
            wrong += _refused(self._get("HTTPRoute", NAME))
        if wrong:
            raise LooplineError("\n".join(wrong))
        return present

    def status(self) -> RolloutStatus:
        """What the cluster says now. Raises LooplineError where nothing is deployed."""
        lanes = {}
        champion = self._get("Deployment", _name(CHAMPION))
        for lane in (CHAMPION, CHALLENGER):
            found = champion if lane == CHAMPION else self._get("Deployment", _name(lane))
            if not found:
                raise LooplineError(f"there is no Deployment {_name(lane)}: `deploy` makes it")
            lanes[lane] = _lane(found)
        share, mirrored = 0, False
        if ("HTTPRoute", NAME) in self.objects:
            rule = self._get("HTTPRoute", NAME)["spec"]["rules"][self._rule()]
            share = next(ref["weight"] for ref in rule["backendRefs"] if ref["name"] == _name(CHALLENGER))
            mirrored = any(one["type"] == "RequestMirror" for one in rule.get("filters", []))
        return RolloutStatus(lanes[CHAMPION], lanes[CHALLENGER], share, mirrored, _previous(champion))

    def prometheus(self, where: str, expression: str) -> list[prometheus_api.Series]:
        """What it says now. where: an address, or namespace/service:port, which the API server passes the query on to: that needs
        `get` of `services/proxy`, and no door for others. Raises LooplineError."""
        if where.startswith(("http://", "https://")):
            return prometheus_api.instant(where, expression)
        namespace, _, service = where.partition("/")
        asked = urllib.parse.urlencode({"query": expression})
        path = f"/api/v1/namespaces/{namespace}/services/{service}/proxy/api/v1/query?{asked}"
        return prometheus_api.parsed(self._kubectl("get", "--raw", path).encode(), where)

    # How

    def _serve(self, image: str, previous: str) -> None:
        """The champion's image, and what is noted as the one before, in one step."""
        self._patch(
            "Deployment",
            _name(CHAMPION),
            {f"/metadata/annotations/{PREVIOUS.replace('/', '~1')}": previous, IMAGE: image},
        )

    def _settle(self, before: str, previous: str) -> None:
        """Wait for the champion. If it does not come, the image before serves again: its servers never went."""
        try:
            self._wait(CHAMPION)
        except LooplineError as error:
            if not before:
                raise
            self._serve(before, previous)
            raise LooplineError(f"{error}\n{before} is back") from error

    def _wait(self, lane: str) -> None:
        self._kubectl("rollout", "status", f"deployment/{_name(lane)}", f"--timeout={SECONDS}s")

    def _end_canary(self) -> None:
        """First nobody is sent there, then it goes: its servers finish what they have."""
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
        """Place of the rule that shares predictions: the one that knows the challenger."""
        rules = self.objects["HTTPRoute", NAME]["spec"]["rules"]
        names = [[ref["name"] for ref in rule["backendRefs"]] for rule in rules]
        return next(place for place, found in enumerate(names) if _name(CHALLENGER) in found)

    def _render(self, overlay: Path) -> dict[tuple[str, str], dict[str, Any]]:
        import yaml

        documents = yaml.safe_load_all(self._kubectl("kustomize", str(overlay)))
        return {(one["kind"], one["metadata"]["name"]): one for one in documents}

    def _get(self, kind: str, name: str) -> dict[str, Any]:
        """As the cluster has it; empty if it has not."""
        said = self._kubectl("get", kind, name, "--ignore-not-found", "--output=json")
        found: dict[str, Any] = json.loads(said) if said else {}
        return found

    def _patch(self, kind: str, name: str, changes: dict[str, Any]) -> None:
        """Path -> value, all at once."""
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
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return found


def _previous(champion: dict[str, Any]) -> str:
    return str(champion["metadata"].get("annotations", {}).get(PREVIOUS, ""))


def _lane(deployment: dict[str, Any]) -> LaneReplicas:
    """Servers of an older image, or of a state that the cluster has not looked at yet, do not count as ready."""
    status, replicas = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    seen = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    ready = min(status.get("updatedReplicas", 0), status.get("availableReplicas", 0)) if seen else 0
    return LaneReplicas(_container(deployment)["image"], replicas, ready)


def _refused(route: dict[str, Any]) -> list[str]:
    """What the gateways say against the route; that nobody has taken it, too."""
    parents = route.get("status", {}).get("parents", [])
    wrong = [
        f"HTTPRoute: {condition['type']} is {condition['status']}: {condition.get('message', '')}"
        for parent in parents
        for condition in parent["conditions"]
        if condition["type"] in ("Accepted", "ResolvedRefs") and condition["status"] != "True"
    ]
    return wrong if parents else ["HTTPRoute: no gateway has taken it"]
