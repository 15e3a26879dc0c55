"""The container image, without a container engine: its entrypoint serves, and its Dockerfile names what is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import saved_models
from tests.support.programs import ROOT, answers, fetch, free_port, program

DOCKER = ROOT / "examples" / "docker"

# The image's shell starts the entrypoint; here a Python that becomes that shell does.
BECOME = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"


PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# In namespaces of its own: as user 10001 without a name or a home, on a read-only root file system with one writable
# directory, the server is started, asked by the image's health check, asked to predict, and ended.
CONTAINER = """
mount -t tmpfs -o mode=1777 tmpfs "$TMPDIR"
mount -o remount,bind,ro /
# A /tmp of its own is no part of the root's mount.
if mountpoint -q /tmp; then mount -o remount,bind,ro /tmp; fi
for place in / "$MODELS"; do
    if touch "$place/file" 2>&1; then echo $place is not read-only; exit 1; fi
done
unset HOME
cd /
setpriv --reuid=10001 --regid=10001 --clear-groups \
    --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search "$@" &
server=$!
until python -m embedserve live; do
    kill -0 $server
    sleep 1
done
python -c "$ASK"
kill -TERM $server
wait $server
"""
ASK = """
import os, urllib.request
url = f"http://127.0.0.1:{os.environ['REST']}/v1/models/half_plus_two:predict"
print(urllib.request.urlopen(url, b'{"instances": [1.0, 2.0, 5.0]}', timeout=60).read().decode())
"""


@pytest.fixture
def models() -> Iterator[Path]:
    """A directory that every user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        saved_models.half_plus_two(Path(directory) / "half_plus_two" / "1")
        yield Path(directory)


@pytest.mark.timeout(200)
def test_the_entrypoint_serves_what_the_environment_names_and_later_arguments_win(models: Path) -> None:
    grpc, rest = free_port(), free_port()
    entrypoint = ("-c", BECOME, str(DOCKER / "tf_serving_entrypoint.sh"), f"--port={grpc}", f"--rest_api_port={rest}")
    url = f"http://localhost:{rest}/v1/models/half_plus_two"
    with program(*entrypoint, until=answers(url), MODEL_NAME="half_plus_two", MODEL_BASE_PATH=str(models), PATH=PATH):
        assert fetch(f"{url}:predict", {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [2.5, 3.0, 4.5]})


@pytest.mark.timeout(200)
def test_a_directory_is_served_read_only_by_a_nameless_user_and_the_health_check_finds_the_port(
    models: Path, tmp_path: Path
) -> None:
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    script = f"mount -t tmpfs tmpfs {tmp_path} && mount -o remount,bind,ro / && setpriv --version"
    for needed in ("unshare", "setpriv"):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    if subprocess.run([*namespaces, "sh", "-ec", script], capture_output=True, timeout=60).returncode != 0:
        pytest.skip("this machine gives no mount namespace whose root can be made read-only")
    rest = free_port()
    entrypoint = [str(DOCKER / "tf_serving_entrypoint.sh"), str(models), f"--port={free_port()}"]
    done = subprocess.run(
        [*namespaces, "sh", "-ec", CONTAINER, "sh", *entrypoint, f"--rest_api_port={rest}"],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "PATH": PATH, "PYTHONDONTWRITEBYTECODE": "1", "MODEL_NAME": "model"}
        | {"MODEL_BASE_PATH": "/models", "TMPDIR": str(tmp_path), "MODELS": str(models), "REST": str(rest), "ASK": ASK},
        capture_output=True,
        text=True,
        timeout=150,
    )
    said = f"{done.stdout}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, said
    assert f'http://127.0.0.1:{rest}/-/live: 200 {{"status":"live"}}' in done.stdout, said
    assert '{"predictions":[2.5,3.0,4.5]}' in "".join(done.stdout.split()), said
    assert "Traceback" not in done.stderr, said


@pytest.mark.parametrize(
    ("arguments", "served"),
    [
        ([], "--port=8500 --rest_api_port=8501 --model_name=m --model_base_path=/models/m"),
        (["--port=1"], "--port=8500 --rest_api_port=8501 --model_name=m --model_base_path=/models/m --port=1"),
        (["/models"], "--port=8500 --rest_api_port=8501 /models"),
        (["--workers=2", "/models"], "--port=8500 --rest_api_port=8501 --workers=2 /models"),
        (["verify", "/models/m"], "verify /models/m"),
        (["live"], "live"),
    ],
)
def test_the_entrypoint_takes_a_directory_flags_and_sub_commands(
    tmp_path: Path, arguments: list[str], served: str
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    said = subprocess.run(
        [DOCKER / "tf_serving_entrypoint.sh", *arguments],
        env={"PATH": path, "MODEL_NAME": "m", "MODEL_BASE_PATH": "/models"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert said == f"-m embedserve {served}\n"


def test_the_dockerfile_copies_what_exists_and_follows_the_conventions() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        sources = [word for word in line.split() if not word.startswith("--")][:-1]
        assert all((ROOT / source).exists() for source in sources), line
    assert "MODEL_NAME=model" in text
    assert "MODEL_BASE_PATH=/models" in text
    assert "EXPOSE 8500 8501" in text
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", text, re.MULTILINE), "by number, for runAsNonRoot"
    assert '"python", "-m", "embedserve", "live"' in text
    assert os.access(DOCKER / "tf_serving_entrypoint.sh", os.X_OK)
