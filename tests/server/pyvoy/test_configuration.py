"""What Envoy is told, and what it is kept from telling others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from embedserve.errors import ConfigError
from embedserve.server.config import PyvoyConfig, TlsContents, TlsFiles
from embedserve.server.pyvoy.configuration import envoy_environment, forget_secrets, write_configuration
from tests.support.programs import make_certificates

pytest.importorskip("pyvoy", reason="the extra embedserve[pyvoy] is not installed")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def written(config: PyvoyConfig, directory: Path, *hosts: str) -> dict[str, Any]:
    write_configuration(config, directory, hosts or ("::",))
    configuration: dict[str, Any] = json.loads((directory / "envoy.json").read_text())
    return configuration


def listeners(configuration: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = configuration["static_resources"]["listeners"]
    return found


def test_the_port_is_ours_alone_and_nobody_elses_to_administer(tmp_path: Path) -> None:
    configuration = written(PyvoyConfig(port=8500), tmp_path)
    assert configuration["admin"] == {"address": {"pipe": {"path": f"{tmp_path}/admin.sock", "mode": 0o600}}}
    (listener,) = listeners(configuration)
    assert listener["enable_reuse_port"] is False
    assert listener["address"]["socket_address"] == {"address": "::", "ipv4_compat": True, "port_value": 8500}


def test_without_ipv6_the_port_is_one_of_ipv4(tmp_path: Path) -> None:
    (listener,) = listeners(written(PyvoyConfig(port=8500), tmp_path, "0.0.0.0"))
    assert listener["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 8500}


def test_each_host_is_an_address_of_every_listener(tmp_path: Path, certificates: Path) -> None:
    tls = TlsFiles(cert=certificates / "server.crt", key=certificates / "server.key")
    both = listeners(written(PyvoyConfig(port=8500, tls=tls, http3=True), tmp_path, "127.0.0.1", "::1"))
    assert len(both) == 2
    for listener in both:
        (more,) = (each["address"]["socket_address"] for each in listener["additional_addresses"])
        assert [listener["address"]["socket_address"]["address"], more["address"]] == ["127.0.0.1", "::1"]
        assert more["port_value"] == 8500


def test_silent_calls_last_on_every_version_of_http(tmp_path: Path, certificates: Path) -> None:
    tls = TlsFiles(cert=certificates / "server.crt", key=certificates / "server.key")
    both = listeners(written(PyvoyConfig(port=8500, tls=tls, http3=True), tmp_path))
    assert [listener["name"] for listener in both] == ["listener", "listener_udp"]
    # Envoy refuses to share a port of UDP among its workers otherwise.
    assert [listener["enable_reuse_port"] for listener in both] == [False, True]
    for listener in both:
        (manager,) = [each["typed_config"] for each in listener["filter_chains"][0]["filters"]]
        assert manager["stream_idle_timeout"] == "0s"
        assert manager["use_remote_address"] is True


def test_keys_are_in_files_that_only_this_user_can_read_until_envoy_has_read_them(
    tmp_path: Path, certificates: Path
) -> None:
    tls = TlsContents(
        server_key=(certificates / "server.key").read_text(),
        server_cert=(certificates / "server.crt").read_text(),
        custom_ca=(certificates / "ca.crt").read_text(),
        client_verify=True,
    )
    (listener,) = listeners(written(PyvoyConfig(port=8500, tls=tls), tmp_path))
    context = listener["filter_chains"][0]["transport_socket"]["typed_config"]
    assert context["require_client_certificate"] is True
    (certificate,) = context["common_tls_context"]["tls_certificates"]
    key = Path(certificate["private_key"]["filename"])
    assert (key.parent, key.read_text(), key.stat().st_mode & 0o777) == (tmp_path, tls.server_key, 0o600)
    forget_secrets(tmp_path)
    assert not list(tmp_path.iterdir())


def test_roots_without_client_verify_ask_no_client_for_a_certificate(tmp_path: Path, certificates: Path) -> None:
    tls = TlsContents(
        server_key=(certificates / "server.key").read_text(),
        server_cert=(certificates / "server.crt").read_text(),
        custom_ca=(certificates / "ca.crt").read_text(),
    )
    (listener,) = listeners(written(PyvoyConfig(port=8500, tls=tls), tmp_path))
    context = listener["filter_chains"][0]["transport_socket"]["typed_config"]
    assert "validation_context" not in context["common_tls_context"]
    assert not context["require_client_certificate"]


@pytest.mark.parametrize(
    ("cert", "key", "client_ca"),
    [("server.crt", "ca.key", None), ("names", "server.key", None), ("server.crt", "server.key", "names")],
    ids=["not a pair", "not a certificate", "not an authority"],
)
def test_material_that_envoy_could_not_use_is_refused_before_it_starts(
    tmp_path: Path, certificates: Path, cert: str, key: str, client_ca: str | None
) -> None:
    tls = TlsFiles(
        cert=certificates / cert,
        key=certificates / key,
        client_ca=None if client_ca is None else certificates / client_ca,
    )
    with pytest.raises(ConfigError, match=r"unusable key or certificate \(--rest_tls_cert_file"):
        written(PyvoyConfig(port=8500, tls=tls), tmp_path)


def test_envoy_gets_this_python_and_what_was_preloaded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/lib/liballocator.so")
    monkeypatch.setenv("OURS", "kept")
    environment = envoy_environment()
    assert environment["OURS"] == "kept"
    assert set(environment["PYTHONPATH"].split(":")) == set(sys.path)
    libpython, allocator = environment["LD_PRELOAD"].split()
    assert "libpython" in libpython
    assert allocator == "/lib/liballocator.so"


def test_a_python_without_its_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvoy._server.get_envoy_environ", lambda: {"PYTHONPATH": ""})
    with pytest.raises(ConfigError, match="needs its shared library, which is not installed"):
        envoy_environment()
