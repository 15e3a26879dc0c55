"""A release is whole: wheel and source distribution are built, checked, installed, and serve a model from there."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import embedserve
from tests.support import saved_models
from tests.support.programs import ROOT, answers, fetch, free_port, program

pytestmark = pytest.mark.slow

PACKAGE = ROOT / "embedserve"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command: object, cwd: Path = ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel, which was built from the source distribution beside it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out)
    return out


def test_wheel_and_source_distribution_hold_each_module_and_are_valid(release: Path) -> None:
    wheel, source = next(release.glob("*.whl")), next(release.glob("*.tar.gz"))
    assert wheel.name == f"embedserve-{embedserve.__version__}-py3-none-any.whl"
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source)
    files_of_package = [path for path in PACKAGE.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    modules = {str(path.relative_to(ROOT)) for path in files_of_package}
    assert {"embedserve/__init__.py", "embedserve/py.typed", "embedserve/rest/pages/docs.html"} <= modules
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == modules
    with tarfile.open(source) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert modules | {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "docs/index.md"} <= files


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    """Lines for a later version stand under `Unreleased`, above the version."""
    versions = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [(version, date) for version, date in versions if version != "Unreleased"]
    assert released[0][0] == embedserve.__version__
    assert all(date for _, date in released)


def test_a_wheel_in_an_empty_environment_serves_a_model(release: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    wheel = next(release.glob("*.whl"))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    # What the wheel depends on takes minutes to install, and is taken from here; the package itself is not.
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = run(python, "-c", "import embedserve; print(embedserve.__file__, embedserve.__version__)", cwd=tmp_path)
    assert found.split() == [f"{packages}/embedserve/__init__.py", embedserve.__version__]

    saved_models.half_plus_two(tmp_path / "models" / "half_plus_two" / "1")
    rest = free_port()
    ports = (f"--port={free_port()}", f"--rest_api_port={rest}", "--workers=0")
    url = f"http://127.0.0.1:{rest}"
    command = ("-c", "import os, sys; os.execv(sys.argv[1], sys.argv[1:])", python.with_name("embedserve"), "models")
    with program(*command, *ports, until=answers(f"{url}/-/ready"), cwd=tmp_path, PYTHONPATH=""):
        body = {"instances": [1.0, 2.0, 5.0]}
        assert fetch(f"{url}/v1/models/half_plus_two:predict", body) == (200, {"predictions": [2.5, 3.0, 4.5]})


def install_lines() -> Iterator[str]:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        yield from re.findall(r"pip install (?:'[^']+'|[^\s`#]+)", page.read_text())


@pytest.mark.parametrize("line", sorted(set(install_lines())))
def test_an_install_line_of_the_pages_works_from_a_clone(line: str) -> None:
    words = shlex.split(line)[2:]
    for word in words:
        extras = re.findall(r"\[([^\]]+)\]", word)
        assert all(extra in PROJECT["optional-dependencies"] for each in extras for extra in each.split(","))
    run(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--no-build-isolation", *words)


def test_each_package_that_is_imported_is_declared() -> None:
    requirements = [*PROJECT["dependencies"], *(each for name in OPTIONAL for each in optional(name))]
    declared = {re.split(r"[<>=\[; ]", each)[0].lower().replace("_", "-") for each in requirements}
    providers = metadata.packages_distributions()
    missing = set()
    for path in PACKAGE.rglob("*.py"):
        for name in imported(ast.parse(path.read_text())) - sys.stdlib_module_names - {"embedserve"}:
            distributions = {each.lower().replace("_", "-") for each in providers.get(name, [])}
            if distributions and not distributions & declared:
                missing.add(f"{path.relative_to(ROOT)}: {name} of {', '.join(distributions)}")
    assert not missing


# Extras that users install; the others are for tests and examples.
OPTIONAL = (
    "client",
    "django",
    "images",
    "ray",
    "speed",
    "text",
    "tflite",
    "remote",
    "s3",
    "gcs",
    "http",
    "otel",
    "otlp",
    "plot",
)


def optional(name: str) -> list[str]:
    found: list[str] = PROJECT["optional-dependencies"][name]
    return found


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names
