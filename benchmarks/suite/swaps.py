"""p99 and the longest time without an answer under load, on a quiet server and while versions are swapped.

The swapped model is `half`, whose versions answer alike, so that the load generator's counts tell every failure.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.suite import measure
from benchmarks.suite.client import Refused
from benchmarks.suite.contenders import Contender
from benchmarks.suite.load import Load
from benchmarks.suite.measure import Entrant, Plan
from benchmarks.suite.workloads import Workload, examples_of

MODEL = "half"
PATIENCE = 60.0


@dataclass(frozen=True)
class Pauses:
    """One protocol's measurements: quiet, and with `swaps` new versions during the load."""

    protocol: str
    quiet: Load
    swapping: Load
    swaps: int


def measured(contender: Contender, models: Path, seconds: float, cores: tuple[int, int]) -> Iterator[Pauses]:
    """REST and gRPC in turn, 64 requests under way; `cores` are the server's and the load's.

    Raises:
        ServerFailed, Refused: The server did not start, or did not load a version in time.
    """
    workload = Workload(MODEL, ("rest", "grpc"), (64,))
    plan = Plan([contender], [workload], seconds, 1, *cores)
    measure.pin(cores[1])
    with serving(contender, models, plan) as (entrant, served):
        entrant.check()
        version = 1
        for cell, _, form in entrant.cells():
            quiet = entrant.measure(cell, workload, form)
            with Swapper(served, entrant.place.rest, version) as swapper:
                loaded = entrant.measure(cell, workload, form)
            if swapper.failure:
                raise Refused(swapper.failure)
            yield Pauses(cell.protocol, quiet, loaded, swapper.version - version)
            version = swapper.version


@contextlib.contextmanager
def serving(
    contender: Contender, models: Path, plan: Plan, names: Sequence[str] = (MODEL,)
) -> Iterator[tuple[Entrant, Path]]:
    """A server of a copy of the models, which may be changed; and the directory of the copy."""
    examples = {name: examples_of(models, name) for name in names}
    with tempfile.TemporaryDirectory() as directory:
        served = Path(directory, "models")
        for name in names:
            shutil.copytree(models / name / "1", served / name / "1")
        answers = measure.write_answers(Path(directory), examples)
        place = measure.new_place(Path(directory, "work"), served, answers, Path(sys.executable))
        entrant = Entrant(contender, plan, place, examples)
        try:
            entrant.start()
            yield entrant, served
        finally:
            entrant.close()


class Swapper(threading.Thread):
    """Drops one version after the other in, each when the one before serves and the older one is gone."""

    def __init__(self, served: Path, port: int, version: int) -> None:
        super().__init__()
        self._served, self._port = served, port
        self.version, self.failure = version, ""
        self._ends = threading.Event()

    def run(self) -> None:
        while not self._ends.is_set():
            base, version = self._served / MODEL, self.version + 1
            # As a careful deployment: under another name first.
            shutil.copytree(base / "1", base / f".{version}")
            (base / f".{version}").rename(base / str(version))
            if not self._serves(version):
                self.failure = f"version {version} of {MODEL} does not serve after {PATIENCE:.0f} s"
                return
            self.version = version

    def __enter__(self) -> Swapper:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.set()
        self.join()

    def _serves(self, version: int) -> bool:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            states = self._states()
            if states.get(version) == "AVAILABLE" and states.get(version - 1) in (None, "END"):
                return True
            time.sleep(0.05)
        return False

    def _states(self) -> dict[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            connection.request("GET", f"/v1/models/{MODEL}")
            found = json.loads(connection.getresponse().read())["model_version_status"]
        except (OSError, http.client.HTTPException):
            return {}
        finally:
            connection.close()
        return {int(each["version"]): each["state"] for each in found}
