"""What holds for every test: nothing blocks an event loop, CI skips nothing, and who shares servers stays together."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
from blockbuster import BlockBuster
from xdist.scheduler import LoadScopeScheduling

import embedserve
from tests.support.programs import run_program

# Imports read files wherever they happen to run first, and a log record may look up the source line it came from.
_MAY_READ = (
    ("<frozen importlib._bootstrap>", {"_find_and_load"}),
    ("logging/__init__.py", {"emit", "findCaller"}),
    ("embedserve/config.py", {"absolute"}),
    ("traceback.py", {"format_exception", "print_exception", "extract"}),
)

# Directories whose tests share processes that took long to start, the longest first.
_TOGETHER = ("ray", "conformance", "interop")


class _ByShared(LoadScopeScheduling):
    """Deals out whole files, and whole directories where their files share more."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((name for name in _TOGETHER if file.startswith(f"tests/{name}/")), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Say which tests run in one process, one after the other."""
    return _ByShared(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what is dealt out in the largest pieces, so that no process is left alone with one at the end."""
    order = {name: place for place, name in enumerate(_TOGETHER)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))


@pytest.fixture(autouse=True)
def blockbuster(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Make a blocking call on a running loop raise, wherever embedserve's code is in the stack.

    `@pytest.mark.may_block` turns it off for tests whose subject is a blocking call.
    """
    if request.node.get_closest_marker("may_block"):
        yield None
        return
    detector = BlockBuster([embedserve])
    for function in detector.functions.values():
        for file_name, names in _MAY_READ:
            function.can_block_in(file_name, names)
    # A lock held for a few instructions (queue.SimpleQueue, logging, thread start) is not what this is about.
    for name in [name for name in detector.functions if name.startswith("threading.Lock")]:
        del detector.functions[name]
    detector.activate()
    try:
        yield detector
    finally:
        detector.deactivate()


@pytest.fixture(scope="session")
def digit_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with `digits/1` in it, really trained."""
    models = tmp_path_factory.mktemp("trained") / "models"
    run_program("-m", "examples.digits.train", models / "digits" / "1", "--hidden", 16, "--epochs", 10)
    return models


def _skip_is_a_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: CI must have what every test needs, but: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    _skip_is_a_failure(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    _skip_is_a_failure(report)
    return report
