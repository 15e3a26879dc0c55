"""Writers and sampling, without a server."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve.config import LoggingOptions, ModelConfig, RegistryOptions
from embedserve.errors import Code
from embedserve.observer import Observer
from embedserve.request_log import RequestLogs, logs
from embedserve.request_log.files import RotatingFiles
from embedserve.request_log.records import Exchange, predict_exchange, record_of
from embedserve.request_log.writer import LogWriter
from embedserve.testing import fake_signature
from tests.request_log.conftest import Read


class Heard(Observer):
    """What became of the sampled requests."""

    def __init__(self) -> None:
        self.counts = Counter[tuple[str, Code]]()

    def request_logged(self, model_name: str, code: Code, requests: int) -> None:
        self.counts[model_name, code] += requests


class Hanging(RotatingFiles):
    """A disk that takes nothing until it is told to."""

    def __init__(self, prefix: Path) -> None:
        super().__init__(prefix, 10**6, 10**6)
        self.reached = threading.Event()
        self.goes_on = threading.Event()

    def write(self, record: bytes) -> None:
        self.reached.set()
        assert self.goes_on.wait(30)
        super().write(record)


def exchange(number: int = 1, size: int = 100, name: str = "m") -> Exchange:
    return Exchange("predict_log", name, number, "s", b"", b"", size)


def config(name: str, prefix: Path | None, **options: Any) -> ModelConfig:
    log = None if prefix is None else LoggingOptions(filename_prefix=prefix, **options)
    return ModelConfig(name=name, base_path="/m", logging_config=log)


def made(heard: Heard, **options: Any) -> RequestLogs:
    return RequestLogs(RegistryOptions(**options), heard, lambda call: call())


def configs(*listed: ModelConfig) -> dict[str, ModelConfig]:
    return {each.name: each for each in listed}


def versions(records: list[Any]) -> list[int]:
    return [record.log_metadata.model_spec.version.value for record in records]


def test_a_record_says_who_answered_and_how_it_was_drawn() -> None:
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    signature = fake_signature()
    inputs, outputs = {"x": np.array([1.0, 2.0], np.float32)}, {"y": np.array([3.0], np.float32)}
    log = PredictionLog.FromString(
        record_of(predict_exchange("m", 7, signature, inputs, outputs), 0.25, ("serve", "gpu"), 123)
    )
    metadata = log.log_metadata
    spec = metadata.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 7, "serving_default")
    assert (metadata.sampling_config.sampling_rate, metadata.timestamp_secs) == (0.25, 123)
    assert list(metadata.saved_model_tags) == ["serve", "gpu"]
    assert log.predict_log.request.model_spec == log.predict_log.response.model_spec == spec
    assert np.frombuffer(log.predict_log.request.inputs["x"].tensor_content, np.float32).tolist() == [1, 2]
    assert np.frombuffer(log.predict_log.response.outputs["y"].tensor_content, np.float32).tolist() == [3]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 3_000_000])
def test_messages_are_copied_as_they_came(size: int) -> None:
    from tensorflow_serving.apis.predict_pb2 import PredictRequest
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    request = PredictRequest()
    request.inputs["x"].tensor_content = bytes(size)
    data = request.SerializeToString()
    log = PredictionLog.FromString(record_of(Exchange("predict_log", "m", 1, "", data, b"", 0), 1, (), 0))
    assert log.predict_log.request == request


def test_what_is_drawn_follows_the_rate(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(Heard())
    found.set_models(configs(config("m", prefix, sampling_rate=0.25)))
    drawn = iter([0.0, 0.2499, 0.25, 0.999])
    monkeypatch.setattr(logs, "random", lambda: next(drawn))
    assert [found.sampled("m") is not None for _ in range(4)] == [True, True, False, False]
    assert found.sampled("other") is None
    found.close()
    found.wait_closed()


def test_nothing_is_on_while_no_model_is_logged(prefix: Path) -> None:
    before = threading.active_count()
    found = made(Heard())
    found.set_models(configs(config("m", None), config("n", prefix, sampling_rate=0)))
    assert not found
    assert threading.active_count() == before
    assert not prefix.parent.exists()


def test_models_share_a_writer_that_outlives_configurations(prefix: Path, read: Read) -> None:
    heard = Heard()
    found = made(heard)
    found.set_models(configs(config("m", prefix), config("n", prefix, sampling_rate=0.999999)))
    m, n = found.sampled("m"), found.sampled("n")
    assert m is not None
    assert n is not None
    m.add(exchange(1))
    found.set_models(configs(config("m", prefix), config("other", None)))
    again = found.sampled("m")
    assert again is not None
    again.add(exchange(2))
    n.add(exchange(3, name="n"))
    assert found.sampled("n") is None
    found.close()
    found.wait_closed()
    assert len(list(prefix.parent.iterdir())) == 1, "one writer, one file"
    assert versions(read()) == [1, 2, 3]
    assert heard.counts == {("m", Code.OK): 2, ("n", Code.OK): 1}


def test_a_configuration_that_ends_still_writes_what_it_took(prefix: Path, tmp_path: Path, read: Read) -> None:
    heard = Heard()
    found = made(heard)
    found.set_models(configs(config("m", prefix)))
    log = found.sampled("m")
    assert log is not None
    for number in range(500):
        log.add(exchange(number))
    found.set_models(configs(config("m", tmp_path / "elsewhere" / "x")))
    log.add(exchange(500))
    found.close()
    found.wait_closed()
    assert versions(read()) == list(range(500))
    assert heard.counts == {("m", Code.OK): 500, ("m", Code.RESOURCE_EXHAUSTED): 1}


def test_a_slow_disk_loses_records_and_never_blocks(prefix: Path, read: Read, caplog: pytest.LogCaptureFixture) -> None:
    files, counts = Hanging(prefix), Counter[tuple[str, Code]]()
    slow = LogWriter(files, counts.update, max_queued_bytes=10_000)
    assert slow.put(exchange(1), 1.0, ())
    assert files.reached.wait(30)
    taken = [slow.put(exchange(number), 1.0, ()) for number in range(2, 100)]
    assert taken == [True] * 7 + [False] * 91
    (message,) = (record.message for record in caplog.records)
    assert message.startswith(f"1 exchanges for {prefix} were not logged: the disk does not keep up")
    slow.close()
    assert not slow.join(0)
    files.goes_on.set()
    assert slow.join(30)
    assert versions(read()) == list(range(1, 9))
    assert counts == {("m", Code.OK): 8}
    assert not slow.put(exchange(), 1.0, ()), "closed"


def test_memory_is_given_back_as_records_are_written(prefix: Path) -> None:
    written = threading.Event()
    good = LogWriter(RotatingFiles(prefix, 10**6, 10**6), lambda ended: written.set(), max_queued_bytes=5000)

    class Kept:
        def __call__(self) -> bytes:
            return b""

    contents = Kept()
    gone = weakref.ref(contents)
    assert good.put(Exchange("predict_log", "m", 1, "", contents, contents, 3000), 1.0, ())
    del contents
    assert written.wait(30)
    gc.collect()
    assert gone() is None
    assert good.put(exchange(size=3000), 1.0, ())
    good.close()
    assert good.join(30)


def test_a_disk_that_fails_is_left_alone_for_a_moment(
    prefix: Path, read: Read, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "embedserve")
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    prefix.parent.write_text("in the way")
    told = threading.Semaphore(0)
    counts = Counter[tuple[str, Code]]()

    def report(ended: Counter[tuple[str, Code]]) -> None:
        counts.update(ended)
        told.release()

    failing = LogWriter(RotatingFiles(prefix, 10**6, 10**6), report)

    def put(number: int) -> None:
        assert failing.put(exchange(number), 1.0, ())
        assert told.acquire(timeout=30)

    put(1)
    prefix.parent.unlink()
    put(2)
    assert counts == {("m", Code.UNAVAILABLE): 2}, "the second was not tried"
    now = 1.5
    put(3)
    assert counts["m", Code.OK] == 1
    failing.close()
    assert failing.join(30)
    assert versions(read()) == [3]
    assert "FileExistsError" in caplog.text


class Full(RotatingFiles):
    """A disk that takes what is buffered and fails to write it down."""

    full = True
    writes = 0
    dirty = False

    def write(self, record: bytes) -> None:
        self.writes += 1
        self.dirty = True

    def flush(self) -> None:
        dirty, self.dirty = self.dirty, False
        if self.full and dirty:
            raise OSError("No space left on device")


def test_a_disk_that_stays_full_is_tried_ever_more_rarely(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told = threading.Semaphore(0)
    files = Full(prefix, 10**6, 10**6)
    writer = LogWriter(files, lambda ended: told.release())

    def put_every_second(seconds: int) -> int:
        nonlocal now
        before = files.writes
        for _ in range(seconds):
            now += 1.0
            assert writer.put(exchange(), 1.0, ())
            assert told.acquire(timeout=30)
        return files.writes - before

    assert put_every_second(63) == 6
    files.full = False
    assert put_every_second(65) > 1
    files.full = True
    assert put_every_second(3) == 2, "what has worked is tried soon again"
    writer.close()
    assert writer.join(30)


def test_an_exchange_that_is_no_record_is_dropped_alone(prefix: Path, read: Read) -> None:
    def broken() -> bytes:
        raise ValueError("no message")

    counts = Counter[tuple[str, Code]]()
    good = LogWriter(RotatingFiles(prefix, 500, 5000), counts.update)
    good.put(Exchange("predict_log", "m", 1, "", broken, b"", 0), 1.0, ())
    good.put(Exchange("predict_log", "m", 2, "", bytes(1000), b"", 0), 1.0, ())
    good.put(exchange(3), 1.0, ())
    good.close()
    assert good.join(30)
    assert versions(read()) == [3]
    assert counts == {("m", Code.INTERNAL): 1, ("m", Code.RESOURCE_EXHAUSTED): 1, ("m", Code.OK): 1}
