"""A Flask service that asks a model from its views: no event loop in sight.

python -m examples.flask_service models/ --port 5000

Under a server that forks workers, enter the registry in the worker, not before the fork.
"""

from __future__ import annotations

import argparse

from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue

from embedserve import ModelRegistry, ServingError
from embedserve.rest import flask_error


def create_app(registry: ModelRegistry) -> Flask:
    app = Flask(__name__)
    app.register_error_handler(ServingError, flask_error)

    @app.post("/digit")
    def digit() -> ResponseReturnValue:
        out = registry.predict_sync("digits", {"pixels": [request.json["pixels"]]})
        return jsonify(digit=int(out["digit"][0]))

    @app.get("/models")
    def models() -> ResponseReturnValue:
        return jsonify(
            {name: [f"{v.version} {v.state.name}" for v in versions] for name, versions in registry.status().items()}
        )

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models")
    parser.add_argument("--port", type=int, default=5000)
    arguments = parser.parse_args()
    with ModelRegistry(arguments.models) as registry:
        create_app(registry).run(port=arguments.port, threaded=True)


if __name__ == "__main__":
    main()
