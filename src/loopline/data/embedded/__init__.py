"""Datasets that ship with the dependencies or are generated from them, so that nothing is downloaded.

Each module has `read()`, which yields `RawSample` objects in a fixed order.
"""
