"""HAProxy in front of the servers: its configuration, and the changes through its runtime socket, which need no reload.

There are three lanes: `champion`, `baseline` (fresh champion servers) and `challenger`. Each is a backend of slots, and a slot
gets a server's port at run time. A map holds the share of each model's requests that goes to its challenger; the baseline gets as
many. The lanes on trial have the champion's servers as a backup, so a lane still answers if its own servers are down.
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
SLOTS = 32  # servers in a lane; while a new champion takes over, the old one's servers need slots too
LONGEST = 90  # bytes of a socket's path: the system allows 107, and HAProxy needs some for a temporary name
PLAIN = re.compile(r"[\w./-]+")
TEMPORARY = Path("/tmp")  # noqa: S108 - files go into a subfolder that no other user can read
CONNECTIONS = 4096
OTHER_FILES = 200  # open files of HAProxy itself: 189 were counted
SECONDS = 10.0  # limit to answer a command, and to see that a server is up
DRAIN_SECONDS = 35.0
# Bit of srv_admin_state for maintenance set by a command. Empty slots start with the bit that the configuration sets.
MAINTENANCE = 0x01
RUNNING = 2  # value of srv_op_state

CONFIGURATION = """\
# Written by `loopline up --gateway`. Changes at run time go through the socket.
global
  stats socket {socket} mode 600 level admin
  log stdout format raw local0 info
  tune.bufsize 131072   # a request up to this size can be sent again if its server dies
  maxconn {connections}
defaults
  mode http
  timeout connect 1s
  timeout check 2s   # a process may stand still for a second on a busy machine; one that has ended refuses at once
  timeout client 75s
  timeout server 75s
  timeout http-request 75s
  timeout http-keep-alive 75s
  # The key may be a hash of the body, so HAProxy waits for the body.
  option http-buffer-request
  option idle-close-on-response   # at a reload, a kept connection is closed with its next answer
  retries 3
  option redispatch 1
  # A request may be sent twice if no answer came. Any answer is final, so that errors stay visible.
  retry-on conn-failure empty-response
  default-server inter 500ms fastinter 200ms downinter 500ms rise 1 fall 2

frontend gateway
  bind {host}:{port}
  # Operators ask the servers directly.
  http-request deny deny_status 404 if {{ path,url_dec -m beg /metrics }}
  # Only predictions are shared. Labels, metadata and polls are quick, never wrong, and tell nothing about a challenger.
  http-request set-var(txn.model) path,url_dec,field(3,/) if {{ path,url_dec -m reg ^/predict/[^/]+/?$ }}
  # A request that names a version goes to the champion, the only version with a public address.
  http-request set-var(txn.model) path,url_dec,field(4,/) if {{ path,url_dec -m reg ^/v2/models/[^/]+/infer/?$ }}
  http-request set-var(txn.share) var(txn.model),map_str_int({shares},0)
  http-request set-var(txn.twice) var(txn.share),add(txn.share)
  # The sticky key is the client's id, or else the request's id, which its repetitions share, or else the content.
  http-request set-var(txn.bucket) req.body,xxh32,mod(100)
  http-request set-var(txn.bucket) req.hdr(x-request-id),xxh32,mod(100) if {{ req.hdr(x-request-id) -m found }}
  http-request set-var(txn.bucket) req.hdr(x-client-id),xxh32,mod(100) if {{ req.hdr(x-client-id) -m found }}
  # The sentinel expects the champion's answers.
  http-request set-var(txn.bucket) int(100) if {{ req.hdr(x-loopline-probe) -m found }}
  acl to_challenger var(txn.bucket),sub(txn.share) lt 0
  acl to_trial var(txn.bucket),sub(txn.twice) lt 0
  # The judge's log: one line for each request of the lanes on trial, in microseconds. The model is one of the map's.
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


# Containers have names instead of ports. Both colours are the champion's; the health checks find out which one runs.
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
    """A server's place in a lane. port: 0 if the slot is empty."""

    name: str
    port: int
    up: bool


def write(folder: Path, *, port: int, metrics_port: int, host: str = "127.0.0.1") -> Path:
    """Write haproxy.cfg and an empty map of shares into the folder, and return the path of haproxy.cfg."""
    text = _fronts(str(socket_path(folder)), str(_shares(folder)), host, port, metrics_port, _connections())
    text += PROCESSES.format(champion=CHAMPION, slots=SLOTS)
    text += "".join(TRIAL.format(lane=lane, slots=SLOTS) for lane in (BASELINE, CHALLENGER))
    _shares(folder).write_text("", encoding="ascii")
    (folder / "haproxy.cfg").write_text(text, encoding="utf-8")
    return folder / "haproxy.cfg"


def containers(at: str) -> str:
    """The configuration for the containers of serving/compose.yaml. at: folder of shares.map inside the gateway's container.

    HAProxy reads the shares at a reload. The baseline lane consists of the champion's own servers.
    """
    text = _fronts("/tmp/gateway.sock", f"{at}/shares.map", "0.0.0.0", 8080, 8081, CONNECTIONS) + CONTAINERS  # noqa: S104, S108 - in the container
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
    """The path of the runtime socket."""
    return _plain(folder) / "gateway.sock"


def _plain(folder: Path) -> Path:
    """The folder, or a private one if its path is too long for a socket or contains characters with a meaning for HAProxy.

    The private folder is under /tmp and ignores TMPDIR, because every shell must find the same folder.
    """
    path = folder.absolute()
    if PLAIN.fullmatch(str(path)) and len(os.fsencode(path / "gateway.sock")) <= LONGEST:
        return path
    own = TEMPORARY / f"loopline-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.is_symlink() or own.stat().st_uid != os.getuid() or own.stat().st_mode & 0o077:
        raise LooplineError(f"{own} is not a private folder of this user: remove it")
    plain = own / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    plain.mkdir(mode=0o700, exist_ok=True)
    return plain


def _connections() -> int:
    """The limit of connections for HAProxy. Each needs two open files, and HAProxy does not start if the system allows fewer."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if most == resource.RLIM_INFINITY else min(CONNECTIONS, (most - OTHER_FILES) // 2)


class Gateway:
    """The running HAProxy of a folder's configuration."""

    def __init__(self, folder: Path) -> None:
        """folder: the same as for `write`."""
        self.socket, self.shares = socket_path(folder), _shares(folder)

    def ask(self, command: str) -> str:
        """Send one command to the runtime socket and return the answer. Raises LooplineError if HAProxy does not answer."""
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
                f"the gateway does not answer on {self.socket}: {error}; `loopline up --gateway` starts it"
            ) from error
        return b"".join(parts).decode().strip()

    def share(self, model: str, percent: int) -> None:
        """Send `percent` of the model's requests to the challenger and as many to the baseline, from the next request on.

        Raises ValueError if `percent` is not between 0 and 50.
        """
        if not 0 <= percent <= 50:
            raise ValueError(f"a share of {percent} %: the baseline gets as much, so at most 50")
        verb = "set" if model in self.shared() else "add"
        if refusal := self.ask(f"{verb} map {self.shares} {model} {percent}"):
            raise LooplineError(f"the gateway did not set the share of {model}: {refusal}")

    def shared(self) -> dict[str, int]:
        """Model -> the challenger's share in percent, for all models that ever had one."""
        rows = (line.split() for line in self.ask(f"show map {self.shares}").splitlines())
        return {row[1]: int(row[2]) for row in rows if len(row) == 3}

    def slots(self, lane: str) -> list[Slot]:
        """Every slot of a lane, including the backups, whose names begin with k."""
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
        """Give the lane exactly the servers on these ports: add the new ones, and once they are up, drain the others.

        No request is lost, because a removed server has answered all its requests. A repeated call changes nothing. Raises
        LooplineError if a new server is not up in time; the others then stay in the lane.
        """
        target = set(ports)
        self._fill(lane, "s", target)
        if lane == CHAMPION:
            for trial in (BASELINE, CHALLENGER):
                self._fill(trial, "k", target)
        self._drop(lane, "s", target)
        if lane == CHAMPION:
            for trial in (BASELINE, CHALLENGER):
                self._drop(trial, "k", target)

    def _fill(self, lane: str, kind: str, target: set[int]) -> None:
        slots = [slot for slot in self.slots(lane) if slot.name.startswith(kind)]
        free = [slot.name for slot in slots if not slot.port]
        for port in sorted(target - {slot.port for slot in slots}):
            if not free:
                raise LooplineError(f"the lane {lane} has no free slot: it takes at most {len(slots)} servers")
            name = free.pop(0)
            self.ask(f"set server {lane}/{name} addr 127.0.0.1 port {port}")
            self.ask(f"set server {lane}/{name} state ready")
        for slot in slots:
            if slot.port in target:  # it may still be draining, if an earlier controller was killed
                self.ask(f"set server {lane}/{slot.name} state ready")

        def up() -> bool:
            return target <= {slot.port for slot in self.slots(lane) if slot.up and slot.name.startswith(kind)}

        if not until(up, SECONDS):
            raise LooplineError(
                f"the gateway does not report all servers of the lane {lane} as up: ports {sorted(target)}"
            )

    def _drop(self, lane: str, kind: str, target: set[int]) -> None:
        slots = self.slots(lane)
        gone = [slot.name for slot in slots if slot.name.startswith(kind) and slot.port and slot.port not in target]
        for name in gone:
            self.ask(f"set server {lane}/{name} state drain")
        until(lambda: not any(self.sessions(lane).get(name) for name in gone), DRAIN_SECONDS)
        for name in gone:
            self.ask(f"set server {lane}/{name} state maint")

    def sessions(self, lane: str) -> dict[str, int]:
        """Slot -> number of requests that it is answering or that wait for it."""
        lines = self.ask("show stat").splitlines()
        heads = lines[0].removeprefix("# ").split(",")
        rows = (dict(zip(heads, line.split(","), strict=False)) for line in lines[1:])
        return {row["svname"]: int(row["scur"]) + int(row["qcur"] or 0) for row in rows if row["pxname"] == lane}
