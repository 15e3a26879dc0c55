"""Applies the `ModelServerConfig` of a standalone server: from the file, reload requests and hang-ups.

The module knows no port.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from embedserve.config import ModelConfig
from embedserve.errors import NotReadyError, ServingError
from embedserve.events import acting_as
from embedserve.registry import ModelRegistry
from embedserve.server.config import ServerConfig
from embedserve.tfs.config import check_reload, models_from_proto, read_model_server_config

if TYPE_CHECKING:
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

__all__ = ["AppliedConfig", "log_models"]

logger = logging.getLogger("embedserve")


class AppliedConfig:
    """Applies successive `ModelServerConfig`s, from the file and from HandleReloadConfigRequest."""

    def __init__(self, registry: ModelRegistry, config: ServerConfig) -> None:
        self._registry = registry
        self._platforms = config.platforms
        self._file = config.config_file
        self._latest: ModelServerConfig | None = None if self._file is None else self._file.applied
        self._models: Sequence[ModelConfig] = config.models or ()

    async def reload(self, config: ModelServerConfig) -> None:
        """Apply a client's config; clients may not set every field of the file.

        Raises:
            ServingError: As `apply`; ConfigError as `check_reload`.
        """
        models = models_from_proto(config, platforms=self._platforms, previous=self._latest)
        await asyncio.to_thread(check_reload, models, self._models, self._registry.options.request_log_root)
        await self.apply(config)

    async def apply(self, config: ModelServerConfig, *, wait: bool = True) -> None:
        """Check `config` against the current config, then serve by `config`; concurrent calls queue in the registry.

        Raises:
            ServingError: As `models_from_proto` and `ModelRegistry.reconfigure`.
        """
        models = models_from_proto(config, platforms=self._platforms, previous=self._latest)
        if config != self._latest:
            log_models(models)
        self._latest, self._models = config, models
        await self._registry.reconfigure(models, wait=wait)

    async def follow(self) -> None:
        """Apply the config file every `poll_interval` seconds, changed or not, over earlier reload requests."""
        file = self._file
        if file is None or file.poll_interval is None:
            return
        while True:
            with acting_as("config file", reason="the file is polled"):
                await self._read(file.path)
            await asyncio.sleep(file.poll_interval)

    async def reread(self) -> None:
        """Handle SIGHUP: apply the config file again, if given, and look for models and versions.

        A file with errors is logged and changes no model.
        """
        if self._file is not None:
            with acting_as("config file", reason="SIGHUP"):
                await self._read(self._file.path)
        with suppress(NotReadyError):  # The registry was left meanwhile.
            await self._registry.look_again()

    async def _read(self, path: Path) -> None:
        try:
            config = await asyncio.to_thread(read_model_server_config, path)
        except ServingError as error:
            logger.error("Failed to read ModelServerConfig file: %s", error)
            return
        try:
            # Without waiting: a model that cannot load must not delay the next reading of the file, which may bring the
            # cure.
            await self.apply(config, wait=False)
        except ServingError as error:
            logger.error("PollFilesystemAndReloadConfig failed to ReloadConfig: %s", error)


def log_models(models: Sequence[ModelConfig]) -> None:
    """Log the served models, in the lines known to tools."""
    logger.info("Adding/updating models.")
    for model in models:
        logger.info(" (Re-)adding model: %s", model.name)
    logger.info("Finished adding/updating models")
