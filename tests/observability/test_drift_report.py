"""`loopline drift report`: its numbers are those of the statistic, and its page loads nothing else."""

import json
import re
import subprocess
import time
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import brightness
import browser
import numpy as np
import prometheus
import pytest
import test_drift
import test_watch

from loopline.drift import reference as drift
from loopline.drift import statistic, verdict
from loopline.errors import LooplineError
from loopline.observability import drift_report, prometheus_api
from loopline.release import bundle
from loopline.stages import calibrate

CLEAN = test_drift.population(600, 1)[0]
DRIFTED = test_drift.population(600, 2, sure=-0.25, brightness=2)[0]
VOID = {"meta", "rect"}


class Page(HTMLParser):
    """The tags of a page, which must be closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


def cards(page):
    """The (signal, score, shift, samples) of each card on the page, in its order."""
    matches = re.findall(
        r"<h3>(.*?)</h3><span class=\"score\">(.*?)</span>.*?shift ([\d.]+).*?n&nbsp;(\d+)", page, re.DOTALL
    )
    return [(name, float(score), float(shift), int(n)) for name, score, shift, n in matches]


def made(folder, reference, labels=("a", "b", "c"), card="# it\n\nLearned from **digits** & <more>.\n"):
    folder.mkdir(parents=True)
    (folder / "it.onnx").write_bytes(b"a graph")
    (folder / "it.json").write_text(json.dumps(reference.to_dict()))
    described = brightness.described(labels=labels)
    return bundle.write(folder / "bundle", described, model=folder / "it.onnx", drift=folder / "it.json", card=card)


@pytest.fixture(scope="module")
def reference():
    return test_drift.made()


@pytest.fixture(scope="module")
def released(tmp_path_factory, reference):
    return made(tmp_path_factory.mktemp("bundles") / "one", reference)


@pytest.fixture(scope="module")
def server(tmp_path_factory, released, reference):
    """A Prometheus that scraped, until the time `now`, the bundle's drifted traffic, another version, and a text model once."""
    folder, now = tmp_path_factory.mktemp("prometheus"), time.time()
    text = [
        *test_watch.lines("classifier", released.version[:12], reference, DRIFTED, now),
        *test_watch.lines("classifier", test_watch.OLD, reference, CLEAN, now),
        *test_watch.lines("text", test_watch.OLD, reference, CLEAN, now, parts=0),
    ]
    (folder / "past.txt").write_text("\n".join([*text, "# EOF\n"]))
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "past.txt", "data"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    started = prometheus.Prometheus(folder, [], "groups: []")
    started.now = datetime.fromtimestamp(now, UTC)
    yield started
    started.close()


@pytest.fixture
def target(released, reference):
    """A server's /metrics after clean traffic."""
    exporter = prometheus.Target()
    last = list(test_watch.lines("classifier", released.version[:12], reference, CLEAN, 0))
    exporter.text = "\n".join(line.rsplit(" ", 1)[0] for line in last if line.endswith(" 0.000")) + "\n"
    yield exporter
    exporter.close()


def page(released, reference, signals):
    return drift_report.html(released, reference, test_drift.counted(signals, reference), "From a test.")


# Counts


@prometheus.needed
def test_the_page_shows_the_statistic_of_the_counts_in_prometheus(server, released, reference, tmp_path):
    sentence = drift_report.make(released.folder, tmp_path / "page.html", prometheus=server.url, at=server.now)
    text = (tmp_path / "page.html").read_text()
    counts = prometheus_api.window(
        server.url, "classifier", released.version[:12], reference, at=server.now.timestamp()
    )
    movers = statistic.movers(counts, reference)
    assert movers[0].score > 1
    expected = [(m.signal, pytest.approx(m.score, abs=0.006), pytest.approx(m.shift, abs=0.006), m.n) for m in movers]
    assert cards(text) == expected
    assert sentence in Page(text).texts
    assert f"{movers[0].score:.2f}" in sentence
    assert server.now.strftime("%Y-%m-%d %H:%M:%S UTC") in text
    expected_counts = test_drift.counted(DRIFTED, reference)
    for name, row in counts.items():
        # Prometheus extrapolates to the window's ends, here by at most half a sample's distance.
        np.testing.assert_allclose(row.sum(), 600, rtol=0.05)
        np.testing.assert_allclose(row / row.sum(), expected_counts[name] / expected_counts[name].sum(), atol=0.01)


@prometheus.needed
def test_another_window_has_other_counts(server, released, reference):
    key = (server.url, "classifier", released.version[:12], reference)
    short, long = (
        prometheus_api.window(*key, at=server.now.timestamp(), window=w)["brightness"].sum() for w in ("15m", "1h")
    )
    assert 100 < short < long / 2


@prometheus.needed
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"at": timedelta(days=1)}, "has no drift signals of any model"),
        ({"window": "an hour"}, "refuses the query"),
    ],
)
def test_an_empty_or_malformed_window_is_an_error_and_leaves_no_page(server, released, tmp_path, asked, message):
    asked = asked | ({"at": server.now - asked["at"]} if "at" in asked else {})
    with pytest.raises(LooplineError, match=message):
        drift_report.make(released.folder, tmp_path / "page.html", prometheus=server.url, **asked)
    assert list(tmp_path.iterdir()) == []


@prometheus.needed
def test_the_error_for_a_missing_model_or_version_names_those_present(server, reference):
    asked = {"at": server.now.timestamp()}
    with pytest.raises(LooplineError, match="no drift signals of speech, but of classifier, text"):
        prometheus_api.window(server.url, "speech", "v", reference, **asked)
    with pytest.raises(LooplineError, match="has text in version aaaaaaaaaaaa; the bundle's is bbbbbbbbbbbb"):
        prometheus_api.window(server.url, "text", test_watch.NEW, reference, **asked)


@prometheus.needed
def test_a_version_scraped_once_has_no_increase_and_no_verdict(server, reference):
    counts = prometheus_api.window(server.url, "text", test_watch.OLD, reference, at=server.now.timestamp())
    assert all(not row.any() for row in counts.values())
    assert verdict.sentence(verdict.judge(counts, reference), reference).startswith("No verdict: 0 samples")


def test_a_servers_own_counts_are_exact(target, released, reference, tmp_path):
    url = f"http://{target.address}"
    counts = prometheus_api.since_start(url, "classifier", released.version[:12], reference)
    expected = test_drift.counted(CLEAN, reference)
    assert all(row.tolist() == expected[name].tolist() for name, row in counts.items())
    assert drift_report.make(released.folder, tmp_path / "page.html", url=url).startswith("No drift")
    assert "since its start" in (tmp_path / "page.html").read_text()


def test_a_server_of_another_version_or_kind_is_an_error(target, released, reference):
    url = f"http://{target.address}"
    with pytest.raises(LooplineError, match=f"in version {released.version[:12]}; the bundle's is v9"):
        prometheus_api.since_start(url, "classifier", "v9", reference)
    target.text = "up 1\n"
    with pytest.raises(LooplineError, match="a Loopline server"):
        prometheus_api.since_start(url, "classifier", released.version[:12], reference)
    target.text = "<html>welcome</html>"
    with pytest.raises(LooplineError, match="not in the format that Prometheus reads"):
        prometheus_api.since_start(url, "classifier", released.version[:12], reference)


def test_bins_that_the_reference_does_not_have_are_an_error(target, released, reference):
    target.text = target.text.replace('bin="00"', 'bin="99"')
    with pytest.raises(LooplineError, match="bin 99 was counted"):
        prometheus_api.since_start(f"http://{target.address}", "classifier", released.version[:12], reference)


def test_an_unreachable_address_leaves_no_page(released, tmp_path):
    url = f"http://127.0.0.1:{prometheus.free_port()}"
    for source in ({"url": url}, {"prometheus": url}):
        with pytest.raises(LooplineError, match="cannot be reached"):
            drift_report.make(released.folder, tmp_path / "page.html", **source)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_bundle_is_an_error(tmp_path):
    with pytest.raises(LooplineError, match="is not a bundle"):
        drift_report.make(tmp_path, tmp_path / "page.html")


# Verdicts


@pytest.mark.parametrize(
    ("signals", "words", "title"),
    [
        (CLEAN, "No drift: the score is", "No drift"),
        (DRIFTED, "Drift, and the model is worse on it: the score is", "Drift"),
        (CLEAN | {"bytes": np.full(600, 90.0)}, "Drift, and no harm is estimated: the score is", "Drift"),
        ({name: row[:31] for name, row in DRIFTED.items()}, "No verdict: 31 samples in the window, 50", "No verdict"),
        ({name: row[:0] for name, row in DRIFTED.items()}, "No verdict: 0 samples in the window, 50", "No verdict"),
    ],
)
def test_the_verdict_is_one_sentence_with_its_numbers(released, reference, signals, words, title):
    text = page(released, reference, signals)
    sentence = re.search(r'<p class="verdict \w+">(.*?)</p>', text)[1]
    assert sentence.startswith(words)
    assert sentence.count(". ") == 0
    assert f"<title>{title}: classifier</title>" in text
    if title != "No verdict":
        assert "from 600 samples" in sentence
        assert "10 % of streams of 3 windows" in sentence  # the promise of the reference
        assert len(cards(text)) == len(reference.signals)
        assert [score for _, score, _, _ in cards(text)] == sorted((s for _, s, _, _ in cards(text)), reverse=True)
    else:
        assert cards(text) == []
        assert "Estimated" not in text


def test_the_loss_comes_from_the_mean_of_both_estimates(reference):
    finding = verdict.judge(test_drift.counted(DRIFTED, reference), reference)
    assert finding.harm.estimates.keys() == {"confidence", "atc"}
    assert finding.harm.loss == pytest.approx(reference.quality.value - np.mean(list(finding.harm.estimates.values())))
    assert finding.harmful
    assert finding.harm.loss > finding.harm.limit > reference.quality.max_loss


def test_a_signal_that_has_too_few_samples_is_named_with_the_reason(released, reference):
    counts = test_drift.counted(CLEAN, reference)
    counts |= {"bytes": np.zeros_like(counts["bytes"]), "contrast": counts["contrast"] // 60}
    text = drift_report.html(released, reference, counts, "")
    assert "<li>no request carried it: bytes</li>" in text
    few = int(counts["contrast"].sum())
    assert 0 < few < reference.least
    assert f"<li>{few} samples, {reference.least} are needed: contrast</li>" in text
    assert {"bytes", "contrast"}.isdisjoint(name for name, *_ in cards(text))


def test_a_signal_without_numbers_is_drawn(released, reference):
    text = page(released, reference, CLEAN | {"brightness": np.full(600, np.nan)})
    assert cards(text)[0][0] == "brightness"
    assert "no number: 100.0 %, reference 0.0 %" in text
    assert "mean 0.0013 → –" in text


# Label shift


def classes(n, seed, shares, wrong=0.1):
    """Signals, correctness and truth of samples whose brightness depends only on the class."""
    rng = np.random.default_rng(seed)
    true = rng.choice(3, n, p=shares)
    predicted = np.where(rng.random(n) < wrong, (true + 1) % 3, true)
    sure = np.where(predicted == true, rng.uniform(0.8, 1.0, n), rng.uniform(0.4, 0.7, n))
    signals = {
        "brightness": rng.normal(true, 1, n),
        "predicted_class": predicted.astype(float),
        "top_probability": sure,
    }
    return signals, (predicted == true).astype(float), true


@pytest.fixture(scope="module")
def even():
    signals, quality, true = classes(900, 0, [1 / 3] * 3)
    options = test_drift.OPTIONS
    return calibrate.make(
        signals, quality, spec=test_drift.SPEC, metric="accuracy", targets=true, options=options, seed=0
    )


def test_label_shift_is_recognised_and_the_classes_shares_are_found(even, tmp_path):
    signals, *_ = classes(800, 5, [0.7, 0.2, 0.1])
    mix = verdict.judge(test_drift.counted(signals, even), even).mix
    np.testing.assert_allclose(mix.estimated, [0.7, 0.2, 0.1], atol=0.06)
    assert mix.further == ()
    text = page(made(tmp_path / "even", even), even, signals)
    assert "This looks like label shift" in text
    assert f"<tr><th>a</th><td>{100 * mix.before[0]:.1f} %</td><td>{100 * mix.predicted[0]:.1f} %</td>" in text


def test_a_move_beyond_what_a_new_mix_can_cause_is_not_label_shift(even, tmp_path):
    signals, *_ = classes(800, 5, [0.7, 0.2, 0.1])
    text = page(made(tmp_path / "even", even), even, signals | {"brightness": signals["brightness"] + 9})
    assert "More changed than the mix of classes: brightness moved by 1.00" in text


def test_a_loss_beyond_that_of_a_new_mix_is_not_label_shift(even, tmp_path):
    signals, *_ = classes(800, 5, [0.7, 0.2, 0.1])
    unsure = np.where(np.arange(800) % 3 == 0, 0.5, signals["top_probability"])
    text = page(made(tmp_path / "even", even), even, signals | {"top_probability": unsure})
    assert "points are lost beyond what a new mix costs" in text


def test_the_page_omits_the_mix_of_classes_if_it_did_not_move(even, tmp_path):
    text = page(made(tmp_path / "even", even), even, classes(800, 5, [1 / 3] * 3)[0])
    assert "Mix of classes" not in text


# The page


def test_the_page_loads_nothing_else(released, reference):
    parsed = Page(page(released, reference, DRIFTED))
    tags = {tag for tag, _ in parsed.tags}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "image", "use", "form"})
    names = {key for _, attributes in parsed.tags for key in attributes}
    assert names.isdisjoint({"src", "href", "srcset", "onload", "onclick"})
    assert not re.search(r"url\(|@import", drift_report.TEMPLATE.with_suffix(".css").read_text())
    assert len([tag for tag, _ in parsed.tags if tag == "article"]) == len(reference.signals)


def test_everything_is_escaped(reference, tmp_path):
    evil = '<script>alert("1")</script>'
    names = drift.ReferenceLabels(names=(evil, "b&b", "c"), confusion=())
    changed = drift.Reference.from_dict(json.loads(json.dumps(reference.to_dict() | {"labels": vars(names)})))
    released = made(tmp_path / "evil", changed, card=f"# it\n\n{evil}\n")
    text = drift_report.html(released, changed, test_drift.counted(CLEAN, changed), f"from {evil}")
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 3
    assert "b&amp;b" in text
    Page(text)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    with pytest.raises(LooplineError, match="cannot be written"):
        drift_report.write(tmp_path / "no folder" / "page.html", "new")
    (tmp_path / "page.html").mkdir()
    with pytest.raises(LooplineError, match="cannot be written"):
        drift_report.write(tmp_path / "page.html", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_page_fits_a_phone_in_light_and_dark_and_makes_no_request(released, reference, tmp_path):
    drift_report.write(tmp_path / "page.html", page(released, reference, DRIFTED))
    seen, grounds = [], set()
    with browser.chromium() as chromium:
        for scheme in ("light", "dark"):
            context = chromium.new_context(viewport=browser.PHONE, color_scheme=scheme, java_script_enabled=True)
            tab = context.new_page()
            tab.on("request", lambda sent: seen.append(sent.url))
            tab.on("console", lambda message: seen.append(message.text))
            tab.goto((tmp_path / "page.html").as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= browser.PHONE["width"]
            assert tab.locator("article svg").first.bounding_box()["height"] > 50
            grounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
            context.close()
    assert len(grounds) == 2
    assert {url.rsplit("/", 1)[1] for url in seen} == {"page.html"}
