"""Collects the storage options of a remote model from a file, the registry and the model.

Knows no option of any file system.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from embedserve.config import RegistryOptions
from embedserve.errors import Code, ConfigError

__all__ = ["read_storage_options", "storage_options"]


def read_storage_options(file: str | os.PathLike[str]) -> dict[str, dict[str, object]]:
    """Read a JSON object of options by scheme; a command line is no place for credentials.

    Raises:
        ConfigError: The file is missing or holds other data; the text does not show the file's contents.
    """
    try:
        options = json.loads(Path(file).read_bytes())
    except OSError as error:
        raise ConfigError(f"{os.fspath(file)}; {error.strerror}", code=Code.NOT_FOUND) from None
    except ValueError:
        options = None
    if not isinstance(options, dict) or not all(isinstance(each, dict) for each in options.values()):
        raise ConfigError(f'{os.fspath(file)} holds no JSON of options by scheme, as {{"s3": {{"endpoint_url": ""}}}}')
    return options


def storage_options(scheme: str, own: Mapping[str, object], options: RegistryOptions) -> dict[str, object]:
    """Merge the options for fsspec: the model's own options override the registry's options of the URL's scheme."""
    return {**options.remote_storage_options.get(scheme, {}), **own}
