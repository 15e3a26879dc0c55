"""Services that were there before: FastAPI with a mounted registry, Flask with `predict_sync`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.digits.train import load_digits
from tests.support.programs import answers, fetch, free_port, program

pytestmark = pytest.mark.timeout(400)  # Several programs that import TensorFlow, one after the other.


def test_fastapi_service_keeps_its_routes_and_gains_models(digit_models: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = ("-m", "uvicorn", "examples.fastapi_service:app", "--port", port, "--log-level", "warning")
    image = load_digits().held_out_images[0].tolist()
    with program(*server, until=answers(f"{url}/visits"), MODELS=str(digit_models)):
        assert fetch(f"{url}/visits")[1]["visits"] > 1, "the service's own lifespan ran"

        status, mounted = fetch(f"{url}/ml/v1/models/digits:predict", {"instances": [image]})
        assert status == 200
        expected = mounted["predictions"][0]
        assert fetch(f"{url}/digit", {"pixels": image}) == (
            200,
            {"digit": expected["digit"], "probability": np.float32(expected["probability"]).item()},
        )
        assert fetch(f"{url}/digit-sync", {"pixels": image}) == (200, {"digit": expected["digit"]})

        for path in ("digit", "digit-sync"):
            status, refused = fetch(f"{url}/{path}", {"pixels": [1.0, 2.0]})
            assert status == 400
            assert "pixels" in refused["error"]


def test_flask_service_answers_from_its_views(digit_models: Path) -> None:
    digits, port = load_digits(), free_port()
    url = f"http://127.0.0.1:{port}"
    with program("-m", "examples.flask_service", digit_models, "--port", port, until=answers(f"{url}/models")):
        assert fetch(f"{url}/models") == (200, {"digits": ["1 AVAILABLE"]})
        found = [fetch(f"{url}/digit", {"pixels": image.tolist()})[1]["digit"] for image in digits.held_out_images[:50]]
        assert np.mean(found == digits.held_out_labels[:50]) > 0.8
        status, refused = fetch(f"{url}/digit", {"pixels": ["not a number"] * 64})
        assert status == 400
        assert "pixels" in refused["error"]
