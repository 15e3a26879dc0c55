"""Ports in the flags: addresses, TLS, services → `GrpcConfig`, `RestConfig`.

The module reads the files named in the flags, and knows no model.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, get_args

from embedserve.config import Access, Clients, validated
from embedserve.errors import Code, ConfigError
from embedserve.server.config import GrpcConfig, RestConfig, TlsContents, TlsFiles
from embedserve.server.flags import ParsedFlags, comma_separated
from embedserve.server.listening import addresses
from embedserve.tfs.constants import DEFAULT_METRICS_PATH
from embedserve.tfs.protos import message_class, read_text_proto

__all__ = ["ports"]

logger = logging.getLogger("embedserve")


_SERVERS = get_args(GrpcConfig.model_fields["server"].annotation)


def ports(flags: ParsedFlags) -> tuple[GrpcConfig, RestConfig]:
    """The ports for gRPC and REST.

    Raises:
        ConfigError: A flag or a file has an impossible value.
    """
    if flags.text("server") == "pyvoy" or "http3" in flags:
        raise ConfigError(
            "--server=pyvoy and --http3 are gone: without the flags every port answers REST, gRPC and gRPC-Web, over "
            "HTTP/1.1 and HTTP/2; HTTP/3 needs a proxy before the server"
        )
    if flags.text("server") != "uvicorn":
        raise ConfigError(f"--server={flags.text('server')}: there is a single server; leave the flag out")
    grpc = _grpc_config(flags, _port(flags, "port"))
    return grpc, _rest_config(flags, grpc)


def _grpc_server(flags: ParsedFlags) -> str:
    """The server of gRPC: grpcio's where ALTS credentials ask for it."""
    given = flags.text("grpc_server")
    if given not in _SERVERS:
        raise ConfigError(f"--grpc_server={given}: there is {', '.join(_SERVERS)}")
    if not flags.on("use_alts_credentials"):
        return given
    if given == "embedserve" and "grpc_server" in flags:
        raise ConfigError("--use_alts_credentials needs --grpc_server=grpcio: only grpcio has ALTS credentials")
    return "grpcio"


def _grpc_config(flags: ParsedFlags, port: int | None) -> GrpcConfig:
    socket_path = flags.text("grpc_socket_path") or None
    if port is None and socket_path is None:
        raise ConfigError("At least one of server_options.grpc_port or server_options.grpc_socket_path must be set.")
    ssl_file = flags.text("ssl_config_file")
    if flags.on("use_alts_credentials") and ssl_file:
        raise ConfigError("Either use_alts_credentials must be false or ssl_config_file must be empty.")
    return GrpcConfig(
        server=_grpc_server(flags),
        port=port,
        hosts=_hosts(flags),
        socket_path=socket_path,
        tls=_tls_contents(ssl_file) if ssl_file else None,
        alts=flags.on("use_alts_credentials"),
        channel_arguments=_channel_arguments(flags.text("grpc_channel_arguments")),
        health=flags.on("enable_grpc_healthcheck_service"),
        reflection=flags.on("grpc_reflection"),
        access=_access(flags),
        tensor_content=flags.on("enable_serialization_as_tensor_content"),
    )


def _hosts(flags: ParsedFlags) -> tuple[str, ...]:
    if "host" not in flags:
        return ()
    given = flags.text("host")
    hosts = [part.strip() for part in given.split(",")]
    if not any(hosts):
        raise ConfigError(f"--host={given} names no address; leave the flag out to listen on every interface")
    if not all(hosts):
        raise ConfigError(f"--host={given} has an empty part; write addresses or names with one comma between two")
    return addresses(hosts)


def _access(flags: ParsedFlags) -> Access:
    """The clients allowed for each restricted service.

    With TensorFlow Serving's flags the reload stays open to all clients, because TensorFlow Serving's tools rely on it.
    """
    given = {name: flags.text(f"{name}_clients") for name in Access.model_fields}
    given["reload"] = given["reload"] or ("all" if flags.directory is None else "local")
    for name, clients in given.items():
        if clients not in get_args(Clients):
            raise ConfigError(f"--{name}_clients={clients}: there is {', '.join(get_args(Clients))}")
    if not flags.on("enable_profiler"):
        given["profiler"] = "none"
    return validated(Access, given)


def _port(flags: ParsedFlags, name: str) -> int | None:
    port = flags.number(name)
    if not 0 <= port < 2**16:
        raise ConfigError(f"--{name}={port} is not a port: 0 for none, or 1 to 65535")
    return port or None


def _tls_contents(file: str) -> TlsContents:
    proto: Any = read_text_proto(file, message_class("SSLConfig")())
    if not proto.server_key or not proto.server_cert:
        raise ConfigError(f"{file} needs server_key and server_cert, both as PEM contents")
    return TlsContents(
        server_key=proto.server_key,
        server_cert=proto.server_cert,
        custom_ca=proto.custom_ca,
        client_verify=proto.client_verify,
    )


def _channel_arguments(text: str) -> dict[str, int | str]:
    arguments: dict[str, int | str] = {}
    for part in comma_separated(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"--grpc_channel_arguments: {part!r} has no value; write name=value,name=value")
        try:
            arguments[name] = int(value)
        except ValueError:
            arguments[name] = value
    return arguments


def _rest_config(flags: ParsedFlags, grpc: GrpcConfig) -> RestConfig:
    port, asked = _port(flags, "rest_api_port"), "rest_api_port" in flags
    if port is not None and port == grpc.port:
        message = "server_options.http_port cannot be same as grpc_port. Please use a different port for HTTP/REST API."
        if asked:
            raise ConfigError(message)
        logger.warning("%s Skipped exporting HTTP/REST API.", message)
        port = None
    timeout = flags.number("rest_api_timeout_in_ms")
    return RestConfig(
        port=port,
        hosts=_hosts(flags),
        required="rest_api_port" in flags,
        early=flags.on("rest_early"),
        cors=flags.on("rest_api_enable_cors_support"),
        timeout=timeout / 1e3 if timeout > 0 else None,
        tls=_tls_files(flags),
        metrics_path=_metrics_path(flags.text("monitoring_config_file"), port),
        sagemaker=flags.on("sagemaker"),
        sagemaker_default_model=flags.text("sagemaker_default_model"),
    )


def _tls_files(flags: ParsedFlags) -> TlsFiles | None:
    paths = {kind: flags.text(f"rest_tls_{kind}_file") for kind in ("cert", "key", "client_ca")}
    if not any(paths.values()):
        return None
    if not paths["cert"] or not paths["key"]:
        raise ConfigError("TLS on the REST port needs both --rest_tls_cert_file and --rest_tls_key_file")
    for kind, path in paths.items():
        if path and not os.path.isfile(path):
            raise ConfigError(f"--rest_tls_{kind}_file: there is no file {path}", code=Code.NOT_FOUND)
    return TlsFiles(
        cert=Path(paths["cert"]),
        key=Path(paths["key"]),
        client_ca=Path(paths["client_ca"]) if paths["client_ca"] else None,
    )


def _metrics_path(file: str, port: int | None) -> str | None:
    """The path of the metrics: a file may change the path or turn metrics off.

    TensorFlow Serving has no metrics without a file.
    """
    if not file:
        return None if port is None else DEFAULT_METRICS_PATH
    proto: Any = read_text_proto(file, message_class("MonitoringConfig")())
    if not proto.prometheus_config.enable:
        return None
    if port is None:
        logger.warning(
            "--monitoring_config_file is ignored: the metrics are served on the REST port, and there is none"
        )
        return None
    return proto.prometheus_config.path or DEFAULT_METRICS_PATH
