"""What supervisor and worker say to each other, and what is on the shared values. Plain values without behaviour.

They are pickled between a parent and its own children only, over descriptors that nobody else has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from embedserve.config import ModelConfig
from embedserve.errors import Code, ServingError
from embedserve.lifecycle.monitor import VersionStatus
from embedserve.lifecycle.source import VersionDirectory
from embedserve.server.config import ServerConfig
from embedserve.server.workers.hands import Suspect
from embedserve.signature import BatchingVerdict

__all__ = [
    "Alive",
    "Answer",
    "Ask",
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
    """One attempt to load one version; `attempt` is unique for the supervisor's life."""

    name: str
    version: int
    attempt: int

    def __str__(self) -> str:
        return f"{{name: {self.name} version: {self.version}}}"


# On the shared values.


@dataclass(frozen=True)
class ServingTable:
    """What answers requests: the attempt that serves by model and version, and what each model's labels mean."""

    serving: Mapping[str, Mapping[int, int]]
    labels: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class WorkerStatus:
    """One worker process as its supervisor sees it.

    Attributes:
        index: Which of the workers; a restarted one keeps it.
        pid: Its process, or None while there is none.
        state: `starting`, `loading`, `serving`, `draining` or `restarting`.
        restarts: How often its process was replaced.
        ended: How the process before this one ended.
    """

    index: int
    pid: int | None
    state: str
    restarts: int
    ended: str = ""


@dataclass(frozen=True)
class Status:
    """What any worker answers when it is asked about all."""

    versions: Mapping[str, tuple[VersionStatus, ...]]
    readiness: Mapping[str, str | None]
    unready: str | None
    draining: bool
    workers: tuple[WorkerStatus, ...]
    suspects: tuple[tuple[Suspect, int], ...] = ()


# From the supervisor to a worker.


@dataclass(frozen=True)
class Setup:
    """The first message: who the worker is, and the server's configuration, with the worker's share of threads."""

    index: int
    workers: int
    config: ServerConfig


@dataclass(frozen=True)
class Configs:
    """All models, as they are configured now."""

    models: Mapping[str, ModelConfig]


@dataclass(frozen=True)
class Load:
    """Load and warm up this version; hold it until the serving table names it."""

    key: Key
    directory: VersionDirectory
    config: ModelConfig


@dataclass(frozen=True)
class Drop:
    """Unload this version after its last request."""

    key: Key


@dataclass(frozen=True)
class Look:
    """The serving table has changed."""


@dataclass(frozen=True)
class Open:
    """Open these ports, as far as they are not open yet."""

    rest: bool
    grpc: bool


@dataclass(frozen=True)
class Measure:
    """Say what you have counted."""

    number: int


@dataclass(frozen=True)
class Failure:
    """A ServingError on its way to another process."""

    code: Code
    message: str

    @classmethod
    def of(cls, error: ServingError) -> Failure:
        """The error as plain values."""
        return cls(Code(error.code), error.message)

    def error(self) -> ServingError:
        """The error again."""
        return ServingError(self.message, code=self.code)


@dataclass(frozen=True)
class Answer:
    """To the `Ask` of that number; a value or a failure."""

    number: int
    value: Any


@dataclass(frozen=True)
class Drain:
    """Close the ports, finish what is in flight, and end."""


# From a worker to the supervisor.


@dataclass(frozen=True)
class Alive:
    """Sent regularly, with all that the process has counted so far."""

    cells: Any = None


@dataclass(frozen=True)
class Stuck:
    """Sent when it has changed.

    Attributes:
        models: Models that this worker refuses, because runs of theirs never ended.
        trouble: Why only another process can help; None while that is not so.
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
    """The version could not be loaded; or, without a key, the worker cannot go on."""

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
    """To the `Measure` of that number."""

    number: int
    cells: Any


@dataclass(frozen=True)
class Ask:
    """A question that the supervisor answers for all: `Reload`, `MetricsPage` or `MetricOf`."""

    number: int
    question: Any


@dataclass(frozen=True)
class Reload:
    """Apply this serialized `ModelServerConfig`; the answer is None."""

    config: bytes


@dataclass(frozen=True)
class MetricsPage:
    """The metrics page; the answer is its bytes."""


@dataclass(frozen=True)
class MetricOf:
    """A metric's value by TensorFlow Serving's name; the answer is a number."""

    name: str
