"""A FastAPI service that had its own routes and lifespan before; embedserve moved in.

MODELS=models uvicorn examples.fastapi_service:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from pydantic import BaseModel

from embedserve import ModelRegistry
from embedserve.rest import create_app, exception_handlers

registry = ModelRegistry(os.environ.get("MODELS", "models"))


@asynccontextmanager
async def opened_database(app: FastAPI) -> AsyncIterator[None]:
    """The lifespan that the service had before; a database pool, say."""
    app.state.visits = 0
    yield
    app.state.visits = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with opened_database(app), registry.lifespan(app):
        yield


app = FastAPI(lifespan=lifespan, exception_handlers=exception_handlers())  # Bad input is 400 with the reason.
app.mount("/ml", create_app(registry))  # TensorFlow Serving's REST API, below /ml/v1/models/...


class Drawing(BaseModel):
    pixels: list[float]


@app.get("/visits")
async def visits(request: Request) -> dict[str, int]:
    """A route that has nothing to do with models."""
    request.app.state.visits += 1
    return {"visits": request.app.state.visits}


@app.post("/digit")
async def digit(drawing: Drawing) -> dict[str, float]:
    """An async endpoint awaits the model; concurrent requests share a batch."""
    out = await registry.predict("digits", {"pixels": [drawing.pixels]})
    return {"digit": int(out["digit"][0]), "probability": float(out["probability"][0])}


@app.post("/digit-sync")
def digit_sync(drawing: Drawing) -> dict[str, int]:
    """FastAPI runs this one in a thread; the request joins the same batches."""
    return {"digit": int(registry.predict_sync("digits", {"pixels": [drawing.pixels]})["digit"][0])}
