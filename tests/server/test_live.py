"""`python -m embedserve live`: which server is asked, where, and what counts as alive."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedserve.server import live as live_module
from embedserve.server.live import live, server_arguments
from tests.support.programs import free_port, make_certificates


@contextlib.contextmanager
def answering(status: int, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A REST port whose `/-/live` answers with this status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/-/live" else 404)
            self.end_headers()
            self.wfile.write(b"the body")

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.HTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # A client without a certificate.

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=server.serve_forever, args=[0.01])
        serving.start()
        yield server.server_address[1]
        server.shutdown()
        serving.join()


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1), (404, 1)])
def test_the_status_is_that_of_the_answer(status: int, expected: int, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(status) as port:
        assert live([f"--rest_api_port={port}", "models/"]) == expected
    assert capsys.readouterr().out == f"http://127.0.0.1:{port}/-/live: {status} the body\n"


def test_nobody_who_answers_is_not_alive(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    for flags in ([f"--rest_api_port={port}"], [f"--port={port}", "--rest_api_port=0"]):
        assert live(flags) == 1
        said = capsys.readouterr().out
        assert f"no server answers at 127.0.0.1:{port} (Connection refused)" in said
        assert "Errno" not in said


def test_help_is_printed_and_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*ports: object) -> tuple[bool, str]:
        raise AssertionError("help asks nobody")

    monkeypatch.setattr(live_module, "_ask", asked)
    for flag in ("--help", "-h"):
        assert live([flag]) == 0
        assert capsys.readouterr().out.startswith("usage: python -m embedserve live [flags of the server]")


def test_a_port_that_says_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live_module, "PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert live([f"--rest_api_port={silent.getsockname()[1]}", "--host=127.0.0.1"]) == 1
    assert "timed out" in capsys.readouterr().out


def test_tls_is_followed_and_a_wish_for_certificates_is_a_sign_of_life(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    tls = [f"--rest_tls_cert_file={tmp_path}/server.crt", f"--rest_tls_key_file={tmp_path}/server.key"]
    with answering(200, context) as port:
        assert live([f"--rest_api_port={port}", *tls]) == 0
        assert capsys.readouterr().out.startswith(f"https://127.0.0.1:{port}/-/live: 200")
        assert live([f"--rest_api_port={port}"]) == 1, "plain HTTP is not what the flags say"
    context.load_verify_locations(tmp_path / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    with answering(200, context) as port:
        assert live([f"--rest_api_port={port}", *tls]) == 1
        assert live([f"--rest_api_port={port}", *tls, f"--rest_tls_client_ca_file={tmp_path}/ca.crt"]) == 0
    assert "asks for a certificate" in capsys.readouterr().out


def test_without_a_rest_port_an_open_grpc_port_or_socket_has_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as grpc:
        port = grpc.getsockname()[1]
        assert live([f"--port={port}", "--rest_api_port=0"]) == 0
    assert live([f"--port={port}", "--rest_api_port=0"]) == 1
    path = tmp_path / "s"
    unix = ["--port=0", "--rest_api_port=0", f"--grpc_socket_path={path}"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert live(unix) == 0
    assert live(unix) == 1


def test_flags_that_cannot_be_are_told_from_a_dead_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert live(["--rest_api_prot=1"]) == 255
    assert "did you mean --rest_api_port?" in capsys.readouterr().out


def test_the_running_servers_own_arguments_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.getcwd()
    commands = {
        1: ["/sbin/tini", "--", "tf_serving_entrypoint.sh"],
        7: ["python", "-m", "embedserve", "tune", "/models/m"],
        8: ["python", "-m", "embedserve.server.workers", "3", "4"],
        9: ["python", "-m", "embedserve", "live"],
        10: ["/usr/bin/python3", "-m", "embedserve", "/models", "--rest_api_port=9001"],
        11: ["python", "/usr/bin/embedserve", "--port=1"],
        "self": ["python", "-m", "embedserve", "--port=2"],
    }
    for number, words in commands.items():
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_bytes("".join(f"{word}\0" for word in words).encode())
    (tmp_path / "work").mkdir()
    (tmp_path / "10" / "cwd").symlink_to(tmp_path / "work")
    monkeypatch.chdir(before)
    assert server_arguments(tmp_path) == ["/models", "--rest_api_port=9001"]
    assert os.getcwd() == str(tmp_path / "work"), "its flags may name files from there"
    (tmp_path / "10" / "cmdline").write_bytes(b"")
    assert server_arguments(tmp_path) == ["--port=1"]
    (tmp_path / "11" / "cmdline").unlink()
    assert server_arguments(tmp_path) == []
    assert server_arguments(tmp_path / "no such directory") == []
