"""Where bundles are put into service: processes, containers on one machine, a cluster."""
