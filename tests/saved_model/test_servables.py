"""Both servables answer as TensorFlow does on the same batch, bit for bit, whatever the model is made of."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tensorflow as tf

from embedserve.errors import Code, DeadlineExceededError, InferenceError, InvalidInputError, RequestTooLargeError
from embedserve.saved_model import tensorflow_private
from embedserve.saved_model.run import session
from embedserve.saved_model.run.function import FunctionServable, _KeptKernels
from embedserve.saved_model.run.graph_session import open_saved_model
from embedserve.saved_model.run.session import SessionServable
from embedserve.servable import Array, Cancellation, Tensors
from tests.saved_model.cases import CASES, floats, strings
from tests.saved_model.conftest import Load, ModelPath
from tests.support import saved_models

pytestmark = pytest.mark.slow

Kind = Literal["function", "session"]
KINDS: tuple[Kind, ...] = ("function", "session")


def by_signature_call(path: Path, signature_name: str, inputs: Tensors) -> dict[str, Any]:
    loaded = tf.saved_model.load(str(path))
    outputs = loaded.signatures[signature_name](**{name: tf.constant(array) for name, array in inputs.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def by_session(path: Path, signature_name: str, inputs: Tensors) -> dict[str, Any]:
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session, tensorflow_private.quiet_loading():
        signature = v1.saved_model.loader.load(session, ["serve"], str(path)).signature_def[signature_name]
        feeds = {signature.inputs[name].name: array for name, array in inputs.items()}
        fetches = {name: info.name for name, info in signature.outputs.items()}
        # Not `session.run`: it refuses shapes that the graph takes, as it takes them behind TensorFlow Serving.
        call = tensorflow_private.session_run(session, list(feeds), list(fetches.values()))
        return dict(zip(fetches, copy.deepcopy(call(list(feeds.values()), 0)), strict=True))


REFERENCE = {"function": by_signature_call, "session": by_session}


def same(ours: Tensors, reference: dict[str, Any]) -> None:
    assert set(ours) == set(reference)
    for name, array in ours.items():
        expected = np.asarray(reference[name])
        assert isinstance(array, np.ndarray)
        assert array.shape == expected.shape
        if array.dtype.hasobject:
            assert array.tolist() == expected.tolist()
            assert all(type(element) is bytes for element in array.ravel())
        else:
            assert array.dtype == expected.dtype
            assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_answers_are_tensorflows_own_bit_for_bit(load: Load, model: ModelPath, case: str, kind: Kind) -> None:
    name, signature_name, inputs = CASES[case]
    servable = load(name, servable=kind)
    assert servable.kind == kind
    bound = servable.signatures[signature_name].bind(inputs)
    same(servable.run(signature_name, bound), REFERENCE[kind](model(name), signature_name, inputs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", saved_models.DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 1, 2)])
def test_every_dtype_comes_back_as_it_went_in(
    load_once: dict[Kind, Any], dtype: str, shape: tuple[int, ...], kind: Kind
) -> None:
    servable = load_once[kind]
    signature = servable.signatures[dtype]
    numpy = signature.inputs["x"].dtype.numpy
    given = np.full(shape, b"text" if dtype == "string" else 1, numpy)
    answer = servable.run(dtype, signature.bind({"x": given}))["y"]
    assert (answer.dtype, answer.shape) == (numpy, shape)
    assert np.array_equal(answer, given)


@pytest.fixture(scope="module")
def load_once(model: ModelPath) -> dict[Kind, Any]:
    from embedserve.saved_model.files.meta_graph import read_meta_graph, read_signatures

    path = model("identities")
    signatures = read_signatures(read_meta_graph(path, ["serve"]))
    return {
        "function": FunctionServable(path, ["serve"], signatures),
        "session": SessionServable(open_saved_model(path, ["serve"], []), signatures),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_composite_outputs_are_those_of_tensorflow(load: Load, model: ModelPath, kind: Kind) -> None:
    servable = load("composite_outputs", servable=kind)
    inputs = {"text": strings(b"a bc", b"", b"d")}
    composites = servable.signatures["serving_default"].composites
    reference = tf.saved_model.load(str(model("composite_outputs"))).signatures["serving_default"](
        text=tf.constant(inputs["text"])
    )
    sparse, ragged, letters = reference["sparse"], reference["ragged"], reference["letters"]
    expected = {
        "sparse": {"indices": sparse.indices, "values": sparse.values, "dense_shape": sparse.dense_shape},
        "ragged": {"flat_values": ragged.values, "row_splits": ragged.row_splits},
        "letters": {
            "flat_values": letters.flat_values,
            **{f"row_splits_{i}": splits for i, splits in enumerate(letters.nested_row_splits)},
        },
    }
    answer = servable.run("serving_default", inputs)
    for alias, parts in expected.items():
        names = dict(composites[alias].parts)
        same({what: answer[names[what]] for what in names}, {what: part.numpy() for what, part in parts.items()})
    assert answer["count"].tolist() == [2, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_stateful_models_count_each_run_once(load: Load, kind: Kind) -> None:
    servable = load("counter", servable=kind)
    x = np.zeros(2, np.float32)
    first = servable.run("serving_default", {"x": x})["y"]
    second = servable.run("serving_default", {"x": x})["y"]
    assert (first.tolist(), second.tolist()) == ([1, 1], [2, 2])
    assert servable.run("read", {"x": x})["y"].tolist() == [2, 2]


def test_tf1_reference_counter_keeps_earlier_answers(load: Load) -> None:
    servable = load("tf1_counter")
    answers = [servable.run("serving_default", {"x": np.zeros(1, np.float32)})["y"] for _ in range(3)]
    assert [answer.tolist() for answer in answers] == [[1], [2], [3]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [None, ("doubled",), ("row_sum", "total"), ("total", "row_sum")])
def test_only_the_outputs_asked_for_come_back(load: Load, kind: Kind, names: tuple[str, ...] | None) -> None:
    servable = load("several", servable=kind)
    outputs = servable.run("serving_default", CASES["several"][2], names)
    assert set(outputs) == set(names or ("total", "row_sum", "doubled"))


def test_output_choices_of_clients_do_not_pile_up(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedserve.saved_model.run.session._MAX_OUTPUT_CHOICES", 2)
    servable = load("several", servable="session")
    assert isinstance(servable, SessionServable)
    inputs = CASES["several"][2]
    for names in (("doubled",), ("total",), ("row_sum",), ("row_sum", "total")):
        assert set(servable.run("serving_default", inputs, names)) == set(names)
    assert sum(name == "serving_default" for name, _ in servable._plans) <= 3


def aligned(count: int) -> Array:
    """An array that TensorFlow would take over without a copy."""
    room = np.zeros(count + 16, np.float32)
    start = (-room.ctypes.data % 64) // 4
    return room[start : start + count]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_belong_to_the_caller(load: Load, kind: Kind) -> None:
    servable = load("exposed_variable", servable=kind)
    x = aligned(64)
    x[:] = 7
    first = servable.run("serving_default", {"x": x})
    kept = {name: array.copy() for name, array in first.items()}
    x[:] = 9
    servable.run("bump", {"x": x})
    for name in first:
        assert np.array_equal(first[name], kept[name])
        first[name][:] = -1  # Writable, and nobody else's.
    assert servable.run("serving_default", {"x": x})["all"].tolist() == (np.arange(64) + 1).tolist()


class Remembering(tf.Module):
    """Assigns its input to a variable, which may keep the very buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.last = tf.Variable(tf.zeros(64))

    @tf.function(input_signature=[tf.TensorSpec([64], tf.float32, name="x")])
    def serve(self, x: Any) -> Any:
        before = tf.identity(self.last)
        with tf.control_dependencies([before]):
            self.last.assign(x)
        return {"y": before}


@pytest.mark.parametrize("kind", KINDS)
def test_variables_do_not_keep_the_callers_array(load: Load, kind: Kind, tmp_path: Path) -> None:
    module = Remembering()
    tf.saved_model.save(module, str(tmp_path / "m" / "1"), signatures=module.serve)
    servable = load(tmp_path / "m" / "1", servable=kind)
    x = aligned(64)
    x[:] = 1
    servable.run("serving_default", {"x": x})
    x[:] = 2
    assert servable.run("serving_default", {"x": x})["y"].tolist() == [1] * 64


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_may_be_of_any_memory_layout(load: Load, kind: Kind) -> None:
    servable = load("dense", servable=kind)
    x = floats(6, 8)
    expected = servable.run("serving_default", {"features": x[:, ::2].copy()})["scores"]
    read_only = np.frombuffer(x[:, ::2].tobytes(), np.float32).reshape(6, 4)
    for given in (x[:, ::2], np.asfortranarray(x[:, ::2]), read_only):
        assert np.array_equal(servable.run("serving_default", {"features": given})["scores"], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_operations_keep_their_code_and_words(load: Load, kind: Kind) -> None:
    servable = load("positive_only", servable=kind)
    with pytest.raises(InferenceError, match=r"^assertion failed: .x must be positive") as raised:
        servable.run("serving_default", {"x": np.array([-1], np.float32)})
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert "function_node" not in raised.value.message
    assert "[Op:" not in raised.value.message
    assert servable.run("serving_default", {"x": np.array([1], np.float32)})["y"].tolist() == [2]


ENDLESS = {"steps": np.array([2**60])}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_when_its_time_is_over(load: Load, kind: Kind) -> None:
    servable = load("endless", servable=kind)
    with pytest.raises(DeadlineExceededError, match=r"^Timed out waiting for notification$"):
        servable.run("serving_default", ENDLESS, timeout=0.2)
    assert servable.run("serving_default", {"steps": np.array([3])}, timeout=60.0)["done"].tolist() == [12]


@pytest.mark.parametrize("kind", KINDS)
def test_no_time_left_runs_nothing(load: Load, kind: Kind) -> None:
    with pytest.raises(DeadlineExceededError):
        load("endless", servable=kind).run("serving_default", ENDLESS, timeout=0.0)


def test_a_running_function_can_be_cancelled(load: Load) -> None:
    servable = load("endless")
    running = threading.Event()

    class Noticing(Cancellation):
        def on_cancel(self, callback: Callable[[], None] | None) -> None:
            super().on_cancel(callback)
            running.set()

    cancellation = Noticing()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            servable.run("serving_default", ENDLESS, cancellation=cancellation)
        except InferenceError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert running.wait(30)
    cancellation.cancel()
    thread.join(30)
    assert [error.code for error in errors if isinstance(error, InferenceError)] == [Code.CANCELLED]
    assert cancellation._callback is None


def test_a_run_cancelled_before_it_starts_does_not_run(load: Load) -> None:
    servable = load("endless")
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(InferenceError) as raised:
        servable.run("serving_default", ENDLESS, cancellation=cancellation)
    assert raised.value.code is Code.CANCELLED
    assert raised.value.message


def test_cancelling_after_the_run_changes_nothing(load: Load) -> None:
    servable = load("dense")
    cancellation = Cancellation()
    x = {"features": floats(1, 4)}
    first = servable.run("serving_default", x, cancellation=cancellation, timeout=60.0)
    cancellation.cancel()
    assert np.array_equal(first["scores"], servable.run("serving_default", x)["scores"])


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_many_threads_do_not_disturb_each_other(load: Load, kind: Kind) -> None:
    servable = load("dense", servable=kind)
    inputs = [floats(3, 4) for _ in range(8)]
    expected = [servable.run("serving_default", {"features": x})["scores"] for x in inputs]
    wrong: list[int] = []

    def run(index: int) -> None:
        for _ in range(50):
            if not np.array_equal(
                servable.run("serving_default", {"features": inputs[index]})["scores"], expected[index]
            ):
                wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


@pytest.mark.parametrize(("short", "inline"), [(60.0, True), (0.0, False)])
def test_only_short_function_runs_stay_in_the_callers_thread(
    load: Load, monkeypatch: pytest.MonkeyPatch, short: float, inline: bool
) -> None:
    monkeypatch.setattr("embedserve.saved_model.run.run_time.SHORT_RUN", short)
    servable = load("several", servable="function")
    assert isinstance(servable, FunctionServable)
    assert servable._functions["serving_default"].inline is inline
    inputs = CASES["several"][2]
    same(servable.run("serving_default", inputs), by_signature_call_of(servable, inputs))


def by_signature_call_of(servable: FunctionServable, inputs: Tensors) -> dict[str, Any]:
    outputs = servable._loaded.signatures["serving_default"](**{n: tf.constant(a) for n, a in inputs.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def test_kernels_that_tensorflow_keeps_do_not_pile_up(model: ModelPath, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[None] = []
    monkeypatch.setattr(tensorflow_private, "forget_kernels", lambda: forgotten.append(None))
    kept = _KeptKernels()
    for _ in range(3 * 64):
        kept.add(4)
    assert len(forgotten) == 3


def test_short_session_runs_stay_in_the_callers_thread(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedserve.saved_model.run.run_time.SHORT_RUN", 60.0)
    servable = load("dense", servable="session")
    looping = load("endless", servable="session")
    assert isinstance(servable, SessionServable)
    assert isinstance(looping, SessionServable)
    assert servable._plans["serving_default", None].short is not None
    assert looping._plans["serving_default", None].short is None
    x = {"features": floats(2, 4)}
    again = load("dense", servable="function").run("serving_default", x)["scores"]
    assert np.allclose(servable.run("serving_default", x, ("scores",))["scores"], again)


def test_an_output_that_is_an_input_is_passed_on(load: Load, tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], "x")
        path = saved_models.save_v1(
            tmp_path / "m" / "1", session, {"serving_default": saved_models.v1_signature({"x": x}, {"x": x, "y": -x})}
        )
    servable = load(path)
    given = floats(3)
    outputs = servable.run("serving_default", {"x": given})
    assert np.array_equal(outputs["x"], given)
    assert outputs["x"] is not given
    assert np.array_equal(outputs["y"], -given)
    assert set(servable.run("serving_default", {"x": given}, ("x",))) == {"x"}


TEXT = np.array(b"/etc/hostname", object)
TWO = np.ones(2, np.float32)


class TestRunGraph:
    def test_feeds_and_fetches_any_tensor(self, load: Load) -> None:
        servable = load("tf1_ref_variables")
        assert isinstance(servable, SessionServable)
        x = floats(2, 2)
        product, y = servable.run_graph({"x:0": x}, ["mul:0", "y:0"], ["y"])
        assert np.array_equal(product, x * np.array([2, 3], np.float32))
        assert np.array_equal(y, product + 1)

    @pytest.mark.parametrize(
        ("feeds", "fetches", "targets", "words"),
        [
            ({"nope:0": np.zeros(1)}, ["y:0"], [], "no tensor 'nope:0'"),
            ({}, ["nope"], [], "no tensor 'nope'"),
            ({}, [], ["nope"], "no operation 'nope'"),
            ({"x:0": np.zeros((1, 2))}, ["y:0"], [], "is float, the feed is double"),
            ({"x:0": np.zeros((1, 2, 3), np.float32)}, ["y:0"], [], "has shape"),
            ({}, [], ["save/SaveV2"], "may not run the graph's SaveV2 operation"),
        ],
    )
    def test_refuses_what_does_not_fit(
        self, load: Load, feeds: Tensors, fetches: list[str], targets: list[str], words: str
    ) -> None:
        servable = load("tf1_ref_variables")
        assert isinstance(servable, SessionServable)
        with pytest.raises(InvalidInputError, match=words):
            servable.run_graph(feeds, fetches, targets)

    @pytest.mark.parametrize(
        ("feeds", "fetches", "targets", "op"),
        [
            ({}, [], ["save/restore_all"], "Assign"),
            ({"save/Const:0": TEXT}, [], ["save/restore_all"], "Assign"),
            ({}, ["save/RestoreV2:0"], [], "RestoreV2"),
            ({"save/RestoreV2:0": TWO}, ["save/RestoreV2:1"], [], "RestoreV2"),  # The other output still runs the op.
            ({"save/RestoreV2:0": TWO}, [], ["save/RestoreV2"], "RestoreV2"),
            ({"read:0": TEXT}, [], ["read"], "ReadFile"),
            ({"name:0": TEXT}, ["read:0"], [], "ReadFile"),
            ({"joined:0": TEXT}, ["indirectly"], [], "ReadFile"),
            ({}, ["read"], [], "ReadFile"),
            ({}, ["matching:0"], [], "MatchingFiles"),
            ({}, ["remapped:0"], [], "GenerateVocabRemapping"),
            ({}, [], ["write"], "WriteFile"),
            ({"x:0": TWO[None]}, ["after_assign:0"], [], "AssignVariableOp"),
            ({"x:0": TWO[None]}, ["y:0"], ["assign_reference"], "Assign"),
            ({}, ["assign_reference:0"], [], "Assign"),
            ({"name:0": TEXT}, ["in_a_function:0"], [], "ReadFile"),
            ({}, ["in_a_loop:0"], [], "AssignAddVariableOp"),
        ],
    )
    def test_nothing_that_a_client_could_harm_with_is_reached(
        self, load: Load, feeds: Tensors, fetches: list[str], targets: list[str], op: str
    ) -> None:
        servable = load("tf1_dangerous", servable="session")
        assert isinstance(servable, SessionServable)
        with pytest.raises(InvalidInputError, match=rf"may not run the graph's {op}\w* operation"):
            servable.run_graph(feeds, fetches, targets)
        (y,) = servable.run_graph({"x:0": TWO[None]}, ["y:0"])
        assert y.tolist() == [[2.0, 3.0]]

    def test_handles_are_neither_fetched_nor_fed(self, load: Load) -> None:
        servable = load("tf1_dangerous", servable="session")
        assert isinstance(servable, SessionServable)
        with pytest.raises(InvalidInputError, match="tensor 'w:0' is resource, which has no value to send"):
            servable.run_graph({}, ["w:0"])
        with pytest.raises(InvalidInputError, match="tensor 'w:0' is resource, which cannot be fed"):
            servable.run_graph({"w:0": TEXT}, ["y:0"])

    def test_variables_constants_and_random_numbers_can_be_fetched(self, load: Load) -> None:
        servable = load("tf1_dangerous", servable="session")
        assert isinstance(servable, SessionServable)
        w, r, name, noise = servable.run_graph({}, ["w/Read/ReadVariableOp:0", "r:0", "name:0", "noise:0"])
        assert (w.tolist(), r.tolist(), name.item()) == ([2.0, 3.0], [1.0, 1.0], b"/etc/passwd")
        assert noise.shape == (2,)
        (fed,) = servable.run_graph({"read:0": np.array(b"mine", object)}, ["read:0"])
        assert fed.item() == b"mine"

    def test_a_signature_that_assigns_may_be_run_as_it_is_and_not_otherwise(self, load: Load) -> None:
        servable = load("tf1_assign_on_read", servable="session")
        assert isinstance(servable, SessionServable)
        x = floats(2)
        (y,) = servable.run_graph({"x:0": x}, ["y:0"])
        assert np.array_equal(y, x * 3)
        value = servable._session.graph.get_operation_by_name("AssignVariableOp").inputs[1].name
        with pytest.raises(InvalidInputError, match="may not run the graph's AssignVariableOp operation"):
            servable.run_graph({"x:0": x, value: np.array(7.0, np.float32)}, ["y:0"])

    def test_choices_are_bounded_because_each_is_kept(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session, "_MAX_GRAPH_CHOICES", 2)
        servable = load("tf1_ref_variables")
        assert isinstance(servable, SessionServable)
        x = floats(1, 2)
        for _ in range(3):
            servable.run_graph({"x:0": x}, ["y:0"])
            servable.run_graph({"x:0": x}, ["mul:0"])
        with pytest.raises(RequestTooLargeError, match="2 different choices"):
            servable.run_graph({"x:0": x}, ["mul:0", "y:0"])
        servable.run_graph({"x": x}, ["y"])

    def test_time_and_departure_end_it(self, load: Load) -> None:
        servable = load("endless", servable="session")
        assert isinstance(servable, SessionServable)
        signature = servable.signatures["serving_default"]
        feeds = {signature.inputs["steps"].tensor_name: ENDLESS["steps"]}
        fetches = [signature.outputs["done"].tensor_name]
        with pytest.raises(DeadlineExceededError):
            servable.run_graph(feeds, fetches, timeout=0.1)
        left = Cancellation()
        left.cancel()
        with pytest.raises(InferenceError) as raised:
            servable.run_graph(feeds, fetches, cancellation=left)
        assert raised.value.code is Code.CANCELLED

    def test_an_unfed_placeholder_is_tensorflows_error(self, load: Load) -> None:
        servable = load("tf1_ref_variables")
        assert isinstance(servable, SessionServable)
        with pytest.raises(InferenceError, match="You must feed a value for placeholder tensor 'x'") as raised:
            servable.run_graph({}, ["y:0"])
        assert raised.value.code is Code.INVALID_ARGUMENT


def test_the_init_race_of_tf1_models_is_retried(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tf.compat.v1.saved_model.loader.load
    failures = iter([True, True])

    def racing(*args: Any) -> Any:
        if next(failures, False):
            raise tf.errors.FailedPreconditionError(None, None, "Attempting to use uninitialized value scale")
        return real(*args)

    monkeypatch.setattr(tf.compat.v1.saved_model.loader, "load", racing)
    servable = load("tf1_legacy_init")
    assert servable.run("serving_default", {"words": strings(b"dog")})["ids"].tolist() == [10]


def test_servables_show_what_they_serve(load: Load) -> None:
    assert repr(load("several", servable="function")) == "<FunctionServable free, scalars, serving_default>"
    assert repr(load("tf1_counter")) == "<SessionServable serving_default>"


def test_the_deadline_thread_goes_away(load: Load) -> None:
    servable = load("dense")
    servable.run("serving_default", {"features": floats(1, 4)}, timeout=60.0)

    def watched() -> bool:
        return any(thread.name == "embedserve-deadlines" for thread in threading.enumerate())

    give_up = time.monotonic() + 30
    while watched() and time.monotonic() < give_up:
        threading.Event().wait(0.05)
    assert not watched()
