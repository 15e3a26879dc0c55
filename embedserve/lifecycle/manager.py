"""Makes the set of loaded versions follow the aspired versions, without ever breaking a request.

The transition policy names the next move, and each move is a coroutine: `_bring_up` or `_take_down`. Knows no
directory, thread and TensorFlow: sources report the aspired versions, and loaders do the work. Loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from embedserve.config import RegistryOptions, near
from embedserve.errors import Code, HungError, LoadError, ServableNotFoundError, ServingError
from embedserve.lifecycle.coordinator import Coordinator
from embedserve.lifecycle.managed_version import ManagedVersion
from embedserve.lifecycle.monitor import Monitor
from embedserve.lifecycle.transition_policy import Action, TransitionPolicy, availability_preserving
from embedserve.observer import Observers
from embedserve.servable import Loader, Predictor, Servable, ServableId, State

__all__ = ["AspiredVersion", "Manager"]

logger = logging.getLogger("embedserve")


@dataclass(frozen=True)
class AspiredVersion:
    """A version that a source wants served: a way to load, and the fingerprint to tell generations apart."""

    make_loader: Callable[[], Loader]
    fingerprint: Hashable = None
    path: str = ""


class Manager:
    """Owns every managed version and the serving map: sources command the manager, the registry queries the manager.

    Args:
        make_predictor: Makes the predictor of a loaded version.
        options: The manager reads `retry` and `drain_timeout`.
        monitor: Shows the states of versions.
        observers: Told of states and loads.
        policy: Names the next load or unload.
        coordinator: Decides when a loaded version may answer; None publishes at once.
    """

    def __init__(
        self,
        make_predictor: Callable[[ManagedVersion, Servable], Predictor],
        options: RegistryOptions,
        *,
        monitor: Monitor,
        observers: Observers,
        policy: TransitionPolicy = availability_preserving,
        coordinator: Coordinator | None = None,
    ) -> None:
        self._make_predictor = make_predictor
        self._monitor = monitor
        self._observers = observers
        self._policy = policy
        self._retry = options.retry
        self._drain_timeout = options.drain_timeout
        self._coordinator = coordinator
        self._managed: dict[str, list[ManagedVersion]] = {}
        self._aspired: dict[str, dict[int, AspiredVersion]] = {}
        self._serving: dict[str, dict[int, ManagedVersion]] = {}
        self._latest: dict[str, ManagedVersion] = {}
        self._all_serving: tuple[ManagedVersion, ...] = ()
        self._generations: dict[ServableId, int] = {}
        self._kept: set[tuple[ServableId, Hashable]] = set()
        self._moves: set[asyncio.Task[None]] = set()
        self._drains: set[asyncio.Timeout] = set()
        self._closing = False

    def __repr__(self) -> str:
        serving = {name: sorted(versions) for name, versions in self._serving.items() if versions}
        return f"<Manager serving {serving}, {len(self._moves)} moves>"

    @property
    def closing(self) -> bool:
        """Whether the registry is being left, so that every version is unloading or gone."""
        return self._closing

    # Queries of requests.

    def latest(self, name: str) -> ManagedVersion:
        """The largest available version.

        Raises:
            ServableNotFoundError: No version of `name` is available.
        """
        try:
            return self._latest[name]
        except KeyError:
            raise ServableNotFoundError(self._not_found(f"Latest({name})", name)) from None

    def specific(self, name: str, version: int) -> ManagedVersion:
        """Exactly the given version.

        Raises:
            ServableNotFoundError: The version is not available.
        """
        try:
            return self._serving[name][version]
        except KeyError:
            raise ServableNotFoundError(self._not_found(f"Specific({name}, {version})", name)) from None

    def _not_found(self, wanted: str, name: str) -> str:
        message = f"Servable not found for request: {wanted}"
        available = sorted(self._serving.get(name, ()))
        if available:
            return f"{message}; available versions of {name!r}: {', '.join(map(str, available))}"
        if self._managed.get(name):
            return f"{message}; no version of {name!r} is available yet, see its status"
        if waiting := self._monitor.waiting(name):
            reasons = "; ".join(f"version {number} is not taken yet: {why}" for number, why in waiting.items())
            return f"{message}; {reasons}"
        served = sorted(model for model, versions in self._serving.items() if versions)
        return f"{message}{near(name, served)}; models served: {', '.join(served[:20]) or 'none'}"

    def available(self, name: str) -> tuple[int, ...]:
        """Versions of `name` that answer requests now, ascending."""
        return tuple(sorted(self._serving.get(name, ())))

    def versions_of(self, name: str) -> tuple[ManagedVersion, ...]:
        """Every live or failed generation of `name`."""
        return tuple(self._managed.get(name, ()))

    def serving(self) -> tuple[ManagedVersion, ...]:
        """Every generation that answers requests now; readable from any thread."""
        return self._all_serving

    def directories(self) -> set[str]:
        """Paths of every generation that is loaded, or on its way up or down."""
        return {v.path for versions in self._managed.values() for v in versions if v.state is not State.END}

    def aspired(self, name: str) -> tuple[int, ...]:
        """Versions of `name` the source wants now, ascending."""
        return tuple(sorted(self._aspired.get(name, ())))

    def abort(self, error: Callable[[ServableId], ServingError]) -> int:
        """Fail all present and future requests of every version.

        Returns:
            The number of handles held.
        """
        held = 0
        for versions in self._managed.values():
            for version in versions:
                held += version.handles
                if version.predictor is not None:
                    version.predictor.abort(error)
        return held

    # Commands of sources.

    def set_aspired_versions(self, name: str, aspired: Mapping[int, AspiredVersion]) -> None:
        """Aim for exactly the given versions of `name`: leaving out a version means unload."""
        if self._closing and aspired:
            return  # A change that was under way at the close has no effect.
        self._aspired[name] = {number: self._kept_generation(name, number, new) for number, new in aspired.items()}
        self._reconcile(name)

    def _kept_generation(self, name: str, number: int, new: AspiredVersion) -> AspiredVersion:
        """Keep the first generation of a version with reads at run time: the files under the version have changed."""
        serving = self._serving.get(name, {}).get(number)
        if serving is None or serving.fingerprint == new.fingerprint or serving.path != new.path:
            return new
        if serving.servable is None or not serving.servable.reads_files_at_run_time:
            return new
        if (serving.id, new.fingerprint) not in self._kept:
            self._kept.add((serving.id, new.fingerprint))
            logger.warning(
                "Servable version %s was overwritten in place, but its model reads files at run time, so it is not "
                "reloaded: put the new contents in a new version directory",
                serving.id,
            )
        return AspiredVersion(new.make_loader, serving.fingerprint, new.path)

    def _reconcile(self, name: str) -> None:
        """Make the managed versions agree with the aspired versions, then start the moves that the policy names."""
        aspired = self._aspired.get(name, {})
        managed = self._managed.setdefault(name, [])
        for version in managed:
            wanted = aspired.get(version.id.version)
            version.set_aspired(wanted is not None and _is_generation(version, wanted))
            if version.state is State.START and not version.aspired:
                self._advance(version, State.END)  # No load has begun, so no take-down is needed.
        # Unwanted ended generations are forgotten; the monitor remembers the last status.
        managed[:] = [v for v in managed if v.state is not State.END or (v.aspired and v.error is not None)]
        for number, wanted in aspired.items():
            if not any(v.id.version == number and _is_generation(v, wanted) for v in managed):
                self._add(name, number, wanted)
        while (action := self._policy([version.snapshot() for version in managed])) is not None:
            what, snapshot = action
            version = next(v for v in managed if v.snapshot() == snapshot)
            # The state moves before the task first runs, so that the policy does not name the same move again.
            match what:
                case Action.LOAD:
                    self._advance(version, State.LOADING)
                    self._start(self._bring_up(version))
                case Action.UNLOAD:
                    self.withdraw(version)
        if not managed:
            del self._managed[name]
        self._monitor.publish()

    def _add(self, name: str, number: int, wanted: AspiredVersion) -> None:
        id = ServableId(name, number)
        self._generations[id] = generation = self._generations.get(id, 0) + 1
        version = ManagedVersion(id, generation, wanted.make_loader(), wanted.fingerprint, wanted.path)
        self._managed[name].append(version)
        self._note(version)

    def refresh(self, version: ManagedVersion) -> None:
        """Show changes within a state, and unload a version after the return of the stuck run."""
        name, number = version.id.name, version.id.version
        if version in self._managed.get(name, ()):
            self._monitor.update(name, [v for v in self._managed[name] if v.id.version == number])
        predictor = version.predictor
        if version.state is State.END and not self._closing and predictor is not None and predictor.trouble is None:
            self._start(self._unload_drained(version))

    def _advance(self, version: ManagedVersion, state: State) -> None:
        version.advance(state)
        self._note(version)

    def _note(self, version: ManagedVersion) -> None:
        name, number = version.id.name, version.id.version
        self._monitor.update(name, [v for v in self._managed[name] if v.id.version == number])
        self._observers.version_state(version.id, version.state, version.error)

    # A generation's way up.

    async def _bring_up(self, version: ManagedVersion) -> None:
        """Load, publish; after a failure wait and retry while the version is aspired."""
        while True:
            try:
                servable = await self._load(version)
            except Exception as raised:
                version.error = error = _load_error(version.id, raised)
            else:
                if self._coordinator is not None:
                    await self._coordinator.hold(version, servable)
                    if version.state is not State.LOADING:  # Published during the hold, and perhaps withdrawn again.
                        break
                if version.aspired and not self._closing:
                    self.publish(version, servable)
                    break
                version.predictor = None
                await self._unload(version)
                if version.aspired and not self._closing:  # Aspired again during the unload.
                    continue
                version.error = LoadError("Loading of servable cancelled", code=Code.CANCELLED)
                self._advance(version, State.END)
                break
            version.failures += 1
            # A load that hangs once hangs again, and each attempt would cost a thread.
            retried = version.aspired and not self._closing and not isinstance(error, HungError)
            delay = self._retry.delay(version.failures) if retried else None
            self._log_failure(version, error, delay)
            self._note(version)
            if delay is None or await self._unaspired_within(version, delay):
                self._advance(version, State.END)
                break
            logger.info("Retrying of Loading servable: %s retry: %d", version.id, version.failures)
        self._reconcile(version.id.name)

    async def _load(self, version: ManagedVersion) -> Servable:
        loop = asyncio.get_running_loop()
        started = loop.time()
        error: Exception | None = None
        logger.info("Loading servable version %s", version.id)
        try:
            servable = await version.loader.load()
            version.predictor = self._make_predictor(version, servable)
            return servable
        except BaseException as raised:
            if isinstance(raised, Exception):
                error = raised
            if not isinstance(raised, HungError):  # The hanging step still holds the objects to unload.
                await self._unload(version)
            raise
        finally:
            if self._observers:
                self._observers.load_finished(version.id, version.path, loop.time() - started, error)

    async def _unaspired_within(self, version: ManagedVersion, delay: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await version.unaspired.wait()
        return not version.aspired

    def _log_failure(self, version: ManagedVersion, error: ServingError, delay: float | None) -> None:
        logger.error("Loading servable: %s failed: %s: %s", version.id, Code(error.code).name, error)
        if delay is not None:
            logger.info("Servable %s will be loaded again in %g s", version.id, delay)
        elif version.aspired:
            logger.error("Servable %s cannot be loaded: %s: %s", version.id, Code(error.code).name, error)

    def publish(self, version: ManagedVersion, servable: Servable) -> None:
        """Let requests find a loaded and warm version; synchronous, so no request sees a half-published version."""
        version.servable = servable
        version.signatures = servable.signatures
        version.error = None
        version.failures = 0
        self._serving.setdefault(version.id.name, {})[version.id.version] = version
        self._refresh_latest(version.id.name)
        self._advance(version, State.AVAILABLE)
        logger.info("Successfully loaded servable version %s", version.id)

    # A generation's way down.

    def withdraw(self, version: ManagedVersion) -> None:
        """Hide a version from new requests; synchronous. Requests in flight finish, then the version is unloaded.

        A version that is still aspired is loaded anew after the unload.
        """
        self._advance(version, State.UNLOADING)
        serving = self._serving.get(version.id.name, {})
        if serving.get(version.id.version) is version:
            del serving[version.id.version]
            self._refresh_latest(version.id.name)
        logger.info("Quiescing servable version %s", version.id)
        self._start(self._take_down(version))

    async def _take_down(self, version: ManagedVersion) -> None:
        """Wait for requests in flight, close the queue, unload."""
        assert version.predictor is not None
        try:
            async with asyncio.timeout(self._drain_timeout if self._closing else None) as drain:
                self._drains.add(drain)
                try:
                    await version.drained()
                    await version.predictor.aclose()
                finally:
                    self._drains.discard(drain)
        except TimeoutError:
            # Only when the registry closes: a thread still runs the model, so the model's memory must stay.
            logger.error("Servable version %s is still in use (%r); it is left loaded", version.id, version)
            version.predictor.abort()
        else:
            if (trouble := version.predictor.trouble) is not None:
                # A thread still runs the model; `refresh` unloads the version when the run is back.
                logger.error("Servable version %s is left loaded: %s", version.id, trouble)
            else:
                logger.info("Done quiescing servable version %s", version.id)
                await self._unload_drained(version)
        self._advance(version, State.END)
        self._reconcile(version.id.name)

    async def _unload_drained(self, version: ManagedVersion) -> None:
        version.servable, version.signatures, version.predictor = None, {}, None
        await self._unload(version)
        logger.info("Done unloading servable version %s", version.id)

    async def _unload(self, version: ManagedVersion) -> None:
        try:
            await version.loader.unload()
        except Exception:
            logger.exception("Unloading servable version %s failed; its memory may not be given back", version.id)

    def _refresh_latest(self, name: str) -> None:
        serving = self._serving.get(name)
        if serving:
            self._latest[name] = serving[max(serving)]
        else:
            self._serving.pop(name, None)
            self._latest.pop(name, None)
        self._all_serving = tuple(version for versions in self._serving.values() for version in versions.values())
        if self._coordinator is not None:
            self._coordinator.serving_changed()

    def _start(self, move: Coroutine[object, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(move)
        self._moves.add(task)
        task.add_done_callback(self._moved)

    def _moved(self, task: asyncio.Task[None]) -> None:
        self._moves.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a version's move ended with a bug", exc_info=error)
        self._monitor.publish()

    async def aclose(self) -> None:
        """Unload every version; waits for requests in flight for at most `drain_timeout` seconds."""
        self._closing = True
        if self._drain_timeout is not None:
            for drain in self._drains:  # Versions retired before get no more time than the rest.
                drain.reschedule(asyncio.get_running_loop().time() + self._drain_timeout)
        for name in list(self._aspired):
            self.set_aspired_versions(name, {})
        while self._moves:
            await asyncio.wait(self._moves)


def _is_generation(version: ManagedVersion, wanted: AspiredVersion) -> bool:
    """Whether contents and place are the same: a model may read files in the place at run time."""
    return version.fingerprint == wanted.fingerprint and version.path == wanted.path


def _load_error(id: ServableId, raised: Exception) -> ServingError:
    if not isinstance(raised, ServingError):
        logger.error("loading %s failed unexpectedly", id, exc_info=raised)
        return LoadError(f"{type(raised).__name__}: {raised}")
    # The error lives as long as the failure; the frames of the traceback would keep the loaded objects alive.
    raised.__cause__ = raised.__context__ = None
    return raised.with_traceback(None)
