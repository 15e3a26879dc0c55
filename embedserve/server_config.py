"""Everything the standalone server is told: ports, TLS, the config file, the registry's options.

Made by `cli` from flags, read by `server`. Knows no flag and does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from embedserve.config import ModelConfig, RegistryOptions
from embedserve.tfs_config import DEFAULT_PLATFORMS, Platform

__all__ = ["ConfigFile", "GrpcConfig", "RestConfig", "ServerConfig", "TlsContents", "TlsFiles"]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class TlsFiles(_Config):
    """PEM files of the REST port's TLS; with `client_ca`, clients must show a certificate signed by it."""

    cert: Path
    key: Path
    client_ca: Path | None = None


class TlsContents(_Config):
    """PEM contents of the gRPC port's TLS, as `SSLConfig` has them."""

    server_key: str = Field(repr=False)
    server_cert: str = Field(repr=False)
    custom_ca: str = ""
    client_verify: bool = False


class GrpcConfig(_Config):
    """The gRPC port.

    Attributes:
        port: TCP port, or None for none.
        socket_path: Unix socket, or None for none.
        tls: Certificates, or None for plain text.
        alts: Use Google's ALTS credentials.
        channel_arguments: gRPC channel arguments of the server.
        health, reflection, profiler: Which services there are besides the models'.
        tensor_content: Answer with `tensor_content`.
    """

    port: int | None = 8500
    socket_path: str | None = None
    tls: TlsContents | None = None
    alts: bool = False
    channel_arguments: Mapping[str, int | str] = Field(default_factory=dict)
    health: bool = False
    reflection: bool = False
    profiler: bool = True
    tensor_content: bool = False


class RestConfig(_Config):
    """The REST port.

    Attributes:
        port: TCP port, or None for none.
        required: A port that is taken ends the start; else gRPC serves alone.
        early: Open the port before the first load has ended.
        cors: Answer CORS requests.
        timeout: Seconds a request may take, or None.
        tls: Certificates, or None for plain text.
        metrics_path: Path of the Prometheus endpoint, or None for none.
    """

    port: int | None = 8501
    required: bool = False
    early: bool = False
    cors: bool = False
    timeout: float | None = 30.0
    tls: TlsFiles | None = None
    metrics_path: str | None = None


class ConfigFile(_Config):
    """A ModelServerConfig file that was read at start, and how to follow it.

    Attributes:
        path: The file.
        poll_interval: Seconds between readings, or None to never read it again.
        applied: The `ModelServerConfig` that was read.
    """

    path: Path
    poll_interval: float | None
    applied: Any


class ServerConfig(_Config):
    """Everything `run_server` needs.

    Attributes:
        root: Directory of models that are found by themselves, or None.
        models: Models given one by one, or None.
        config_file: Where `models` come from, when from a file.
        platforms: What the models of a `ModelServerConfig` may ask for, by name.
        options: The registry's.
        grpc, rest: The ports.
        session_config: A serialized `tensorflow.ConfigProto` for the whole process; empty for TensorFlow's defaults.
    """

    root: Path | None = None
    models: tuple[ModelConfig, ...] | None = None
    config_file: ConfigFile | None = None
    platforms: Mapping[str, Platform] = DEFAULT_PLATFORMS
    options: RegistryOptions = RegistryOptions()
    grpc: GrpcConfig = GrpcConfig()
    rest: RestConfig = RestConfig()
    session_config: bytes = b""
