"""A version loads as the right servable, says what to do when it cannot, and gives its memory back."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from embedserve.config import BatchingOptions, ModelConfig, RegistryOptions
from embedserve.errors import Code, InvalidInputError, LoadError
from embedserve.registry import ModelRegistry
from embedserve.saved_model.load import custom_ops
from embedserve.saved_model.load.loader import SavedModelLoader
from embedserve.saved_model.run.function import FunctionServable
from embedserve.servable import BlockingLoader, Servable, ServableId
from tests.saved_model.conftest import Load, ModelPath
from tests.support import saved_models

pytestmark = pytest.mark.slow


def loader(path: Path, options: RegistryOptions | None = None, **config: Any) -> SavedModelLoader:
    return SavedModelLoader(
        ServableId("m", 1), path, ModelConfig(name="m", base_path=path.parent, **config), options or RegistryOptions()
    )


@pytest.fixture
def copy(model: ModelPath, tmp_path: Path) -> Any:
    """A copy of a model that the test may change."""
    return lambda name: Path(shutil.copytree(model(name), tmp_path / name / "1"))


def edit(path: Path, change: Any) -> Path:
    file = path / "saved_model.pb"
    saved = SavedModel.FromString(file.read_bytes())
    change(saved.meta_graphs[0])
    file.write_bytes(saved.SerializeToString())
    return path


def test_it_is_a_loader_of_servables(model: ModelPath) -> None:
    made: BlockingLoader = loader(model("dense"))
    servable: Servable = made.load()
    assert servable.kind in ("function", "session")
    made.unload(servable)


@pytest.mark.usefixtures("sessions_are_faster")
@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("half_plus_two", "session", "it is faster there"),
        ("keras_export", "session", "it is faster there"),
        ("keras_saved", "session", "it is faster there"),
        ("counter", "function", None),
        ("endless", "function", None),
        ("tf1_ref_variables", "session", "TensorFlow 1 wrote it"),
        ("tf1_legacy_init", "session", "TensorFlow 1 wrote it"),
        ("big_constant", "session", "its graph holds 4.0 MB of constants"),
    ],
)
def test_auto_picks_the_servable_and_logs_why(
    load: Load, caplog: pytest.LogCaptureFixture, name: str, kind: str, reason: str | None
) -> None:
    caplog.set_level(logging.INFO, "embedserve")
    assert load(name).kind == kind
    assert ("runs in a graph session" in caplog.text) is (reason is not None)
    if reason is not None:
        assert f"{{name: {name} version: 1}} runs in a graph session: {reason}" in caplog.text


@pytest.mark.parametrize("kind", ["function", "session"])
@pytest.mark.parametrize("name", ["dense", "tf1_ref_variables"])
def test_the_option_picks_the_servable(load: Load, name: str, kind: Literal["function", "session"]) -> None:
    assert load(name, servable=kind).kind == kind
    assert load(name, RegistryOptions(servable=kind)).kind == kind


def add_optimizer_slot(meta_graph: Any) -> None:
    """What Keras 2 left in its exports, and `tf.saved_model.load` refuses."""
    meta_graph.object_graph_def.nodes[0].slot_variables.add(
        original_variable_node_id=1, slot_name="m", slot_variable_node_id=2
    )


def test_what_cannot_be_lifted_runs_in_a_session(load: Load, copy: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "embedserve")
    path = edit(copy("half_plus_two"), add_optimizer_slot)
    servable = load(path)
    assert servable.kind == "session"
    assert "tf.saved_model.load cannot lift it (AttributeError: " in caplog.text
    x = np.array([[1.0]], np.float32)
    assert servable.run("serving_default", {"x": x})["y"].tolist() == [[2.5]]


def test_the_function_option_does_not_fall_back(copy: Any) -> None:
    path = edit(copy("half_plus_two"), add_optimizer_slot)
    with pytest.raises(LoadError, match="add_slot") as raised:
        loader(path, servable="function").load()
    assert raised.value.code is Code.UNKNOWN
    assert str(path) in raised.value.message


@pytest.mark.usefixtures("sessions_are_faster")
def test_variables_that_a_session_leaves_unset_are_found_at_load(load: Load, model: ModelPath) -> None:
    x = {"x": np.ones((2, 6), np.float32)}
    path = model("keras_saved")
    with pytest.raises(LoadError, match=r"leaves 2 of 2 variables unset .* export it with Model\.export"):
        loader(path, servable="session").load()
    functions, session = load(path, servable="function"), load(path)
    assert (functions.kind, session.kind) == ("function", "session")  # Which takes the variables from the other.
    for name, array in functions.run("serving_default", x).items():
        assert np.array_equal(session.run("serving_default", x)[name], array)


@pytest.mark.usefixtures("sessions_are_faster")
def test_large_constants_fall_back_to_functions(load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "embedserve")
    path = saved_models.keras_saved(tmp_path / "m" / "1", constant=300_000)
    assert load(path).kind == "session"
    assert "runs as functions: a graph session cannot run it (UnsetStateError: " in caplog.text
    assert "runs in a graph session: it is faster there" in caplog.text
    servable = load(path, servable="function")
    assert isinstance(servable, FunctionServable)
    # Its constants would stay in TensorFlow's cache.
    assert not servable._functions["serving_default"].inline


def test_a_signature_that_is_not_lifted_as_stored_runs_in_a_session(load: Load, copy: Any) -> None:
    def rename(meta_graph: Any) -> None:
        outputs = meta_graph.signature_def["serving_default"].outputs
        outputs["renamed"].CopyFrom(outputs["y"])
        del outputs["y"]

    servable = load(edit(copy("half_plus_two"), rename))
    assert servable.kind == "session"
    assert servable.run("serving_default", {"x": np.ones((1, 1), np.float32)})["renamed"].tolist() == [[2.5]]


def use_unknown_op(op: str) -> Any:
    def change(meta_graph: Any) -> None:
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "MatMul":
                    node.op = op
        for node in meta_graph.graph_def.node:
            if node.op == "StatefulPartitionedCall":
                node.op = op

    return change


@pytest.mark.parametrize(
    ("op", "advice"),
    [
        (
            "IO>ReadJSON",
            "comes with the pip package tensorflow-io: install it and set "
            "preload_modules=('tensorflow_io',), on the command line --preload_modules=tensorflow_io",
        ),
        ("SimpleMLInferenceOp", "pip package tensorflow-decision-forests"),
        ("NobodysOp", "Name the Python module that registers it in preload_modules"),
    ],
)
def test_a_missing_operation_says_what_provides_it(copy: Any, op: str, advice: str) -> None:
    path = edit(copy("dense"), use_unknown_op(op))
    with pytest.raises(LoadError) as raised:
        loader(path).load()
    assert raised.value.code is Code.NOT_FOUND
    assert f"Op type not registered '{op}'" in raised.value.message
    assert advice in raised.value.message
    assert str(path) in raised.value.message


def test_modules_are_imported_before_the_load(
    model: ModelPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ops_of_ours.py").write_text("loaded = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = loader(model("dense"), RegistryOptions(preload_modules=("ops_of_ours",)))
    made.unload(made.load())
    assert sys.modules.pop("ops_of_ours").loaded


def test_an_installed_package_that_has_a_missing_operation_is_imported_and_the_load_tried_again(
    copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorflow_io.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with caplog.at_level(logging.INFO, "embedserve"), pytest.raises(LoadError) as raised:
        loader(edit(copy("dense"), use_unknown_op("IO>ReadJSON"))).load()
    assert sys.modules.pop("tensorflow_io")
    assert caplog.text.count("importing tensorflow_io, which has the operation 'IO>ReadJSON'") == 1
    assert "Op type not registered 'IO>ReadJSON'" in raised.value.message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preload_modules": ("no_such_module_here",)}, "preload_modules: cannot import 'no_such_module_here'"),
        ({"op_libraries": ("/no/such/library.so",)}, "op_libraries: cannot load '/no/such/library.so'"),
    ],
)
def test_custom_ops_that_cannot_be_loaded_fail_the_load(model: ModelPath, options: Any, words: str) -> None:
    with pytest.raises(LoadError, match=words) as raised:
        loader(model("dense"), RegistryOptions(**options)).load()
    assert raised.value.code is Code.FAILED_PRECONDITION


def test_an_op_library_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(tf, "load_op_library", loaded.append)
    monkeypatch.setattr(custom_ops, "_loaded_libraries", set())
    custom_ops.preload([], ["a.so"])
    custom_ops.preload([], ["a.so", "b.so"])
    assert loaded == ["a.so", "b.so"]


def test_gpu_memory_grows_as_needed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Gpu:
        name = "GPU:0"

    grown: list[Any] = []
    gpu = Gpu()
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [gpu])
    monkeypatch.setattr(tf.config.experimental, "get_memory_growth", lambda device: bool(grown))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda device, on: grown.append(device))
    custom_ops.use_gpu_as_needed()
    custom_ops.use_gpu_as_needed()
    assert grown == [gpu]

    def too_late(device: Any) -> bool:
        raise RuntimeError("already initialized")

    monkeypatch.setattr(tf.config.experimental, "get_memory_growth", too_late)
    custom_ops.use_gpu_as_needed()
    assert "memory growth cannot be turned on for GPU:0" in caplog.text


def test_a_version_that_is_not_whole_is_not_loaded(copy: Any) -> None:
    path = copy("dense")
    (path / "variables" / "variables.index").unlink()
    with pytest.raises(LoadError, match=r"is not whole: .*variables\.index") as raised:
        loader(path).load()
    assert raised.value.code is Code.FAILED_PRECONDITION


def test_a_directory_without_a_model_has_tensorflow_servings_words(tmp_path: Path) -> None:
    with pytest.raises(
        LoadError, match=r"^Specified file path does not appear to contain a SavedModel bundle"
    ) as raised:
        loader(tmp_path).load()
    assert raised.value.code is Code.NOT_FOUND


def test_a_change_during_the_load_is_noticed(copy: Any) -> None:
    path = copy("dense")
    made = loader(path)
    servable = made.load()
    assert made.unchanged()
    os.utime(path / "saved_model.pb", ns=(1, 1))
    assert not made.unchanged()
    made.unload(servable)


def test_defaults_of_signatures_are_honoured(load: Load, copy: Any) -> None:
    path = saved_models.set_default(copy("half_plus_two"), "serving_default", "x", [[6.0]])
    servable = load(path)
    inputs = servable.signatures["serving_default"].bind({})
    assert servable.run("serving_default", inputs)["y"].tolist() == [[5]]


def test_other_tags_load_another_meta_graph(load: Load, copy: Any) -> None:
    def retag(meta_graph: Any) -> None:
        meta_graph.meta_info_def.tags.append("gpu")

    path = edit(copy("dense"), retag)
    for kind in ("function", "session"):
        assert load(path, servable=kind, saved_model_tags=("gpu", "serve")).kind == kind
    with pytest.raises(LoadError, match="Could not find meta graph def"):
        loader(path).load()


def test_metadata_lists_every_signature_def(load: Load) -> None:
    servable = load("several")
    assert set(servable.signature_defs) == {"__saved_model_init_op", "free", "scalars", "serving_default"}
    assert servable.signature_defs["scalars"].inputs["a"].name == "scalars_a:0"


def test_reading_files_at_run_time_is_known(load: Load) -> None:
    assert load("reads_asset_at_run_time").reads_files_at_run_time
    assert not load("lookup").reads_files_at_run_time


class Recording:
    """Notes the runs of a servable."""

    def __init__(self, servable: FunctionServable, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[tuple[str, int]] = []
        run = servable.run

        def recorded(name: str, inputs: Any, *args: Any, **options: Any) -> Any:
            self.runs.append((name, len(next(iter(inputs.values())))))
            return run(name, inputs, *args, **options)

        monkeypatch.setattr(servable, "run", recorded)


def test_each_stateless_signature_is_warmed_in_every_batch_size(
    model: ModelPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RegistryOptions(batching_options=BatchingOptions(max_batch_size=8, allowed_batch_sizes=(2, 8)))
    for name, expected in (
        ("dense", [("serving_default", size) for size in (1, 2, 8)]),
        ("counter", [("read", size) for size in (1, 2, 8)]),  # The other signature counts.
        ("across_rows", [("serving_default", 1)]),
        ("random_noise", []),
        ("conv2d_unknown_rank", []),
    ):
        made = loader(model(name), options, servable="function")
        servable = made.load()
        assert isinstance(servable, FunctionServable)
        recording = Recording(servable, monkeypatch)
        made.warm_up_thread(servable)
        assert recording.runs == expected
        made.unload(servable)


def test_warm_up_can_be_turned_off(model: ModelPath, monkeypatch: pytest.MonkeyPatch) -> None:
    made = loader(model("dense"), warmup="none")
    servable = made.load()
    assert isinstance(servable, FunctionServable)
    recording = Recording(servable, monkeypatch)
    made.warm_up(servable)
    made.warm_up_thread(servable)
    assert recording.runs == []
    assert servable.signatures["serving_default"].batching.batchable
    made.unload(servable)


PER_MODEL = RegistryOptions(
    batching=True, batching_options=BatchingOptions(max_batch_size=16), enable_per_model_batching_parameters=True
)


def test_a_versions_own_batching_parameters_replace_the_others(copy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path: Path = copy("dense")
    (path / "batching_params.pbtxt").write_text(
        "max_batch_size { value: 4 } allowed_batch_sizes: 3 allowed_batch_sizes: 4 num_batch_threads { value: 7 }"
    )
    made = loader(path, PER_MODEL, servable="function")
    servable = made.load()
    assert isinstance(servable, FunctionServable)
    assert servable.signatures["serving_default"].batching.batchable
    batching, options = made.batching
    assert batching is True
    assert (options.max_batch_size, options.allowed_batch_sizes, options.oversize) == (4, (3, 4), "reject")
    recording = Recording(servable, monkeypatch)
    made.warm_up_thread(servable)
    assert recording.runs == [("serving_default", size) for size in (1, 3, 4)]
    made.unload(servable)


def test_bad_batching_parameters_of_a_version_fail_its_load(copy: Any) -> None:
    path: Path = copy("dense")
    (path / "batching_params.pbtxt").write_text("max_batch_size: 4")
    with pytest.raises(LoadError, match=r"^Invalid protobuf file: "):
        loader(path, PER_MODEL).load()


async def test_each_version_is_batched_by_its_own_parameters(model: ModelPath, tmp_path: Path) -> None:
    for name in ("plain", "own"):
        shutil.copytree(model("dense"), tmp_path / name / "1")
    (tmp_path / "own" / "1" / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
    models = [ModelConfig(name=name, base_path=tmp_path / name) for name in ("plain", "own")]
    asked: Any = {**dict(PER_MODEL), "settle": 0.0, "watch": False}
    rows = np.ones((3, 4), np.float32)
    async with ModelRegistry(models=models, **asked) as registry:
        await registry.predict("plain", rows)
        await registry.predict("own", rows[:2])
        with pytest.raises(InvalidInputError, match="3"):
            await registry.predict("own", rows)
        queues = registry.statistics().queues
        assert (queues["plain", 1].rows, queues["own", 1].rows) == (0, 2)


def test_unload_after_a_failed_load_is_fine(tmp_path: Path) -> None:
    loader(tmp_path).unload(None)


RELOADS = """
import gc, json, sys
from pathlib import Path
from embedserve.config import ModelConfig, RegistryOptions
from embedserve.saved_model.load.loader import SavedModelLoader
from embedserve.servable import ServableId

path = Path(sys.argv[1])
config = ModelConfig(name="m", base_path=path.parent, **json.loads(sys.argv[2]))

def cycle():
    loader = SavedModelLoader(ServableId("m", 1), path, config, RegistryOptions())
    servable = loader.load()
    loader.warm_up(servable)
    loader.warm_up_thread(servable)
    loader.unload(servable)
    del servable
    loader.give_back()

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

for _ in range(5):
    cycle()
before = resident()
for _ in range(int(sys.argv[3])):
    cycle()
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("name", "options", "reloads"),
    [
        ("big_constant", {}, 15),
        ("big_constant", {"servable": "function"}, 15),
        ("wide", {}, 15),
        ("wide", {"servable": "function"}, 15),
        ("wide", {"optimize": "xla", "batching_options": {"max_batch_size": 1}}, 10),
    ],
)
def test_reloads_stay_flat(model: ModelPath, tmp_path: Path, name: str, options: dict[str, Any], reloads: int) -> None:
    """With what `optimize="xla"` does the 4 MB of variables become constants, and programs are made over them."""
    path = model(name) if name in saved_models.MODELS else saved_models.dense(tmp_path / "wide" / "1", 1024, 1024)
    done = subprocess.run(
        [sys.executable, "-c", RELOADS, str(path), json.dumps(options), str(reloads)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    grown = float(done.stdout.split()[-1])
    assert grown < 30, f"{grown:.1f} MB more after {reloads} reloads of a 4 MB model"
