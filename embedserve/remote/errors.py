"""Errors of remote versions, and texts without secrets.

No error of the module reaches a caller: `follower` and `root` turn the errors into statuses and retry pauses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from embedserve.store_url import redacted

__all__ = ["BusyError", "MissingError", "NoRoomError", "StoreError", "is_secret", "without_secrets"]

_SECRET = re.compile(r"secret|token|passw|pwd|key|credential|auth|cookie|sas", re.IGNORECASE)
_LONGEST = 1000  # Characters of a text, at most.
_SHORTEST_SECRET = 4  # Shorter secrets would be replaced all over a text.


class StoreError(Exception):
    """A store did not answer, refused, or answered nonsense. The text holds no secret."""


class MissingError(StoreError):
    """The requested path is not in the store."""


class NoRoomError(Exception):
    """A version does not fit into the cache, even after the removal of all unused versions."""


class BusyError(Exception):
    """Another process is working on the same files."""


def without_secrets(text: str, options: Mapping[str, object]) -> str:
    """Shorten a text, and remove the credentials of URLs and storage options."""
    for secret in _secrets(options):
        text = text.replace(secret, "***")
    text = redacted(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def is_secret(name: str) -> bool:
    """Whether a storage option of the given name may hold a credential."""
    return _SECRET.search(name) is not None


def _secrets(options: Mapping[str, object], all: bool = False) -> Iterator[str]:
    for name, value in options.items():
        secret = all or is_secret(name)
        if isinstance(value, Mapping):
            yield from _secrets(value, secret)
        elif secret and isinstance(value, str) and len(value) >= _SHORTEST_SECRET:
            yield value
