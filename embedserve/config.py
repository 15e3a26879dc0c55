"""Every option of embedserve, and the only list of options. Flags are derived from or tested against the models here.

Durations are float seconds; `batch_timeout_micros` keeps the name and unit of TensorFlow Serving's files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Required, Self, TypeAlias, TypedDict, TypeVar, Unpack

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from embedserve.concurrency.container import usable_cpus
from embedserve.errors import Code, ConfigError, one_line
from embedserve.store_url import StoreUrl, check_readable, is_url, local_path

__all__ = [
    "Access",
    "AllVersions",
    "BatchingOptions",
    "Clients",
    "FreeBatch",
    "LatestVersions",
    "Location",
    "LoggingOptions",
    "ModelConfig",
    "ModelOptions",
    "RegistryKeywords",
    "RegistryOptions",
    "RetryPolicy",
    "SpecificVersions",
    "VersionPolicy",
    "absolute",
    "location",
    "name_problem",
    "near",
    "validated",
]


T = TypeVar("T", bound=BaseModel)


PathLike: TypeAlias = "str | os.PathLike[str]"


def absolute(value: str | os.PathLike[str]) -> Path:
    """Return an absolute and normal path, without following links."""
    path = os.path.expanduser(os.fspath(value))
    return Path(os.path.normpath(path if os.path.isabs(path) else os.path.join(os.getcwd(), path)))


def location(value: str | os.PathLike[str] | StoreUrl) -> Path | StoreUrl:
    """Return where models or versions are: an absolute path, or the URL of a readable store.

    Raises:
        ConfigError: The value is neither a path nor a URL, or no package reads the URL; the message says how to install
            the package.
    """
    if isinstance(value, StoreUrl):
        url = value
    elif not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{value!r} is neither a path nor a URL")
    else:
        text = os.fspath(value)
        if isinstance(value, PurePath) and len(value.parts[0]) > 2 and value.parts[0].endswith(":"):
            raise ConfigError(f"{value} has lost a slash of its URL to pathlib: give the URL as a str")
        if not is_url(text):
            return absolute(text)
        path = local_path(text)
        if path is not None:
            return absolute(path)
        url = StoreUrl(text)
    check_readable(url)
    return url


MAX_NAME = 255
"""Largest number of characters in a model's name: names stand in URLs, logs and labels, and often name a directory."""


def name_problem(name: str) -> str | None:
    """Return why a model cannot have the name, or None. A slash is allowed between parts, as in `team/model`."""
    if one_line(name) != name or "\t" in name:
        return "it holds control characters"
    if len(name) > MAX_NAME:
        return f"it has {len(name)} characters, {MAX_NAME} is the limit"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "it is empty, or a part of it is empty, `.` or `..`"
    return None


def _model_name(name: str) -> str:
    problem = name_problem(name)
    if problem is not None:
        raise ValueError(f"{name[:MAX_NAME]!r} cannot be a model's name: {problem}")
    return name


def _printable(path: Path) -> Path:
    if one_line(str(path)) != str(path):
        raise ValueError(f"{str(path)!r} holds control characters")
    return path


AbsolutePath = Annotated[Path, AfterValidator(absolute), AfterValidator(_printable)]
Location = Annotated[
    Path | StoreUrl,
    PlainValidator(location),
    PlainSerializer(lambda place: place.full if isinstance(place, StoreUrl) else str(place), when_used="json"),
]


def near(name: str, known: Iterable[str]) -> str:
    """Return `, did you mean 'batching'?` for a name close to a known name, else an empty string."""
    lower = {each.lower(): each for each in known}
    found = get_close_matches(name.lower(), lower, n=1)
    return f", did you mean {lower[found[0]]!r}?" if found else ""


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    if not TYPE_CHECKING:  # A signature here would hide the fields' own from type checkers.

        def __init__(self, **options: Any) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise _config_error(type(self), error) from None


def _hint(cls: type[BaseModel], name: str) -> str:
    owner = next((each for each in (ModelConfig, RegistryOptions, BatchingOptions) if name in each.model_fields), None)
    return near(name, cls.model_fields) if owner is None else f"; {owner.__name__} has it"


def _config_error(cls: type[BaseModel], error: ValidationError) -> ConfigError:
    """Turn pydantic's findings into a single error with the name of each option."""
    findings, code = [], Code.INVALID_ARGUMENT
    for item in error.errors(include_url=False):
        place = ".".join(map(str, item["loc"])) or cls.__name__
        if item["type"] == "extra_forbidden":
            findings.append(f"{place}: {cls.__name__} has no such option{_hint(cls, place)}")
        else:
            findings.append(f"{place}: {item['msg'].removeprefix('Value error, ')}")
            if isinstance(cause := item.get("ctx", {}).get("error"), ConfigError):
                code = cause.code
    return ConfigError("; ".join(findings), code=code)


Clients = Literal["none", "local", "all"]
"""The clients of a service: none, clients on the local machine (loopback addresses, Unix sockets), or every client."""


class Access(_Options):
    """Clients of the gRPC services with effects on more than a single request: changes, disclosure or delays.

    Attributes:
        reload: HandleReloadConfigRequest, a choice of the directories of models.
        session_run: SessionRun, a read of any tensor of a graph; UNIMPLEMENTED with `none`.
        profiler: `tensorflow.ProfilerService`, a writer of files below a directory named by the client; absent with
            `none`.
    """

    reload: Clients = "local"
    session_run: Clients = "none"
    profiler: Clients = "none"


class LatestVersions(_Options):
    """Aspire to the `num_versions` numerically largest versions found."""

    num_versions: int = Field(default=1, ge=1)


class AllVersions(_Options):
    """Aspire to every version found."""


class SpecificVersions(_Options):
    """Aspire to exactly the listed versions, as far as the versions exist."""

    versions: tuple[int, ...] = ()


VersionPolicy = LatestVersions | AllVersions | SpecificVersions

# In JSON a policy stands under its name, as in a ModelServerConfig: without the name, `all` and `latest` would look the
# same.
_POLICIES: dict[str, type[VersionPolicy]] = {
    "latest": LatestVersions,
    "all": AllVersions,
    "specific": SpecificVersions,
}


class BatchingOptions(_Options):
    """How requests of one loaded version and signature share a run (TF Serving: session_bundle_config.proto).

    Attributes:
        max_batch_size: Largest batch in rows and, unless split or `oversize="alone"`, the largest request.
        batch_timeout_micros: How long the first request of an open batch may wait for further requests; 0 never waits.
        max_enqueued_batches: Bound of each queue, in batches, without running batches.
        allowed_batch_sizes: Batches are padded up to the next size in the list; empty means no padding.
        pad_variable_length_inputs: Pad dimensions after the first to the batch's largest.
        enable_large_batch_splitting: Cut requests larger than the execution size into several batches.
        max_execution_batch_size: Largest batch when splitting; `max_batch_size` if None.
        oversize: The fate of a request over `max_batch_size` without splitting: `reject` as TF Serving does, or a
            separate run (`alone`).
        target_latency: Seconds that an answer should take with `batching="adaptive"`, waiting and running together.
    """

    max_batch_size: int = Field(default=128, ge=1)
    batch_timeout_micros: int = Field(default=0, ge=0)
    max_enqueued_batches: int = Field(default=64, ge=1)
    allowed_batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int | None = Field(default=None, ge=1)
    oversize: Literal["alone", "reject"] = "alone"
    target_latency: float = Field(default=0.1, gt=0)

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


class RetryPolicy(_Options):
    """How often and how fast a failed load is tried again: `initial`, doubling to `maximum` seconds.

    `max_retries=None` retries for as long as the version is aspired.
    """

    max_retries: int | None = Field(default=None, ge=0)
    initial: float = Field(default=1.0, ge=0)
    maximum: float = Field(default=60.0, ge=0)

    def delay(self, failures: int) -> float | None:
        """Return the seconds to wait after the `failures`-th failure in a row, or None to give up."""
        if self.max_retries is not None and failures > self.max_retries:
            return None
        return min(self.initial * 2.0 ** min(failures - 1, 60), self.maximum)


Batching = Literal["auto", "adaptive"] | bool
FreeBatch = Literal["auto"] | bool
Optimize = Literal["none", "freeze", "xla"]
AbsentVersions = Literal["keep", "unload", "last"]


class LoggingOptions(_Options):
    """The choice of logged requests of a model, and the place of the log; see `embedserve.request_log`.

    Attributes:
        filename_prefix: Directory and beginning of the names of the log files; made absolute. Models may share a
            prefix.
        sampling_rate: Logged share of the successful requests; 1 is all.
        max_file_bytes, max_total_bytes: None takes `RegistryOptions.request_log_max_file_bytes` and
            `request_log_max_total_bytes`.
    """

    filename_prefix: AbsolutePath
    sampling_rate: float = Field(default=1.0, ge=0, le=1)
    max_file_bytes: int | None = Field(default=None, ge=1)
    max_total_bytes: int | None = Field(default=None, ge=1)


class ModelConfig(_Options):
    """A model: the place of the versions and the options of serving. None means the registry's option.

    Attributes:
        name: The model's name in requests: up to 255 characters without control characters; parts between slashes are
            not empty, `.` or `..`.
        base_path: Directory of numeric version directories, made absolute, or the URL of a directory in a remote store
            (`s3://`, `gs://`, `http://`... through fsspec). Versions in a store are synced to a local cache.
        version_policy: The choice of served versions among the found versions.
        version_labels: Label → version.
        batching: `auto` batches signatures that are safe to batch; `adaptive` also learns the size and the waiting time
            of batches; True and False override the analysis.
        batching_options: Queue and batch sizes.
        free_batch: Whether requests may have more or fewer rows than the fixed dimension 0 of a signature. `auto`
            allows a free number where the graph keeps any number of rows apart and a probe at the load agrees. True
            means: the owner knows the rows to be independent. False never allows a free number.
        servable: `function` (`tf.saved_model.load`), `session` (a graph session), or `auto`: the load of a small model
            measures both and takes the faster kind.
        optimize: `freeze` turns variables into constants, `xla` compiles besides; see docs/performance.md. An
            impossible optimisation, or a change of answers, is refused: the version is served unoptimised, and the
            status says why.
        optimize_tolerance: Largest difference of an optimised answer, relative to the largest element of the output.
        saved_model_tags: Tag set of the MetaGraph to load.
        input_ranks: Rank per input name, for inputs of unknown declared rank.
        warmup: `auto` runs made-up and recorded requests before a version serves; `none` runs nothing.
        prefer_tflite_model: Serve a version's `model.tflite`, if present, instead of the SavedModel.
        run_timeout: Longest time of a run in seconds, even for callers with more patience.
        num_tflite_pools: TensorFlow Lite interpreters of each version, the bound of concurrent runs.
        logging_config: The choice of logged requests; None logs no request.
        storage_options: Arguments to fsspec for a remote `base_path`, merged over the registry's
            `remote_storage_options`.
    """

    name: Annotated[str, AfterValidator(_model_name)]
    base_path: Location
    version_policy: VersionPolicy = LatestVersions()
    version_labels: Mapping[str, int] = Field(default_factory=dict)
    batching: Batching | None = None
    batching_options: BatchingOptions | None = None
    free_batch: FreeBatch | None = None
    servable: Literal["auto", "function", "session"] | None = None
    optimize: Optimize | None = None
    optimize_tolerance: float | None = Field(default=None, ge=0)
    saved_model_tags: tuple[str, ...] = ("serve",)
    input_ranks: Mapping[str, int] = Field(default_factory=dict)
    warmup: Literal["auto", "none"] | None = None
    prefer_tflite_model: bool | None = None
    run_timeout: float | None = Field(default=None, gt=0)
    num_tflite_pools: int | None = Field(default=None, ge=1)
    logging_config: LoggingOptions | None = None
    storage_options: Mapping[str, Any] = Field(default_factory=dict, repr=False)

    if TYPE_CHECKING:

        def __init__(self, **options: Unpack[ModelOptions]) -> None: ...

    @property
    def directory(self) -> Path:
        """The `base_path` of a model outside remote stores."""
        assert isinstance(self.base_path, Path), f"{self.base_path} is in a store"
        return self.base_path

    @field_serializer("version_policy", when_used="json")
    def _policy_under_its_name(self, policy: VersionPolicy) -> dict[str, Any]:
        name = next(name for name, kind in _POLICIES.items() if isinstance(policy, kind))
        return {name: policy.model_dump(mode="json")}

    @field_validator("version_policy", mode="before")
    @classmethod
    def _policy_by_its_name(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and len(value) == 1 and (kind := _POLICIES.get(next(iter(value)))) is not None:
            return kind(**next(iter(value.values())))
        return value


class RegistryOptions(_Options):
    """Options of a `ModelRegistry`, for all models together.

    Attributes:
        batching, batching_options, free_batch, servable, optimize, optimize_tolerance, warmup, prefer_tflite_model:
            Defaults for models without the option.
        num_tflite_pools: A default as well; None is an interpreter per run thread.
        num_batch_threads: Run threads, shared by all models; the default is the number of usable CPUs. An extra thread
            is lent to a waiting model when another model has held all run threads for 0.1 s.
        run_timeout: Longest time of a run in seconds, even for callers with more patience; infinite for no bound. At
            the bound the run is stopped and the callers get DeadlineExceededError. An unstoppable run is stuck after
            the same time again (5 to 60 seconds): the thread is replaced and the version refused.
        loop_run_limit: Expected seconds up to which a run stays on the event loop, because a thread would cost more; 0
            keeps every run in a thread. See docs/performance.md for the conditions.
        max_stuck_runs: Bound of replaced threads of stuck runs; at the bound `liveness()` asks to replace the process.
            None is `num_batch_threads`: TensorFlow's pools can lose the same number.
        load_timeout: Longest time of each step of a load in seconds; infinite for no bound. Steps are: reading and
            trying the model, the recorded requests, and warm-up in a run thread. A made-up run has a minute, a recorded
            run ten minutes. A longer step is left behind in the thread. The version fails with the name of the step and
            is not tried again.
        num_load_threads: Threads for load and unload.
        max_pending_requests: Bound of the unbatched path, per loaded version, in requests waiting or running.
        poll_interval: Seconds between directory scans; watch events only make a scan come sooner.
        watch: Use watchfiles events as hints.
        settle: Seconds without a change in a version directory before the load.
        start_timeout: Longest time of entering in seconds, until the models required by `start_requires` are available.
        start_requires: The models required for a successful start: `all` or `any`. `any` waits for copies, fetches and
            loads under way, and then serves without the failed models; the background tries failed models again. None
            is `any` for a registry with a root and `all` without a root.
        absent_versions: The fate of a model when all versions of the policy are absent: `keep` goes on with the serving
            versions, `unload` unloads the serving versions as TF Serving does. `last` is as `keep`, and a model's last
            versions also outlive the deletion of the directories or objects.
        drain_timeout: Longest wait for requests in flight at leaving, in seconds; then the handles are taken away.
        retry: Retries of failed loads.
        transition: `availability` loads the new version before it unloads the old; `resource` the other way round.
        allow_version_labels_for_unavailable_models: Accept new labels for versions before their availability.
        enable_per_model_batching_parameters: A version's own `batching_params.pbtxt` replaces the batching options; a
            version without one is not batched.
        preload_modules: Modules imported before the first load, for custom ops.
        op_libraries: Shared libraries given to `tf.load_op_library` before the first load.
        labels_ahead: Accept labels for absent versions; a label answers once the version is available.
        enable_signature_method_name_check: Check `method_name` as TF Serving's flag of the same name does.
        num_warmup_iterations: How often each recorded warm-up request is replayed.
        gc_freeze: Hide the objects from before the first load from the garbage collector: collections get short. The
            effect is on the whole process, so a host decides.
        max_request_bytes: Largest request body, also after decompression.
        max_inflight_bytes: Bytes that the requests of all adapters hold at once: bodies, decoded inputs, and unsent
            answers. None is a quarter of the process's usable memory, within the limit of the control group.
        request_log_max_file_bytes: Size of a request log's file before a new file begins.
        request_log_max_total_bytes: Size of all files of a request log together; the oldest are deleted.
        request_log_root: Directory for the request logs of reload requests; None allows only the existing logs.
        remote_cache_dir: Directory of local copies of remote versions; None is `~/.cache/embedserve`. Processes may
            share a cache, and a restart works from the cache while a store is down.
        remote_cache_max_bytes: Bound of the cache; None keeps only served versions. A version beyond the bound is not
            fetched.
        remote_poll_interval: Seconds between looks at a remote store; None is `poll_interval`.
        remote_timeout: Longest time to a store's answer, or between two bytes of a file, in seconds.
        remote_storage_options: Arguments to fsspec by the URL's scheme: `{"s3": {"endpoint_url": ...}}`.
    """

    batching: Batching = "auto"
    batching_options: BatchingOptions = BatchingOptions()
    free_batch: FreeBatch = "auto"
    servable: Literal["auto", "function", "session"] = "auto"
    optimize: Optimize = "none"
    optimize_tolerance: float = Field(default=1e-5, ge=0)
    warmup: Literal["auto", "none"] = "auto"
    prefer_tflite_model: bool = False
    num_tflite_pools: int | None = Field(default=None, ge=1)
    num_batch_threads: int = Field(default_factory=usable_cpus, ge=1)
    run_timeout: float = Field(default=600.0, gt=0)
    loop_run_limit: float = Field(default=0.0002, ge=0, le=0.01)
    max_stuck_runs: int | None = Field(default=None, ge=1)
    load_timeout: float = Field(default=1800.0, gt=0)
    num_load_threads: int = Field(default=2, ge=1)
    max_pending_requests: int = Field(default=1000, ge=1)
    poll_interval: float = Field(default=1.0, gt=0)
    watch: bool = True
    settle: float = Field(default=0.2, ge=0)
    start_timeout: float = Field(default=300.0, gt=0)
    start_requires: Literal["all", "any"] | None = None
    absent_versions: AbsentVersions = "keep"
    drain_timeout: float = Field(default=30.0, ge=0)
    retry: RetryPolicy = RetryPolicy()
    transition: Literal["availability", "resource"] = "availability"
    allow_version_labels_for_unavailable_models: bool = False
    labels_ahead: bool = False
    enable_per_model_batching_parameters: bool = False
    preload_modules: tuple[str, ...] = ()
    op_libraries: tuple[str, ...] = ()
    enable_signature_method_name_check: bool = False
    num_warmup_iterations: int = Field(default=1, ge=1)
    gc_freeze: bool = False
    max_request_bytes: int = Field(default=2**31 - 1, ge=1)
    max_inflight_bytes: int | None = Field(default=None, ge=1)
    request_log_max_file_bytes: int = Field(default=64 * 2**20, ge=1)
    request_log_max_total_bytes: int = Field(default=2**30, ge=1)
    request_log_root: AbsolutePath | None = None
    remote_cache_dir: AbsolutePath | None = None
    remote_cache_max_bytes: int | None = Field(default=None, ge=1)
    remote_poll_interval: float | None = Field(default=None, gt=0)
    remote_timeout: float = Field(default=60.0, gt=0)
    remote_storage_options: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict, repr=False)

    def batching_of(self, model: ModelConfig) -> tuple[Batching, BatchingOptions]:
        """Return how a model is batched: the model's options, else the registry's."""
        batching = self.batching if model.batching is None else model.batching
        return batching, model.batching_options or self.batching_options


def validated(cls: type[T], values: Mapping[str, object]) -> T:
    """Build an options model, with pydantic's findings as a single ConfigError with the name of each option.

    Raises:
        ConfigError: An unknown option or a bad value.
    """
    try:
        return cls(**{str(name): value for name, value in values.items()})
    except ValidationError as error:
        raise _config_error(cls, error) from None


class ModelOptions(TypedDict, total=False):
    """Options of `ModelConfig`; such a dictionary stands for a `ModelConfig` in `ModelRegistry(models=[...])`."""

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
    """Keyword options of `ModelRegistry` beside models and observers: the fields of `RegistryOptions`."""

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
    loop_run_limit: float
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
