"""Grafana: dashboards and alert rules as files to provision, and through the HTTP API of a running Grafana."""

SOURCE = "loopline-prometheus"  # the data source's uid
TAG = "loopline"  # tag of all Loopline dashboards and annotations
