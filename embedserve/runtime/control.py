"""Changes on demand: reconfigure, pin, unpin and labels. Changes run in turn, each all or nothing where possible.

`Control` sets the aspired versions of the source and waits for the manager; the module loads no version. Loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from embedserve.config import ModelConfig, RegistryOptions, SpecificVersions, VersionPolicy
from embedserve.errors import Code, ConfigError, LoadError, ServableNotFoundError, ServingError
from embedserve.lifecycle.manager import Manager
from embedserve.lifecycle.monitor import Monitor
from embedserve.lifecycle.source_protocol import Source
from embedserve.observer import Observers
from embedserve.runtime.models import Models
from embedserve.runtime.starting import LOOK_INTERVAL, Prospect
from embedserve.servable import State

__all__ = ["Control"]

# Seconds beyond the settle window for a pin to wait for a directory still being copied.
SETTLE_GRACE = 5.0
# Seconds for a polled configuration to wait for the looks at changed models; the looks go on afterwards. As long as a
# look may last before the log names the look.
LOOK_PATIENCE = 10.0


class Control:
    """The only place for changes of an entered registry's models, pins and labels."""

    def __init__(
        self,
        options: RegistryOptions,
        models: Models,
        manager: Manager,
        monitor: Monitor,
        source: Source,
        observers: Observers,
    ) -> None:
        self._options = options
        self._observers = observers
        self._models = models
        self._manager = manager
        self._monitor = monitor
        self._source = source
        self._configured: set[str] = set()
        self._pins: dict[str, SpecificVersions] = {}
        self._changing = asyncio.Lock()

    def begin(self, configured: Iterable[str]) -> None:
        """Note the models that a configuration lists from the start."""
        self._configured = set(configured)

    def forget(self, name: str) -> None:
        """Forget the pin of a removed model."""
        self._pins.pop(name, None)

    async def reconfigure(self, models: Iterable[ModelConfig], wait: bool = True) -> None:
        """Serve exactly `models` from now on (TF Serving: ReloadConfig).

        Raises:
            ConfigError: A name twice.
            ServingError: FAILED_PRECONDITION for a label on a version before the version's availability; UNKNOWN when
                an added model did not become available. The rest of the new configuration stays in force.
        """
        async with self._changing:
            configs: dict[str, ModelConfig] = {}
            for config in models:
                if config.name in configs:
                    raise ConfigError(f"Illegal to list model {config.name} multiple times in config list")
                configs[config.name] = config
            for config in configs.values():
                self._check_labels(config)
            added = [name for name in configs if name not in self._models.configs]
            changed = [name for name, config in configs.items() if self._models.configs.get(name) != config]
            # Labels and pins of discovered models belong to no configuration, so labels and pins outlive a new
            # configuration.
            configured = self._configured | configs.keys()
            labels = {name: kept for name, kept in self._models.labels.items() if name not in configured}
            self._models.set_labels(labels | {name: dict(config.version_labels) for name, config in configs.items()})
            self._report(configs, added, changed)
            self._keep_pins(configs)
            self._configured = set(configs)
        # Outside the lock: a later configuration may be the cure for a missing model, or for a directory that a look
        # takes minutes to walk.
        with suppress(TimeoutError):
            async with asyncio.timeout(None if wait else LOOK_PATIENCE):
                await self._source.scan_now(changed)
        if wait and added:
            await self._wait_for_added(added)

    def _report(self, configs: Mapping[str, ModelConfig], added: Sequence[str], changed: Sequence[str]) -> None:
        """Report the differences of a configuration; files are applied again and again without any."""
        sides = {
            "added": added,
            "changed": [name for name in changed if name not in added],
            "removed": [name for name in self._configured if name not in configs],
        }
        told = [f"{what} {', '.join(map(repr, sorted(names)))}" for what, names in sides.items() if names]
        if told:
            self._observers.changed("reconfigure", detail="; ".join(told))

    def _keep_pins(self, configs: Mapping[str, ModelConfig]) -> None:
        """Follow the new configuration; a pin ends with a changed version policy or the removal of the model."""
        source, before = self._source, self._models.configs
        source.set_models(list(configs.values()))
        for name, pinned in list(self._pins.items()):
            policy = configs[name].version_policy if name in configs else None
            discovered = name not in configs and name not in self._configured
            if discovered or (policy is not None and name in before and policy == before[name].version_policy):
                source.set_policy(name, pinned)
            else:
                del self._pins[name]

    def _check_labels(self, config: ModelConfig) -> None:
        before = self._models.labels.get(config.name, {})
        for label, version in config.version_labels.items():
            if self._options.labels_ahead or version in self._manager.available(config.name):
                continue
            unavailable_allowed = self._options.allow_version_labels_for_unavailable_models and (
                label not in before or before[label] == version
            )
            if not unavailable_allowed:
                raise label_error(config.name, version)

    async def _wait_for_added(self, added: Sequence[str]) -> None:
        def decided(name: str) -> bool:
            prospect = self._models.prospect(name)
            return prospect in (Prospect.SERVED, Prospect.HOPELESS) or name not in self._models.configs

        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._options.start_timeout
        while not all(map(decided, added)) and (left := deadline - loop.time()) > 0:
            await self._monitor.wait_until(lambda: all(map(decided, added)), min(left, LOOK_INTERVAL))
        missing = [name for name in added if not self._manager.available(name)]
        if missing:
            self._observers.changed("reconfigure_failed", detail=f"not available: {', '.join(sorted(missing))}")
            listed = "".join(f"{self._why_missing(name)}, " for name in missing)
            raise ServingError(f"{len(missing)} model(s) did not become available: {{{listed}}}", code=Code.UNKNOWN)

    def _why_missing(self, name: str) -> str:
        if name not in self._models.configs:
            return f"{{name: {name}}} due to error: ABORTED: a later configuration does not list it}}"
        versions = self._manager.versions_of(name)
        decisive = max(versions, key=lambda v: v.id.version, default=None)
        if decisive is None or decisive.error is None:
            return f"{{name: {name}}} due to error: DEADLINE_EXCEEDED: {self._models.readiness().get(name)}}}"
        # TF Serving: server_core.cc; tools look for the exact words.
        error = decisive.error
        return f"{decisive.id} due to error: {Code(error.code).name}: {error}}}"

    async def pin(self, name: str, versions: Sequence[int]) -> None:
        """Serve exactly `versions` until `unpin`; returns once all of `versions` serve. None unloads the model.

        The present versions stay until the targets are available, so a failed target changes no serving.

        Raises:
            ServableNotFoundError: The model or a version directory is absent.
            LoadError: A target could not be loaded; the served versions are unchanged.
        """
        if not versions:
            await self._unload(name)
            return
        pinned, latest = SpecificVersions(versions=tuple(sorted(versions))), max(versions)
        async with self._changing:
            config = self._config_of(name)
            before = self._policy_of(name, config)
            kept = {v.id.version for v in self._manager.versions_of(name) if v.state is State.AVAILABLE and v.aspired}
            try:
                await self._aspire(name, SpecificVersions(versions=tuple(sorted(kept.union(versions)))))
                for version in pinned.versions:
                    await self._wait_for_version(name, version)
            except BaseException as error:
                self._observers.changed("pin_failed", name, latest, f"{type(error).__name__}: {error}")
                self._source.set_policy(name, before)
                await self._source.scan_now([name])
                raise
            self._pins[name] = pinned
            listed = ", ".join(map(str, pinned.versions))
            back = bool(kept) and latest < max(kept)
            detail = f"back from version {max(kept)}" if back else f"versions {listed}" if versions[1:] else ""
            self._observers.changed("roll_back" if back else "pin", name, latest, detail)
            await self._aspire(name, pinned)
            # The old versions leave the serving map within the scan; `latest` is a target from here on, unless the
            # directory has gone in the mean time.
            await self._monitor.wait_until(
                lambda: self._manager.available(name)[-1:] == (latest,) or latest not in self._manager.available(name),
                None,
            )

    async def _unload(self, name: str) -> None:
        async with self._changing:
            self._config_of(name)
            self._pins[name] = SpecificVersions(versions=())
            await self._aspire(name, self._pins[name])
        # Outside the lock and bounded: a stuck run may keep a version for ever.
        await self._monitor.wait_until(lambda: not self._manager.versions_of(name), self._options.drain_timeout)

    async def unpin(self, name: str) -> None:
        """Follow the configured version policy again; returns once the largest version serves.

        A model whose directory was just added is looked for.

        Raises:
            LoadError: The largest version could not be loaded; the previous versions still serve.
        """
        if name not in self._models.configs:
            await self._source.scan_now([name])
        async with self._changing:
            config = self._config_of(name)
            self._pins.pop(name, None)
            self._observers.changed("unpin", name)
            await self._aspire(name, config.version_policy)
            aspired = self._manager.aspired(name)
            if aspired:
                await self._wait_for_version(name, aspired[-1])

    async def _aspire(self, name: str, policy: VersionPolicy) -> None:
        self._source.set_policy(name, policy)
        await self._source.scan_now([name])

    async def _wait_for_version(self, name: str, version: int) -> None:
        # A directory copied just now is aspired to once settled.
        await self._monitor.wait_until(
            lambda: version in self._manager.aspired(name) or version not in self._monitor.waiting(name),
            self._options.settle + SETTLE_GRACE,
        )
        if version not in self._manager.aspired(name):
            waiting = self._monitor.waiting(name).get(version)
            raise ServableNotFoundError(
                f"Could not find version {version} of model {name}"
                + (f": {waiting}" if waiting else f" under {self._config_of(name).base_path}")
            )

        def failure() -> ServingError | None:
            for v in self._manager.versions_of(name):
                if v.id.version == version and v.aspired and v.failed:
                    return v.error
            return None

        def gone() -> bool:
            return version not in self._manager.aspired(name)

        await self._monitor.wait_until(
            lambda: version in self._manager.available(name) or failure() is not None or gone(),
            self._options.start_timeout,
        )
        if version not in self._manager.available(name):
            error, code = failure(), Code.DEADLINE_EXCEEDED
            reason: object = f"not within {self._options.start_timeout:g} s"
            if error is not None:
                reason, code = error, Code(error.code)
            elif gone():
                reason = "the registry was left" if self._manager.closing else "it is not wanted any more"
                code = Code.ABORTED
            raise LoadError(f"version {version} of model {name} did not become available: {reason}", code=code)

    def _config_of(self, name: str) -> ModelConfig:
        try:
            return self._models.configs[name]
        except KeyError:
            known = ", ".join(sorted(self._models.configs)) or "none"
            raise ServableNotFoundError(f"Could not find model {name!r}; models: {known}") from None

    def _policy_of(self, name: str, config: ModelConfig) -> VersionPolicy:
        return self._pins.get(name, config.version_policy)

    async def set_label(self, name: str, label: str, version: int | None) -> None:
        """Let `label` mean `version` from now on; None removes the label.

        Raises:
            ServingError: FAILED_PRECONDITION when the version is not available.
        """
        async with self._changing:
            self._config_of(name)
            labels = dict(self._models.labels.get(name, {}))
            if version is None:
                labels.pop(label, None)
            elif self._options.labels_ahead or version in self._manager.available(name):
                labels[label] = version
            else:
                raise label_error(name, version)
            self._observers.changed("label", name, version, f"{label!r}{' removed' if version is None else ''}")
            self._models.set_labels(self._models.labels | {name: labels})


def label_error(name: str, version: int) -> ServingError:
    """Return the error for a label on a version without service."""
    return ServingError(
        f"Request to assign label to version {version} of model {name}, which is not currently available for inference",
        code=Code.FAILED_PRECONDITION,
    )
