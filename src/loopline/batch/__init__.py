"""Batch prediction: files in, a file out. A room of its own, because a server must not know pyarrow and releases need no engine."""
