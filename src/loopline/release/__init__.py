"""Bundles, model cards, the model registry, tracking, and promotion on evidence."""
