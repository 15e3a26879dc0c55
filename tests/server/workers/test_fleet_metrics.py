"""One page of several processes: sums that never go back, and lines about the workers themselves."""

from __future__ import annotations

import os
import re

from embedserve.errors import Code
from embedserve.metrics import Metrics
from embedserve.servable import ServableId, State
from embedserve.server.workers.fleet_metrics import FleetMetrics, Measurement
from embedserve.server.workers.messages import WorkerStatus

OK = ':tensorflow:serving:request_count{model_name="m",status="OK"}'


def answered(requests: int) -> Metrics:
    metrics = Metrics()
    for _ in range(requests):
        metrics.request_finished("m", "predict", "REST", Code.OK, 1e-3)
    return metrics


def value(page: bytes, sample: str) -> int:
    (found,) = re.findall(rf"^{re.escape(sample)} (\d+)$", page.decode(), re.MULTILINE)
    return int(found)


def measured(index: int, requests: int, **status: object) -> Measurement:
    worker = WorkerStatus(index, os.getpid(), "serving", 0)
    return Measurement(worker, answered(requests).cells())


def test_counters_and_histograms_of_all_workers_are_added_up() -> None:
    page = FleetMetrics().page([measured(1, 5), measured(0, 3)])
    assert value(page, OK) == 8
    count = ':tensorflow:serving:request_latency_count{model_name="m",API="predict",entrypoint="REST"}'
    assert value(page, count) == 8
    assert value(page, 'embedserve_worker_requests_total{worker="0"}') == 3
    assert value(page, 'embedserve_worker_requests_total{worker="1"}') == 5
    assert value(page, 'embedserve_worker_up{worker="0"}') == 1
    assert value(page, 'embedserve_worker_resident_bytes{worker="0"}') > 1e6


def test_sums_do_not_go_back_when_a_worker_is_replaced() -> None:
    metrics = FleetMetrics()
    assert value(metrics.page([measured(0, 3), measured(1, 5)]), OK) == 8
    metrics.bury(1, answered(5).cells())
    gone = Measurement(WorkerStatus(1, None, "restarting", 1, "was ended by SIGKILL"), None)
    page = metrics.page([measured(0, 3), gone])
    assert value(page, OK) == 8
    assert value(page, 'embedserve_worker_requests_total{worker="1"}') == 5
    assert value(page, 'embedserve_worker_restarts_total{worker="1"}') == 1
    assert value(page, 'embedserve_worker_up{worker="1"}') == 0
    page = metrics.page([measured(0, 4), measured(1, 1)])
    assert value(page, OK) == 10
    assert value(page, 'embedserve_worker_requests_total{worker="1"}') == 6


def test_versions_that_ended_long_ago_are_forgotten_and_loads_are_counted_by_workers_only() -> None:
    metrics, worker = FleetMetrics(), Metrics()
    for version in range(1, 13):
        worker.queue_wait(ServableId("m", version), "serving_default", 0.1)
    metrics.bury(0, worker.cells())
    for version in range(1, 13):
        metrics.ended.load_finished(ServableId("m", version), "/m", 1.0, None)
        metrics.ended.version_state(ServableId("m", version), State.END, None)
    page = metrics.page([]).decode()
    assert 'embedserve_queue_wait_seconds_count{model="m",version="2"' not in page
    assert 'embedserve_queue_wait_seconds_count{model="m",version="12",signature="serving_default"} 1' in page
    assert "load_attempt_count{" not in page
