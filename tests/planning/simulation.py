"""The queue that `loopline.planning.queueing` solves, played through request by request."""

import numpy as np


def latencies(service, rate, requests=200_000, seed=0):
    """Seconds of each request: Poisson arrivals, one server, which takes what waits at once, up to its largest batch."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, requests))
    shares, more = zip(*service.extra, strict=True)
    extras = rng.choice(more, p=shares, size=requests)
    found = np.empty(requests)
    first, free, most = 0, 0.0, len(service.seconds)
    while first < requests:
        start = max(free, arrivals[first])
        last = min(np.searchsorted(arrivals, start, side="right"), first + most)
        free = start + service.seconds[last - first - 1] + extras[first]
        found[first:last] = free - arrivals[first:last]
        first = last
    return found[requests // 10 :]  # it began empty
