"""Asks a running server over HTTP, and words what goes wrong for the reader of a terminal.

The module knows the paths of no command.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any, NoReturn
from urllib.parse import quote

__all__ = [
    "EXIT_BAD_ARGUMENTS",
    "EXIT_FINDING",
    "EXIT_NO_ANSWER",
    "CommandError",
    "Parser",
    "Server",
    "is_url",
    "patience",
]

EXIT_FINDING = 1
"""Exit status of an answer that says no: a model is not ready, a request is refused."""
EXIT_BAD_ARGUMENTS = 2
EXIT_NO_ANSWER = 3
"""Exit status where no server answers."""


class CommandError(Exception):
    """Ends a command with a message on stderr and an exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Parser(argparse.ArgumentParser):
    """Reports bad arguments in a single line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_ARGUMENTS)


def is_url(text: str) -> bool:
    """Whether a text is the URL of a server."""
    return text.startswith(("http://", "https://"))


def patience(text: str) -> float:
    """Seconds above 0, as an argument."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


class Server:
    """A server at a URL, mount point included: `http://host:8501`, `https://host/ml`.

    Args:
        url: The URL; without a scheme `http` is meant.
        timeout: Seconds for each answer.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url = (url if is_url(url) else f"http://{url}").rstrip("/")
        self._timeout = timeout

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """GET a path, or POST a body as JSON; the status and the answer, also of an error.

        Raises:
            CommandError: No server answers, or the URL is impossible.
        """
        try:
            request = urllib.request.Request(self.url + path, body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except ValueError as error:
            raise CommandError(f"{self.url} is no URL: {error}", EXIT_BAD_ARGUMENTS) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise CommandError(f"no server answers at {self.url}: {reason}", EXIT_NO_ANSWER) from None

    def document(self, path: str) -> dict[str, Any]:
        """The JSON object at a path, whatever its status says.

        Raises:
            CommandError: As `ask`, or the answer is no JSON object: the server is another program.
        """
        status, answer = self.ask(path)
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            told = f"{self.url}{path} answers {status} without a JSON object: is it embedserve's REST port?"
            raise CommandError(told, EXIT_NO_ANSWER)
        return found

    def operation(self, model: str, place: str = "") -> dict[str, Any]:
        """How `:predict` of a model is described; `place` is `/versions/N` or `/labels/NAME`.

        Raises:
            CommandError: As `document`, or the server has no such model or version; the message names the models.
        """
        path = f"/v1/models/{quote(model, safe='')}{place}:predict"
        api = self.document("/v1/openapi.json")
        if "paths" not in api:
            raise CommandError(f"{self.url}: {api.get('error', 'no OpenAPI document')}", EXIT_FINDING)
        found: dict[str, Any] | None = api["paths"].get(path, {}).get("post")
        if found is None:
            models = ", ".join(tag["name"] for tag in api["tags"] if tag["name"] != "models")
            told = f"{self.url} has no {path}; its models are {models or 'none'}"
            raise CommandError(told, EXIT_FINDING)
        return found
