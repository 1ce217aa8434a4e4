"""A simulation, request by request, of the queue that `loopline.planning.queueing` solves."""

import numpy as np


def latencies(service, rate, requests=200_000, seed=0):
    """The seconds of each request: arrivals are Poisson; the server takes all waiting requests, up to its largest batch."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, requests))
    shares, more = zip(*service.extra, strict=True)
    extras = rng.choice(more, p=shares, size=requests)
    seconds = np.empty(requests)
    first, free, most = 0, 0.0, len(service.seconds)
    while first < requests:
        start = max(free, arrivals[first])
        last = min(np.searchsorted(arrivals, start, side="right"), first + most)
        free = start + service.seconds[last - first - 1] + extras[first]
        seconds[first:last] = free - arrivals[first:last]
        first = last
    return seconds[requests // 10 :]  # the queue begins empty, so the first tenth is left out
