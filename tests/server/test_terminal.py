"""A start at a terminal shows each version's steps and what is served where; elsewhere nothing is printed."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import saved_models
from tests.support.programs import PYTHONPATH, ROOT, answers, free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("shown")
    saved_models.dense(models / "dense" / "3")
    (models / "broken" / "1").mkdir(parents=True)
    (models / "broken" / "1" / "saved_model.pb").write_bytes(b"no model")
    return models


@contextmanager
def started(models: Path, port: int, out: int, *flags: str) -> Iterator[None]:
    """The server with its output at a descriptor, from its readiness to its end."""
    command = (sys.executable, "-m", "embedserve", models, f"--rest_api_port={port}", f"--port={free_port()}", *flags)
    process = subprocess.Popen(
        [*map(str, command)],
        stdout=out,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
    )
    try:
        wait_until(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}/v1/models/dense")(), 120)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_terminal_sees_the_steps_and_what_is_served_where(models: Path, workers: int) -> None:
    ours, theirs = pty.openpty()
    pieces: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # The end of a terminal.
            while piece := os.read(ours, 4096):
                pieces.append(piece)

    def said() -> str:
        return b"".join(pieces).decode().replace("\r\n", "\n")

    reading = threading.Thread(target=read)
    reading.start()
    port = free_port()
    try:
        with started(models, port, theirs, f"--workers={workers}"):
            wait_until(lambda: "gRPC  localhost:" in said(), 120)
    finally:
        os.close(theirs)
        reading.join()
        os.close(ours)
    assert "dense version 3: loads and warms up\n" in said()
    assert re.search(r"^dense version 3: serves after [\d.]+ s$", said(), re.MULTILINE)
    assert re.search(r"^dense +3 +(function|session) +serving_default$", said(), re.MULTILINE)
    assert f"REST  http://localhost:{port}/v1/models/NAME:predict  (documentation: " in said()


def test_a_pipe_sees_none_of_it(models: Path) -> None:
    ours, theirs = os.pipe()
    with started(models, free_port(), theirs, "--workers=0"):
        pass
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        assert pipe.read() == b""
