"""Boxes with a class and a score for each image."""
