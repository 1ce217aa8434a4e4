"""Deployment of an image that contains its bundles: the verbs of `make deploy TARGET=kubernetes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loopline.deploy import verify
from loopline.deploy.kubectl import PROMETHEUS, Cluster
from loopline.errors import LooplineError
from loopline.release import bundle
from loopline.rollout import canary_metrics
from loopline.rollout.state import RolloutPlan


@dataclass(frozen=True, kw_only=True)
class Images:
    """A cluster, and the image to serve there; empty: the overlay's own.

    share: percent of the predictions that a canary gets; 0: copies of all. url: of the cluster's gateway, for golden inputs;
    empty: do not send them. plan: for the judge of a canary; None: no judge. prometheus: see `where` of `Cluster.prometheus`.
    scrape: seconds between two scrapes.
    """

    cluster: Cluster
    image: str = ""
    share: int = 5
    url: str = ""
    plan: RolloutPlan | None = None
    prometheus: str = PROMETHEUS
    scrape: float = 15.0

    def deploy(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`."""
        lines = [str(self.cluster.deploy(self.image))]
        if wrong := self._differences(bundles):
            former = self.cluster.rollback() if self.cluster.status().previous else None
            undone = f", and was taken back:\n{former}" if former else ""
            raise LooplineError("\n  ".join([f"the deployment is up, but failed its verification{undone}", *wrong]))
        return lines

    def canary(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. Without a plan there is no judge: look at the dashboards by lane, then `deploy` the same, or `rollback`.

        With a plan it waits for the judge. It ends a canary that does not pass, and raises LooplineError with the judge's
        reasons. The judge looks at the models of these bundles, or at all models of the image if there are none.
        """
        status = self.cluster.canary(self.share, self.image)
        if self.plan is None:
            return [str(status)]
        image = status.challenger.image

        def sick() -> str:
            now = self.cluster.status()
            if not (now.share or now.mirrored) or now.challenger.image != image:
                raise LooplineError("the canary was ended by hand")
            ready = f"{now.challenger.ready} of {now.challenger.replicas} servers of the challenger are ready"
            return ready if now.challenger.ready < now.challenger.replicas else ""

        ask = partial(self.cluster.prometheus, self.prometheus)
        models = [bundle.read(path).manifest.name for path in bundles]
        verdict = canary_metrics.Soak(ask=ask, sick=sick, plan=self.plan, scrape=self.scrape).verdict(models)
        if verdict.action != "pass":
            sick()  # raises if the canary was ended meanwhile
            self.cluster.rollback()
        return [str(status), *canary_metrics.said(verdict)]

    def verify(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. Golden inputs are not sent during a canary, because two versions answer then."""
        try:
            status = self.cluster.verify()
        except LooplineError as error:
            return str(error).splitlines()
        if self.image not in ("", status.champion.image, status.challenger.image if status.challenger.replicas else ""):
            return [f"{self.image} does not serve:", *str(status).splitlines()]
        return [] if status.share else self._differences(bundles)

    def rollback(self, model: str | None) -> list[str]:
        """See `Target`. An image that never served changes nothing: there is nothing to take back."""
        if model:
            raise LooplineError("in a cluster a rollback is of the whole image: leave the model out")
        status = self.cluster.status()
        on_trial = status.challenger.replicas and status.challenger.image == self.image
        if self.image and self.image != status.champion.image and not on_trial:
            return [f"{self.image} does not serve: there is nothing to take back", str(status)]
        return [str(self.cluster.rollback())]

    def _differences(self, bundles: Sequence[Path]) -> list[str]:
        return verify.differences(self.url, bundles) if self.url else []
