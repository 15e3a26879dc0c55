"""The configuration of the standalone server: ports, TLS, the config file, the registry's options.

The values can be carried to another process as JSON. The module knows no flag and does nothing.
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from embedserve.config import Access, Location, ModelConfig, RegistryOptions
from embedserve.tfs.config import DEFAULT_PLATFORMS, Platform, models_from_proto

__all__ = [
    "ConfigFile",
    "GrpcConfig",
    "ObservingConfig",
    "RestConfig",
    "ServerConfig",
    "TlsContents",
    "TlsFiles",
    "TracingConfig",
]


class _Config(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        ser_json_bytes="base64",
        val_json_bytes="base64",
        ser_json_inf_nan="constants",
    )


class TlsFiles(_Config):
    """PEM files of the REST port's TLS; with `client_ca`, clients must show a certificate signed by the CA."""

    cert: Path
    key: Path
    client_ca: Path | None = None


class TlsContents(_Config):
    """PEM contents of the gRPC port's TLS, as in `SSLConfig`."""

    server_key: str = Field(repr=False)
    server_cert: str = Field(repr=False)
    custom_ca: str = ""
    client_verify: bool = False


class GrpcConfig(_Config):
    """The gRPC port.

    Attributes:
        server: `embedserve` for the own listener, or `grpcio`.
        port: TCP port, or None.
        hosts: IP addresses to open the port at; empty for every interface.
        socket_path: Unix socket, or None.
        tls: Certificates, or None for plain text.
        alts: Whether to use Google's ALTS credentials; of `grpcio` alone.
        channel_arguments: gRPC channel arguments of the server.
        health, reflection: Whether to offer the health and reflection services.
        access: Clients allowed to use the restricted services.
        tensor_content: Whether to answer with `tensor_content`.
    """

    server: Literal["embedserve", "grpcio"] = "embedserve"
    port: int | None = 8500
    hosts: tuple[str, ...] = ()
    socket_path: str | None = None
    tls: TlsContents | None = None
    alts: bool = False
    channel_arguments: Mapping[str, int | str] = Field(default_factory=dict)
    health: bool = False
    reflection: bool = False
    access: Access = Access()
    tensor_content: bool = False


class RestConfig(_Config):
    """The REST port.

    Attributes:
        port: TCP port, or None.
        hosts: As for gRPC.
        required: Whether a taken port ends the start; otherwise gRPC serves alone.
        early: Whether to open the port before the end of the first load.
        cors: Whether to answer CORS requests.
        timeout: Seconds for a request, or None.
        tls: Certificates, or None for plain text.
        metrics_path: Path of the Prometheus endpoint, or None.
        sagemaker: Whether to answer SageMaker's paths.
        sagemaker_default_model: The model of SageMaker's requests that name none; empty for the only model.
    """

    port: int | None = 8501
    hosts: tuple[str, ...] = ()
    required: bool = False
    early: bool = False
    cors: bool = False
    timeout: float | None = 30.0
    tls: TlsFiles | None = None
    metrics_path: str | None = None
    sagemaker: bool = False
    sagemaker_default_model: str = ""


class TracingConfig(_Config):
    """The traces; everything else stands in OpenTelemetry's environment variables.

    Attributes:
        endpoint: URL of the collector, or None for the URL in the variables.
        protocol: `http/protobuf` or `grpc`.
        named: Whether the variables name the service.
        sampling: Share of the calls without a parent; None leaves the decision to the sampler in the variables.
    """

    endpoint: str | None = None
    protocol: Literal["http/protobuf", "grpc"] = "http/protobuf"
    named: bool = False
    sampling: float | None = 1.0


class ObservingConfig(_Config):
    """Logs and traces.

    Attributes:
        log_format: Lines of text in the form of TensorFlow's, or JSON objects.
        access_log: Whether answered calls are logged.
        access_log_sampling: Share of the calls to log.
        access_log_slow: Seconds from which on a call is logged in any case, or None.
        access_log_failed: Whether calls with an error are logged in any case.
        tracing: The traces, or None.
    """

    log_format: Literal["text", "json"] = "text"
    access_log: bool = False
    access_log_sampling: float = Field(default=1.0, ge=0, le=1)
    access_log_slow: float | None = Field(default=1.0, ge=0)
    access_log_failed: bool = True
    tracing: TracingConfig | None = None


class ConfigFile(_Config):
    """A ModelServerConfig file read at the start, and the interval of later readings.

    Attributes:
        path: The file.
        poll_interval: Seconds between readings, or None for a single reading.
        applied: The `ModelServerConfig` read at the start.
    """

    path: Path
    poll_interval: float | None
    applied: Any

    @field_serializer("applied", when_used="json")
    def _packed(self, applied: Any) -> str:
        return b64encode(zlib.compress(applied.SerializeToString(deterministic=True))).decode()

    @field_validator("applied", mode="before")
    @classmethod
    def _unpacked(cls, value: object) -> Any:
        if not isinstance(value, str):
            return value
        from tensorflow_serving.config import model_server_config_pb2

        return model_server_config_pb2.ModelServerConfig.FromString(zlib.decompress(b64decode(value)))


class ServerConfig(_Config):
    """All settings of a server process.

    Attributes:
        root: Directory of models to discover, local or in a store, or None.
        models: Models given singly, or None.
        config_file: The origin of `models`, or None.
        platforms: Settings by platform name for the models of a `ModelServerConfig`.
        options: The registry's options.
        grpc, rest: The ports.
        observing: Logs and traces.
        session_config: A serialized `tensorflow.ConfigProto` for the whole process; empty for TensorFlow's defaults.
        workers: Number of answering processes under a supervisor; 0 for a single process without a supervisor.
        worker_timeout: Seconds without a sign of life before a worker is replaced.
    """

    root: Location | None = None
    models: tuple[ModelConfig, ...] | None = None
    config_file: ConfigFile | None = None
    platforms: Mapping[str, Platform] = DEFAULT_PLATFORMS
    options: RegistryOptions = RegistryOptions()
    grpc: GrpcConfig = GrpcConfig()
    rest: RestConfig = RestConfig()
    observing: ObservingConfig = ObservingConfig()
    session_config: bytes = b""
    workers: int = 0
    worker_timeout: float = 30.0

    def to_json(self) -> str:
        """The whole configuration as JSON, keys and certificates included.

        Models of a config file are left out for their number. `from_json` makes the models again from the compressed
        contents of the file.
        """
        return (self if self.config_file is None else self.model_copy(update={"models": None})).model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The configuration whose `to_json` made `text`."""
        config = cls.model_validate_json(text)
        if config.config_file is None:
            return config
        models = models_from_proto(config.config_file.applied, platforms=config.platforms)
        return config.model_copy(update={"models": tuple(models)})

    @field_validator("platforms", mode="after")
    @classmethod
    def _typed(cls, platforms: Mapping[str, Platform]) -> Mapping[str, Platform]:
        """Restore the types lost in JSON: tuples and models, by the options of `ModelConfig` with equal names."""

        def typed(options: Mapping[str, Any]) -> Mapping[str, Any]:
            model = ModelConfig(**{"name": "any", "base_path": "/", **options})
            return {name: getattr(model, name) for name in options}

        return {
            name: replace(platform, model_options=typed(platform.model_options)) for name, platform in platforms.items()
        }
