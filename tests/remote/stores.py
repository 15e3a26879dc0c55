"""Stores that run as processes of their own, for tests: what is in them, and whether they are up."""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.support.programs import free_port, wait_until

FAST = {"remote_poll_interval": 0.1, "settle": 0.05, "remote_timeout": 10.0, "watch": False}
"""Options with which a test need not wait long."""


class _Process:
    """A server that can be killed and started again on its port."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        assert self._process is None
        self._process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: _answers(self.port))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


class WebStore(_Process):
    """`python -m http.server` over a directory: no ranges, no ETags, times of whole seconds."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        bind = ["--bind", "127.0.0.1", str(self.port)]
        return [sys.executable, "-m", "http.server", "--directory", str(self.directory), *bind]

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def publish(self, saved: Path, path: str) -> None:
        """Put a version in place by one rename."""
        stage = self.directory.parent / f"stage-{path.replace('/', '-')}"
        shutil.copytree(saved, stage)
        (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
        stage.rename(self.directory / path)


class ObjectStore(_Process):
    """moto's server of S3. What it holds is lost with its process."""

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        super().__init__()
        self.bucket = ""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    @property
    def storage_options(self) -> dict[str, Any]:
        return {"key": "a-key", "secret": "a-secret", "endpoint_url": f"http://127.0.0.1:{self.port}"}

    @property
    def registry_options(self) -> dict[str, Any]:
        return {"remote_storage_options": {"s3": self.storage_options}}

    @property
    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="a-key",
            aws_secret_access_key="a-secret",
            region_name="us-east-1",
        )

    def new_bucket(self) -> None:
        self.bucket = f"bucket-{next(self._numbers)}"
        self.client.create_bucket(Bucket=self.bucket)

    def url(self, path: str = "") -> str:
        return f"s3://{self.bucket}/{path}"

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def publish(self, saved: Path, path: str) -> None:
        """Upload a version, one object after the other."""
        for key, data in files_of(saved).items():
            self.put(f"{path}/{key}", data)

    def remove(self, prefix: str) -> None:
        client = self.client
        listed = client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])
        for item in listed:
            client.delete_object(Bucket=self.bucket, Key=item["Key"])


def files_of(saved: Path) -> dict[str, bytes]:
    """Contents by relative path."""
    files = sorted(path for path in saved.rglob("*") if path.is_file())
    return {path.relative_to(saved).as_posix(): path.read_bytes() for path in files}


Answer = tuple[int, Mapping[str, str], bytes]


@contextmanager
def scripted_web(answer: Callable[[str, str], Answer]) -> Iterator[str]:
    """A web server in this process that says what `answer(method, path)` says; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self.command, self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - http.server calls it so.

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that has gone away is part of some tests."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def page(*links: str) -> Answer:
    """A directory's page with these links."""
    body = "".join(f'<li><a href="{link}">{link}</a></li>' for link in links)
    return 200, {"Content-Type": "text/html"}, f"<html><body>{body}</body></html>".encode()


def page_of(files: Mapping[str, bytes], directory: str) -> Answer:
    """The page of a directory of a version with these files; `variables/`, or empty for the version itself."""
    below = [key.removeprefix(directory) for key in files if key.startswith(directory)]
    return page(*sorted({key if "/" not in key else key.partition("/")[0] + "/" for key in below}))
