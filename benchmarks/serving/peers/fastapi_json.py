"""FastAPI as most write it: nested lists in, nested lists out, checked by pydantic, encoded by orjson."""

from __future__ import annotations

from typing import Any

import numpy as np
import uvicorn
from engine import engines, lists, port
from fastapi import FastAPI
from fastapi.responses import ORJSONResponse
from pydantic import BaseModel

app = FastAPI()
models = engines()


class Samples(BaseModel):
    """The samples of one request."""

    data: list[Any]


@app.post("/{model}")
async def infer(model: str, samples: Samples) -> ORJSONResponse:
    """On one core a pool of threads would only add to the time, so the model runs in the event loop."""
    engine = models[model]
    return ORJSONResponse(lists(engine(np.array(samples.data, engine.dtype))))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=port(), log_level="warning", access_log=False)
