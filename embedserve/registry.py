"""ModelRegistry: the public runtime, used by `async with`, by `with`, or as a host app's lifespan.

The registry holds no serving state: each entry makes a `Runtime`, and leaving ends the runtime. A registry may
therefore be entered again, on any loop.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import TracebackType
from typing import NoReturn, Self, TypeVar, Unpack

from embedserve.call_record import CallTiming
from embedserve.concurrency.inflight import InflightBytes
from embedserve.concurrency.owner_loop import PrivateLoop, blocking, check_asyncio, check_threads
from embedserve.config import ModelLike, RegistryKeywords, RegistryOptions, location, model_configs, validated
from embedserve.errors import CUT_SHORT, Code, ConfigError, NotReadyError, RegistryStateError, ServingError, StartError
from embedserve.events import Event
from embedserve.handle import Acquisition, ModelHandle
from embedserve.lifecycle.monitor import VersionStatus
from embedserve.observer import Observer, Observers
from embedserve.priority import PriorityName
from embedserve.runtime.runtime import Collaborators, RegistryStatistics, Runtime
from embedserve.servable import Array, Call
from embedserve.signature import DEFAULT_SIGNATURE
from embedserve.store_url import StoreUrl

__all__ = ["ModelRegistry", "RegistryStatistics"]

T = TypeVar("T")


class ModelRegistry:
    """Loads SavedModels, follows their directories, and answers requests.

    Args:
        root: Directory or URL of models, `root/<name>/<version>/saved_model.pb`; all models below are found, new models
            too.
        models: Listed models, instead of or besides the models under `root`. An entry is a `ModelConfig`, a dictionary
            of options, or a path. A path ends with the model's name (`models/digits` is the model `digits`).
        observers: Called at each event; see `embedserve.observer`.
        collaborators: Makes the exchangeable parts of each entry, for servers and tests; None for the usual parts.
        options: Any field of `RegistryOptions`, for example `batching="auto"`, `num_batch_threads`, `start_timeout`.

    Raises:
        ConfigError: Neither `root` nor `models`, a name twice, an unknown option or a bad value.

    Imports, threads and file reads begin only at the entry by `async with`, `with` or `lifespan`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | StoreUrl | None = None,
        *,
        models: Sequence[ModelLike] | None = None,
        observers: Iterable[Observer] = (),
        collaborators: Callable[[Runtime], Collaborators] | None = None,
        **options: Unpack[RegistryKeywords],
    ) -> None:
        if root is None and models is None:
            raise ConfigError(
                "give ModelRegistry a directory of models, or models=[ModelConfig(name=..., base_path=...)]"
            )
        self._root = None if root is None else location(root)
        self._models = tuple(model_configs(models))
        self.options = validated(RegistryOptions, options)
        self.observers = Observers(observers, self.options.trusted_proxies, always_timed=self.options.timing_headers)
        self._collaborators = collaborators
        self._runtime: Runtime | None = None
        self._entering: Future[None] | None = None
        self._last_status: Mapping[str, tuple[VersionStatus, ...]] = {}
        self._private: PrivateLoop | None = None
        self._claiming = threading.Lock()
        self._at_exit = partial(_leave, weakref.ref(self))

    def __repr__(self) -> str:
        what = repr(str(self._root)) if self._root is not None else f"models={[model.name for model in self._models]}"
        runtime = self._runtime
        if runtime is None:
            starting = self._entering is not None and not self._entering.done()
            return f"<ModelRegistry {what}, {'starting' if starting else 'not entered'}>"
        if self._entry is None:
            return f"<ModelRegistry {what}, entered in process {runtime.pid}, which forked this one>"
        serving = ", ".join(runtime.monitor.available()) or "nothing"
        return f"<ModelRegistry {what}, {'draining' if runtime.draining else 'serving'} {serving}>"

    # Entering and leaving.

    async def start(self, *, wait: bool = True) -> None:
        """Enter on the running loop; `wait=False` returns before the first load has ended.

        Raises:
            StartError: Fewer models became available than `start_requires` demands; the registry is left again.
            RegistryStateError: The registry is entered already or cannot run here: trio runs the coroutine, gevent has
                patched the process, or TensorFlow had run in the parent before the fork.
        """
        check_asyncio()
        if self._claim_entry() is not None:
            raise RegistryStateError(f"{self!r} is entered already; leave it first")
        await self._start(wait)

    def _claim_entry(self) -> Future[None] | None:
        """Return None for the caller to enter; else the future of the current or begun entry. From any thread.

        Raises:
            RegistryStateError: No entry is possible in the process: greenlets replace the threads.
        """
        check_threads()
        with self._claiming:
            if self._runtime is not None and self._runtime.dead:
                self._abandon(self._runtime)
            if self._entering is not None and not (self._entering.done() and self._runtime is None):
                return self._entering
            self._entering = Future()
            return None

    async def _start(self, wait: bool) -> None:
        entering = self._entering
        assert entering is not None
        try:
            runtime = Runtime(self.options, self._root, self._models, self.observers, self._collaborators)
            self._runtime = runtime
            try:
                await runtime.start(wait)
            except BaseException:
                await self._end(runtime)
                raise
        except BaseException as error:
            entering.set_exception(error if isinstance(error, Exception) else StartError("the start was given up"))
            raise
        entering.set_result(None)

    async def ensure_started(self) -> None:
        """Enter on the running loop, or wait for an entry already begun; from any loop.

        For hosts with a start at the first request. Further calls are optional and cheap.

        Raises:
            StartError, RegistryStateError: As `start`, for each waiting caller; the next call tries again.
        """
        if not await self._enter_or_join():
            await self.wait_until_ready()

    async def _enter_or_join(self) -> bool:
        """Enter, or wait for an entry already begun; return whether the call has entered and must leave."""
        if self.started:
            return False
        check_asyncio()
        other = self._claim_entry()
        if other is None:
            await self._start(wait=True)
        else:
            await asyncio.shield(asyncio.wrap_future(other))
        return other is None

    def ensure_started_sync(self) -> None:
        """As `ensure_started`, from any thread: enters on a private loop thread unless the registry is entered.

        Leave by `close`; the end of the process also leaves.

        Raises:
            StartError, RegistryStateError: As `ensure_started`.
        """
        if self.started:
            return
        other = self._claim_entry()
        if other is None:
            self._start_privately()
        else:
            if self._runtime is not None and self._runtime.on_loop():
                raise RegistryStateError("the registry's own event loop would wait for itself: await ensure_started()")
            other.result()
            self._sync(self.wait_until_ready)

    def _start_privately(self) -> None:
        private = PrivateLoop()
        try:
            private.run(self._start(wait=True))
        except BaseException:
            private.close()
            raise
        self._private = private
        atexit.register(self._at_exit)

    def _abandon(self, runtime: Runtime) -> None:
        """Forget an entry whose loop is closed or in another process: an orderly end is impossible."""
        runtime.abandon()
        self._runtime = self._private = self._entering = None

    async def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait for the models required by `start_requires`, after `start(wait=False)`.

        Raises:
            StartError: The time (`start_timeout` if None) is over, or no missing model can still succeed.
        """
        limit = self.options.start_timeout if timeout is None else timeout
        await self._on_loop(lambda runtime: runtime.wait_until_ready(limit))

    def begin_drain(self) -> None:
        """Take readiness down while requests are still answered; the first step of a shutdown."""
        self._here().draining = True

    def give_up(self) -> None:
        """Answer all waiting, running and further requests with UNAVAILABLE, because the drain's time is over.

        For servers on the point of closing client connections; leaving comes next. Loop only.
        """
        self._here().manager.abort(lambda id: ServingError(CUT_SHORT, code=Code.UNAVAILABLE))

    async def aclose(self) -> None:
        """Leave: requests in flight end (at most `drain_timeout`), every version is unloaded."""
        if self._runtime is not None and self._runtime.dead:
            self._abandon(self._runtime)
        if self._runtime is not None:
            await self._on_loop(self._end)

    async def _end(self, runtime: Runtime) -> None:
        closing = runtime.closing = runtime.closing or asyncio.ensure_future(runtime.aclose())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait([closing])  # Bounded by drain_timeout; half a shutdown would leak threads and memory.
            raise
        finally:
            if self._runtime is runtime:
                self._last_status = runtime.monitor.snapshot
                self._runtime = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Enter for the time of a host application: `Starlette(lifespan=registry.lifespan)`.

        Inside a host's own lifespan, write `async with registry.lifespan(app): yield`.
        An already entered registry, on any loop, is used and stays entered afterwards. After `start(wait=False)` the
        host answers at once, health first, while models still load.

        Raises:
            StartError, RegistryStateError: As `start`.
        """
        entered = await self._enter_or_join()
        try:
            yield
        finally:
            if entered:
                await self.aclose()

    def __enter__(self) -> Self:
        """Enter on a private loop thread, for scripts, Flask, Django, Celery; use the `_sync` methods."""
        if self._claim_entry() is not None:
            raise RegistryStateError(f"{self!r} is entered already; leave it first")
        self._start_privately()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave, from any thread but the registry's loop; as `aclose`. A registry without an entry is left as is.

        Raises:
            RegistryStateError: The caller is on the registry's own loop: await `aclose()` instead.
        """
        private, runtime = self._private, self._runtime
        if runtime is not None and runtime.dead:
            self._abandon(runtime)  # A forked child has the object without the threads.
        elif private is not None:
            self._private = None
            atexit.unregister(self._at_exit)
            try:
                private.run(self.aclose())
            finally:
                private.close()
        elif runtime is not None:
            if runtime.on_loop():
                raise RegistryStateError(
                    "close() on the registry's own event loop would wait for itself: await aclose()"
                )
            try:
                self._sync(self.aclose)
            except RegistryStateError:
                if not runtime.closed:  # Else another thread has just left the registry.
                    raise

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled, as for a child process."""
        raise TypeError(
            "a ModelRegistry cannot be pickled: make it at module level, and enter it in the process that asks "
            "(the initializer of a pool, Celery's worker_process_init)"
        )

    def __del__(self) -> None:
        private = getattr(self, "_private", None)
        runtime = getattr(self, "_runtime", None)
        if private is None or runtime is None or runtime.dead:
            return
        warnings.warn(f"{self!r} was dropped without being left; it is left now", ResourceWarning, stacklevel=1)
        with suppress(RuntimeError):  # The loop may have ended.
            private.close_after(runtime.aclose())

    # Requests.

    async def predict(
        self,
        name: str,
        inputs: object,
        *,
        version: int | None = None,
        label: str | None = None,
        signature_name: str = DEFAULT_SIGNATURE,
        output_filter: Sequence[str] | None = None,
        timeout: float | None = None,
        priority: PriorityName = "normal",
        timing: CallTiming | None = None,
    ) -> dict[str, Array]:
        """Answer a request with the latest available version, or with the requested version.

        Args:
            name: The model.
            inputs: Values by input name; a table (DataFrame of pandas or polars, Table or RecordBatch of pyarrow) or a
                list of records with a column for each input; or the bare value of a signature with a single input.
                Python numbers and lists take the declared dtype; arrays, `tf.Tensor`s and columns are cast where
                `np.can_cast(..., "same_kind")` allows it; `str` becomes UTF-8 bytes.
            version, label, signature_name: The version by number or by label, and the version's signature.
            output_filter: Names of the outputs to return; None or empty returns all.
            timeout: Seconds; None and infinity set no bound. Cancelling the call gives the request up.
            priority: `high` overtakes waiting `normal` requests, and `normal` overtakes `low`. In a full queue the
                newest request of the lowest priority gives way. A run in every eight goes to the oldest request.
            timing: Takes the times of the call at its end, also of a failed call.

        Returns:
            Outputs by name, dtypes and shapes as TensorFlow made them; string outputs are object arrays of `bytes`. The
            arrays may be views of a batch's output: copy an array before keeping the array for long.

        Raises:
            ServableNotFoundError: The model or version is not available.
            InvalidModelSpecError: Unknown label, or a name, version or label of a wrong type.
            SignatureNotFoundError: The name of the signature is unknown.
            InvalidInputError: Names, dtypes or shapes do not fit, a value is missing or out of the dtype's range, or
                priority or timeout is invalid.
            QueueFullError: The queue is full, or a request of higher priority took the place of the request.
            OverloadedError: With adaptive batching: the waiting requests take longer than `timeout`.
            DeadlineExceededError: `timeout` passed, or is shorter than a run takes (with adaptive batching).
            InferenceError: TensorFlow failed; the code is TensorFlow's.
            RegistryStateError: Not entered, closed, or in a forked child.
        """
        runtime = self._here()
        call = Call(name, version, label, signature_name, output_filter, timeout, priority, True, timing)
        if asyncio._get_running_loop() is not runtime.loop:
            return await runtime.bridge_predict(call, inputs)
        return await runtime.predict(call, inputs)

    predict_sync = blocking(predict)

    def acquire(self, name: str, *, version: int | None = None, label: str | None = None) -> Acquisition:
        """Hold a loaded version: `async with registry.acquire(name) as handle`.

        Raises:
            ServableNotFoundError, InvalidModelSpecError, RegistryStateError: On entering, as `predict`.
        """
        return Acquisition(self._here, name, version, label)

    def acquire_sync(self, name: str, *, version: int | None = None, label: str | None = None) -> ModelHandle:
        """`with registry.acquire_sync(name) as handle`: as `acquire`, from any thread but the registry's loop."""

        async def acquire() -> ModelHandle:
            return self.acquire_now(name, version=version, label=label)

        return self._sync(acquire)

    def acquire_now(self, name: str, *, version: int | None = None, label: str | None = None) -> ModelHandle:
        """As `acquire`, synchronously on the registry's loop; for adapters. Release the handle, or use `with`."""
        runtime = self._runtime or self._here()
        return ModelHandle(runtime, runtime.resolve(name, version, label))

    def _sync(self, call: Callable[[], Awaitable[T]]) -> T:
        if self._runtime is None:
            check_threads()
        return self._here().call_sync(call)

    # Changes on demand.

    async def reconfigure(self, models: Iterable[ModelLike], *, wait: bool = True) -> None:
        """Serve exactly the listed models and the models discovered under `root`, if given.

        Returns when each added model is available.

        Raises:
            ConfigError: A name twice, or an entry without a model. The served models are unchanged.
            ServingError: FAILED_PRECONDITION for a label on an unavailable version; the configuration is unchanged.
                UNKNOWN for an added model with a failed load; the rest of the configuration is in force.
        """
        configs = model_configs(models)
        await self._on_loop(lambda runtime: runtime.control.reconfigure(configs, wait))

    reconfigure_sync = blocking(reconfigure)

    async def look_again(self) -> None:
        """Have every directory and store scanned soon, whatever `poll_interval` says; does not wait for the scans."""

        async def look(runtime: Runtime) -> None:
            runtime.source.hint()

        await self._on_loop(look)

    async def pin(self, name: str, *versions: int) -> None:
        """Serve exactly the versions until `unpin`: a roll back. Without versions the model is unloaded.

        Raises:
            ServableNotFoundError: The model or a version directory is absent. The served versions are unchanged.
            LoadError: A version failed to load. The served versions are unchanged.
        """
        await self._on_loop(lambda runtime: runtime.control.pin(name, versions))

    pin_sync = blocking(pin)

    async def unpin(self, name: str) -> None:
        """Follow the configured version policy again. Returns once the policy's largest version serves.

        Raises:
            ServableNotFoundError: The model is unknown.
            LoadError: The largest version failed to load; the previous versions still serve.
        """
        await self._on_loop(lambda runtime: runtime.control.unpin(name))

    unpin_sync = blocking(unpin)

    async def set_label(self, name: str, label: str, version: int | None) -> None:
        """Let `label` mean `version` from now on; None removes the label.

        Raises:
            ServableNotFoundError: The model is unknown.
            ServingError: FAILED_PRECONDITION when the version is not available.
        """
        await self._on_loop(lambda runtime: runtime.control.set_label(name, label, version))

    set_label_sync = blocking(set_label)

    async def _on_loop(self, call: Callable[[Runtime], Coroutine[object, None, None]]) -> None:
        runtime = self._here()
        await (call(runtime) if runtime.on_loop() else runtime.bridge(call(runtime)))

    async def run_on_loop(self, call: Callable[..., Coroutine[object, None, T]], *args: object) -> T:
        """Await a coroutine function on the registry's loop, from any loop; for adapters.

        Cancelling the caller cancels the coroutine.

        Raises:
            RegistryStateError: The registry's loop cannot be reached, or the caller's loop is no asyncio loop.
        """
        return await self._here().bridge(call(*args))

    async def run_in_thread(self, call: Callable[..., T], *args: object) -> T:
        """Run a large decode or encode off the registry's loop; for adapters."""
        return await self._here().run_in_thread(call, *args)

    # State, for any thread. Snapshots belong to the current entry, or to the last entry.

    @property
    def started(self) -> bool:
        """Whether requests can be answered: entered in the current process, not left, and the first loads are over."""
        return self._entry is not None and self._entry.started

    @property
    def _not_entered(self) -> str:
        where = "" if self._runtime is None else " in this process, which was forked from the one that entered it"
        return f"the registry has not been entered{where}"

    @property
    def _entry(self) -> Runtime | None:
        """The current entry; None for an entry of a parent process before a fork."""
        runtime = self._runtime
        return None if runtime is None or runtime.pid != os.getpid() else runtime

    @property
    def _own_entry(self) -> Runtime | None:
        """As `_entry`, but raises in a child forked from the process with the entry."""
        if self._runtime is not None:
            self._runtime.check_process()
        return self._runtime

    @property
    def draining(self) -> bool:
        """Whether shutdown has begun: readiness is down, requests are still answered."""
        return self._entry is not None and self._entry.draining

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The owner loop of the registry; None before entry and after leaving."""
        return None if self._runtime is None else self._runtime.loop

    def _here(self) -> Runtime:
        runtime = self._runtime
        if runtime is None:
            raise NotReadyError(
                "the registry has not been entered, or has been left: use `async with registry`, `with registry`, "
                "`registry.ensure_started()`, or give the host app `lifespan=registry.lifespan`"
            )
        return runtime

    @property
    def inflight(self) -> InflightBytes:
        """The bound on request bytes held by adapters; loop only."""
        return (self._runtime or self._here()).inflight

    def status(self, name: str | None = None) -> dict[str, tuple[VersionStatus, ...]]:
        """Return every version of the entry, past and present, by model, versions descending.

        Args:
            name: Only the model with the name, if given.

        Raises:
            RegistryStateError: The process is a forked child of the process with the entry.
        """
        entry = self._own_entry
        snapshot = self._last_status if entry is None else entry.monitor.snapshot
        return {model: statuses for model, statuses in snapshot.items() if name is None or model == name}

    def models(self) -> tuple[str, ...]:
        """Names of the configured and discovered models; empty without an entry. Raises as `status`."""
        entry = self._own_entry
        return () if entry is None else tuple(sorted(entry.models.readiness()))

    def readiness(self) -> dict[str, str | None]:
        """Return None for each configured model with an available, warm and answering version, else the reason.

        A version with a stuck run does not answer until the run returns.
        """
        entry = self._entry
        if entry is None:
            return {model.name: self._not_entered for model in self._models}
        return entry.models.readiness()

    def unready(self) -> str | None:
        """Return why the process as a whole is not ready, or None once the models configured at start have been served.

        `start_requires` decides how many models are required. Models with a later arrival, failure or removal are no
        reason. A stuck run in a model is a reason; `readiness` has the reason for each model.
        """
        return self._not_entered if self._entry is None else self._entry.unready()

    def liveness(self) -> str | None:
        """Return why the process should be replaced: stuck runs have used up the threads. None in a healthy process.

        `max_stuck_runs` is the bound. A returning run gives the thread back and ends the reason.
        """
        return None if self._entry is None else self._entry.liveness()

    def labels(self, name: str) -> dict[str, int]:
        """Return the labels of a model with their versions. Raises as `status`."""
        entry = self._own_entry
        return {} if entry is None else dict(entry.models.labels.get(name, {}))

    def events(self) -> tuple[Event, ...]:
        """Return the last 1000 changes of what the registry serves, the oldest first; kept over entries."""
        return self.observers.events.snapshot()

    def statistics(self) -> RegistryStatistics:
        """Return a snapshot of the registry's work.

        Raises:
            RegistryStateError: Not entered, or as `status`.
        """
        return (self._own_entry or self._here()).statistics()

    def check_reachable(self) -> None:
        """Raise, with the remedy, where no call can reach the registry: for adapters on a foreign loop.

        Raises:
            RegistryStateError: Not entered, left, in a forked child, or on a stopped loop.
        """
        self._here().check_reachable()


def _leave(registry: weakref.ref[ModelRegistry]) -> None:
    """Leave a registry still entered at the end of the process."""
    entered = registry()
    if entered is not None:
        entered.close()
