"""The `ModelServerConfig` in force while a standalone server runs: from its file, reload requests and hang-ups.

Called by `server`. Knows no port.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from embedserve.config import ModelConfig
from embedserve.errors import NotReadyError, ServingError
from embedserve.registry import ModelRegistry
from embedserve.server.config import ServerConfig
from embedserve.tfs.config import check_reload, models_from_proto, read_model_server_config

__all__ = ["AppliedConfig", "log_models"]

logger = logging.getLogger("embedserve")


class AppliedConfig:
    """Applies one `ModelServerConfig` after the other, from the file and from HandleReloadConfigRequest."""

    def __init__(self, registry: ModelRegistry, config: ServerConfig) -> None:
        self._registry = registry
        self._platforms = config.platforms
        self._file = config.config_file
        self._latest: Any = None if self._file is None else self._file.applied
        self._models: Sequence[ModelConfig] = config.models or ()

    async def reload(self, config: Any) -> None:
        """As `apply`, for a request of a client, who may not ask for everything that the file may.

        Raises:
            ServingError: As `apply`; ConfigError as `check_reload`.
        """
        models = models_from_proto(config, platforms=self._platforms, previous=self._latest)
        await asyncio.to_thread(check_reload, models, self._models, self._registry.options.request_log_root)
        await self.apply(config)

    async def apply(self, config: Any, *, wait: bool = True) -> None:
        """Check `config` against the one in force, then serve what it says; calls wait for each other in the registry.

        Raises:
            ServingError: As `models_from_proto` and `ModelRegistry.reconfigure`.
        """
        models = models_from_proto(config, platforms=self._platforms, previous=self._latest)
        if config != self._latest:
            log_models(models)
        self._latest, self._models = config, models
        await self._registry.reconfigure(models, wait=wait)

    async def follow(self) -> None:
        """Apply the config file again and again, changed or not: it overrides what a reload request has set."""
        file = self._file
        if file is None or file.poll_interval is None:
            return
        while True:
            await self._read(file.path)
            await asyncio.sleep(file.poll_interval)

    async def reread(self) -> None:
        """What SIGHUP asks for: apply the config file again, if there is one, and look for models and versions.

        A file that cannot be applied is logged, and changes nothing.
        """
        if self._file is not None:
            await self._read(self._file.path)
        with suppress(NotReadyError):  # Left meanwhile.
            await self._registry.look_again()

    async def _read(self, path: Path) -> None:
        try:
            config = await asyncio.to_thread(read_model_server_config, path)
        except ServingError as error:
            logger.error("Failed to read ModelServerConfig file: %s", error)
            return
        try:
            # Without waiting: a model that cannot load must not keep the next edit, its cure, from being read.
            await self.apply(config, wait=False)
        except ServingError as error:
            logger.error("PollFilesystemAndReloadConfig failed to ReloadConfig: %s", error)


def log_models(models: Sequence[ModelConfig]) -> None:
    """Log what is served from now on, in the lines that tools look for."""
    logger.info("Adding/updating models.")
    for model in models:
        logger.info(" (Re-)adding model: %s", model.name)
    logger.info("Finished adding/updating models")
