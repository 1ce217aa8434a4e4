"""HAProxy in front of the servers: what it is told at its start, and what through its runtime socket, without a reload.

Three lanes, each a backend of slots that get a server's port at run time: `champion`, `baseline` (fresh champion servers) and
`challenger`. A map says what share of a model's requests goes to its challenger; as many go to the baseline. The lanes that are on
trial have the champion's servers as a backup, so a lane whose servers are down answers all the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from loopline.errors import LooplineError
from loopline.lib.waiting import until

CHAMPION, BASELINE, CHALLENGER = "champion", "baseline", "challenger"
SLOTS = 32  # servers of a lane: while a new champion takes over, its and the old one's
LONGEST = 90  # bytes of a socket's path: the system takes 107, of which HAProxy wants some for a temporary name
PLAIN = re.compile(r"[\w./-]+")
TEMPORARY = Path("/tmp")  # noqa: S108 - what is in it is in a folder that no other user can read
CONNECTIONS = 4096
OTHER_FILES = 200  # of HAProxy itself: 189 were counted
SECONDS = 10.0  # to answer a command, or to see that a server is up
DRAIN_SECONDS = 35.0
MAINTENANCE = 0x01  # of srv_admin_state: by hand; the slots begin with another, which is the configuration's
RUNNING = 2  # of srv_op_state

CONFIGURATION = """\
# Written by `loopline up --gateway`; what changes at run time goes through the socket.
global
  stats socket {socket} mode 600 level admin
  log stdout format raw local0 info
  tune.bufsize 131072   # a request up to this size can be sent again if its server dies
  maxconn {connections}
defaults
  mode http
  timeout connect 1s
  timeout client 75s
  timeout server 75s
  timeout http-request 75s
  timeout http-keep-alive 75s
  # The key is a hash of the body where there is no better one, so the body is waited for.
  option http-buffer-request
  option idle-close-on-response   # at a reload, a client that keeps its connection is told with its next answer
  retries 3
  option redispatch 1
  # A prediction may be asked for twice. An answer is never asked for again, whatever it is: errors are to be seen.
  retry-on conn-failure empty-response
  default-server inter 500ms fastinter 200ms downinter 500ms rise 1 fall 2

frontend gateway
  bind {host}:{port}
  # Who operates asks the servers themselves.
  http-request deny deny_status 404 if {{ path,url_dec -m beg /metrics }}
  # Predictions alone are shared: labels, metadata and polls are quick, never wrong, and say nothing of a challenger.
  http-request set-var(txn.model) path,url_dec,field(3,/) if {{ path,url_dec -m reg ^/predict/[^/]+/?$ }}
  # Who names a version means the champion's: there is no other in the addresses that are public.
  http-request set-var(txn.model) path,url_dec,field(4,/) if {{ path,url_dec -m reg ^/v2/models/[^/]+/infer/?$ }}
  http-request set-var(txn.share) var(txn.model),map_str_int({shares},0)
  http-request set-var(txn.twice) var(txn.share),add(txn.share)
  # What is sticky: the client that names itself, else the request and its repetitions by their id, else the same content.
  http-request set-var(txn.bucket) req.body,xxh32,mod(100)
  http-request set-var(txn.bucket) req.hdr(x-request-id),xxh32,mod(100) if {{ req.hdr(x-request-id) -m found }}
  http-request set-var(txn.bucket) req.hdr(x-client-id),xxh32,mod(100) if {{ req.hdr(x-client-id) -m found }}
  # The sentinel knows the champion's answers.
  http-request set-var(txn.bucket) int(100) if {{ req.hdr(x-loopline-probe) -m found }}
  acl to_challenger var(txn.bucket),sub(txn.share) lt 0
  acl to_trial var(txn.bucket),sub(txn.twice) lt 0
  # One line a request of the lanes on trial: this is what the judge sees. Microseconds; the model is one of the map's.
  http-request set-var(txn.at) date(0,us)
  http-response set-var(txn.us) date(0,us),sub(txn.at)
  log global
  log-format "lane %[var(txn.at)] %[var(txn.model)] %b %s %ST %[var(txn.us)]"
  http-request set-log-level silent unless to_trial
  use_backend {challenger} if to_challenger
  use_backend {baseline} if to_trial
  default_backend {champion}

frontend metrics
  bind {host}:{metrics_port}
  http-request use-service prometheus-exporter if {{ path /metrics }}
  http-request deny deny_status 404
"""
PROCESSES = """
backend {champion}
  option httpchk GET /v2/health/ready
  server-template s {slots} 127.0.0.1:1 check disabled observe layer4 error-limit 1 on-error fastinter
"""
TRIAL = """
backend {lane}
  option httpchk GET /v2/health/ready
  option allbackups
  http-reuse never
  server-template s {slots} 127.0.0.1:1 check disabled observe layer4 error-limit 1 on-error mark-down
  server-template k {slots} 127.0.0.1:1 check disabled backup
"""


# Containers have names. Both colours are the champion's: which of them runs, the health checks find out.
COLOURS = "blue", "green"
CONTAINERS = """
resolvers names
  parse-resolv-conf
  accepted_payload_size 8192
  hold valid 1s
  hold nx 1s
  timeout resolve 500ms
"""
LANE = """
backend {lane}
  option httpchk GET /v2/health/ready
  option allbackups
  http-reuse never
"""
CONTAINER = (
    "  server {name} {name}:8080 check resolvers names init-addr libc,none observe layer4 error-limit 1 {options}\n"
)


class Slot(NamedTuple):
    """A server's place in a lane. port: 0 if it is empty."""

    name: str
    port: int
    up: bool


def write(folder: Path, *, port: int, metrics_port: int, host: str = "127.0.0.1") -> Path:
    """Write haproxy.cfg and an empty map of shares into the folder; returns the file."""
    text = _fronts(str(socket_path(folder)), str(_shares(folder)), host, port, metrics_port, _connections())
    text += PROCESSES.format(champion=CHAMPION, slots=SLOTS)
    text += "".join(TRIAL.format(lane=lane, slots=SLOTS) for lane in (BASELINE, CHALLENGER))
    _shares(folder).write_text("", encoding="ascii")
    (folder / "haproxy.cfg").write_text(text, encoding="utf-8")
    return folder / "haproxy.cfg"


def containers(at: str) -> str:
    """The configuration in front of the containers of serving/compose.yaml; `at`: the folder with shares.map, in the gateway's own.

    Shares are read at a reload. The baseline are the champion's own servers.
    """
    text = _fronts("/tmp/gateway.sock", f"{at}/shares.map", "0.0.0.0", 8080, 8081, CONNECTIONS) + CONTAINERS  # noqa: S104, S108 - in there
    champion = "".join(CONTAINER.format(name=name, options="on-error fastinter") for name in COLOURS)
    text += "".join(LANE.format(lane=lane) + champion for lane in (CHAMPION, BASELINE))
    text += LANE.format(lane=CHALLENGER) + CONTAINER.format(name=CHALLENGER, options="on-error mark-down")
    return text + "".join(CONTAINER.format(name=name, options="backup") for name in COLOURS)


def _fronts(socket: str, shares: str, host: str, port: int, metrics_port: int, connections: int) -> str:
    return CONFIGURATION.format(
        socket=socket,
        shares=shares,
        host=host,
        port=port,
        metrics_port=metrics_port,
        connections=connections,
        champion=CHAMPION,
        baseline=BASELINE,
        challenger=CHALLENGER,
    )


def _shares(folder: Path) -> Path:
    return _plain(folder) / "shares.map"


def socket_path(folder: Path) -> Path:
    """Of the runtime socket."""
    return _plain(folder) / "gateway.sock"


def _plain(folder: Path) -> Path:
    """The folder, or a private one where its path is too long for a socket or has characters that mean something to HAProxy.

    The private one is under /tmp whatever TMPDIR says: every shell must find the same.
    """
    path = folder.absolute()
    if PLAIN.fullmatch(str(path)) and len(os.fsencode(path / "gateway.sock")) <= LONGEST:
        return path
    own = TEMPORARY / f"loopline-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.is_symlink() or own.stat().st_uid != os.getuid() or own.stat().st_mode & 0o077:
        raise LooplineError(f"{own} is not a folder of yours alone: remove it")
    plain = own / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    plain.mkdir(mode=0o700, exist_ok=True)
    return plain


def _connections() -> int:
    """How many HAProxy may have: each takes two files, and it will not start where the system allows fewer."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if most == resource.RLIM_INFINITY else min(CONNECTIONS, (most - OTHER_FILES) // 2)


class Gateway:
    """The HAProxy that was started with a folder's configuration."""

    def __init__(self, folder: Path) -> None:
        """folder: as `write` was given."""
        self.socket, self.shares = socket_path(folder), _shares(folder)

    def ask(self, command: str) -> str:
        """One command to the runtime socket, and what it says. Raises LooplineError if nobody listens."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(SECONDS)
                connection.connect(str(self.socket))
                connection.sendall(command.encode() + b"\n")
                parts = []
                while part := connection.recv(1 << 16):
                    parts.append(part)
        except OSError as error:
            raise LooplineError(
                f"the gateway does not answer on {self.socket}: {error}; `loopline up --gateway`"
            ) from error
        return b"".join(parts).decode().strip()

    def share(self, model: str, percent: int) -> None:
        """So much of the model's requests go to the challenger, and as much to the baseline, from the next request on.

        Raises ValueError where it is not between 0 and 50.
        """
        if not 0 <= percent <= 50:
            raise ValueError(f"a share of {percent} %: the baseline gets as much, so at most 50")
        verb = "set" if model in self.shared() else "add"
        if said := self.ask(f"{verb} map {self.shares} {model} {percent}"):
            raise LooplineError(f"the gateway did not take the share of {model}: {said}")

    def shared(self) -> dict[str, int]:
        """Model -> the challenger's share in percent, of all models that ever had one."""
        rows = (line.split() for line in self.ask(f"show map {self.shares}").splitlines())
        return {row[1]: int(row[2]) for row in rows if len(row) == 3}

    def slots(self, lane: str) -> list[Slot]:
        """Every slot of a lane, the backups' too (their names begin with k)."""
        lines = self.ask(f"show servers state {lane}").splitlines()
        heads = lines[1].removeprefix("# ").split()
        rows = [dict(zip(heads, line.split(), strict=True)) for line in lines[2:]]
        return [
            Slot(
                row["srv_name"],
                0 if int(row["srv_admin_state"]) & MAINTENANCE or row["srv_port"] == "1" else int(row["srv_port"]),
                int(row["srv_op_state"]) == RUNNING,
            )
            for row in rows
        ]

    def serve(self, lane: str, ports: Iterable[int]) -> None:
        """Make the lane have exactly the servers on these ports: new ones first, and once they are up, the others drain.

        No request is lost: a server that left has answered all it was asked. Doing it again changes nothing. Raises LooplineError
        if a new server is not up in time; then the others are still there.
        """
        wanted = set(ports)
        self._fill(lane, "s", wanted)
        if lane == CHAMPION:
            for trial in (BASELINE, CHALLENGER):
                self._fill(trial, "k", wanted)
        self._drop(lane, "s", wanted)
        if lane == CHAMPION:
            for trial in (BASELINE, CHALLENGER):
                self._drop(trial, "k", wanted)

    def _fill(self, lane: str, kind: str, wanted: set[int]) -> None:
        slots = [slot for slot in self.slots(lane) if slot.name.startswith(kind)]
        free = [slot.name for slot in slots if not slot.port]
        for port in sorted(wanted - {slot.port for slot in slots}):
            if not free:
                raise LooplineError(f"more than {len(slots)} servers in the lane {lane}")
            name = free.pop(0)
            self.ask(f"set server {lane}/{name} addr 127.0.0.1 port {port}")
            self.ask(f"set server {lane}/{name} state ready")
        for slot in slots:
            if slot.port in wanted:  # perhaps it was draining when somebody was killed
                self.ask(f"set server {lane}/{slot.name} state ready")

        def up() -> bool:
            found = {slot.port for slot in self.slots(lane) if slot.up and slot.name.startswith(kind)}
            return wanted <= found

        if not until(up, SECONDS):
            raise LooplineError(f"the gateway does not see all servers of the lane {lane} up: ports {sorted(wanted)}")

    def _drop(self, lane: str, kind: str, wanted: set[int]) -> None:
        gone = [s.name for s in self.slots(lane) if s.name.startswith(kind) and s.port and s.port not in wanted]
        for name in gone:
            self.ask(f"set server {lane}/{name} state drain")
        until(lambda: not any(self.sessions(lane).get(name) for name in gone), DRAIN_SECONDS)
        for name in gone:
            self.ask(f"set server {lane}/{name} state maint")

    def sessions(self, lane: str) -> dict[str, int]:
        """Slot -> requests that it is answering or that wait for it."""
        lines = self.ask("show stat").splitlines()
        heads = lines[0].removeprefix("# ").split(",")
        rows = (dict(zip(heads, line.split(","), strict=False)) for line in lines[1:])
        return {row["svname"]: int(row["scur"]) + int(row["qcur"] or 0) for row in rows if row["pxname"] == lane}
