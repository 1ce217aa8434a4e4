"""Addresses of the stack of serving/compose.yaml on this machine, and what its gateway reports about the servers."""

from __future__ import annotations

import os

from loopline.fleet.gateway import CHALLENGER, CHAMPION, COLOURS
from loopline.lib.http_client import FetchError, fetch

PORTS = {
    "LOOPLINE_PORT": 8080,
    "LOOPLINE_METRICS_PORT": 8081,
    "LOOPLINE_CHALLENGER_PORT": 8085,
    "LOOPLINE_PROMETHEUS_PORT": 9090,
}


def url(port: str) -> str:
    """The address of a published port. port: the variable of the environment that sets it; its default is in PORTS."""
    return f"http://127.0.0.1:{os.environ.get(port) or PORTS[port]}"


def reports_up(server: str, lane: str = CHAMPION) -> bool:
    """Return whether the gateway reports the server as up."""
    return f'haproxy_server_status{{proxy="{lane}",server="{server}",state="UP"}} 1' in _metrics()


def stood_in() -> int:
    """Requests of the challenger's share that the champion had to answer, since the gateway last read the shares."""
    prefixes = tuple(f'haproxy_server_sessions_total{{proxy="{CHALLENGER}",server="{colour}"}} ' for colour in COLOURS)
    return sum(int(float(row.split()[-1])) for row in _metrics() if row.startswith(prefixes))


def _metrics() -> list[str]:
    """Lines of the gateway's metrics; empty if it does not answer."""
    try:
        return fetch(f"{url('LOOPLINE_METRICS_PORT')}/metrics", timeout=5).decode().splitlines()
    except FetchError:
        return []
