"""The options of a registry, a row for each: field, bounds, meaning, flag and conversion.

The rows are in the order of `--help`. `server/cli.py` makes the options that several flags set together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from embedserve.concurrency.container import usable_cpus
from embedserve.config.location import AbsolutePath
from embedserve.config.model import ModelConfig
from embedserve.config.row import Flag, Options, SetBy, comma_separated
from embedserve.config.values import (
    AbsentVersions,
    Batching,
    BatchingOptions,
    FreeBatch,
    Optimize,
    RetryPolicy,
    ServableKind,
    Warmup,
)
from embedserve.errors import ConfigError

__all__ = ["RegistryOptions"]


def _poll_interval(seconds: int) -> float:
    if seconds < 0:
        raise ConfigError(
            f"--file_system_poll_wait_seconds={seconds} would never look for a version; 0 looks once, 1 every second"
        )
    return seconds or math.inf


class RegistryOptions(Options):
    """Options of a `ModelRegistry`, for all models together. Options of `ModelConfig` are defaults for models."""

    servable: Annotated[ServableKind, Flag()] = Field(
        default="auto", description="How models run: function, session or auto."
    )
    free_batch: Annotated[FreeBatch, Flag(kind="string")] = Field(
        default="auto",
        description="Take any number of rows where a signature declares a fixed one: auto (where it is safe), true or "
        "false.",
    )
    optimize: Annotated[Optimize, Flag()] = Field(
        default="none", description="Optimised execution where a model allows it: none, freeze or xla."
    )
    optimize_tolerance: Annotated[float, Flag()] = Field(
        default=1e-5, ge=0, description="How far an optimised answer may be off, relative to its size."
    )
    warmup: Annotated[
        Warmup,
        SetBy(Flag("enable_model_warmup", "bool", True, "Run warm-up requests before a version serves.")),
    ] = Field(default="auto", description="Made-up and recorded requests before a version serves: auto or none.")
    prefer_tflite_model: Annotated[
        bool,
        Flag(
            support="differs",
            note="no ParseExample operation; where a version holds a SavedModel too, that is served then",
        ),
    ] = Field(default=False, description="Serve model.tflite where a version has one.")
    num_tflite_pools: Annotated[int | None, Flag(default=0, unset="0 for one per run thread")] = Field(
        default=None,
        ge=1,
        description="TensorFlow Lite interpreters of each version. None is an interpreter per run thread.",
    )
    num_batch_threads: Annotated[int, Flag(default=0, unset="0 for one per CPU")] = Field(
        default_factory=usable_cpus,
        ge=1,
        description="Threads that run models. All models share the threads; the default is the number of usable CPUs. "
        "An extra thread is lent to a waiting model when another model has held all run threads for 0.1 "
        "s.",
    )
    run_timeout: Annotated[float, Flag()] = Field(
        default=600.0,
        gt=0,
        description="Seconds one run may take, whatever its callers' deadlines; inf for no bound. At the bound the "
        "run is stopped and the callers get DeadlineExceededError. An unstoppable run is stuck after the "
        "same time again (5 to 60 seconds): the thread is replaced and the version refused.",
    )
    loop_run_limit: Annotated[float, Flag()] = Field(
        default=0.0002,
        ge=0,
        le=0.01,
        description="Expected seconds up to which a run stays on the event loop; 0 for never. A thread would cost "
        "more. See docs/performance.md for the conditions.",
    )
    max_stuck_runs: Annotated[int | None, Flag(default=0, unset="0 for one per thread")] = Field(
        default=None,
        ge=1,
        description="Threads of stuck runs to replace before /-/live fails. At the bound `liveness()` asks to replace "
        "the process. None is `num_batch_threads`: TensorFlow's pools can lose the same number.",
    )
    load_timeout: Annotated[float, Flag()] = Field(
        default=1800.0,
        gt=0,
        description="Seconds a step of a load may take until it counts as hung; inf for no bound. Steps are: reading "
        "and trying the model, the recorded requests, and warm-up in a run thread. A made-up run has a "
        "minute, a recorded run ten minutes. A longer step is left behind in the thread. The version "
        "fails with the name of the step and is not tried again.",
    )
    num_load_threads: Annotated[
        int,
        SetBy(
            Flag(
                "num_load_threads",
                "int32",
                0,
                "Threads that load versions; 0 for embedserve's default.",
                "differs",
                "loads, unloads and directory scans share one pool",
            ),
            Flag(
                "num_unload_threads",
                "int32",
                0,
                "Threads that unload versions.",
                "differs",
                "shared with --num_load_threads",
            ),
        ),
    ] = Field(default=2, ge=1, description="Threads for load and unload.")
    batching: Annotated[
        Batching,
        SetBy(
            Flag(
                "enable_batching",
                "bool",
                False,
                "Let concurrent requests share a run.",
                "differs",
                "with a models directory and without this flag, signatures that are safe to batch are batched",
            ),
            Flag(
                "adaptive_batching",
                "bool",
                False,
                "Batch what is safe to batch, in sizes learnt from how long runs take.",
            ),
        ),
    ] = Field(default="auto", description="Whether concurrent requests share a run: auto, adaptive, true or false.")
    batching_options: Annotated[
        BatchingOptions,
        SetBy(
            Flag(
                "batching_parameters_file",
                "string",
                "",
                "Text-format BatchingParameters; needs --enable_batching.",
            ),
            Flag("target_latency", "float", 0.1, "Seconds that an answer should take with --adaptive_batching."),
        ),
    ] = Field(default=BatchingOptions(), description="Queue and batch sizes.")
    max_pending_requests: Annotated[int, Flag()] = Field(
        default=1000,
        ge=1,
        description="Requests an unbatched version may have waiting or running.",
    )
    poll_interval: Annotated[
        float,
        Flag(
            "file_system_poll_wait_seconds",
            "int32",
            1,
            "Seconds between directory scans; 0 for one scan.",
            "differs",
            "file system events make a scan come sooner, see --watch; a negative value is refused",
            to=_poll_interval,
        ),
    ] = Field(
        default=1.0, gt=0, description="Seconds between directory scans; watch events only make a scan come sooner."
    )
    watch: Annotated[bool, Flag()] = Field(default=True, description="Use file system events as hints to scan sooner.")
    settle: Annotated[float, Flag()] = Field(
        default=0.2,
        ge=0,
        description="Seconds for which a version directory must not change before it is loaded.",
    )
    start_timeout: Annotated[
        float,
        Flag(
            default=0.0,
            help="Seconds the first load may take; 0 for no limit.",
            to=lambda seconds: seconds if seconds > 0 else math.inf,
        ),
    ] = Field(
        default=300.0,
        gt=0,
        description="Longest time of entering in seconds, until the models required by `start_requires` are available.",
    )
    start_requires: Annotated[
        Literal["all", "any"] | None,
        Flag(default="", unset="by default any of a directory's, all of those named"),
    ] = Field(
        default=None,
        description="Models that must be available to start: all, or any. `any` waits for copies, fetches and loads "
        "under way, and then serves without the failed models; the background tries failed models again. "
        "None is `any` for a registry with a root and `all` without a root.",
    )
    absent_versions: Annotated[AbsentVersions, Flag()] = Field(
        default="keep",
        description="When a version policy names only versions that are not there: keep what serves, or unload it; "
        "last keeps deleted ones too. `unload` does as TF Serving does. `last` is as `keep`, and a "
        "model's last versions also outlive the deletion of the directories or objects.",
    )
    drain_timeout: Annotated[float, Flag(help="Seconds that requests in flight have to finish after SIGTERM.")] = Field(
        default=30.0,
        ge=0,
        description="Longest wait for requests in flight at leaving, in seconds; then the handles are taken away.",
    )
    retry: Annotated[
        RetryPolicy,
        SetBy(
            Flag("max_num_load_retries", "int32", 5, "How often a failed load is tried again."),
            Flag(
                "load_retry_interval_micros",
                "int64",
                60_000_000,
                "Wait between load attempts; negative for none.",
            ),
        ),
    ] = Field(default=RetryPolicy(), description="Retries of failed loads.")
    transition: Annotated[Literal["availability", "resource"], Flag()] = Field(
        default="availability", description="Load the new version first (availability), or last (resource)."
    )
    allow_version_labels_for_unavailable_models: Annotated[bool, Flag()] = Field(
        default=False,
        description="Accept a new label for a version that is not available yet.",
    )
    enable_per_model_batching_parameters: Annotated[
        bool,
        SetBy(
            Flag(
                "enable_per_model_batching_parameters",
                "bool",
                False,
                "Read batching_params.pbtxt from each version directory; a version without one is not batched.",
            )
        ),
    ] = Field(
        default=False,
        description="Read `batching_params.pbtxt` from each version directory, in place of the batching options; a "
        "version without one is not batched.",
    )
    preload_modules: Annotated[
        tuple[str, ...],
        Flag(
            default="",
            help="Comma-separated modules to import before the first load, for custom ops.",
            to=comma_separated,
        ),
    ] = Field(default=(), description="Modules imported before the first load, for custom ops.")
    op_libraries: Annotated[
        tuple[str, ...],
        Flag(default="", help="Comma-separated shared libraries of custom ops.", to=comma_separated),
    ] = Field(
        default=(), description="Shared libraries given to `tf.load_op_library` before the first load, for custom ops."
    )
    enable_signature_method_name_check: Annotated[bool, Flag()] = Field(
        default=False, description="Check a signature's method_name in Classify and kin."
    )
    num_warmup_iterations: Annotated[
        int,
        SetBy(
            Flag(
                "num_request_iterations_for_warmup",
                "int32",
                0,
                "How often each warm-up request runs; 0 for once.",
            )
        ),
    ] = Field(default=1, ge=1, description="How often each recorded warm-up request is replayed.")
    gc_freeze: Annotated[bool, Flag(default=True)] = Field(
        default=False,
        description="Keep what exists before the first load out of the garbage collector's sight. Collections get "
        "short. The effect is on the whole process, so a host decides; the standalone server has the "
        "option on.",
    )
    labels_ahead: Annotated[bool, Flag()] = Field(
        default=False,
        description="Accept labels for versions that are not there yet. A label answers once the version is available.",
    )
    max_request_bytes: Annotated[int, Flag(kind="int64")] = Field(
        default=2**31 - 1, ge=1, description="Largest request body, also after decompression."
    )
    request_log_max_file_bytes: Annotated[int, Flag(kind="int64")] = Field(
        default=64 * 2**20, ge=1, description="Size at which a request log goes on in another file."
    )
    request_log_max_total_bytes: Annotated[int, Flag(kind="int64")] = Field(
        default=2**30, ge=1, description="Size of all files of one request log; the oldest go first."
    )
    request_log_root: Annotated[AbsolutePath | None, Flag(default="", unset="empty for no new ones")] = Field(
        default=None,
        description="Directory below which reloads may have request logs. None allows only the existing logs.",
    )
    remote_cache_dir: Annotated[AbsolutePath | None, Flag(default="", unset="empty for ~/.cache/embedserve")] = Field(
        default=None,
        description="Where versions from stores are kept. None is `~/.cache/embedserve`. Processes may share a cache, "
        "and a restart works from the cache while a store is down.",
    )
    remote_cache_max_bytes: Annotated[
        int | None,
        Flag(kind="int64", default=0, help="Bound of --remote_cache_dir.", unset="0 keeps only what is served"),
    ] = Field(
        default=None,
        ge=1,
        description="Bound of the cache; None keeps only served versions. A version beyond the bound is not fetched.",
    )
    remote_poll_interval: Annotated[
        float | None,
        Flag("remote_poll_wait_seconds", default=0.0, unset="0 for those between scans"),
    ] = Field(default=None, gt=0, description="Seconds between looks at a store. None is `poll_interval`.")
    remote_timeout: Annotated[float, Flag()] = Field(
        default=60.0, gt=0, description="Seconds a store may take for an answer, or between two bytes."
    )
    remote_storage_options: Annotated[
        Mapping[str, Mapping[str, object]],
        SetBy(
            Flag(
                "remote_storage_options_file",
                "string",
                "",
                "JSON file: options of fsspec by scheme; credentials go here.",
            )
        ),
    ] = Field(
        default_factory=dict,
        repr=False,
        description="Arguments to fsspec by the URL's scheme: `{'s3': {'endpoint_url': ...}}`.",
    )
    max_inflight_bytes: Annotated[
        int | None,
        Flag(kind="int64", default=0, unset="0 for a quarter of memory, or of the container's limit"),
    ] = Field(
        default=None,
        ge=1,
        description="Bytes of requests and answers held at once. Bodies, decoded inputs and unsent answers of all "
        "adapters count. None is a quarter of the process's usable memory, within the limit of the "
        "control group.",
    )

    timing_headers: Annotated[bool, Flag()] = Field(
        default=False,
        description="Tell the times of each call in the answer: `Server-Timing` on REST, and `server-timing` in gRPC's "
        "trailing metadata. Without the option a client asks by `x-embedserve-timing: 1`.",
    )
    trusted_proxies: Annotated[
        tuple[str, ...],
        Flag(
            default="",
            help="Comma-separated addresses and networks of proxies whose X-Forwarded-For counts; unix: Unix sockets.",
            to=comma_separated,
        ),
    ] = Field(
        default=(),
        description="Addresses and networks of the proxies whose `X-Forwarded-For` names the client in logs, traces "
        "and events; `unix` is every peer at a Unix socket.",
    )

    def batching_of(self, model: ModelConfig) -> tuple[Batching, BatchingOptions]:
        """Return how a model is batched: the model's options, else the registry's."""
        batching = self.batching if model.batching is None else model.batching
        return batching, model.batching_options or self.batching_options
