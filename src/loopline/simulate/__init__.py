"""Simulated traffic: test samples, shifted samples, and samples of other data sets."""
