"""TensorFlow Serving's `BatchingParameters`, the server's or one version's own → batching options.

Called by what reads the server's configuration and by the loader of a version. Words of errors are TensorFlow Serving's
(session_bundle_config.proto, batching_util.cc). Threads are the process's: no version has its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from embedserve.config import BatchingOptions, validated
from embedserve.errors import ConfigError
from embedserve.tfs_protos import message_class, read_text_proto

__all__ = ["batching_from_proto", "batching_of_version", "num_batch_threads"]

VERSION_BATCHING_FILE = "batching_params.pbtxt"


def num_batch_threads(parameters: Any) -> int | None:
    """Run threads that `BatchingParameters` ask for, or None.

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
    """`BatchingParameters` with TensorFlow Serving's defaults, which refuse a request larger than a batch.

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


def batching_of_version(directory: str | os.PathLike[str]) -> BatchingOptions | None:
    """The batching options in a version directory's `batching_params.pbtxt`; None when it has none: not batched.

    For `enable_per_model_batching_parameters`. Threads are the process's, so the file's `num_batch_threads` is ignored.

    Raises:
        ConfigError: The file does not parse or is inconsistent; a load error of that version.
    """
    path = Path(directory) / VERSION_BATCHING_FILE
    if not path.exists():
        return None
    return batching_from_proto(read_text_proto(path, message_class("BatchingParameters")()))
