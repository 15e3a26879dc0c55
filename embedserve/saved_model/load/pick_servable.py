"""Function or session? Measures a small model both ways at load, where only speed decides.

A session runs small models three times as fast, and other models hardly slower (docs/performance.md). However, only a
time limit stops a run of a session, and the second load costs time and memory for large models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from embedserve.saved_model.judge import compare
from embedserve.saved_model.run import run_time
from embedserve.saved_model.run.function import FunctionServable
from embedserve.saved_model.run.session import SessionServable
from embedserve.servable import Servable, Tensors

__all__ = ["is_worth_a_try", "session_if_faster"]

logger = logging.getLogger("embedserve")

# Bytes. A larger model is not loaded twice. `_SMALL` bounds all files, as TensorFlow keeps the memory of a load for the
# next load; `_SMALL_GRAPH` bounds the graph file, as the graph takes the time of a load.
_SMALL = 16 * 2**20
_SMALL_GRAPH = 2 * 2**20
# Seconds. In a longer run, the overhead of the call is too small for a second load, and cancelling an abandoned run
# pays.
_LONG_RUN = 0.005
# Number of measurements of each way, taken in turns: the least time is free of the machine's further load.
_TURNS = 2
# Seconds per compared run.
_PATIENCE = 5.0


def is_worth_a_try(path: Path, seconds: Mapping[str, float]) -> bool:
    """Whether a version is small enough for a second load, with runs so short that the overhead of a call counts.

    Args:
        path: Version directory.
        seconds: Duration of a run, by signature.
    """
    if not seconds or max(seconds.values()) >= _LONG_RUN:
        return False
    sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    graph = path / "saved_model.pb"
    return sum(sizes) <= _SMALL and graph.is_file() and graph.stat().st_size <= _SMALL_GRAPH


def session_if_faster(
    function: FunctionServable, open_session: Callable[[], SessionServable], requests: Mapping[str, Tensors]
) -> SessionServable | None:
    """A session servable of the same version, where the session gives the same answers in less time; else None.

    Args:
        function: The loaded servable, with chosen threads.
        open_session: Loads the version again, in a session.
        requests: Inputs of about a request's size by signature; all signatures are stateless.
    """
    try:
        session = open_session()
    except Exception as error:
        logger.debug("a graph session cannot load it: %s: %s", type(error).__name__, error)
        return None
    try:
        if _is_faster(session, function, requests):
            return session
    except Exception as error:
        logger.debug("a graph session cannot run it: %s: %s", type(error).__name__, error)
    except BaseException:
        session.close()
        raise
    session.close()
    return None


def _is_faster(session: SessionServable, function: FunctionServable, requests: Mapping[str, Tensors]) -> bool:
    if not all(_same_answers(function, session, name, inputs) for name, inputs in requests.items()):
        logger.warning("a graph session gives other answers than its functions do")
        return False
    for name, inputs in requests.items():
        session.choose_threads(name, inputs)
    turns = [(_all_runs(function, requests), _all_runs(session, requests)) for _ in range(_TURNS)]
    return min(found for _, found in turns) < min(before for before, _ in turns)


def _all_runs(servable: Servable, requests: Mapping[str, Tensors]) -> float:
    return sum(run_time.fastest(partial(servable.run, name, inputs)) for name, inputs in requests.items())


def _same_answers(first: Servable, second: Servable, name: str, inputs: Tensors) -> bool:
    expected = first.run(name, inputs, timeout=_PATIENCE)
    found = second.run(name, inputs, timeout=_PATIENCE)
    return all(compare.equal(found[output], array) for output, array in expected.items())
