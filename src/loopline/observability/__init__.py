"""Rules, alerts, dashboards and reports that tell from the servers' metrics whether the traffic has drifted."""
