"""A web page whose script calls the model by gRPC-Web, on the page's own port and on another one.

    python -m uvicorn examples.browser.app:app --port 8080          then open http://localhost:8080/?x=1,2,5

`GrpcMiddleware` takes the calls of the registry's services before the host application sees them; the page and every
other route stay the host's. PAGE_ORIGINS lists, with commas, the other origins whose pages may call.
"""

import os
import tempfile
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from embedserve import ModelRegistry
from embedserve.grpc import GrpcMiddleware


def save_model(path: Path) -> Path:
    """Save `half_plus_two`, x / 2 + 2, as a SavedModel."""
    import tensorflow as tf

    class HalfPlusTwo(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def __call__(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": x / 2 + 2}

    module = HalfPlusTwo()
    tf.saved_model.save(module, str(path), signatures=module.__call__)
    return path


async def page(request: Request) -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))


models = Path(os.environ.get("MODELS") or tempfile.mkdtemp(prefix="models-"))
if not (models / "half_plus_two").exists():
    save_model(models / "half_plus_two" / "1")

registry = ModelRegistry(models)
host = Starlette(routes=[Route("/", page)], lifespan=registry.lifespan)
app = GrpcMiddleware(host, registry, cors=[each for each in os.environ.get("PAGE_ORIGINS", "").split(",") if each])
