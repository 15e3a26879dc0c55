"""Writes Envoy's configuration files: pyvoy's configuration, with defaults changed for a model server.

The module knows no process.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embedserve.errors import ConfigError
from embedserve.server.config import PyvoyConfig, TlsContents, TlsFiles
from embedserve.server.listening import EVERY_IPV6

__all__ = ["ADMIN_SOCKET", "CONFIG_FILE", "envoy_environment", "forget_secrets", "write_configuration"]

APPLICATION = "embedserve.server.pyvoy.application:app"
# Names of the files in the private directory.
ADMIN_SOCKET = "admin.sock"
CONFIG_FILE = "envoy.json"
_KEY, _CERT, _CA = "key.pem", "cert.pem", "ca.pem"


def write_configuration(config: PyvoyConfig, directory: Path, hosts: Sequence[str]) -> None:
    """Write all files for Envoy into `directory`, private to the user; Envoy listens on the addresses `hosts`.

    Raises:
        ConfigError: Envoy could not use the certificates.
    """
    from pyvoy import PyvoyServer

    tls = _tls_files(config.tls, directory)
    server = PyvoyServer(
        APPLICATION,
        address=hosts[0],
        port=config.port,
        tls_key=None if tls is None else tls.key,
        tls_cert=None if tls is None else tls.cert,
        tls_ca_cert=None if tls is None else tls.client_ca,
        tls_enable_http3=config.http3,
        worker_threads=1,  # A single event loop, because a registry belongs to a single loop.
        lifespan=True,
    )
    configuration = server.get_envoy_config()
    # Pyvoy's admin port lets any local user end the server; a socket in the private directory does not.
    configuration["admin"] = {"address": {"pipe": {"path": str(directory / ADMIN_SOCKET), "mode": 0o600}}}
    for listener in configuration["static_resources"]["listeners"]:
        # With port reuse a second server on the same port would start, and each server would get half of the
        # connections. Envoy's workers need reuse to share a UDP port; the owner of the TCP port has the UDP port too.
        listener["enable_reuse_port"] = "udp_listener_config" in listener
        addresses = [_with_host(listener["address"], host) for host in hosts]
        listener["address"] = addresses[0]
        if more := addresses[1:]:
            listener["additional_addresses"] = [{"address": address} for address in more]
        for manager in _connection_managers(listener):
            # Health watches and long runs are silent for longer than Envoy's default of five minutes.
            manager["stream_idle_timeout"] = "0s"
            manager["generate_request_id"] = False
            manager["server_header_transformation"] = "PASS_THROUGH"
            # Otherwise clients could forge an address in X-Forwarded-For, and `Access` would believe the address.
            manager["use_remote_address"] = True
    (directory / CONFIG_FILE).write_text(json.dumps(configuration))


def _with_host(address: dict[str, Any], host: str) -> dict[str, Any]:
    changed = {**address["socket_address"], "address": host}
    if host == EVERY_IPV6:
        changed["ipv4_compat"] = True
    return {"socket_address": changed}


def _connection_managers(listener: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for chain in listener["filter_chains"]:
        for network_filter in chain["filters"]:
            yield network_filter["typed_config"]


def _tls_files(tls: TlsFiles | TlsContents | None, directory: Path) -> TlsFiles | None:
    """Files for Envoy: Envoy would write inline keys into its log after a failed start."""
    if isinstance(tls, TlsContents):
        written = TlsFiles(
            cert=_secret(directory / _CERT, tls.server_cert),
            key=_secret(directory / _KEY, tls.server_key),
            client_ca=_secret(directory / _CA, tls.custom_ca) if tls.client_verify else None,
        )
        _check(written, "--ssl_config_file")
        return written
    if tls is not None:
        _check(tls, "--rest_tls_cert_file, --rest_tls_key_file, --rest_tls_client_ca_file")
    return tls


def _secret(path: Path, text: str) -> Path:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return path


def _check(tls: TlsFiles, flags: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert, tls.key, password="")
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
    except (OSError, ValueError) as error:
        raise ConfigError(f"unusable key or certificate ({flags}): {error}") from None


def forget_secrets(directory: Path) -> None:
    """Remove the files already read by Envoy, so no secret is left after a kill."""
    for name in (_KEY, _CERT, _CA, CONFIG_FILE):
        (directory / name).unlink(missing_ok=True)


def envoy_environment() -> dict[str, str]:
    """The environment of the process, with additions for running this Python inside Envoy.

    Raises:
        ConfigError: There is no libpython to load into Envoy.
    """
    # The only way in Python; `pyvoy --print-envoy-entrypoint` prints the same environment.
    from pyvoy._server import get_envoy_environ

    environment: dict[str, str] = get_envoy_environ()
    libpython = environment.get("LD_PRELOAD")
    if libpython is None and os.uname().sysname == "Linux":
        raise ConfigError(
            "--server=pyvoy runs Python inside Envoy and needs its shared library, which is not installed: "
            "on Debian apt install libpython3-dev; with pyenv build Python with --enable-shared"
        )
    if libpython is not None and (own := os.environ.get("LD_PRELOAD")):
        environment["LD_PRELOAD"] = f"{libpython} {own}"  # The existing value is an allocator, most likely.
    return {**os.environ, **environment}
