"""Loads and unloads models on request: an unloaded model is one pinned to no version.

The registry does both. The module knows no wire.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from embedserve.errors import InvalidInputError, UnsupportedError

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

__all__ = ["Change", "Repository", "check_parameters"]

Change: TypeAlias = Callable[[str, bool], Awaitable[None]]
"""Serves a model (True) or unloads it (False)."""


class Repository:
    """Loads and unloads the models of a registry.

    Args:
        registry: The registry.
        change: Makes the changes; a process whose registry follows another process passes its own.
    """

    def __init__(self, registry: ModelRegistry, change: Change | None = None) -> None:
        self._change = change or partial(change_served, registry)

    async def load(self, name: str) -> None:
        """Serve a model by its version policy, and return once the largest version serves.

        The model's directory is looked at again. A pin ends.

        Raises:
            ServingError: As `ModelRegistry.unpin`, or no name.
        """
        await self._change(_named(name), True)

    async def unload(self, name: str) -> None:
        """Serve no version of a model until `load`; requests in flight are answered.

        Raises:
            ServingError: As `ModelRegistry.pin`, or no name.
        """
        await self._change(_named(name), False)


async def change_served(registry: ModelRegistry, name: str, served: bool) -> None:
    """Serve a model by its version policy, or no version of the model."""
    await (registry.unpin(name) if served else registry.pin(name))


def _named(name: str) -> str:
    if not name:
        raise InvalidInputError("the request names no model")
    return name


def check_parameters(names: Iterable[str]) -> None:
    """Refuse a configuration or files in a request to load a model.

    Raises:
        UnsupportedError: With the name of the parameter.
    """
    for name in names:
        if name == "config" or name.startswith("file:"):
            raise UnsupportedError(
                f"parameter {name!r} is not supported: a model is served from its directory, by the server's own "
                "configuration"
            )
