"""TensorFlow Serving's `BatchingParameters` of a server or a version → batching options.

The words of errors are TensorFlow Serving's (session_bundle_config.proto, batching_util.cc). Knows no model and no
queue.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from embedserve.config import Batching, BatchingOptions, ModelConfig, RegistryOptions, validated
from embedserve.errors import ConfigError, LoadError
from embedserve.tfs.protos import message_class, read_text_proto

__all__ = ["batching_from_proto", "batching_of_version", "num_batch_threads"]

logger = logging.getLogger("embedserve")

VERSION_BATCHING_FILE = "batching_params.pbtxt"


def num_batch_threads(parameters: Any) -> int | None:
    """The number of run threads in `BatchingParameters`, or None.

    Raises:
        ConfigError: The number is not positive.
    """
    if not parameters.HasField("num_batch_threads"):
        return None
    value: int = parameters.num_batch_threads.value
    if value <= 0:
        raise ConfigError(f"num_batch_threads must be positive; was {value}")
    return value


def batching_from_proto(parameters: Any) -> BatchingOptions:
    """Convert `BatchingParameters`, with TensorFlow Serving's defaults: a request larger than a batch is refused.

    Raises:
        ConfigError: The first finding, in TensorFlow Serving's words.
    """

    def value(name: str, default: int) -> int:
        number: int = getattr(parameters, name).value if parameters.HasField(name) else default
        return number

    split = parameters.enable_large_batch_splitting.value
    max_batch_size = value("max_batch_size", 1000)
    timeout = value("batch_timeout_micros", 0)
    enqueued = value("max_enqueued_batches", 10)
    execution = value("max_execution_batch_size", 0) or max_batch_size
    allowed = tuple(parameters.allowed_batch_sizes)
    if allowed and allowed[-1] != max_batch_size:
        raise ConfigError(
            f"Last entry in allowed_batch_sizes must match max_batch_size; last entry was {allowed[-1]}; expected "
            f"{max_batch_size}"
        )
    if max_batch_size <= 0:
        raise ConfigError(f"input_batch_size_limit must be positive; was {max_batch_size}")
    if timeout < 0:
        raise ConfigError(f"batch_timeout_micros must be non-negative; was {timeout}")
    if enqueued < 0 or (split and not enqueued):
        raise ConfigError(f"max_enqueued_batches must be positive; was {enqueued}")
    if split and execution > max_batch_size:
        raise ConfigError(
            "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to "
            f"max_execution_batch_size. {max_batch_size} < {execution}"
        )
    return validated(
        BatchingOptions,
        {
            "max_batch_size": max_batch_size,
            "batch_timeout_micros": timeout,
            "max_enqueued_batches": enqueued or 1,
            "allowed_batch_sizes": allowed,
            "pad_variable_length_inputs": parameters.pad_variable_length_inputs,
            "enable_large_batch_splitting": split,
            "max_execution_batch_size": execution if split else None,
            "oversize": "reject",
        },
    )


def batching_of_version(
    directory: str | os.PathLike[str], model: ModelConfig, options: RegistryOptions
) -> tuple[Batching, BatchingOptions]:
    """Find the batching of the version in `directory`.

    With `enable_per_model_batching_parameters` the version's `batching_params.pbtxt` replaces the model's batching
    options, except `target_latency`. A version without the file is not batched (TF Serving:
    saved_model_bundle_factory.cc). The file's `num_batch_threads` has no effect, because threads belong to the process.

    Raises:
        LoadError: The file does not parse or is inconsistent.
    """
    batching, configured = options.batching_of(model)
    if batching is False or not options.enable_per_model_batching_parameters:
        return batching, configured
    file = Path(directory) / VERSION_BATCHING_FILE
    if not file.exists():
        logger.info("%s is not batched: it has no %s", os.fspath(directory), VERSION_BATCHING_FILE)
        return False, configured
    try:
        found = batching_from_proto(read_text_proto(file, message_class("BatchingParameters")()))
        return batching, found.model_copy(update={"target_latency": configured.target_latency})
    except ConfigError as error:
        raise LoadError(str(error), code=error.code) from error
