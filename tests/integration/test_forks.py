"""Hosts that fork: before TensorFlow has run all is well, after it a child is told at once what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import deploy
from tests.support.programs import PYTHONPATH

pytestmark = pytest.mark.slow

IN_CHILD = """
import os, sys, time
import numpy as np
import embedserve

def in_child(work):
    child = os.fork()
    if child == 0:
        began = time.monotonic()
        try:
            print(work(), flush=True)
        except embedserve.RegistryStateError as error:
            print("refused:", error, flush=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def serve():
    with embedserve.ModelRegistry(sys.argv[1]) as registry:
        return float(registry.predict_sync("m", [[1.0]])["y"][0, 0])
"""


def run(code: str, models: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", IN_CHILD + code, str(models)],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_a_child_of_a_process_that_ran_tensorflow_is_refused_with_the_remedy(
    models: Path, line: Callable[[int], Path]
) -> None:
    deploy(line(1), models / "m" / "1")
    said = run("import tensorflow as tf; tf.constant(1) + 1; in_child(serve)", models)
    assert len(said) == 1
    assert said[0].startswith("refused: TensorFlow had run in process ")
    assert "post_fork" in said[0]
    assert "worker_process_init" in said[0]
    assert "spawn" in said[0]


def test_a_grandchild_is_refused_too(models: Path, line: Callable[[int], Path]) -> None:
    deploy(line(1), models / "m" / "1")
    said = run("import tensorflow as tf; tf.constant(1) + 1; in_child(lambda: in_child(serve))", models)
    assert said[0].startswith("refused: TensorFlow had run")


def test_a_child_of_a_process_that_only_imported_tensorflow_serves(models: Path, line: Callable[[int], Path]) -> None:
    deploy(line(7), models / "m" / "1")
    assert run("import tensorflow; in_child(serve); in_child(serve)", models) == ["7.0", "7.0"]


def test_the_child_of_an_entered_parent_does_not_say_that_all_is_well(
    models: Path, line: Callable[[int], Path]
) -> None:
    deploy(line(1), models / "m" / "1")
    code = """
registry = embedserve.ModelRegistry(models=[embedserve.ModelConfig(name="m", base_path=sys.argv[1] + "/m")])
def look():
    print(registry.started, registry.readiness()["m"], repr(registry), sep="|")
    for show in (registry.status, registry.models, registry.statistics, lambda: registry.labels("m")):
        try:
            show()
        except embedserve.RegistryStateError as error:
            assert "forked child" in str(error), error
        else:
            raise AssertionError("shown nothing as if that were all")
    return registry.predict_sync("m", [[1.0]])
def enter():
    with registry:
        return "entered"
with registry:
    in_child(look)
    in_child(enter)
    print(registry.started, registry.readiness(), registry.predict_sync("m", [[1.0]])["y"][0, 0])
"""
    seen, refused, entered, parent = run(code, models)
    started, reason, shown = seen.split("|")
    assert started == "False"
    assert "forked" in reason
    assert "forked" in shown
    assert "forked child" in refused
    assert entered.startswith("refused: TensorFlow had run")
    assert parent == "True {'m': None} 1.0"
