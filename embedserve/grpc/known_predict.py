"""A Predict of a known template without a coroutine: from the message to its submission, and from outputs to an answer.

Answers, errors, counts and records are those of `calls.unary` with `prediction_service`; only the way is shorter. The
module knows no transport.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from embedserve.concurrency.inflight import Reservation
from embedserve.errors import Code
from embedserve.grpc.errors import status_of
from embedserve.grpc.request_templates import KnownRequest, RequestTemplates
from embedserve.handle import ModelHandle, Submission
from embedserve.priority import PriorityName
from embedserve.request_log.records import Exchange
from embedserve.servable import Array, Tensors
from embedserve.signature import Signature
from embedserve.tensors import sizes

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry
    from embedserve.request_log import ModelLog

__all__ = ["KnownPredict", "KnownPredicts"]

SMALL = 4096
"""Bytes of outputs that surely need no thread."""


class KnownPredicts:
    """The Predict requests of a registry that have a known template.

    Args:
        registry: The registry of the models.
        templates: Known requests.
        encode: Makes a PredictResponse of model name, version, signature and outputs.
        is_large: Whether the outputs take so long to encode that a thread does it.
    """

    __slots__ = ("checks_method_names", "encode", "find", "is_large", "registry")

    def __init__(
        self,
        registry: ModelRegistry,
        templates: RequestTemplates,
        encode: Callable[[str, int, Signature, Tensors], bytes],
        is_large: Callable[[Tensors], bool],
    ) -> None:
        self.registry = registry
        self.find = templates.find
        self.encode = encode
        self.is_large = is_large
        self.checks_method_names = registry.options.enable_signature_method_name_check


class KnownPredict(Submission):
    """A request under way. A transport's subclass takes the answer or the status, in a later turn of the loop.

    Args:
        predicts: The method's.
        timeout, priority: Of the client.

    Attributes:
        held: The bytes that the call holds. `finished` finds the bytes of the answer there, `refused` none.
    """

    __slots__ = ("_began", "_encoding", "_handle", "_message", "_name", "_predicts", "_signature", "held")

    def __init__(self, predicts: KnownPredicts, timeout: float | None, priority: PriorityName) -> None:
        super().__init__(timeout, priority)
        self._began = perf_counter()
        self._predicts = predicts
        self._handle: ModelHandle | None = None
        self._encoding: asyncio.Task[None] | None = None

    def finished(self, message: bytes) -> None:
        """Take the answer's message."""
        raise NotImplementedError

    def refused(self, code: Code, text: str) -> None:
        """Take the status of a call without an answer."""
        raise NotImplementedError

    def submit(self, request: KnownRequest, message: bytes) -> None:
        """Bind and submit the request in `message`; an error is an outcome too."""
        predicts, spec = self._predicts, request.model_spec
        registry = predicts.registry
        self._message = message
        self._name = spec.name
        self.held = held = Reservation(registry.inflight)
        try:
            held.receive(len(message), "the request")
            self._handle = handle = registry.acquire_now(spec.name, version=spec.version, label=spec.label)
            self._signature = signature = handle.signature(spec.signature_name)
            if predicts.checks_method_names:
                signature.check_predict_method()
            handle.submit(signature, signature.bind(request.decode(), cast=False), self)
        except Exception as error:
            self.set_exception(error)

    def answered(self, outputs: dict[str, Array]) -> None:
        """Encode the outputs, in a thread where that takes long."""
        handle = self._handle
        assert handle is not None
        try:
            size = 0
            for array in outputs.values():
                size += sizes.array_bytes(array)
            self.held.add(2 * size, "the answer")  # The arrays, and the message around a copy of the arrays.
            if size > SMALL and self._predicts.is_large(outputs):
                self._encoding = asyncio.get_running_loop().create_task(self._encode_large(handle, outputs))
                return
            answer = self._predicts.encode(handle.name, handle.version, self._signature, outputs)
            log = handle.request_log()
            if log is not None:
                self._log(log, handle, answer)
        except Exception as error:
            self.failed(error)
            return
        self.held.become(len(answer))
        self._leave(Code.OK)
        self.finished(answer)

    async def _encode_large(self, handle: ModelHandle, outputs: dict[str, Array]) -> None:
        predicts = self._predicts
        try:
            made_of = (handle.name, handle.version, self._signature, outputs)
            answer = await predicts.registry.run_in_thread(predicts.encode, *made_of)
            log = handle.request_log()
            if log is not None:
                self._log(log, handle, answer)
        except Exception as error:
            self.failed(error)
            return
        self.held.become(len(answer))
        self._leave(Code.OK)
        self.finished(answer)

    def _log(self, log: ModelLog, handle: ModelHandle, answer: bytes) -> None:
        size = len(self._message) + len(answer)
        named = handle.name, handle.version, self._signature.name
        log.add(Exchange("predict_log", *named, self._message, answer, size))

    def failed(self, error: Exception) -> None:
        """Tell the status."""
        code, text = status_of(error)
        self.held.release()
        self._leave(code)
        self.refused(code, text)

    def give_up(self) -> bool:
        """As `Submission.cancel`, also while the outputs are encoded; the call holds nothing any more."""
        if not self.cancel() and (self._encoding is None or not self._encoding.cancel()):
            return False
        self.held.release()
        self._leave(Code.CANCELLED)
        return True

    def _leave(self, code: Code) -> None:
        """Release the version, and tell the observers."""
        if self._handle is not None:
            self._handle.release()
        observers = self._predicts.registry.observers
        if observers.present:
            observers.request_finished(self._name, "Predict", "GRPC", code, perf_counter() - self._began)
