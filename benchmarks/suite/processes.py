"""A server's processes: started on one core, halted while others are measured, ended with all that they started.

Reads /proc, so Linux only. Knows no protocol: whether a server answers is its caller's to find out.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "EMBEDSERVE_BENCHMARK_SERVER"
_TICK = os.sysconf("SC_CLK_TCK")


class ServerFailed(Exception):
    """A server did not start, or ended; the message holds the end of its log."""


@dataclass(frozen=True)
class Stat:
    """What /proc/PID/stat says of a process."""

    pid: int
    parent: int
    session: int
    cpu: float


def stat(pid: int) -> Stat | None:
    """None where there is no such process any more, or only its exit status is left."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in brackets and may hold anything.
    values = text[text.rindex(")") + 2 :].split()
    if values[0] == "Z":
        return None
    # With what ended children have used: servers start processes for a moment, too.
    ticks = sum(map(int, values[11:15]))
    return Stat(pid, int(values[1]), int(values[3]), ticks / _TICK)


class Processes:
    """A program and all that it starts, pinned to one core; its output goes to a file."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, core: int, *, piped: bool = False
    ) -> None:
        self._mark = f"{os.getpid()}-{log.name}-{time.monotonic_ns()}"
        self._log = log
        self.started = time.perf_counter()
        with log.open("ab") as output:
            self.root = subprocess.Popen(
                ["taskset", "--cpu-list", str(core), *command],
                env=os.environ | environment | {MARK: self._mark},
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else output,
                stderr=output,
                cwd=log.parent,
                start_new_session=True,
            )

    def tree(self) -> list[Stat]:
        """The program, its descendants, and what left the family but kept the session or the environment."""
        alive = [found for entry in Path("/proc").iterdir() if entry.name.isdigit() if (found := stat(int(entry.name)))]
        ours = {self.root.pid}
        ours |= {each.pid for each in alive if each.session == self.root.pid or self._marked(each.pid)}
        while True:
            children = {each.pid for each in alive if each.parent in ours} - ours
            if not children:
                return [each for each in alive if each.pid in ours]
            ours |= children

    def _marked(self, pid: int) -> bool:
        try:
            return f"{MARK}={self._mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False

    @property
    def cpu(self) -> float:
        """Processor seconds used so far."""
        return sum(each.cpu for each in self.tree())

    def wait_until(self, ready: Callable[[], bool], within: float) -> None:
        """Return when `ready()` is true.

        Raises:
            ServerFailed: The program has ended, or the time is over.
        """
        end = time.perf_counter() + within
        while not ready():
            if self.root.poll() is not None:
                raise ServerFailed(f"it ended with status {self.root.returncode}: {self.last_words()}")
            if time.perf_counter() > end:
                raise ServerFailed(f"it did not answer within {within:.0f} s: {self.last_words()}")
            time.sleep(0.02)

    def last_words(self, lines: int = 4) -> str:
        text = self._log.read_text(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in text[-lines:])[-600:]

    def halt(self) -> None:
        """Stop everything where it is; memory and connections stay."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for each in self.tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, number)

    def close(self, grace: float = 10) -> None:
        """SIGTERM to the program; after `grace` seconds SIGKILL to whatever is left of it."""
        family = self.tree()
        self.resume()
        with contextlib.suppress(ProcessLookupError):
            self.root.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.root.wait(grace)
        end = time.perf_counter() + grace
        while (left := self._left(family)) and time.perf_counter() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.root.poll()
            time.sleep(0.05)
        for pipe in (self.root.stdin, self.root.stdout):
            if pipe is not None:
                pipe.close()

    def _left(self, family: Sequence[Stat]) -> set[int]:
        """Of those once seen, the ones still there and not another process by now; and whoever joined."""
        known = {each.pid for each in family if (now := stat(each.pid)) and now.session == each.session}
        return known | {each.pid for each in self.tree()}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextlib.contextmanager
def running(processes: Processes) -> Iterator[None]:
    """Let halted processes run while the body does."""
    processes.resume()
    try:
        yield
    finally:
        processes.halt()
