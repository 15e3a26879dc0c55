"""Two models, two versions, one config file that the server re-reads: update and roll back by editing it.

python -m examples.config_rollback models/      (trains what is missing there, then starts a server by itself)
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from examples.digits.swap import train_mnist_style
from examples.digits.train import export, load_digits, train

CONFIG = """
model_config_list {{
  config {{
    name: "digits" base_path: "{models}/digits" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: {version} }} }}
  }}
  config {{ name: "mnist" base_path: "{models}/mnist" model_platform: "tensorflow" }}
}}
"""


class Client(threading.Thread):
    """Asks for digits without a pause and keeps count."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.body = json.dumps({"instances": load_digits().held_out_images[:1].tolist()}).encode()
        self.answered = 0
        self.lost: list[str] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                urllib.request.urlopen(self.url + ":predict", self.body, timeout=30).read()
                self.answered += 1
            except OSError as error:
                self.lost.append(str(error))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def states(url: str) -> dict[str, str]:
    with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url, timeout=5) as response:
        return {entry["version"]: entry["state"] for entry in json.load(response)["model_version_status"]}
    return {}


def wait_for(url: str, version: int, server: subprocess.Popen[bytes]) -> None:
    """Until `version` is the one and only that serves."""
    while [number for number, state in states(url).items() if state == "AVAILABLE"] != [str(version)]:
        assert server.poll() is None, "the server ended"
        time.sleep(0.1)


@contextlib.contextmanager
def server(config: Path, rest_port: int) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [f"--model_config_file={config}", "--model_config_file_poll_wait_seconds=1", "--enable_batching"]
    ports = [f"--port={free_port()}", f"--rest_api_port={rest_port}"]
    process = subprocess.Popen([sys.executable, "-m", "embedserve", *arguments, *ports], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        print("server ended with", process.wait(60))


def write(config: Path, models: Path, version: int) -> None:
    """Into place in one step, so that the server never reads half a file."""
    new = config.with_suffix(".new")
    new.write_text(CONFIG.format(models=models, version=version))
    os.replace(new, config)


def main(models: Path) -> None:
    for version, (hidden, epochs) in {1: (8, 4), 2: (32, 10)}.items():
        if not (models / f"digits/{version}").exists():
            export(train(hidden, epochs), models / f"digits/{version}")
    if not (models / "mnist/1").exists():
        train_mnist_style(models / "mnist/1")

    config, rest_port = models / "models.config", free_port()
    url = f"http://localhost:{rest_port}/v1/models/digits"
    write(config, models, version=1)
    with server(config, rest_port) as process:
        wait_for(url, 1, process)
        clients = [Client(url) for _ in range(4)]
        for client in clients:
            client.start()
        for version, what in ((2, "updated"), (1, "rolled back")):
            write(config, models, version)
            start = time.perf_counter()
            wait_for(url, version, process)
            print(f"{what} to version {version}, {time.perf_counter() - start:.1f} s after the edit")
        for client in clients:
            client.stopped.set()
            client.join()
        print(f"{sum(client.answered for client in clients)} requests answered meanwhile,", end=" ")
        print(f"{sum(len(client.lost) for client in clients)} lost")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
