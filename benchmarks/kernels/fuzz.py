"""Runs hostile cases of every kernel in processes of their own, and counts those that end or hang the process.

Called by `python -m benchmarks.fuzz --kernels`.
"""

from __future__ import annotations

import json
import os
import random
import re
import selectors
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.kernels.cases import targets
from benchmarks.kernels.child import Plan, run_child

__all__ = ["Findings", "fuzz"]

_HANG = 6.0
"""Seconds without an answer after which a case counts as one that never ends; the slowest others take 2 s."""
_ENOUGH = 2
"""Deaths and hangs of one operation after which the rest of its cases are left out."""


@dataclass
class Bad:
    """A case that ended or hung the process."""

    name: str
    number: int
    text: str
    how: str


@dataclass
class Findings:
    """What came of all cases.

    Attributes:
        answers: Cases by operation and outcome.
        bad: Those that ended or hung their process.
        unbuildable: Operations for which no graph was found.
    """

    answers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    bad: list[Bad] = field(default_factory=list)
    unbuildable: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return sum(sum(counter.values()) for counter in self.answers.values())

    def report(self) -> str:
        answers: Counter[str] = sum(self.answers.values(), Counter())
        by_op: dict[str, list[Bad]] = defaultdict(list)
        for bad in self.bad:
            by_op[bad.name].append(bad)
        deaths = sum(not bad.how.startswith("hang") for bad in self.bad)
        lines = [
            f"{self.cases:,} inputs to {len(self.answers)} operations ({len(self.unbuildable)} could not be set up): "
            f"{deaths} process deaths, {len(self.bad) - deaths} hangs, in {len(by_op)} operations",
            *(f"  {answer:28} {count:9,}" for answer, count in answers.most_common()),
            f"operations that answered at least once: {sum(c['OK'] > 0 for c in self.answers.values())}",
        ]
        for name, found in sorted(by_op.items()):
            lines.append(f"{name}: {len(found)}")
            for bad in {bad.how: bad for bad in found}.values():
                lines += [f"    {bad.how}", f"        case {bad.number}: {bad.text[:400]}"]
        return "\n".join(lines)


@dataclass
class _Child:
    """A process that runs cases, and which of them it is at."""

    pid: int
    pipe: int
    errors: int
    plans: list[Plan]
    buffer: bytes = b""
    at: dict[str, object] | None = None
    since: float = 0.0


def fuzz(names: Sequence[str], cases: int, seed: int, seconds: float, jobs: int = 2) -> Findings:
    """Run `cases` hostile cases of each target, at most for `seconds`; of all targets where `names` is empty."""
    found = Findings()
    todo = [Plan(name, 0, cases, seed) for name in (names or targets())]
    random.Random(seed).shuffle(todo)  # So that a short run is a sample of all.
    end = time.monotonic() + seconds
    children: dict[int, _Child] = {}
    selector = selectors.DefaultSelector()
    size = max(1, min(25, len(todo) // jobs))
    while (todo and time.monotonic() < end) or children:
        while todo and len(children) < jobs and time.monotonic() < end:
            child = _start(todo[:size])
            del todo[:size]
            children[child.pipe] = child
            selector.register(child.pipe, selectors.EVENT_READ)
        for key, _ in selector.select(0.5):
            child = children[key.fd]
            data = os.read(child.pipe, 2**16)
            if data:
                _hear(child, data, found)
                continue
            selector.unregister(child.pipe)
            del children[child.pipe]
            todo[:0] = _buried(child, found)
        for child in children.values():
            late = time.monotonic() - child.since
            if late > _HANG and child.at is not None:
                os.kill(child.pid, signal.SIGKILL)
    return found


def _start(plans: list[Plan]) -> _Child:
    read, write = os.pipe()
    errors = os.memfd_create("stderr")
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            run_child(plans, write, errors)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(77)
        os._exit(0)
    os.close(write)
    return _Child(pid, read, errors, plans, since=time.monotonic())


def _hear(child: _Child, data: bytes, found: Findings) -> None:
    *lines, child.buffer = (child.buffer + data).split(b"\n")
    for line in lines:
        message = json.loads(line)
        child.since = time.monotonic()
        if "answer" in message:
            assert child.at is not None
            found.answers[str(child.at["name"])][message["answer"]] += 1
            child.at = None
        elif "unbuildable" in message:
            found.unbuildable.append(message["name"])
        else:
            child.at = message


def _buried(child: _Child, found: Findings) -> list[Plan]:
    """After the end of a child: note what ended it, and what of its plans is left."""
    _, status = os.waitpid(child.pid, 0)
    os.close(child.pipe)
    said = os.pread(child.errors, 2**20, 0).decode(errors="replace")
    os.close(child.errors)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return []
    if child.at is None or code == 77:
        raise RuntimeError(f"a child ended between cases ({code}): {said[-2000:]}")
    name, number = str(child.at["name"]), int(str(child.at["number"]))
    how = f"hang: over {_HANG:.0f} s" if code == -signal.SIGKILL else _last_words(code, said)
    found.bad.append(Bad(name, number, str(child.at["text"]), how))
    found.answers[name]["hang" if how.startswith("hang") else "DEATH"] += 1
    index = next(i for i, plan in enumerate(child.plans) if plan.name == name)
    left = child.plans[index + 1 :]
    this = child.plans[index]
    if sum(bad.name == name for bad in found.bad) < _ENOUGH and number + 1 < this.end:
        left.insert(0, Plan(name, number + 1, this.end, this.seed))
    return left


def _last_words(code: int, said: str) -> str:
    fatal = [
        line
        for line in said.splitlines()
        if re.match(r"F\d{4} |.* F tensorflow|.*what\(\)|.*ssertion|.*Check failed", line)
    ]
    words = re.sub(r"^.*?(\S+\.(?:cc|h):\d+\])", r"\1", fatal[-1])[:200] if fatal else said.strip()[-200:]
    return f"{signal.Signals(-code).name if code < 0 else f'exit {code}'}: {words}"
