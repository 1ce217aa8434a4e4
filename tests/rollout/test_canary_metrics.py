"""A canary is judged by what a real Prometheus counts in its two lanes."""

import threading
from functools import partial

import lanes
import prometheus
import pytest

from loopline.errors import LooplineError
from loopline.observability import prometheus_api
from loopline.rollout.canary_metrics import Soak
from loopline.rollout.judge import RolloutPolicy
from loopline.rollout.state import RolloutPlan

pytestmark = prometheus.needed
PLAN = RolloutPlan(hold=60, every=0.2, policy=RolloutPolicy(requests=100, points=6))


def soak(ask, plan=PLAN, sick=lambda: ""):
    return Soak(ask=ask, sick=sick, plan=plan, scrape=0.5)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Model -> verdict. Each model has its own soak; all run at once on one Prometheus."""
    exporter = lanes.Lanes()
    server = prometheus.Prometheus(tmp_path_factory.mktemp("prometheus"), [exporter.address], "")
    ask = partial(prometheus_api.instant, server.url)
    prometheus.eventually(lambda: ask("loopline_requests_total"))
    verdicts, asked, ready = {}, {}, set()

    def watched(expression):
        """Ask, and note a thread that repeats an expression: it has seen all that was counted before."""
        name = threading.current_thread().name
        if expression in asked.setdefault(name, set()):
            ready.add(name)
        asked[name].add(expression)
        return ask(expression)

    def judge(model, plan):
        for _ in range(3):  # if the machine paused, the last scrape failed
            verdicts[model] = soak(watched, plan).verdict([model])
            if "has not seen" not in str(verdicts[model].reasons):
                return

    plans = dict.fromkeys(lanes.MODELS, PLAN)
    plans["quiet"] = RolloutPlan(hold=4, every=0.2, policy=PLAN.policy)
    plans["unlabelled"] = RolloutPlan(hold=4, every=0.2, policy=RolloutPolicy(requests=100, points=3, labels=50))
    threads = [threading.Thread(target=judge, args=pair) for pair in plans.items()]
    for thread in threads:
        thread.start()
    prometheus.eventually(lambda: len(ready) == len(plans))
    exporter.begin()
    for thread in threads:
        thread.join()
    verdicts["all"] = soak(ask, RolloutPlan(hold=20, every=0.2, policy=RolloutPolicy(requests=1, points=1))).verdict()
    yield verdicts
    server.close()
    exporter.close()


@pytest.mark.parametrize("model", ["fine", "same"])
def test_a_challenger_that_is_no_worse_passes_with_a_twentieth_of_the_requests(verdicts, model):
    assert verdicts[model].action == "pass", verdicts[model]
    assert f"{model}: errors " in verdicts[model].reasons[0]
    assert any("95th percentile" in reason for reason in verdicts[model].reasons)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("failing", "more than chance"),
        ("broken", "more than chance"),  # all errors are in the first scrape: the series begins with 30
        ("slow", "95th percentile of latency"),
        ("other", "predicted classes"),
        ("mad", "not a number"),
        ("worse", "labelled quality"),
    ],
)
def test_a_worse_challenger_is_rolled_back_and_the_reason_names_the_fault(verdicts, model, reason):
    assert verdicts[model].action == "roll back", verdicts[model]
    assert any(line.startswith(f"{model}: ") and reason in line for line in verdicts[model].reasons)


@pytest.mark.parametrize(
    ("model", "reason"), [("quiet", "0 of 6 points of latency"), ("unlabelled", "of 50 labelled answers")]
)
def test_a_challenger_without_enough_evidence_holds_until_the_time_runs_out(verdicts, model, reason):
    assert verdicts[model].action == "hold"
    assert verdicts[model].reasons[0] == "no verdict within 4 s"
    assert reason in str(verdicts[model].reasons)


def test_the_worst_of_all_models_decides(verdicts):
    assert verdicts["all"].action == "roll back"
    models = {reason.partition(":")[0] for reason in verdicts["all"].reasons}
    assert models and models <= {"failing", "slow", "other", "worse", "broken"}


def away(_):
    raise LooplineError("http://127.0.0.1:9 cannot be reached")


def test_without_prometheus_only_a_sick_challenger_gets_a_verdict():
    verdict = soak(away, RolloutPlan(hold=0.1, every=0.1)).verdict(["fine"])
    assert (verdict.action, verdict.reasons[1]) == ("hold", "http://127.0.0.1:9 cannot be reached")
    verdict = soak(away, sick=lambda: "0 of 1 servers are ready").verdict(["fine"])
    assert (verdict.action, verdict.reasons) == ("roll back", ("0 of 1 servers are ready",))


def test_a_challenger_that_was_never_scraped_holds():
    verdict = soak(lambda _: [], RolloutPlan(hold=0.1, every=0.1)).verdict()
    assert verdict.reasons[1] == "Prometheus has not seen the challenger's servers yet"
    verdict = soak(lambda _: [], RolloutPlan(hold=0.1, every=0.1)).verdict(["fine"])
    assert verdict.reasons[1] == "fine: Prometheus has not seen both lanes of fine yet"


def test_ending_the_canary_by_hand_ends_the_judge():
    def over():
        raise LooplineError("the canary was ended by hand")

    with pytest.raises(LooplineError, match="by hand"):
        soak(lambda _: [], sick=over).verdict()
