"""The distribution of the client is whole, needs neither TensorFlow nor embedserve, and imports little."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import embedserve_client
from tests.support.programs import ROOT

pytestmark = pytest.mark.slow

PLACE = ROOT / "clients" / "python"
PACKAGE = PLACE / "embedserve_client"


def run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, PLACE, cwd=out)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_each_module_and_is_valid(wheel: Path) -> None:
    assert wheel.name == f"embedserve_client-{embedserve_client.__version__}-py3-none-any.whl"
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, *wheel.parent.glob("*.tar.gz"), cwd=wheel.parent)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(path.relative_to(PLACE)) for path in PACKAGE.rglob("*.py")} | {"embedserve_client/py.typed"}
    assert {name for name in names if ".dist-info/" not in name} == modules
    assert any(name.endswith("licenses/LICENSE") for name in names)


ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("embedserve", "tensorflow", "tensorflow_serving", "ml_dtypes"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import numpy as np
import embedserve_client
from embedserve_client import Client, own_errors
from embedserve_client.apis import make_ndarray, make_tensor_proto, predict_pb2, prediction_service_pb2_grpc
assert embedserve_client.ServingError is own_errors.ServingError
assert make_ndarray(make_tensor_proto([1.5, 2.5])).tolist() == [1.5, 2.5]
for url in sys.argv[1:]:
    with Client(url) as client:
        assert client.predict("half", [[1.0]], version=1)["y"].tolist() == [[2.5]]
        try:
            client.predict("same", {"x": np.ones(1, np.float16)}, signature_name="bfloat16")
        except embedserve_client.UnsupportedError as error:
            assert "pip install -U ml_dtypes" in str(error)
        else:
            raise AssertionError("bfloat16 without ml_dtypes")
        try:
            client.predict("absent", [[1.0]])
        except embedserve_client.ServableNotFoundError:
            pass
print(embedserve_client.__file__, sorted({"tensorflow", "embedserve"} & set(sys.modules)))
"""


def test_the_wheel_calls_a_server_without_tensorflow_and_embedserve(wheel: Path, port: int, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    run(sys.executable, *install, cwd=tmp_path)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    # The dependencies are taken from here; what the client must not need is refused.
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    urls = (f"grpc://127.0.0.1:{port}", f"http://127.0.0.1:{port}")
    said = run(python, "-c", ALONE, *urls, cwd=tmp_path)
    assert said.split() == [f"{packages}/embedserve_client/__init__.py", "[]"]


def test_an_import_loads_no_heavy_package() -> None:
    code = """
import sys
import embedserve_client
heavy = {"grpc", "httpx", "ml_dtypes", "tensorflow", "pydantic"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run(sys.executable, "-c", code, cwd=ROOT, PYTHONPATH=f"{ROOT}{os.pathsep}{PLACE}").strip() == "[]"


def test_the_contracts_on_imports_are_kept() -> None:
    run(Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache", cwd=PLACE)


def test_the_version_is_that_of_the_server_and_of_the_project_file() -> None:
    ours = tomllib.loads((PLACE / "pyproject.toml").read_text())["project"]["version"]
    theirs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert embedserve_client.__version__ == ours == theirs


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_stays_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600
    assert path.read_text().startswith('"""')
