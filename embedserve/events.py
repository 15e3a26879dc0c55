"""What changed in a registry, when, by whom and why: a bounded history, and a line in the log for each event.

Versions come and go by what lies in the directories; pins, labels and configurations change on demand. `acting_as`
names the person or program behind a change on demand. The module knows no wire and keeps no file.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from embedserve.servable import ServableId, State

__all__ = ["NOBODY", "Actor", "Event", "EventKind", "EventLog", "acting_as", "present_actor"]

logger = logging.getLogger("embedserve.events")

EventKind: TypeAlias = Literal[
    "load", "load_failed", "load_given_up", "publish", "withdraw", "unload", "pin", "roll_back", "pin_failed", "unpin",
    "label", "reconfigure", "reconfigure_failed", "model_added", "model_removed",
]  # fmt: skip

KEPT = 1000
"""Events in the history; some 300 bytes each."""

_MAX_TEXT = 1000
"""Characters kept of a text: a client may have chosen a reason, and a load error may quote a file."""


@dataclass(frozen=True, slots=True)
class Actor:
    """The cause of a change on demand.

    Attributes:
        identity: Name of a person or program; empty if unknown.
        address: The client's address; empty for a change from the process itself.
        reason: The reason given for the change; empty without one.
    """

    identity: str = ""
    address: str = ""
    reason: str = ""


NOBODY = Actor()
_actor: ContextVar[Actor] = ContextVar("embedserve_actor", default=NOBODY)


@contextmanager
def acting_as(identity: str = "", *, address: str = "", reason: str = "") -> Iterator[None]:
    """Name the cause of the changes inside the context.

    `with acting_as("ann", reason="too many errors"): await registry.pin("digits", 3)`

    Args:
        identity: Name of a person or program, as the host knows it.
        address: The address of the person's client.
        reason: The reason for the change.
    """
    token = _actor.set(Actor(identity[:_MAX_TEXT], address[:_MAX_TEXT], reason[:_MAX_TEXT]))
    try:
        yield
    finally:
        _actor.reset(token)


def present_actor() -> Actor:
    """Return the cause of the changes in the present context."""
    return _actor.get()


@dataclass(frozen=True, slots=True)
class Event:
    """A change of what a registry serves.

    Attributes:
        time: Seconds since 1970.
        kind: `load` begins, and ends with `publish`, `load_failed` (a retry follows) or `load_given_up`. `withdraw`
            ends the service of a version, `unload` its life. Changes on demand are `pin`, `roll_back` (a pin to an
            older version), `pin_failed`, `unpin`, `label`, `reconfigure` and `reconfigure_failed`. `model_added` and
            `model_removed` follow from configurations and directories.
        model: The model; empty for `reconfigure`.
        version: The version; None for an event of the whole model.
        detail: The contents of the change, or the failure; empty where the kind says all.
        by: The cause of a change on demand.
    """

    time: float
    kind: EventKind
    model: str = ""
    version: int | None = None
    detail: str = ""
    by: Actor = NOBODY

    def __str__(self) -> str:
        what = " ".join(filter(None, [self.kind.replace("_", " "), self.model and repr(self.model)]))
        if self.version is not None:
            what += f" version {self.version}"
        who = ", ".join(filter(None, [self.by.identity, self.by.address]))
        parts = [what, self.detail, who and f"by {who}", self.by.reason and f"reason: {self.by.reason}"]
        return "; ".join(filter(None, parts))

    def fields(self) -> dict[str, Any]:
        """The event as the fields of a log record, without empty fields."""
        found = {
            "event_name": f"embedserve.{self.kind}",
            "embedserve.model.name": self.model,
            "embedserve.model.version": self.version,
            "embedserve.event.detail": self.detail,
            "user.id": self.by.identity,
            "client.address": self.by.address,
            "embedserve.event.reason": self.by.reason,
        }
        return {name: value for name, value in found.items() if value not in ("", None)}


class EventLog:
    """The last events of a registry; added on the registry's loop, readable from any thread."""

    def __init__(self, kept: int = KEPT) -> None:
        self._events: deque[Event] = deque(maxlen=kept)

    def __repr__(self) -> str:
        return f"<EventLog of {len(self._events)} events>"

    def snapshot(self) -> tuple[Event, ...]:
        """Return the kept events, the oldest first."""
        return tuple(self._events.copy())

    def add(self, kind: EventKind, model: str = "", version: int | None = None, detail: str = "") -> Event:
        """Add an event on demand, by the present actor, and log the event."""
        return self._add(Event(time.time(), kind, model, version, detail[:_MAX_TEXT], _actor.get()))

    def version_state(self, id: ServableId, state: State, error: Exception | None) -> Event | None:
        """Add the event of a version's new state; None for a state that changes no service."""
        kind = _kind_of(state, error)
        if kind is None:
            return None
        detail = "" if error is None else f"{type(error).__name__}: {error}"[:_MAX_TEXT]
        # Without an actor: the context of a load may be the context of an older change.
        return self._add(Event(time.time(), kind, id.name, id.version, detail))

    def _add(self, event: Event) -> Event:
        self._events.append(event)
        level = logging.WARNING if event.kind.endswith(("_failed", "_given_up")) else logging.INFO
        logger.log(level, "%s", event, extra=event.fields())
        return event


def _kind_of(state: State, error: Exception | None) -> EventKind | None:
    match state:
        case State.LOADING:
            return "load" if error is None else "load_failed"
        case State.AVAILABLE:
            return "publish"
        case State.UNLOADING:
            return "withdraw"
        case State.END:
            return "unload" if error is None else "load_given_up"
        case _:
            return None
