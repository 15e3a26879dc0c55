"""Which configurations a running server takes from its file, and which from a client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorflow_serving.config import model_server_config_pb2

from embedserve.errors import ConfigError
from embedserve.server.applied_config import AppliedConfig
from embedserve.server.config import ConfigFile, ServerConfig
from embedserve.testing import FakeLoader, FakeRegistry
from embedserve.tfs.config import models_from_proto


def config_of(prefix: Path | None, base_path: str = "/fake/m") -> Any:
    config = model_server_config_pb2.ModelServerConfig()
    model = config.model_config_list.config.add(name="m", base_path=base_path, model_platform="tensorflow")
    if prefix is not None:
        model.logging_config.log_collector_config.type = "file"
        model.logging_config.log_collector_config.filename_prefix = str(prefix)
        model.logging_config.sampling_config.sampling_rate = 1
    return config


async def test_a_reload_keeps_the_logs_of_the_file_and_adds_none(tmp_path: Path) -> None:
    of_file = config_of(tmp_path / "m")
    file = ConfigFile(path=tmp_path / "models.config", poll_interval=None, applied=of_file)
    server = ServerConfig(models=tuple(models_from_proto(of_file)), config_file=file)
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        applied = AppliedConfig(registry, server)
        await applied.reload(of_file)
        with pytest.raises(ConfigError, match="--request_log_root"):
            await applied.reload(config_of(tmp_path / "elsewhere"))
        await applied.apply(config_of(tmp_path / "elsewhere"))  # What the file says is the operator's own.
        await applied.reload(config_of(tmp_path / "elsewhere"))


async def test_a_reload_names_no_directory_of_the_kernel_and_the_file_may(tmp_path: Path) -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        applied = AppliedConfig(registry, ServerConfig())
        with pytest.raises(ConfigError, match="base_path /proc/1, which is no place for models"):
            await applied.reload(config_of(None, "/proc/1"))
        await applied.reload(config_of(None, "/dev/shm/models"))
        await applied.apply(config_of(None, "/proc/1"), wait=False)
