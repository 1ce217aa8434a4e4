"""A stand-in for Grafana: a server with those parts of its HTTP API that `loopline grafana` uses. It stores what it is sent.

Like Grafana, it numbers and versions what it stores, adds defaults, drops unknown fields, hides secrets and refuses bad requests.
Sources: the HTTP API's reference, and pkg/services/ngalert/api of Grafana 12 and 13.
"""

import json
import re
from urllib.parse import parse_qs, unquote, urlsplit

from answering import Server

UID = re.compile(r"[a-zA-Z0-9_-]{1,40}")
DURATION = re.compile(r"(\d+[smhdw])+")
RULE = {
    "uid", "folderUID", "ruleGroup", "title", "condition", "data", "noDataState", "execErrState", "for", "keep_firing_for",
    "annotations", "labels", "isPaused", "notification_settings", "record", "missingSeriesEvalsToResolve",
}  # fmt: skip
TOKEN = "glsa_right"


class Refusal(Exception):
    def __init__(self, code, message, **more):
        self.code, self.body = code, {"message": message, **more}


class Grafana(Server):
    """allowed: a pattern of methods and paths; any other request gets 403."""

    def __init__(self, sources=("loopline-prometheus",)):
        self.sources, self.allowed = set(sources), ".*"
        self.folders, self.dashboards, self.groups, self.points, self.annotations = {}, {}, {}, {}, []
        self.default = {"receiver": "empty", "group_by": ["grafana_folder", "alertname"]}
        self.policies, self.provenance = dict(self.default), {}
        self.writes = []
        super().__init__(self._answer)

    def _answer(self, method, path, headers, body):
        try:
            status, answer = self.handle(method, path, headers, json.loads(body) if body else None)
        except Refusal as refusal:
            status, answer = refusal.code, refusal.body
        return status, json.dumps(answer).encode(), {"Content-Type": "application/json; charset=UTF-8"}

    def state(self):
        """A copy of everything that is stored."""
        kept = (self.folders, self.dashboards, self.groups, self.points, self.policies, self.annotations)
        return json.loads(json.dumps(kept))

    def handle(self, method, target, headers, sent):
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Invalid API key")
        path = unquote(urlsplit(target).path)
        if not re.fullmatch(self.allowed, f"{method} {path}"):
            raise Refusal(403, "You'll need additional permissions to perform this action.")
        if method != "GET":
            self.writes.append(f"{method} {path}")
        origin = "" if "X-Disable-Provenance" in headers else "api"
        for pattern, name in ROUTES:
            if match := re.fullmatch(pattern, f"{method} {path}"):
                return getattr(self, name)(
                    *match.groups(), sent=sent, origin=origin, query=parse_qs(urlsplit(target).query)
                )
        raise Refusal(404, "Not found")

    def settings(self, **_):
        return 200, {"buildInfo": {"version": "12.4.0"}}

    def source(self, uid, **_):
        if uid not in self.sources:
            raise Refusal(404, "Data source not found")
        return 200, {"uid": uid, "type": "prometheus"}

    def folder(self, uid, **_):
        if uid not in self.folders:
            raise Refusal(404, "folder not found", status="not-found")
        return 200, self.folders[uid]

    def new_folder(self, *, sent, **_):
        if sent["uid"] in self.folders or sent["title"] in {entry["title"] for entry in self.folders.values()}:
            raise Refusal(409, "a folder with the same name already exists in the current location")
        self.folders[sent["uid"]] = {"id": len(self.folders) + 1, "version": 1, **sent}
        return 200, self.folders[sent["uid"]]

    def dashboard(self, uid, **_):
        if uid not in self.dashboards:
            raise Refusal(404, "Dashboard not found")
        return 200, self.dashboards[uid]

    def new_dashboard(self, *, sent, **_):
        content, folder = sent["dashboard"], sent.get("folderUid", "")
        if not content.get("title"):
            raise Refusal(400, "Dashboard title cannot be empty")
        if not UID.fullmatch(uid := content["uid"]):
            raise Refusal(400, "uid contains illegal characters")
        if folder not in self.folders:
            raise Refusal(400, "folder not found")
        present = self.dashboards.get(uid)
        if present and not sent.get("overwrite") and content.get("version") != present["dashboard"]["version"]:
            raise Refusal(412, "The dashboard has been changed by someone else", status="version-mismatch")
        version = present["dashboard"]["version"] + 1 if present else 1
        number = present["dashboard"]["id"] if present else len(self.dashboards) + 1
        stored = {**content, "id": number, "version": version}
        self.dashboards[uid] = {"dashboard": stored, "meta": {"folderUid": folder, "version": version, "slug": uid}}
        return 200, {"id": number, "uid": uid, "status": "success", "version": version}

    def search(self, *, query, **_):
        tags = set(query.get("tag", ()))
        boards = (board["dashboard"] for board in self.dashboards.values())
        return 200, [{"uid": board["uid"], "type": "dash-db"} for board in boards if tags <= set(board.get("tags", ()))]

    def group(self, folder, name, **_):
        if name not in self.groups or self.groups[name]["folderUid"] != folder:
            raise Refusal(404, "rule group not found")
        return 200, self.groups[name]

    def put_group(self, folder, name, *, sent, origin, **_):
        if folder not in self.folders:
            raise Refusal(400, "folder does not exist")
        if sent["interval"] <= 0 or sent["interval"] % 10:
            raise Refusal(400, "interval should be non-zero and divided exactly by scheduler interval: 10")
        self.change(f"group {name}", origin)
        titles = [rule["title"] for rule in sent["rules"]]
        if len(set(titles)) < len(titles):
            raise Refusal(400, "rule title under the same organisation and folder should be unique")
        kept = [self.rule(rule, folder, name, origin) for rule in sent["rules"]]
        self.groups[name] = {"title": name, "folderUid": folder, "interval": sent["interval"], "rules": kept}
        return 200, sent

    def rule(self, rule, folder, group, origin):
        refs = [entry["refId"] for entry in rule["data"]]
        if not UID.fullmatch(rule["uid"]) or rule["condition"] not in refs:
            raise Refusal(400, "invalid alert rule")
        if rule["noDataState"] not in ("Alerting", "NoData", "OK", "KeepLast"):
            raise Refusal(400, "unknown NoData state option")
        if rule["execErrState"] not in ("Alerting", "Error", "OK", "KeepLast"):
            raise Refusal(400, "unknown Error state option")
        if not all(DURATION.fullmatch(rule.get(key, "0s")) for key in ("for", "keep_firing_for")):
            raise Refusal(400, "not a valid duration string")
        if rule.get("missingSeriesEvalsToResolve", 1) <= 0:
            raise Refusal(400, "field `missing_series_evals_to_resolve` must be greater than 0")
        data = [
            {"queryType": "", **entry, "model": {"intervalMs": 1000, "maxDataPoints": 43200, **entry["model"]}}
            for entry in rule["data"]
        ]
        kept = {"keep_firing_for": "0s", "isPaused": False} | {key: rule[key] for key in rule if key in RULE}
        place = {
            "orgID": 1,
            "folderUID": folder,
            "ruleGroup": group,
            "provenance": origin,
            "updated": "2026-01-01T00:00:00Z",
        }
        return kept | place | {"data": data}

    def contact_points(self, **_):
        shown = json.loads(json.dumps(list(self.points.values())))
        for entry in shown:
            if "hmacConfig" in entry["settings"]:
                entry["settings"]["hmacConfig"]["secret"] = "[REDACTED]"
        return 200, shown

    def new_contact_point(self, *, sent, origin, **_):
        if sent["uid"] in self.points:
            raise Refusal(500, "a contact point with this uid exists")
        return self.put_contact_point(sent["uid"], sent=sent, origin=origin, new=True)

    def put_contact_point(self, uid, *, sent, origin, new=False, **_):
        if not new and uid not in self.points:
            raise Refusal(404, "contact point not found")
        if not sent["settings"].get("url"):
            raise Refusal(400, "required field 'url' is not specified")
        self.change(f"point {uid}", origin)
        self.points[uid] = {"disableResolveMessage": False, **sent, "provenance": origin}
        return 202, self.points[uid] if new else {"message": "contactpoint updated"}

    def tree(self, **_):
        return 200, self.policies

    def put_tree(self, *, sent, origin, **_):
        names = {self.default["receiver"], *(entry["name"] for entry in self.points.values())}
        for route in (sent, *sent.get("routes", ())):
            if route["receiver"] not in names:
                raise Refusal(400, f"receiver '{route['receiver']}' does not exist")
        self.change("tree", origin)
        self.policies = sent
        return 202, {"message": "policies updated"}

    def annotate(self, *, sent, **_):
        if not sent.get("text"):
            raise Refusal(400, "text field should not be empty")
        if (uid := sent.get("dashboardUID")) and uid not in self.dashboards:
            raise Refusal(404, "Dashboard not found")
        self.annotations.append(sent)
        return 200, {"message": "Annotation added", "id": len(self.annotations)}

    def change(self, part, origin):
        if (before := self.provenance.get(part, origin)) != origin:
            raise Refusal(409, f"cannot change provenance from '{before}' to '{origin}'")
        self.provenance[part] = origin


ROUTES = (
    (r"GET /api/frontend/settings", "settings"),
    (r"GET /api/datasources/uid/([^/]+)", "source"),
    (r"GET /api/folders/([^/]+)", "folder"),
    (r"POST /api/folders", "new_folder"),
    (r"GET /api/dashboards/uid/([^/]+)", "dashboard"),
    (r"POST /api/dashboards/db", "new_dashboard"),
    (r"GET /api/search", "search"),
    (r"GET /api/v1/provisioning/folder/([^/]+)/rule-groups/([^/]+)", "group"),
    (r"PUT /api/v1/provisioning/folder/([^/]+)/rule-groups/([^/]+)", "put_group"),
    (r"GET /api/v1/provisioning/contact-points", "contact_points"),
    (r"POST /api/v1/provisioning/contact-points", "new_contact_point"),
    (r"PUT /api/v1/provisioning/contact-points/([^/]+)", "put_contact_point"),
    (r"GET /api/v1/provisioning/policies", "tree"),
    (r"PUT /api/v1/provisioning/policies", "put_tree"),
    (r"POST /api/annotations", "annotate"),
)
