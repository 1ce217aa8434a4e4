"""Is the best trial really better than params.yaml? The test split, which the search did not see, decides by a paired interval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline import tasks
from loopline.data import manifest
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.tasks import bootstrap
from loopline.tasks.bootstrap import Interval
from loopline.tuning import space
from loopline.tuning.search import Row, Search


@dataclass(frozen=True)
class Comparison:
    """The headline figures on the test split of params.yaml and of the best trial, and the gain with its 95 % interval."""

    headline: str
    samples: int
    before: float
    after: float
    gain: Interval

    def sentence(self) -> str:
        """The verdict in one sentence."""
        low, high = self.gain.low, self.gain.high
        figures = f"{self.headline} {self.before:.3f} -> {self.after:.3f}, gain {self.gain.value:+.3f} [{low:+.3f}, {high:+.3f}]"
        where = f"on {self.samples:,} test samples, which the search did not see"
        if low > 0:
            return f"proven gain: {figures} {where}"
        if high < 0:
            return f"proven loss: {figures} {where}; keep params.yaml"
        return f"no proven gain: {figures} {where}"


def check(path: Path) -> None:
    """Raise LooplineError if the manifest has no samples that can judge the best trial."""
    if "test" not in manifest.table(path, ["split"])["split"].unique().to_pylist():
        raise LooplineError(f"{path} has no test split, so nothing can judge the best trial: set split.test above 0")


def compare(search: Search) -> Comparison | None:
    """Compare the best trial with the first, which has the values of params.yaml; None if the first is the best, or failed.

    Both answer as FP32 graphs in ONNX Runtime.
    """
    first, best = search.rows[0], search.best()
    if best is None or best.number == 0 or first.outcome.state != "complete":
        return None
    model, task = search.model, tasks.find(search.model.task)
    splits = {split: manifest.load_split(search.manifest, split) for split in manifest.SPLITS}
    test = splits["test"]

    def scorer(row: Row) -> bootstrap.Scorer:
        weights = search.restore(row)
        graph = weights.with_name("model.onnx")
        settings: Any = space.with_values(model, row.values)
        spec = task.trainer().export(weights, splits["train"], splits["val"], settings, out=graph)
        outputs = sessions.run(graph, task.preprocessor(spec, weights)(test.inputs))
        return task.scorer(outputs, test, spec)

    before, after = scorer(first), scorer(best)
    gain = bootstrap.paired(
        after, before, len(test.ids), metric=task.headline, resamples=model.evaluate.resamples, seed=0
    )
    return Comparison(task.headline, len(test.ids), before(None)[task.headline], after(None)[task.headline], gain)
