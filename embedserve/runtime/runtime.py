"""The objects of an entered registry: loop, pools, manager, source and labels.

The coroutine `start` starts all objects, and `aclose` ends all objects. Each entry has a new `Runtime`, so that a
registry can be entered again on another loop. Loop only, except the methods of `OwnerLoop` and the snapshots.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from embedserve.batching.routing import make_predictor
from embedserve.batching.watchdog import StuckRun, VersionRuns
from embedserve.call_record import CallRecord, current_call
from embedserve.concurrency.codec_pool import CodecPool
from embedserve.concurrency.forks import check_fork
from embedserve.concurrency.inflight import InflightBytes
from embedserve.concurrency.load_pool import LoadPool
from embedserve.concurrency.owner_loop import OwnerLoop
from embedserve.concurrency.threads import RunPool
from embedserve.config import ModelConfig, RegistryOptions
from embedserve.errors import (
    Code,
    DeadlineExceededError,
    InvalidInputError,
    InvalidModelSpecError,
    LoadError,
    NotReadyError,
    ServableNotFoundError,
    ServingError,
    StartError,
)
from embedserve.handle import Submission, unknown_signature
from embedserve.lifecycle.managed_version import ManagedVersion
from embedserve.lifecycle.manager import AspiredVersion, Manager
from embedserve.lifecycle.monitor import Monitor
from embedserve.lifecycle.source_protocol import MakeSource, StoreStatistics
from embedserve.lifecycle.thread_loader import LoaderThreads, ThreadLoader
from embedserve.lifecycle.transition_policy import TransitionPolicy, availability_preserving, resource_preserving
from embedserve.observer import Observers, running_api
from embedserve.priority import Priority, PriorityName, priority_named
from embedserve.request_log import RequestLogs
from embedserve.request_log.records import predict_exchange
from embedserve.runtime.control import Control
from embedserve.runtime.models import Models
from embedserve.runtime.source import CombinedSource
from embedserve.runtime.starting import LOOK_INTERVAL, Outcome, Start
from embedserve.servable import Array, BlockingLoader, Call, Loader, Predictor, Servable, ServableId, Tensors
from embedserve.signature import DEFAULT_SIGNATURE, Signature
from embedserve.store_url import StoreUrl
from embedserve.tfs.constants import TIMED_OUT

if TYPE_CHECKING:
    from embedserve.lifecycle.coordinator import Coordinator
    from embedserve.lifecycle.source import VersionDirectory

__all__ = ["Collaborators", "MakeBlockingLoader", "MakeLoader", "RegistryStatistics", "Runtime"]

logger = logging.getLogger("embedserve")

T = TypeVar("T")


@dataclass(frozen=True)
class RegistryStatistics:
    """A snapshot of the registry's work.

    Attributes:
        in_flight: Requests with a hold on a version, by `(model, version)`.
        queues: The statistics of each version's predictor, by `(model, version)`.
        busy_threads, run_threads: Number of working run threads, and of all run threads.
        reserved_bytes: Bytes of request bodies held by the adapters.
        stores: The progress of the sync of each model in a remote store, by model.
        stuck_runs: Runs beyond the time limit, left behind in the run threads, until their return.
    """

    in_flight: Mapping[tuple[str, int], int]
    queues: Mapping[tuple[str, int], Any]
    busy_threads: int
    run_threads: int
    reserved_bytes: int
    stores: Mapping[str, StoreStatistics] = field(default_factory=dict)
    stuck_runs: tuple[StuckRun, ...] = ()


MakeBlockingLoader: TypeAlias = "Callable[[ServableId, VersionDirectory, ModelConfig, RegistryOptions], BlockingLoader]"
MakeLoader: TypeAlias = "Callable[[ServableId, VersionDirectory, ModelConfig], Loader]"
MakePredictor: TypeAlias = "Callable[[ManagedVersion, Servable], Predictor]"

_POLICIES = {"availability": availability_preserving, "resource": resource_preserving}


def load_saved_model(
    id: ServableId, directory: VersionDirectory, config: ModelConfig, options: RegistryOptions
) -> BlockingLoader:
    """Make the blocking loader of a SavedModel."""
    from embedserve.saved_model.load.loader import SavedModelLoader

    return SavedModelLoader(id, directory.path, config, options, directory.fingerprint)


@dataclass(frozen=True)
class Collaborators:
    """The exchangeable parts of an entry. By default an entry finds, loads and runs SavedModels in its own process.

    Attributes:
        make_source: Makes the origin of the versions.
        make_loader: Makes the loader of a version; None loads SavedModels in threads.
        make_predictor: Makes the predictor of a loaded version; None is `Runtime.predictor_of`.
        policy: Names the next load or unload; None is the policy of the option `transition`.
        coordinator: Decides when a loaded version may answer; None publishes at once.
        before_request: Called before each request looks for its version; an error refuses the request.
    """

    make_source: MakeSource = CombinedSource
    make_loader: MakeLoader | None = None
    make_predictor: MakePredictor | None = None
    policy: TransitionPolicy | None = None
    coordinator: Coordinator | None = None
    before_request: Callable[[], None] | None = None


class Runtime(OwnerLoop):
    """An entry of a registry."""

    def __init__(
        self,
        options: RegistryOptions,
        root: Path | StoreUrl | None,
        models: Sequence[ModelConfig],
        observers: Observers,
        collaborators: Callable[[Runtime], Collaborators] | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        self.observers = observers
        self._check_method_names = options.enable_signature_method_name_check
        self.draining = False
        self.inflight = InflightBytes(options.max_inflight_bytes, options.max_request_bytes)
        self.request_logs = RequestLogs(options, observers, self.call_soon)
        self.monitor = Monitor()
        parts = Collaborators() if collaborators is None else collaborators(self)
        if parts.make_loader is None:
            check_fork()
        self.make_loader = parts.make_loader or self.in_threads(load_saved_model)
        self._before_request = parts.before_request
        self._coordinator = parts.coordinator
        self._make_threads()
        self._stuck: dict[ManagedVersion, VersionRuns] = {}
        self.manager = self._make_manager(parts)
        self._start = Start(options.start_requires or ("all" if root is None else "any"), discovers=root is not None)
        self._starting: asyncio.Task[None] | None = None
        self.closing: asyncio.Task[None] | None = None
        self.source = parts.make_source(options, root, self, self.manager.directories)
        labels_changed = None if self._coordinator is None else self._coordinator.serving_changed
        self.models = Models(self.manager, self.monitor, self.source, labels_changed)
        self.control = Control(options, self.models, self.manager, self.monitor, self.source, observers)
        self.control.begin(model.name for model in models)
        if models:
            self.source.set_models(models)

    def _make_threads(self) -> None:
        options = self.options
        self._load_pool = LoadPool(self.loop, options.num_load_threads)
        self._codec_pool = CodecPool(self.loop)
        self._run_pool = RunPool(
            self.loop,
            options.num_batch_threads,
            max_stuck=options.max_stuck_runs,
            loop_run_limit=options.loop_run_limit,
        )
        self._loader_threads = LoaderThreads(self._load_pool, self._run_pool, self.observers, options.load_timeout)

    def _make_manager(self, parts: Collaborators) -> Manager:
        return Manager(
            parts.make_predictor or self.predictor_of,
            self.options,
            monitor=self.monitor,
            observers=self.observers,
            policy=parts.policy or _POLICIES[self.options.transition],
            coordinator=parts.coordinator,
        )

    def in_threads(self, make: MakeBlockingLoader) -> MakeLoader:
        """Return a maker of loaders whose steps run in the load threads."""

        def make_loader(id: ServableId, directory: VersionDirectory, config: ModelConfig) -> Loader:
            warmup = self.options.warmup if config.warmup is None else config.warmup
            blocking = make(id, directory, config, self.options)
            return ThreadLoader(id, str(directory.path), blocking, self._loader_threads, warmup != "none")

        return make_loader

    async def run_in_thread(self, call: Callable[..., T], *args: object) -> T:
        """Run a large decode or encode off the loop."""
        return await self._codec_pool.run(call, *args)

    # Requests.

    def resolve(self, name: str, version: int | None, label: str | None) -> ManagedVersion:
        """Return the version for a model spec (TF Serving: server_core.cc).

        Raises:
            InvalidModelSpecError: No name, or an unknown label.
            ServableNotFoundError: The version is not available.
            NotReadyError: As ServableNotFoundError, before the first loads have ended.
        """
        if self._before_request is not None:
            self._before_request()
        try:
            found = self._resolve(name, version, label)
            if (record := current_call.get()) is not None:
                record.model, record.version = found.id.name, found.id.version
            return found
        except ServableNotFoundError as error:
            if self.started:
                raise
            raise NotReadyError(f"the registry is starting: {error}") from None

    def _resolve(self, name: str, version: int | None, label: str | None) -> ManagedVersion:
        if not isinstance(name, str):
            raise InvalidModelSpecError(f"the name of a model must be a string, got {name!r}")
        if version is None and label is None:
            if not name:
                raise InvalidModelSpecError("ModelSpec has no name specified.")
            return self.manager.latest(name)
        if not name:
            raise InvalidModelSpecError("ModelSpec has no name specified.")
        if label is not None:
            if not isinstance(label, str):
                raise InvalidModelSpecError(f"label must be a string, got {label!r}")
            if version is not None:
                raise InvalidModelSpecError(f"give a version or a label, not both: version {version}, label {label!r}")
            labels = self.models.labels.get(name, {})
            if label not in labels:
                known = ", ".join(sorted(labels)) or "none"
                raise InvalidModelSpecError(
                    f"Unrecognized servable version label: {label}; labels of {name!r}: {known}"
                )
            version = labels[label]
        assert version is not None
        if type(version) is not int:
            version = _version_number(version)
        return self.manager.specific(name, version)

    def predict(self, call: Call, inputs: object) -> Coroutine[object, None, dict[str, Array]]:
        """Return the answer to a request from the process itself, to be awaited at once; on the loop.

        Raises:
            ServingError: As `resolve`; awaiting raises the errors of `predict_on`.
        """
        if self.observers.recording or call.timing is not None:
            return self._recorded(None, call, inputs)
        return self._predict(call, inputs)

    def _predict(self, call: Call, inputs: Any) -> Coroutine[Any, Any, dict[str, Array]]:
        version = self.resolve(call.name, call.version, call.label)
        if self.request_logs:
            return self._logged(version, call, inputs)
        return self.predict_on(version, call, inputs)

    async def predict_held(self, version: ManagedVersion, call: Call, inputs: object) -> dict[str, Array]:
        """As `predict`, on a held version and without a request log."""
        if self.observers.recording or call.timing is not None:
            return await self._recorded(version, call, inputs)
        return await self.predict_on(version, call, inputs)

    async def _recorded(self, held: ManagedVersion | None, call: Call, inputs: object) -> dict[str, Array]:
        """As `predict`, or as `predict_on` with a held version, for observers that may want a record of the call."""
        record = None
        if current_call.get() is None:  # Else the call belongs to an adapter's call, which has the record.
            record = self.observers.begin_call("", timing=call.timing is not None)
        if record is None:
            return await (self._predict(call, inputs) if held is None else self.predict_on(held, call, inputs))
        record.api, record.model = running_api.get().lower(), str(call.name)
        with self.observers.recorded(record, call.timing):
            if held is None:
                return await self._predict(call, inputs)
            record.version = held.id.version
            return await self.predict_on(held, call, inputs)

    async def bridge_predict(self, call: Call, inputs: object) -> dict[str, Array]:
        """As `predict`, from a foreign loop."""

        async def here() -> dict[str, Array]:
            return await self.predict(call, inputs)

        return await self.bridge(here())

    async def _logged(self, version: ManagedVersion, call: Call, inputs: object) -> dict[str, Array]:
        """As `predict_on`, and logs the request, which no adapter does."""
        outputs = await self.predict_on(version, call, inputs)
        log = self.request_logs.sampled(version.id.name)
        if log is not None:
            signature = version.signatures[call.signature_name or DEFAULT_SIGNATURE]
            with suppress(ServingError):  # A caller who changes an input during the call gets no log record.
                sides = (signature.bind(inputs), outputs)
                kept = [{name: array.copy() for name, array in side.items()} for side in sides]
                log.add(predict_exchange(version.id.name, version.id.version, signature, *kept))
        return outputs

    async def predict_on(self, version: ManagedVersion, call: Call, inputs: object) -> dict[str, Array]:
        """Bind, run and return a request on a version; the version is held during the call. The hot path."""
        _, _, _, signature_name, output_filter, timeout, priority, cast, _ = call
        named = signature_name or DEFAULT_SIGNATURE
        signature = version.signatures.get(named) if isinstance(named, str) else None
        if signature is None:
            assert version.servable is not None
            raise unknown_signature(signature_name, version.signatures, version.servable.signature_defs)
        if self._check_method_names:
            signature.check_predict_method()
        bound, names = signature.bind(inputs, cast=cast), signature.pick(output_filter) if output_filter else None
        version.hold()
        try:
            return await self.run_bound(version, signature, bound, names, timeout, priority)
        finally:
            version.release()

    def run_bound(
        self,
        version: ManagedVersion,
        signature: Signature,
        bound: Tensors,
        names: tuple[str, ...] | None,
        timeout: float | None,
        priority: PriorityName,
    ) -> Awaitable[dict[str, Array]]:
        """Run a bound request on a version; the caller holds the version until the answer."""
        predictor = version.predictor
        assert predictor is not None
        if (record := current_call.get()) is not None:
            record.signature = signature.name
        level = Priority.NORMAL if priority == "normal" else priority_named(priority)
        deadline = None if timeout is None else self.deadline(timeout)
        if self.observers.present:
            submit = partial(predictor.submit, signature, bound, names, deadline, level)
            answer: Awaitable[dict[str, Array]] = self._observed(version.id, signature.name, submit)
        else:
            answer = predictor.submit(signature, bound, names, deadline, level)
        return answer if record is None else _answered(record, answer)

    def submit(self, version: ManagedVersion, signature: Signature, bound: Tensors, submission: Submission) -> None:
        """As `run_bound`, with the outcome for `submission`."""
        predictor = version.predictor
        assert predictor is not None
        level = Priority.NORMAL if submission.priority == "normal" else priority_named(submission.priority)
        deadline = None if submission.timeout is None else self.deadline(submission.timeout)
        if self.observers.present:
            submission.observe(self.observers, version.id, signature.name, self.loop)
        predictor.submit_to(submission, signature, bound, submission.output_names, deadline, level)

    def deadline(self, timeout: float) -> float | None:
        """Return the loop's time after `timeout` seconds; None for infinity.

        Raises:
            InvalidInputError: The timeout is no number of seconds.
            DeadlineExceededError: The timeout is 0 or less.
        """
        if type(timeout) is not float or not 0 < timeout < math.inf:
            if isinstance(timeout, bool) or not isinstance(timeout, int | float | np.integer | np.floating):
                raise InvalidInputError(f"timeout must be a number of seconds or None, got {timeout!r}")
            if np.isnan(timeout):
                raise InvalidInputError("timeout must be a number of seconds or None, got nan")
            if timeout == math.inf:
                return None
            if timeout <= 0:
                raise DeadlineExceededError(
                    f"{TIMED_OUT}: no time is left with a timeout of {timeout:g} s; None waits as long as it takes"
                )
        return self.loop.time() + float(timeout)

    async def _observed(
        self, id: ServableId, signature_name: str, submit: Callable[[], Awaitable[dict[str, Array]]]
    ) -> dict[str, Array]:
        started = self.loop.time()
        error: Exception | None = None
        try:
            return await submit()
        except asyncio.CancelledError:
            error = ServingError("the caller gave the request up", code=Code.CANCELLED)
            raise
        except Exception as raised:
            error = raised
            raise
        finally:
            if self.observers.present:
                self.observers.run_finished(id, signature_name, self.loop.time() - started, error)

    def predictor_of(self, version: ManagedVersion, servable: Servable) -> Predictor:
        """Make the predictor of a loaded version, batching or not, over the run threads.

        Raises:
            LoadError: The model was removed meanwhile.
        """
        if version.id.name not in self.models.configs:
            raise LoadError(f"model {version.id.name} was removed while its version was loaded", code=Code.ABORTED)
        batching, options = version.loader.batching or self.options.batching_of(self.models.configs[version.id.name])
        return make_predictor(
            servable,
            self._runs_of(version, servable),
            self._run_pool,
            self.observers,
            options,
            batching,
            self.options.max_pending_requests,
        )

    def _runs_of(self, version: ManagedVersion, servable: Servable) -> VersionRuns:
        own = self.models.configs[version.id.name].run_timeout
        run_timeout = self.options.run_timeout if own is None else own
        runs: VersionRuns = VersionRuns(
            version.id,
            self.observers,
            run_timeout,
            lambda: self._stuck_changed(version, runs),
            in_session=servable.kind in ("session", "frozen", "xla"),
        )
        return runs

    def _stuck_changed(self, version: ManagedVersion, runs: VersionRuns) -> None:
        if runs.stuck:
            self._stuck[version] = runs
        else:
            self._stuck.pop(version, None)
        self.manager.refresh(version)

    # Reports from the source (lifecycle/source_protocol.py: SourceListener).

    def on_models(self, configs: Mapping[str, ModelConfig]) -> None:
        """Take a changed set of models: discovered, configured anew, or gone."""
        for name in self.models.configs.keys() - configs.keys():
            logger.info("model %s is gone; its versions are unloaded", name)
            self.observers.changed("model_removed", name)
            self.manager.set_aspired_versions(name, {})
            self.monitor.set_waiting(name, {})
            self.monitor.set_trouble(name, None)
            self.control.forget(name)
            self.models.labels.pop(name, None)
        for name, config in configs.items():
            if name not in self.models.configs:
                logger.info("Adding model: %s at %s", name, config.base_path)
                self.observers.changed("model_added", name, detail=str(config.base_path))
            self.models.labels.setdefault(name, dict(config.version_labels))
        self.models.configs = dict(configs)
        self.request_logs.set_models(self.models.configs)
        if self._coordinator is not None:
            self._coordinator.models_changed(self.models.configs)

    def on_aspired(self, name: str, aspired: Mapping[int, VersionDirectory]) -> None:
        """Take the aspired versions of a model."""
        self.manager.set_aspired_versions(
            name, {number: self._aspired_version(name, directory) for number, directory in aspired.items()}
        )

    def _aspired_version(self, name: str, directory: VersionDirectory) -> AspiredVersion:
        config = self.models.configs[name]
        id = ServableId(name, directory.version)
        return AspiredVersion(
            partial(self.make_loader, id, directory, config), directory.fingerprint, str(directory.path)
        )

    def on_waiting(self, name: str, reasons: Mapping[int, str]) -> None:
        """Take the reasons for directories that look like versions but cannot be loaded yet."""
        self.monitor.set_waiting(name, reasons)

    def on_trouble(self, name: str, trouble: str | None) -> None:
        """Take the obstacle to finding new versions of a model, or None without an obstacle."""
        self.monitor.set_trouble(name, trouble)

    # Start and stop.

    async def start(self, wait: bool) -> None:
        """Begin to watch and load; with `wait` return once the models required by `start_requires` are served.

        Raises:
            StartError: Time is over, or no missing model can succeed; the message has the reason for each model.
        """
        await self.source.start()
        self._starting = self.loop.create_task(self._follow_start(), name="embedserve-start")
        if wait:
            await self.wait_until_ready(self.options.start_timeout)

    async def _follow_start(self) -> None:
        """Notice the end of the start, with or without a waiting caller."""
        while not self._start.over:
            await self.monitor.wait_until(lambda: self._look() is Outcome.SERVING, LOOK_INTERVAL)

    def _look(self) -> Outcome:
        return self._start.look({name: self.models.prospect(name) for name in self.models.configs}, self.source.unread)

    async def wait_until_ready(self, timeout: float) -> None:
        """Wait until as many models have been served as `start_requires` asks for; an empty root is not waited for.

        Raises:
            StartError: As `start`.
        """
        if not self.models.configs and self.source.misused:
            raise StartError(self.source.diagnosis or "")
        deadline = self.loop.time() + timeout
        while (outcome := self._look()) is Outcome.PENDING and (left := deadline - self.loop.time()) > 0:
            await self.monitor.wait_until(lambda: self._look() is not Outcome.PENDING, min(left, LOOK_INTERVAL))
        if outcome in (Outcome.SERVING, Outcome.EMPTY) or self._start.settle_for_less():
            return
        reasons = {name: reason for name, reason in self.models.readiness().items() if reason is not None}
        if not reasons and self.source.diagnosis is not None:
            raise StartError(self.source.diagnosis)
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise StartError(f"{len(reasons)} of {len(self.models.configs)} model(s) did not become available: {listed}")

    @property
    def started(self) -> bool:
        """Whether the models required by `start_requires` have been served; readable from any thread."""
        return self._start.over

    def unready(self) -> str | None:
        """Return why the process as a whole is not ready, or None.

        Later arrivals, removals and failures are no reason; a stuck run in a serving model is a reason.
        """
        if self.draining:
            return "the registry is draining: shutdown has begun"
        if self._start.over:
            stuck = [name for name in self.models.configs if self.models.trouble(name) is not None]
            return f"stuck: {', '.join(stuck)}" if stuck else None
        if self.source.unread:
            return self.source.diagnosis or "the directories of the models are looked at for the first time"
        if not self.models.configs:
            return "no model has been found yet"
        return f"the start waits for {', '.join(self._start.missing(self.models.configs))}"

    def liveness(self) -> str | None:
        """Return why only a new process can help: stuck runs have used up the threads. None in a healthy process."""
        return self._run_pool.trouble or self._load_pool.trouble

    def statistics(self) -> RegistryStatistics:
        """Return a snapshot of the registry's work; readable from any thread."""
        serving = self.manager.serving()
        return RegistryStatistics(
            in_flight={(v.id.name, v.id.version): v.handles for v in serving},
            queues={(v.id.name, v.id.version): p.statistics() for v in serving if (p := v.predictor) is not None},
            busy_threads=self._run_pool.busy,
            run_threads=self._run_pool.size,
            reserved_bytes=self.inflight.reserved,
            stores=self.source.stores(),
            stuck_runs=tuple(run for runs in list(self._stuck.values()) for run in list(runs.stuck.values())),
        )

    async def aclose(self) -> None:
        """Drain and unload all versions; bounded by `drain_timeout`."""
        self.draining = True
        if self._starting is not None:
            self._starting.cancel()
        await self.source.aclose()
        await self.manager.aclose()
        self.request_logs.close()
        await self._codec_pool.run(self.request_logs.wait_closed)  # A hanging load may hold the load threads.
        self._close_pools()

    def _close_pools(self) -> None:
        self.closed = True
        self.request_logs.close()
        self.source.release()
        self._run_pool.close()
        self._load_pool.close()
        self._codec_pool.close()

    def abandon(self) -> None:
        """Let the threads of a dead entry end; a forked child has no threads."""
        self.draining = self.closed = True
        if os.getpid() == self.pid:
            self._close_pools()


async def _answered(record: CallRecord, answer: Awaitable[dict[str, Array]]) -> dict[str, Array]:
    """Await an answer, and note the time in the record of the call."""
    try:
        return await answer
    finally:
        record.answered = perf_counter()


def _version_number(version: object) -> int:
    if isinstance(version, bool) or not isinstance(version, int | np.integer):
        raise InvalidModelSpecError(f"version must be an integer, got {version!r}")
    return int(version)
