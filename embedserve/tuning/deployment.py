"""Converts a setting to the server's flags and batching file, and to arguments of `ModelRegistry`.

`BATCHING_FILE` is written into the server's working directory.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from embedserve.config import BatchingOptions, ModelConfig, RegistryOptions
from embedserve.tuning.model import TunedModel, batching_options
from embedserve.tuning.plan import ALONE, Setting

__all__ = ["BATCHING_FILE", "Deployment", "deployment"]

# Name of the file in the generated commands, relative to the server's working directory.
BATCHING_FILE = "batching.pbtxt"
_FIELDS = ("max_batch_size", "max_execution_batch_size", "enable_large_batch_splitting", "max_enqueued_batches")


@dataclass(frozen=True)
class Deployment:
    """Flags, file and code to serve with a setting.

    Attributes:
        flags: Arguments of `python -m embedserve`.
        batching_file: Contents of `BATCHING_FILE`, for `--batching_parameters_file`; None without batching.
        code: The same options in Python, for an embedding service.
    """

    flags: tuple[str, ...]
    batching_file: str | None
    code: str

    def shell(self, program: str) -> str:
        """Commands to write the file and start the server."""
        command = f"{program} {shlex.join(self.flags)}"
        if self.batching_file is None:
            return command
        return f"cat > {BATCHING_FILE} <<'END'\n{self.batching_file}END\n{command}"


def deployment(model: TunedModel, setting: Setting, most_rows: int, flags: Sequence[str]) -> Deployment:
    """Make the deployment of `model` with `setting`.

    Args:
        model: The measured model.
        setting: Run threads and batch limit.
        most_rows: The most rows waiting at once, for the bound of the queue.
        flags: Further flags of the measurement.
    """
    options = None if setting.batch_limit == ALONE else batching_options(setting, most_rows)
    batching = ("--enable_batching", f"--batching_parameters_file={BATCHING_FILE}") if options else ()
    arguments = (
        f"--model_name={model.config.name}",
        f"--model_base_path={model.place.base_path}",
        *batching,
        f"--num_batch_threads={setting.run_threads}",
        *flags,
    )
    text = None if options is None else _text(options)
    return Deployment(arguments, text, _code(model, setting, options))


def _text(options: BatchingOptions) -> str:
    """Text-format `BatchingParameters`."""
    values = {name: getattr(options, name) for name in _FIELDS}
    return "".join(f"{name} {{ value: {str(value).lower()} }}\n" for name, value in values.items())


def _code(model: TunedModel, setting: Setting, options: BatchingOptions | None) -> str:
    config = {"name": model.config.name, "base_path": str(model.place.base_path), **_changed(model.config)}
    arguments = [f"{name}={value!r}" for name, value in config.items()]
    if options is None:
        arguments.append("batching=False")
    else:
        sizes = [f"{name}={getattr(options, name)!r}" for name in _FIELDS]
        arguments.append(_call("batching_options=BatchingOptions", sizes, 3))
    registry = {"num_batch_threads": setting.run_threads, **_changed(model.options)}
    models = f"models=[{_call('ModelConfig', arguments, 2)}]"
    return _call("ModelRegistry", [models, *(f"{name}={value!r}" for name, value in registry.items())], 1)


# Fields given by the setting, and fields with different defaults on the command line and in a registry.
_NOT_TOLD = frozenset(("batching", "batching_options", "num_batch_threads", "retry", "start_timeout", "gc_freeze"))


def _changed(options: ModelConfig | RegistryOptions) -> dict[str, object]:
    """The fields not at their defaults; for a model's open field, not at the registry's default."""
    defaults = RegistryOptions()
    changed: dict[str, object] = {}
    for name, field in type(options).model_fields.items():
        if name in _NOT_TOLD or field.is_required():
            continue
        value = getattr(options, name)
        default = field.get_default(call_default_factory=True)
        if value != default and not (default is None and value == getattr(defaults, name, None)):
            changed[name] = value
    return changed


def _call(name: str, arguments: Sequence[str], depth: int) -> str:
    """A call with each argument on a line."""
    lines = "".join(f"{'    ' * depth}{argument},\n" for argument in arguments)
    return f"{name}(\n{lines}{'    ' * (depth - 1)})"
