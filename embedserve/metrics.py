"""Prometheus metrics: TF Serving's names, labels and exposition, and further metrics with conventional names.

`Metrics` is an observer with plain numbers. REST serves `exposition()`; a host may register `Metrics` as a collector in
a prometheus registry. The module knows no wire and no model.
"""

from __future__ import annotations

import operator
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from embedserve.call_record import CallRecord
from embedserve.errors import Code, ServingError
from embedserve.observer import Observer, running_api
from embedserve.servable import ServableId, State

__all__ = ["OTHER_MODELS", "Cells", "Metrics", "header"]

OTHER_MODELS = "(other)"
"""The `model_name` of requests for unknown models, beyond the bound on different names."""

_MAX_NAME = 256
_ENDED_VERSIONS_KEPT = 10


def _exponential(scale: float, growth: float, count: int) -> tuple[float, ...]:
    return tuple(scale * growth**i for i in range(count))


# TF Serving's bucket limits; the last bucket, +Inf, is not listed.
_LATENCY = _exponential(10, 1.8, 33)
_QUEUING = _exponential(100, 1.2, 52)
_EXAMPLES = _exponential(1, 2, 15)
_BATCH_SIZES = _exponential(1, 2, 14)
_SERVING = ":tensorflow:serving:"  # Beginning of the names of TensorFlow Serving's own metrics.
_WAIT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_Labels = tuple[str, ...]
_Sample = tuple[str, dict[str, str], float]

Cells: TypeAlias = Mapping[str, Mapping[_Labels, Any]]
"""The counts of a process, by family and label values; plain values for `add_cells` of another process."""


class _Exemplar(NamedTuple):
    """A value of a traced call, and the seconds since 1970 of the call's end."""

    trace_id: str
    span_id: str
    value: float
    at: float


class _Family:
    """A metric with a cell for each combination of label values."""

    kind = "gauge"

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = (), *, listed: bool = True) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = tuple(labels)
        self.listed = listed  # The page has the TYPE line before the first cell.

    def values(self) -> Iterator[_Sample]:
        """Yield suffix, labels and value of each sample, in the order of the cells' label values."""
        return iter(())

    def drop(self, leading: _Labels) -> None:
        """Forget the cells whose first label values equal `leading`."""

    def cells(self) -> Mapping[_Labels, object]:
        """Return a copy of every cell."""
        return {}

    def add_cells(self, cells: Mapping[_Labels, Any]) -> None:
        """Add the cells of another process."""

    def named(self, values: _Labels) -> dict[str, str]:
        return dict(zip(self.labels, values, strict=True))


class _Counter(_Family):
    kind = "counter"

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = (), *, listed: bool = True) -> None:
        super().__init__(name, documentation, labels, listed=listed)
        self._cells: dict[_Labels, int] = {}

    def add(self, values: _Labels, amount: int = 1) -> None:
        self._cells[values] = self._cells.get(values, 0) + amount

    def values(self) -> Iterator[_Sample]:
        # The copy lets a scraping thread of the host read while the loop counts.
        for values, count in sorted(self._cells.copy().items()):
            yield "", self.named(values), count

    def drop(self, leading: _Labels) -> None:
        for values in [values for values in self._cells if values[: len(leading)] == leading]:
            del self._cells[values]

    def cells(self) -> Mapping[_Labels, object]:
        return self._cells.copy()

    def add_cells(self, cells: Mapping[_Labels, Any]) -> None:
        for values, amount in cells.items():
            self.add(values, amount)


class _Histogram(_Family):
    kind = "histogram"

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], limits: tuple[float, ...], *, listed: bool = True
    ) -> None:
        super().__init__(name, documentation, labels, listed=listed)
        self._limits = limits
        self._names = (*(f"{limit:g}" for limit in limits), "+Inf")
        self._cells: dict[_Labels, tuple[list[int], list[float]]] = {}
        self._exemplars: dict[_Labels, dict[int, _Exemplar]] = {}

    def exemplify(self, values: _Labels, exemplar: _Exemplar) -> None:
        """Keep the trace of an observed value; each bucket has the trace of its latest such value."""
        self._exemplars.setdefault(values, {})[bisect_left(self._limits, exemplar.value)] = exemplar

    def exemplars(self) -> Mapping[_Labels, Mapping[int, _Exemplar]]:
        """The traces by cell and number of the bucket."""
        return {values: of_cell.copy() for values, of_cell in self._exemplars.copy().items()}

    def observe(self, values: _Labels, value: float, times: int = 1) -> None:
        cell = self._cells.get(values)
        if cell is None:
            cell = self._cells.setdefault(values, ([0] * (len(self._limits) + 1), [0.0]))
        counts, total = cell
        # A value equal to a limit is in the limit's own bucket, as `le` says; TF Serving counts such a value in the
        # next bucket.
        counts[bisect_left(self._limits, value)] += times
        total[0] += value * times

    def values(self) -> Iterator[_Sample]:
        for values, (counts, total) in sorted(self._cells.copy().items()):
            labels = self.named(values)
            cumulated = 0
            for limit, count in zip(self._names, counts.copy(), strict=True):
                cumulated += count
                yield "_bucket", {**labels, "le": limit}, cumulated
            yield "_sum", labels, total[0]
            yield "_count", labels, cumulated

    def drop(self, leading: _Labels) -> None:
        for values in [values for values in self._cells if values[: len(leading)] == leading]:
            del self._cells[values]
            self._exemplars.pop(values, None)

    def cells(self) -> Mapping[_Labels, object]:
        exemplars = self.exemplars()
        return {
            values: (counts.copy(), total[0], exemplars.get(values, {}))
            for values, (counts, total) in self._cells.copy().items()
        }

    def add_cells(self, cells: Mapping[_Labels, Any]) -> None:
        for values, (counts, total, exemplars) in cells.items():
            for bucket, exemplar in exemplars.items():
                kept = self._exemplars.setdefault(values, {})
                if bucket not in kept or kept[bucket].at < exemplar.at:
                    kept[bucket] = exemplar
            mine, sum_of_mine = self._cells.setdefault(values, ([0] * (len(self._limits) + 1), [0.0]))
            mine[:] = map(operator.add, mine, counts)
            sum_of_mine[0] += total


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)


class Metrics(Observer, Collector):
    """Counts the work of registry and adapters: `ModelRegistry(observers=[metrics])`, `create_app(metrics=metrics)`.

    Pass the object to `CollectorRegistry.register` of the host's prometheus_client to show the metrics on the host's
    own page. TF Serving's counters are untyped on a host's page: the page requires names with the ending `_total`.

    Args:
        max_unknown_models: Bound of different `model_name` values for names of models without any load. Requests beyond
            the bound share `(other)`, so that clients cannot grow the page without bound.
    """

    reads_context = False

    def __init__(self, *, max_unknown_models: int = 100) -> None:
        self._max_unknown_models = max_unknown_models
        self._known: set[str] = set()
        self._unknown: set[str] = set()
        self._ended: dict[str, deque[str]] = {}
        self._registry: CollectorRegistry | None = None
        self._tf_serving()
        self._tf_serving_batching()
        self._tf_serving_core()
        self._ours()
        families = [value for value in vars(self).values() if isinstance(value, _Family)]
        self._families = sorted(families, key=lambda family: family.name)

    def __repr__(self) -> str:
        return f"<Metrics of {len(self._known)} known and {len(self._unknown)} unknown models>"

    def _tf_serving(self) -> None:
        self._requests = _Counter(f"{_SERVING}request_count", "Requests answered.", ("model_name", "status"))
        self._request_latency = _Histogram(
            f"{_SERVING}request_latency",
            "Microseconds of successful requests.",
            ("model_name", "API", "entrypoint"),
            _LATENCY,
        )
        self._runtime_latency = _Histogram(
            f"{_SERVING}runtime_latency",
            "Microseconds of successful runs, batching wait included.",
            ("model_name", "API", "runtime"),
            _LATENCY,
        )
        self._examples = _Histogram(
            f"{_SERVING}request_example_counts", "Examples per MultiInference request.", ("model",), _EXAMPLES
        )
        self._examples_total = _Counter(
            f"{_SERVING}request_example_count_total", "Examples of MultiInference requests.", ("model",)
        )
        self._logged = _Counter(f"{_SERVING}request_log_count", "Requests logged.", ("model_name", "status_code"))
        self._warmup_latency = _Histogram(
            f"{_SERVING}model_warmup_latency", "Microseconds of recorded warm-ups.", ("model_path", "status"), _LATENCY
        )
        self._warmup_records = _Counter(
            f"{_SERVING}model_warmup_records_read", "Warm-up records read.", ("model_path", "status")
        )
        self._mlmd = _Family(f"{_SERVING}mlmd_map", "Never set.", ("model_name", "version"))

    def _tf_serving_batching(self) -> None:
        batching = f"{_SERVING}batching_session:"
        self._queuing = _Histogram(
            f"{batching}queuing_latency", "Microseconds in a batch queue.", ("thread_pool_name",), _QUEUING
        )
        self._batch_runs = _Counter(f"{batching}wrapped_run_count", "Batches run.")
        self._input_sizes = _Histogram(
            f"{batching}input_batch_size", "Rows per request and input.", (), _BATCH_SIZES, listed=False
        )
        self._processed_sizes = _Histogram(
            f"{batching}processed_batch_size", "Rows per batch, padding included.", (), _BATCH_SIZES, listed=False
        )
        self._paddings = _Histogram(
            f"{batching}padding_size", "Padding rows.", ("execution_batch_size",), _BATCH_SIZES, listed=False
        )

    def _tf_serving_core(self) -> None:
        saved_model, core = ":tensorflow:cc:saved_model:", ":tensorflow:core:"
        self._loads = _Counter(f"{saved_model}load_attempt_count", "Load attempts.", ("model_path", "status"))
        self._load_micros = _Counter(f"{saved_model}load_latency", "Microseconds spent in loads.", ("model_path",))
        # TensorFlow counts graph runs under the same names, and dashboards plot the names; here embedserve does the
        # counting.
        self._graph_runs = _Counter(f"{core}graph_runs", "Runs of models that ended with an answer.")
        self._graph_run_micros = _Counter(f"{core}graph_run_time_usecs", "Microseconds spent in those runs.")
        self._session_runs = _Counter(f"{core}direct_session_runs", "Such runs in graph sessions.")
        self._graph_builds = _Counter(f"{core}graph_build_calls", "Versions loaded, and so graphs made ready to run.")
        self._graph_build_micros = _Counter(
            f"{core}graph_build_time_usecs", "Microseconds spent in loads that succeeded, warm-up included."
        )

    def _ours(self) -> None:
        labels = ("model", "version", "signature")
        self._rows = _Histogram("embedserve_batch_rows", "Rows per batch, without padding.", labels, _BATCH_SIZES)
        self._waits = _Histogram("embedserve_queue_wait_seconds", "Wait in the batch queue.", labels, _WAIT_SECONDS)
        self._predictions = _Histogram(
            "embedserve_predict_seconds", "Successful requests, from the queue to the outputs.", labels, _WAIT_SECONDS
        )
        self._dropped_lines = _Counter(
            "embedserve_log_lines_dropped_total", "Lines that a log had no room for.", ("log",)
        )
        self._padding = _Counter("embedserve_padding_rows_total", "Rows that were padding.", labels)
        self._stuck = _Counter("embedserve_stuck_runs_total", "Runs left behind in their threads.", labels)
        self._returned = _Counter("embedserve_stuck_runs_returned_total", "Stuck runs that ended after all.", labels)
        self._released = _Counter(
            "embedserve_batches_released_total", "Batches by why they left the queue.", (*labels, "reason")
        )
        self._refusals = _Counter(
            "embedserve_listener_refusals_total",
            "Connections and requests refused by the HTTP listener: a status, an error of HTTP/2, or a limit's name.",
            ("reason",),
        )

    @property
    def _of_versions(self) -> tuple[_Family, ...]:
        """The families whose labels begin with model and version."""
        times = (self._rows, self._waits, self._predictions)
        return (*times, self._padding, self._released, self._stuck, self._returned)

    # Events from the registry and the adapters.

    def version_state(self, id: ServableId, state: State, error: Exception | None) -> None:
        """Learn the names of models; the oldest of many ended versions lose their cells."""
        self._know(id.name)
        version = str(id.version)
        ended = self._ended.setdefault(id.name, deque())
        if version in ended:
            ended.remove(version)
        if state is State.END:
            ended.append(version)
            if len(ended) > _ENDED_VERSIONS_KEPT:
                gone = ended.popleft()
                for family in self._of_versions:
                    family.drop((id.name, gone))

    def load_finished(self, id: ServableId, path: str, seconds: float, error: Exception | None) -> None:
        """Count a load attempt."""
        self._loads.add((path, "success" if error is None else "fail"))
        self._load_micros.add((path,), _micros(seconds))
        if error is None:
            self._graph_builds.add(())
            self._graph_build_micros.add((), _micros(seconds))

    def warmup_finished(self, id: ServableId, path: str, seconds: float, records: int, error: Exception | None) -> None:
        """Count a replay of recorded requests."""
        status = _code_of(error).name
        self._warmup_latency.observe((path, status), _micros(seconds))
        self._warmup_records.add((path, status), records)

    def run_finished(self, id: ServableId, signature_name: str, seconds: float, error: Exception | None) -> None:
        """Time a successful run of an API timed by TF Serving."""
        api = running_api.get()
        if error is None and api in ("Predict", "Classify", "Regress"):
            self._runtime_latency.observe((id.name, api, "TF1"), _micros(seconds))
            self._predictions.observe((id.name, str(id.version), signature_name), seconds)

    def graph_run_finished(self, id: ServableId, seconds: float, in_session: bool) -> None:
        """Count a run of a graph, and the time of the run."""
        self._graph_runs.add(())
        self._graph_run_micros.add((), _micros(seconds))
        if in_session:
            self._session_runs.add(())

    def run_stuck(self, id: ServableId, signature_name: str, seconds: float) -> None:
        """Count a stuck run."""
        self._stuck.add((id.name, str(id.version), signature_name))

    def run_returned(self, id: ServableId, signature_name: str) -> None:
        """Count the return of a stuck run."""
        self._returned.add((id.name, str(id.version), signature_name))

    def batch_formed(
        self, id: ServableId, signature_name: str, rows: int, padded_rows: int, requests: int, reason: str
    ) -> None:
        """Count a batch."""
        labels = (id.name, str(id.version), signature_name)
        padding = padded_rows - rows
        self._batch_runs.add(())
        self._processed_sizes.observe((), padded_rows)
        self._paddings.observe((str(padded_rows),), padding)
        self._rows.observe(labels, rows)
        self._padding.add(labels, padding)
        self._released.add((*labels, reason))

    def queue_wait(self, id: ServableId, signature_name: str, seconds: float) -> None:
        """Time a wait for a batch."""
        self._queuing.observe(("",), _micros(seconds))
        self._waits.observe((id.name, str(id.version), signature_name), seconds)

    def request_enqueued(self, id: ServableId, signature_name: str, rows: int, inputs: int) -> None:
        """Count a request's rows, once per input tensor as TF Serving does."""
        self._input_sizes.observe((), rows, inputs)

    def request_finished(self, model_name: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        """Count an answer, and time a successful answer."""
        if code is Code.OK and api:
            self._know(model_name)
        name = self._bounded(model_name)
        self._requests.add((name, code.name))
        if code is Code.OK:
            self._request_latency.observe((name, api, entrypoint), _micros(seconds))

    def listener_refused(self, reason: str) -> None:
        """Count a refusal of the listener."""
        self._refusals.add((reason,))

    def examples_counted(self, model_name: str, examples: int) -> None:
        """Count the examples of a MultiInference request."""
        name = self._bounded(model_name)
        self._examples.observe((name,), examples)
        self._examples_total.add((name,), examples)

    def request_logged(self, model_name: str, code: Code, requests: int) -> None:
        """Count sampled requests by the fate of the record."""
        self._logged.add((self._bounded(model_name), code.name), requests)

    def call_finished(self, record: CallRecord) -> None:
        """Keep the trace of a successful call as an exemplar of its times."""
        if not record.trace_id or record.code is not Code.OK or record.version is None:
            return
        at = record.nanoseconds(record.ended) / 1e9
        labels = record.model, str(record.version), record.signature
        found: list[tuple[_Histogram, _Labels, float]] = [
            (self._waits, labels, step.run.began - step.entered) for step in record.steps if step.run is not None
        ]
        if record.steps and record.answered:
            found.append((self._predictions, labels, record.answered - record.steps[0].entered))
        if record.transport:
            named = record.model, record.api, record.transport
            found.append((self._request_latency, named, _micros(record.ended - record.began)))
        for family, values, value in found:
            family.exemplify(values, _Exemplar(record.trace_id, record.span_id, value, at))

    def lines_dropped(self, log: str, lines: int) -> None:
        """Count dropped lines."""
        self._dropped_lines.add((log,), lines)

    def _know(self, name: str) -> None:
        if name not in self._known:
            self._known.add(name)
            self._unknown.discard(name)

    def _bounded(self, name: str) -> str:
        if name in self._known or name in self._unknown or not name:
            return name
        if len(self._unknown) >= self._max_unknown_models or len(name) > _MAX_NAME:
            return OTHER_MODELS
        self._unknown.add(name)
        return name

    # Reading.

    @property
    def registry(self) -> CollectorRegistry:
        """A separate prometheus registry with only the metrics of this object."""
        if self._registry is None:
            self._registry = CollectorRegistry()
            self._registry.register(self)
        return self._registry

    def value(self, name: str) -> int:
        """Return a counter by TF Serving's internal name (`/tensorflow/serving/request_count`), 0 for unknown names.

        A counter with labels gives the first cell, as in TF Serving; first means the order of label values here.
        """
        mangled = re.sub(r"\W", ":", name, flags=re.ASCII)
        found = (family for family in self._families if family.name == mangled and family.kind == "counter")
        return next((int(value) for family in found for _, _, value in family.values()), 0)

    async def read(self, name: str) -> int:
        """As `value`, for the model service's reload requests."""
        return self.value(name)

    def exposition(self) -> bytes:
        """Return TF Serving's page: braces always, metrics and cells sorted; with a line of help for each metric."""
        lines: list[str] = []
        for family in self._families:
            samples = list(family.values())
            if samples or family.listed:
                lines += header(family.name, family.kind, family.documentation)
            lines += (f"{family.name}{suffix}{_braces(labels)} {_number(value)}" for suffix, labels, value in samples)
        return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")

    def openmetrics(self) -> bytes:
        """Return the page in the text format of OpenMetrics 1.0, with traces as exemplars of the histograms.

        Names keep their colons, so the page has the series of `exposition`.
        """
        lines: list[str] = []
        for family in self._families:
            name, kind = _openmetrics_type(family)
            lines += header(name, kind, family.documentation)
            lines += _openmetrics_lines(family)
        return "".join(f"{line}\n" for line in (*lines, "# EOF")).encode("utf-8", "replace")

    async def page(self, *, openmetrics: bool = False) -> bytes:
        """Return the page for REST; a subclass may add the counts of further processes."""
        return self.openmetrics() if openmetrics else self.exposition()

    def cells(self) -> Cells:
        """Return all counts so far, for the `add_cells` of another process."""
        return {family.name: cells for family in self._families if (cells := family.cells())}

    def add_cells(self, cells: Cells) -> None:
        """Add the counts of another process."""
        for family in self._families:
            family.add_cells(cells.get(family.name, {}))

    def collect(self) -> Iterable[Metric]:
        """For prometheus_client: the samples of the page under the same names."""
        for family in self._families:
            name, kind = _openmetrics_type(family)
            metric = Metric(name, family.documentation, kind)
            for suffix, labels, value in family.values():
                metric.add_sample(family.name + suffix, labels, value)
            yield metric

    def describe(self) -> Iterable[Metric]:
        """For prometheus_client: a registry refuses a second metric of the same name."""
        return self.collect()


def _openmetrics_type(family: _Family) -> tuple[str, str]:
    """Name and type in OpenMetrics; a counter without `_total`, as TF Serving has, is of an unknown type."""
    if family.kind != "counter":
        return family.name, family.kind
    bare = family.name.removesuffix("_total")
    return bare, "counter" if bare != family.name else "unknown"


def _canonical(limit: str) -> str:
    written: str = floatToGoString(float(limit))  # type: ignore[no-untyped-call]
    return written


def _openmetrics_lines(family: _Family) -> Iterator[str]:
    """Yield the samples; limits of buckets are floats there, and a bucket may have an exemplar."""
    exemplars = family.exemplars() if isinstance(family, _Histogram) else {}
    bucket = 0
    for suffix, labels, value in family.values():
        trace = ""
        if suffix == "_bucket":
            limit = labels.pop("le")
            found = exemplars.get(tuple(labels.values()), {}).get(bucket)
            if found is not None:
                named = _braces({"trace_id": found.trace_id, "span_id": found.span_id})
                trace = f" # {named} {_number(found.value)} {found.at:.3f}"
            labels["le"] = limit if limit == "+Inf" else _canonical(limit)
        bucket = bucket + 1 if suffix == "_bucket" else 0
        yield f"{family.name}{suffix}{_braces(labels) if labels else ''} {_number(value)}{trace}"


def header(name: str, kind: str, documentation: str) -> tuple[str, str]:
    """Return the lines before the samples of a metric; the documentation is a line of plain text."""
    return f"# HELP {name} {documentation}", f"# TYPE {name} {kind}"


def _code_of(error: Exception | None) -> Code:
    if error is None:
        return Code.OK
    return Code(error.code) if isinstance(error, ServingError) else Code.UNKNOWN


def _braces(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    # TF Serving leaves newlines unescaped and so breaks the page.
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    """Six digits as TF Serving prints, or more for an exact value: a sum of six digits soon stands still."""
    short = f"{value:g}"
    return short if float(short) == value else f"{value:.17g}" if value % 1 else f"{value:.0f}"
