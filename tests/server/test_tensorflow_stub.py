"""The supervisor reads SavedModels and configuration files, and never imports TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.saved_models import lookup

pytestmark = pytest.mark.slow

SHOW = """
print(sorted(name for name in sys.modules if name.startswith("tensorflow.python")))
import tensorflow
try:
    tensorflow.constant
except AttributeError as error:
    print(error)
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code + SHOW], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_directories_and_configurations_are_judged_without_tensorflow(tmp_path: Path) -> None:
    lookup(tmp_path / "whole")
    lookup(tmp_path / "torn")
    (asset,) = (tmp_path / "torn" / "assets").iterdir()
    asset.unlink()
    code = f"""
import sys
from pathlib import Path
from embedserve.server import tensorflow_setup
tensorflow_setup.install_stub()
tensorflow_setup.install_stub()
from embedserve.saved_model.files.completeness import missing
print(missing(Path({str(tmp_path / "whole")!r})), missing(Path({str(tmp_path / "torn")!r})), sep="\\n")
import embedserve.server.workers.supervisor
from embedserve.server.workers.worker_limits import worker_config
from embedserve.server.config import ServerConfig
print(len(worker_config(ServerConfig(workers=2), 2).session_config))
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig
"""
    whole, torn, share, modules, refused = run(code)
    assert whole == "None"
    assert torn == f"{asset} is missing"
    assert int(share) > 0
    assert modules == "[]"
    assert refused == "tensorflow.constant: this process supervises workers and must not run TensorFlow itself"


def test_a_process_that_has_tensorflow_keeps_it() -> None:
    code = """
import sys
import tensorflow as real
from embedserve.server import tensorflow_setup
tensorflow_setup.install_stub()
assert sys.modules["tensorflow"] is real
print(bool(real.constant(1)))
sys.exit()
"""
    assert run(code) == ["True"]
