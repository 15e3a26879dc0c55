"""A page in a real browser calls the model by gRPC-Web."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from tests.support.programs import free_port, program

pytestmark = pytest.mark.timeout(300)

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--virtual-time-budget=30000",
]


def serves(url: str) -> Callable[[], bool]:
    def up() -> bool:
        try:
            with urlopen(url, timeout=5) as page:
                return bool(page.status == 200)
        except OSError:
            return False

    return up


@dataclass
class Pages:
    """Two servers of the same page: `own` lets `own`'s and `other`'s pages call it, `other` only its own."""

    own: str
    other: str


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    ports = [free_port(), free_port()]
    own, other = (f"http://127.0.0.1:{port}" for port in ports)
    command = ("-m", "uvicorn", "examples.browser.app:app", "--log-level", "warning", "--port")
    with (
        program(*command, ports[0], until=serves(f"{own}/"), PAGE_ORIGINS=f"https://app.example,{other}"),
        program(*command, ports[1], until=serves(f"{other}/")),
    ):
        yield Pages(own, other)


def shown(url: str, profile: Path) -> str:
    """What the page at `url` shows as the answer."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("chromium is not installed")
    done = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<output id="y">(.*?)</output>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return html.unescape(found[1])


def test_a_page_asks_the_model_on_its_own_port(pages: Pages, tmp_path: Path) -> None:
    assert shown(f"{pages.own}/?x=1,2,5", tmp_path) == "2.5, 3, 4.5"


def test_a_page_shows_the_status_of_a_call_that_fails(pages: Pages, tmp_path: Path) -> None:
    answer = shown(f"{pages.own}/?model=n%C3%B6", tmp_path)
    assert answer.startswith("failed: status 5: Servable not found for request: Latest(nö)")


def test_a_page_of_another_origin_may_call_if_it_is_listed(pages: Pages, tmp_path: Path) -> None:
    assert shown(f"{pages.other}/?x=8&server={quote(pages.own, safe='')}", tmp_path) == "6"


def test_a_page_of_another_origin_may_not_call_otherwise(pages: Pages, tmp_path: Path) -> None:
    assert shown(f"{pages.own}/?x=8&server={quote(pages.other, safe='')}", tmp_path) == "failed: Failed to fetch"
