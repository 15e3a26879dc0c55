"""Which statements of embedserve ran, in all processes of a test run: each statement notes it in one shared mapping.

coverage.py's tracer slows down everything that runs, `import tensorflow` by a third. Here only embedserve's own
statements pay, and a process that is killed loses nothing.

usage: line_coverage.py prepare DIRECTORY         before the run; `$LINE_COVERAGE` names the directory to each process
       line_coverage.py report DIRECTORY [FLOOR]  prints what did not run; exit status 1 below FLOOR per cent
"""

from __future__ import annotations

import marshal
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import groupby
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ast

PACKAGE = "embedserve"
ROOT = Path(__file__).parents[3]
DIRECTORY = "LINE_COVERAGE"
# Files in the directory: one byte per statement, which is 1 once it ran; and the module and line of each.
RAN = "ran"
STATEMENTS = "statements"
# How many modules a report lists.
LISTED = 30


def install(directory: str) -> None:
    """Have this process import embedserve as `prepare` compiled it."""
    try:
        with open(os.path.join(directory, RAN), "r+b") as file:
            ran: mmap.mmap | bytearray = mmap.mmap(file.fileno(), 0)
    except OSError:  # Of a user, or behind a mount, that must not write there.
        return
    sys.modules["line_coverage_ran"] = ran  # type: ignore[assignment]
    sys.meta_path.insert(0, _Finder(directory))


class _Finder(MetaPathFinder):
    def __init__(self, directory: str) -> None:
        self._directory = directory

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        compiled = os.path.join(self._directory, name)
        if spec is None or spec.origin is None or not os.path.exists(compiled):
            return spec
        spec.loader = _Loader(name, spec.origin, compiled)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, compiled: str) -> None:
        super().__init__(name, path)
        self._compiled = compiled

    def get_code(self, fullname: str) -> CodeType:
        with open(self._compiled, "rb") as file:
            code: CodeType = marshal.loads(file.read())
        return code


def prepare(directory: Path) -> None:
    """Compile embedserve so that each statement notes that it ran."""
    import ast

    statements: list[str] = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(path.read_bytes())
        lines = list(_mark(tree, len(statements)))
        statements += [f"{path.relative_to(ROOT)}:{line}" for line in lines]
        code = compile(ast.fix_missing_locations(tree), str(path), "exec", dont_inherit=True)
        (directory / name).write_bytes(marshal.dumps(code))
    (directory / STATEMENTS).write_text("\n".join(statements))
    (directory / RAN).write_bytes(bytes(len(statements)))


def _mark(module: ast.Module, number: int) -> Iterator[int]:
    """Put a note before each statement; yields their lines, in the order of the numbers that begin with `number`."""
    import ast

    def uncounted(statement: ast.stmt) -> bool:
        """Of no effect of its own: a docstring, `...`, a declaration, an import from `__future__`."""
        return (
            (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
            or (isinstance(statement, ast.AnnAssign) and statement.value is None)
            or (isinstance(statement, ast.ImportFrom) and statement.module == "__future__")
            or isinstance(statement, ast.Global | ast.Nonlocal)
        )

    def marked(block: list[ast.stmt]) -> Iterator[ast.stmt]:
        for statement in block:
            if not uncounted(statement):
                note = ast.parse(f"__ran__[{number + len(lines)}] = 1").body[0]
                for node in ast.walk(note):
                    ast.copy_location(node, statement)
                lines.append(statement.lineno)
                yield note
            descend(statement)
            yield statement

    def descend(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                setattr(node, field, list(marked(block)))
        for child in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            descend(child)

    lines: list[int] = []
    descend(module)
    first = next((place for place, statement in enumerate(module.body) if not uncounted(statement)), None)
    if first is not None:
        mapping = ast.parse("__ran__ = __import__('sys').modules['line_coverage_ran']").body[0]
        for node in ast.walk(mapping):
            ast.copy_location(node, module.body[first])
        module.body.insert(first, mapping)
    yield from lines


def report(directory: Path, floor: float = 0.0) -> int:
    """Print the modules of which the least ran, and the share of all statements; 1 where that is below `floor`."""
    modules: dict[str, list[tuple[int, int]]] = {}
    ran = (directory / RAN).read_bytes()
    for statement, hit in zip((directory / STATEMENTS).read_text().split("\n"), ran, strict=True):
        path, _, line = statement.partition(":")
        modules.setdefault(path, []).append((int(line), hit))
    shares = {path: 100 * sum(hit for _, hit in found) / len(found) for path, found in modules.items()}
    for path in sorted(shares, key=lambda path: shares[path])[:LISTED]:
        print(f"{shares[path]:6.1f} %  {path}: {', '.join(_stretches(modules[path]))}")
    total = 100 * sum(ran) / len(ran)
    print(f"{total:.2f} % of the {len(ran)} statements of {PACKAGE} ran; the floor is {floor:.2f} %")
    return 1 if total < floor else 0


def _stretches(statements: list[tuple[int, int]]) -> Iterator[str]:
    """`12` or `12-15` for each run of statements that did not run."""
    for missed, stretch in groupby(sorted(statements), lambda statement: not statement[1]):
        if missed:
            first, *_, last = [line for line, _ in stretch] * 2
            yield str(first) if first == last else f"{first}-{last}"


if __name__ == "__main__":
    command, directory, *given = sys.argv[1:]
    if command == "prepare":
        prepare(Path(directory))
    else:
        sys.exit(report(Path(directory), *map(float, given)))
