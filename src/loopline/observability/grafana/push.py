"""Dashboards, alert rules and annotations through the HTTP API of a running Grafana.

A push first reads what Grafana has, and writes only what differs, so a second push changes nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError
from loopline.lib import credentials
from loopline.observability import rules
from loopline.observability.grafana import SOURCE, TAG, alerting

FOLDER = "loopline"  # uid of the folder in Grafana
TIMEOUT = 30.0  # seconds
HIDDEN = "[REDACTED]"  # Grafana shows this in place of a secret


def push(
    url: str,
    token: str,
    *,
    window: str = rules.WINDOW,
    runbooks: str = rules.RUNBOOKS,
    source: str = SOURCE,
) -> list[str]:
    """Replace Grafana's Loopline dashboards, alerts, contact point and policy by those of this version; return a line for each.

    source: uid of Grafana's data source for the Prometheus that scrapes Loopline. Without RETRAINER_URL, the contact point and the
    policy are left out. Raises LooplineError.
    """
    from loopline.observability.grafana import dashboards

    retrainer = _retrainer()
    with _grafana(url, token) as api:
        _check_source(api, source)
        lines = [_ensure_folder(api)]
        lines += [_push_dashboard(api, _with(source, content)) for content in dashboards.contents().values()]
        lines += [_push_group(api, _with(source, group)) for group in alerting.groups(window, runbooks)]
        lines += _push_retrainer(api, retrainer) if retrainer else ["contact point: left out, RETRAINER_URL is not set"]
    return lines


def annotate(url: str, token: str, text: str, tags: Sequence[str] = (), dashboard: str | None = None) -> int:
    """Mark the present time on all Loopline dashboards, or on that with the uid `dashboard`; return the annotation's number.

    Raises LooplineError.
    """
    with _grafana(url, token) as api:
        annotation = api.annotations.add_annotation(dashboard_uid=dashboard, tags=[TAG, *tags], text=text)
        return int(annotation["id"])


def export(url: str, token: str, folder: Path) -> list[Path]:
    """Write Grafana's dashboards with the tag `loopline` to folder/dashboards; return the paths. Raises LooplineError."""
    from loopline.observability.grafana.dashboards import text

    written = []
    with _grafana(url, token) as api:
        for dashboard in api.search.search_dashboards(tag=TAG, type_="dash-db"):
            if not re.fullmatch(r"[\w-]+", uid := str(dashboard["uid"])):
                raise LooplineError(
                    f"{url} has a dashboard with the uid {uid!r}, which makes no file name: change the uid"
                )
            content = api.dashboard.get_dashboard(uid)["dashboard"]
            path = folder / "dashboards" / f"{uid}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            stable = {key: content[key] for key in content if key not in ("id", "version")}
            path.write_text(text(stable), encoding="utf-8")
            written.append(path)
    return written


@contextmanager
def _grafana(url: str, token: str) -> Iterator[Any]:
    """Grafana's API. Its errors become a LooplineError."""
    import niquests
    from grafana_client.api import GrafanaApi
    from grafana_client.client import GrafanaClientError, GrafanaException, TokenAuth

    if not url.startswith(("http://", "https://")):
        raise LooplineError(f"{url} is no address of a Grafana: give one such as http://127.0.0.1:3000")
    auth = TokenAuth(token)  # type: ignore[no-untyped-call]
    api = GrafanaApi.from_url(url.rstrip("/") + "/", auth, TIMEOUT)
    try:
        api.health.check()["version"]  # only a Grafana answers with a version
        yield api
    except GrafanaClientError as error:
        raise LooplineError(_refusal(url, error.status_code, error.response)) from error
    except GrafanaException as error:
        raise LooplineError(f"{url} failed: {error.message}") from error
    except (niquests.exceptions.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise LooplineError(f"{url} answers, but not as a Grafana does ({error!r}): check the address") from error
    except niquests.exceptions.RequestException as error:
        raise LooplineError(f"{url} cannot be reached: {error}") from error
    finally:
        api.client.s.close()


def _refusal(url: str, status: int, answer: Any) -> str:
    message = answer.get("message", "") if isinstance(answer, dict) else str(answer)[:200]
    advice = {
        401: "the token in GRAFANA_TOKEN does not belong to this Grafana, or has expired: create a new one",
        403: "the token in GRAFANA_TOKEN may not do that: give its service account the role Admin, or for annotations Editor",
        409: "it was made in another way, by provisioned files or by hand: delete it there",
        412: "another client changed it at the same time: push again",
    }
    return f"{url} refuses with {status}: {message}" + (f" ({advice[status]})" if status in advice else "")


def _get(read: Callable[..., Any], *identifiers: str) -> Any:
    """The answer of the API's function `read`; None if Grafana answers 404."""
    from grafana_client.client import GrafanaClientError

    try:
        return read(*identifiers)
    except GrafanaClientError as error:
        if error.status_code == 404:
            return None
        raise


def _check_source(api: Any, source: str) -> None:
    if _get(api.datasource.get_datasource_by_uid, source) is None:
        raise LooplineError(f"Grafana has no data source with the uid {source}: make one, or name yours with --source")


def _ensure_folder(api: Any) -> str:
    if _get(api.folder.get_folder, FOLDER):
        return f"folder {alerting.FOLDER}: unchanged"
    api.folder.create_folder(alerting.FOLDER, FOLDER)
    return f"folder {alerting.FOLDER}: made"


def _push_dashboard(api: Any, content: dict[str, Any]) -> str:
    name = f"dashboard {content['title']}"
    present = _get(api.dashboard.get_dashboard, content["uid"])
    if present and _covers(present["dashboard"], content) and present["meta"].get("folderUid") == FOLDER:
        return f"{name}: unchanged"
    body = {
        "dashboard": {**content, "id": None},
        "folderUid": FOLDER,
        "overwrite": True,
        "message": "loopline grafana push",
    }
    api.dashboard.update_dashboard(body)
    return f"{name}: written"


def _push_group(api: Any, group: dict[str, Any]) -> str:
    name = f"alert rules {group['name']}"
    content = _api_group(group)
    present = _get(api.alertingprovisioning.get_rule_group, FOLDER, group["name"])
    if present and _covers(present, content):
        return f"{name}: unchanged"
    api.alertingprovisioning.update_rule_group(FOLDER, group["name"], content, disable_provenance=True)
    return f"{name}: written"


def _api_group(group: dict[str, Any]) -> dict[str, Any]:
    """A rule group with the API's names, which differ from those in files. Grafana drops unknown names without an error."""
    renamed = {"keepFiringFor": "keep_firing_for", "missing_series_evals_to_resolve": "missingSeriesEvalsToResolve"}
    place = {"folderUID": FOLDER, "ruleGroup": group["name"]}
    content = [{renamed.get(key, key): value for key, value in rule.items()} | place for rule in group["rules"]]
    return {
        "title": group["name"],
        "folderUid": FOLDER,
        "interval": rules.seconds(group["interval"]),
        "rules": content,
    }


def _retrainer() -> dict[str, Any] | None:
    if not (url := os.environ.get("RETRAINER_URL")):
        return None
    if not (secret := credentials.secret("RETRAINER_SECRET")):
        raise LooplineError(
            "RETRAINER_SECRET is not set: set it, since an alert that starts a retraining must be signed"
        )
    return alerting.retrainer(url, secret)


def _push_retrainer(api: Any, content: dict[str, Any]) -> list[str]:
    """Write the contact point, then put the route to it before the other notification policies, which stay; return two lines."""
    calls = api.alertingprovisioning
    present = next((point for point in calls.get_contactpoints() if point["uid"] == content["uid"]), None)
    if present is None:
        calls.create_contactpoint(content, disable_provenance=True)
    else:  # this is sent even if all visible fields are equal, since the secret cannot be read back
        calls.update_contactpoint(content["uid"], content, disable_provenance=True)
    same = present and _covers(present, alerting.retrainer(content["settings"]["url"], HIDDEN))
    line = f"contact point {content['name']}: " + ("unchanged, its secret was sent again" if same else "written")
    tree = calls.get_notification_policy_tree()
    route = alerting.route()
    routes = tree.get("routes") or []
    if routes and _covers(routes[0], route):
        return [line, "notification policy: unchanged"]
    others = [other for other in routes if other.get("receiver") != content["name"]]
    calls.set_notification_policy_tree({**tree, "routes": [route, *others]}, disable_provenance=True)
    return [line, "notification policy: written"]


def _with(source: str, content: dict[str, Any]) -> dict[str, Any]:
    """The content with the uid of its data source replaced by `source`."""
    replaced: dict[str, Any] = json.loads(json.dumps(content).replace(json.dumps(SOURCE), json.dumps(source)))
    return replaced


def _covers(present: Any, expected: Any) -> bool:
    """Tell whether `present` holds all of `expected`; Grafana adds numbers, versions and defaults of its own."""
    if isinstance(expected, dict):
        held = isinstance(present, dict)
        return held and all(key in present and _covers(present[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return isinstance(present, list) and len(present) == len(expected) and all(map(_covers, present, expected))
    return bool(present == expected)
