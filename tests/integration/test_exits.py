"""Processes that end without having left their registry, or leave it while they end: no traceback, nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.programs import PYTHONPATH

pytestmark = pytest.mark.slow

ENTERED = """
import atexit, sys
from embedserve.testing import FakeLoader, FakeRegistry
loader = FakeLoader()
registry = FakeRegistry({"m": {1: loader}})
atexit.register(lambda: print("unloaded", loader.unloads))  # Called after what is registered later.
"""


@pytest.mark.parametrize(
    "code",
    [
        "registry.ensure_started_sync()",
        "registry.__enter__()",
        "registry.__enter__(); atexit.register(registry.close)",
        "registry.__enter__(); atexit.register(registry.__exit__, None, None, None)",
        "registry.__enter__(); sys.exit()",
        "registry.ensure_started_sync(); registry.close(); registry.ensure_started_sync()",
    ],
)
def test_a_registry_is_left_at_the_end_of_the_process_without_a_traceback(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ENTERED + code],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"unloaded {2 if code.count('ensure_started_sync') == 2 else 1}\n"
