"""Is the model still at home? Rules, dashboards and reports on what servers count."""
