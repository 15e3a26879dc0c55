"""The layout is a promise: who imports whom, what stays out of `import embedserve`, how large a file may grow."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedserve

PACKAGE = Path(embedserve.__file__).parent
MAX_LINES = 600

# Third-party packages with a cost or a side effect at import, and the parts that may import them at module level. Which
# rooms may import them inside a function says [tool.importlinter] in pyproject.toml.
ONLY_IN = {
    "tensorflow": {"saved_model"},
    "tensorflow_serving": {"grpc"},
    "grpc": {"grpc"},
    "starlette": {"rest"},
    "uvicorn": {"rest"},
    "prometheus_client": {"metrics"},
    "watchfiles": set(),
    "fsspec": {"remote"},
    "ray": set(),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """`embedserve/batching/merge.py` is in the room `batching`, `embedserve/errors.py` in `errors`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(node: ast.AST, *, functions: bool) -> Iterator[tuple[str, int]]:
    """Absolute module names imported under `node`, with their lines; `functions` looks into function bodies too."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if not functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield alias.name, child.lineno
        elif isinstance(child, ast.ImportFrom) and child.module is not None:
            assert child.level == 0, f"line {child.lineno}: imports are absolute here"
            yield child.module, child.lineno
            if child.module == "embedserve":
                for alias in child.names:
                    yield f"embedserve.{alias.name}", child.lineno
        yield from imports(child, functions=functions)


def test_the_contracts_on_imports_are_kept() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_with_a_module_only_where_allowed(path: Path) -> None:
    found = [
        f"line {line}: {name}"
        for name, line in imports(ast.parse(path.read_text()), functions=False)
        if (top := name.split(".")[0]) in ONLY_IN and room_of(path) not in ONLY_IN[top]
    ]
    assert not found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_stays_readable_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    tree = ast.parse(text)
    if tree.body:
        assert ast.get_docstring(tree), "a module says what it is for"


def test_private_tensorflow_stays_in_one_module() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in modules()
        for name, line in imports(ast.parse(path.read_text()), functions=True)
        if name.startswith("tensorflow.python") and path.name != "tensorflow_private.py"
    ]
    assert not found


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_import_and_construction_load_no_heavy_package(tmp_path: Path) -> None:
    code = f"""
import logging, os, signal, sys, threading
environment, handlers = dict(os.environ), list(logging.getLogger().handlers)
interrupt = signal.getsignal(signal.SIGINT)
import embedserve
registry = embedserve.ModelRegistry({str(tmp_path)!r})
assert dict(os.environ) == environment
assert logging.getLogger().handlers == handlers
assert signal.getsignal(signal.SIGINT) is interrupt
assert threading.active_count() == 1
print(sorted({set(ONLY_IN) - {"watchfiles"}!r} & set(sys.modules)))
"""
    assert run_python(code) == "[]"


@pytest.mark.slow
def test_the_public_modules_import_no_tensorflow() -> None:
    code = """
import sys
import embedserve
for module in (embedserve.grpc, embedserve.http, embedserve.rest, embedserve.testing, embedserve.ray):
    for name in module.__all__:
        getattr(module, name)
print(sorted({"tensorflow", "tensorflow_serving", "starlette", "uvicorn", "ray"} & set(sys.modules)))
"""
    assert run_python(code) == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["check(Path({directory!r}))", "GrpcApp(FakeRegistry({{}}))"])
def test_messages_are_imported_while_another_thread_imports_tensorflow(what: str, tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    code = f"""
import sys, threading, time
from pathlib import Path
from embedserve.grpc import GrpcApp
from embedserve.saved_model.files.completeness import check
from embedserve.testing import FakeRegistry
errors = []
threading.excepthook = lambda found: errors.append(repr(found.exc_value))
def other():
    while "tensorflow" not in sys.modules:
        time.sleep(0.001)
    {what.format(directory=str(tmp_path))}
def heavy():
    import tensorflow
threads = [threading.Thread(target=each) for each in (heavy, other)]
for each in threads: each.start()
for each in threads: each.join()
print(errors)
"""
    assert run_python(code) == "[]"


@pytest.mark.slow
def test_dir_shows_what_is_public_and_nothing_else() -> None:
    code = """
import embedserve
import embedserve.rest
from embedserve import ModelRegistry
print(dir(embedserve) == sorted([*embedserve.__all__, "grpc", "http", "ray", "rest", "testing"]))
try:
    embedserve.ModelRegister
except AttributeError as error:
    print(error)
"""
    assert run_python(code) == "True\nmodule 'embedserve' has no attribute 'ModelRegister'"


def test_every_public_name_is_told_to_type_checkers_too() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if is_type_checking(node))
    told = {alias.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told | {"__version__"} == set(embedserve.__all__)


def public_objects() -> list[tuple[str, object]]:
    return [(name, getattr(embedserve, name)) for name in embedserve.__all__]


@pytest.mark.parametrize(("name", "value"), public_objects(), ids=[name for name, _ in public_objects()])
def test_every_public_name_is_documented(name: str, value: object) -> None:
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return
    assert inspect.getdoc(value), name
    if inspect.isclass(value):
        undocumented = [
            member
            for member, found in vars(value).items()
            if not member.startswith(("_", "model_")) and callable(getattr(found, "__func__", found))
            if not inspect.getdoc(getattr(value, member))
        ]
        assert not undocumented


def test_all_names_what_the_package_has() -> None:
    missing = []
    for info in pkgutil.walk_packages([str(PACKAGE)], "embedserve."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        missing += [f"{info.name}.{name}" for name in getattr(module, "__all__", ()) if not hasattr(module, name)]
    assert not missing


def test_every_module_of_the_architecture_page_exists() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    (layout,) = re.findall(r"^## Layout.*?^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    named: set[str] = set()
    folders: list[str] = []
    for line in layout.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders[depth:] = [name] if name.endswith("/") else []
        named.add("".join(folders) if name.endswith("/") else "".join([*folders, name]))
    missing = sorted(name for name in named if not (PACKAGE / name).exists())
    assert not missing, "named on the page, but gone"
    top = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()} - {"__init__", "__main__"}
    assert top == {name.split("/")[0].removesuffix(".py") for name in named}


def test_the_flows_name_files_and_functions_that_exist() -> None:
    page = (PACKAGE.parent / "docs" / "flows.md").read_text()
    steps = re.findall(r"^\d+\. `([\w/]+\.py)`((?:,? `[\w.]+`)*): ", page, re.MULTILINE)
    assert len(steps) == len(re.findall(r"^\d+\. ", page, re.MULTILINE)), "a step is a file, its functions and a text"
    missing = []
    for file, functions in steps:
        defined = definitions(ast.parse((PACKAGE / file).read_text())) if (PACKAGE / file).exists() else set()
        missing += [f"{file}: {name}" for name in re.findall(r"`([\w.]+)`", functions) if name not in defined]
        missing += [file] * (not (PACKAGE / file).exists())
    assert not missing


def definitions(tree: ast.Module) -> set[str]:
    """Functions and classes of a module, and the methods of its classes as `Class.method`."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{node.name}.{each.name}" for each in inner}
    return found


def patterns(path: Path) -> Iterator[str]:
    """The texts in the calls of `re`, without their classes of characters."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re."):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, bytes | str):
                    text = part.value if isinstance(part.value, str) else part.value.decode("latin-1")
                    yield re.sub(r"\[[^\]]*\]", ".", text)


def test_no_pattern_has_a_possessive_or_atomic_group() -> None:
    """CPython up to 3.11.2 goes back too little after such a group; a possessive class of bytes is right there too."""
    wrong = re.compile(r"\)(?:[*+?]|\{[0-9,]+\})\+|\(\?>")
    found = [f"{path.name}: {text}" for path in PACKAGE.rglob("*.py") for text in patterns(path) if wrong.search(text)]
    assert not found
