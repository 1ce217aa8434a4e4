"""Datasets: catalogue, downloads, formats, cleaning, manifest, expectations and versions."""
