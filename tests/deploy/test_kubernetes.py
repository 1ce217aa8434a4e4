"""Deploy, canary, promote, roll back and verify, by the real kubectl against an API server that stands in for a cluster's."""

from dataclasses import replace

import lanes
import manifests
import prometheus
import pytest

from loopline import cli
from loopline.deploy import kubectl, kubernetes
from loopline.errors import LooplineError
from loopline.rollout import canary_metrics
from loopline.rollout.state import RolloutPlan

pytestmark = manifests.needed
PRODUCTION = manifests.FOLDER / "overlays/production"


@pytest.fixture
def ours(api):
    """Deployed once, with three servers: the autoscaler wanted them."""
    made = kubectl.Cluster(PRODUCTION)
    made.deploy("r/loopline:1")
    api.scale("champion", 3)
    api.asked.clear()
    return made


def test_a_deployment_brings_the_whole_overlay_in_with_the_image_that_is_named(api):
    status = kubectl.Cluster(PRODUCTION).deploy("r/loopline:1")
    assert status.champion == kubectl.LaneReplicas("r/loopline:1", 1, 1)
    assert (status.challenger.replicas, status.share, status.previous) == (0, 0, "")
    assert api.asked[0] == "namespaces/loopline"  # the others are in it
    wanted = {(one["kind"], one["metadata"]["name"]) for one in manifests.documents("overlays/production")}
    assert {(one["kind"], one["metadata"]["name"]) for one in api.objects.values()} == wanted
    # The overlay's own
    assert kubectl.Cluster(PRODUCTION).deploy().champion.image == "registry.example.com/loopline:0.1.0"


def test_the_next_deployment_keeps_the_autoscalers_replicas_and_can_be_rolled_back(ours, api):
    status = ours.deploy("r/loopline:2")
    assert status.champion == kubectl.LaneReplicas("r/loopline:2", 3, 3)
    assert status.previous == "r/loopline:1"
    assert ours.deploy("r/loopline:2") == status  # who was cut off calls again, and what it noted is kept
    back = ours.rollback()
    assert back.champion.image == "r/loopline:1"
    assert ours.rollback() == back  # no second step back, and not forward again
    assert ours.verify() == back


def test_an_image_that_does_not_get_ready_never_takes_the_place(ours, api):
    ours.deploy("r/loopline:2")
    with pytest.raises(LooplineError, match=r"(?s)progress deadline.*r/loopline:2 is back"):
        ours.deploy("r/loopline:broken")
    status = ours.verify()
    assert (status.champion.image, status.previous) == ("r/loopline:2", "r/loopline:1")


def test_the_first_image_that_does_not_get_ready_is_named_and_stays_to_be_looked_at(api):
    with pytest.raises(LooplineError, match="progress deadline"):
        kubectl.Cluster(PRODUCTION).deploy("r/loopline:broken")
    with pytest.raises(LooplineError, match="champion: 0 of 1 servers of r/loopline:broken are ready"):
        kubectl.Cluster(PRODUCTION).verify()


def test_a_canary_has_its_servers_before_its_share(ours, api):
    status = ours.canary(5, "r/loopline:2")
    assert status.challenger == kubectl.LaneReplicas("r/loopline:2", 1, 1)
    assert (status.champion.image, status.share) == ("r/loopline:1", 5)
    assert api.asked[-2:] == ["deployments/loopline-challenger", "httproutes/loopline"]
    assert ours.canary(50).challenger.replicas == 2  # half of the champion's three
    assert [(ref["name"], ref["weight"]) for ref in api.route()["spec"]["rules"][1]["backendRefs"]] == [
        ("loopline-champion", 50),
        ("loopline-challenger", 50),
    ]
    others = [api.route()["spec"]["rules"][place] for place in (0, 2)]
    assert [[ref["name"] for ref in rule["backendRefs"]] for rule in others] == [["loopline-champion"]] * 2


def test_a_share_of_nothing_is_a_copy_of_everything(ours, api):
    status = ours.canary(0, "r/loopline:2")
    assert (status.share, status.mirrored, status.challenger.replicas) == (0, True, 3)
    (copied,) = api.route()["spec"]["rules"][1]["filters"]
    assert copied["requestMirror"]["backendRef"] == {"name": "loopline-challenger", "port": 80}
    assert not ours.canary(5).mirrored


def test_a_challenger_that_does_not_get_ready_gets_no_request(ours, api):
    ours.canary(5, "r/loopline:2")
    with pytest.raises(LooplineError, match="progress deadline"):
        ours.canary(5, "r/loopline:broken")
    status = ours.status()
    assert (status.share, status.challenger.replicas, status.champion.image) == (0, 0, "r/loopline:1")


def test_a_promotion_ends_the_canary_once_the_champion_has_the_image(ours, api):
    ours.canary(50, "r/loopline:2")
    api.asked.clear()
    status = ours.promote()
    assert status.champion == kubectl.LaneReplicas("r/loopline:2", 3, 3)
    assert (status.share, status.challenger.replicas, status.previous) == (0, 0, "r/loopline:1")
    assert api.asked == ["deployments/loopline-champion", "httproutes/loopline", "deployments/loopline-challenger"]
    assert ours.rollback().champion.image == "r/loopline:1"
    with pytest.raises(LooplineError, match="no challenger to promote"):
        ours.promote()


def test_a_promotion_that_was_cut_off_goes_on(ours, api):
    ours.canary(50, "r/loopline:2")
    api.fail_after = 1  # the champion has the new image, and nobody was told
    with pytest.raises(LooplineError, match="kubectl"):
        ours.promote()
    api.fail_after = None
    status = ours.promote()
    assert (status.champion.image, status.previous, status.share) == ("r/loopline:2", "r/loopline:1", 0)


def test_a_rollback_ends_the_canary_first_and_the_route_before_the_servers(ours, api):
    ours.deploy("r/loopline:2")
    ours.canary(50, "r/loopline:3")
    api.asked.clear()
    status = ours.rollback()
    assert (status.champion.image, status.share, status.challenger.replicas) == ("r/loopline:2", 0, 0)
    assert api.asked == ["httproutes/loopline", "deployments/loopline-challenger"]


def test_a_deployment_ends_a_canary(ours):
    ours.canary(50, "r/loopline:2")
    status = ours.deploy("r/loopline:3")
    assert (status.champion.image, status.share, status.challenger.replicas) == ("r/loopline:3", 0, 0)


def test_verify_says_all_that_is_wrong(ours, api):
    ours.canary(5, "r/loopline:2")
    api.scale("challenger", 0)
    route = api.route()
    route["spec"]["hostnames"] = ["refused.example.com"]
    api.write("httproutes", "loopline", route)
    with pytest.raises(LooplineError) as said:
        ours.verify()
    assert str(said.value).splitlines() == [
        "challenger: requests come and there are no servers",
        "HTTPRoute: Accepted is False: as the host says",
    ]
    route["status"] = {}
    with pytest.raises(LooplineError, match="no gateway has taken it"):
        ours.verify()


def test_what_cannot_be_done_is_said_in_one_line(ours, api, tmp_path, monkeypatch):
    with pytest.raises(LooplineError, match="say its image"):
        ours.canary(5)
    with pytest.raises(ValueError, match="from 0 to 50"):
        ours.canary(51, "r/loopline:2")
    with pytest.raises(LooplineError, match="nothing to roll back to"):
        ours.rollback()
    with pytest.raises(LooplineError, match="kubectl kustomize"):
        kubectl.Cluster(tmp_path / "none")
    with pytest.raises(LooplineError, match="has no Deployment loopline-champion"):
        kubectl.Cluster(manifests.FOLDER / "knative")
    with pytest.raises(LooplineError, match="context"):
        kubectl.Cluster(PRODUCTION, context="elsewhere").status()
    local = kubectl.Cluster(manifests.FOLDER / "overlays/local")
    assert local.deploy("r/loopline:1").share == 0
    assert local.verify().champion.ready
    with pytest.raises(LooplineError, match="no HTTPRoute"):
        local.canary(5, "r/loopline:2")
    assert api.asked[-1] != "deployments/loopline-challenger"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LooplineError, match="kubectl is not on the path"):
        ours.status()


def test_nothing_is_deployed_yet(api):
    with pytest.raises(LooplineError, match="`deploy` makes it"):
        kubectl.Cluster(PRODUCTION).status()


def test_a_status_can_be_read(ours):
    lines = str(ours.canary(5, "r/loopline:2")).splitlines()
    assert lines[0].split() == ["champion", "3/3", "ready", "95", "%", "r/loopline:1"]
    assert lines[1].split() == ["challenger", "1/1", "ready", "5", "%", "r/loopline:2"]


def image(name, share=5):
    return kubernetes.Images(cluster=kubectl.Cluster(PRODUCTION), image=name, share=share)


def test_the_verbs_take_an_image_from_canary_to_champion_and_back(ours, capsys):
    words = ["--target", "kubernetes", "--overlay", str(PRODUCTION), "--image", "r/loopline:2"]
    for verb, served in (("canary", "r/loopline:1"), ("verify", None), ("deploy", "r/loopline:2"), ("verify", None)):
        assert cli.main([verb, *words]) == 0
        if served:
            assert ours.status().champion.image == served
    assert ours.status().share == 0
    assert cli.main(["rollback", *words]) == 0
    assert "r/loopline:1" in capsys.readouterr().out
    assert ours.status().champion.image == "r/loopline:1"


@pytest.fixture
def counted(api, tmp_path):
    """Starts a Prometheus in the cluster that counts both lanes of one model."""
    made = []

    def start(model):
        exporter = lanes.Lanes([model])
        made.append(exporter)
        made.append(prometheus.Prometheus(tmp_path, [exporter.address], ""))
        api.services["namespaces/monitoring/services/prometheus-operated:9090"] = made[-1].url
        exporter.begin()

    yield start
    for one in made:
        one.close()


WAIT = ["--wait", "--requests", "50", "--points", "3", "--scrape", "0.5", "--every", "0.2"]


@prometheus.needed
@pytest.mark.parametrize("model", ["fine", "failing"])
def test_the_judge_asks_the_clusters_prometheus_and_ends_what_does_not_pass(
    ours, counted, capsys, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # no bundle lies here: the judge asks what the image serves
    counted(model)
    words = ["--target", "kubernetes", "--overlay", str(PRODUCTION), "--image", "r/loopline:2", *WAIT, "--hold", "60"]
    code = cli.main(["canary", *words])
    said = "".join(capsys.readouterr())
    if model == "fine":
        assert (code, ours.status().share) == (0, 5)
        assert "the canary passed; `deploy` the same to promote it:\n  fine: errors" in said
    else:
        assert (code, ours.status().share, ours.status().challenger.replicas) == (1, 0, 0)
        assert "did not pass; the champion serves all requests:\n  failing: errors" in said


def judged(cluster, hold=0.1):
    return kubernetes.Images(cluster=cluster, image="r/loopline:2", plan=RolloutPlan(hold=hold, every=0.1), scrape=0.1)


def test_a_prometheus_that_is_not_there_never_lets_a_canary_pass(ours):
    with pytest.raises(LooplineError, match=r"(?s)no verdict within 0.1 s.*kubectl get: .*NotFound"):
        judged(ours).canary([])
    assert ours.status().share == 0


def test_a_canary_that_is_ended_by_hand_is_not_ended_again(ours, monkeypatch):
    monkeypatch.setattr(canary_metrics.time, "sleep", lambda _: ours.rollback())
    with pytest.raises(LooplineError, match="ended by hand"):
        judged(ours, hold=60).canary([])
    assert ours.status().champion.image == "r/loopline:1"


def test_an_image_that_never_served_is_no_reason_to_go_back(ours):
    ours.deploy("r/loopline:2")
    with pytest.raises(LooplineError):
        image("r/loopline:broken").canary([])
    assert "nothing to take back" in image("r/loopline:broken").rollback(None)[0]
    assert ours.status().champion.image == "r/loopline:2"


def test_verification_fails_for_an_image_that_does_not_serve_and_where_nobody_answers(ours):
    assert image("r/loopline:1").verify([]) == []
    assert image("r/loopline:2").verify([])[0] == "r/loopline:2 does not serve:"
    asked = replace(image("r/loopline:1"), url="http://127.0.0.1:9")
    with pytest.raises(LooplineError, match="no bundle to verify"):
        asked.verify([])


def test_a_whole_image_goes_back_or_nothing(ours):
    with pytest.raises(LooplineError, match="leave the model out"):
        image("r/loopline:1").rollback("text")
