"""`inspect MODEL_DIR|URL`: what a model takes and answers, how it runs and why, and a request that works.

A directory is loaded as a server loads it, with the given flags of the server. A URL is asked for its OpenAPI document.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedserve.commands.asking import EXIT_FINDING, CommandError, Parser, Server, is_url, patience
from embedserve.commands.inspection_report import text
from embedserve.config import ModelConfig, Optimize, RegistryOptions, RetryPolicy, SpecificVersions
from embedserve.errors import ServingError
from embedserve.handle import ModelHandle
from embedserve.registry import ModelRegistry
from embedserve.rest.api_document import described, examples
from embedserve.server import tensorflow_setup
from embedserve.server.config import ServerConfig
from embedserve.server.flags import FlagError
from embedserve.server.standalone import run
from embedserve.tuning.arguments import DECIDED, arguments_and_flags
from embedserve.tuning.model import Place, check_whole, find

__all__ = ["inspect"]

_TIMED = 30
"""Runs of which the median is told."""
_DECIDED = DECIDED | {"optimize"}


def inspect(arguments: Sequence[str], program: str, configured: Callable[[Sequence[str]], ServerConfig]) -> int:
    """Print the findings; return 0, or 1 for a model that cannot be loaded.

    Raises:
        CommandError: No server answers, or the model is absent.
    """
    parser = Parser(
        prog=f"{program} inspect",
        description="Shows what a model takes and answers, a request that works, whether requests share runs and why, "
        "what cannot be guarded, files and warm-up records.",
        epilog="Any flag of the server that says how a model is loaded or run may be given for a directory, as "
        "--name=value. Exit status: 0, 1 the model cannot be loaded or is unknown, 2 bad arguments, 3 no answer.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL_DIR|URL", help="a model's or version's directory, or a server: http://localhost:8501")
    add("--name", metavar="NAME", help="the only model of a server to show")
    add("--compare-optimized", action="store_true", help="load again frozen and compiled by XLA, and compare run times")
    add("--timeout", type=patience, default=10.0, metavar="SECONDS", help="for each answer of a server; 10")
    add("--json", action="store_true", help="print JSON")
    options, flags = arguments_and_flags(parser, arguments, _DECIDED, "the command decides")
    if is_url(options.model):
        found = _of_server(Server(options.model, options.timeout), options.name)
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        try:
            found = [_of_directory(options.model, flags, configured, compare=options.compare_optimized)]
        except FlagError as error:
            parser.error(str(error))
        except ServingError as error:
            raise CommandError(str(error), EXIT_FINDING) from None
    print(json.dumps(found, indent=2) if options.json else "\n\n".join(map(text, found)))
    return 0


# A server.


def _of_server(server: Server, name: str | None) -> list[dict[str, Any]]:
    api = server.document("/v1/openapi.json")
    if "paths" not in api:
        raise CommandError(f"{server.url}: {api.get('error', 'no OpenAPI document')}", EXIT_FINDING)
    found = []
    for path, operations in api["paths"].items():
        call = operations.get("post")
        if call is None or not path.endswith(":predict") or "/versions/" not in path:
            continue
        model = call["tags"][0]
        if name in (None, model):
            version = int(path.removesuffix(":predict").rpartition("/")[2])
            bodies = call["requestBody"]["content"]["application/json"].get("examples", {})
            requests = {title: example["value"] for title, example in bodies.items()}
            found.append(
                {
                    **{"model": model, "version": version, "place": server.url},
                    **{"url": f"{server.url}{path}", "signatures": call["x-signatures"], "requests": requests},
                }
            )
    if not found:
        known = ", ".join(sorted({tag["name"] for tag in api["tags"]} - {"models"})) or "no models"
        raise CommandError(f"{server.url} has no model {name or ''}; it has {known}", EXIT_FINDING)
    return found


# A directory.


def _of_directory(
    directory: str, flags: Sequence[str], configured: Callable[[Sequence[str]], ServerConfig], *, compare: bool
) -> dict[str, Any]:
    place = find(directory)
    config = configured((f"--model_name={place.base_path.name}", f"--model_base_path={place.base_path}", *flags))
    assert config.models is not None
    tensorflow_setup.apply(config.session_config)
    check_whole(place)
    model = config.models[0].model_copy(
        update={
            "version_policy": SpecificVersions(versions=(place.version,)),
            "batching": None if config.models[0].batching is False else config.models[0].batching,
        }
    )
    return run(_inspected(place, model, config.options, compare=compare))


def _registry(model: ModelConfig, options: RegistryOptions, optimize: Optimize) -> ModelRegistry:
    """A registry that loads the version once."""
    given: dict[str, Any] = {name: getattr(options, name) for name in RegistryOptions.model_fields}
    given |= {"poll_interval": math.inf, "watch": False, "settle": 0.0, "retry": RetryPolicy(max_retries=0)}
    given |= {"batching": "auto", "optimize": optimize}
    return ModelRegistry(models=[model], **given)


async def _inspected(place: Place, model: ModelConfig, options: RegistryOptions, *, compare: bool) -> dict[str, Any]:
    async with _registry(model, options, "none") as registry, registry.acquire(model.name) as handle:
        (status,) = (one for one in registry.status(model.name)[model.name] if one.version == place.version)
        seconds = await _run_times(handle) if compare else {}
        found: dict[str, Any] = {
            **{"model": model.name, "version": place.version, "place": str(place.path)},
            "url": f"http://localhost:8501/v1/models/{model.name}/versions/{place.version}:predict",
            **{"runs_as": status.kind, "notes": [status.note] if status.note else []},
            "signatures": {name: described(one) for name, one in handle.signatures.items()},
            "requests": {title: one["value"] for title, one in examples("predict", handle.signatures)},
            "files": await asyncio.to_thread(_files, place.path),
            "warmup_records": await asyncio.to_thread(_warmup_records, place.path),
        }
    if compare:
        found["run_seconds"] = {"as it is": seconds}
        for mode in ("freeze", "xla"):
            await _compare(found, mode, (place, model, options))
    return found


async def _compare(found: dict[str, Any], mode: Optimize, what: tuple[Place, ModelConfig, RegistryOptions]) -> None:
    """Add the run times under an optimisation, and the reason where the optimisation is refused."""
    place, model, options = what
    async with _registry(model, options, mode) as registry, registry.acquire(model.name) as handle:
        (status,) = (one for one in registry.status(model.name)[model.name] if one.version == place.version)
        if status.note and status.note not in found["notes"]:
            found["notes"].append(status.note)
        if status.kind in ("frozen", "xla"):
            found["run_seconds"][mode] = await _run_times(handle)


async def _run_times(handle: ModelHandle) -> dict[str, float]:
    """Median seconds of the tried request of each signature."""
    times = {}
    for name, signature in handle.signatures.items():
        if signature.example:
            taken = []
            for _ in range(_TIMED):
                began = time.perf_counter()
                await handle.predict(signature.example, signature_name=name)
                taken.append(time.perf_counter() - began)
            times[name] = statistics.median(taken)
    return times


def _files(path: Path) -> dict[str, int]:
    """Bytes by path below the version's directory."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.stat().st_size for file in files}


def _warmup_records(path: Path) -> Mapping[str, int] | None:
    """Recorded warm-up requests by kind; None without a file."""
    from embedserve.saved_model.files.meta_graph import warmup_file
    from embedserve.saved_model.load.warmup import read_logs

    file = warmup_file(path)
    if not file.is_file():
        return None
    return dict(Counter(str(log.WhichOneof("log_type")).removesuffix("_log") for log in read_logs(file)))
