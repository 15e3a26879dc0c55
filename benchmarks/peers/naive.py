"""What a tutorial says: FastAPI under uvicorn, and one call of the signature for each request.

python naive.py MODELS PORT
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import uvicorn
from fastapi import FastAPI, Request

app = FastAPI()
signatures: dict[str, Any] = {}


@app.post("/{model}")
async def predict(model: str, request: Request) -> dict[str, Any]:
    rows = np.asarray((await request.json())["instances"], np.float32)
    outputs = signatures[model](x=tf.constant(rows))
    return {"predictions": outputs["y"].numpy().tolist()}


if __name__ == "__main__":
    models, port = Path(sys.argv[1]), int(sys.argv[2])
    for path in models.glob("*/1"):
        signatures[path.parent.name] = tf.saved_model.load(str(path)).signatures["serving_default"]
    uvicorn.run(app, port=port, access_log=False, log_level="warning")
