"""The benchmark suite's parts do what they say, and a short run of it finds every answer right."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.suite import load, plots, report, wire
from benchmarks.suite.alone import Alone
from benchmarks.suite.bars import bars
from benchmarks.suite.contenders import CONTENDERS, Place, chosen
from benchmarks.suite.environments import PEERS
from benchmarks.suite.load import Load, Target
from benchmarks.suite.measure import Cell, Entrant, Plan, Results, narrowed
from benchmarks.suite.processes import Processes, ServerFailed, stat
from benchmarks.suite.wire import Array, Format
from tests.support.programs import ROOT, run_program, wait_until

ROWS: Array = np.arange(6, dtype=np.float32).reshape(2, 3)

PRINTED = """
finished in 1.00s, 3183.50 req/s, 343.70KB/s
requests: 3183 total, 3247 started, 3183 done, {succeeded} succeeded, {failed} failed, {failed} errored, 0 timeout
status codes: {succeeded} 2xx, {failed} 3xx, 0 4xx, 0 5xx
traffic: 343.70KB (351947) total, 9.91KB (10149) headers (space savings 96.06%), 170.96KB ({data}) data
"""
LOG = "".join(f"1795274242729884\t{status}\t{duration}\n" for status, duration in [(200, 3000), (200, 1000), (500, 9)])


# Wire.


def test_a_predict_request_is_what_protobuf_reads() -> None:
    from tensorflow_serving.apis import predict_pb2

    for rows in (ROWS, ROWS[:1, :1]):
        request = predict_pb2.PredictRequest.FromString(wire.TFS_GRPC.encode("mlp", rows))
        assert request.model_spec.name == "mlp"
        tensor = request.inputs["x"]
        values = tensor.float_val or np.frombuffer(tensor.tensor_content, np.float32)
        assert np.array_equal(np.reshape(values, [dim.size for dim in tensor.tensor_shape.dim]), rows)


@pytest.mark.parametrize("as_content", [False, True])
def test_a_predict_response_is_read_as_protobuf_wrote_it(as_content: bool) -> None:
    from tensorflow_serving.apis import predict_pb2

    from embedserve.tensors import dtypes, proto

    response = predict_pb2.PredictResponse()
    response.model_spec.name = "mlp"
    proto.encode_into(response.outputs["y"], ROWS, dtypes.by_name("float"), as_content=as_content)
    assert np.array_equal(wire.TFS_GRPC.decode(response.SerializeToString()), ROWS)


def test_a_no_op_answers_what_a_server_would() -> None:
    assert np.array_equal(wire.TFS_GRPC.decode(wire.tfs_answer("mlp", ROWS)), ROWS)


@pytest.mark.parametrize("format", [wire.TFS_REST, wire.PLAIN_REST], ids=lambda format: format.name)
def test_json_holds_the_rows(format: Format) -> None:
    assert np.array_equal(json.loads(format.encode("mlp", ROWS))["instances"], ROWS)
    assert np.array_equal(format.decode(json.dumps({"predictions": ROWS.tolist()}).encode()), ROWS)


def test_the_open_inference_protocol_holds_the_rows() -> None:
    (tensor,) = json.loads(wire.V2_REST.encode("mlp", ROWS))["inputs"]
    assert np.array_equal(np.reshape(tensor["data"], tensor["shape"]), ROWS)
    assert list(wire.V2_REST.decode(json.dumps({"outputs": [tensor]}).encode())) == [0, 1, 2, 3, 4, 5]

    message = wire.V2_GRPC.encode("mlp", ROWS)
    assert wire.one(message, 1) == b"mlp"
    raw = wire.one(message, 7)
    assert list(np.frombuffer(raw, np.float32)) == [0, 1, 2, 3, 4, 5]
    typed = wire.field(5, wire.field(1, b"y") + wire.field(5, wire.field(6, raw)))
    for answer in (wire.field(6, raw), typed):
        assert list(wire.V2_GRPC.decode(answer)) == [0, 1, 2, 3, 4, 5]


# h2load.


def printed(data: int = 3183 * 55, failed: int = 0) -> str:
    return PRINTED.format(succeeded=3183 - failed, failed=failed, data=data)


def test_a_measurement_is_rate_latencies_and_failures() -> None:
    found = load.parse(printed(), LOG, Target("", b"", grpc=True, answer_bytes=55), 64)
    assert found == Load(3183, 0, 3183.5, p50=0.003, p99=0.003, gap=0.002)
    assert load.parse(printed(failed=3), LOG, Target("", b"", grpc=False), 64).failed == 6


def test_answers_that_were_under_way_at_the_end_are_no_failures() -> None:
    target = Target("", b"", grpc=True, answer_bytes=55)
    assert load.parse(printed(data=3183 * 55 + 64 * 55), LOG, target, 64).failed == 0


@pytest.mark.parametrize(("data", "failed"), [(3183 * 55 - 550, 10), (3183 * 55 - 1, 1), (3300 * 55, 117)])
def test_a_grpc_answer_of_another_size_is_a_failure_though_its_status_is_200(data: int, failed: int) -> None:
    target = Target("", b"", grpc=True, answer_bytes=55)
    assert load.parse(printed(data=data), LOG, target, 64).failed == failed


def test_grpc_has_several_streams_on_a_connection_and_http_one_request() -> None:
    grpc = load.command_of(Target("http://x", b"", grpc=True), 64, 1.5, Path("body"), Path("log"))
    assert "--clients 8 --max-concurrent-streams 8" in " ".join(grpc)
    assert "--duration 1500ms" in " ".join(grpc)
    alone = load.command_of(Target("http://x", b"", grpc=True), 1, 1, Path("body"), Path("log"))
    assert "--clients 1 --max-concurrent-streams 1" in " ".join(alone)
    assert "--h1 --clients 64" in " ".join(load.command_of(Target("http://x", b"", grpc=False), 64, 1, Path(), Path()))


# Processes.


def test_halted_processes_use_no_time_and_closing_ends_all_of_them(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'while True: pass']); input()"
    tree = Processes([sys.executable, "-c", code], {}, tmp_path / "log", min(os.sched_getaffinity(0)), piped=True)
    try:
        wait_until(lambda: len(tree.tree()) == 2 and tree.cpu > 0.05)
        tree.halt()
        wait_until(lambda: all(state_of(each.pid) == "T" for each in tree.tree()))
        used = tree.cpu
        assert tree.cpu == used
        tree.resume()
        wait_until(lambda: tree.cpu > used)
        pids = [each.pid for each in tree.tree()]
    finally:
        tree.close()
    assert len(pids) == 2
    assert not any(map(stat, pids))


def state_of(pid: int) -> str:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2]


def test_a_server_that_ends_is_told_of_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with (
        Processes(command, {}, tmp_path / "log", min(os.sched_getaffinity(0))) as server,
        pytest.raises(ServerFailed, match="status 1: no such model"),
    ):
        server.wait_until(lambda: False, 60)


# Choice and report.


def test_servers_are_chosen_by_name_or_group() -> None:
    assert [each.name for each in chosen([])] == list(CONTENDERS)
    assert {each.group for each in chosen(["noop"])} == {"noop"}
    assert {each.group for each in chosen(["embedserve", "naive"])} == {"embedserve", "naive"}
    with pytest.raises(ValueError, match="no server 'nobody'; known are embedserve-standalone,"):
        chosen(["nobody"])


def test_a_peer_has_a_program_and_requirements_by_range() -> None:
    peers = [each for each in CONTENDERS.values() if each.group == "peers"]
    place = Place(Path("python"), Path("models"), Path("work"), Path("answers"), 1, 2)
    for peer in peers:
        assert peer.requirements is not None
        lines = (PEERS / peer.requirements).read_text().splitlines()
        wanted = [line for line in lines if not line.startswith("#")]
        assert any(line.partition(">=")[0].split("[")[0] == peer.package for line in wanted)
        assert all(">=" in line for line in wanted)
        assert any(str(PEERS) in word for word in peer.command(place))
    assert len(peers) == 6


def test_workloads_are_narrowed_to_a_concurrency() -> None:
    assert [(each.name, each.concurrency) for each in narrowed([], [8, 64])] == [
        ("half", (64,)),
        ("mlp", (64,)),
        ("mobilenet", (8,)),
    ]


def test_a_server_is_asked_only_what_it_is_for() -> None:
    optimised = CONTENDERS["embedserve-optimised"]
    place = Place(Path("python"), Path("models"), Path("work"), Path("answers"), 1, 2)

    def asked(*workloads: str) -> set[tuple[str, str]]:
        plan = Plan([optimised], narrowed(workloads, []), 1, 1, 0, 1)
        return {(cell.workload, cell.protocol) for cell, _, _ in Entrant(optimised, plan, place, {}).cells()}

    assert asked() == {("mobilenet", "rest"), ("mobilenet", "grpc")}
    assert asked("half") == set()


def test_optimised_execution_has_a_bar_of_its_own() -> None:
    samples = {
        Cell("mobilenet", "grpc", 8, f"embedserve-{kind}"): [Load(10, 0, rate, 0.1, 0.2, 0.3)]
        for kind, rate in (("standalone", 100.0), ("optimised", 125.0))
    }
    (bar,) = bars(samples, None)
    assert (bar.item, bar.ratio, bar.bound, bar.met) == (5, 1.25, 1.2, True)


def sampled(**rates: list[float]) -> Results:
    return Results(
        {
            Cell("half", "rest", 64, name.replace("_", "-")): [Load(10, 0, rate, 0.1, 0.2, 0.3) for rate in found]
            for name, found in rates.items()
        }
    )


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # The machine was slow in the second round, for both of them.
    results = sampled(embedserve_standalone=[600, 60, 630], noop_starlette=[1000, 100, 1000])
    (bar,) = bars(results.samples, None)
    assert (bar.what, round(bar.ratio, 9), bar.met) == ("half at 64 over REST, of a no-op Starlette route", 0.6, True)


def test_a_report_outlives_json_and_is_drawn(tmp_path: Path) -> None:
    results = sampled(embedserve_standalone=[600, 60, 630], naive_fastapi=[100, 10, 100])
    results.absent["pytriton"] = "not installable: no such wheel"
    results.problems.append("mosec, half over rest: a wrong answer")
    found = report.Report(results, Alone(0.1, 1.2, 1.3), report.about(1, 3))
    again = report.from_json(report.to_json(found))
    assert again == found
    page = report.markdown(again)
    assert [each.name for each in plots.write(results.samples, tmp_path)] == ["suite-half.svg"]
    words = [element.text for element in ElementTree.parse(tmp_path / "suite-half.svg").iter() if element.text]
    assert {"naive-fastapi", "0.17"} <= set(words)
    assert "| naive-fastapi | 6.00 |" in page
    assert "of a bare process with TensorFlow and the same model | 1.30 |  | ≤ 1.1 | **missed** |" in page
    assert "| pytriton |  | not measured: not installable: no such wheel |" in page
    assert "- mosec, half over rest: a wrong answer" in page


def test_a_page_gets_the_results_of_the_last_run_between_its_marks() -> None:
    found = report.Report(sampled(embedserve_standalone=[600], naive_fastapi=[100]), None, report.about(1, 3))
    text = f"before\n{report.BEGIN}\nof another run\n{report.END}\nafter\n"
    once = report.page(found, text)
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "of another run" not in once
    assert "](suite-half.svg)" in once
    assert "| naive-fastapi | 6.00 |" in once
    assert "600" not in once, "absolute figures are left out"
    assert report.page(found, once) == once
    with pytest.raises(ValueError, match="no place for the results"):
        report.page(found, "no marks")


@pytest.mark.timeout(200)
def test_a_quick_run_finds_every_answer_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDSERVE_BENCHMARKS", str(tmp_path / "cache"))
    file = tmp_path / "found.json"
    command = ("-m", "benchmarks", "--quick", "--workloads", "half", "--concurrency", 16, "--json", file)
    page = run_program(*command, "--servers", "embedserve-standalone,naive")
    assert "Every answer that was looked at was right, and no request failed." in page
    cells = {(each["server"], each["protocol"]): each["samples"] for each in json.loads(file.read_text())["cells"]}
    assert {("embedserve-standalone", "rest"), ("embedserve-standalone", "grpc"), ("naive-fastapi", "rest")} <= set(
        cells
    )
    assert all(sample["answered"] > 0 and sample["cpu"] > 0 for samples in cells.values() for sample in samples)
    assert run_program("-m", "benchmarks", "--read", file) == page


def test_the_command_says_what_is_wrong_with_its_options() -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--servers", "nobody"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no server 'nobody'" in done.stderr
