"""What can keep a remote version from being had, and how it is told without a secret.

None of these reaches a caller: `follower` and `root` turn them into statuses and into pauses before the next attempt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from embedserve.store_url import redacted

__all__ = ["BusyError", "MissingError", "NoRoomError", "StoreError", "is_secret", "without_secrets"]

_SECRET = re.compile(r"secret|token|passw|pwd|key|credential|auth|cookie|sas", re.IGNORECASE)
_LONGEST = 1000
_SHORTEST_SECRET = 4  # A shorter one would be replaced all over a text.


class StoreError(Exception):
    """A store did not answer, refused, or answered what cannot be right. The text holds no secret."""


class MissingError(StoreError):
    """What was asked for is not in the store."""


class NoRoomError(Exception):
    """A version does not fit into the cache, even after everything unused has gone."""


class BusyError(Exception):
    """Another process has the same files in its hands just now."""


def without_secrets(text: str, options: Mapping[str, Any]) -> str:
    """A text, shortened, without credentials: neither those in URLs nor those among the storage options."""
    for secret in _secrets(options):
        text = text.replace(secret, "***")
    text = redacted(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def is_secret(name: str) -> bool:
    """Whether a storage option of this name may hold a credential."""
    return _SECRET.search(name) is not None


def _secrets(options: Mapping[str, Any], all: bool = False) -> Iterator[str]:
    for name, value in options.items():
        secret = all or is_secret(name)
        if isinstance(value, Mapping):
            yield from _secrets(value, secret)
        elif secret and isinstance(value, str) and len(value) >= _SHORTEST_SECRET:
            yield value
