"""FastAPI as one writes it for speed: the tensor's bytes in, JSON out, no validation by pydantic. Also a route for image files."""

from __future__ import annotations

import io

import numpy as np
import uvicorn
from engine import engines, lists, port
from fastapi import FastAPI, Request
from fastapi.responses import ORJSONResponse
from PIL import Image

app = FastAPI()
models = engines()


@app.post("/{model}")
async def infer(model: str, request: Request) -> ORJSONResponse:
    """On one core a pool of threads would only add to the time, so the model runs in the event loop."""
    engine = models[model]
    return ORJSONResponse(lists(engine(engine.sample(await request.body())[None])))


@app.post("/file/{model}")
async def file(model: str, request: Request) -> ORJSONResponse:
    """An image file of the classifier: greyscale, to the model's size."""
    engine = models[model]
    height, width, _ = engine.side
    with Image.open(io.BytesIO(await request.body())) as opened:
        image = opened.convert("L")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
    return ORJSONResponse(lists(engine(np.asarray(image)[None, :, :, None])))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=port(), log_level="warning", access_log=False)
