"""What will it cost, and how many replicas does it take? `docs/capacity.md` says how each figure is come by.

`measure` makes a profile of a bundle on this machine; `inputs` reads profiles, traffic and prices; `queueing` predicts
latency; `capacity` plans; `report` and `picture` show it.
"""
