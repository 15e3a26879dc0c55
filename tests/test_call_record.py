"""What a record tells of a call: headers, times, and the runs of the call."""

from __future__ import annotations

import pytest

from embedserve.call_record import CallHeaders, CallRecord, CallTiming, RunRecord, Step


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        (b"abc-123", "abc-123"),
        (b"", ""),
        (b"x" * 128, "x" * 128),
        (b"x" * 129, ""),
        (b"forged\nline", ""),
        (b"\xff\xfe", ""),
        (b"{'a': \"b\"}", "{'a': \"b\"}"),
    ],
)
def test_a_request_id_is_taken_only_if_a_log_may_hold_it(sent: bytes, taken: str) -> None:
    assert CallHeaders([(b"x-request-id", sent)]).request_id == taken


def test_headers_ask_for_times_and_name_a_trace() -> None:
    fields = (
        (b"host", b"a"),
        (b"traceparent", b"00-1"),
        (b"x-embedserve-timing", b"1"),
        (b"x-forwarded-for", b"1.2.3.4"),
    )
    headers = CallHeaders(fields)
    assert headers.timing
    assert headers.traceparent == b"00-1"
    assert headers.all(b"x-forwarded-for") == ["1.2.3.4"]
    assert not CallHeaders([(b"x-embedserve-timing", b"0")]).timing


def ended(*steps: Step) -> CallRecord:
    record = CallRecord("REST", CallHeaders())
    record.began, record.ended = 10.0, 20.0
    record.steps = list(steps)
    record.version = 3
    return record


def step(entered: float, rows: int, run: RunRecord | None) -> Step:
    made = Step(entered, rows)
    made.run = run
    return made


def run(began: float, ended: float, rows: int, padding: int = 0) -> RunRecord:
    made = RunRecord(began, rows, padding)
    made.ended = ended
    return made


def test_the_times_of_a_call_in_a_batch() -> None:
    timing = ended(step(11.0, 2, run(13.0, 18.0, 5, 3))).fill(CallTiming())
    assert timing == CallTiming(2.0, 5.0, 10.0, 2, 5, 3, 3, "")


def test_a_cut_request_waits_for_its_first_run_and_runs_until_its_last() -> None:
    first, last = run(13.0, 15.0, 8), run(14.0, 19.0, 4, 4)
    timing = ended(step(11.0, 8, first), step(11.0, 3, last), step(11.0, 1, last)).fill(CallTiming())
    assert (timing.queue, timing.run) == (2.0, 6.0)
    assert (timing.rows, timing.batch_rows, timing.padding_rows) == (12, 12, 4)


def test_a_call_without_a_run_has_waited_until_its_end() -> None:
    timing = ended(step(12.0, 1, None)).fill(CallTiming())
    assert (timing.queue, timing.run, timing.total) == (8.0, 0.0, 10.0)


def test_a_call_that_left_before_the_end_of_its_run_has_run_until_its_own_end() -> None:
    timing = ended(step(12.0, 1, RunRecord(13.0, 1))).fill(CallTiming())
    assert (timing.queue, timing.run) == (1.0, 7.0)


def test_server_timing_has_milliseconds_and_what_the_batch_was() -> None:
    header = ended(step(11.0, 2, run(13.0, 18.0, 5, 3))).server_timing()
    assert header == (
        b"queue;dur=2000.000, run;dur=5000.000, total;dur=10000.000, "
        b'rows;desc="2", batch;desc="5", padding;desc="3", version;desc="3"'
    )


def test_a_time_of_the_call_is_a_time_of_the_clock() -> None:
    record = ended()
    assert record.nanoseconds(record.began + 1.5) == record.wall + 1_500_000_000
