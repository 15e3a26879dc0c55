"""The table of command-line flags, TensorFlow Serving's 48 and embedserve's own, and the parser.

The module knows no option model. A test compares the table with `RegistryOptions` and reports an option without a flag,
or a flag without an option.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = ["FLAGS", "OPTION_FLAGS", "Flag", "FlagError", "ParsedFlags", "comma_separated", "parse", "usage"]

Value: TypeAlias = bool | int | float | str
Kind: TypeAlias = Literal["bool", "int32", "int64", "float", "string"]

_INT_BITS = {"int32": 32, "int64": 64}


class FlagError(Exception):
    """The command line cannot be understood; the message says the argument and the reason."""


@dataclass(frozen=True)
class Flag:
    """A command-line flag.

    Attributes:
        name: Name without the dashes.
        kind: Type of the value, in TensorFlow Serving's words.
        default: Value of an absent flag.
        help: A sentence for `--help`.
        support: `same` acts as in TensorFlow Serving; `differs` reaches the same end in another way; `ignored` is
            accepted
            with a warning; `own` is embedserve's.
        note: The difference, or the reason for ignoring the flag.
        repeated: Whether each occurrence adds to a comma-separated list; otherwise the last occurrence counts.
    """

    name: str
    kind: Kind
    default: Value
    help: str
    support: Literal["same", "differs", "ignored", "own"] = "same"
    note: str = ""
    repeated: bool = False

    def read(self, text: str) -> Value:
        """Convert a flag's text.

        Raises:
            FlagError: The text is not a value of the flag's kind.
        """
        try:
            match self.kind:
                case "bool":
                    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
                case "float":
                    return float(text)
                case "int32" | "int64":
                    if not re.fullmatch(r"\s*[+-]?[0-9]+", text, re.ASCII):
                        raise ValueError(text)
                    value, limit = int(text), 2 ** (_INT_BITS[self.kind] - 1)
                    if not -limit <= value < limit:
                        raise ValueError(text)
                    return value
                case _:
                    return text
        except (ValueError, KeyError):
            raise FlagError(f"Couldn't interpret value {text} for flag {self.name}.") from None


def _own(name: str, kind: Kind, default: Value, help: str) -> Flag:
    return Flag(name, kind, default, help, "own")


_NO_THREADS = "requests are handled on one event loop and run on --num_batch_threads threads"

_TENSORFLOW_SERVING: tuple[Flag, ...] = (
    Flag("port", "int32", 8500, "TCP port of gRPC; 0 for none."),
    Flag("grpc_socket_path", "string", "", "Unix socket that gRPC listens on, besides the TCP port."),
    Flag(
        "rest_api_port",
        "int32",
        8501,
        "TCP port of REST; 0 for none.",
        "differs",
        "on by default; when the port was not asked for and is taken, gRPC serves alone",
    ),
    Flag("rest_api_num_threads", "int32", 0, "Threads that handle REST requests.", "ignored", _NO_THREADS),
    Flag("rest_api_timeout_in_ms", "int32", 30000, "Time limit of a REST request; 0 or less for none."),
    Flag("rest_api_enable_cors_support", "bool", False, "Answer CORS requests."),
    Flag(
        "enable_batching",
        "bool",
        False,
        "Let concurrent requests share a run.",
        "differs",
        "with a models directory and without this flag, signatures that are safe to batch are batched",
    ),
    Flag(
        "allow_version_labels_for_unavailable_models",
        "bool",
        False,
        "Accept a new label for a version that is not available yet.",
    ),
    Flag("batching_parameters_file", "string", "", "Text-format BatchingParameters; needs --enable_batching."),
    Flag(
        "enable_per_model_batching_parameters",
        "bool",
        False,
        "Read batching_params.pbtxt from each version directory; a version without one is not batched.",
    ),
    Flag("model_config_file", "string", "", "Text-format ModelServerConfig; --model_name and its kin are ignored."),
    Flag("model_config_file_poll_wait_seconds", "int32", 0, "Read --model_config_file again this often; 0 for once."),
    Flag("model_name", "string", "default", "Name of the single model at --model_base_path."),
    Flag(
        "model_base_path",
        "string",
        "",
        "Directory of the single model's version directories, here or in a store.",
        "differs",
        "a relative path is taken from the working directory",
    ),
    Flag(
        "num_load_threads",
        "int32",
        0,
        "Threads that load versions; 0 for embedserve's default.",
        "differs",
        "loads, unloads and directory scans share one pool",
    ),
    Flag(
        "num_unload_threads", "int32", 0, "Threads that unload versions.", "differs", "shared with --num_load_threads"
    ),
    Flag("max_num_load_retries", "int32", 5, "How often a failed load is tried again."),
    Flag("load_retry_interval_micros", "int64", 60_000_000, "Wait between load attempts; negative for none."),
    Flag(
        "file_system_poll_wait_seconds",
        "int32",
        1,
        "Seconds between directory scans; 0 for one scan.",
        "differs",
        "file system events make a scan come sooner, see --watch; a negative value is refused",
    ),
    Flag(
        "flush_filesystem_caches",
        "bool",
        True,
        "Drop file system caches after loads.",
        "ignored",
        "only remote file systems have such caches, and versions from those are read in --remote_cache_dir",
    ),
    Flag("tensorflow_session_parallelism", "int64", 0, "Threads within and between operations."),
    Flag("tensorflow_session_config_file", "string", "", "Text-format tensorflow.ConfigProto."),
    Flag("tensorflow_intra_op_parallelism", "int64", 0, "Threads within one operation."),
    Flag("tensorflow_inter_op_parallelism", "int64", 0, "Threads between operations."),
    Flag("use_alts_credentials", "bool", False, "Google's ALTS on the gRPC port; Google Cloud only."),
    Flag("ssl_config_file", "string", "", "Text-format SSLConfig: TLS on the gRPC port."),
    Flag(
        "platform_config_file", "string", "", "Text-format PlatformConfigMap; session and batching flags are ignored."
    ),
    Flag("per_process_gpu_memory_fraction", "float", 0.0, "Share of a GPU's memory to take; 0 grows as needed."),
    Flag("saved_model_tags", "string", "serve", "Comma-separated tag set of the MetaGraph to load."),
    Flag(
        "grpc_channel_arguments",
        "string",
        "",
        "Comma-separated gRPC channel arguments, name=value.",
        "differs",
        "an element without = is refused",
    ),
    Flag("grpc_max_threads", "int32", 0, "Threads of the gRPC server.", "ignored", _NO_THREADS),
    Flag("enable_model_warmup", "bool", True, "Run warm-up requests before a version serves."),
    Flag("num_request_iterations_for_warmup", "int32", 0, "How often each warm-up request runs; 0 for once."),
    Flag("version", "bool", False, "Print the versions and exit."),
    Flag(
        "monitoring_config_file",
        "string",
        "",
        "Text-format MonitoringConfig: the Prometheus endpoint.",
        "differs",
        "without a file the endpoint is on, at /monitoring/prometheus/metrics",
    ),
    Flag(
        "remove_unused_fields_from_bundle_metagraph",
        "bool",
        True,
        "Keep less of the MetaGraph in memory.",
        "ignored",
        "embedserve keeps the signatures only",
    ),
    Flag(
        "prefer_tflite_model",
        "bool",
        False,
        "Serve model.tflite where a version has one.",
        "differs",
        "no ParseExample operation; where a version holds a SavedModel too, that is served then",
    ),
    Flag("num_tflite_pools", "int32", 0, "TensorFlow Lite interpreters of each version; 0 for one per run thread."),
    Flag(
        "num_tflite_interpreters_per_pool",
        "int32",
        1,
        "TensorFlow Lite interpreters per pool.",
        "ignored",
        "requests to TensorFlow Lite models share a run as those to others do, see --enable_batching",
    ),
    Flag("enable_signature_method_name_check", "bool", False, "Check a signature's method_name in Classify and kin."),
    Flag(
        "xla_cpu_compilation_enabled",
        "bool",
        False,
        "Compile graphs for the CPU with XLA.",
        "differs",
        "by TensorFlow's auto-clustering, for the whole process",
    ),
    Flag(
        "xla_gpu_compilation_enabled",
        "bool",
        False,
        "Compile graphs for GPUs with XLA.",
        "differs",
        "by TensorFlow's auto-clustering, for the whole process",
    ),
    Flag(
        "enable_profiler",
        "bool",
        True,
        "Offer the profiler service on the gRPC port.",
        "differs",
        "to clients on this machine, see --profiler_clients",
    ),
    Flag(
        "thread_pool_factory_config_file",
        "string",
        "",
        "Text-format ThreadPoolFactoryConfig.",
        "ignored",
        "TensorFlow Serving's binary has no factory either; see --num_batch_threads",
    ),
    Flag("mixed_precision", "string", "", "Reduced precision: bfloat16 or nothing."),
    Flag("skip_initialize_tpu", "bool", False, "Do not initialise TPUs.", "ignored", "TPUs are not supported"),
    Flag("enable_grpc_healthcheck_service", "bool", False, "Offer grpc.health.v1.Health on the gRPC port."),
    Flag("enable_serialization_as_tensor_content", "bool", False, "Answer gRPC with tensor_content."),
)

_OWN: tuple[Flag, ...] = (
    _own("server", "string", "uvicorn", "uvicorn: REST and gRPC on a port each; pyvoy: both on one, through Envoy."),
    _own("http3", "bool", True, "With --server=pyvoy and TLS, answer HTTP/3 on the same port of UDP."),
    _own(
        "workers",
        "int32",
        1,
        "Processes that serve on the same ports, under a supervisor that replaces the dead; 0 for this one alone.",
    ),
    Flag(
        "host",
        "string",
        "",
        "Addresses or names of this machine to listen on, comma-separated or repeated; empty for every interface.",
        "own",
        repeated=True,
    ),
    _own("worker_timeout", "float", 30.0, "Seconds without a sign of life after which a worker is replaced."),
    _own("rest_early", "bool", False, "Open REST before the first load ends; /-/ready then says what is missing."),
    _own("rest_tls_cert_file", "string", "", "PEM certificate chain: TLS on the REST port."),
    _own("rest_tls_key_file", "string", "", "PEM private key of --rest_tls_cert_file."),
    _own("rest_tls_client_ca_file", "string", "", "PEM certificates; clients must show one signed by these."),
    _own(
        "reload_clients",
        "string",
        "",
        "Who may reload the configuration: none, local (this machine) or all; empty for all, but local with a "
        "directory of models.",
    ),
    _own("session_run_clients", "string", "none", "Who may use SessionRun: none, local (this machine) or all."),
    _own("profiler_clients", "string", "local", "Who may use the profiler: none, local (this machine) or all."),
    _own("grpc_reflection", "bool", False, "Offer server reflection on the gRPC port."),
    _own("servable", "string", "auto", "How models run: function, session or auto."),
    _own(
        "free_batch",
        "string",
        "auto",
        "Take any number of rows where a signature declares a fixed one: auto (where it is safe), true or false.",
    ),
    _own("optimize", "string", "none", "Optimised execution where a model allows it: none, freeze or xla."),
    _own("optimize_tolerance", "float", 1e-5, "How far an optimised answer may be off, relative to its size."),
    _own("num_batch_threads", "int32", 0, "Threads that run models; 0 for one per CPU."),
    _own("run_timeout", "float", 600.0, "Seconds one run may take, whatever its callers' deadlines; inf for no bound."),
    _own("loop_run_limit", "float", 0.0002, "Expected seconds up to which a run stays on the event loop; 0 for never."),
    _own("max_stuck_runs", "int32", 0, "Threads of stuck runs to replace before /-/live fails; 0 for one per thread."),
    _own(
        "load_timeout",
        "float",
        1800.0,
        "Seconds a step of a load may take until it counts as hung; inf for no bound.",
    ),
    _own("adaptive_batching", "bool", False, "Batch what is safe to batch, in sizes learnt from how long runs take."),
    _own("target_latency", "float", 0.1, "Seconds that an answer should take with --adaptive_batching."),
    _own("max_pending_requests", "int32", 1000, "Requests an unbatched version may have waiting or running."),
    _own("watch", "bool", True, "Use file system events as hints to scan sooner."),
    _own("settle", "float", 0.2, "Seconds for which a version directory must not change before it is loaded."),
    _own("start_timeout", "float", 0.0, "Seconds the first load may take; 0 for no limit."),
    _own(
        "start_requires",
        "string",
        "",
        "Models that must be available to start: all, or any; by default any of a directory's, all of those named.",
    ),
    _own(
        "absent_versions",
        "string",
        "keep",
        "When a version policy names only versions that are not there: keep what serves, or unload it; last keeps "
        "deleted ones too.",
    ),
    _own("drain_timeout", "float", 30.0, "Seconds that requests in flight have to finish after SIGTERM."),
    _own("transition", "string", "availability", "Load the new version first (availability), or last (resource)."),
    _own("preload_modules", "string", "", "Comma-separated modules to import before the first load, for custom ops."),
    _own("op_libraries", "string", "", "Comma-separated shared libraries of custom ops."),
    _own("gc_freeze", "bool", True, "Keep what exists before the first load out of the garbage collector's sight."),
    _own("labels_ahead", "bool", False, "Accept labels for versions that are not there yet."),
    _own("max_request_bytes", "int64", 2**31 - 1, "Largest request body, also after decompression."),
    _own("request_log_max_file_bytes", "int64", 64 * 2**20, "Size at which a request log goes on in another file."),
    _own("request_log_max_total_bytes", "int64", 2**30, "Size of all files of one request log; the oldest go first."),
    _own(
        "request_log_root", "string", "", "Directory below which reloads may have request logs; empty for no new ones."
    ),
    _own("remote_cache_dir", "string", "", "Where versions from stores are kept; empty for ~/.cache/embedserve."),
    _own("remote_cache_max_bytes", "int64", 0, "Bound of --remote_cache_dir; 0 keeps only what is served."),
    _own("remote_poll_wait_seconds", "float", 0.0, "Seconds between looks at a store; 0 for those between scans."),
    _own("remote_timeout", "float", 60.0, "Seconds a store may take for an answer, or between two bytes."),
    _own("remote_storage_options_file", "string", "", "JSON file: options of fsspec by scheme; credentials go here."),
    _own(
        "max_inflight_bytes",
        "int64",
        0,
        "Bytes of requests and answers held at once; 0 for a quarter of memory, or of the container's limit.",
    ),
)

FLAGS: dict[str, Flag] = {flag.name: flag for flag in _TENSORFLOW_SERVING + _OWN}
"""Every flag by name, in the order of `--help`."""

OPTION_FLAGS: dict[str, tuple[str, ...]] = {
    "batching": ("enable_batching", "adaptive_batching"),
    "batching_options": ("batching_parameters_file", "target_latency"),
    "free_batch": ("free_batch",),
    "servable": ("servable",),
    "optimize": ("optimize",),
    "optimize_tolerance": ("optimize_tolerance",),
    "warmup": ("enable_model_warmup",),
    "prefer_tflite_model": ("prefer_tflite_model",),
    "num_tflite_pools": ("num_tflite_pools",),
    "num_batch_threads": ("num_batch_threads",),
    "run_timeout": ("run_timeout",),
    "loop_run_limit": ("loop_run_limit",),
    "max_stuck_runs": ("max_stuck_runs",),
    "load_timeout": ("load_timeout",),
    "num_load_threads": ("num_load_threads", "num_unload_threads"),
    "max_pending_requests": ("max_pending_requests",),
    "poll_interval": ("file_system_poll_wait_seconds",),
    "watch": ("watch",),
    "settle": ("settle",),
    "start_timeout": ("start_timeout",),
    "start_requires": ("start_requires",),
    "absent_versions": ("absent_versions",),
    "drain_timeout": ("drain_timeout",),
    "retry": ("max_num_load_retries", "load_retry_interval_micros"),
    "transition": ("transition",),
    "allow_version_labels_for_unavailable_models": ("allow_version_labels_for_unavailable_models",),
    "enable_per_model_batching_parameters": ("enable_per_model_batching_parameters",),
    "preload_modules": ("preload_modules",),
    "op_libraries": ("op_libraries",),
    "enable_signature_method_name_check": ("enable_signature_method_name_check",),
    "num_warmup_iterations": ("num_request_iterations_for_warmup",),
    "gc_freeze": ("gc_freeze",),
    "labels_ahead": ("labels_ahead",),
    "max_request_bytes": ("max_request_bytes",),
    "max_inflight_bytes": ("max_inflight_bytes",),
    "request_log_max_file_bytes": ("request_log_max_file_bytes",),
    "request_log_max_total_bytes": ("request_log_max_total_bytes",),
    "request_log_root": ("request_log_root",),
    "remote_cache_dir": ("remote_cache_dir",),
    "remote_cache_max_bytes": ("remote_cache_max_bytes",),
    "remote_poll_interval": ("remote_poll_wait_seconds",),
    "remote_timeout": ("remote_timeout",),
    "remote_storage_options": ("remote_storage_options_file",),
}
"""The flags for each field of `RegistryOptions`."""


@dataclass(frozen=True)
class ParsedFlags:
    """A parsed command line.

    Attributes:
        directory: The positional argument, a directory of models, or None.
        given: Values set on the command line, by flag name.
        help: Whether `--help` was given.
    """

    directory: str | None = None
    given: dict[str, Value] = field(default_factory=dict)
    help: bool = False

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def text(self, name: str) -> str:
        """The value of a string flag, or its default."""
        return str(self._value(name))

    def number(self, name: str) -> int:
        """The value of an integer flag, or its default."""
        return int(self._value(name))

    def real(self, name: str) -> float:
        """The value of a float flag, or its default."""
        return float(self._value(name))

    def on(self, name: str) -> bool:
        """The value of a bool flag, or its default."""
        return bool(self._value(name))

    def _value(self, name: str) -> Value:
        return self.given.get(name, FLAGS[name].default)


def parse(arguments: Sequence[str]) -> ParsedFlags:
    """Read a command line as TensorFlow Serving does: `--flag=value`, `--bool_flag`.

    The last occurrence of a flag counts, except for flags with `repeated`. An argument without dashes is a directory of
    models. Unlike in TensorFlow Serving, an unknown argument is an error.

    Raises:
        FlagError: An unknown argument, with the nearest flag's name, or a bad value.
    """
    given: dict[str, Value] = {}
    directory: str | None = None
    wants_help = False
    for argument in arguments:
        if argument in ("--help", "-h"):
            wants_help = True
        elif argument.startswith("-"):
            flag, text = _split(argument)
            value = flag.read(text)
            given[flag.name] = f"{given[flag.name]},{value}" if flag.repeated and flag.name in given else value
        elif directory is None:
            directory = argument
        else:
            raise FlagError(
                f"unknown argument: {argument}; one directory of models is enough, and {directory!r} is given already. "
                "A flag's value follows its name after =, as in --port=8500"
            )
    return ParsedFlags(directory, given, wants_help)


def _split(argument: str) -> tuple[Flag, str]:
    name, equals, text = argument.removeprefix("--").partition("=")
    flag = FLAGS.get(name) if argument.startswith("--") else None
    if flag is None:
        nearest = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), FLAGS, n=1, cutoff=0.5)
        hint = f"; did you mean --{nearest[0]}?" if nearest else "; --help lists every flag"
        raise FlagError(f"unknown argument: {argument}{hint}")
    if equals:
        return flag, text
    if flag.kind == "bool":
        return flag, "true"
    raise FlagError(f"flag --{name} needs a value: --{name}={flag.default or '...'}")


def comma_separated(text: str) -> tuple[str, ...]:
    """The non-empty parts of a list flag's value."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def usage(program: str) -> str:
    """The text of `--help`, in TensorFlow Serving's layout."""
    lines = [
        f"usage: {program} MODELS_DIRECTORY [flags]",
        f"       {program} --model_base_path=DIRECTORY [flags]",
        f"       {program} tune MODEL_DIRECTORY [options]       measures a model; tune --help tells more",
        f"       {program} verify MODEL_DIRECTORY [options]     compares its answers; verify --help tells more",
        f"       {program} live [the server's flags]            is the server here alive? status 0, or 1",
        f"       {program} install-command [DIRECTORY]          makes tensorflow_model_server a command",
        "Flags:",
    ]
    for flag in FLAGS.values():
        default = f'"{flag.default}"' if flag.kind == "string" else str(flag.default).lower()
        note = {"ignored": f" Ignored: {flag.note}.", "differs": f" Here {flag.note}."}.get(flag.support, "")
        lines.append(f"\t{f'--{flag.name}={default}':<33}\t{flag.kind}\t{flag.help}{note}")
    return "\n".join(lines)
