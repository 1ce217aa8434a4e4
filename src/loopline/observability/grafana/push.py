"""Dashboards, alert rules and annotations through the HTTP API of a Grafana that is there already.

What is there is read first and only what differs is written, so a second push changes nothing.
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

FOLDER = "loopline"  # its uid
TIMEOUT = 30.0  # seconds
HIDDEN = "[REDACTED]"  # what Grafana shows of a secret


def push(
    url: str,
    token: str,
    *,
    window: str = rules.WINDOW,
    runbooks: str = rules.RUNBOOKS,
    source: str = SOURCE,
) -> list[str]:
    """Make Grafana's dashboards, alert rules, contact point and policy those of this version; says a line for each.

    source: the uid of its data source for our Prometheus. The contact point is left out unless RETRAINER_URL is set.
    Raises LooplineError.
    """
    from loopline.observability.grafana import dashboards

    retrainer = _retrainer()
    with _grafana(url, token) as api:
        _check_source(api, source)
        done = [_ensure_folder(api)]
        done += [_push_dashboard(api, _with(source, one)) for one in dashboards.contents().values()]
        done += [_push_group(api, _with(source, group)) for group in alerting.groups(window, runbooks)]
        done += _push_retrainer(api, retrainer) if retrainer else ["contact point: left out, RETRAINER_URL is not set"]
    return done


def annotate(url: str, token: str, text: str, tags: Sequence[str] = (), dashboard: str | None = None) -> int:
    """Mark now on all our dashboards, or on the one with this uid; returns the annotation's number. Raises LooplineError."""
    with _grafana(url, token) as api:
        found = api.annotations.add_annotation(dashboard_uid=dashboard, tags=[TAG, *tags], text=text)
        return int(found["id"])


def export(url: str, token: str, folder: Path) -> list[Path]:
    """Write the dashboards with our tag that are in Grafana to folder/dashboards, as `write` does. Raises LooplineError."""
    from loopline.observability.grafana.dashboards import text

    written = []
    with _grafana(url, token) as api:
        for found in api.search.search_dashboards(tag=TAG, type_="dash-db"):
            if not re.fullmatch(r"[\w-]+", uid := str(found["uid"])):
                raise LooplineError(f"{url} has a dashboard with the uid {uid!r}, which makes no file name")
            content = api.dashboard.get_dashboard(uid)["dashboard"]
            path = folder / "dashboards" / f"{uid}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                text({key: content[key] for key in content if key not in ("id", "version")}), encoding="utf-8"
            )
            written.append(path)
    return written


@contextmanager
def _grafana(url: str, token: str) -> Iterator[Any]:
    """The API; what goes wrong with it is a LooplineError."""
    import niquests
    from grafana_client.api import GrafanaApi
    from grafana_client.client import GrafanaClientError, GrafanaException, TokenAuth

    if not url.startswith(("http://", "https://")):
        raise LooplineError(f"{url} is no address of a Grafana: http://127.0.0.1:3000")
    auth = TokenAuth(token)  # type: ignore[no-untyped-call]
    api = GrafanaApi.from_url(url.rstrip("/") + "/", auth, TIMEOUT)
    try:
        api.health.check()["version"]  # only a Grafana has one there
        yield api
    except GrafanaClientError as error:
        raise LooplineError(_refusal(url, error.status_code, error.response)) from error
    except GrafanaException as error:
        raise LooplineError(f"{url} failed: {error.message}") from error
    except (niquests.exceptions.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise LooplineError(f"{url} answers, but not as a Grafana does ({error!r}): is the address right?") from error
    except niquests.exceptions.RequestException as error:
        raise LooplineError(f"{url} cannot be reached: {error}") from error
    finally:
        api.client.s.close()


def _refusal(url: str, status: int, answer: Any) -> str:
    message = answer.get("message", "") if isinstance(answer, dict) else str(answer)[:200]
    advice = {
        401: "the token in GRAFANA_TOKEN is none of this Grafana's, or has expired",
        403: "the token in GRAFANA_TOKEN may not do that: give its service account the role Admin, or for annotations Editor",
        409: "something there was made in another way, by provisioned files or by hand",
        412: "somebody else changed it at the same time: push again",
    }
    return f"{url} refuses with {status}: {message}" + (f" ({advice[status]})" if status in advice else "")


def _get(read: Callable[..., Any], *what: str) -> Any:
    """The answer, None where there is no such thing."""
    from grafana_client.client import GrafanaClientError

    try:
        return read(*what)
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
    there = _get(api.dashboard.get_dashboard, content["uid"])
    if there and _covers(there["dashboard"], content) and there["meta"].get("folderUid") == FOLDER:
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
    there = _get(api.alertingprovisioning.get_rule_group, FOLDER, group["name"])
    if there and _covers(there, content):
        return f"{name}: unchanged"
    api.alertingprovisioning.update_rule_group(FOLDER, group["name"], content, disable_provenance=True)
    return f"{name}: written"


def _api_group(group: dict[str, Any]) -> dict[str, Any]:
    """The API has other names than the files for the same, and drops what it does not know without a word."""
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
        raise LooplineError("RETRAINER_SECRET is not set: an alert that starts a training must be signed")
    return alerting.retrainer(url, secret)


def _push_retrainer(api: Any, content: dict[str, Any]) -> list[str]:
    """The contact point, then the route to it as the first of the policies that are there; others stay."""
    calls = api.alertingprovisioning
    there = next((one for one in calls.get_contactpoints() if one["uid"] == content["uid"]), None)
    if there is None:
        calls.create_contactpoint(content, disable_provenance=True)
    else:  # even if all that can be seen is the same: a secret can't be read back
        calls.update_contactpoint(content["uid"], content, disable_provenance=True)
    same = there and _covers(there, alerting.retrainer(content["settings"]["url"], HIDDEN))
    done = [f"contact point {content['name']}: " + ("unchanged, its secret was sent again" if same else "written")]
    tree = calls.get_notification_policy_tree()
    ours = alerting.route()
    routes = tree.get("routes") or []
    if routes and _covers(routes[0], ours):
        return [*done, "notification policy: unchanged"]
    others = [one for one in routes if one.get("receiver") != content["name"]]
    calls.set_notification_policy_tree({**tree, "routes": [ours, *others]}, disable_provenance=True)
    return [*done, "notification policy: written"]


def _with(source: str, content: dict[str, Any]) -> dict[str, Any]:
    """The same for a data source with another uid."""
    found: dict[str, Any] = json.loads(json.dumps(content).replace(json.dumps(SOURCE), json.dumps(source)))
    return found


def _covers(there: Any, ours: Any) -> bool:
    """All that we say is there; Grafana adds numbers, versions and defaults of its own."""
    if isinstance(ours, dict):
        return isinstance(there, dict) and all(key in there and _covers(there[key], ours[key]) for key in ours)
    if isinstance(ours, list):
        return isinstance(there, list) and len(there) == len(ours) and all(map(_covers, there, ours))
    return bool(there == ours)
