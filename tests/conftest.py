"""What holds for every test: nothing blocks an event loop, CI skips nothing, tests that share servers stay together.

Decides also which tests `--quick` leaves out, and fails a test that starts Python without the mark `slow`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Every Python that a test starts begins with `tests/support/site/sitecustomize.py`, and finds the client.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [
        f"{Path(__file__).parent}/support/site",
        f"{Path(__file__).parents[1]}/clients/python",
        os.environ.get("PYTHONPATH", ""),
    ]
)

import hypothesis  # Before anything is frozen: an import of it asks the collector who refers to what.
import pytest
from blockbuster import BlockBuster
from xdist.scheduler import LoadScopeScheduling

import embedserve
from tests.support import warm
from tests.support.programs import PYTHONPATH, run_program

# Imports read files wherever they happen to run first, and a log record may look up the source line it came from.
_MAY_READ = (
    ("<frozen importlib._bootstrap>", {"_find_and_load"}),
    ("logging/__init__.py", {"emit", "findCaller"}),
    ("embedserve/config/location.py", {"absolute"}),
    ("traceback.py", {"format_exception", "print_exception", "extract"}),
)

# Directories whose tests share processes that took long to start, the longest first.
_TOGETHER = ("ray", "conformance", "interop")
# Files whose tests share nothing and wait for real time-outs: each process takes some, and the first ones.
_WAITING = frozenset({"tests/http/test_protocol.py", "tests/http/test_admission.py"})

# Directories whose every test starts servers, a browser or Ray.
_SLOW_DIRECTORIES = {Path(__file__).parent / name for name in ("benchmarks", "e2e", "examples", "interop", "ray")}
# Fixtures that start Python: a web server, an object store, the training of a model.
_SLOW_FIXTURES = frozenset({"bucket", "web", "digit_models"})
_SLOW_MODULE = re.compile(r"^pytestmark = .*\bmark\.slow\b", re.MULTILINE)
# What Python processes this process has started, in order.
_python_starts: list[str] = []


def _note_python_starts(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and str(arguments[0]) == sys.executable:
        _python_starts.append(" ".join(map(str, arguments[1])))
    elif event == "os.fork":
        _python_starts.append("os.fork()")


sys.addaudithook(_note_python_starts)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out the tests that are marked slow")


def pytest_configure(config: pytest.Config) -> None:
    """Offer warm starts to the run. Under `--quick`, try few examples where a test asks for no number of them."""
    if warm.SOCKET not in os.environ:
        stack = contextlib.ExitStack()
        stack.enter_context(warm.offered(PYTHONPATH))
        config.add_cleanup(stack.close)
    if config.getoption("--quick"):
        hypothesis.settings.register_profile("quick", max_examples=20)
        hypothesis.settings.load_profile("quick")


def _is_slow(path: Path) -> bool:
    """Whether all tests of a module are slow: told from its text, because some imports alone take seconds."""
    return not _SLOW_DIRECTORIES.isdisjoint(path.parents) or bool(_SLOW_MODULE.search(path.read_text()))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Under `--quick`, do not even import the modules that are slow."""
    left_out = config.getoption("--quick") and collection_path.name.startswith("test_") and collection_path.is_file()
    return True if left_out and _is_slow(collection_path) else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Collect without the garbage collector, which would take a third of the time, and not look at the tests again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


class _ByShared(LoadScopeScheduling):
    """Deals out whole files, whole directories where their files share more, and single tests that wait."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file in _WAITING:
            return nodeid
        return next((name for name in _TOGETHER if file.startswith(f"tests/{name}/")), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Say which tests run in one process, one after the other; their order is that of the collection."""
    config.option.loadscopereorder = False  # Else files with few tests come last, and those take longest.
    return _ByShared(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark and leave out slow tests; begin with what takes longest, so that no process is left alone with it."""
    slow = {path for path in {item.path for item in items} if _is_slow(path)}
    for item in items:
        if item.path in slow or not _SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    if config.getoption("--quick"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    _python_starts.clear()  # Those of imports.
    order = {name: place for place, name in enumerate(_TOGETHER)}

    def place(item: pytest.Item) -> int:
        if item.nodeid.partition("::")[0] in _WAITING:
            return len(order) + 2
        later = 0 if not _SLOW_DIRECTORIES.isdisjoint(item.path.parents) else 1 if item.path in slow else 3
        return order.get(item.path.parent.name, len(order) + later)

    items.sort(key=place)


@pytest.fixture(autouse=True, scope="module")
def frozen() -> Iterator[None]:
    """Keep what a module leaves for good out of the collector's sight: each unload of a model is a full collection."""
    yield
    gc.collect()
    gc.freeze()


def _make_detector() -> BlockBuster:
    detector = BlockBuster([embedserve])
    for function in detector.functions.values():
        for file_name, names in _MAY_READ:
            function.can_block_in(file_name, names)
    # A lock held for a few instructions (queue.SimpleQueue, logging, thread start) is not what this is about.
    for name in [name for name in detector.functions if name.startswith("threading.Lock")]:
        del detector.functions[name]
    return detector


_detector = _make_detector()


@pytest.fixture(autouse=True)
def blockbuster(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Make a blocking call on a running loop raise, wherever embedserve's code is in the stack.

    `@pytest.mark.may_block` turns it off for tests whose subject is a blocking call.
    """
    if request.node.get_closest_marker("may_block"):
        yield None
        return
    _detector.activate()
    try:
        yield _detector
    finally:
        _detector.deactivate()


@pytest.fixture(scope="session")
def digit_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with `digits/1` in it, really trained."""
    models = tmp_path_factory.mktemp("trained") / "models"
    run_program("-m", "examples.digits.train", models / "digits" / "1", "--hidden", 16, "--epochs", 10)
    return models


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Name the tests that failed in a run that went to its end, a line each, for `scripts.two_tries`."""
    path = os.environ.pop("FAILED_TESTS", None)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if path is None or reporter is None or hasattr(session.config, "workerinput"):
        return
    if not (session.shouldstop or session.shouldfail):
        reports = [*reporter.getreports("failed"), *reporter.getreports("error")]
        Path(path).write_text("".join(f"{name}\n" for name in dict.fromkeys(report.nodeid for report in reports)))


def _skip_is_a_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: CI must have what every test needs, but: {reason}"


def _unmarked_start_is_a_failure(item: pytest.Item, report: pytest.TestReport) -> None:
    if report.passed and _python_starts and not item.get_closest_marker("slow"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} starts Python and must be marked slow: {_python_starts[0]}"
    _python_starts.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    _skip_is_a_failure(report)
    _unmarked_start_is_a_failure(item, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    _skip_is_a_failure(report)
    return report
