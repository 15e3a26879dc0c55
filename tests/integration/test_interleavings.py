"""In whatever order versions, requests, pins and cancellations come: nobody is lost, nothing mixed, all unloaded."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from embedserve import (
    AllVersions,
    LatestVersions,
    LoadError,
    ModelConfig,
    ModelHandle,
    Observer,
    RetryPolicy,
    ServableNotFoundError,
    State,
)
from embedserve.config import VersionPolicy
from embedserve.servable import Array, ServableId, Tensors
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.integration.waiting import until

pytestmark = pytest.mark.slow

NUMBERS = st.integers(1, 4)

steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NUMBERS, st.sampled_from(["fine", "fine", "fails once", "broken", "changes"])),
        st.tuples(st.just("remove"), NUMBERS),
        st.tuples(st.just("pin"), NUMBERS),
        st.tuples(st.just("unpin")),
        st.tuples(st.just("predict"), st.sampled_from([None, None, None, 1, 2, 3, 4])),
        st.tuples(st.just("cancel"), st.integers(0, 50)),
        st.tuples(st.just("hold")),
        st.tuples(st.just("release"), st.integers(0, 10)),
        st.tuples(st.just("hold back")),
        st.tuples(st.just("let go")),
        st.tuples(st.just("wait"), st.integers(0, 6)),
        st.tuples(st.just("settle")),
    ),
    max_size=40,
)


class Loader(FakeLoader):
    """Answers with its own number, so that an answer tells which generation gave it."""

    def __init__(self, number: int, kind: str, gate: Gate) -> None:
        super().__init__(
            self.answer,
            failures={"broken": -1, "fails once": 1}.get(kind, 0),
            changes_while_loading=int(kind == "changes"),
            gate=gate,
        )
        self.number = number
        self.broken = kind == "broken"

    def answer(self, version: int, inputs: Tensors) -> dict[str, Array]:
        return {"y": inputs["x"] * 0 + np.float32(self.number)}


class Watch(Observer):
    """Knows what serves, from what it is told, and what should not have happened.

    Attributes:
        now: How many generations of each version serve.
        gaps: How often each version, and the model (0), had nothing left to answer with.
        wrong: An observer cannot fail anything, so this is looked at in the end.
    """

    def __init__(self, play: Play) -> None:
        self._play = play
        self.now: Counter[int] = Counter()
        self.gaps: Counter[int] = Counter()
        self.wrong: list[str] = []

    def is_dark(self, version: int | None) -> bool:
        return not (self.now.total() if version is None else self.now[version])

    def version_state(self, id: ServableId, state: State, error: Exception | None) -> None:
        preserves = self._play.transition == "availability" and not self._play.leaving
        wanted = self._play.manager.aspired("m")
        others = [v for v in self._play.manager.versions_of("m") if not v.aspired and v.state is not State.END]
        match state:
            case State.LOADING if self._play.transition == "resource" and error is None and others:
                self.wrong.append(f"{id.version} loads while {others} are still there")
            case State.AVAILABLE:
                self.now[id.version] += 1
                if id.version not in wanted:
                    self.wrong.append(f"{id.version} is published, but only {wanted} are wanted")
            case State.UNLOADING:
                self.now[id.version] -= 1
                if self.is_dark(id.version):
                    self.gaps[id.version] += 1
                    if preserves and id.version in wanted:
                        self.wrong.append(f"{id.version} is wanted, and yet no generation of it serves")
                if self.is_dark(None):
                    self.gaps[0] += 1
                    if preserves and wanted:
                        self.wrong.append(f"{wanted} are wanted, and yet nothing serves")


class Play:
    """One registry and everybody who uses it."""

    def __init__(self, transition: str, policy: VersionPolicy, batching: Any, threads: int) -> None:
        self.numbers = itertools.count(1)
        self.gate = Gate(opened=True)
        self.transition = transition
        self.watch = Watch(self)
        self.loaders: dict[int, Loader] = {}
        first = self.loader("fine")
        self.registry = FakeRegistry(
            {"m": {1: first}},
            models=[ModelConfig(name="m", base_path="/fake/m", version_policy=policy)],
            transition=transition,
            batching=batching,
            num_batch_threads=threads,
            warmup="none",
            retry=RetryPolicy(initial=0.0005, maximum=0.0005),
        )
        self.registry.observers.add(self.watch)
        self.requests: list[asyncio.Task[None]] = []
        self.changes: list[asyncio.Task[None]] = []
        self.held: list[tuple[ModelHandle, Loader]] = []
        self.leaving = False

    def loader(self, kind: str) -> Loader:
        number = next(self.numbers)
        self.loaders[number] = Loader(number, kind, self.gate)
        return self.loaders[number]

    @property
    def manager(self) -> Any:
        assert self.registry._runtime is not None
        return self.registry._runtime.manager

    async def predict(self, version: int | None) -> None:
        gaps, dark = self.watch.gaps[version or 0], self.watch.is_dark(version)
        try:
            answer = (await self.registry.predict("m", {"x": [1.0, 2.0]}, version=version))["y"]
        except ServableNotFoundError:
            assert dark or self.watch.gaps[version or 0] > gaps
            return
        assert answer[0] == answer[1]
        loader = self.loaders[int(answer[0])]
        assert version in (None, loader.id.version)
        assert loader.servable is not None, "answered by what was never loaded"

    async def change(self, call: Any) -> None:
        with suppress(LoadError, ServableNotFoundError):  # A target that is broken or not there.
            await call

    async def step(self, what: str, *arguments: Any) -> None:
        registry, source = self.registry, self.registry.source
        assert source is not None
        match what, arguments:
            case "put", (version, kind):
                await registry.put("m", version, self.loader(kind))
            case "remove", (version,):
                if version in source.found["m"]:
                    await registry.remove("m", version)
            case "pin", (version,):
                self.changes.append(asyncio.create_task(self.change(registry.pin("m", version))))
            case "unpin", ():
                self.changes.append(asyncio.create_task(self.change(registry.unpin("m"))))
            case "predict", (version,):
                self.requests.append(asyncio.create_task(self.predict(version)))
            case "cancel", (index,) if self.requests:
                self.requests[index % len(self.requests)].cancel()
            case "hold", () if self.manager.available("m"):
                handle = registry.acquire_now("m")
                loader = handle.servable._loader  # type: ignore[attr-defined]
                assert handle.version == self.manager.available("m")[-1]
                self.held.append((handle, loader))
            case "release", (index,) if self.held:
                handle, loader = self.held.pop(index % len(self.held))
                assert loader.loaded, "unloaded while it was held"
                handle.release()
            case "hold back", ():
                self.gate.close()
            case "let go", ():
                self.gate.open()
            case "wait", (turns,):
                for _ in range(turns):
                    await asyncio.sleep(0)
            case "settle", ():
                self.gate.open()
                await self.settled()
        for _, loader in self.held:
            assert loader.loaded, "unloaded while it was held"

    async def settled(self) -> None:
        """Everything that was begun ends, and what serves is what is wanted, as far as holders let it."""
        ends = self.requests + ([] if self.held else self.changes)
        await asyncio.wait_for(asyncio.gather(*ends, return_exceptions=True), 20)

        def followed() -> bool:
            managed = self.manager.versions_of("m")
            blocked = [v for v in managed if v.state is State.UNLOADING and v.handles]
            if any(v.state is State.UNLOADING and not v.handles for v in managed):
                return False
            if any(v.state is State.START and not (blocked and self.transition == "resource") for v in managed):
                return False
            if any(v.state is State.LOADING and not v.loader.blocking.broken for v in managed):
                return False
            given_up = [v for v in managed if v.state is State.END]
            assert all(v.loader.blocking.broken for v in given_up), "given up, though it could be loaded"
            # A generation serves on until a newer one of its version serves, which may be broken.
            kept = {v.id.version for v in managed if v.aspired and v.state is not State.AVAILABLE}
            kept = kept if self.transition == "availability" else set()
            unwanted = [v for v in managed if v.state is State.AVAILABLE and not v.aspired and v.id.version not in kept]
            return not unwanted or not any(v.state is State.AVAILABLE and v.aspired for v in managed)

        await until(self.registry, followed)
        for task in ends:
            if not task.cancelled():
                task.result()
        self.requests = []
        self.changes = [task for task in self.changes if not task.done()]

    async def run(self, steps: list[tuple[Any, ...]]) -> None:
        async with self.registry:
            for step in steps:
                await self.step(*step)
            for handle, loader in self.held:
                assert loader.loaded
                handle.release()
            self.held.clear()
            await self.step("settle")
            statistics = self.registry.statistics()
            assert not any(statistics.in_flight.values())
            async with asyncio.timeout(20):
                while self.registry.statistics().busy_threads:  # A cancelled run's thread comes back soon.
                    await asyncio.sleep(0)
            self.leaving = True
        assert not self.watch.wrong
        assert not any(loader.loaded for loader in self.loaders.values())
        assert not self.registry.started
        assert len(asyncio.all_tasks()) == 1


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=steps,
    transition=st.sampled_from(["availability", "availability", "resource"]),
    policy=st.sampled_from([LatestVersions(), LatestVersions(num_versions=2), AllVersions()]),
    batching=st.sampled_from(["auto", False]),
    threads=st.integers(1, 2),
)
@example(
    steps=[("put", 4, "fine"), ("settle",), ("put", 1, "fine"), ("put", 4, "broken")],
    transition="availability",
    policy=LatestVersions(num_versions=2),
    batching="auto",
    threads=1,
)
def test_swaps_in_any_order(
    steps: list[tuple[Any, ...]], transition: str, policy: VersionPolicy, batching: Any, threads: int
) -> None:
    asyncio.run(Play(transition, policy, batching, threads).run(steps))
