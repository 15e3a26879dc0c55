"""A fleet whose worker processes are made up: they answer orders as a test says, at once or when it lets them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from embedserve.errors import Code
from embedserve.server.config import ServerConfig
from embedserve.server.workers.fleet import Fleet, FleetHooks
from embedserve.server.workers.messages import (
    Configs,
    Drop,
    Dropped,
    Failed,
    Failure,
    Key,
    Load,
    Loaded,
    Look,
    Measure,
    Measured,
    Open,
    Opened,
    ServingTable,
    Setup,
    Up,
)
from embedserve.server.workers.process import WorkerProcess
from embedserve.signature import BatchingVerdict

LOAD_THREADS = 2
VERDICTS = {"serving_default": BatchingVerdict(True, "as the test says", "proof")}


class FakeChild:
    """In place of `asyncio.subprocess.Process`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def kill(self) -> None:
        self.returncode = -9


class FakeWorker:
    """A worker that says `Loaded`, `Dropped`, `Opened`... when it is told to do so.

    Attributes:
        orders: What it was told, in order.
        failing: Version → why it cannot be loaded here.
        waiting: Answers are held back while this is set; `go_on` gives them.
    """

    def __init__(self, fleet: Fleet, index: int) -> None:
        self.orders: list[Any] = []
        self.failing: dict[int, str] = {}
        self.waiting = False
        self.child = FakeChild(1000 + index)
        self._late: list[Any] = []
        self._fleet = fleet
        self.process = WorkerProcess(index, self.child, self, 0.0, LOAD_THREADS)  # type: ignore[arg-type]
        fleet._seats[index].process = self.process

    def __repr__(self) -> str:
        return f"<FakeWorker {self.process.index}>"

    def send(self, message: Any) -> None:
        """As `Channel`."""
        self.orders.append(message)
        match message:
            case Load(key):
                if key.version in self.failing:
                    self.say(Failed(key, Failure(Code.DATA_LOSS, self.failing[key.version])))
                else:
                    self.say(Loaded(key, "fake", False, batching=VERDICTS))
            case Drop(key):
                self.say(Dropped(key))
            case Open(rest, grpc):
                self.say(Opened(rest, grpc))
            case Measure(number):
                self.say(Measured(number, {}))
            case Look() | Configs():
                pass

    def close(self) -> None:
        """As `Channel`."""

    def say(self, message: Any) -> None:
        """Answer, not before the next turn of the loop."""
        if self.waiting:
            self._late.append(message)
        else:
            asyncio.get_running_loop().call_soon(self._fleet._hear, self.process, message)

    def go_on(self) -> None:
        """Answer what was held back, and everything from here on at once."""
        self.waiting = False
        late, self._late = self._late, []
        for message in late:
            self.say(message)

    def up(self) -> FakeWorker:
        """TensorFlow is imported."""
        self._fleet._hear(self.process, Up())
        return self

    def die(self) -> None:
        """End without a word."""
        slot = self._fleet._seats[self.process.index]
        slot.process, slot.ended = None, "was ended by SIGKILL"
        self._fleet._bury(slot, self.process)
        self._fleet._changed()

    def told(self, kind: Callable[..., Any]) -> list[Key]:
        """The versions that it was told to load, or to drop."""
        return [order.key for order in self.orders if type(order) is kind]


def make_fleet(workers: int = 2, lost: Callable[[Key], None] = lambda key: None) -> Fleet:
    """A fleet without processes."""

    async def answer(question: Any) -> Any:
        return question

    hooks = FleetHooks(answer, lost, lambda process: None)
    return Fleet(lambda index: Setup(index, workers, ServerConfig()), workers, [], 30.0, hooks)


def routes_of(fleet: Fleet) -> ServingTable:
    """What is posted now."""
    serving_table = fleet.serving_table.read()[1]
    assert isinstance(serving_table, ServingTable)
    return serving_table
