"""Batch prediction: files in, a file out, or `map` in Python. Separate from `server`, which must not depend on pyarrow.

from loopline import batch

for answer in batch.map("models/text/bundle", ["Bonjour", "Guten Tag"]):
    print(answer["label"])
"""

from loopline.batch.predict import answers as map

__all__ = ["map"]
