"""The table of command-line flags, TensorFlow Serving's 48 and embedserve's own, and the parser.

The flags of options come from the options' rows (`embedserve.config.registry`); the rows here are of the server alone.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from pydantic.fields import FieldInfo

from embedserve.config import RegistryOptions
from embedserve.config.row import Flag, FlagValue, Kind, SetBy, comma_separated
from embedserve.server.hangups import SUB_COMMANDS

__all__ = [
    "FLAGS",
    "Flag",
    "FlagError",
    "ParsedFlags",
    "comma_separated",
    "completed",
    "option_values",
    "parse",
    "usage",
]

_INT_BITS = {"int32": 32, "int64": 64}


class FlagError(Exception):
    """The command line cannot be understood; the message says the argument and the reason."""


def _own(name: str, kind: Kind, default: FlagValue, help: str) -> Flag:
    return Flag(name, kind, default, help, "own")


_NO_THREADS = "requests are handled on one event loop and run on --num_batch_threads threads"

# In TensorFlow Serving's order; a name stands for the flag of an option.
_TENSORFLOW_SERVING: tuple[Flag | str, ...] = (
    Flag(
        "port",
        "int32",
        8500,
        "TCP port of gRPC; 0 for none.",
        "differs",
        "the port answers REST too, see --grpc_server",
    ),
    Flag("grpc_socket_path", "string", "", "Unix socket that gRPC listens on, besides the TCP port."),
    Flag(
        "rest_api_port",
        "int32",
        8501,
        "TCP port of REST; 0 for none.",
        "differs",
        "on by default, and answers gRPC too; when the port was not asked for and is taken, --port serves alone",
    ),
    Flag("rest_api_num_threads", "int32", 0, "Threads that handle REST requests.", "ignored", _NO_THREADS),
    Flag("rest_api_timeout_in_ms", "int32", 30000, "Time limit of a REST request; 0 or less for none."),
    Flag("rest_api_enable_cors_support", "bool", False, "Answer CORS requests."),
    "enable_batching",
    "allow_version_labels_for_unavailable_models",
    "batching_parameters_file",
    "enable_per_model_batching_parameters",
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
    "num_load_threads",
    "num_unload_threads",
    "max_num_load_retries",
    "load_retry_interval_micros",
    "file_system_poll_wait_seconds",
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
    "enable_model_warmup",
    "num_request_iterations_for_warmup",
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
    "prefer_tflite_model",
    "num_tflite_pools",
    Flag(
        "num_tflite_interpreters_per_pool",
        "int32",
        1,
        "TensorFlow Lite interpreters per pool.",
        "ignored",
        "requests to TensorFlow Lite models share a run as those to others do, see --enable_batching",
    ),
    "enable_signature_method_name_check",
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
    _own(
        "server",
        "string",
        "uvicorn",
        "Without effect: uvicorn is taken, everything else is refused; see --grpc_server.",
    ),
    _own("http3", "bool", False, "Refused: HTTP/3 needs a proxy before the server."),
    _own(
        "grpc_server",
        "string",
        "embedserve",
        "embedserve: every port answers REST, gRPC and gRPC-Web; grpcio: gRPC alone on its port, for ALTS and further "
        "--grpc_channel_arguments.",
    ),
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
    _own("sagemaker", "bool", False, "Answer /ping and /invocations, with SageMaker's port, directory and variables."),
    _own("sagemaker_default_model", "string", "", "The model of SageMaker's requests that name none."),
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
    _own("log_format", "string", "text", "Lines of the log: text, or json with the field names of OpenTelemetry."),
    _own("access_log", "bool", False, "Log answered calls, without their contents."),
    _own("access_log_sampling", "float", 1.0, "Share of the calls in the access log, from 0 to 1."),
    _own("access_log_slow", "float", 1.0, "Seconds from which on a call is logged in any case; inf for none."),
    _own("access_log_failed", "bool", True, "Log calls with an error in any case."),
    _own(
        "otel_endpoint",
        "string",
        "",
        "URL of an OpenTelemetry collector for traces, http://localhost:4318; the OTEL_ variables hold too.",
    ),
)


def _of_options() -> Iterator[Flag]:
    """The flags of all options, each completed from the option's row."""
    for name, row in RegistryOptions.model_fields.items():
        match RegistryOptions.reach(name):
            case Flag() as flag:
                yield completed(flag, name, row)
            case SetBy(flags=flags):
                yield from (flag for flag in flags if isinstance(flag, Flag))


def completed(flag: Flag, name: str, row: FieldInfo) -> Flag:
    """Fill the open attributes of an option's flag from the option's name and row."""
    default = row.default if flag.default is None else flag.default
    told = (flag.help or f"{row.description}".partition(". ")[0]).removesuffix(".")
    return replace(
        flag,
        name=flag.name or name,
        kind=flag.kind or _kind(row.annotation),
        default=default,
        help=f"{told}; {flag.unset}." if flag.unset else f"{told}.",
    )


def _kind(annotation: object) -> Kind:
    kinds: dict[object, Kind] = {bool: "bool", int: "int32", float: "float"}
    return kinds.get(next((each for each in typing.get_args(annotation) if each in kinds), annotation), "string")


def _table() -> dict[str, Flag]:
    options = {flag.name: flag for flag in _of_options()}
    theirs = [options.pop(flag) if isinstance(flag, str) else flag for flag in _TENSORFLOW_SERVING]
    ours = [*_OWN, *(replace(flag, support="own") for flag in options.values())]
    return {flag.name: flag for flag in [*theirs, *ours]}


FLAGS: dict[str, Flag] = _table()
"""Every flag by name, in the order of `--help`."""


@dataclass(frozen=True)
class ParsedFlags:
    """A parsed command line.

    Attributes:
        directory: The positional argument, a directory of models, or None.
        given: Values set on the command line, by flag name.
        help: Whether `--help` was given.
    """

    directory: str | None = None
    given: dict[str, FlagValue] = field(default_factory=dict)
    help: bool = False

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def text(self, name: str) -> str:
        """The value of a string flag, or its default."""
        return str(self.value(name))

    def number(self, name: str) -> int:
        """The value of an integer flag, or its default."""
        return int(self.value(name))

    def real(self, name: str) -> float:
        """The value of a float flag, or its default."""
        return float(self.value(name))

    def on(self, name: str) -> bool:
        """The value of a bool flag, or its default."""
        return bool(self.value(name))

    def value(self, name: str) -> FlagValue:
        """The value of any flag, or its default."""
        default = FLAGS[name].default
        assert default is not None, "a row in FLAGS is complete"
        return self.given.get(name, default)


def parse(arguments: Sequence[str]) -> ParsedFlags:
    """Read a command line as TensorFlow Serving does: `--flag=value`, `--bool_flag`.

    The last occurrence of a flag counts, except for flags with `repeated`. An argument without dashes is a directory of
    models. Unlike in TensorFlow Serving, an unknown argument is an error.

    Raises:
        FlagError: An unknown argument, with the nearest flag's name, or a bad value.
    """
    given: dict[str, FlagValue] = {}
    directory: str | None = None
    wants_help = False
    for argument in arguments:
        if argument in ("--help", "-h"):
            wants_help = True
        elif argument.startswith("-"):
            flag, text = _split(argument)
            value = _read(flag, text)
            given[flag.name] = f"{given[flag.name]},{value}" if flag.repeated and flag.name in given else value
        elif directory is None:
            directory = argument
        else:
            raise FlagError(
                f"unknown argument: {argument}; one directory of models is enough, and {directory!r} is given already. "
                "A flag's value follows its name after =, as in --port=8500; the commands are "
                f"{', '.join(SUB_COMMANDS[:-1])} and {SUB_COMMANDS[-1]}"
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


def _read(flag: Flag, text: str) -> FlagValue:
    """Convert a flag's text.

    Raises:
        FlagError: The text is not a value of the flag's kind.
    """
    try:
        match flag.kind:
            case "bool":
                return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            case "float":
                return float(text)
            case "int32" | "int64":
                if not re.fullmatch(r"\s*[+-]?[0-9]+", text, re.ASCII):
                    raise ValueError(text)
                value, limit = int(text), 2 ** (_INT_BITS[flag.kind] - 1)
                if not -limit <= value < limit:
                    raise ValueError(text)
                return value
            case _:
                return text
    except (ValueError, KeyError):
        raise FlagError(f"Couldn't interpret value {text} for flag {flag.name}.") from None


def option_values(flags: ParsedFlags) -> dict[str, object]:
    """The options of a registry that a flag sets alone; without the options that several flags or files set.

    Raises:
        ConfigError: A value that no option can have.
    """
    values: dict[str, object] = {}
    for name in RegistryOptions.model_fields:
        if isinstance(row := RegistryOptions.reach(name), Flag):
            flag = FLAGS[row.name or name]
            value = flags.value(flag.name)
            if not (flag.unset and value == flag.default):
                values[name] = value if flag.to is None else flag.to(value)
    return values


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
