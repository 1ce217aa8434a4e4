"""The one reader of tables, for ingest and for batch prediction: a file that is trained on can be predicted.

It knows encodings (`encoding`), names of columns and the values of cells (`columns`), CSV and TSV (`delimited`), JSON
(`records`) and Parquet (`parquet`). `reader.read` puts them together. It streams: no file is held whole.
"""
