"""Places and names of models: absolute paths, URLs of stores, and names that fit URLs, logs and directories."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, PlainSerializer, PlainValidator

from embedserve.errors import ConfigError, one_line
from embedserve.store_url import StoreUrl, check_readable, is_url, local_path

__all__ = ["MAX_NAME", "AbsolutePath", "Location", "ModelName", "PathLike", "absolute", "location", "name_problem"]

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

ModelName = Annotated[str, AfterValidator(_model_name)]
