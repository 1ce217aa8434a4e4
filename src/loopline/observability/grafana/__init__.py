"""Grafana: dashboards and alert rules as files to provision, and the same through the HTTP API of a Grafana that is there."""

SOURCE = "loopline-prometheus"  # the data source's uid
TAG = "loopline"  # of all our dashboards and annotations
