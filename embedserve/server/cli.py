"""The command line: flags and environment → `ServerConfig` → a running server, and the exit status.

`python -m embedserve models/`, or `tensorflow_model_server`'s arguments. `flags` lists the flags.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedserve.config import BatchingOptions, ModelConfig, RegistryOptions, RetryPolicy, location, validated
from embedserve.errors import Code, ConfigError, ServingError
from embedserve.remote.options import read_storage_options
from embedserve.server import tensorflow_setup
from embedserve.server.config import ConfigFile, ServerConfig
from embedserve.server.flags import FLAGS, FlagError, ParsedFlags, comma_separated, option_values, parse, usage
from embedserve.server.hangups import PROGRAM
from embedserve.server.log import configure_logging
from embedserve.server.observing import observing
from embedserve.server.port_flags import ports
from embedserve.server.process import run_server
from embedserve.server.sagemaker import with_conventions
from embedserve.server.standalone import report_failed_start, run
from embedserve.server.workers.worker_limits import can_share_ports
from embedserve.store_url import StoreUrl, redacted
from embedserve.tfs.batching import batching_from_proto, num_batch_threads
from embedserve.tfs.config import (
    Platform,
    models_from_proto,
    platforms_from_file,
    read_model_server_config,
)
from embedserve.tfs.protos import message_class, read_text_proto

__all__ = ["serve", "server_config"]

logger = logging.getLogger("embedserve")

# Exit status for bad flags, as in TensorFlow Serving (-1).
EXIT_BAD_FLAGS = 255


def serve(arguments: Sequence[str]) -> int:
    """Run the standalone server and return the exit status: 0 after a drain, 255 after a failed start."""
    try:
        flags = parse(arguments)
    except FlagError as error:
        print(usage(PROGRAM), flush=True)
        print(error, file=sys.stderr)  # After the long usage, at the visible end.
        return EXIT_BAD_FLAGS
    if flags.help:
        print(usage(PROGRAM))
        return 0
    if flags.on("version"):
        print(f"TensorFlow ModelServer: {_version('embedserve')} (embedserve)")
        print(f"TensorFlow Library: {_version('tensorflow', 'tensorflow-cpu')}")
        return 0
    configure_logging(json=flags.text("log_format") == "json")
    try:
        if _workers(flags) > 0:
            tensorflow_setup.install_stub()
        if flags.on("sagemaker"):
            flags = with_conventions(flags, os.environ)
        config = server_config(flags, os.environ)
    except ServingError as error:
        return report_failed_start(error)
    if config.workers:
        from embedserve.server.workers.supervisor import run_supervisor

        return run(run_supervisor(config))
    return run(run_server(config))


def server_config(flags: ParsedFlags, environment: Mapping[str, str]) -> ServerConfig:
    """Interpret the flags, and read every file named by a flag.

    Raises:
        ConfigError: A flag or a file has an impossible value; in TensorFlow Serving's words where available.
    """
    grpc, rest = ports(flags)
    session_config = tensorflow_setup.session_config_from_flags(flags)
    platform = _platform_from_flags(flags)
    platforms: Mapping[str, Platform] = {"tensorflow": platform}
    if file := flags.text("platform_config_file"):
        platforms = platforms_from_file(file)
        platform = platforms.get("tensorflow") or Platform({})
        session_config = platform.session_config
    options = _registry_options(flags, platform)
    root, models, config_file = _models(flags, environment, platform, platforms)
    _check_labels(models or (), options)
    for name in flags.given:
        if FLAGS[name].support == "ignored":
            logger.warning("--%s is ignored: %s", name, FLAGS[name].note)
    return ServerConfig(
        root=root,
        models=models,
        config_file=config_file,
        platforms=platforms,
        options=options,
        grpc=grpc,
        rest=rest,
        observing=observing(flags, environment),
        session_config=session_config,
        workers=_workers(flags),
        worker_timeout=flags.real("worker_timeout"),
    )


def _workers(flags: ParsedFlags) -> int:
    """The number of workers; without the flag 1, or 0 where workers cannot share ports.

    A single worker is the default so that a dead process is replaced.
    """
    if "workers" not in flags and not can_share_ports():
        return 0
    if (workers := flags.number("workers")) < 0:
        raise ConfigError(f"--workers={workers}: 0 serves in this process, 1 or more under a supervisor")
    if flags.real("worker_timeout") <= 0:
        raise ConfigError("--worker_timeout must be more than 0 seconds")
    return workers


# Models.


def _models(
    flags: ParsedFlags, environment: Mapping[str, str], platform: Platform, platforms: Mapping[str, Platform]
) -> tuple[Path | StoreUrl | None, tuple[ModelConfig, ...] | None, ConfigFile | None]:
    """The root directory, or the models, or the models and their config file."""
    config_file, base_path = flags.text("model_config_file"), flags.text("model_base_path")
    if flags.directory is not None:
        for name in ("model_config_file", "model_base_path", "saved_model_tags", "platform_config_file"):
            if name in flags:
                raise ConfigError(f"give a directory of models or --{name}, not both")
        return location(flags.directory), None, None
    if config_file:
        path = Path(os.path.abspath(config_file))
        proto = read_model_server_config(path)
        interval = flags.number("model_config_file_poll_wait_seconds")
        file = ConfigFile(path=path, poll_interval=interval if interval > 0 else None, applied=proto)
        return None, tuple(models_from_proto(proto, platforms=platforms)), file
    name = flags.text("model_name")
    if not base_path and ("MODEL_BASE_PATH" in environment or "MODEL_NAME" in environment):
        # As in the entrypoint of TensorFlow Serving's images. A flag given to the container comes later and wins.
        container_name = environment.get("MODEL_NAME", "model")
        base_path = os.path.join(environment.get("MODEL_BASE_PATH", "/models"), container_name)
        name = name if "model_name" in flags else container_name
    if not base_path:
        raise ConfigError(
            "Both server_options.model_base_path and server_options.model_config_file are empty! Name a directory of "
            f"models ({PROGRAM} models/), or --model_base_path, or --model_config_file"
        )
    where = redacted(base_path)
    logger.info("Building single TensorFlow model file config:  model_name: %s model_base_path: %s", name, where)
    return None, (validated(ModelConfig, {**platform.model_options, "name": name, "base_path": base_path}),), None


def _check_labels(models: Sequence[ModelConfig], options: RegistryOptions) -> None:
    """Refuse labels at the start, like TensorFlow Serving: no version is available before the first load."""
    if options.allow_version_labels_for_unavailable_models or options.labels_ahead:
        return
    for model in models:
        for version in model.version_labels.values():
            raise ConfigError(
                f"Request to assign label to version {version} of model {model.name}, which is not currently available "
                "for inference; --allow_version_labels_for_unavailable_models=true lets a server start with labels",
                code=Code.FAILED_PRECONDITION,
            )


# Options of the registry.


def _platform_from_flags(flags: ParsedFlags) -> Platform:
    """The batching, warm-up and tag flags, as if set in a platform config file."""
    batched, adaptive = flags.on("enable_batching"), flags.on("adaptive_batching")
    threads: int | None = None
    options: dict[str, Any] = {}
    if adaptive:
        if "enable_batching" in flags and not batched:
            raise ConfigError(
                "--adaptive_batching batches requests, --enable_batching=false does not: give one of them"
            )
        options["batching"] = "adaptive"
    elif "enable_batching" in flags or flags.directory is None:
        options["batching"] = batched
    file = flags.text("batching_parameters_file")
    if batched or (adaptive and file):
        parameters: Any = message_class("BatchingParameters")()
        if file:
            read_text_proto(file, parameters)
        options["batching_options"] = batching_from_proto(parameters)
        threads = num_batch_threads(parameters)
    elif file:
        raise ConfigError(
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true."
        )
    if "target_latency" in flags:
        if not adaptive:
            raise ConfigError("--target_latency says what --adaptive_batching aims at: give both")
        said = options.get("batching_options", BatchingOptions()).model_dump()
        options["batching_options"] = validated(
            BatchingOptions, said | {"target_latency": flags.real("target_latency")}
        )
    options["warmup"] = "auto" if flags.on("enable_model_warmup") else "none"
    if "saved_model_tags" in flags:
        options["saved_model_tags"] = comma_separated(flags.text("saved_model_tags"))
    return Platform(
        options,
        num_batch_threads=threads,
        per_model_batching=(batched or adaptive) and flags.on("enable_per_model_batching_parameters"),
        warmup_iterations=flags.number("num_request_iterations_for_warmup") or None,
    )


def _registry_options(flags: ParsedFlags, platform: Platform) -> RegistryOptions:
    of_platform = {
        name: platform.model_options[name] for name in ("batching", "warmup") if name in platform.model_options
    }
    options: dict[str, Any] = {
        **option_values(flags),
        **of_platform,
        "batching_options": platform.model_options.get("batching_options", BatchingOptions()),
        "enable_per_model_batching_parameters": platform.per_model_batching,
        "num_warmup_iterations": max(platform.warmup_iterations or 1, 1),
    }
    if platform.num_batch_threads is not None:
        options.setdefault("num_batch_threads", platform.num_batch_threads)
    if load_threads := max(flags.number("num_load_threads"), flags.number("num_unload_threads")):
        options["num_load_threads"] = load_threads
    if "watch" not in flags and math.isinf(options["poll_interval"]):
        options["watch"] = False  # A single scan is wanted; file system events would bring a second scan.
    if file := flags.text("remote_storage_options_file"):
        options["remote_storage_options"] = read_storage_options(file)
    if flags.directory is None or "max_num_load_retries" in flags or "load_retry_interval_micros" in flags:
        interval = max(flags.number("load_retry_interval_micros"), 0) / 1e6
        retries = max(flags.number("max_num_load_retries"), 0)
        options["retry"] = RetryPolicy(max_retries=retries, initial=interval, maximum=interval)
    return validated(RegistryOptions, options)


# The process.


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
