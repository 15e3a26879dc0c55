"""HTTP clients of every kind ask the listener for the same predictions: curl, nghttp, h2load, ab, httpx, Java, Node.

The listener is one port of `HttpProtocol`, a real process with a real SavedModel.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.interop.rpcs import MODEL

pytestmark = pytest.mark.timeout(240)

PROGRAMS = Path(__file__).parent / "programs"
LARGE = 300_000
"""Numbers of a large body: some MB, more than every buffer and window on the way."""


class Question(NamedTuple):
    """A Predict over REST: where it goes, its body as a file, and its answer."""

    url: str
    file: Path
    answer: list[list[float]]

    def is_answered_by(self, body: str | bytes) -> bool:
        found: list[list[float]] = json.loads(body)["predictions"]
        return found == self.answer


Ask = Callable[[int], Question]


@pytest.fixture
def ask(ports: Mapping[str, int], tmp_path: Path) -> Ask:
    """`ask(count)` is a question of so many numbers to the listener."""

    def question(count: int) -> Question:
        file = tmp_path / f"{count}.json"
        file.write_text(json.dumps({"instances": [[float(number)] for number in range(count)]}))
        url = f"http://127.0.0.1:{ports['HttpProtocol']}/v1/models/{MODEL}:predict"
        return Question(url, file, [[number / 2 + 2] for number in range(count)])

    return question


def output_of(*command: object) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.stderr or done.stdout)[-3000:]
    return done.stdout


CURL: Mapping[str, tuple[Sequence[str], str]] = {
    "HTTP/1.0": (("--http1.0",), "1.1"),
    "HTTP/1.1": (("--http1.1",), "1.1"),
    "an upgrade to h2c": (("--http2",), "1.1"),
    "HTTP/2 with prior knowledge": (("--http2-prior-knowledge",), "2"),
    "chunks": (("--http1.1", "-H", "Transfer-Encoding: chunked"), "1.1"),
    "chunks and an upgrade": (("--http2", "-H", "Transfer-Encoding: chunked"), "1.1"),
    "Expect": (("--http1.1", "-H", "Expect: 100-continue", "--expect100-timeout", "60"), "1.1"),
    "Expect over HTTP/2": (("--http2-prior-knowledge", "-H", "Expect: 100-continue"), "2"),
    "a closed connection": (("--http1.1", "-H", "Connection: close"), "1.1"),
    "gzip": (("--http1.1", "--compressed"), "1.1"),
}


@pytest.mark.parametrize(("options", "version"), CURL.values(), ids=CURL)
@pytest.mark.parametrize("count", [2, LARGE])
def test_curl(options: Sequence[str], version: str, count: int, ask: Ask) -> None:
    asked = ask(count)
    end = "\n%{http_version} %{response_code}\n"
    command = ("curl", "-sS", "--max-time", "60", *options, "--data-binary", f"@{asked.file}", "-w", end)
    # The second request goes over the connection of the first. With prior knowledge, Debian's curl (7.88) fails with a
    # second request on any server.
    times = 1 if version == "2" else 2
    found = output_of(*command, *[asked.url] * times).split("\n")
    assert found[1::2] == [f"{version} 200"] * times
    assert all(asked.is_answered_by(body) for body in found[:-1:2])


@pytest.mark.parametrize("count", [2, LARGE])
def test_nghttp(count: int, ask: Ask) -> None:
    asked = ask(count)
    body = output_of("nghttp", "-d", asked.file, "-H", ":method: POST", asked.url)
    assert asked.is_answered_by(body)


@pytest.mark.parametrize("options", [("--h1",), ("-m", "10")], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("count", [2, 3_000])
def test_h2load(options: Sequence[str], count: int, ask: Ask) -> None:
    asked = ask(count)
    printed = output_of("h2load", *options, "-n", 200, "-c", 8, "-d", asked.file, asked.url)
    assert "200 total, 200 started, 200 done, 200 succeeded, 0 failed, 0 errored, 0 timeout" in printed


@pytest.mark.parametrize("options", [(), ("-k",)], ids=["HTTP/1.0", "HTTP/1.0 with keep-alive"])
def test_ab(options: Sequence[str], ask: Ask) -> None:
    asked = ask(3_000)
    printed = output_of("ab", "-q", *options, "-n", 200, "-c", 8, "-p", asked.file, "-T", "application/json", asked.url)
    assert "Complete requests:      200" in printed
    assert "Failed requests:        0" in printed
    assert "Non-2xx" not in printed
    assert ("Keep-Alive requests:    200" in printed) == ("-k" in options)


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_httpx(http2: bool, ask: Ask) -> None:
    with httpx.Client(http1=not http2, http2=http2, timeout=60) as client:
        for count in (2, LARGE, 2):
            asked = ask(count)
            content = asked.file.read_bytes()
            answer = client.post(asked.url, content=content)
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            assert asked.is_answered_by(answer.content)
            pieces = (content[at : at + 10_000] for at in range(0, len(content), 10_000))
            assert asked.is_answered_by(client.post(asked.url, content=pieces).content)


@pytest.mark.parametrize("count", [2, LARGE])
def test_the_jdks_client(count: int, ask: Ask) -> None:
    """Its default client asks for an upgrade to h2c with each POST, and sends the body all the same."""
    asked = ask(count)
    lines = output_of("java", PROGRAMS / "Client.java", asked.url, asked.file).splitlines()
    found = [line.split("\t") for line in lines]
    assert [name for name, *_ in found[:7]] == [
        "default",
        "default again",
        "default, chunked",
        "default, expect",
        "HTTP/1.1",
        "HTTP/1.1, chunked",
        "HTTP/1.1, expect",
    ]
    assert len(found) == 27
    for name, version, status, body in found:
        assert (version, status) == ("HTTP_1_1", "200"), (name, body[:300])
        assert asked.is_answered_by(body), name


@pytest.mark.parametrize("count", [2, LARGE])
def test_nodes_clients(count: int, ask: Ask) -> None:
    asked = ask(count)
    found = [
        line.split("\t") for line in output_of("node", PROGRAMS / "client.mjs", asked.url, asked.file).splitlines()
    ]
    names = ["length", "chunked", "expect", "upgrade", "fetch", *["HTTP/2"] * 20]
    assert [name for name, *_ in found] == names
    for name, status, body in found:
        assert status == "200", (name, body[:300])
        assert asked.is_answered_by(body), name
