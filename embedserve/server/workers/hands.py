"""Notes of each worker's current runs, in shared memory; the notes outlive the process.

Before TensorFlow is called, a run notes model, signature, dtypes and shapes, never contents. The note is cleared after
the run. Two deaths with the same request in hand make the request a suspect. The module knows no process.
"""

from __future__ import annotations

import json
import logging
import mmap
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from embedserve.servable import Array, Cancellation, Servable, ServableId, Tensors
from embedserve.server.workers.shared_value import shared_file
from embedserve.signature import Signature

__all__ = ["Hands", "NotedServable", "Places", "Suspect", "Suspects"]

logger = logging.getLogger("embedserve")

# Noted runs per worker at a time, and bytes of all descriptions of a worker (256 KiB). Runs beyond are not noted.
PLACES = 64
TABLE_BYTES = 2**18
# Shapes per version whose descriptions are cached.
MOST_SHAPES = 1000
# Different requests whose deaths are counted.
MOST_SUSPECTS = 1000
# Deaths with the same request in hand before the request is a suspect.
DEATHS = 2

# Bytes of a description's length, in front of the description.
_LENGTH = 2
_SHAPE = attrgetter("shape")
_WORKER_BYTES = 8 * PLACES + TABLE_BYTES


class Hands:
    """The notes of all workers in an inherited file: for each worker a word per place, and a table of descriptions.

    A place holds the position of the run's description in the table, counted from 1; 0 is a place without a run.

    Args:
        workers: The number of workers.
        fd: The descriptor from another process, or None to create the file.
    """

    def __init__(self, workers: int, fd: int | None = None) -> None:
        size = workers * _WORKER_BYTES
        self.fd = shared_file(size) if fd is None else fd
        self._map = mmap.mmap(self.fd, size)
        self._bytes = memoryview(self._map)

    def __repr__(self) -> str:
        return f"<Hands of {len(self._bytes) // _WORKER_BYTES} workers>"

    def of(self, worker: int) -> tuple[memoryview, memoryview]:
        """A worker's places as words, and the worker's table as bytes."""
        own = self._bytes[worker * _WORKER_BYTES : (worker + 1) * _WORKER_BYTES]
        return own[: 8 * PLACES].cast("Q"), own[8 * PLACES :]

    def take(self, worker: int) -> list[Suspect]:
        """Read and clear the notes of a dead worker."""
        places, table = self.of(worker)
        taken = []
        for index, place in enumerate(places):
            if place:
                begin = place - 1 + _LENGTH
                length = int.from_bytes(table[place - 1 : begin], "little")
                taken.append(Suspect(*json.loads(bytes(table[begin : begin + length]))))
            places[index] = 0
        return taken


class Suspect(NamedTuple):
    """Requests with equal descriptions.

    Attributes:
        model, version, signature: The target of the requests.
        inputs: Dtype and shape of each input by name. An open dimension 0 is `?`, because requests in a shared run have
            a common dimension 0.
    """

    model: str
    version: int
    signature: str
    inputs: str

    def __str__(self) -> str:
        return f"model {self.model}, version {self.version}, signature {self.signature}, inputs {self.inputs}"


class Suspects:
    """Counts deaths by noted request, and logs each new suspect once."""

    def __init__(self) -> None:
        self._deaths: Counter[Suspect] = Counter()

    def __repr__(self) -> str:
        return f"<Suspects {len(self.listed())}>"

    def died(self, held: Iterable[Suspect]) -> None:
        """Count the death of a process with the given requests in hand."""
        for request in set(held):
            if request not in self._deaths and len(self._deaths) >= MOST_SUSPECTS:
                continue
            self._deaths[request] += 1
            if self._deaths[request] == DEATHS:
                logger.error(
                    "Suspect: a worker had a request of %s in its hands each of the %d times that one died; "
                    "GET /-/workers counts further deaths",
                    *(request, DEATHS),
                )

    def listed(self) -> tuple[tuple[Suspect, int], ...]:
        """Suspects with the numbers of deaths, the most deaths first."""
        return tuple((request, deaths) for request, deaths in self._deaths.most_common() if deaths >= DEATHS)


class Places:
    """A worker's places for runs, and the worker's table.

    Attributes:
        words: A word for each place.
        free: Indices of places without a run. A list's pop and append are single steps of the interpreter, so run
            threads
            need no lock.
    """

    def __init__(self, hands: Hands, worker: int) -> None:
        self.words, self._table = hands.of(worker)
        for index in range(PLACES):
            self.words[index] = 0
        self.free = list(range(PLACES))
        self._used = 0
        self._known: dict[str, int] = {}
        self._writing = threading.Lock()

    def __repr__(self) -> str:
        return f"<Places {len(self.free)} free>"

    def describe(self, suspect: Suspect) -> int:
        """The word for a description; 0 when the table is full."""
        text = json.dumps(suspect)
        with self._writing:
            word = self._known.get(text)
            if word is None:
                entry = text.encode()
                end = self._used + _LENGTH + len(entry)
                if end > TABLE_BYTES or len(entry) >= 2 ** (8 * _LENGTH):
                    return 0
                self._table[self._used : end] = len(entry).to_bytes(_LENGTH, "little") + entry
                self._known[text] = word = self._used + 1
                self._used = end
            return word


class NotedServable:
    """A servable whose runs are noted while running; all else is delegated to the servable."""

    def __init__(self, servable: Servable, id: ServableId, places: Places) -> None:
        self._servable = servable
        self._run = servable.run
        self._id = id
        self._places = places
        self._words, self._free = places.words, places.free
        self._of_shapes: dict[tuple[object, ...], int] = {}

    def __repr__(self) -> str:
        return f"<NotedServable {self._id}>"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._servable, name)

    def run(
        self,
        signature_name: str,
        inputs: Tensors,
        output_names: Sequence[str] | None = None,
        *,
        cancellation: Cancellation | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """As `Servable.run`. The note costs about a microsecond."""
        shapes = (signature_name, *map(_SHAPE, inputs.values()))
        word = self._of_shapes.get(shapes)
        if word is None:
            word = self._describe(shapes, inputs)
        try:
            index = self._free.pop()
        except IndexError:
            return self._run(signature_name, inputs, output_names, cancellation=cancellation, timeout=timeout)
        self._words[index] = word
        try:
            return self._run(signature_name, inputs, output_names, cancellation=cancellation, timeout=timeout)
        finally:
            self._words[index] = 0
            self._free.append(index)

    def _describe(self, shapes: tuple[Any, ...], inputs: Tensors) -> int:
        if len(self._of_shapes) >= MOST_SHAPES:
            self._of_shapes.clear()
        signature = self._servable.signatures[shapes[0]]
        suspect = Suspect(self._id.name, self._id.version, signature.name, described(signature, inputs))
        word = self._of_shapes[shapes] = self._places.describe(suspect)
        return word


def described(signature: Signature, inputs: Mapping[str, Array]) -> str:
    """Each input's name, dtype and shape, as in `x float32[?,3]`."""
    parts = []
    for name, array in inputs.items():
        spec = signature.inputs.get(name)
        shape: list[object] = list(array.shape)
        if shape and spec is not None and spec.shape and spec.shape[0] is None:
            shape[0] = "?"
        dtype = "string" if array.dtype == object else array.dtype.name
        parts.append(f"{name} {dtype}[{','.join(map(str, shape))}]")
    return ", ".join(parts)
