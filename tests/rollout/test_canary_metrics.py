"""A canary that is judged by a real Prometheus' counts of its two lanes."""

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
    """Model -> verdict: each in a soak of its own, all at once on one Prometheus."""
    exporter = lanes.Lanes()
    made = prometheus.Prometheus(tmp_path_factory.mktemp("prometheus"), [exporter.address], "")
    ask = partial(prometheus_api.instant, made.url)
    prometheus.eventually(lambda: ask("loopline_requests_total"))
    found, asked, again = {}, {}, set()

    def watched(expression):
        """Notes who asks a question for the second time: it has seen all that was there before."""
        name = threading.current_thread().name
        if expression in asked.setdefault(name, set()):
            again.add(name)
        asked[name].add(expression)
        return ask(expression)

    def one(model, plan):
        found[model] = soak(watched, plan).verdict([model])

    plans = dict.fromkeys(lanes.MODELS, PLAN)
    plans["quiet"] = RolloutPlan(hold=4, every=0.2, policy=PLAN.policy)
    plans["unlabelled"] = RolloutPlan(hold=4, every=0.2, policy=RolloutPolicy(requests=100, points=3, labels=50))
    threads = [threading.Thread(target=one, args=given) for given in plans.items()]
    for thread in threads:
        thread.start()
    prometheus.eventually(lambda: len(again) == len(plans))
    exporter.begin()
    for thread in threads:
        thread.join()
    found["all"] = soak(ask, RolloutPlan(hold=20, every=0.2, policy=RolloutPolicy(requests=1, points=1))).verdict()
    yield found
    made.close()
    exporter.close()


@pytest.mark.parametrize("model", ["fine", "same"])
def test_who_is_no_worse_passes_though_it_has_a_twentieth_of_the_requests(verdicts, model):
    assert verdicts[model].action == "pass", verdicts[model]
    assert f"{model}: errors " in verdicts[model].reasons[0]
    assert any("95th percentile" in reason for reason in verdicts[model].reasons)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("failing", "more than chance"),
        ("broken", "more than chance"),  # all of it in the first scrape: the series begins with 30
        ("slow", "95th percentile of latency"),
        ("other", "predicted classes"),
        ("mad", "no number"),
        ("worse", "labelled quality"),
    ],
)
def test_who_is_worse_is_rolled_back_and_the_reason_says_of_what(verdicts, model, reason):
    assert verdicts[model].action == "roll back", verdicts[model]
    assert any(said.startswith(f"{model}: ") and reason in said for said in verdicts[model].reasons)


@pytest.mark.parametrize(
    ("model", "reason"), [("quiet", "0 of 6 points of latency"), ("unlabelled", "of 50 labelled answers")]
)
def test_what_lacks_evidence_holds_until_time_is_out(verdicts, model, reason):
    assert verdicts[model].action == "hold"
    assert verdicts[model].reasons[0] == "no verdict within 4 s"
    assert reason in str(verdicts[model].reasons)


def test_of_all_models_the_worst_decides(verdicts):
    assert verdicts["all"].action == "roll back"
    named = {reason.partition(":")[0] for reason in verdicts["all"].reasons}
    assert named and named <= {"failing", "slow", "other", "worse", "broken"}


def away(_):
    raise LooplineError("http://127.0.0.1:9 cannot be reached")


def test_without_prometheus_there_is_no_verdict_but_on_what_is_sick():
    verdict = soak(away, RolloutPlan(hold=0.1, every=0.1)).verdict(["fine"])
    assert (verdict.action, verdict.reasons[1]) == ("hold", "http://127.0.0.1:9 cannot be reached")
    verdict = soak(away, sick=lambda: "0 of 1 servers are ready").verdict(["fine"])
    assert (verdict.action, verdict.reasons) == ("roll back", ("0 of 1 servers are ready",))


def test_a_challenger_that_was_never_scraped_holds():
    verdict = soak(lambda _: [], RolloutPlan(hold=0.1, every=0.1)).verdict()
    assert verdict.reasons[1] == "Prometheus has not seen the challenger's servers yet"
    verdict = soak(lambda _: [], RolloutPlan(hold=0.1, every=0.1)).verdict(["fine"])
    assert verdict.reasons[1] == "fine: Prometheus has not seen both lanes of fine yet"


def test_who_ends_the_canary_by_hand_ends_the_judge():
    def over():
        raise LooplineError("the canary was ended by hand")

    with pytest.raises(LooplineError, match="by hand"):
        soak(lambda _: [], sick=over).verdict()
