"""Prometheus metrics: TF Serving's names, labels and exposition, and further metrics with conventional names.

`Metrics` is an observer with plain numbers. REST serves `exposition()`; a host may register `Metrics` as a collector in
a prometheus registry. The module knows no wire and no model.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from embedserve.call_record import CallRecord
from embedserve.errors import Code, ServingError
from embedserve.metric_families import NOTED, Counter, Exemplar, Family, Histogram, Labels, Noted, all_micros, micros
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

Cells: TypeAlias = Mapping[str, Mapping[Labels, Any]]
"""The counts of a process, by family and label values; plain values for `add_cells` of another process."""


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
        families = [value for value in vars(self).values() if isinstance(value, Family)]
        self._sorted = sorted(families, key=lambda family: family.name)
        self._runs = Noted(self._count_runs)
        self._answered = Noted(self._count_answers)

    @property
    def _families(self) -> list[Family]:
        """Every family, with all events counted."""
        for noted in (self._runs, self._answered):
            noted.count()
        return self._sorted

    def __repr__(self) -> str:
        return f"<Metrics of {len(self._known)} known and {len(self._unknown)} unknown models>"

    def _tf_serving(self) -> None:
        self._requests = Counter(f"{_SERVING}request_count", "Requests answered.", ("model_name", "status"))
        self._request_latency = Histogram(
            f"{_SERVING}request_latency",
            "Microseconds of successful requests.",
            ("model_name", "API", "entrypoint"),
            _LATENCY,
        )
        self._runtime_latency = Histogram(
            f"{_SERVING}runtime_latency",
            "Microseconds of successful runs, batching wait included.",
            ("model_name", "API", "runtime"),
            _LATENCY,
        )
        self._examples = Histogram(
            f"{_SERVING}request_example_counts", "Examples per MultiInference request.", ("model",), _EXAMPLES
        )
        self._examples_total = Counter(
            f"{_SERVING}request_example_count_total", "Examples of MultiInference requests.", ("model",)
        )
        self._logged = Counter(f"{_SERVING}request_log_count", "Requests logged.", ("model_name", "status_code"))
        self._warmup_latency = Histogram(
            f"{_SERVING}model_warmup_latency", "Microseconds of recorded warm-ups.", ("model_path", "status"), _LATENCY
        )
        self._warmup_records = Counter(
            f"{_SERVING}model_warmup_records_read", "Warm-up records read.", ("model_path", "status")
        )
        self._mlmd = Family(f"{_SERVING}mlmd_map", "Never set.", ("model_name", "version"))

    def _tf_serving_batching(self) -> None:
        batching = f"{_SERVING}batching_session:"
        self._queuing = Histogram(
            f"{batching}queuing_latency", "Microseconds in a batch queue.", ("thread_pool_name",), _QUEUING
        )
        self._batch_runs = Counter(f"{batching}wrapped_run_count", "Batches run.")
        self._input_sizes = Histogram(
            f"{batching}input_batch_size", "Rows per request and input.", (), _BATCH_SIZES, listed=False
        )
        self._processed_sizes = Histogram(
            f"{batching}processed_batch_size", "Rows per batch, padding included.", (), _BATCH_SIZES, listed=False
        )
        self._paddings = Histogram(
            f"{batching}padding_size", "Padding rows.", ("execution_batch_size",), _BATCH_SIZES, listed=False
        )

    def _tf_serving_core(self) -> None:
        saved_model, core = ":tensorflow:cc:saved_model:", ":tensorflow:core:"
        self._loads = Counter(f"{saved_model}load_attempt_count", "Load attempts.", ("model_path", "status"))
        self._load_micros = Counter(f"{saved_model}load_latency", "Microseconds spent in loads.", ("model_path",))
        # TensorFlow counts graph runs under the same names, and dashboards plot the names; here embedserve does the
        # counting.
        self._graph_runs = Counter(f"{core}graph_runs", "Runs of models that ended with an answer.")
        self._graph_run_micros = Counter(f"{core}graph_run_time_usecs", "Microseconds spent in those runs.")
        self._session_runs = Counter(f"{core}direct_session_runs", "Such runs in graph sessions.")
        self._graph_builds = Counter(f"{core}graph_build_calls", "Versions loaded, and so graphs made ready to run.")
        self._graph_build_micros = Counter(
            f"{core}graph_build_time_usecs", "Microseconds spent in loads that succeeded, warm-up included."
        )

    def _ours(self) -> None:
        labels = ("model", "version", "signature")
        self._rows = Histogram("embedserve_batch_rows", "Rows per batch, without padding.", labels, _BATCH_SIZES)
        self._waits = Histogram("embedserve_queue_wait_seconds", "Wait in the batch queue.", labels, _WAIT_SECONDS)
        self._predictions = Histogram(
            "embedserve_predict_seconds", "Successful requests, from the queue to the outputs.", labels, _WAIT_SECONDS
        )
        self._dropped_lines = Counter(
            "embedserve_log_lines_dropped_total", "Lines that a log had no room for.", ("log",)
        )
        self._padding = Counter("embedserve_padding_rows_total", "Rows that were padding.", labels)
        self._stuck = Counter("embedserve_stuck_runs_total", "Runs left behind in their threads.", labels)
        self._returned = Counter("embedserve_stuck_runs_returned_total", "Stuck runs that ended after all.", labels)
        self._released = Counter(
            "embedserve_batches_released_total", "Batches by why they left the queue.", (*labels, "reason")
        )
        self._refusals = Counter(
            "embedserve_listener_refusals_total",
            "Connections and requests refused by the HTTP listener: a status, an error of HTTP/2, or a limit's name.",
            ("reason",),
        )

    @property
    def _of_versions(self) -> tuple[Family, ...]:
        """The families whose labels begin with model and version."""
        self._runs.count()  # A later count would bring the cells of a gone version back.
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
        self._load_micros.add((path,), micros(seconds))
        if error is None:
            self._graph_builds.add(())
            self._graph_build_micros.add((), micros(seconds))

    def warmup_finished(self, id: ServableId, path: str, seconds: float, records: int, error: Exception | None) -> None:
        """Count a replay of recorded requests."""
        status = _code_of(error).name
        self._warmup_latency.observe((path, status), micros(seconds))
        self._warmup_records.add((path, status), records)

    def run_finished(self, id: ServableId, signature_name: str, seconds: float, error: Exception | None) -> None:
        """Time a successful run of an API timed by TF Serving."""
        api = running_api.get()
        if error is None and api in ("Predict", "Classify", "Regress"):
            events = self._runs.events
            events.append(((id.name, api, id.version, signature_name), seconds))
            if len(events) >= NOTED:
                self._runs.count()

    def _count_runs(self, key: tuple[str, str, int, str], seconds: list[float]) -> None:
        name, api, version, signature_name = key
        self._runtime_latency.observe_all((name, api, "TF1"), all_micros(seconds))
        self._predictions.observe_all((name, str(version), signature_name), seconds)

    def graph_run_finished(self, id: ServableId, seconds: float, in_session: bool) -> None:
        """Count a run of a graph, and the time of the run."""
        self._graph_runs.add(())
        self._graph_run_micros.add((), micros(seconds))
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
        self.queue_waits(id, signature_name, (seconds,))

    def queue_waits(self, id: ServableId, signature_name: str, seconds: Sequence[float]) -> None:
        """Time the waits for a batch."""
        self._queuing.observe_all(("",), all_micros(seconds))
        self._waits.observe_all((id.name, str(id.version), signature_name), seconds)

    def request_enqueued(self, id: ServableId, signature_name: str, rows: int, inputs: int) -> None:
        """Count a request's rows, once per input tensor as TF Serving does."""
        self._input_sizes.observe((), rows, inputs)

    def requests_enqueued(self, id: ServableId, signature_name: str, rows: Sequence[int], inputs: int) -> None:
        """Count the rows of many requests."""
        self._input_sizes.observe_all((), rows, inputs)

    def request_finished(self, model_name: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        """Count an answer, and time a successful answer."""
        if code is Code.OK:
            if model_name not in self._known:
                if api:
                    self._know(model_name)
                model_name = self._bounded(model_name)
            events = self._answered.events
            events.append(((model_name, api, entrypoint), seconds))
            if len(events) >= NOTED:
                self._answered.count()
        else:
            self._requests.add((self._bounded(model_name), code.name))

    def _count_answers(self, labels: Labels, seconds: list[float]) -> None:
        self._requests.add((labels[0], Code.OK.name), len(seconds))
        self._request_latency.observe_all(labels, all_micros(seconds))

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
        found: list[tuple[Histogram, Labels, float]] = [
            (self._waits, labels, step.run.began - step.entered) for step in record.steps if step.run is not None
        ]
        if record.steps and record.answered:
            found.append((self._predictions, labels, record.answered - record.steps[0].entered))
        if record.transport:
            named = record.model, record.api, record.transport
            found.append((self._request_latency, named, micros(record.ended - record.began)))
        for family, values, value in found:
            family.exemplify(values, Exemplar(record.trace_id, record.span_id, value, at))

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


def _openmetrics_type(family: Family) -> tuple[str, str]:
    """Name and type in OpenMetrics; a counter without `_total`, as TF Serving has, is of an unknown type."""
    if family.kind != "counter":
        return family.name, family.kind
    bare = family.name.removesuffix("_total")
    return bare, "counter" if bare != family.name else "unknown"


def _canonical(limit: str) -> str:
    written: str = floatToGoString(float(limit))  # type: ignore[no-untyped-call]
    return written


def _openmetrics_lines(family: Family) -> Iterator[str]:
    """Yield the samples; limits of buckets are floats there, and a bucket may have an exemplar."""
    exemplars = family.exemplars() if isinstance(family, Histogram) else {}
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
