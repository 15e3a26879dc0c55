"""The conventions of SageMaker's TensorFlow Serving container: where the models lie, and the `SAGEMAKER_*` variables.

`--sagemaker` fills in the flags that the command line leaves open. The paths of SageMaker are in `rest/sagemaker.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from embedserve.config.row import FlagValue
from embedserve.errors import ConfigError
from embedserve.server.flags import ParsedFlags

__all__ = ["with_conventions"]

MODEL_DIRECTORY = "/opt/ml/model"
"""The place of the unpacked model archive; `SM_MODEL_DIR` is SageMaker's variable for it."""
PORT = 8080
_DEPTH = 6
"""Directories below the model directory that are looked at; `export/Servo/1` is the deepest known layout."""

_NUMBERS = {
    "SAGEMAKER_TFS_INTER_OP_PARALLELISM": "tensorflow_inter_op_parallelism",
    "SAGEMAKER_TFS_INTRA_OP_PARALLELISM": "tensorflow_intra_op_parallelism",
}


def with_conventions(flags: ParsedFlags, environment: Mapping[str, str]) -> ParsedFlags:
    """The flags with port, models, default model and threads from the environment, where no flag says otherwise.

    Raises:
        ConfigError: A variable is no number, or the model directory has no model or models at unlike depths.
    """
    given: dict[str, FlagValue] = {"rest_api_port": _number(environment, "SAGEMAKER_BIND_TO_PORT", PORT)}
    for variable, flag in _NUMBERS.items():
        if environment.get(variable):
            given[flag] = _number(environment, variable, 0)
    default = environment.get("SAGEMAKER_TFS_DEFAULT_MODEL_NAME", "None")
    if default != "None":  # The container's word for no default.
        given["sagemaker_default_model"] = default
    directory = flags.directory
    if directory is None and not {"model_config_file", "model_base_path"} & flags.given.keys():
        root = Path(environment.get("SM_MODEL_DIR") or MODEL_DIRECTORY)
        bases = sorted(set(_base_paths(root, _DEPTH)))
        if not bases:
            raise ConfigError(f"{root}: no NAME/VERSION/saved_model.pb below it, where VERSION is a number")
        if len(bases) == 1:
            given |= {"model_name": bases[0].name, "model_base_path": str(bases[0])}
        elif len({base.parent for base in bases}) == 1:
            directory = str(bases[0].parent)
        else:
            raise ConfigError(f"the models are not in one directory: {', '.join(map(str, bases))}")
    return replace(flags, directory=directory, given=given | flags.given)


def _number(environment: Mapping[str, str], variable: str, default: int) -> int:
    text = environment.get(variable, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise ConfigError(f"{variable} must be a number, and is {text!r}") from None


def _base_paths(directory: Path, depth: int) -> Iterator[Path]:
    """Directories with a version: a numeric directory that holds a SavedModel."""
    try:
        entries = [entry for entry in os.scandir(directory) if entry.is_dir()]
    except OSError as error:
        raise ConfigError(f"{directory} cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry.name.isdecimal() and os.path.exists(os.path.join(entry.path, "saved_model.pb")):
            yield directory
        elif depth > 1:
            yield from _base_paths(Path(entry.path), depth - 1)
