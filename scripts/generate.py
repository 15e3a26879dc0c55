"""Writes what follows from the rows of the options: keywords for type checkers, and the tables of flags.

`python -m scripts.generate`; `scripts/lint --fix` runs it, and a test compares the files.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from embedserve.server.flags import FLAGS

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "embedserve" / "config"
KEYWORDS = CONFIG / "keywords.py"
FLAG_TABLES = ROOT / "docs" / "compatibility.md"

# What a caller may write for the type of a field.
WIDER = {
    "AbsolutePath": "PathLike",
    "ModelName": "str",
    "Location": "PathLike | StoreUrl",
    "BatchingOptions": "BatchingOptions | Mapping[str, object]",
    "LoggingOptions": "LoggingOptions | Mapping[str, object]",
    "RetryPolicy": "RetryPolicy | Mapping[str, object]",
}

HEAD = '''"""The options as keyword arguments, for type checkers. `python -m scripts.generate` writes the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Required, TypedDict

from embedserve.config.location import PathLike
from embedserve.config.values import (
    AbsentVersions,
    Batching,
    BatchingOptions,
    FreeBatch,
    LoggingOptions,
    Optimize,
    RetryPolicy,
    ServableKind,
    VersionPolicy,
    Warmup,
)
from embedserve.store_url import StoreUrl

__all__ = ["ModelOptions", "RegistryKeywords"]
'''

CLASSES = {
    "ModelOptions": (
        "model.py",
        "ModelConfig",
        "Options of `ModelConfig`; such a dictionary stands for a `ModelConfig` in `ModelRegistry(models=[...])`.",
    ),
    "RegistryKeywords": (
        "registry.py",
        "RegistryOptions",
        "Keyword options of `ModelRegistry` beside models and observers: the fields of `RegistryOptions`.",
    ),
}


def keywords() -> str:
    return HEAD + "".join(
        f'\n\nclass {name}(TypedDict, total=False):\n    """{said}"""\n\n' + "\n".join(typed(CONFIG / file, of)) + "\n"
        for name, (file, of, said) in CLASSES.items()
    )


def typed(path: Path, name: str) -> Iterator[str]:
    (found,) = (
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef) and node.name == name
    )
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert isinstance(node.value, ast.Call), "a row is a call of Field"
            optional = any(keyword.arg in ("default", "default_factory") for keyword in node.value.keywords)
            kind = wider(node.annotation)
            yield f"    {node.target.id}: {kind if optional else f'Required[{kind}]'}"


def wider(kind: ast.expr) -> str:
    match kind:
        case ast.BinOp(left=left, right=right):
            return f"{wider(left)} | {wider(right)}"
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[first, *_])):
            return wider(first)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[first, _])):
            return f"Sequence[{wider(first)}]"
    text = ast.unparse(kind).replace("'", '"')
    return WIDER.get(text, text)


def flag_tables(page: str) -> str:
    """The page with the rows of its two tables of flags."""
    verdicts = {"same": "same", "differs": "different", "ignored": "accepted, without effect"}
    ours = [flag for flag in FLAGS.values() if flag.support == "own"]
    theirs = [flag for flag in FLAGS.values() if flag.support != "own"]
    tables = {
        "| flag | verdict | note |": [
            f"| `--{flag.name}` | {verdicts[flag.support]} | {flag.note} |" for flag in theirs
        ],
        "| flag | default | effect |": [
            f"| `--{flag.name}` | `{str(flag.default).lower()}` | {flag.help} |" for flag in ours
        ],
    }
    for head, rows in tables.items():
        pattern = rf"({re.escape(head)}\n\| --- \| --- \| --- \|\n)(?:\|.*\n)*"
        found = re.search(pattern, page)
        assert found is not None, head
        page = page[: found.end(1)] + "\n".join([*rows, ""]) + page[found.end() :]
    return page


def main() -> None:
    KEYWORDS.write_text(keywords())
    FLAG_TABLES.write_text(flag_tables(FLAG_TABLES.read_text()))


if __name__ == "__main__":
    main()
