"""Answers requests in every planned way, and compares the answers with plain TensorFlow's.

A way is a registry with options, and a choice of requests to share a run.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.config import BatchingOptions, ModelConfig, Optimize, RegistryOptions, RetryPolicy, SpecificVersions
from embedserve.errors import ConfigError, ServingError
from embedserve.handle import ModelHandle
from embedserve.observer import Observer
from embedserve.registry import ModelRegistry
from embedserve.saved_model.judge.compare import is_rounding, limit, row_difference, rows_equal, usual_size
from embedserve.servable import Array, ServableId, Tensors
from embedserve.signature import BatchingVerdict, Signature
from embedserve.tuning.model import Place
from embedserve.tuning.requests import features_of, recorded
from embedserve.verify.plain import PlainModel
from embedserve.verify.requests import Answered, answered, groups, made_up, shortened

__all__ = ["Difference", "Findings", "Plan", "Way", "compare_ways"]

# Seconds for a request.
_PATIENCE = 60.0
# Microseconds for a request to wait for its group. A whole group is sent within a single turn of the loop.
_GATHERING = 500
# Most rows of a batch, the largest of the padded sizes.
_MOST_ROWS = 1023
# Sizes of padded batches. No size is a power of two, so no group of made-up requests fills a batch.
_PADDED = (5, 11, 23, 47, 95, 191, 383, _MOST_ROWS)
# Units in the last place. Sums in another order are off by several last places of their terms, by some ten for a
# thousand terms.
_ROUNDING = 16.0
# Attempts to let a group share a run, because a busy machine may split a group.
_ATTEMPTS = 5


@dataclass(frozen=True)
class Plan:
    """The extent of the comparison.

    Attributes:
        pairs: Groups of requests to share a run, for each signature and way; two of three groups are pairs.
        seed: Seed of requests and groups.
        tolerance: Allowed difference of floats, relative to a row's largest element.
        padded: Whether to pad batches to allowed sizes too.
        ragged: Whether to pad requests of different lengths into a shared run too.
        optimize: Optimised execution to compare too.
        files: Recorded requests instead of made-up requests.
        signature: The only signature to compare; None for all.
    """

    pairs: int = 20
    seed: int = 0
    tolerance: float = 1e-5
    padded: bool = True
    ragged: bool = False
    optimize: Optimize = "none"
    files: Sequence[Path] = ()
    signature: str | None = None


@dataclass
class Difference:
    """The difference between an output's answers in a way and plain TensorFlow's.

    Attributes:
        largest: Largest difference of a row, relative to the row's size; infinite for different shapes or exact values.
        answers: Number of compared answers.
        over: Number of answers over the tolerance.
        example: The first answer over the tolerance, in words.
    """

    largest: float = 0.0
    answers: int = 0
    over: int = 0
    example: str = ""


@dataclass
class Way:
    """A way of answering.

    Attributes:
        name: `alone`, `beside neighbours`, `padded`...
        differences: By output.
        runs: Groups of requests in a shared run.
        apart: Groups split in every attempt.
        note: The reason if the version was loaded differently from the plan.
    """

    name: str
    differences: dict[str, Difference] = field(default_factory=dict)
    runs: int = 0
    apart: int = 0
    note: str = ""


@dataclass
class Findings:
    """The findings about a signature.

    Attributes:
        signature: The signature's name.
        verdict: Whether requests share a run, and the reason.
        requests: The source of the requests, in words.
        skipped: The reason for skipping the comparison; empty after a comparison.
        ways: Answers in each way.
    """

    signature: str
    verdict: BatchingVerdict
    requests: str = ""
    skipped: str = ""
    ways: list[Way] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether an answer is over the tolerance."""
        return any(difference.over for way in self.ways for difference in way.differences.values())


async def compare_ways(place: Place, config: ModelConfig, options: RegistryOptions, plan: Plan) -> list[Findings]:
    """Answer requests by plain TensorFlow and in each way, and compare the answers.

    Args:
        place: The version.
        config: The model's options; each way sets `batching_options`.
        options: The registry's options.
        plan: The extent of the comparison.

    Raises:
        ServingError: The model cannot be loaded, or a file of requests cannot be used.
    """
    plain = await asyncio.to_thread(PlainModel, place.path, config.saved_model_tags)
    try:
        comparison = _Comparison(place, config, options, plan, plain)
        await comparison.run()
        return comparison.findings
    finally:
        plain.close()


class _SharedRuns(Observer):
    """Notes the most requests in a shared run since `last` was reset."""

    def __init__(self) -> None:
        self.last = 0

    def batch_formed(
        self, id: ServableId, signature_name: str, rows: int, padded_rows: int, requests: int, reason: str
    ) -> None:
        self.last = max(self.last, requests)


class _Comparison:
    """A version, the requests, and the findings."""

    def __init__(
        self, place: Place, config: ModelConfig, options: RegistryOptions, plan: Plan, plain: PlainModel
    ) -> None:
        self._place = place
        self._config = config
        self._options = options
        self._plan = plan
        self._plain = plain
        self._requests: dict[str, list[Answered]] = {}
        self._shortened: dict[str, list[Answered]] = {}
        self.findings: list[Findings] = []

    async def run(self) -> None:
        """Fill in `findings`."""
        plan = self._plan
        plain_way = BatchingOptions(max_batch_size=_MOST_ROWS, batch_timeout_micros=_GATHERING)
        async with _asking(self._registry(plain_way), self._config.name) as asker:
            await self._prepare(asker.handle)
            await self._each(asker, "alone", _singly, self._requests, unbatched=True)
            await self._each(asker, "beside neighbours", self._in_groups, self._requests)
        if plan.padded:
            padded = plain_way.model_copy(update={"allowed_batch_sizes": _PADDED})
            await self._other("padded", padded, self._in_groups_and_singly, self._requests)
        if plan.ragged:
            ragged = plain_way.model_copy(update={"pad_variable_length_inputs": True})
            await self._other("padded lengths", ragged, self._in_mixed_groups, self._shortened)
        if plan.optimize != "none":
            name, chosen = f"optimize={plan.optimize}", self._in_groups_and_singly
            await self._other(name, plain_way, chosen, self._requests, unbatched=True, optimize=plan.optimize)

    async def _other(
        self,
        name: str,
        batching: BatchingOptions,
        chosen: Callable[[Sequence[Answered]], Sequence[Sequence[int]]],
        requests: Mapping[str, list[Answered]],
        unbatched: bool = False,
        **model: Any,
    ) -> None:
        """Compare a further way, with a further load of the version."""
        if not any(requests.values()):
            return
        async with _asking(self._registry(batching, **model), self._config.name) as asker:
            await self._each(asker, name, chosen, requests, unbatched)

    def _registry(self, batching: BatchingOptions, **model: Any) -> ModelRegistry:
        """Make a registry with the version alone and a single run thread; not entered yet."""
        update = {
            "version_policy": SpecificVersions(versions=(self._place.version,)),
            "batching_options": batching,
            "optimize": "none",
            **model,
        }
        options: dict[str, Any] = {name: getattr(self._options, name) for name in RegistryOptions.model_fields}
        options |= {
            "num_batch_threads": 1,
            "enable_per_model_batching_parameters": False,
            # A single scan and attempt: the directory does not change meanwhile.
            "poll_interval": math.inf,
            "watch": False,
            "settle": 0.0,
            "retry": RetryPolicy(max_retries=0),
        }
        return ModelRegistry(models=[self._config.model_copy(update=update)], **options)

    async def _prepare(self, handle: ModelHandle) -> None:
        """Find requests for every signature.

        Raises:
            ConfigError: The wanted signature is unknown, or a file of requests cannot be used.
        """
        signatures, wanted = handle.signatures, self._plan.signature
        if wanted is not None and wanted not in signatures:
            raise ConfigError(f"the model has no signature {wanted!r}; its signatures: {', '.join(signatures)}")
        errors: list[ConfigError] = []
        for name in signatures if wanted is None else [wanted]:
            found = Findings(name, signatures[name].batching)
            self.findings.append(found)
            if not signatures[name].stateless:
                found.skipped = "not compared: it writes state or draws random numbers, so that each run answers anew"
                continue
            try:
                requests = await asyncio.to_thread(self._requests_of, signatures, signatures[name], found)
            except ConfigError as error:
                errors.append(error)
                found.skipped = f"not compared: {error}"
                continue
            self._requests[name] = requests
            if not requests:
                found.skipped = (
                    f"not compared: plain TensorFlow answers none of the requests ({found.requests}); give recorded "
                    "ones by --requests=FILE"
                )
                continue
            if len(requests) > 1 and _all_alike(requests, self._plan.tolerance):
                found.requests += "; all of them get the same answer, so that a neighbour could hardly change one"
            if self._plan.ragged:
                shorter = await asyncio.to_thread(shortened, signatures[name], requests, self._plain, self._plan.seed)
                self._shortened[name] = shorter
        if errors and len(errors) == len(self.findings):
            raise errors[0]

    def _requests_of(
        self, signatures: Mapping[str, Signature], signature: Signature, found: Findings
    ) -> list[Answered]:
        from embedserve.saved_model.files.meta_graph import warmup_file

        plan, plain, place = self._plan, self._plain, self._place
        if plan.files:
            given = recorded(plan.files, signatures, signature)
            found.requests = given.origin
            return answered(plain, signature, given.inputs)
        own: Sequence[Tensors] = ()
        if warmup_file(place.path).is_file():
            try:
                own = recorded([warmup_file(place.path)], signatures, signature).inputs
            except ConfigError:
                own = ()  # The file is about another signature.
        features = features_of(place.path, self._config.saved_model_tags, signature)
        requests = made_up(plain, signature, features, own, 2 * plan.pairs, plan.seed)
        origin = "made up" if not own else "made up, and from the version's own warm-up file"
        found.requests = f"{len(requests)} {origin}"
        return requests

    async def _each(
        self,
        asker: _Asker,
        name: str,
        chosen: Callable[[Sequence[Answered]], Sequence[Sequence[int]]],
        requests: Mapping[str, list[Answered]],
        unbatched: bool = False,
    ) -> None:
        """Answer the chosen groups of every signature's requests; `unbatched` includes signatures without batching."""
        for found in self.findings:
            given = requests.get(found.signature)
            if not given:
                continue
            batched = asker.handle.signatures[found.signature].batching.batchable
            asked = [group for group in chosen(given) if batched or len(group) == 1]
            if asked and (batched or unbatched):
                way = Way(name, note=asker.note)
                found.ways.append(way)
                plain = partial(self._plain.answer, asker.handle.signatures[found.signature])
                await _Answers(asker, found.signature, given, plain, self._plan.tolerance, way).hold(asked)

    def _in_groups(self, requests: Sequence[Answered]) -> list[list[int]]:
        return list(groups(requests, self._plan.pairs, self._plan.seed))

    def _in_mixed_groups(self, requests: Sequence[Answered]) -> list[list[int]]:
        return list(groups(requests, self._plan.pairs, self._plan.seed, ragged=True))

    def _in_groups_and_singly(self, requests: Sequence[Answered]) -> list[list[int]]:
        return [*_singly(requests), *self._in_groups(requests)]


def _all_alike(requests: Sequence[Answered], tolerance: float) -> bool:
    first = requests[0].outputs
    return all(
        rows_equal(request.outputs[name], expected, tolerance)
        for request in requests
        for name, expected in first.items()
    )


def _singly(requests: Sequence[Answered]) -> list[list[int]]:
    return [[index] for index in range(len(requests))]


@asynccontextmanager
async def _asking(registry: ModelRegistry, name: str) -> AsyncIterator[_Asker]:
    """Load the only version of a registry, and unload the version afterwards."""
    shared = _SharedRuns()
    registry.observers.add(shared)
    async with registry, registry.acquire(name) as handle:
        yield _Asker(handle, shared, registry.status()[name][0].note)


@dataclass(frozen=True)
class _Asker:
    """A loaded version, the counts of shared runs, and the loader's note."""

    handle: ModelHandle
    shared: _SharedRuns
    note: str

    async def ask(self, signature: str, requests: Sequence[Tensors]) -> tuple[list[Tensors | BaseException], bool]:
        """Send requests at once; return the answers or errors, and whether the requests shared a run."""
        for _ in range(_ATTEMPTS):
            self.shared.last = 0
            sent = [self.handle.predict(each, signature_name=signature, timeout=_PATIENCE) for each in requests]
            found: list[Any] = await asyncio.gather(*sent, return_exceptions=True)
            if len(requests) == 1 or self.shared.last == len(requests):
                return found, True
        return found, False


class _Answers:
    """Compares a signature's answers in a way with plain TensorFlow's."""

    def __init__(
        self,
        asker: _Asker,
        signature: str,
        requests: Sequence[Answered],
        plain: Callable[[Tensors], dict[str, Array]],
        tolerance: float,
        way: Way,
    ) -> None:
        self._asker = asker
        self._signature = signature
        self._requests = requests
        self._plain = plain
        self._tolerance = tolerance
        self._way = way
        outputs = requests[0].outputs
        way.differences = {name: Difference() for name in outputs}
        self._usual = {
            name: usual_size([row for request in requests for row in _rows(request.outputs[name])]) for name in outputs
        }

    async def hold(self, groups: Sequence[Sequence[int]]) -> None:
        """Send each group of requests at once, and count the differences."""
        for group in groups:
            found, shared = await self._ask(group)
            if len(group) > 1:
                self._way.runs += shared
                self._way.apart += not shared
            for place, index in enumerate(group):
                await self._compare(found[place], group, place, index)

    async def _ask(self, group: Sequence[int]) -> tuple[list[Tensors | BaseException], bool]:
        return await self._asker.ask(self._signature, [self._requests[index].inputs for index in group])

    async def _compare(self, answer: Tensors | BaseException, group: Sequence[int], place: int, index: int) -> None:
        copies: Tensors | BaseException | None = None
        for name, expected in self._requests[index].outputs.items():
            apart, words = math.inf, str(answer)
            if isinstance(answer, Mapping):
                found, words = answer[name], ""
                apart = _apart(found, expected)
                if apart > limit(expected.dtype, self._tolerance) and expected.ndim:
                    if copies is None:
                        copies = answer if len(group) == 1 else (await self._ask([index] * len(group)))[0][place]
                    copy = copies[name] if isinstance(copies, Mapping) else None
                    usual = self._usual[name]
                    if copy is not None and is_rounding(found, copy, expected, usual, self._tolerance):
                        apart = row_difference(copy, expected, usual)
                    elif copy is not None and rows_equal(found, copy, self._tolerance):
                        # No neighbour made the difference. Compare the difference with the effect of the inputs' last
                        # places.
                        moved = _ROUNDING * await self._moved(index, name)
                        apart = apart if apart > moved else min(apart, self._tolerance)
            elif not isinstance(answer, ServingError):
                raise answer
            self._count(self._way.differences[name], apart, expected, group, place, words)

    async def _moved(self, index: int, name: str) -> float:
        """The change of an answer when each float of the inputs moves by a unit in the last place."""
        request = self._requests[index]
        try:
            nudged = await asyncio.to_thread(self._plain, _nudged(request.inputs))
        except ServingError:
            return 0.0
        return _apart(nudged[name], request.outputs[name])

    def _count(
        self, difference: Difference, apart: float, expected: Array, group: Sequence[int], place: int, words: str
    ) -> None:
        difference.answers += 1
        difference.largest = max(difference.largest, apart)
        if apart <= limit(expected.dtype, self._tolerance):
            return
        difference.over += 1
        if not difference.example:
            request = self._requests[group[place]]
            others = [str(self._requests[index]) for spot, index in enumerate(group) if spot != place]
            beside = f" beside {' and '.join(others)}" if others else ""
            difference.example = f"{request}{beside}" + (f": {words}" if words else "")


def _nudged(inputs: Tensors) -> dict[str, Array]:
    """Copies of the inputs with floats moved by a unit in the last place, alternately up and down."""
    nudged = {}
    for name, array in inputs.items():
        if array.dtype.kind == "f":
            towards = np.where(np.arange(array.size).reshape(array.shape) % 2, -np.inf, np.inf)
            array = np.nextafter(array, towards.astype(array.dtype))
        nudged[name] = array
    return nudged


def _apart(found: Array, expected: Array) -> float:
    return math.inf if found.dtype != expected.dtype else row_difference(found, expected)


def _rows(output: Array) -> list[Array]:
    return [output[row : row + 1] for row in range(len(output))] if output.ndim else [output]
