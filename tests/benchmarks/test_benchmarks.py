"""The benchmarks still run, and what they check (not what they time) holds."""

from __future__ import annotations

import re

import pytest

from tests.support.programs import run_program

pytestmark = pytest.mark.timeout(400)  # Several programs that import TensorFlow, one after the other.


@pytest.mark.parametrize("transport", ["in-process", "rest", "grpc"])
def test_swaps_under_load_lose_no_request_and_mix_no_versions(transport: str) -> None:
    printed = run_program("-m", "benchmarks.hot_swap", "--transport", transport, "--swaps", 4, "--steady", 0.5)
    assert "failed 0, mixed versions 0" in printed


def test_the_parts_that_are_measured_alone_answer_right() -> None:
    printed = run_program("-m", "pytest", "benchmarks/micro.py", "-q", "--benchmark-disable")
    assert re.search(r"^\d+ passed", printed, re.MULTILINE)
    assert "failed" not in printed


def test_adaptive_batching_beside_the_default_is_a_table() -> None:
    printed = run_program("-m", "benchmarks.adaptive", "--models", "half", "--seconds", 0.05, "--rounds", 1)
    rows = re.findall(r"^\| half \| [^|]+ \| [\d,]+/s \| [\d,]+/s (?:\| \d+\.\d\d ){4}\|$", printed, re.MULTILINE)
    assert len(rows) == 7


def test_bad_requests_leave_the_process_alive() -> None:
    printed = run_program("-m", "benchmarks.fuzz", "--requests", 2000, "--seed", 7)
    assert "process alive" in printed
    assert int(re.findall(r"REST 200 +([\d,]+)", printed)[0]) > 50, "some of them are right, and get their answer"


def test_swaps_on_two_workers_lose_no_request_and_go_forward_only() -> None:
    printed = run_program("-m", "benchmarks.workers", "--parts", "swaps", "--swaps", 3)
    assert "failed 0, older after newer 0" in printed


def test_hostile_values_that_end_a_process_are_found_and_the_rest_still_run() -> None:
    printed = run_program("-m", "benchmarks.fuzz", "--kernels", "--ops", "irfft,Add", "--cases", 20, "--seed", 2)
    assert re.match(r"[23]\d inputs to 2 operations \(0 could not be set up\): [12] process deaths, 0 hangs", printed)
    assert "irfft: " in printed


@pytest.mark.timeout(400)
def test_a_death_behind_the_server_is_recovered_from_and_its_clients_get_an_error() -> None:
    options = ("--kernels", "--ops", "hidden_spectrum", "--cases", 1, "--behind-server")
    printed = run_program("-m", "benchmarks.fuzz", *options)
    assert "2 inputs that end a process (0 more could not be sent): 2 process deaths, 0 unrecovered" in printed
    for line in ("got by the client of a death: gRPC UNAVAILABLE 1", "got by the client of a death: REST 503 1"):
        assert line in printed
    for line in ("the port answers again after: median ", "full strength after: median ", "neighbour model: REST 200 "):
        assert line in printed


def test_the_client_is_measured_beside_the_official_stubs() -> None:
    printed = run_program("-m", "benchmarks.client", "--calls", 20, "--imports", 1)
    assert {"tiny, 4 floats", "600 kB of floats", "1,000 strings"} <= {
        line[:40].strip() for line in printed.splitlines()
    }
