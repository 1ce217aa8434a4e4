"""The reader of tables for both ingest and batch prediction, so that a file for training can also be predicted.

`encoding` decodes files, `columns` has the names of columns and the values of cells, `delimited` reads CSV and TSV, `records` JSON,
and `parquet` Parquet. `table_reader.read` opens any of them. Files are streamed, so none is held in memory as a whole.
"""
