"""The options as keyword arguments, for type checkers. `python -m scripts.generate` writes the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Required, TypedDict

from embedserve.config.location import PathLike
from embedserve.config.values import (
    AbsentVersions,
    Batching,
    BatchingOptions,
    FreeBatch,
    LoggingOptions,
    Optimize,
    RetryPolicy,
    ServableKind,
    VersionPolicy,
    Warmup,
)
from embedserve.store_url import StoreUrl

__all__ = ["ModelOptions", "RegistryKeywords"]


class ModelOptions(TypedDict, total=False):
    """Options of `ModelConfig`; such a dictionary stands for a `ModelConfig` in `ModelRegistry(models=[...])`."""

    name: Required[str]
    base_path: Required[PathLike | StoreUrl]
    version_policy: VersionPolicy
    version_labels: Mapping[str, int]
    batching: Batching | None
    batching_options: BatchingOptions | Mapping[str, object] | None
    free_batch: FreeBatch | None
    servable: ServableKind | None
    optimize: Optimize | None
    optimize_tolerance: float | None
    saved_model_tags: Sequence[str]
    input_ranks: Mapping[str, int]
    warmup: Warmup | None
    prefer_tflite_model: bool | None
    run_timeout: float | None
    num_tflite_pools: int | None
    logging_config: LoggingOptions | Mapping[str, object] | None
    storage_options: Mapping[str, object]


class RegistryKeywords(TypedDict, total=False):
    """Keyword options of `ModelRegistry` beside models and observers: the fields of `RegistryOptions`."""

    servable: ServableKind
    free_batch: FreeBatch
    optimize: Optimize
    optimize_tolerance: float
    warmup: Warmup
    prefer_tflite_model: bool
    num_tflite_pools: int | None
    num_batch_threads: int
    run_timeout: float
    loop_run_limit: float
    max_stuck_runs: int | None
    load_timeout: float
    num_load_threads: int
    batching: Batching
    batching_options: BatchingOptions | Mapping[str, object]
    max_pending_requests: int
    poll_interval: float
    watch: bool
    settle: float
    start_timeout: float
    start_requires: Literal["all", "any"] | None
    absent_versions: AbsentVersions
    drain_timeout: float
    retry: RetryPolicy | Mapping[str, object]
    transition: Literal["availability", "resource"]
    allow_version_labels_for_unavailable_models: bool
    enable_per_model_batching_parameters: bool
    preload_modules: Sequence[str]
    op_libraries: Sequence[str]
    enable_signature_method_name_check: bool
    num_warmup_iterations: int
    gc_freeze: bool
    labels_ahead: bool
    max_request_bytes: int
    request_log_max_file_bytes: int
    request_log_max_total_bytes: int
    request_log_root: PathLike | None
    remote_cache_dir: PathLike | None
    remote_cache_max_bytes: int | None
    remote_poll_interval: float | None
    remote_timeout: float
    remote_storage_options: Mapping[str, Mapping[str, object]]
    max_inflight_bytes: int | None
    timing_headers: bool
    trusted_proxies: Sequence[str]
