"""`loopline drill`: the whole loop, from drifted traffic to a promoted model and back, with real parts, on one machine."""
