"""The messages between supervisor and workers, and the shared values. Plain data without behaviour.

The messages are pickled between a parent and its children only, over private descriptors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from embedserve.config import ModelConfig
from embedserve.errors import Code, ServingError
from embedserve.events import NOBODY, Actor
from embedserve.lifecycle.monitor import VersionStatus
from embedserve.lifecycle.source import VersionDirectory
from embedserve.server.config import ServerConfig
from embedserve.server.workers.hands import Suspect
from embedserve.signature import BatchingVerdict

__all__ = [
    "Alive",
    "Answer",
    "Ask",
    "Change",
    "Configs",
    "Drain",
    "Drop",
    "Dropped",
    "Failed",
    "Failure",
    "Key",
    "Load",
    "Loaded",
    "Look",
    "Measure",
    "Measured",
    "MetricOf",
    "MetricsPage",
    "Open",
    "Opened",
    "Reload",
    "ServingTable",
    "Setup",
    "Status",
    "Stuck",
    "Up",
    "WorkerStatus",
]


class Key(NamedTuple):
    """An attempt to load a version; `attempt` is unique for the supervisor's life."""

    name: str
    version: int
    attempt: int

    def __str__(self) -> str:
        return f"{{name: {self.name} version: {self.version}}}"


# On the shared values.


@dataclass(frozen=True)
class ServingTable:
    """The serving attempt by model and version, and the version of each model's labels."""

    serving: Mapping[str, Mapping[int, int]]
    labels: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class WorkerStatus:
    """A worker process as seen by the supervisor.

    Attributes:
        index: The worker's number; a restarted worker keeps the number.
        pid: The process number, or None between two processes.
        state: `starting`, `loading`, `serving`, `draining` or `restarting`.
        restarts: Number of replaced processes.
        ended: The end of the previous process, in words.
    """

    index: int
    pid: int | None
    state: str
    restarts: int
    ended: str = ""


@dataclass(frozen=True)
class Status:
    """The state of all workers, for a worker's answers about the whole server."""

    versions: Mapping[str, tuple[VersionStatus, ...]]
    readiness: Mapping[str, str | None]
    unready: str | None
    draining: bool
    workers: tuple[WorkerStatus, ...]
    suspects: tuple[tuple[Suspect, int], ...] = ()


# From the supervisor to a worker.


@dataclass(frozen=True)
class Setup:
    """The first message: the worker's index and the server's configuration, with the worker's share of threads."""

    index: int
    workers: int
    config: ServerConfig


@dataclass(frozen=True)
class Configs:
    """The current configuration of all models."""

    models: Mapping[str, ModelConfig]


@dataclass(frozen=True)
class Load:
    """Load and warm up a version; hold the version until the serving table names the attempt."""

    key: Key
    directory: VersionDirectory
    config: ModelConfig


@dataclass(frozen=True)
class Drop:
    """Unload a version after the last request."""

    key: Key


@dataclass(frozen=True)
class Look:
    """The serving table has changed."""


@dataclass(frozen=True)
class Open:
    """Open the given ports, unless open already."""

    rest: bool
    grpc: bool


@dataclass(frozen=True)
class Measure:
    """Ask for the metrics counted so far."""

    number: int


@dataclass(frozen=True)
class Failure:
    """A ServingError on the way to another process."""

    code: Code
    message: str

    @classmethod
    def of(cls, error: ServingError) -> Failure:
        """The error as plain values."""
        return cls(Code(error.code), error.message)

    def error(self) -> ServingError:
        """The error, made anew."""
        return ServingError(self.message, code=self.code)


@dataclass(frozen=True)
class Answer:
    """The answer to the `Ask` with the same number: a value or a `Failure`."""

    number: int
    value: object


@dataclass(frozen=True)
class Drain:
    """Close the ports, finish what is in flight, and end."""


# From a worker to the supervisor.


@dataclass(frozen=True)
class Alive:
    """Sent every second, with the metrics counted so far."""

    cells: Any = None


@dataclass(frozen=True)
class Stuck:
    """Sent after each change of the stuck runs.

    Attributes:
        models: Models refused by the worker because of stuck runs.
        trouble: The reason to replace the process; None without need.
    """

    models: frozenset[str] = frozenset()
    trouble: str | None = None


@dataclass(frozen=True)
class Up:
    """TensorFlow is imported: versions can be loaded."""


@dataclass(frozen=True)
class Loaded:
    """The version is ready to be published."""

    key: Key
    kind: str
    reads_files_at_run_time: bool
    note: str = ""
    batching: Mapping[str, BatchingVerdict] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """The version could not be loaded; without a key, the worker cannot go on."""

    key: Key | None
    failure: Failure


@dataclass(frozen=True)
class Dropped:
    """The version is out of memory."""

    key: Key


@dataclass(frozen=True)
class Opened:
    """The ports are open."""

    rest: bool
    grpc: bool


@dataclass(frozen=True)
class Measured:
    """The answer to the `Measure` with the same number."""

    number: int
    cells: Any


@dataclass(frozen=True)
class Ask:
    """A question answered by the supervisor for all workers: `Reload`, `Change`, `MetricsPage` or `MetricOf`."""

    number: int
    question: object


@dataclass(frozen=True)
class Reload:
    """Apply the serialized `ModelServerConfig`, on behalf of `actor`; the answer is None."""

    config: bytes
    actor: Actor = NOBODY


@dataclass(frozen=True)
class Change:
    """Serve a model by its version policy, or no version of the model; the answer is None."""

    name: str
    served: bool
    actor: Actor = NOBODY


@dataclass(frozen=True)
class MetricsPage:
    """The metrics page, on request in OpenMetrics' format; the answer is its bytes."""

    openmetrics: bool = False


@dataclass(frozen=True)
class MetricOf:
    """A metric's value by TensorFlow Serving's name; the answer is a number."""

    name: str
