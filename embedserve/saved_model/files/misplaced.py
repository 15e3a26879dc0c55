"""Finds models in the wrong place, by file names, and gives the command that puts the model right.

Functions of directory listings, for a directory without a model or version. The module knows the file formats of models
by their names, and reads no file but the names in an archive.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from embedserve.saved_model.files.archives import directories_above_model
from embedserve.tfs.constants import MAX_VERSION

__all__ = ["Child", "holds_graph", "in_base_path", "in_root", "in_version", "instead_of_directory", "nearly"]

_GRAPHS = ("saved_model.pb", "saved_model.pbtxt", "model.tflite")
_MOST_DIRECTORIES = 16
"""Directories listed for a single answer: each listing costs a network mount a round trip."""
_MOST_NAMES = 12
"""Names in a command; a wildcard stands for more names."""
_NOT_MODELS = "so it is not a directory of models"
_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Child:
    """An entry of a directory.

    Attributes:
        name: Name of the entry.
        is_directory: Whether the entry is a directory, or an unresolved link.
    """

    name: str
    is_directory: bool


List: TypeAlias = Callable[[Path], Sequence[Child]]
"""Lists a directory; empty for an unreadable directory."""


def holds_graph(children: Iterable[Child]) -> bool:
    """Whether a directory with the given entries is a SavedModel, or holds a `model.tflite`."""
    return any(child.name in _GRAPHS for child in children)


def in_root(root: Path, children: Sequence[Child], inner: Iterable[str]) -> str | None:
    """Why a directory of models holds no model, with a remedy; None where no entry looks like a model.

    Args:
        root: The directory.
        children: Entries of the directory.
        inner: Answers of `in_base_path` for the directories in `root`.
    """
    if holds_graph(children):
        if root.name.isdecimal():
            return f"{root} is a version directory, {_NOT_MODELS}. {_served(root.parent, root=True)}"
        command = _moved(root, children, root / root.name / "1")
        return f"{root} holds a SavedModel itself, but a version needs a directory of its own. Run `{command}`"
    versions = _versions(children)
    if versions:
        listed = ", ".join(sorted(versions)[:5])
        return f"{root} holds version directories ({listed}), {_NOT_MODELS}. {_served(root, root=True)}"
    found = min(inner, default=None) or _files(children, root, None)
    return None if found is None else f"{root} holds no models: {found}"


def in_base_path(path: Path, children: Sequence[Child], list_: List) -> str | None:
    """Why a model's directory holds no version, with a remedy; None where no entry looks like a model."""
    if holds_graph(children) and path.name.isdecimal():
        return f"{path} is a version directory itself. {_served(path.parent)}"
    looked = _Listed(list_)
    found = _in_model(path, children, looked)
    if found is not None:
        return found
    for child in _directories(children):
        inner = path / child.name
        versions = [name for name in _versions(looked(inner)) if holds_graph(looked(inner / name))]
        if versions:
            version = inner / versions[0]
            return f"{path} is a directory of models: {version} is a version of {child.name!r}. {_served(inner)}"
    return None


def in_version(path: Path, children: Sequence[Child], list_: List) -> str | None:
    """The contents of a version directory without a SavedModel, with a remedy; None for unknown contents."""
    if holds_graph(children):
        return None
    looked = _Listed(list_)
    for child in _directories(children):
        inner = path / child.name
        if holds_graph(looked(inner)):
            return f"{inner} holds the SavedModel. Run `mv {_quoted(inner)}/* {_quoted(path)}`"
    return _files(children, path, path)


def instead_of_directory(file: Path) -> str | None:
    """The format of a file named in place of a directory, with a remedy; None for an unknown name."""
    form = _form_of(file.name)
    if form is None:
        if file.name not in _GRAPHS:
            return None
        parent = file.parent
        where = parent.parent if parent.name.isdecimal() else parent
        return f"{file} is a part of the SavedModel {parent}. {_served(where)}"
    base = file.with_name(_stem(file.name))
    return f"{form.told(file, base / '1')}, and {_served(base).replace('Pass', 'pass', 1)}"


def nearly(path: Path, names: Iterable[str]) -> str:
    """`, did you mean /models/digits?` if a name beside a missing path is nearly the path's name; else empty."""
    found = get_close_matches(path.name, names, n=1)
    return f", did you mean {path.parent / found[0]}?" if found else ""


class _Listed:
    """Lists at most `_MOST_DIRECTORIES` directories."""

    def __init__(self, list_: List) -> None:
        self._list = list_
        self._left = _MOST_DIRECTORIES

    def __call__(self, path: Path) -> Sequence[Child]:
        self._left -= 1
        return self._list(path) if self._left >= 0 else ()


def _in_model(path: Path, children: Sequence[Child], looked: _Listed) -> str | None:
    """The contents of a model's directory without versions: a SavedModel, directories without a number, files."""
    if holds_graph(children):
        command = _moved(path, children, path / "1")
        return f"{path} holds a SavedModel itself, but a version needs a directory of its own. Run `{command}`"
    if _versions(children):
        return None
    names = [child.name for child in _directories(children) if holds_graph(looked(path / child.name))]
    # A name without a number may be a link to a name with a number; a move would break the link.
    chosen = [name for name in names if _DIGITS.search(name)] or names
    if not chosen:
        return _files(children, path, path / "1")
    taken: set[int] = set()
    commands = []
    for name in chosen:
        number = _number(name, taken)
        taken.add(number)
        commands.append(f"mv {_quoted(path / name)} {_quoted(path / str(number))}")
    listed = ", ".join(map(repr, names))
    return f"{path} has no version whose name is a number, but {listed}. Run `{' && '.join(commands)}`"


def _files(children: Sequence[Child], path: Path, target: Path | None) -> str | None:
    """The format of the first known file, and its way to the version `target` or to a model of the file's name."""
    for child in sorted(children, key=lambda child: child.name):
        form = None if child.is_directory else _form_of(child.name)
        if form is not None:
            return form.told(path / child.name, target or path / _stem(child.name) / "1")
    return None


def _directories(children: Sequence[Child]) -> list[Child]:
    shown = (child for child in children if child.is_directory and not child.name.startswith("."))
    return list(islice(sorted(shown, key=lambda child: child.name), _MOST_DIRECTORIES))


def _versions(children: Sequence[Child]) -> list[str]:
    return [child.name for child in children if child.is_directory and child.name.isdecimal() and child.name.isascii()]


def _number(name: str, taken: Collection[int]) -> int:
    """The version number that a directory's name suggests: `v2` is 2, `1.0` is 1, `latest` is 1."""
    found = _DIGITS.search(name)
    number = int(found[0]) if found is not None and int(found[0]) <= MAX_VERSION else 1
    while number in taken:
        number += 1
    return number


def _moved(path: Path, children: Sequence[Child], target: Path) -> str:
    """The command that moves all entries of a directory into a directory below."""
    names = sorted(child.name for child in children if not child.name.startswith("."))
    listed = " ".join(_quoted(path / name) for name in names) if len(names) <= _MOST_NAMES else f"{_quoted(path)}/*"
    return f"mkdir -p {_quoted(target)} && mv {listed} {_quoted(target)}"


def _served(base: Path, root: bool = False) -> str:
    """The options that serve a model's directory; with `root`, also the option that serves the parent directory."""
    every = f"{base.parent} to find every model in it, or " if root else ""
    return (
        f"Pass {every}models=[{str(base)!r}] to ModelRegistry, "
        f"or --model_name={_quoted(base.name)} --model_base_path={_quoted(base)} on the command line"
    )


def _quoted(value: Path | str) -> str:
    return shlex.quote(str(value))


# Formats of models, by the ends of their files' names.


@dataclass(frozen=True)
class _Form:
    """A format of model files.

    Attributes:
        what: The kind of the file, in words.
        command: Makes the version directory `target` of a file.
    """

    what: str
    command: Callable[[Path, Path], str]

    def told(self, file: Path, target: Path) -> str:
        return f"{file} is {self.what}, and a version is a SavedModel directory. Run `{self.command(file, target)}`"


def _exported(file: Path, target: Path) -> str:
    code = f"import keras; keras.models.load_model({json.dumps(str(file))}).export({json.dumps(str(target))})"
    return f"python -c {shlex.quote(code)}"


def _unzipped(file: Path, target: Path) -> str:
    into, above = _unpacked(file, target)
    command = f"mkdir -p {_quoted(into)} && unzip {_quoted(file)} -d {_quoted(into)}"
    return f"{command} && mv {_quoted(into.joinpath(*above))}/* {_quoted(into)}" if above else command


def _untarred(file: Path, target: Path) -> str:
    into, above = _unpacked(file, target)
    stripped = f" --strip-components={len(above)}" if above else ""
    return f"mkdir -p {_quoted(into)} && tar -xf {_quoted(file)} -C {_quoted(into)}{stripped}"


def _unpacked(file: Path, target: Path) -> tuple[Path, tuple[str, ...]]:
    """The directory for an archive's contents, and the archive's directories to strip.

    An archive of a model, with versions, goes into the model's directory; an archive of a version goes to `target`.
    """
    above = directories_above_model(file)
    if above and above[-1].isdecimal() and above[-1].isascii():
        target, above = target.parent, above[:-1]
    return target, () if set(above) <= {"."} else above


def _lite(file: Path, target: Path) -> str:
    return f"mkdir -p {_quoted(target)} && mv {_quoted(file)} {_quoted(target / 'model.tflite')}"


def _from_onnx(file: Path, target: Path) -> str:
    return f"pip install onnx2tf && onnx2tf -i {_quoted(file)} -o {_quoted(target)} -osd"


def _from_torch(file: Path, target: Path) -> str:
    return _from_onnx(file.with_name(f"{_stem(file.name)}.onnx"), target)


_KERAS = _Form("a Keras model", _exported)
_TAR = _Form("an archive", _untarred)
_TORCH = _Form("a PyTorch model (write it as ONNX by torch.onnx.export first)", _from_torch)
_LITE = _Form("a TensorFlow Lite model, which is found under the name model.tflite", _lite)
_FORMS = {
    ".keras": _KERAS,
    ".h5": _KERAS,
    ".hdf5": _KERAS,
    ".zip": _Form("an archive", _unzipped),
    ".tar": _TAR,
    ".tar.gz": _TAR,
    ".tar.bz2": _TAR,
    ".tar.xz": _TAR,
    ".tgz": _TAR,
    ".tflite": _LITE,
    ".onnx": _Form("an ONNX model", _from_onnx),
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".pt2": _TORCH,
}


def _end(name: str) -> str:
    return next((end for end in _FORMS if name.lower().endswith(end) and len(name) > len(end)), "")


def _form_of(name: str) -> _Form | None:
    return _FORMS.get(_end(name)) if name not in _GRAPHS else None


def _stem(name: str) -> str:
    return name[: -len(_end(name))] if _end(name) else name
