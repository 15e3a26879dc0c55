"""The comparison of gRPC's transports measures what it says, finds every answer right, and serves one server alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import grpc_transports
from benchmarks.grpc_transports import AIO, NOOP_AIO, OWN, SERVERS, cell
from benchmarks.suite.load import Load
from benchmarks.suite.measure import Results
from tests.support.programs import PYTHONPATH, ROOT, run_program, wait_until

needs_h2load = pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load (nghttp2-client) is not installed")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The model is made once, and not in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDSERVE_BENCHMARKS", str(tmp_path_factory.mktemp("cache")))
        yield


def measured(**rates: list[float]) -> Results:
    """Results of servers by their names' last parts; processor time as if nothing else had run."""
    names = {"noop_aio": NOOP_AIO, "aio": AIO, "own": OWN}
    return Results(
        {
            cell(names[name]): [Load(100, 0, rate, 0.001, 0.002, cpu=1 / rate) for rate in found]
            for name, found in rates.items()
        }
    )


def test_the_bars_are_ratios_of_the_rounds_and_of_processor_time() -> None:
    # Everything was slow in the second round.
    results = measured(noop_aio=[6000, 600, 6100], aio=[4500, 450, 4600], own=[9000, 900, 9200])
    first, second, _ = list(grpc_transports.ratios(results))
    assert (first.one, first.other, round(first.rate, 3), first.met) == (AIO, NOOP_AIO, 0.75, True)
    assert (second.one, second.other, round(second.rate, 3), second.met) == (OWN, AIO, 2.0, False)
    assert round(second.by_cpu, 3) == 2.0
    page = grpc_transports.markdown(results)
    assert f"| {AIO} / {NOOP_AIO} | 0.75 | 0.75 | ≥ 0.7: met |" in page
    assert f"| {OWN} / {AIO} | 2.00 | 2.00 | ≥ 2.5: **missed** |" in page
    assert f"| {AIO} | 4,500 (450 to 4,600) | 222.2 | 1.00 | 2.00 |" in page


def test_what_could_not_be_measured_and_what_failed_is_said() -> None:
    results = measured(noop_aio=[6000])
    results.absent[OWN] = "it ended with status 255"
    results.problems.append("embedserve, half over grpc, 32: 3 failed, 97 answered")
    page = grpc_transports.markdown(results)
    assert f"| {OWN} | not measured: it ended with status 255 |" in page
    assert "3 failed, 97 answered" in page
    assert "no call failed" not in page


@needs_h2load
@pytest.mark.timeout(400)
def test_a_short_run_measures_all_servers_and_no_call_fails(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    page = run_program("-m", "benchmarks.grpc_transports", "--seconds", 0.3, "--repeats", 1, "--json", file)
    assert "Every answer that was looked at was right, and no call failed." in page
    found = json.loads(file.read_text())
    assert set(found["samples"]) == set(SERVERS)
    assert all(median["answered"] > 0 and median["cpu"] > 0 for median in found["medians"].values())
    assert [ratio["bound"] for ratio in found["ratios"]] == [0.7, 2.5, None, None]


@pytest.mark.timeout(200)
def test_one_server_alone_says_its_port_and_ends_when_interrupted() -> None:
    from benchmarks.suite.client import Client
    from benchmarks.suite.contenders import CONTENDERS
    from benchmarks.suite.workloads import examples_of, models_directory

    examples = examples_of(models_directory(["half"]), "half")
    format = CONTENDERS[NOOP_AIO].format("grpc")
    assert format is not None
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.grpc_transports", "--serve", NOOP_AIO],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as program:
        assert program.stdout is not None
        (port,) = re.findall(r"port (\d+)", program.stdout.readline())
        client = Client(format, int(port), "half")
        wait_until(lambda: not client.wrong(examples, 1, fixed=True))
        os.killpg(program.pid, signal.SIGINT)  # As Ctrl-C does.
        program.wait(30)
