"""The access log: who is logged, what a line tells, and that a slow disk costs lines and no time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from embedserve import AccessLog, ConfigError
from embedserve.call_record import CallHeaders, CallRecord, RunRecord
from embedserve.errors import Code
from embedserve.observer import Observer, Observers


class Kept(logging.Handler):
    """Keeps records; `gate` holds the writing thread up."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.gate = threading.Event()
        self.gate.set()
        self.held = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.held.set()
        assert self.gate.wait(60)
        self.records.append(record)


class Dropped(Observer):
    def __init__(self) -> None:
        self.lines = 0

    def lines_dropped(self, log: str, lines: int) -> None:
        assert log == "access"
        self.lines += lines


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler, logger = Kept(), logging.getLogger("embedserve.access")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    handler.gate.set()
    logger.removeHandler(handler)
    logger.setLevel(before)


def call(observers: Observers, code: Code = Code.OK, seconds: float = 0.0, **headers: bytes) -> CallRecord | None:
    fields = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    record = observers.begin_call("REST", CallHeaders(fields), "198.51.100.1")
    if record is not None:
        record.began -= seconds
        record.code = code
        observers.end_call(record)
    return record


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return vars(record)


def test_a_line_tells_who_asked_what_and_how_long_it_took(kept: Kept) -> None:
    log = AccessLog()
    observers = Observers([log])
    record = observers.begin_call("REST", CallHeaders([(b"x-request-id", b"r1")]), "198.51.100.1")
    assert record is not None
    record.api, record.method, record.target = "predict", "POST", "/v1/models/digits:predict"
    record.model, record.version, record.signature, record.status = "digits", 3, "serving_default", 200
    record.received, record.sent = 120, 64
    step = record.wait(2)
    step.run = RunRecord(step.entered + 0.25, 5, 3)
    step.run.ended = step.entered + 0.75
    record.code = Code.OK
    observers.end_call(record)
    assert log.flush()
    (line,) = kept.records
    found = fields(line)
    assert found["event_name"] == "embedserve.access"
    assert found["embedserve.request.id"] == "r1"
    assert found["client.address"] == "198.51.100.1"
    assert found["http.request.method"] == "POST"
    assert found["url.path"] == "/v1/models/digits:predict"
    assert found["http.response.status_code"] == 200
    assert (found["http.request.body.size"], found["http.response.body.size"]) == (120, 64)
    assert found["embedserve.model.name"] == "digits"
    assert (found["embedserve.model.version"], found["embedserve.model.signature"]) == (3, "serving_default")
    assert found["embedserve.queue.duration"] == pytest.approx(0.25)
    assert found["embedserve.run.duration"] == pytest.approx(0.5)
    assert (found["embedserve.rows"], found["embedserve.batch.rows"]) == (2, 5)
    assert found["embedserve.batch.padding_rows"] == 3
    assert "error.type" not in found
    assert "2 of 5 rows" in line.getMessage()


def test_a_request_without_a_name_gets_one(kept: Kept) -> None:
    log = AccessLog()
    records = [call(Observers([log])) for _ in range(2)]
    names = {record.request_id for record in records if record is not None}
    assert len(names) == 2
    assert log.flush()
    assert {fields(line)["embedserve.request.id"] for line in kept.records} == names


@pytest.mark.parametrize(
    ("code", "seconds", "options", "logged"),
    [
        (Code.OK, 0.0, {}, 0),
        (Code.OK, 2.0, {}, 1),
        (Code.OK, 2.0, {"slow": None}, 0),
        (Code.OK, 2.0, {"slow": 3.0}, 0),
        (Code.NOT_FOUND, 0.0, {}, 1),
        (Code.NOT_FOUND, 0.0, {"failed": False}, 0),
        (Code.OK, 0.0, {"sampling": 1.0}, 1),
    ],
)
def test_slow_and_failed_calls_are_logged_outside_the_sample(
    kept: Kept, code: Code, seconds: float, options: dict[str, Any], logged: int
) -> None:
    log = AccessLog(**{"sampling": 0.0, **options})
    call(Observers([log]), code, seconds)
    assert log.flush()
    assert len(kept.records) == logged


def test_a_call_that_no_rule_can_log_has_no_record() -> None:
    assert call(Observers([AccessLog(sampling=0.0, slow=None, failed=False)])) is None


def test_lines_beyond_the_bound_are_dropped_and_counted_and_nobody_waits(kept: Kept) -> None:
    log, dropped = AccessLog(max_waiting=2), Dropped()
    observers = Observers([log, dropped])
    kept.gate.clear()
    call(observers)
    assert kept.held.wait(60)  # The first line is with the handler, which hangs.
    for _ in range(5):
        call(observers)
    assert (log.dropped, dropped.lines) == (3, 3)
    assert not log.flush(0.01)
    kept.gate.set()
    assert log.flush(60)
    assert len(kept.records) == 3
    call(observers)
    assert log.flush(60)
    assert len(kept.records) == 4


def test_a_client_cannot_forge_a_line(kept: Kept) -> None:
    log = AccessLog()
    observers = Observers([log])
    record = observers.begin_call("REST")
    assert record is not None
    record.method, record.target = "POST", "/v1/models/a\n2026 forged"
    record.code = Code.OK
    observers.end_call(record)
    assert log.flush()
    assert "\n" not in kept.records[0].getMessage()


def test_a_kept_record_holds_no_headers(kept: Kept) -> None:
    log = AccessLog()
    record = call(Observers([log]), x_large=b"x" * 10_000)
    assert record is not None
    assert not record.headers.fields
    assert log.flush()


def test_the_address_behind_a_known_proxy(kept: Kept) -> None:
    log = AccessLog()
    call(Observers([log], ["198.51.100.0/24"]), x_forwarded_for=b"203.0.113.5")
    assert log.flush()
    found = fields(kept.records[0])
    assert (found["client.address"], found["network.peer.address"]) == ("203.0.113.5", "198.51.100.1")


@pytest.mark.parametrize("sampling", [-0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(sampling: float) -> None:
    with pytest.raises(ConfigError, match="expected a share"):
        AccessLog(sampling=sampling)
