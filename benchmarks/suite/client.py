"""Asks a server what the load generator will ask it, and looks at the answers: before the load, and after it."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from benchmarks.suite.wire import Array, Format
from benchmarks.suite.workloads import Examples

TIMEOUT = 30
_CHANNEL = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A connection of its own for each check: a server may have been started anew on the same port.
    ("grpc.use_local_subchannel_pool", 1),
]


class Refused(Exception):
    """The server answered with an error, or did not answer."""


class Client:
    """Asks one server for one model in one format."""

    def __init__(self, format: Format, port: int, model: str) -> None:
        self._format, self._port, self._model = format, port, model

    def ask(self, rows: Array) -> bytes:
        """The answer's body or message.

        Raises:
            Refused: Anything but success.
        """
        body = self._format.encode(self._model, rows)
        path = self._format.path(self._model)
        return self._call(path, body) if self._format.protocol == "grpc" else self._post(path, body)

    def _post(self, path: str, body: bytes) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Refused(f"{type(error).__name__}: {error}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise Refused(f"{response.status}: {answer[:300]!r}")
        return answer

    def _call(self, path: str, message: bytes) -> bytes:
        with grpc.insecure_channel(f"127.0.0.1:{self._port}", _CHANNEL) as channel:
            call: Any = channel.unary_unary(path)
            try:
                answer: bytes = call(message, timeout=TIMEOUT)
            except grpc.RpcError as error:
                raise Refused(f"{error.code().name}: {error.details()}") from None
        return answer

    def is_right(self, examples: Examples, row: int, *, fixed: bool = False) -> bool:
        """Whether one row is answered right; `fixed` expects the first row's answer to any."""
        answer = self._format.decode(self.ask(examples.x[row : row + 1]))
        return examples.right(0 if fixed else row, answer)

    def wrong(self, examples: Examples, times: int, *, fixed: bool = False) -> list[str]:
        """Ask for every example `times` times, all at once, and say what was not answered right.

        At once, so that requests share a batch where the server makes batches, and a mixed-up answer shows.
        """

        def check(row: int) -> str:
            try:
                return "" if self.is_right(examples, row, fixed=fixed) else f"a wrong answer for example {row}"
            except (Refused, ValueError, KeyError) as error:
                return f"{type(error).__name__}: {error}"

        rows = list(range(len(examples.x))) * times
        with ThreadPoolExecutor(len(rows)) as pool:
            return [found for found in pool.map(check, rows) if found]
