"""Deploy, canary, promotion, rollback and verification by the real kubectl against a stand-in for a cluster's API server."""

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
def cluster(api):
    """A cluster after one deployment, with three servers, as if set by the autoscaler."""
    cluster = kubectl.Cluster(PRODUCTION)
    cluster.deploy("r/loopline:1")
    api.scale("champion", 3)
    api.asked.clear()
    return cluster


def test_a_deployment_applies_all_of_the_overlay_with_the_named_image(api):
    status = kubectl.Cluster(PRODUCTION).deploy("r/loopline:1")
    assert status.champion == kubectl.LaneReplicas("r/loopline:1", 1, 1)
    assert (status.challenger.replicas, status.share, status.previous) == (0, 0, "")
    assert api.asked[0] == "namespaces/loopline"  # the other objects are in the namespace
    expected = {
        (document["kind"], document["metadata"]["name"]) for document in manifests.documents("overlays/production")
    }
    assert {(content["kind"], content["metadata"]["name"]) for content in api.objects.values()} == expected
    # Without an image, the overlay's own is deployed.
    assert kubectl.Cluster(PRODUCTION).deploy().champion.image == "registry.example.com/loopline:0.1.0"


def test_the_next_deployment_keeps_the_autoscalers_replicas_and_can_be_rolled_back(cluster, api):
    status = cluster.deploy("r/loopline:2")
    assert status.champion == kubectl.LaneReplicas("r/loopline:2", 3, 3)
    assert status.previous == "r/loopline:1"
    assert cluster.deploy("r/loopline:2") == status  # a repeated deploy keeps the noted image
    back = cluster.rollback()
    assert back.champion.image == "r/loopline:1"
    assert cluster.rollback() == back  # it goes neither a second step back nor forward again
    assert cluster.verify() == back


def test_an_image_that_does_not_get_ready_never_replaces_the_champion(cluster, api):
    cluster.deploy("r/loopline:2")
    with pytest.raises(LooplineError, match=r"(?s)progress deadline.*r/loopline:2 serves again"):
        cluster.deploy("r/loopline:broken")
    status = cluster.verify()
    assert (status.champion.image, status.previous) == ("r/loopline:2", "r/loopline:1")


def test_the_first_image_that_does_not_get_ready_is_named_and_stays_for_inspection(api):
    with pytest.raises(LooplineError, match="progress deadline"):
        kubectl.Cluster(PRODUCTION).deploy("r/loopline:broken")
    with pytest.raises(LooplineError, match="champion: 0 of 1 servers of r/loopline:broken are ready"):
        kubectl.Cluster(PRODUCTION).verify()


def test_a_canary_gets_its_servers_before_its_share(cluster, api):
    status = cluster.canary(5, "r/loopline:2")
    assert status.challenger == kubectl.LaneReplicas("r/loopline:2", 1, 1)
    assert (status.champion.image, status.share) == ("r/loopline:1", 5)
    assert api.asked[-2:] == ["deployments/loopline-challenger", "httproutes/loopline"]
    assert cluster.canary(50).challenger.replicas == 2  # half of the champion's three
    assert [(ref["name"], ref["weight"]) for ref in api.route()["spec"]["rules"][1]["backendRefs"]] == [
        ("loopline-champion", 50),
        ("loopline-challenger", 50),
    ]
    others = [api.route()["spec"]["rules"][place] for place in (0, 2)]
    assert [[ref["name"] for ref in rule["backendRefs"]] for rule in others] == [["loopline-champion"]] * 2


def test_a_share_of_zero_sends_copies_of_all_requests(cluster, api):
    status = cluster.canary(0, "r/loopline:2")
    assert (status.share, status.mirrored, status.challenger.replicas) == (0, True, 3)
    (copied,) = api.route()["spec"]["rules"][1]["filters"]
    assert copied["requestMirror"]["backendRef"] == {"name": "loopline-challenger", "port": 80}
    assert not cluster.canary(5).mirrored


def test_a_challenger_that_does_not_get_ready_gets_no_request(cluster, api):
    cluster.canary(5, "r/loopline:2")
    with pytest.raises(LooplineError, match="progress deadline"):
        cluster.canary(5, "r/loopline:broken")
    status = cluster.status()
    assert (status.share, status.challenger.replicas, status.champion.image) == (0, 0, "r/loopline:1")


def test_a_promotion_ends_the_canary_once_the_champion_has_the_image(cluster, api):
    cluster.canary(50, "r/loopline:2")
    api.asked.clear()
    status = cluster.promote()
    assert status.champion == kubectl.LaneReplicas("r/loopline:2", 3, 3)
    assert (status.share, status.challenger.replicas, status.previous) == (0, 0, "r/loopline:1")
    assert api.asked == ["deployments/loopline-champion", "httproutes/loopline", "deployments/loopline-challenger"]
    assert cluster.rollback().champion.image == "r/loopline:1"
    with pytest.raises(LooplineError, match="no challenger to promote"):
        cluster.promote()


def test_an_interrupted_promotion_can_be_completed(cluster, api):
    cluster.canary(50, "r/loopline:2")
    api.fail_after = 1  # the champion has the new image, and the next change fails
    with pytest.raises(LooplineError, match="kubectl"):
        cluster.promote()
    api.fail_after = None
    status = cluster.promote()
    assert (status.champion.image, status.previous, status.share) == ("r/loopline:2", "r/loopline:1", 0)


def test_a_rollback_ends_the_canary_first_and_changes_the_route_before_the_servers(cluster, api):
    cluster.deploy("r/loopline:2")
    cluster.canary(50, "r/loopline:3")
    api.asked.clear()
    status = cluster.rollback()
    assert (status.champion.image, status.share, status.challenger.replicas) == ("r/loopline:2", 0, 0)
    assert api.asked == ["httproutes/loopline", "deployments/loopline-challenger"]


def test_a_deployment_ends_a_canary(cluster):
    cluster.canary(50, "r/loopline:2")
    status = cluster.deploy("r/loopline:3")
    assert (status.champion.image, status.share, status.challenger.replicas) == ("r/loopline:3", 0, 0)


def test_verify_lists_all_faults(cluster, api):
    cluster.canary(5, "r/loopline:2")
    api.scale("challenger", 0)
    route = api.route()
    route["spec"]["hostnames"] = ["refused.example.com"]
    api.write("httproutes", "loopline", route)
    with pytest.raises(LooplineError) as error:
        cluster.verify()
    assert str(error.value).splitlines() == [
        "challenger: it gets requests and has no servers",
        "HTTPRoute: Accepted is False: as the host says",
    ]
    route["status"] = {}
    with pytest.raises(LooplineError, match="no gateway has accepted it"):
        cluster.verify()


def test_each_impossible_request_is_refused_with_a_reason(cluster, api, tmp_path, monkeypatch):
    with pytest.raises(LooplineError, match="name its image"):
        cluster.canary(5)
    with pytest.raises(ValueError, match="from 0 to 50"):
        cluster.canary(51, "r/loopline:2")
    with pytest.raises(LooplineError, match="nothing to roll back to"):
        cluster.rollback()
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
        cluster.status()


def test_the_status_before_a_deployment_names_deploy(api):
    with pytest.raises(LooplineError, match="`deploy` creates it"):
        kubectl.Cluster(PRODUCTION).status()


def test_a_status_is_printed_with_one_line_for_each_lane(cluster):
    lines = str(cluster.canary(5, "r/loopline:2")).splitlines()
    assert lines[0].split() == ["champion", "3/3", "ready", "95", "%", "r/loopline:1"]
    assert lines[1].split() == ["challenger", "1/1", "ready", "5", "%", "r/loopline:2"]


def image(name, share=5):
    return kubernetes.Images(cluster=kubectl.Cluster(PRODUCTION), image=name, share=share)


def test_the_verbs_take_an_image_from_canary_to_champion_and_back(cluster, capsys):
    words = ["--target", "kubernetes", "--overlay", str(PRODUCTION), "--image", "r/loopline:2"]
    for verb, served in (("canary", "r/loopline:1"), ("verify", None), ("deploy", "r/loopline:2"), ("verify", None)):
        assert cli.main([verb, *words]) == 0
        if served:
            assert cluster.status().champion.image == served
    assert cluster.status().share == 0
    assert cli.main(["rollback", *words]) == 0
    assert "r/loopline:1" in capsys.readouterr().out
    assert cluster.status().champion.image == "r/loopline:1"


@pytest.fixture
def counted(api, tmp_path):
    """counted(model) starts a Prometheus in the cluster that counts both lanes of one model."""
    opened = []

    def start(model):
        exporter = lanes.Lanes([model])
        server = prometheus.Prometheus(tmp_path, [exporter.address], "")
        opened.extend([exporter, server])
        api.services["namespaces/monitoring/services/prometheus-operated:9090"] = server.url
        exporter.begin()

    yield start
    for resource in opened:
        resource.close()


WAIT = ["--wait", "--requests", "50", "--points", "3", "--scrape", "0.5", "--every", "0.2"]


@prometheus.needed
@pytest.mark.parametrize("model", ["fine", "failing"])
def test_the_judge_asks_the_clusters_prometheus_and_ends_a_canary_that_does_not_pass(
    cluster, counted, capsys, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # without bundles here, the judge looks at all models of the image
    counted(model)
    words = ["--target", "kubernetes", "--overlay", str(PRODUCTION), "--image", "r/loopline:2", *WAIT, "--hold", "60"]
    code = cli.main(["canary", *words])
    output = "".join(capsys.readouterr())
    if model == "fine":
        assert (code, cluster.status().share) == (0, 5)
        assert "the canary passed; `deploy` the same to promote it:\n  fine: errors" in output
    else:
        assert (code, cluster.status().share, cluster.status().challenger.replicas) == (1, 0, 0)
        assert "did not pass; the champion serves all requests:\n  failing: errors" in output


def judged(cluster, hold=0.1):
    return kubernetes.Images(cluster=cluster, image="r/loopline:2", plan=RolloutPlan(hold=hold, every=0.1), scrape=0.1)


def test_without_prometheus_no_canary_passes(cluster):
    with pytest.raises(LooplineError, match=r"(?s)no verdict within 0.1 s.*kubectl get: .*NotFound"):
        judged(cluster).canary([])
    assert cluster.status().share == 0


def test_a_canary_that_was_ended_by_hand_is_not_ended_again(cluster, monkeypatch):
    monkeypatch.setattr(canary_metrics.time, "sleep", lambda _: cluster.rollback())
    with pytest.raises(LooplineError, match="ended by hand"):
        judged(cluster, hold=60).canary([])
    assert cluster.status().champion.image == "r/loopline:1"


def test_a_rollback_of_an_image_that_never_served_changes_nothing(cluster):
    cluster.deploy("r/loopline:2")
    with pytest.raises(LooplineError):
        image("r/loopline:broken").canary([])
    assert "nothing to take back" in image("r/loopline:broken").rollback(None)[0]
    assert cluster.status().champion.image == "r/loopline:2"


def test_verification_fails_for_an_image_that_does_not_serve_and_without_bundles(cluster):
    assert image("r/loopline:1").verify([]) == []
    assert image("r/loopline:2").verify([])[0] == "r/loopline:2 does not serve:"
    with_url = replace(image("r/loopline:1"), url="http://127.0.0.1:9")
    with pytest.raises(LooplineError, match="no bundle to verify"):
        with_url.verify([])


def test_a_rollback_of_one_model_is_refused(cluster):
    with pytest.raises(LooplineError, match="leave the model out"):
        image("r/loopline:1").rollback("text")
