"""Batch prediction: files in, a file out. Separate from `server`, which must not depend on pyarrow."""
