"""TensorFlow Serving's text-proto files and configuration messages → the options of `embedserve.config`.

Codes and words of errors are TensorFlow Serving's (server_core.cc). Knows no registry, so the module cannot check
whether a label's version is available.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from embedserve.config import (
    MAX_NAME,
    AllVersions,
    LatestVersions,
    LoggingOptions,
    ModelConfig,
    SpecificVersions,
    VersionPolicy,
    location,
    name_problem,
    validated,
)
from embedserve.errors import Code, ConfigError, one_line
from embedserve.store_url import StoreUrl, is_url, redacted
from embedserve.tfs.batching import batching_from_proto, num_batch_threads
from embedserve.tfs.protos import message_class, read_text_proto

if TYPE_CHECKING:
    from tensorflow.core.protobuf.config_pb2 import ConfigProto
    from tensorflow_serving.config.model_server_config_pb2 import ModelConfig as ModelConfigMessage
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

__all__ = [
    "DEFAULT_PLATFORMS",
    "Platform",
    "check_reload",
    "models_from_proto",
    "platforms_from_file",
    "read_model_server_config",
]

logger = logging.getLogger("embedserve")

# The kernel's own directories; numbered directories there are no versions.
_KERNEL = ("/proc/", "/sys/", "/dev/")
MAX_ENTRIES = 10_000
"""Entries of a reload's base path, at most, because every scan reads all entries."""


@dataclass(frozen=True)
class Platform:
    """The settings of a platform config map's key (or of the flags) for every model of the platform.

    Attributes:
        model_options: Fields of `ModelConfig` that the platform sets for each model.
        num_batch_threads: Run threads from the platform's batching parameters.
        session_config: A serialized `tensorflow.ConfigProto`; empty for none.
        per_model_batching: Whether each version directory has a `batching_params.pbtxt` or is not batched.
        warmup_iterations: Replays of each recorded warm-up request, or None.
    """

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    model_options: Mapping[str, Any]
    num_batch_threads: int | None = None
    session_config: bytes = b""
    per_model_batching: bool = False
    warmup_iterations: int | None = None


DEFAULT_PLATFORMS: Mapping[str, Platform] = {"tensorflow": Platform({})}
"""The only platform without a `platform_config_file`."""


def read_model_server_config(path: str | os.PathLike[str]) -> ModelServerConfig:
    """The `ModelServerConfig` in the text-format file at `path`.

    Raises:
        ConfigError: As `read_text_proto`.
    """
    from tensorflow_serving.config import model_server_config_pb2

    return read_text_proto(path, model_server_config_pb2.ModelServerConfig())


# ModelServerConfig → models, in the order of TensorFlow Serving's checks.


def models_from_proto(
    config: ModelServerConfig,
    *,
    platforms: Mapping[str, Platform] = DEFAULT_PLATFORMS,
    previous: ModelServerConfig | None = None,
) -> list[ModelConfig]:
    """Check a `ModelServerConfig` and convert the listed models.

    Args:
        config: The `ModelServerConfig` message.
        platforms: The platforms that models may ask for, by name.
        previous: The `ModelServerConfig` in force, if any: only a list may follow a list, and a model cannot change
            platforms.

    Returns:
        A `ModelConfig` per listed model, in the list's order; empty for an empty message.

    Raises:
        ConfigError: The first finding, with TensorFlow Serving's code and words.
    """
    before = previous is not None and previous.WhichOneof("config")
    if before and config.WhichOneof("config") != "model_config_list" and config != previous:
        raise ConfigError(
            "Cannot transition to requested config. It is only legal to transition from one ModelConfigList to "
            "another.",
            code=Code.FAILED_PRECONDITION,
        )
    match config.WhichOneof("config"):
        case None:
            logger.info("Taking no action for empty config.")
            return []
        case "custom_model_config":
            raise ConfigError("ModelServer does not yet support custom model config.")
    listed = list(config.model_config_list.config)
    _check_names_and_paths(listed)
    if previous is not None and before:
        _check_platforms_kept(listed, previous, platforms)
    return [_model(model, platforms) for model in listed]


def check_reload(models: Sequence[ModelConfig], in_force: Sequence[ModelConfig], log_root: Path | None) -> None:
    """Refuse requests of a reload that a running server must not allow. Reads the disk: call in a thread.

    Args:
        models: The models in the request.
        in_force: The models served now: request logs under way may go on.
        log_root: The directory that must contain new request logs.

    Raises:
        ConfigError: A base path is obviously no directory of versions, or a request log is elsewhere.
    """
    written = {model.logging_config.filename_prefix for model in in_force if model.logging_config is not None}
    for model in models:
        if isinstance(model.base_path, Path) and (problem := _base_path_problem(model.base_path)) is not None:
            raise ConfigError(f"model {model.name} has base_path {model.base_path}, which {problem}")
        logged = None if model.logging_config is None else model.logging_config.filename_prefix
        if logged is None or logged in written:
            continue
        if log_root is None:
            raise ConfigError(
                f"Model {model.name}: a reload may have request logs written only below the directory that "
                "--request_log_root names at start, and it names none"
            )
        if Path(os.path.realpath(log_root)) not in Path(os.path.realpath(logged)).parents:
            raise ConfigError(f"Model {model.name}: filename_prefix {str(logged)!r} is not below {log_root}")


def _base_path_problem(path: Path) -> str | None:
    real = os.path.realpath(path)
    below = f"{real}/"
    if real == "/" or (below.startswith(_KERNEL) and not below.startswith("/dev/shm/")):
        return "is no place for models"
    try:
        with os.scandir(real) as entries:
            if sum(1 for _ in islice(entries, MAX_ENTRIES + 1)) > MAX_ENTRIES:
                return f"has more than {MAX_ENTRIES} entries; expected one directory per version"
    except NotADirectoryError:
        return "is not a directory"
    except OSError:  # A scan waits for the directory to appear, or to become readable.
        return None
    return None


def _check_names_and_paths(listed: Sequence[ModelConfigMessage]) -> None:
    names: set[str] = set()
    for model in listed:
        if model.name and (problem := name_problem(model.name)) is not None:
            raise ConfigError(f"Illegal model name {model.name[:MAX_NAME]!r}: {problem}")
        if one_line(model.base_path) != model.base_path:
            raise ConfigError(f"model {model.name} has base_path {redacted(model.base_path)!r} with control characters")
    for model in listed:
        if model.name in names:
            raise ConfigError(f"Illegal to list model {model.name} multiple times in config list")
        names.add(model.name)
    for model in listed:
        if not is_url(model.base_path) and not os.path.isabs(model.base_path):
            raise ConfigError(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )


def _check_platforms_kept(
    listed: Sequence[ModelConfigMessage], previous: ModelServerConfig, platforms: Mapping[str, Platform]
) -> None:
    before = {model.name: model for model in previous.model_config_list.config}
    for model in listed:
        if model.name not in before:
            continue
        was, wanted = _platform(before[model.name], platforms), _platform(model, platforms)
        if was != wanted:
            raise ConfigError(
                f"Illegal to change a model's platform. For model {model.name} platform was {was} and new platform "
                f"requested is {wanted}"
            )


def _platform(model: ModelConfigMessage, platforms: Mapping[str, Platform]) -> str:
    setting = "ModelServerConfig::model_type (deprecated) {} ModelServerConfig::model_platform, model name is {}"
    if model.model_type and model.model_platform:
        raise ConfigError("Illegal setting both " + setting.format("and", model.name))
    if not model.model_type and not model.model_platform:
        raise ConfigError(
            f'Illegal setting neither {setting.format("nor", model.name)}; add model_platform: "tensorflow"'
        )
    if model.model_type not in (0, 1):
        raise ConfigError(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
    platform: str = model.model_platform or "tensorflow"
    if platform not in platforms:
        raise ConfigError(
            f"Model {model.name} requests unsupported platform {platform}; there is {', '.join(sorted(platforms))}"
        )
    return platform


def _model(model: ModelConfigMessage, platforms: Mapping[str, Platform]) -> ModelConfig:
    options = platforms[_platform(model, platforms)].model_options
    if not model.name:
        raise ConfigError(
            f"the model with base_path {redacted(model.base_path)} has no name, so no request could reach it"
        )
    return validated(
        ModelConfig,
        {
            **options,
            "name": model.name,
            "base_path": _location(model.name, model.base_path),
            "version_policy": _version_policy(model),
            "version_labels": dict(model.version_labels),
            "logging_config": _logging(model) if model.HasField("logging_config") else None,
        },
    )


def _logging(model: ModelConfigMessage) -> LoggingOptions:
    """Convert a `LoggingConfig`; the only type of log collector is `file` or empty."""
    config = model.logging_config
    kind, prefix = config.log_collector_config.type, config.log_collector_config.filename_prefix
    if kind not in ("", "file"):
        raise ConfigError(
            f"Cannot find LogCollector::Factory for type: {kind}. Model {model.name}: the only type is `file`",
            code=Code.NOT_FOUND,
        )
    if config.HasField("custom_logging_config"):
        raise ConfigError(
            f"Model {model.name}: custom_logging_config of type {config.custom_logging_config.type_url} is not known",
            code=Code.UNIMPLEMENTED,
        )
    if not os.path.isabs(prefix):
        raise ConfigError(
            f"Model {model.name}: log_collector_config needs a filename_prefix with an absolute path; got {prefix!r}"
        )
    sampling = config.sampling_config
    # The process has no data centre and no task number, so only the rates for all tasks apply.
    rates = (task for task in sampling.per_task_sampling_configs if not task.dc and not task.HasField("task_index"))
    rate = next((task.sampling_rate for task in rates), sampling.sampling_rate)
    if not 0 <= rate <= 1:
        raise ConfigError(f"Model {model.name}: sampling_rate must be between 0 and 1; was {rate:g}")
    return validated(LoggingOptions, {"filename_prefix": prefix, "sampling_rate": rate})


def _location(name: str, base_path: str) -> Path | StoreUrl:
    try:
        return location(base_path)
    except ConfigError as error:
        raise ConfigError(
            f"model {name} has base_path {redacted(base_path)}, which cannot be read: {error}", code=error.code
        ) from None


def _version_policy(model: ModelConfigMessage) -> VersionPolicy:
    policy = model.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return AllVersions()
        case "specific":
            if not policy.specific.versions:
                logger.warning("No specific versions requested for servable %s.", model.name)
            return SpecificVersions(versions=tuple(policy.specific.versions))
        case _:
            return LatestVersions(num_versions=policy.latest.num_versions or 1)


# PlatformConfigMap → platforms.


def platforms_from_file(path: str | os.PathLike[str]) -> dict[str, Platform]:
    """The platforms of a text-format `PlatformConfigMap`, each a `SavedModelBundleSourceAdapterConfig`.

    Raises:
        ConfigError: The file does not parse, or a platform is no platform of SavedModels.
    """
    from tensorflow_serving.config import platform_config_pb2

    config_map = read_text_proto(path, platform_config_pb2.PlatformConfigMap(), expand_any=True)
    platforms = {}
    for name, platform in sorted(config_map.platform_configs.items()):
        adapter: Any = message_class("SavedModelBundleSourceAdapterConfig")()
        if not platform.source_adapter_config.Unpack(adapter):
            raise ConfigError(
                f"platform {name} of {os.fspath(path)} has a source_adapter_config of type "
                f"{platform.source_adapter_config.type_url or '(none)'}; expected "
                f"{adapter.DESCRIPTOR.full_name}"
            )
        platforms[name] = _platform_from_bundle(adapter.legacy_config)
    return platforms


def _platform_from_bundle(bundle: Any) -> Platform:
    if bundle.enable_saved_model_config:
        raise ConfigError("Saved model config functionality is not implemented.", code=Code.UNIMPLEMENTED)
    batched = bundle.HasField("batching_parameters")
    options: dict[str, object] = {
        "batching": batched,
        "saved_model_tags": tuple(bundle.saved_model_tags) or ("serve",),
        "warmup": "auto" if bundle.enable_model_warmup else "none",
        "prefer_tflite_model": bundle.prefer_tflite_model,
        "num_tflite_pools": bundle.num_tflite_pools if bundle.num_tflite_pools > 0 else None,
    }
    if batched:
        options["batching_options"] = batching_from_proto(bundle.batching_parameters)
    warmup = bundle.model_warmup_options
    session_config = bundle.session_config
    if bundle.mixed_precision:
        set_mixed_precision(session_config, bundle.mixed_precision)
    return Platform(
        model_options=options,
        num_batch_threads=num_batch_threads(bundle.batching_parameters) if batched else None,
        session_config=session_config.SerializeToString(),
        per_model_batching=batched and bundle.enable_per_model_batching_params,
        warmup_iterations=(warmup.num_request_iterations.value or None) if bundle.enable_model_warmup else None,
    )


def set_mixed_precision(session_config: ConfigProto, kind: str) -> None:
    """Turn on the graph rewrite for a `mixed_precision` setting in a `ConfigProto`; only `bfloat16` has a rewrite."""
    if kind != "bfloat16":
        logger.warning("mixed_precision %r is ignored: only bfloat16 is supported", kind)
        return
    rewriter = session_config.graph_options.rewrite_options
    rewriter.auto_mixed_precision_onednn_bfloat16 = type(rewriter).ON
