"""Datasets that come with the dependencies, or are made from them: nothing to download.

Each module has `read()`, an iterator of `RawSample` in an order that never changes.
"""
