"""Fakes for tests of an embedding application: a servable, a loader and a registry without TensorFlow or directories.

A `FakeLoader` runs a Python function as a version of a model. A `Gate` holds runs or loads back, and `fake_signature`
describes inputs and outputs. Registry, batching, handles, REST and gRPC are real.

    registry = FakeRegistry({"m": {1: FakeLoader()}})
    async with registry:
        await registry.predict("m", {"x": [1.0]})  # {"y": x * 10 + version}
        await registry.put("m", 2, FakeLoader())  # A new version appears.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedserve.config import ModelConfig, RegistryOptions, VersionPolicy, near
from embedserve.errors import Code, ConfigError, DeadlineExceededError, InferenceError, LoadError
from embedserve.lifecycle.source import VersionDirectory
from embedserve.lifecycle.source_protocol import IdleSource, SourceListener
from embedserve.lifecycle.version_policy import choose
from embedserve.registry import ModelRegistry
from embedserve.runtime.runtime import Collaborators, Runtime
from embedserve.saved_model.files.completeness import FileStamp, Fingerprint
from embedserve.servable import Array, BlockingLoader, Cancellation, Servable, ServableId, Tensors
from embedserve.signature import BatchingVerdict, Signature, TensorSpec
from embedserve.store_url import StoreUrl
from embedserve.tensors.dtypes import DTYPES, DType, by_name, by_numpy
from embedserve.tfs.constants import TIMED_OUT

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["FakeLoader", "FakeRegistry", "FakeServable", "FakeSource", "Gate", "fake_signature"]


def fake_signature(
    name: str = "serving_default",
    inputs: Mapping[str, tuple[str, tuple[int | None, ...] | None]] | None = None,
    outputs: Mapping[str, tuple[str, tuple[int | None, ...] | None]] | None = None,
    *,
    batchable: bool = True,
    stateless: bool = True,
    method_name: str = "tensorflow/serving/predict",
) -> Signature:
    """Return a signature from `{name: (dtype, shape)}`; by default float `x [?]` to float `y [?]`.

    Args:
        name: The name in requests.
        inputs, outputs: A dtype is TensorFlow's short name or numpy's (`float` and `float32` are the same). A size is
            None or -1 for any size, and a shape is None for any rank.
        batchable: Whether requests may share a run.
        stateless: Whether the signature neither writes state nor draws random numbers.
        method_name: As in a SavedModel.

    Raises:
        ConfigError: A dtype is unknown, or a shape is impossible.
    """

    def specs(of: Mapping[str, tuple[str, tuple[int | None, ...] | None]]) -> dict[str, TensorSpec]:
        return {key: _spec(key, of[key]) for key in sorted(of)}

    return Signature(
        name=name,
        inputs=specs(inputs or {"x": ("float", (None,))}),
        outputs=specs(outputs or {"y": ("float", (None,))}),
        method_name=method_name,
        stateless=stateless,
        batching=BatchingVerdict(batchable, "as the test says"),
    )


def _spec(name: str, given: object) -> TensorSpec:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ConfigError(f"{name!r} must be a pair (dtype, shape), as ('float', (None, 3)), and is {given!r}")
    dtype, shape = given
    return TensorSpec(name, _dtype(dtype), None if shape is None else _shape(name, shape), f"{name}:0")


def _shape(name: str, given: object) -> tuple[int | None, ...]:
    sizes: list[int | None] = []
    if not isinstance(given, tuple | list):
        raise ConfigError(f"the shape of {name!r} must be a tuple of sizes, or None for any rank, and is {given!r}")
    for size in given:
        known = isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= -1
        if size is not None and not known:
            raise ConfigError(
                f"the shape of {name!r} is {given!r}, but a size is 0 or more, or None or -1 for any size: not {size!r}"
            )
        sizes.append(None if size is None or size == -1 else int(size))
    return tuple(sizes)


def _dtype(name: Any) -> DType:
    names = [row.name for row in DTYPES]
    try:
        if name is None:  # Numpy's default, a double.
            raise TypeError
        return by_name(name) if name in names else by_numpy(np.dtype(name))
    except (KeyError, TypeError):
        hint = near(str(name), [*names, "float32", "float64", "float16"])
        raise ConfigError(
            f"there is no dtype {name!r}{hint}; there are {', '.join(names)}, and numpy's names"
        ) from None


def times_ten(version: int, inputs: Tensors) -> dict[str, Array]:
    """The default fake model: every input `v` gives `v * 10 + version`; outputs are named `y`, `y_2`, ..."""
    outputs = {}
    with np.errstate(all="ignore"):  # As TensorFlow, which answers infinity without a word.
        for i, name in enumerate(sorted(inputs)):
            outputs["y" if i == 0 else f"y_{i + 1}"] = inputs[name] * 10 + np.asarray(version, inputs[name].dtype)
    return outputs


class FakeServable:
    """Runs a Python function as a model, and notices a run after the unload.

    Attributes:
        runs: Dimension 0 of the first input of each run, in order.
    """

    kind = "fake"
    reads_files_at_run_time = False
    inline: Collection[str] = frozenset()

    def __init__(self, loader: FakeLoader, version: int) -> None:
        self._loader = loader
        self._version = version
        self.signatures: Mapping[str, Signature] = {s.name: s for s in loader.signatures}
        self.signature_defs: Mapping[str, Message] = {}
        self.reads_files_at_run_time = loader.reads_files_at_run_time
        self.runs: list[int] = []

    def run(
        self,
        signature_name: str,
        inputs: Tensors,
        output_names: Sequence[str] | None = None,
        *,
        cancellation: Cancellation | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Call the loader's `model`; a closed `gate` holds the call back, like a slow or endless model."""
        if not self._loader.loaded:
            raise AssertionError("run after unload")
        first = next(iter(inputs.values()), None)
        self.runs.append(int(first.shape[0]) if first is not None and first.ndim else 0)
        self._wait_for_gate(cancellation, timeout)
        outputs = self._loader.model(self._version, inputs)
        if not self._loader.loaded:
            raise AssertionError("unloaded while running")
        return _checked(outputs, self.signatures[signature_name], output_names)

    def _wait_for_gate(self, cancellation: Cancellation | None, timeout: float | None) -> None:
        gate = self._loader.gate
        if gate is None:
            return
        cancelled = threading.Event()
        if cancellation is not None:

            def wake() -> None:
                cancelled.set()
                gate.notify()

            cancellation.on_cancel(wake)
        opened = gate.wait(cancelled, timeout)
        if cancellation is not None:
            cancellation.on_cancel(None)
        if cancelled.is_set():
            raise InferenceError("the run was cancelled", code=Code.CANCELLED)
        if not opened:
            raise DeadlineExceededError(TIMED_OUT)


def _checked(outputs: Mapping[str, object], signature: Signature, names: Sequence[str] | None) -> dict[str, Array]:
    """Return the requested outputs as arrays, checked against the signature.

    Raises:
        InferenceError: An output is missing, or has another shape or kind of values.
    """
    told = f"the function of the fake signature {signature.name!r}"
    if not isinstance(outputs, Mapping):
        raise InferenceError(f"{told} must return a mapping by output name, and gave {type(outputs).__name__}")
    found = {}
    for name in signature.outputs if names is None else names:
        spec = signature.outputs[name]
        if name not in outputs:
            raise InferenceError(
                f"{told} gave no output {name!r}, which is {spec}; it gave {', '.join(outputs) or 'none'}"
            )
        try:
            array = spec.dtype.convert(outputs[name])
        except (TypeError, ValueError) as error:
            raise InferenceError(
                f"{told} gave for output {name!r}, which is {spec}, values of another kind: {error}"
            ) from None
        if not spec.admits(array.shape):
            raise InferenceError(f"{told} gave for output {name!r}, which is {spec}, the shape {list(array.shape)}")
        found[name] = array
    return found


class Gate:
    """Holds runs or loads back until the gate is opened.

    Attributes:
        waiting: Number of threads held back now.
    """

    def __init__(self, opened: bool = False) -> None:
        self._condition = threading.Condition()
        self._opened = opened
        self.waiting = 0

    def open(self) -> None:
        """Let all threads through from now on."""
        with self._condition:
            self._opened = True
            self._condition.notify_all()

    def close(self) -> None:
        """Hold the next threads back again."""
        with self._condition:
            self._opened = False

    def notify(self) -> None:
        """Make waiting threads check for a cancellation."""
        with self._condition:
            self._condition.notify_all()

    def wait(self, cancelled: threading.Event, timeout: float | None) -> bool:
        """Wait until opened or cancelled; return False at the end of the time."""
        with self._condition:
            self.waiting += 1
            try:
                return self._condition.wait_for(
                    lambda: self._opened or cancelled.is_set(), 60.0 if timeout is None else timeout
                )
            finally:
                self.waiting -= 1


class FakeLoader:
    """Loads a `FakeServable`, or fails on demand.

    Args:
        model: `(version, inputs) -> outputs`, run in run threads. The outputs are checked against the signature.
        signatures: The signatures of the servable.
        failures: Number of failed loads before a success; -1 fails for ever.
        gate: Holds runs back until the gate is opened.
        load_gate: Holds loads back until the gate is opened.
    """

    def __init__(
        self,
        model: Callable[[int, Tensors], dict[str, Array]] = times_ten,
        *,
        signatures: Sequence[Signature] | None = None,
        failures: int = 0,
        warmup_failures: int = 0,
        gate: Gate | None = None,
        load_gate: Gate | None = None,
        changes_while_loading: int = 0,
        reads_files_at_run_time: bool = False,
    ) -> None:
        self.model = model
        self.signatures = list(signatures) if signatures is not None else [fake_signature()]
        self.failures = failures
        self.warmup_failures = warmup_failures
        self.changes_while_loading = changes_while_loading
        self.gate = gate
        self.load_gate = load_gate
        self.reads_files_at_run_time = reads_files_at_run_time
        self.loaded = False
        self.loads = 0
        self.unloads = 0
        self.warm_threads: set[int] = set()
        self.servable: FakeServable | None = None
        self.id = ServableId("", 0)
        self.note = ""
        self.gave_back = 0
        self.warmup_records: int | None = None

    @property
    def batching(self) -> None:
        """Fakes are batched as the configuration says."""

    def load(self) -> Servable:
        """Make the servable, or fail."""
        self.loads += 1
        if self.load_gate is not None:
            self.load_gate.wait(threading.Event(), None)
        if self.failures:
            self.failures -= 1
            raise LoadError("the fake loader was told to fail", code=Code.DATA_LOSS)
        self.loaded = True
        self.servable = FakeServable(self, self.id.version)
        return self.servable

    def warm_up(self, servable: Servable) -> None:
        """Fail as often as demanded."""
        if self.warmup_failures:
            self.warmup_failures -= 1
            raise LoadError("the fake warm-up was told to fail")

    def warm_up_thread(self, servable: Servable) -> None:
        """Note the identity of the thread."""
        self.warm_threads.add(threading.get_ident())

    def unchanged(self) -> bool:
        """Return False as often as demanded."""
        if self.changes_while_loading:
            self.changes_while_loading -= 1
            return False
        return True

    def unload(self, servable: Servable | None) -> None:
        """Unload; a later run is an error."""
        if servable is not None:
            self.unloads += 1
        self.loaded = False

    def give_back(self) -> None:
        """Count the call."""
        self.gave_back += 1


class FakeSource(IdleSource):
    """Versions from a dictionary instead of directories; every change is reported at once."""

    def __init__(self, listener: SourceListener, models: Mapping[str, Mapping[int, FakeLoader]]) -> None:
        self._listener = listener
        self.found = {name: dict(versions) for name, versions in models.items()}
        self.fingerprints: dict[tuple[str, int], int] = {}
        self._policies: dict[str, VersionPolicy] = {}
        self._configs: dict[str, ModelConfig] = {}

    async def start(self) -> None:
        """Report all versions once."""
        await self.scan_now()

    async def scan_now(self, names: Collection[str] | None = None) -> None:
        """Report the present versions to the listener."""
        self._listener.on_models(self._configs)
        for name, config in self._configs.items():
            policy = self._policies.get(name, config.version_policy)
            found = {number: Path(f"/fake/{name}/{number}") for number in self.found.get(name, {})}
            chosen = choose(policy, found)
            self._listener.on_aspired(
                name,
                {n: VersionDirectory(n, path, self._fingerprint(name, n)) for n, path in chosen.items()},
            )

    def _fingerprint(self, name: str, version: int) -> Fingerprint:
        return (FileStamp(f"generation {self.fingerprints.get((name, version), 1)}", 0, 0, ""),)

    def problem(self, name: str) -> str | None:
        """Report an absent version; there is no base path."""
        return None if self.found.get(name) else f"No versions of servable {name} found"

    def set_models(self, models: Sequence[ModelConfig]) -> None:
        """Follow the listed models."""
        self._configs = {model.name: model for model in models}
        self._policies.clear()

    def set_policy(self, name: str, policy: VersionPolicy) -> None:
        """Choose by the policy."""
        self._policies[name] = policy


def _check_version(name: str, version: object, loader: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise ConfigError(f"model {name!r}: a version is a number of 0 or more, not {version!r}")
    if not isinstance(loader, FakeLoader):
        raise ConfigError(f"model {name!r}, version {version} needs a FakeLoader, and has {loader!r}")


class FakeRegistry(ModelRegistry):
    """A real registry over fake versions: lifecycle, batching, handles and adapters are real.

    Args:
        found: A `FakeLoader` for each version, by model and version.
        models: The configured models; without the argument every model of `found`.
        collaborators: As for `ModelRegistry`; the source and the loaders are the fakes in every case.
        options: As for `ModelRegistry`.

    Raises:
        ConfigError: A version has no `FakeLoader`.
    """

    def __init__(
        self,
        found: Mapping[str, Mapping[int, FakeLoader]],
        *,
        models: Sequence[ModelConfig] | None = None,
        collaborators: Callable[[Runtime], Collaborators] | None = None,
        **options: Any,
    ) -> None:
        for name, versions in found.items():
            if not isinstance(versions, Mapping):
                raise ConfigError(f"model {name!r} needs {{version: FakeLoader()}}, and has {versions!r}")
            for version, loader in versions.items():
                _check_version(name, version, loader)
        configs = [ModelConfig(name=name, base_path=f"/fake/{name}") for name in found] if models is None else models
        super().__init__(models=configs, collaborators=self._fakes, **options)
        self._given = collaborators
        self._found = found
        self.source: FakeSource | None = None

    def _fakes(self, runtime: Runtime) -> Collaborators:
        def make_source(
            options: RegistryOptions,
            root: Path | StoreUrl | None,
            listener: SourceListener,
            in_use: Callable[[], Collection[str]],
        ) -> FakeSource:
            self.source = FakeSource(listener, self._found)
            return self.source

        def make_loader(
            id: ServableId, directory: VersionDirectory, config: ModelConfig, options: RegistryOptions
        ) -> BlockingLoader:
            assert self.source is not None
            loader = self.source.found[id.name][id.version]
            loader.id = id
            return loader

        given = Collaborators() if self._given is None else self._given(runtime)
        return replace(given, make_source=make_source, make_loader=runtime.in_threads(make_loader))

    async def put(self, name: str, version: int, loader: FakeLoader) -> None:
        """Add a version directory, or overwrite a directory in place.

        Raises:
            ConfigError: `loader` is no `FakeLoader`.
        """
        _check_version(name, version, loader)
        assert self.source is not None
        self.source.found.setdefault(name, {})[version] = loader
        key = (name, version)
        self.source.fingerprints[key] = self.source.fingerprints.get(key, 1) + 1
        await self.source.scan_now()

    async def remove(self, name: str, version: int) -> None:
        """Remove a version directory."""
        assert self.source is not None
        del self.source.found[name][version]
        await self.source.scan_now()
