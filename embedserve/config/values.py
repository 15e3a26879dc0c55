"""The values that options take: clients of a service, version policies, batching, retries and request logs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from embedserve.config.location import AbsolutePath
from embedserve.config.row import Options, PythonOnly, Reach, SetBy

__all__ = [
    "AbsentVersions",
    "Access",
    "AllVersions",
    "Batching",
    "BatchingOptions",
    "Clients",
    "FreeBatch",
    "LatestVersions",
    "LoggingOptions",
    "Optimize",
    "RetryPolicy",
    "ServableKind",
    "SpecificVersions",
    "VersionPolicy",
    "Warmup",
]

Batching = Literal["auto", "adaptive"] | bool
FreeBatch = Literal["auto"] | bool
Optimize = Literal["none", "freeze", "xla"]
ServableKind = Literal["auto", "function", "session"]
Warmup = Literal["auto", "none"]
AbsentVersions = Literal["keep", "unload", "last"]

Clients = Literal["none", "local", "all"]
"""The clients of a service: none, clients on the local machine (loopback addresses, Unix sockets), or every client."""


class Access(Options):
    """Clients of the gRPC services with effects on more than a single request: changes, disclosure or delays."""

    reload: Annotated[Clients, SetBy("reload_clients")] = Field(
        default="local", description="HandleReloadConfigRequest, a choice of the directories of models."
    )
    session_run: Annotated[Clients, SetBy("session_run_clients")] = Field(
        default="none", description="SessionRun, a read of any tensor of a graph; UNIMPLEMENTED with `none`."
    )
    profiler: Annotated[Clients, SetBy("profiler_clients")] = Field(
        default="none",
        description="`tensorflow.ProfilerService`, a writer of files below a directory named by the client; absent "
        "with `none`.",
    )


class LatestVersions(Options):
    """Aspire to the `num_versions` numerically largest versions found."""

    reached_by: ClassVar[Reach | None] = SetBy("model_config_file")

    num_versions: int = Field(default=1, ge=1)


class AllVersions(Options):
    """Aspire to every version found."""


class SpecificVersions(Options):
    """Aspire to exactly the listed versions, as far as the versions exist."""

    reached_by: ClassVar[Reach | None] = SetBy("model_config_file")

    versions: tuple[int, ...] = Field(default=())


VersionPolicy = LatestVersions | AllVersions | SpecificVersions


class BatchingOptions(Options):
    """How requests of one loaded version and signature share a run (TF Serving: session_bundle_config.proto)."""

    reached_by: ClassVar[Reach | None] = SetBy("batching_parameters_file")

    max_batch_size: int = Field(
        default=128,
        ge=1,
        description='Largest batch in rows and, unless split or `oversize="alone"`, the largest request.',
    )
    batch_timeout_micros: int = Field(
        default=0,
        ge=0,
        description="How long the first request of an open batch may wait for further requests; 0 never waits.",
    )
    max_enqueued_batches: int = Field(
        default=64, ge=1, description="Bound of each queue, in batches, without running batches."
    )
    allowed_batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="Batches are padded up to the next size in the list; empty means no padding."
    )
    pad_variable_length_inputs: bool = Field(
        default=False, description="Pad dimensions after the first to the batch's largest."
    )
    enable_large_batch_splitting: bool = Field(
        default=False, description="Cut requests larger than the execution size into several batches."
    )
    max_execution_batch_size: int | None = Field(
        default=None, ge=1, description="Largest batch when splitting; `max_batch_size` if None."
    )
    oversize: Annotated[
        Literal["alone", "reject"], PythonOnly("the server refuses as TensorFlow Serving does, or takes the default")
    ] = Field(
        default="alone",
        description="The fate of a request over `max_batch_size` without splitting: `reject` as TF Serving does, or a "
        "separate run (`alone`).",
    )
    target_latency: Annotated[float, SetBy("target_latency")] = Field(
        default=0.1,
        gt=0,
        description='Seconds that an answer should take with `batching="adaptive"`, waiting and running together.',
    )

    @property
    def execution_size(self) -> int:
        """Rows of the largest batch in a run."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size is not None:
            return self.max_execution_batch_size
        return self.max_batch_size

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizes = self.allowed_batch_sizes
        if sizes and sizes[-1] != self.max_batch_size:
            raise ValueError(
                "Last entry in allowed_batch_sizes must match max_batch_size; "
                f"last entry was {sizes[-1]}; expected {self.max_batch_size}"
            )
        if self.enable_large_batch_splitting and self.execution_size > self.max_batch_size:
            raise ValueError(
                "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to "
                f"max_execution_batch_size. {self.max_batch_size} < {self.execution_size}"
            )
        return self


class RetryPolicy(Options):
    """How often and how fast a failed load is tried again: `initial`, doubling to `maximum` seconds.

    `max_retries=None` retries for as long as the version is aspired.
    """

    reached_by: ClassVar[Reach | None] = SetBy("max_num_load_retries", "load_retry_interval_micros")

    max_retries: int | None = Field(default=None, ge=0)
    initial: float = Field(default=1.0, ge=0)
    maximum: float = Field(default=60.0, ge=0)

    def delay(self, failures: int) -> float | None:
        """Return the seconds to wait after the `failures`-th failure in a row, or None to give up."""
        if self.max_retries is not None and failures > self.max_retries:
            return None
        return min(self.initial * 2.0 ** min(failures - 1, 60), self.maximum)


class LoggingOptions(Options):
    """The choice of logged requests of a model, and the place of the log; see `embedserve.request_log`."""

    reached_by: ClassVar[Reach | None] = SetBy("model_config_file")

    filename_prefix: AbsolutePath = Field(
        description="Directory and beginning of the names of the log files; made absolute. Models may share a prefix."
    )
    sampling_rate: float = Field(
        default=1.0, ge=0, le=1, description="Logged share of the successful requests; 1 is all."
    )
    max_file_bytes: Annotated[int | None, SetBy("request_log_max_file_bytes")] = Field(
        default=None,
        ge=1,
        description="Bytes, as `RegistryOptions.request_log_max_file_bytes`; None takes that option.",
    )
    max_total_bytes: Annotated[int | None, SetBy("request_log_max_total_bytes")] = Field(
        default=None,
        ge=1,
        description="Bytes, as `RegistryOptions.request_log_max_total_bytes`; None takes that option.",
    )
