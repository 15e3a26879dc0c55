"""The cases that ended a process, sent to the standalone server: what their clients see, and how soon all is well.

Each case is a model of its own. A neighbour model is asked all the time, on connections of its own. Called by
`python -m benchmarks.fuzz --kernels --behind-server`.
"""

from __future__ import annotations

import base64
import http.client
import json
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf

from benchmarks.kernels.child import Case, Plan, cases_of
from benchmarks.kernels.fuzz import Bad
from benchmarks.workers import Server, serving
from embedserve.server.workers.plan import STEADY

__all__ = ["Behind", "send_to_server"]

v1 = tf.compat.v1

_PATIENCE = 60.0
"""Seconds after which a worker that is not back counts as lost."""
_ANSWER = 15.0
"""Seconds that a client waits for an answer."""
_BEAT = 0.1
"""Seconds between two requests to the neighbour, and between two looks at the workers."""
_DYING = 3.0
"""Seconds between a client's error and the end of the worker that it comes from, at most."""
_MAY_BE_DEATH = {"REST 503", "REST cut", "REST no answer", "gRPC UNAVAILABLE", "gRPC DEADLINE_EXCEEDED"}
_ONE = {"x": np.ones([1, 1], np.float32)}


@dataclass
class Behind:
    """What the server made of the cases.

    Attributes:
        answers: Inputs by transport and answer.
        deaths: Worker processes that ended, by what the client of the input got.
        silent: Seconds without an answer of the neighbour, at each death.
        weak: Seconds from each death until all workers served.
        unrecovered: Deaths after which not all workers served again.
        neighbour: The neighbour's answers.
        not_served: Cases that no server can be asked: the model does not load, or the case has no form for a request.
    """

    answers: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    silent: list[float] = field(default_factory=list)
    weak: list[float] = field(default_factory=list)
    unrecovered: int = 0
    neighbour: Counter[str] = field(default_factory=Counter)
    not_served: int = 0

    def report(self) -> str:
        deaths = sum(self.deaths.values())
        lines = [
            f"behind the server: {sum(self.answers.values())} inputs that end a process ({self.not_served} more could "
            f"not be sent): {deaths} process deaths, {self.unrecovered} unrecovered",
            *(f"  {answer:28} {count:9,}" for answer, count in self.answers.most_common()),
            *(f"  got by the client of a death: {answer} {count}" for answer, count in self.deaths.most_common()),
        ]
        for what, seconds in (("the port answers again", self.silent), ("full strength", self.weak)):
            if seconds:
                lines.append(f"  {what} after: median {statistics.median(seconds):.1f} s, max {max(seconds):.1f} s")
        neighbour = ", ".join(f"{answer} {count:,}" for answer, count in self.neighbour.most_common())
        return "\n".join([*lines, f"  answers of a neighbour model: {neighbour}"])


class _Neighbour:
    """A harmless model that is asked all the time, on a connection for each request."""

    def __init__(self, server: Server) -> None:
        self.answers: Counter[str] = Counter()
        self._server = server
        self._good: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    @contextmanager
    def asked(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()

    def silence(self, since: float) -> float:
        """The longest time between two good answers, from the last one before `since` on; waits for one from now."""
        begin = max((time for time in self._good if time < since), default=since)
        now = time.monotonic()
        while max(self._good, default=0.0) < now and time.monotonic() < now + _PATIENCE:
            time.sleep(_BEAT)
        good = [begin, *(time for time in self._good if time > begin)]
        return max((later - earlier for earlier, later in pairwise(good)), default=_PATIENCE)

    def _ask(self) -> None:
        while not self._ended.wait(_BEAT):
            answer = _ask_rest(self._server, "neighbour", _ONE, _PATIENCE)
            self.answers[answer] += 1
            if answer == "REST 200":
                self._good.append(time.monotonic())


def send_to_server(bad: Sequence[Bad], seed: int, seconds: float) -> Behind:
    """Serve a model of each case and send it its input, over gRPC and over REST, at most for `seconds`.

    Args:
        bad: As `fuzz` found them with this `seed`.
        seed: Its seed.
        seconds: After which no input is sent.
    """
    found = Behind()
    feeds: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        _save_neighbour(Path(directory, "neighbour", "1"))
        for number, one in enumerate(bad):
            case = next(cases_of(Plan(one.name, one.number, one.number + 1, seed)))
            if _save(case, Path(directory, f"case{number}", "1")):
                feeds[f"case{number}"] = {f"i{index}": array for index, array in enumerate(case.feeds.values())}
        found.not_served = len(bad) - len(feeds)
        with serving(Path(directory), workers=1) as server:
            neighbour = _Neighbour(server)
            with neighbour.asked():
                _send_all(server, neighbour, feeds, found, time.monotonic() + seconds)
            found.neighbour = neighbour.answers
    return found


def _send_all(
    server: Server, neighbour: _Neighbour, feeds: Mapping[str, Mapping[str, Any]], found: Behind, end: float
) -> None:
    for name, fed in feeds.items():
        if _ask_rest(server, name, {}, _ANSWER) == "REST 404":
            found.not_served += 1
            continue
        for ask in (_ask_grpc, _ask_rest):
            if time.monotonic() > end:
                return
            before, sent = _pids(server), time.monotonic()
            answer = ask(server, name, fed, _ANSWER)
            found.answers[answer] += 1
            if _died(server, before, answer):
                found.deaths[answer] += 1
                _wait_for_recovery(server, neighbour, found, sent)


def _died(server: Server, before: set[int], answer: str) -> bool:
    """Whether a worker has gone; after an error that may be its last, time is given."""
    end = time.monotonic() + _DYING * (answer in _MAY_BE_DEATH)
    while before <= _pids(server):
        if time.monotonic() > end:
            return False
        time.sleep(_BEAT)
    return True


def _wait_for_recovery(server: Server, neighbour: _Neighbour, found: Behind, sent: float) -> None:
    """Wait until all workers serve, and then until the next death has no longer delay for this one."""
    while not (workers := _workers(server)) or any(worker["state"] != "serving" for worker in workers):
        if time.monotonic() > sent + _PATIENCE:
            found.unrecovered += 1
            return
        time.sleep(_BEAT)
    found.weak.append(time.monotonic() - sent)
    found.silent.append(neighbour.silence(sent))
    time.sleep(STEADY)


def _workers(server: Server) -> list[dict[str, Any]]:
    """The workers' states; none while no worker answers."""
    try:
        return server.status()
    except (OSError, http.client.HTTPException):
        return []


def _pids(server: Server) -> set[int]:
    return {worker["pid"] for worker in _workers(server)}


def _ask_rest(server: Server, name: str, arrays: Mapping[str, Any], patience: float) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest, timeout=patience)
    try:
        body = json.dumps({"inputs": {key: _json(array.tolist()) for key, array in arrays.items()}})
        connection.request("POST", f"/v1/models/{name}:predict", body)
        return f"REST {connection.getresponse().status}"
    except TimeoutError:
        return "REST no answer"
    except (OSError, http.client.HTTPException):
        return "REST cut"
    finally:
        connection.close()


def _json(value: Any) -> Any:
    match value:
        case list():
            return [_json(each) for each in value]
        case tuple():  # A quantized number.
            return value[0]
        case bytes():
            return {"b64": base64.b64encode(value).decode()}
        case complex():  # JSON has none.
            return value.real
    return value


def _ask_grpc(server: Server, name: str, arrays: Mapping[str, Any], patience: float) -> str:
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    for key, array in arrays.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        try:
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=patience)
        except grpc.RpcError as error:
            return f"gRPC {error.code().name}"
    return "gRPC OK"


def _save(case: Case, path: Path) -> bool:
    """Write a SavedModel around a case's graph; False where its outputs have no values."""
    feeds, fetches = case.program.feeds, case.program.fetches
    if not all(isinstance(fetch, tf.Tensor) and fetch.dtype not in (tf.variant, tf.resource) for fetch in fetches):
        return False
    with case.program.graph.as_default(), v1.Session() as session:
        _write(path, session, {f"i{n}": t for n, t in enumerate(feeds)}, {f"o{n}": t for n, t in enumerate(fetches)})
    return True


def _save_neighbour(path: Path) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 1])
        _write(path, session, {"x": x}, {"y": x / 2 + 2})


def _write(path: Path, session: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    signature = v1.saved_model.predict_signature_def(inputs, outputs)
    builder = v1.saved_model.builder.SavedModelBuilder(str(path))
    builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map={"serving_default": signature})
    builder.save()
