"""Grafana's files are current, query only exported series, and equal Prometheus' rules; a second push changes nothing.

No Grafana runs here: docs/grafana.md describes its stand-in.
"""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grafana_api
import prometheus
import pytest
import series
import yaml

from loopline import retraining
from loopline.errors import LooplineError
from loopline.journal import collector
from loopline.observability import rules
from loopline.observability.grafana import alerting, dashboards, provisioning, push
from loopline.server.metrics import CATALOGUE, Metrics

ROOT = Path(__file__).parents[2]
FILES = ROOT / "monitoring/grafana"
UIDS = ("loopline-overview", "loopline-service", "loopline-drift", "loopline-retraining")
SCHEMA, TYPESCRIPT = "13.2.3", "5.9.3"  # of npm's @grafana/schema and typescript
KNOWN = series.known()


def read(name):
    return yaml.safe_load((FILES / "provisioning" / name).read_text(encoding="utf-8"))


def content(uid):
    return json.loads((FILES / "dashboards" / f"{uid}.json").read_text(encoding="utf-8"))


def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(board):
    """The queries of panels and variables: [(title or $variable, PromQL)]."""
    pairs = [(panel["title"], target["expr"]) for panel in panels(board) for target in panel["targets"]]
    for variable in board["templating"]["list"]:
        match = re.fullmatch(r"(?:label_values\((.*), (\w+)\)|query_result\((.*)\))", variable["query"])
        assert match, f"${variable['name']}: {variable['query']}"
        pairs.append((f"${variable['name']}", match[3] or f"count by ({match[2]}) ({match[1]})"))
    return pairs


def dead(board):
    """The mistakes in the queries of panels and variables: series that nobody exports."""
    return [f"{where}: {reason}" for where, expr in queries(board) for reason in series.problems(expr, KNOWN)]


def alerts():
    return [(group, rule) for group in read("alerting/rules.yml")["groups"] for rule in group["rules"]]


# Files


def test_the_committed_files_are_current(tmp_path):
    written = provisioning.write(tmp_path)
    for path in written:
        name = path.relative_to(tmp_path)
        assert (FILES / name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), (
            f"run `loopline grafana write`: {name}"
        )
    assert {path for path in FILES.rglob("*") if path.is_file()} == {
        FILES / path.relative_to(tmp_path) for path in written
    }


def test_no_file_holds_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRAINER_SECRET", "hunter2")
    monkeypatch.setenv("GRAFANA_TOKEN", "glsa_hunter2")
    for path in provisioning.write(tmp_path):
        text = path.read_text(encoding="utf-8")
        assert "hunter2" not in text
        assert not re.search(r"(?i)password|bearer|glsa_|api.?key|token", text), path
        for value in re.findall(r"(?im)^\s*(?:secret|url): (.*)$", text):
            assert re.fullmatch(r"\$[A-Z_]+", value), f"{path}: {value} is no environment variable"


def test_the_files_refer_to_each_other_correctly():
    source = read("datasources/loopline.yml")["datasources"][0]["uid"]
    named = set(re.findall(r'"uid": "([^"]+)"', "".join(map(json.dumps, map(content, UIDS)))))
    assert named == {source, "-- Grafana --", *UIDS}
    assert {query["datasourceUid"] for _, rule in alerts() for query in rule["data"]} == {source, "__expr__"}
    (point,), (policy,) = (
        read("alerting/contact-points.yml")["contactPoints"],
        read("alerting/policies.yml")["policies"],
    )
    (route,) = policy["routes"]
    assert route["receiver"] == point["name"] != policy["receiver"]
    assert route["object_matchers"] == [["severity", "=", "retrain"]]
    assert "retrain" in {rule["labels"]["severity"] for _, rule in alerts()}
    assert point["receivers"][0]["settings"]["hmacConfig"].keys() == {"secret", "header", "timestampHeader"}


# Dashboards


@pytest.mark.parametrize("uid", UIDS)
def test_panels_and_variables_query_only_exported_series(uid):
    assert len(queries(content(uid))) > 15
    assert dead(content(uid)) == []


@pytest.mark.parametrize(
    ("was", "now", "problem"),
    [
        ("loopline_shed_total", "loopline_sheds_total", "loopline_sheds_total is exported by nobody"),
        ("sum by (model, reason)", "sum by (model, cause)", "loopline_shed_total has no label cause"),
        ("loopline_queue_items{", 'loopline_queue_items{queue="1",', "loopline_queue_items has no label queue"),
        ("process_open_fds", "process_files", "process_files is exported by nobody"),
        ("label_values(loopline_model_info, model)", "label_values(loopline_model_info, name)", "no label name"),
    ],
)
def test_a_query_of_a_missing_series_is_detected(was, now, problem):
    text = json.dumps(content("loopline-service"))
    was, now = json.dumps(was)[1:-1], json.dumps(now)[1:-1]
    assert was in text
    reasons = dead(json.loads(text.replace(was, now)))
    assert reasons and any(problem in reason for reason in reasons)


@pytest.mark.parametrize("uid", UIDS)
def test_dashboards_have_tags_titles_units_and_descriptions(uid):
    board = content(uid)
    assert (board["uid"], board["tags"]) == (uid, ["loopline"])
    assert board["title"].startswith("Loopline / ") and board["description"]
    assert board["links"][0]["tags"] == board["annotations"]["list"][0]["target"]["tags"] == ["loopline"]
    assert "model" in {variable["name"] for variable in board["templating"]["list"]}
    assert [panel["id"] for panel in board["panels"]] == list(range(1, len(board["panels"]) + 1))
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles)
    for panel in panels(board):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["type"] in ("table", "heatmap") or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
            assert named <= series.labels(target["expr"], KNOWN) | {"le"}, (
                f"{panel['title']}: the legend names a label that the query lacks"
            )
    corners = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(corners) == len(board["panels"])
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in board["panels"])


def line(uid, title):
    """The value at which a panel's colour changes."""
    (panel,) = (panel for panel in panels(content(uid)) if panel["title"] == title)
    return panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"]


def test_threshold_lines_equal_the_objectives_of_the_rules():
    assert line("loopline-overview", "Requests that are not answered") == round(1 - rules.AVAILABILITY, 6)
    assert line("loopline-overview", "Slow answers") == round(1 - rules.FAST_ENOUGH, 6)
    assert line("loopline-service", "Latency: half and 99 of 100 are faster") == rules.LATENCY
    assert line("loopline-overview", "Oldest model") == rules.STALE_DAYS * 86400
    assert f"over {rules.LATENCY * 1000:.0f} ms," in json.dumps(content("loopline-overview"))


# Alerts


def test_alerts_equal_those_of_prometheus():
    in_grafana = {rule["title"]: (group, rule) for group, rule in alerts()}
    in_prometheus = {
        rule["alert"]: (group, rule)
        for group in rules.prometheus()["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert in_grafana.keys() == in_prometheus.keys()
    for name, (group, rule) in in_grafana.items():
        original_group, original = in_prometheus[name]
        assert group["name"] == original_group["name"]
        assert rules.seconds(group["interval"]) == rules.seconds(original_group["interval"])
        assert rule["data"][0]["model"]["expr"] == original["expr"]
        assert (rule["for"], rule["keepFiringFor"]) == (
            original.get("for", "0s"),
            original.get("keep_firing_for", "0s"),
        )
        assert rule["labels"] == original["labels"]
        assert rule["annotations"]["runbook_url"] == original["annotations"]["runbook_url"]


def test_an_alert_fires_on_every_series_and_lasts_as_long_as_with_prometheus():
    for group, rule in alerts():
        query, exists, fires = rule["data"]
        assert query["model"]["instant"] and not query["model"]["range"]
        assert "is_number($A)" in exists["model"]["expression"]  # `up == 0` has the value 0, and must fire
        assert fires["model"]["expression"] == exists["refId"] and rule["condition"] == fires["refId"]
        assert (rule["noDataState"], rule["execErrState"]) == ("OK", "Error")
        interval = rules.seconds(group["interval"])
        assert interval % 10 == 0
        keep = 0 if rule["keepFiringFor"] == "0s" else rules.seconds(rule["keepFiringFor"])
        assert (rule["missing_series_evals_to_resolve"] - 1) * interval >= keep
    uids = [rule["uid"] for _, rule in alerts()]
    assert len(set(uids)) == len(uids) and all(map(grafana_api.UID.fullmatch, uids))


def test_grafana_reads_every_field_of_the_rules_and_fills_in_none():
    """Grafana drops unknown fields without an error, and takes $NAME outside of annotations and queries for a variable."""
    fields = "uid title condition data noDataState execErrState for keepFiringFor missing_series_evals_to_resolve"
    for group, rule in alerts():
        assert group.keys() == {"orgId", "name", "folder", "interval", "rules"}
        assert rule.keys() == {*fields.split(), "labels", "annotations"}
        for query in rule["data"]:
            assert query.keys() == {"refId", "relativeTimeRange", "datasourceUid", "model"}
        rest = {key: value for key, value in rule.items() if key not in ("annotations", "data")}
        assert "$" not in json.dumps(rest)


def test_a_short_window_has_intervals_that_grafana_can_schedule():
    assert [group["interval"] for group in alerting.groups(window="1m")] == ["30s", "10s"]


def test_alert_texts_are_templates_that_grafana_can_fill_in():
    for _, rule in alerts():
        has = series.labels(rule["data"][0]["model"]["expr"], KNOWN)
        for text in (rule["annotations"]["summary"], rule["annotations"]["description"]):
            assert "query" not in text and "range" not in text and "$value " not in text.replace("}", " ")
            assert "$" not in re.sub(r"\$labels\.\w+|\$values\.A\.Value", "", text)
            assert series.in_template(text, has, KNOWN) == []
            assert "${" not in text  # Grafana would take it for an environment variable
    drifted = next(rule for _, rule in alerts() if rule["title"] == "DriftWarning")["annotations"]["description"]
    assert drifted == (
        'Version {{ $labels.version }}, score {{ printf "%.2f" $values.A.Value }} (alarm over 1).'
        " More is on the dashboard Loopline / Drift."
    )


# A real Prometheus


class Everything:
    """A server and its helpers that export every series; `step` raises the counters."""

    LABELS = {"route": ["predict"], "code": ["200", "415", "503"], "term": ["constant", "small", "large"]}  # noqa: RUF012
    LABELS |= {"bin": ["00", "01", "nan"], "estimate": ["confidence", "atc"]}

    def __init__(self):
        self.target, self.metrics, self.looks = prometheus.Target(), Metrics(), 0
        self.step()

    def step(self):
        self.looks += 1
        for metric in CATALOGUE.values():
            for labels in itertools.product(*(self.LABELS.get(label, [f"a-{label}"]) for label in metric.labels)):
                if metric.kind == "histogram":
                    self.metrics.histogram(metric.name, *labels).observe(0.1)
                else:
                    self.metrics.value(metric.name, *labels).value += 40 if metric.kind == "counter" else 1
        sentinel = 'loopline_sentinel_checks_total{model="a-model",version="a-version",result="same"} '
        others = {name: labels for name, (*_, labels) in (collector.METRICS | retraining.METRICS).items()}
        others |= {name: sorted(labels) for name, labels in series.GATEWAY.items()}
        values = {"result": "failed", "proxy": "challenger", "code": "5xx"}
        labelled = ""
        for name, labels in others.items():
            pairs = ",".join(f'{label}="{values.get(label, f"a-{label}")}"' for label in labels)
            labelled += f"{name}{{{pairs}}} {self.looks}\n"
        self.target.text = self.metrics.exposition()[0].decode() + labelled + f"{sentinel}{self.looks}\n"


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    everything = Everything()
    often = re.sub(r"interval: \w+", "interval: 1s", rules.text())
    server = prometheus.Prometheus(tmp_path_factory.mktemp("prometheus"), [everything.target.address], often)
    yield server, everything
    server.close()
    everything.target.close()


def filled(expr):
    """The query that Grafana sends after it has filled in its variables."""
    for variable, value in {
        "$__rate_interval": "10s",
        "$model": "a-model",
        "$version": "a-version",
        "$signal": "a-signal",
    }.items():
        expr = expr.replace(variable, value)
    assert "$" not in expr
    return expr


@prometheus.needed
def test_prometheus_can_read_every_query(live):
    server, _ = live
    everything = [pair for uid in UIDS for pair in queries(content(uid))]
    everything += [(rule["title"], rule["data"][0]["model"]["expr"]) for _, rule in alerts()]
    assert len(everything) > 70
    for where, expr in everything:
        try:
            server.query(filled(expr))
        except OSError as error:
            pytest.fail(f"{where}: {expr}: {error.read().decode()}")
    with pytest.raises(OSError, match="400"):
        server.query("sum by (model (loopline_ready)")


@prometheus.needed
def test_every_panel_shows_something_where_every_series_is_exported(live):
    server, everything = live
    left = {expr: f"{uid}, {where}" for uid in UIDS for where, expr in queries(content(uid))}

    def shown():
        everything.step()
        for expr in [expr for expr in left if server.query(filled(expr))]:
            del left[expr]
        return not left

    try:
        prometheus.eventually(shown, seconds=40)
    except AssertionError:
        pytest.fail(f"empty: {left}")
    assert server.query("loopline_nothing_total") == []


# Types


@pytest.mark.skipif(
    not (shutil.which("npm") or os.environ.get("LOOPLINE_REQUIRE_NPM")),
    reason="no npm on this machine to fetch the types with",
)
def test_dashboards_have_the_types_of_grafanas_schema(tmp_path):
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    packages = [f"@grafana/schema@{SCHEMA}", f"typescript@{TYPESCRIPT}"]
    (tmp_path / "package.json").write_text("{}")
    fetched = subprocess.run([*install, *packages], cwd=tmp_path, capture_output=True, text=True)
    if fetched.returncode and not os.environ.get("LOOPLINE_REQUIRE_NPM"):
        pytest.skip(f"npm cannot fetch the types: {fetched.stderr[-200:]}")
    assert fetched.returncode == 0, fetched.stderr

    def problems(boards):
        (tmp_path / "check.ts").write_text(typed(boards), encoding="utf-8")
        options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--moduleResolution", "nodenext"]
        done = subprocess.run(
            ["node_modules/.bin/tsc", *options, "check.ts"], cwd=tmp_path, capture_output=True, text=True
        )
        return done.stdout

    assert problems([content(uid) for uid in UIDS]) == ""
    for spoil in (
        lambda board: panels(board)[0]["fieldConfig"]["defaults"].update(unit=5),
        lambda board: panels(board)[0]["options"]["legend"].update(placement="left"),
        lambda board: panels(board)[0].update(titel="x"),
    ):
        wrong = content("loopline-service")
        spoil(wrong)
        assert "error TS" in problems([wrong])


def typed(boards):
    """A TypeScript program that type-checks if and only if the dashboards have the right types."""
    raw = "@grafana/schema/dist/esm/raw"
    kinds = ("TimeSeries", "Stat", "Table", "BarChart", "Heatmap")
    lines = [f"import type {{ Dashboard }} from '{raw}/dashboard/x/Dashboard_types.gen';"]
    for kind in kinds:
        name = kind.lower()
        lines.append(f"import type * as {name} from '{raw}/composable/{name}/panelcfg/x/{kind}PanelCfg_types.gen';")
    # JSON has the values of TypeScript's enums, not the enums.
    enums = "T extends string ? `${T}` : T extends (infer U)[] ? Json<U>[]"
    lines.append(f"type Json<T> = {enums} : T extends object ? {{ [K in keyof T]: Json<T[K]> }} : T;")
    for board in boards:
        lines.append(f"export const board{len(lines)}: Json<Dashboard> = {json.dumps(board)};")
        for panel in panels(board):
            kind, custom = panel["type"], panel.get("fieldConfig", {}).get("defaults", {}).get("custom")
            lines.append(
                f"export const of{len(lines)}: Partial<Json<{kind}.Options>> = {json.dumps(panel['options'])};"
            )
            if custom:
                lines.append(f"export const of{len(lines)}: Partial<Json<{kind}.FieldConfig>> = {json.dumps(custom)};")
    return "\n".join(lines)


# Push, annotate, export


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setenv("RETRAINER_URL", "http://retrainer:8090/alerts")
    monkeypatch.setenv("RETRAINER_SECRET", "hunter2")
    server = grafana_api.Grafana()
    yield server
    server.close()


def pushed(api, **options):
    return push.push(api.url, grafana_api.TOKEN, **options)


def test_a_push_makes_everything(api):
    assert all(line.endswith((": made", ": written")) for line in pushed(api))
    assert {uid: board["dashboard"]["title"] for uid, board in api.dashboards.items()}.keys() == set(UIDS)
    kept = {rule["title"]: rule for group in api.groups.values() for rule in group["rules"]}
    by_name = {alert_rule.name: alert_rule for group in rules.groups() for alert_rule in group.alerts}
    assert kept.keys() == by_name.keys()
    for name, rule in kept.items():  # Grafana drops unknown fields, so these must have the API's names
        assert (rule["for"], rule["keep_firing_for"]) == (by_name[name].hold, by_name[name].keep)
        assert rule["missingSeriesEvalsToResolve"] >= 1 and rule["provenance"] == ""
    assert api.points["loopline-retrainer"]["settings"]["hmacConfig"]["secret"] == "hunter2"
    assert api.policies["receiver"] == "empty", "the default stays"
    assert api.policies["routes"] == [alerting.route()]


def test_a_second_push_changes_nothing(api):
    pushed(api)
    before, api.writes = api.state(), []
    lines = pushed(api)
    assert api.state() == before
    assert api.writes == ["PUT /api/v1/provisioning/contact-points/loopline-retrainer"]  # its secret can't be compared
    assert all("unchanged" in line for line in lines)


def test_a_push_restores_changed_parts_and_leaves_those_of_others(api):
    pushed(api)
    before = api.state()
    api.dashboards["loopline-drift"]["dashboard"]["panels"][0]["title"] = "mine"
    del api.groups["loopline-drift"]["rules"][0]
    api.policies = {**api.default, "routes": [{"receiver": "empty", "object_matchers": [["team", "=", "blue"]]}]}
    api.dashboards["theirs"] = {"dashboard": {"uid": "theirs", "title": "Theirs"}, "meta": {}}
    written = [line for line in pushed(api) if line.endswith(": written")]
    assert written == [
        "dashboard Loopline / Drift: written",
        "alert rules loopline-drift: written",
        "notification policy: written",
    ]
    assert api.state()[2] == before[2]
    assert api.dashboards["loopline-drift"]["dashboard"]["panels"] == content("loopline-drift")["panels"]
    assert api.dashboards["theirs"]["dashboard"]["title"] == "Theirs"
    assert [route["receiver"] for route in api.policies["routes"]] == ["loopline-retrainer", "empty"]


def test_without_a_retrainer_its_contact_point_and_policy_are_left_out(api, monkeypatch):
    monkeypatch.delenv("RETRAINER_URL")
    assert "contact point: left out, RETRAINER_URL is not set" in pushed(api)
    assert (api.points, api.policies) == ({}, api.default)


def test_an_unsigned_webhook_is_refused_before_anything_is_written(api, monkeypatch):
    monkeypatch.delenv("RETRAINER_SECRET")
    with pytest.raises(LooplineError, match="RETRAINER_SECRET is not set"):
        pushed(api)
    assert api.writes == []


def test_another_data_source_can_be_named(api):
    api.sources = {"mimir"}
    with pytest.raises(LooplineError, match="no data source with the uid loopline-prometheus"):
        pushed(api)
    assert api.writes == []
    pushed(api, source="mimir")
    text = json.dumps(api.state())
    assert "loopline-prometheus" not in text and '"datasourceUid": "mimir"' in text


def test_annotations_carry_the_tag_loopline(api):
    pushed(api)
    assert push.annotate(api.url, grafana_api.TOKEN, "classifier 0a1b serves", ["deployment", "classifier"]) == 1
    assert push.annotate(api.url, grafana_api.TOKEN, "rolled back", dashboard="loopline-drift") == 2
    assert [(annotation["text"], annotation["tags"]) for annotation in api.annotations] == [
        ("classifier 0a1b serves", ["loopline", "deployment", "classifier"]),
        ("rolled back", ["loopline"]),
    ]
    assert api.annotations[1]["dashboardUID"] == "loopline-drift"
    with pytest.raises(LooplineError, match="404: Dashboard not found"):
        push.annotate(api.url, grafana_api.TOKEN, "x", dashboard="nothing")


def test_an_export_has_the_pushed_dashboards_with_later_edits(api, tmp_path):
    pushed(api)
    api.dashboards["loopline-drift"]["dashboard"]["title"] = "Loopline / Drift of mine"
    api.dashboards["theirs"] = {"dashboard": {"uid": "theirs", "title": "Theirs", "tags": []}, "meta": {}}
    written = push.export(api.url, grafana_api.TOKEN, tmp_path)
    assert {path.name for path in written} == {f"{uid}.json" for uid in UIDS}
    for uid in UIDS[:2]:
        assert (tmp_path / "dashboards" / f"{uid}.json").read_bytes() == (
            FILES / "dashboards" / f"{uid}.json"
        ).read_bytes()
    changed = dashboards.text({**content("loopline-drift"), "title": "Loopline / Drift of mine"})
    assert (tmp_path / "dashboards/loopline-drift.json").read_text(encoding="utf-8") == changed


def test_an_export_writes_into_its_folder_alone(api, tmp_path):
    api.dashboards["x"] = {"dashboard": {"uid": "../x", "title": "X", "tags": ["loopline"]}, "meta": {}}
    with pytest.raises(LooplineError, match="makes no file name"):
        push.export(api.url, grafana_api.TOKEN, tmp_path / "here")
    assert list(tmp_path.rglob("*.json")) == []


# Errors


def test_a_wrong_token_and_a_weak_one_are_told_apart(api):
    with pytest.raises(LooplineError, match=r"401: Invalid API key \(the token in GRAFANA_TOKEN"):
        push.push(api.url, "glsa_wrong")
    api.allowed = "GET .*"
    with pytest.raises(LooplineError, match=r"403: You'll need .* \(the token in GRAFANA_TOKEN may not"):
        pushed(api)
    assert api.writes == []


def test_a_push_does_not_take_over_what_others_provisioned(api):
    api.folders["loopline"] = {"uid": "loopline", "title": "Loopline"}
    api.provenance["group loopline-service"] = "file"
    with pytest.raises(LooplineError, match=r"409: cannot change provenance from 'file' to '' \(.*provisioned"):
        pushed(api)


def test_an_unreachable_grafana_is_an_error(api):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(LooplineError, match=f"{url} cannot be reached"):
        push.push(url, grafana_api.TOKEN)
    with pytest.raises(LooplineError, match="no address of a Grafana"):
        push.push("grafana.example.org", grafana_api.TOKEN)


@pytest.mark.parametrize(
    ("status", "kind", "body", "message"),
    [
        (200, "text/html", b"<html>Log in</html>", "not as a Grafana does"),
        (200, "application/json", b"{not json", "not as a Grafana does"),
        (200, "application/json", b"{}", "not as a Grafana does"),
        (502, "text/plain", b"bad gateway", "failed: Server Error 502: bad gateway"),
        (418, "application/json", b'{"message": "a teapot"}', "refuses with 418: a teapot"),
    ],
)
def test_another_server_at_the_address_is_an_error(status, kind, body, message):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with pytest.raises(LooplineError, match=message):
            push.push(f"http://127.0.0.1:{server.server_port}", grafana_api.TOKEN)
    finally:
        server.shutdown()
        server.server_close()
