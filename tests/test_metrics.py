"""The exposition: TF Serving's metrics as TF Serving prints them, ours beside them, bounded."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from embedserve.call_record import NO_HEADERS, CallRecord, RunRecord
from embedserve.config import BatchingOptions
from embedserve.errors import Code, InvalidInputError, LoadError
from embedserve.metrics import OTHER_MODELS, Metrics
from embedserve.observer import running_api
from embedserve.servable import ServableId, State
from embedserve.testing import FakeLoader, FakeRegistry, FakeServable, Gate, fake_signature

M1 = ServableId("m", 1)

LATENCY_LIMITS = """
10 18 32.4 58.32 104.976 188.957 340.122 612.22 1102 1983.59 3570.47 6426.84 11568.3 20823 37481.3 67466.4
121440 218591 393464 708235 1.27482e+06 2.29468e+06 4.13043e+06 7.43477e+06 1.33826e+07 2.40887e+07
4.33596e+07 7.80473e+07 1.40485e+08 2.52873e+08 4.55172e+08 8.19309e+08 1.47476e+09 +Inf
"""


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def page(metrics: Metrics) -> list[str]:
    text = metrics.exposition().decode()
    assert text.endswith("\n")
    return text.splitlines()


def lines_of(metrics: Metrics, name: str) -> list[str]:
    return [line for line in page(metrics) if re.match(rf"(# TYPE )?{re.escape(name)}[ {{_]", line)]


def test_an_empty_page_has_the_types_of_what_is_registered_from_the_start(metrics: Metrics) -> None:
    assert [line for line in page(metrics) if not line.startswith("# HELP")] == [
        "# TYPE :tensorflow:cc:saved_model:load_attempt_count counter",
        "# TYPE :tensorflow:cc:saved_model:load_latency counter",
        "# TYPE :tensorflow:core:direct_session_runs counter",
        "# TYPE :tensorflow:core:graph_build_calls counter",
        "# TYPE :tensorflow:core:graph_build_time_usecs counter",
        "# TYPE :tensorflow:core:graph_run_time_usecs counter",
        "# TYPE :tensorflow:core:graph_runs counter",
        "# TYPE :tensorflow:serving:batching_session:queuing_latency histogram",
        "# TYPE :tensorflow:serving:batching_session:wrapped_run_count counter",
        "# TYPE :tensorflow:serving:mlmd_map gauge",
        "# TYPE :tensorflow:serving:model_warmup_latency histogram",
        "# TYPE :tensorflow:serving:model_warmup_records_read counter",
        "# TYPE :tensorflow:serving:request_count counter",
        "# TYPE :tensorflow:serving:request_example_count_total counter",
        "# TYPE :tensorflow:serving:request_example_counts histogram",
        "# TYPE :tensorflow:serving:request_latency histogram",
        "# TYPE :tensorflow:serving:request_log_count counter",
        "# TYPE :tensorflow:serving:runtime_latency histogram",
        "# TYPE embedserve_batch_rows histogram",
        "# TYPE embedserve_batches_released_total counter",
        "# TYPE embedserve_listener_refusals_total counter",
        "# TYPE embedserve_log_lines_dropped_total counter",
        "# TYPE embedserve_padding_rows_total counter",
        "# TYPE embedserve_predict_seconds histogram",
        "# TYPE embedserve_queue_wait_seconds histogram",
        "# TYPE embedserve_stuck_runs_returned_total counter",
        "# TYPE embedserve_stuck_runs_total counter",
    ]


def test_each_metric_has_a_line_of_help_before_its_type(metrics: Metrics) -> None:
    metrics.batch_formed(M1, "s", 3, 4, 2, "full")
    metrics.request_enqueued(M1, "s", 2, 3)
    lines = page(metrics)
    typed = [i for i, line in enumerate(lines) if line.startswith("# TYPE ")]
    assert len(typed) > 20
    for i in typed:
        assert re.fullmatch(rf"# HELP {re.escape(lines[i].split()[2])} \w[^\\]+\.", lines[i - 1]), lines[i]


def test_requests_are_counted_and_timed_as_the_contract_shows(metrics: Metrics) -> None:
    metrics.request_finished("m", "predict", "REST", Code.NOT_FOUND, 1.0)
    for micros in (12, 5420):
        metrics.request_finished("m", "predict", "REST", Code.OK, micros / 1e6)
    metrics.request_finished("m", "Predict", "GRPC", Code.OK, 1e-6)
    assert lines_of(metrics, ":tensorflow:serving:request_count") == [
        "# TYPE :tensorflow:serving:request_count counter",
        ':tensorflow:serving:request_count{model_name="m",status="NOT_FOUND"} 1',
        ':tensorflow:serving:request_count{model_name="m",status="OK"} 3',
    ]
    latency = lines_of(metrics, ":tensorflow:serving:request_latency")
    rest = 'model_name="m",API="predict",entrypoint="REST"'
    bucket = f":tensorflow:serving:request_latency_bucket{{{rest},le="
    assert latency[0] == "# TYPE :tensorflow:serving:request_latency histogram"
    assert [line.split('entrypoint="')[1][:4] for line in latency[1:]] == ["GRPC"] * 36 + ["REST"] * 36
    found = latency[37:]
    assert [line.split('le="')[1].split('"')[0] for line in found[:-2]] == LATENCY_LIMITS.split()
    assert [line.split()[1] for line in found[:-2]] == ["0"] + ["1"] * 10 + ["2"] * 23
    assert found[0] == f'{bucket}"10"}} 0'
    assert found[-3] == f'{bucket}"+Inf"}} 2'
    assert found[-2] == f":tensorflow:serving:request_latency_sum{{{rest}}} 5432"
    assert found[-1] == f":tensorflow:serving:request_latency_count{{{rest}}} 2"


def test_braces_are_always_there(metrics: Metrics) -> None:
    metrics.batch_formed(M1, "s", 3, 4, 2, "full")
    metrics.request_enqueued(M1, "s", 2, 3)
    prefix = ":tensorflow:serving:batching_session:"
    assert f"{prefix}wrapped_run_count{{}} 1" in page(metrics)
    sizes = lines_of(metrics, f"{prefix}processed_batch_size")
    # A size that equals a limit is in that limit's bucket.
    assert sizes[1:5] == [
        f'{prefix}processed_batch_size_bucket{{le="1"}} 0',
        f'{prefix}processed_batch_size_bucket{{le="2"}} 0',
        f'{prefix}processed_batch_size_bucket{{le="4"}} 1',
        f'{prefix}processed_batch_size_bucket{{le="8"}} 1',
    ]
    assert sizes[-3:] == [
        f'{prefix}processed_batch_size_bucket{{le="+Inf"}} 1',
        f"{prefix}processed_batch_size_sum{{}} 4",
        f"{prefix}processed_batch_size_count{{}} 1",
    ]
    assert len(sizes) == 1 + 15 + 2
    assert f'{prefix}padding_size_count{{execution_batch_size="4"}} 1' in page(metrics)
    # Once per input tensor.
    assert f"{prefix}input_batch_size_sum{{}} 6" in page(metrics)
    assert f"{prefix}input_batch_size_count{{}} 3" in page(metrics)


def test_batches_are_described_per_model_version_and_signature(metrics: Metrics) -> None:
    metrics.batch_formed(M1, "s", 3, 4, 2, "full")
    metrics.batch_formed(M1, "s", 1, 1, 1, "slot")
    metrics.queue_wait(M1, "s", 0.0015)
    labels = 'model="m",version="1",signature="s"'
    found = page(metrics)
    assert f"embedserve_padding_rows_total{{{labels}}} 1" in found
    assert f'embedserve_batches_released_total{{{labels},reason="full"}} 1' in found
    assert f'embedserve_batches_released_total{{{labels},reason="slot"}} 1' in found
    assert f"embedserve_batch_rows_sum{{{labels}}} 4" in found
    assert f'embedserve_batch_rows_bucket{{{labels},le="2"}} 1' in found
    assert f'embedserve_queue_wait_seconds_bucket{{{labels},le="0.001"}} 0' in found
    assert f'embedserve_queue_wait_seconds_bucket{{{labels},le="0.0025"}} 1' in found
    assert f"embedserve_queue_wait_seconds_sum{{{labels}}} 0.0015" in found
    queuing = lines_of(metrics, ":tensorflow:serving:batching_session:queuing_latency")
    limits = [line.split('le="')[1].split('"')[0] for line in queuing[1:8]]
    assert limits == ["100", "120", "144", "172.8", "207.36", "248.832", "298.598"]
    assert queuing[-4].startswith(
        ':tensorflow:serving:batching_session:queuing_latency_bucket{thread_pool_name="",le="1.09205e+06"}'
    )
    assert queuing[-2].endswith('{thread_pool_name=""} 1500')


def test_runs_are_timed_by_api_when_they_succeed(metrics: Metrics) -> None:
    metrics.run_finished(M1, "s", 0.001, None)
    metrics.run_finished(M1, "s", 0.001, InvalidInputError("no"))
    token = running_api.set("Classify")
    metrics.run_finished(M1, "s", 0.002, None)
    running_api.set("MultiInference")
    metrics.run_finished(M1, "s", 0.002, None)
    running_api.reset(token)
    sums = [line for line in lines_of(metrics, ":tensorflow:serving:runtime_latency") if "_sum" in line]
    assert sums == [
        ':tensorflow:serving:runtime_latency_sum{model_name="m",API="Classify",runtime="TF1"} 2000',
        ':tensorflow:serving:runtime_latency_sum{model_name="m",API="Predict",runtime="TF1"} 1000',
    ]


def test_loads_and_warm_ups(metrics: Metrics) -> None:
    metrics.load_finished(M1, "/m/1", 0.25, None)
    metrics.load_finished(M1, "/m/1", 0.25, LoadError("no"))
    metrics.warmup_finished(M1, "/m/1", 0.001, 7, None)
    metrics.warmup_finished(M1, "/m/1", 0.001, 2, LoadError("no", code=Code.DATA_LOSS))
    found = page(metrics)
    assert ':tensorflow:cc:saved_model:load_attempt_count{model_path="/m/1",status="fail"} 1' in found
    assert ':tensorflow:cc:saved_model:load_attempt_count{model_path="/m/1",status="success"} 1' in found
    assert ':tensorflow:cc:saved_model:load_latency{model_path="/m/1"} 500000' in found
    assert ':tensorflow:serving:model_warmup_records_read{model_path="/m/1",status="OK"} 7' in found
    assert ':tensorflow:serving:model_warmup_records_read{model_path="/m/1",status="DATA_LOSS"} 2' in found
    assert ':tensorflow:serving:model_warmup_latency_count{model_path="/m/1",status="OK"} 1' in found


def test_the_series_that_dashboards_plot_of_tensorflows_core(metrics: Metrics) -> None:
    metrics.load_finished(M1, "/m/1", 0.25, None)
    metrics.load_finished(M1, "/m/2", 0.25, LoadError("no"))
    metrics.graph_run_finished(M1, 0.003, True)
    metrics.graph_run_finished(M1, 0.001, False)
    found = [line for line in page(metrics) if line.startswith(":tensorflow:core:")]
    assert found == [
        ":tensorflow:core:direct_session_runs{} 1",
        ":tensorflow:core:graph_build_calls{} 1",
        ":tensorflow:core:graph_build_time_usecs{} 250000",
        ":tensorflow:core:graph_run_time_usecs{} 4000",
        ":tensorflow:core:graph_runs{} 2",
    ]


def test_examples_of_multi_inference(metrics: Metrics) -> None:
    metrics.examples_counted("m", 3)
    found = page(metrics)
    assert ':tensorflow:serving:request_example_count_total{model="m"} 3' in found
    assert ':tensorflow:serving:request_example_counts_bucket{model="m",le="4"} 1' in found
    assert ':tensorflow:serving:request_example_counts_bucket{model="m",le="16384"} 1' in found


def test_names_that_clients_make_up_are_bounded() -> None:
    metrics = Metrics(max_unknown_models=2)
    metrics.version_state(ServableId("known", 1), State.AVAILABLE, None)
    for name in ["a", "b", "c", "d", "a", "known", "", "x" * 1000]:
        metrics.request_finished(name, "predict", "REST", Code.NOT_FOUND, 0.0)
    counted = {
        line.split('"')[1]: int(line.split()[-1]) for line in lines_of(metrics, ":tensorflow:serving:request_count")[1:]
    }
    assert counted == {"a": 2, "b": 1, "known": 1, "": 1, OTHER_MODELS: 3}
    # What was unknown and is loaded later is no longer one of the few.
    metrics.version_state(ServableId("a", 1), State.START, None)
    metrics.request_finished("c", "predict", "REST", Code.NOT_FOUND, 0.0)
    assert ':tensorflow:serving:request_count{model_name="c",status="NOT_FOUND"} 1' in page(metrics)


def test_a_model_that_answered_is_known_even_to_an_observer_that_came_late() -> None:
    metrics = Metrics(max_unknown_models=0)
    metrics.request_finished("m", "predict", "REST", Code.OK, 0.0)
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 1' in page(metrics)


def test_versions_that_ended_long_ago_leave_the_page(metrics: Metrics) -> None:
    for version in range(1, 31):
        id = ServableId("m", version)
        metrics.version_state(id, State.AVAILABLE, None)
        metrics.batch_formed(id, "s", 1, 1, 1, "slot")
        metrics.queue_wait(id, "s", 0.1)
        metrics.version_state(id, State.END, None)
    versions = {line.split('version="')[1].split('"')[0] for line in page(metrics) if 'version="' in line}
    assert versions == {str(version) for version in range(21, 31)}


def test_label_values_are_escaped(metrics: Metrics) -> None:
    metrics.request_finished('a"\\\n', "predict", "REST", Code.NOT_FOUND, 0.0)
    assert ':tensorflow:serving:request_count{model_name="a\\"\\\\\\n",status="NOT_FOUND"} 1' in page(metrics)


def test_a_sum_keeps_growing(metrics: Metrics) -> None:
    for _ in range(3):
        metrics.request_finished("m", "predict", "REST", Code.OK, 1234.567891)
    metrics.request_finished("m", "predict", "REST", Code.OK, 1e-6)
    assert lines_of(metrics, ":tensorflow:serving:request_latency")[-2].endswith(" 3703703674")


def test_counters_are_read_by_tf_servings_internal_names(metrics: Metrics) -> None:
    metrics.request_finished("m", "predict", "REST", Code.OK, 0.0)
    metrics.request_finished("m", "predict", "REST", Code.OK, 0.0)
    metrics.request_finished("n", "predict", "REST", Code.NOT_FOUND, 0.0)
    assert metrics.value("/tensorflow/serving/request_count") == 2, "the first cell, as TensorFlow Serving has it"
    assert metrics.value("/tensorflow/serving/nothing") == 0


def test_prometheus_reads_the_page(metrics: Metrics) -> None:
    metrics.request_finished("m", "predict", "REST", Code.OK, 0.5)
    metrics.batch_formed(M1, "s", 3, 4, 2, "full")
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}
    assert families[":tensorflow:serving:request_latency"].type == "histogram"
    assert families["embedserve_padding_rows"].samples[0].value == 1


def test_in_the_hosts_registry_the_names_are_the_same(metrics: Metrics) -> None:
    metrics.request_finished("m", "predict", "REST", Code.OK, 0.5)
    metrics.batch_formed(M1, "s", 3, 4, 2, "full")
    host = CollectorRegistry()
    host.register(metrics)
    shown = generate_latest(host).decode()
    samples = {line.rsplit(" ", 1)[0] for line in shown.splitlines() if not line.startswith("#")}
    own = {line.rsplit(" ", 1)[0].replace("{}", "") for line in page(metrics) if not line.startswith("#")}

    def named(lines: set[str]) -> set[tuple[str, frozenset[str]]]:
        return {(line.split("{")[0], frozenset(re.findall(r'\w+="[^"]*"', line))) for line in lines}

    assert named(samples) == named(own)
    assert "# TYPE embedserve_padding_rows_total counter" in shown
    assert "# TYPE :tensorflow:serving:request_latency histogram" in shown
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        host.register(Metrics())


def test_its_own_registry_holds_nothing_else(metrics: Metrics) -> None:
    assert metrics.registry is metrics.registry
    names = {family.name for family in metrics.registry.collect()}
    assert all(name.startswith((":tensorflow:", "embedserve_")) for name in names)


async def test_a_registry_feeds_its_observer(metrics: Metrics) -> None:
    options = BatchingOptions(max_batch_size=4, allowed_batch_sizes=(4,))
    registry = FakeRegistry({"m": {1: FakeLoader()}}, observers=[metrics], batching_options=options)
    async with registry:
        await registry.predict("m", {"x": np.ones(3, np.float32)})
    found = page(metrics)
    labels = 'model="m",version="1",signature="serving_default"'
    assert f"embedserve_padding_rows_total{{{labels}}} 1" in found
    assert f"embedserve_batch_rows_sum{{{labels}}} 3" in found
    assert ":tensorflow:serving:batching_session:processed_batch_size_sum{} 4" in found
    assert ':tensorflow:serving:runtime_latency_count{model_name="m",API="Predict",runtime="TF1"} 1' in found
    assert any(line.startswith(":tensorflow:cc:saved_model:load_attempt_count{") for line in found)
    assert ":tensorflow:core:graph_runs{} 1" in found
    assert metrics.value("/tensorflow/core/graph_run_time_usecs") > 0
    assert repr(metrics) == "<Metrics of 1 known and 0 unknown models>"


async def test_a_run_that_was_given_up_is_not_timed(metrics: Metrics) -> None:
    gate = Gate()
    loader = FakeLoader(signatures=[fake_signature(batchable=False)], gate=gate)
    async with FakeRegistry({"m": {1: loader}}, observers=[metrics], warmup="none") as registry:
        task = asyncio.create_task(registry.predict("m", [1.0]))
        while not gate.waiting:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(lines_of(metrics, ":tensorflow:serving:runtime_latency")) == 1
    assert metrics.value("/tensorflow/core/graph_runs") == 0


@pytest.mark.parametrize("kind", ["function", "session"])
async def test_unbatched_runs_of_sessions_are_told_from_others(
    metrics: Metrics, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeServable, "kind", kind)
    loader = FakeLoader(signatures=[fake_signature(batchable=False)])
    async with FakeRegistry({"m": {1: loader}}, observers=[metrics]) as registry:
        await registry.predict("m", [1.0])
    assert metrics.value("/tensorflow/core/graph_runs") == 1
    assert metrics.value("/tensorflow/core/direct_session_runs") == (kind == "session")


def test_what_several_processes_have_counted_adds_up() -> None:
    processes = [Metrics(), Metrics()]
    for number, metrics in enumerate(processes, 1):
        for _ in range(number):
            metrics.request_finished("m", "predict", "REST", Code.OK, 1e-5)
        metrics.queue_wait(M1, "serving_default", 0.25)
    total = Metrics()
    for metrics in processes:
        total.add_cells(pickle.loads(pickle.dumps(metrics.cells())))
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 3' in page(total)
    assert lines_of(total, "embedserve_queue_wait_seconds")[-2:] == [
        'embedserve_queue_wait_seconds_sum{model="m",version="1",signature="serving_default"} 0.5',
        'embedserve_queue_wait_seconds_count{model="m",version="1",signature="serving_default"} 2',
    ]
    alone = Metrics()
    alone.add_cells(processes[1].cells())
    assert page(alone) == page(processes[1])


def recorded(metrics: Metrics, seconds: float, trace_id: str, code: Code = Code.OK) -> None:
    """A traced call of M1 that waited for 0.02 s, and took `seconds` in all."""
    record = CallRecord("REST", NO_HEADERS)
    record.trace_id, record.span_id, record.code = trace_id, "b" * 16, code
    record.model, record.version, record.signature, record.api = "m", 1, "s", "predict"
    step = record.wait(1)
    step.entered = record.began
    step.run = RunRecord(record.began + 0.02, 1)
    record.answered = record.ended = record.began + seconds
    metrics.queue_wait(M1, "s", 0.02)
    metrics.run_finished(M1, "s", seconds, None)
    metrics.request_finished("m", "predict", "REST", code, seconds)
    metrics.call_finished(record)


def samples(metrics: Metrics, name: str) -> list[Any]:
    """The samples of the page in OpenMetrics' format, as a strict parser reads the page."""
    return [sample for family in strictly_read(metrics) for sample in family.samples if sample.name == name]


def strictly_read(metrics: Metrics) -> list[Any]:
    read: Any = openmetrics.text_string_to_metric_families
    return list(read(metrics.openmetrics().decode()))


def _series(name: str, labels: Mapping[str, str]) -> tuple[Any, ...]:
    # The parser of the older format adds the ending to every counter.
    return name.removesuffix("_total"), *sorted(labels.items())


def test_openmetrics_has_every_sample_of_the_page(metrics: Metrics) -> None:
    recorded(metrics, 0.3, "a" * 32)
    metrics.batch_formed(M1, "s", 3, 4, 2, "slot")
    metrics.lines_dropped("access", 2)
    families = text_string_to_metric_families(metrics.exposition().decode())
    plain = {_series(sample.name, sample.labels): sample.value for family in families for sample in family.samples}
    strict: dict[Any, float] = {}
    for family in strictly_read(metrics):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.get("le", "+Inf") != "+Inf":
                labels["le"] = f"{float(labels['le']):g}"
            strict[_series(sample.name, labels)] = sample.value
    assert strict == plain
    assert metrics.openmetrics().endswith(b"# EOF\n")


def test_traced_calls_are_exemplars_of_their_buckets(metrics: Metrics) -> None:
    recorded(metrics, 0.3, "a" * 32)
    recorded(metrics, 0.31, "c" * 32)
    recorded(metrics, 2.0, "d" * 32)
    recorded(metrics, 3.0, "e" * 32, Code.INTERNAL)
    found = [s for s in samples(metrics, "embedserve_predict_seconds_bucket") if s.exemplar]
    assert [(s.labels["le"], s.exemplar.labels["trace_id"]) for s in found] == [("0.5", "c" * 32), ("2.5", "d" * 32)]
    assert found[0].exemplar.value == pytest.approx(0.31)
    assert found[0].labels["signature"] == "s"
    (wait,) = [s for s in samples(metrics, "embedserve_queue_wait_seconds_bucket") if s.exemplar]
    assert (wait.labels["le"], wait.exemplar.labels["span_id"]) == ("0.025", "b" * 16)
    latency = [s for s in samples(metrics, ":tensorflow:serving:request_latency_bucket") if s.exemplar]
    assert [s.exemplar.labels["trace_id"] for s in latency] == ["c" * 32, "d" * 32]
    assert "trace_id" not in metrics.exposition().decode()


def test_a_call_without_a_trace_is_no_exemplar(metrics: Metrics) -> None:
    recorded(metrics, 0.3, "")
    assert not [s for s in samples(metrics, "embedserve_predict_seconds_bucket") if s.exemplar]


def test_exemplars_of_several_processes_are_on_the_common_page() -> None:
    workers = [Metrics(), Metrics()]
    recorded(workers[0], 0.3, "a" * 32)
    recorded(workers[1], 2.0, "c" * 32)
    total = Metrics()
    for worker in workers:
        total.add_cells(pickle.loads(pickle.dumps(worker.cells())))
    found = [s.exemplar for s in samples(total, "embedserve_predict_seconds_bucket") if s.exemplar]
    assert [exemplar.labels["trace_id"] for exemplar in found] == ["a" * 32, "c" * 32]


def test_dropped_lines_of_a_log_are_counted(metrics: Metrics) -> None:
    metrics.lines_dropped("access", 2)
    metrics.lines_dropped("access", 1)
    assert 'embedserve_log_lines_dropped_total{log="access"} 3' in page(metrics)
