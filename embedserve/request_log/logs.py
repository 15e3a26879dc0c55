"""The logged models, the sampling rates and the writers, as configured.

Models with the same files share a writer. A writer lives as long as any configuration needs the files. Loop only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from random import random
from typing import TypeAlias

from embedserve.config import LoggingOptions, ModelConfig, RegistryOptions
from embedserve.errors import Code
from embedserve.observer import Observer
from embedserve.request_log.files import RotatingFiles
from embedserve.request_log.records import Exchange
from embedserve.request_log.writer import LogWriter

__all__ = ["ModelLog", "RequestLogs"]

# Seconds that a shutdown waits for the disk.
_PATIENCE = 5.0

_Place: TypeAlias = tuple[Path, int, int]


class ModelLog:
    """The log of a model."""

    __slots__ = ("_observer", "_rate", "_tags", "_writer")

    def __init__(self, options: LoggingOptions, tags: tuple[str, ...], writer: LogWriter, observer: Observer) -> None:
        self._rate = options.sampling_rate
        self._tags = tags
        self._writer = writer
        self._observer = observer

    def sampled(self) -> bool:
        """Draw whether the next exchange is logged."""
        return random() < self._rate

    def add(self, exchange: Exchange) -> None:
        """Log a sampled exchange: a successful request and the answer. Never waits, never raises."""
        if not self._writer.put(exchange, self._rate, self._tags):
            self._observer.request_logged(exchange.model_name, Code.RESOURCE_EXHAUSTED, 1)


class RequestLogs:
    """The logs of all models; falsy while no model is logged, so that requests skip the logs.

    Args:
        options: Limits for configurations without limits.
        observer: Hears of each sampled exchange.
        call_soon: Runs a call on the loop, from any thread.
    """

    def __init__(
        self, options: RegistryOptions, observer: Observer, call_soon: Callable[[Callable[[], None]], None]
    ) -> None:
        self._options = options
        self._observer = observer
        self._call_soon = call_soon
        self._models: dict[str, ModelLog] = {}
        self._writers: dict[_Place, LogWriter] = {}
        self._closing: list[LogWriter] = []

    def __bool__(self) -> bool:
        return bool(self._models)

    def sampled(self, model_name: str) -> ModelLog | None:
        """Find the log for an exchange of the model; None if the model is not logged, or the exchange is not drawn."""
        log = self._models.get(model_name)
        return log if log is not None and log.sampled() else None

    def set_models(self, configs: Mapping[str, ModelConfig]) -> None:
        """Log the given models from now on, as configured."""
        wanted = {
            name: (config.logging_config, config.saved_model_tags)
            for name, config in configs.items()
            if config.logging_config is not None and config.logging_config.sampling_rate > 0
        }
        places = {name: self._place(options) for name, (options, _) in wanted.items()}
        kept = set(places.values())
        self._closing = [writer for writer in self._closing if not writer.join(0)]
        for place in self._writers.keys() - kept:
            writer = self._writers.pop(place)
            writer.close()
            self._closing.append(writer)
        for place in kept - self._writers.keys():
            self._writers[place] = LogWriter(RotatingFiles(*place), self._report)
        self._models = {
            name: ModelLog(options, tags, self._writers[places[name]], self._observer)
            for name, (options, tags) in wanted.items()
        }

    def _place(self, options: LoggingOptions) -> _Place:
        return (
            options.filename_prefix,
            options.max_file_bytes or self._options.request_log_max_file_bytes,
            options.max_total_bytes or self._options.request_log_max_total_bytes,
        )

    def _report(self, ended: Counter[tuple[str, Code]]) -> None:
        def report() -> None:
            for (name, code), count in ended.items():
                self._observer.request_logged(name, code, count)

        if ended:
            self._call_soon(report)

    def close(self) -> None:
        """Take no more exchanges; taken exchanges are still written."""
        self.set_models({})

    def wait_closed(self) -> None:
        """Wait, in a thread, until the files are written; a hung disk ends the wait after `_PATIENCE` seconds."""
        deadline = time.monotonic() + _PATIENCE
        for writer in self._closing:
            writer.join(max(0.0, deadline - time.monotonic()))
