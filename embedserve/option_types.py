"""The options of `config.py` as keyword arguments, for type checkers and editors: what may be written for each.

A test holds that these are the fields of the models there. Knows neither defaults nor bounds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Required, TypeAlias, TypedDict

if TYPE_CHECKING:
    from embedserve.config import (
        AbsentVersions,
        Batching,
        BatchingOptions,
        FreeBatch,
        LoggingOptions,
        Optimize,
        RetryPolicy,
        VersionPolicy,
    )
    from embedserve.store_url import StoreUrl

__all__ = ["ModelOptions", "RegistryKeywords"]

PathLike: TypeAlias = "str | os.PathLike[str]"


class ModelOptions(TypedDict, total=False):
    """What `ModelConfig` takes; a dictionary of it stands for one in `ModelRegistry(models=[...])`."""

    name: Required[str]
    base_path: Required[PathLike | StoreUrl]
    version_policy: VersionPolicy
    version_labels: Mapping[str, int]
    batching: Batching | None
    batching_options: BatchingOptions | Mapping[str, Any] | None
    free_batch: FreeBatch | None
    servable: Literal["auto", "function", "session"] | None
    optimize: Optimize | None
    optimize_tolerance: float | None
    saved_model_tags: Sequence[str]
    input_ranks: Mapping[str, int]
    warmup: Literal["auto", "none"] | None
    prefer_tflite_model: bool | None
    run_timeout: float | None
    num_tflite_pools: int | None
    logging_config: LoggingOptions | Mapping[str, Any] | None
    storage_options: Mapping[str, Any]


class RegistryKeywords(TypedDict, total=False):
    """What `ModelRegistry` takes beside models and observers: the fields of `RegistryOptions`."""

    batching: Batching
    batching_options: BatchingOptions | Mapping[str, Any]
    free_batch: FreeBatch
    servable: Literal["auto", "function", "session"]
    optimize: Optimize
    optimize_tolerance: float
    warmup: Literal["auto", "none"]
    prefer_tflite_model: bool
    num_tflite_pools: int | None
    num_batch_threads: int
    run_timeout: float
    max_stuck_runs: int | None
    load_timeout: float
    num_load_threads: int
    max_pending_requests: int
    poll_interval: float
    watch: bool
    settle: float
    start_timeout: float
    start_requires: Literal["all", "any"] | None
    absent_versions: AbsentVersions
    drain_timeout: float
    retry: RetryPolicy | Mapping[str, Any]
    transition: Literal["availability", "resource"]
    allow_version_labels_for_unavailable_models: bool
    labels_ahead: bool
    enable_per_model_batching_parameters: bool
    preload_modules: Sequence[str]
    op_libraries: Sequence[str]
    enable_signature_method_name_check: bool
    num_warmup_iterations: int
    gc_freeze: bool
    max_request_bytes: int
    max_inflight_bytes: int | None
    request_log_max_file_bytes: int
    request_log_max_total_bytes: int
    request_log_root: PathLike | None
    remote_cache_dir: PathLike | None
    remote_cache_max_bytes: int | None
    remote_poll_interval: float | None
    remote_timeout: float
    remote_storage_options: Mapping[str, Mapping[str, Any]]
