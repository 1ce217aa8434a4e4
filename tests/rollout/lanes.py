"""Two lanes as Prometheus scrapes them: an exporter with growing counters and one model for each kind of challenger."""

import time

from answering import Server

from loopline.tasks.signals import CLASS

RATE = {"champion": 950, "challenger": 50}  # requests a second
EDGES = (0.005, 0.01, 0.02, 0.04, 0.08)
MODELS = ("fine", "same", "failing", "broken", "slow", "other", "mad", "quiet", "unlabelled", "worse")


class Lanes(Server):
    """An exporter of both lanes' metrics. Each model's fault is in its challenger, and starts with `begin`."""

    def __init__(self, models=MODELS):
        self.models, self.born, self.begun = models, time.monotonic(), None
        kind = {"Content-Type": "text/plain; version=0.0.4"}
        super().__init__(lambda *_: (200, "".join(f"{row}\n" for row in self.rows()).encode(), kind))

    def begin(self):
        self.begun = time.monotonic()

    def rows(self):
        now = time.monotonic()
        for model in self.models:
            for lane, rate in RATE.items():
                since = self.begun if lane == "challenger" else self.born
                if since is not None:
                    begun = self.begun or now
                    yield from _rows(model, lane, rate * (now - since), rate * (now - max(begun, since)))


def _rows(model, lane, total, tried):
    """total: requests of this lane. tried: those of them since the canary began."""
    fault = model if lane == "challenger" else ""
    same = f'model="{model}",lane="{lane}",version="{"1" if lane == "champion" or model == "same" else "2"}"'
    labels, route = f"{same}", 'route="predict"'
    failed = {"failing": tried * 0.06, "broken": 30 if tried > 100 else 0}.get(fault, 0) + total * 0.01
    total = 0 if model == "quiet" and lane == "challenger" else total
    yield f"loopline_model_info{{{labels}}} 1"
    yield f'loopline_requests_total{{{labels},{route},code="200"}} {int(total - failed if total else 0)}'
    # The series of a status code begins with the first answer of that code.
    for code, count in (("500", int(total * 0.01)), ("503", int(failed - total * 0.01) if total else 0)):
        if count:
            yield f'loopline_requests_total{{{labels},{route},code="{code}"}} {count}'
    shares = (0, 0.3, 0.97, 1, 1) if fault == "slow" else (0.3, 0.97, 1, 1, 1)
    for edge, share in zip(EDGES, shares, strict=True):
        yield f'loopline_request_seconds_bucket{{{labels},{route},le="{edge}"}} {total * share}'
    yield f'loopline_request_seconds_bucket{{{labels},{route},le="+Inf"}} {total}'
    yes = 0.9 if fault == "other" else 0.4
    for name, share in (("yes", yes), ("no", 1 - yes)):
        yield f'loopline_signal_rows_total{{{labels},signal="{CLASS}",bin="{name}"}} {total * share}'
    if fault == "mad":
        yield f'loopline_signal_rows_total{{{labels},signal="top_probability",bin="nan"}} 1'
    if model in ("worse", "fine"):
        version = f'model="{model}",version="{"1" if lane == "champion" else "2"}"'
        quality = 0.5 if fault == "worse" else 0.9
        yield f"loopline_labelled_rows_total{{{version}}} {tried}"
        yield f"loopline_labelled_quality_total{{{version}}} {tried * quality}"
