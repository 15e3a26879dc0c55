"""What one process posts as a shared value is what every reader reads from then on, whole and in order."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from embedserve.errors import ServingError
from embedserve.server.workers import shared_value as shared_value_module
from embedserve.server.workers.shared_value import SharedValue


@pytest.fixture
def shared() -> Iterator[SharedValue]:
    with contextlib.closing(SharedValue()) as shared:
        yield shared


@pytest.fixture
def reader(shared: SharedValue) -> Iterator[SharedValue]:
    with contextlib.closing(SharedValue(os.dup(shared.fd))) as reader:
        yield reader


def test_a_reader_sees_what_was_posted_last(shared: SharedValue, reader: SharedValue) -> None:
    assert reader.read() == (0, None)
    for number in range(1, 6):
        shared.post({"n": number, "filler": "x" * number * 1000})
        assert reader.number == number
        assert reader.read() == (number, {"n": number, "filler": "x" * number * 1000})


def test_what_is_too_large_leaves_the_last_value_in_force(
    shared: SharedValue, reader: SharedValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.post("small")
    monkeypatch.setattr(shared_value_module, "_SLOT_BYTES", 2000)
    with pytest.raises(ServingError, match="more than workers can be told"):
        shared.post("x" * 3000)
    monkeypatch.undo()
    assert reader.read() == (1, "small")


@pytest.mark.slow
def test_readers_in_other_processes_read_whole_values_in_order(shared: SharedValue) -> None:
    code = """
import sys
from embedserve.server.workers.shared_value import SharedValue
shared, last = SharedValue(int(sys.argv[1])), 0
print("reading", flush=True)
while last < 3000:
    number, value = shared.read()
    assert number >= last
    assert value is None or value == [number] * (number % 700), (number, value[:3])
    last = number
print("done")
"""
    command = [sys.executable, "-c", code, str(shared.fd)]
    reader = subprocess.Popen(command, pass_fds=[shared.fd], stdout=subprocess.PIPE, text=True)
    with reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        for number in range(1, 3001):
            shared.post([number] * (number % 700))
        assert reader.communicate(timeout=60)[0] == "done\n"
    assert reader.returncode == 0
