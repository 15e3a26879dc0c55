"""Processes and models for the example tests: examples run as their users run them, as programs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run_program(*arguments: object, timeout: float = 100) -> str:
    """Run `python -m ARGUMENTS` to its end and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(url: str, body: object = None) -> tuple[int, Any]:
    """GET, or POST `body` as JSON; status and parsed answer, also of an error."""
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


@contextlib.contextmanager
def program(*arguments: object, until: Callable[[], bool], within: float = 90, **environment: str) -> Iterator[None]:
    """Run `python -m ARGUMENTS` while the body runs; the body starts when `until()` is true."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)], cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: process.poll() is not None or until(), within)
        assert process.poll() is None, process.stderr.read().decode()[-3000:] if process.stderr else ""
        yield
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors.decode(), errors.decode()[-3000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_until(condition: Callable[[], bool], within: float = 60) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.05)


def answers(url: str) -> Callable[[], bool]:
    def up() -> bool:
        try:
            return fetch(url)[0] == 200
        except (OSError, ValueError):
            return False

    return up


@pytest.fixture(scope="session")
def digit_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/digits/1, really trained."""
    models = tmp_path_factory.mktemp("models")
    run_program("examples.digits.train", models / "digits" / "1", "--hidden", 16, "--epochs", 10)
    return models
