"""The history of changes: what happened to which version, by whom and why; bounded, and logged."""

from __future__ import annotations

import asyncio
import logging

import pytest

from embedserve import Actor, Event, ServingError, acting_as
from embedserve.config import RetryPolicy
from embedserve.events import EventLog
from embedserve.observer import Observer
from embedserve.testing import FakeLoader, FakeRegistry


def kinds(events: tuple[Event, ...]) -> list[tuple[str, int | None]]:
    return [(event.kind, event.version) for event in events]


async def until(registry: FakeRegistry, kind: str, version: int) -> tuple[Event, ...]:
    """The events, once one of the kind is there."""
    async with asyncio.timeout(60):
        while (kind, version) not in kinds(registry.events()):
            await asyncio.sleep(0.005)
    return registry.events()


async def test_a_version_is_loaded_published_withdrawn_and_unloaded() -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    async with registry:
        await registry.put("m", 2, FakeLoader())
        await until(registry, "unload", 1)
    assert kinds(registry.events()) == [
        ("model_added", None),
        *[("load", 1), ("publish", 1), ("load", 2), ("publish", 2), ("withdraw", 1), ("unload", 1)],
        *[("withdraw", 2), ("unload", 2)],
    ]
    assert {event.model for event in registry.events()} == {"m"}


async def test_a_failed_load_says_why_and_that_it_is_given_up() -> None:
    loader = FakeLoader(failures=-1)
    registry = FakeRegistry({"m": {1: FakeLoader()}}, retry=RetryPolicy(max_retries=1, initial=0.01, maximum=0.01))
    async with registry:
        await registry.put("m", 2, loader)
        events = await until(registry, "load_given_up", 2)
    of_2 = [event for event in events if event.version == 2]
    assert [event.kind for event in of_2] == ["load", "load_failed", "load_failed", "load_given_up"]
    assert of_2[-1].detail == "LoadError: the fake loader was told to fail"


async def test_changes_on_demand_name_who_made_them_and_why() -> None:
    loaders = {1: FakeLoader(), 2: FakeLoader()}
    async with FakeRegistry({"m": loaders}, poll_interval=0.05) as registry:
        with acting_as("ann", address="203.0.113.5", reason="version 2 is wrong"):
            await registry.pin("m", 1)
        await registry.set_label("m", "stable", 1)
        with acting_as("bob"):
            await registry.unpin("m")
    changes = [event for event in registry.events() if event.kind in ("roll_back", "label", "unpin")]
    assert [(event.kind, event.version, event.by) for event in changes] == [
        ("roll_back", 1, Actor("ann", "203.0.113.5", "version 2 is wrong")),
        ("label", 1, Actor()),
        ("unpin", None, Actor("bob")),
    ]
    assert str(changes[0]) == (
        "roll back 'm' version 1; back from version 2; by ann, 203.0.113.5; reason: version 2 is wrong"
    )
    # A load is the work of the directories, even if a pin has set it off.
    assert all(event.by == Actor() for event in registry.events() if event.kind in ("load", "publish", "unload"))


def test_who_acts_is_known_on_the_loop_of_the_registry() -> None:
    registry = FakeRegistry({"m": {1: FakeLoader(), 2: FakeLoader()}})
    with registry, acting_as("cron"):
        registry.pin_sync("m", 2)
    (pin,) = [event for event in registry.events() if event.kind == "pin"]
    assert (pin.version, pin.by.identity) == (2, "cron")


async def test_a_failed_pin_is_an_event() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}, settle=0.0) as registry:
        with acting_as("ann"), pytest.raises(ServingError):
            await registry.pin("m", 7)
        (failed,) = [event for event in registry.events() if event.kind == "pin_failed"]
    assert (failed.version, failed.by.identity) == (7, "ann")
    assert "version 7" in failed.detail


async def test_a_configuration_that_changes_nothing_is_no_event() -> None:
    registry = FakeRegistry({"a": {1: FakeLoader()}, "b": {1: FakeLoader()}})
    async with registry:
        configs = list(registry._models)
        await registry.reconfigure(configs)
        assert "reconfigure" not in [event.kind for event in registry.events()]
        await registry.reconfigure(configs[:1])
        (event,) = [event for event in registry.events() if event.kind == "reconfigure"]
    assert event.detail == "removed 'b'"


async def test_observers_and_the_log_hear_of_each_event(caplog: pytest.LogCaptureFixture) -> None:
    class Hears(Observer):
        def __init__(self) -> None:
            self.events: list[Event] = []

        def happened(self, event: Event) -> None:
            self.events.append(event)

    heard = Hears()
    with caplog.at_level(logging.INFO, "embedserve.events"):
        async with FakeRegistry({"m": {1: FakeLoader()}}, observers=[heard]) as registry:
            pass
    assert tuple(heard.events) == registry.events()
    logged = [record for record in caplog.records if record.name == "embedserve.events"]
    assert [record.getMessage() for record in logged] == [str(event) for event in registry.events()]
    published = next(vars(record) for record in logged if "publish" in record.getMessage())
    assert published["event_name"] == "embedserve.publish"
    assert (published["embedserve.model.name"], published["embedserve.model.version"]) == ("m", 1)


async def test_the_history_outlives_an_entry() -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    assert registry.events() == ()
    for _ in range(2):
        async with registry:
            pass
    assert kinds(registry.events()).count(("publish", 1)) == 2


def test_the_history_is_bounded() -> None:
    log = EventLog(kept=3)
    for number in range(5):
        log.add("label", "m", number, "x" * 10_000)
    assert [event.version for event in log.snapshot()] == [2, 3, 4]
    assert len(log.snapshot()[0].detail) == 1000
