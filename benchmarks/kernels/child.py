"""What runs hostile cases, in a process that they may end: each case is announced before it is run.

The process is a fork of one that has imported TensorFlow and has run nothing of it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from benchmarks.kernels.cases import Unbuildable, make_feeds, make_program

__all__ = ["Case", "Plan", "cases_of", "run_child"]

v1 = tf.compat.v1

_FEEDS = 20
"""Cases of one graph: making a graph and its session costs as much as so many runs."""
_MEMORY = 2**30
"""Bytes of private memory that a case may take: more is refused by the kernel, as the size of an output."""


@dataclass(frozen=True)
class Case:
    """One graph and its feeds."""

    name: str
    number: int
    program: Any
    feeds: dict[Any, Any]

    def __str__(self) -> str:
        fed = "; ".join(f"{list(a.shape)} {_short(a)}" for a in self.feeds.values())
        return f"{self.program.text} <- {fed}"


def _short(array: Any) -> str:
    return str(array.reshape(-1)[:8].tolist())


@dataclass(frozen=True)
class Plan:
    """Which cases: of one target, from `start` to `end`."""

    name: str
    start: int
    end: int
    seed: int


def cases_of(plan: Plan) -> Iterator[Case]:
    """The cases of a plan. Equal plans have equal cases."""
    number = plan.start - plan.start % _FEEDS
    while number < plan.end:
        r = random.Random(f"{plan.seed} {plan.name} {number}")
        program = make_program(plan.name, r)
        for at in range(number, number + _FEEDS):
            feeds = make_feeds(program, r)
            if plan.start <= at < plan.end:
                yield Case(plan.name, at, program, feeds)
        number += _FEEDS


def run_child(plans: list[Plan], pipe: int, errors: int) -> None:
    """Run every case of `plans` and tell `pipe`, one JSON line each: what is about to run, and what came of it."""
    os.dup2(errors, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for plan in plans:
        try:
            _run_plan(plan, pipe)
        except Unbuildable:
            _tell(pipe, {"name": plan.name, "unbuildable": True})


def _run_plan(plan: Plan, pipe: int) -> None:
    session = None
    for case in cases_of(plan):
        if session is None or session.graph is not case.program.graph:
            if session is not None:
                session.close()
            config = v1.ConfigProto(intra_op_parallelism_threads=2, inter_op_parallelism_threads=1)
            session = v1.Session(graph=case.program.graph, config=config)
        _tell(pipe, {"name": case.name, "number": case.number, "text": str(case)})
        try:
            session.run(case.program.fetches, case.feeds)
        except tf.errors.OpError as error:
            answer = type(error).__name__
        except (TypeError, ValueError) as error:  # An output that numpy cannot hold.
            answer = type(error).__name__
        else:
            answer = "OK"
        _tell(pipe, {"answer": answer})
    if session is not None:
        session.close()


def _tell(pipe: int, message: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(message).encode() + b"\n")
