"""Capacity planning: the replicas that a traffic needs, and what they cost. `docs/capacity.md` explains each figure.

`measure` makes a profile of a bundle on this machine; `plan_files` reads profiles, traffic and prices; `queueing` predicts
latency; `capacity` makes the plan; `report` and `plan_picture` show it.
"""
