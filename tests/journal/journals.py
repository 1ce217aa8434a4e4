"""Test helpers: journal lines as a server writes them."""

import base64
import io
import time

import numpy as np
from PIL import Image

from loopline.journal import index, segments


def png(value=130, side=8):
    out = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def entry(identity, *, label="bright", probability=0.9, version="v1", **more):
    """The line of a classifier's answer."""
    image = base64.b64encode(more.pop("image", png())).decode()
    prediction = {"label": label, "probability": probability, "probabilities": {label: probability}}
    line = {"kind": "entry", "id": identity, "time": time.time(), "model": "classifier", "version": version}
    line |= {"status": 200, "reason": "sampled", "fair": True, "image": image, "prediction": prediction}
    return line | {"signals": {"brightness": 130.0}} | more


def text(identity, words, *, label="good", **more):
    line = entry(identity, label=label, **more) | {"model": "text", "text": words}
    del line["image"]
    return line


def box(label="spot", score=0.9, x1=0.0, y1=0.0, x2=10.0, y2=10.0):
    return {"label": label, "score": score, "x1": x1, "y1": y1, "x2": x2, "y2": y2}


def label(identity, truth, *, source="anna", model="classifier", when=None, chosen=False):
    return {
        "chosen": chosen,
        "kind": "label",
        "id": identity,
        "time": when or time.time(),
        "model": model,
        "label": truth,
        "source": source,
    }


def kept(folder, *lines):
    """Create a journal whose index has these lines; return its folder."""
    folder.mkdir(parents=True)
    connection = index.connect(folder, write=True)
    index.take(connection, "segment", lines)
    connection.close()
    return folder


def write(folder, *lines):
    segments.write(folder, list(lines))
