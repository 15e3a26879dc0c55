"""`status URL`: every version of every model, its state and its error; and whether the server is ready."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from embedserve.commands.asking import EXIT_FINDING, Parser, Server, patience
from embedserve.commands.tables import table

__all__ = ["status"]


def status(arguments: Sequence[str], program: str) -> int:
    """Print the state of a server; return 0 if every model is ready, else 1.

    Raises:
        CommandError: No server answers.
    """
    parser = Parser(
        prog=f"{program} status",
        description="Shows every version of every model of a server, its state and its error.",
        epilog="Exit status: 0 every model is ready, 1 a model is not, 2 bad arguments, 3 no answer.",
    )
    parser.add_argument("url", metavar="URL", help="the server with its mount point, http://localhost:8501")
    parser.add_argument("--timeout", type=patience, default=10.0, metavar="SECONDS", help="for each answer; 10")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    found = _state(Server(options.url, options.timeout))
    print(json.dumps(found, indent=2) if options.json else _text(found))
    return 0 if found["ready"] else EXIT_FINDING


def _state(server: Server) -> dict[str, Any]:
    listed, readiness = server.document("/v1/models"), server.document("/-/ready")
    if "models" not in listed:
        return {"ready": False, "reason": listed.get("error", ""), "models": []}
    models = []
    for model in listed["models"]:
        versions = server.document(f"/v1/models/{quote(model['name'], safe='')}").get("model_version_status", [])
        why = readiness.get("models", {}).get(model["name"], "unknown")
        models.append({"name": model["name"], "ready": why == "ready", "reason": why, "versions": versions})
    missing = {name for name, why in readiness.get("models", {}).items() if why != "ready"}
    ready = readiness.get("status") == "ready" and not missing and all(model["ready"] for model in models)
    return {"ready": ready, "reason": readiness.get("reason", ""), "models": models, "not_ready": sorted(missing)}


def _text(found: dict[str, Any]) -> str:
    rows = []
    for model in found["models"]:
        for version in model["versions"]:
            error = version["status"]
            told = "" if error["error_code"] == "OK" else f"{error['error_code']}: "
            rows.append((model["name"], version["version"], version["state"], told + error["error_message"]))
    told = "ready" if found["ready"] else " ".join(["not ready", *([found["reason"]] if found["reason"] else [])])
    waiting = [f"{model['name']} is not ready: {model['reason']}" for model in found["models"] if not model["ready"]]
    return "\n".join([table(("model", "version", "state", "message"), rows), *waiting, told])
