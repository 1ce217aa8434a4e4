"""Deployment of an image that holds its bundles: what `make deploy TARGET=kubernetes` does with the cluster."""

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
    """A cluster, and the image that is to serve there; empty: the overlay's own.

    share: percent that a canary gets; 0: a copy of each request. url: of the cluster's gateway, where the bundles are asked their
    golden inputs; empty: nobody asks. plan: how the judge is to judge a canary; None: nobody judges. prometheus: as
    `Cluster.prometheus` takes it. scrape: seconds between two looks that it takes.
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
        said = [str(self.cluster.deploy(self.image))]
        if wrong := self._asked(bundles):
            back = self.cluster.rollback() if self.cluster.status().previous else None
            what = f", and it was taken back:\n{back}" if back else ""
            raise LooplineError("\n  ".join([f"it is up, but not as it should be{what}", *wrong]))
        return said

    def canary(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. Without a plan nobody judges: look at the dashboards, by lane, then `deploy` the same, or `rollback`.

        With one it waits for the judge, and raises LooplineError with its reasons once it has ended a canary that did not pass. It
        judges the models of these bundles; without any, all that the image serves.
        """
        status = self.cluster.canary(self.share, self.image)
        if self.plan is None:
            return [str(status)]
        image = status.challenger.image

        def sick() -> str:
            now = self.cluster.status()
            if not (now.share or now.mirrored) or now.challenger.image != image:
                raise LooplineError("the canary was ended by hand")
            alive = f"{now.challenger.ready} of {now.challenger.replicas} servers of the challenger are ready"
            return alive if now.challenger.ready < now.challenger.replicas else ""

        ask = partial(self.cluster.prometheus, self.prometheus)
        models = [bundle.read(path).manifest.name for path in bundles]
        verdict = canary_metrics.Soak(ask=ask, sick=sick, plan=self.plan, scrape=self.scrape).verdict(models)
        if verdict.action != "pass":
            sick()  # is it still the one that was judged?
            self.cluster.rollback()
        return [str(status), *canary_metrics.said(verdict)]

    def verify(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. While a canary is on, golden inputs are not asked: two versions answer."""
        try:
            status = self.cluster.verify()
        except LooplineError as error:
            return str(error).splitlines()
        if self.image not in ("", status.champion.image, status.challenger.image if status.challenger.replicas else ""):
            return [f"{self.image} does not serve:", *str(status).splitlines()]
        return [] if status.share else self._asked(bundles)

    def rollback(self, model: str | None) -> list[str]:
        """See `Target`. What failed before it served is no reason to go back: of such an image nothing is taken back."""
        if model:
            raise LooplineError("in a cluster the whole image goes back: leave the model out")
        status = self.cluster.status()
        on_trial = status.challenger.replicas and status.challenger.image == self.image
        if self.image and self.image != status.champion.image and not on_trial:
            return [f"{self.image} does not serve: there is nothing to take back", str(status)]
        return [str(self.cluster.rollback())]

    def _asked(self, bundles: Sequence[Path]) -> list[str]:
        return verify.differences(self.url, bundles) if self.url else []
