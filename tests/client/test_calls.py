"""The same calls give the same answers and errors over gRPC, over REST and in process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import embedserve
import embedserve_client
from embedserve_client import AsyncClient, Client, Code, State
from embedserve_client.dtypes import by_name
from tests.client.serving import DTYPES


@st.composite
def arrays(draw: st.DrawFn, name: str) -> Any:
    """An array of a dtype with any bits that JSON and protobuf both carry."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=5))
    if name == "string":
        values = draw(st.lists(st.text(max_size=5), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        array = np.empty(len(values), dtype=object)
        array[:] = [value.encode() for value in values]
        return array.reshape(shape)
    dtype = by_name(name).numpy
    if name == "bfloat16":
        return draw(hnp.arrays(np.float32, shape, elements=st.floats(width=16))).astype(dtype)
    return draw(hnp.arrays(dtype, shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("protocol", ["grpc", "http", "registry"])
def test_an_array_of_each_dtype_comes_back_as_it_was(protocol: str, dtype: str, target: Callable[[str], Any]) -> None:
    with Client(target(protocol)) as client:

        @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(array=arrays(dtype))
        def check(array: Any) -> None:
            if protocol == "http" and not by_name(dtype).json:
                with pytest.raises(embedserve_client.UnsupportedError, match="use grpc"):
                    client.predict("same", {"x": array}, signature_name=dtype)
                return
            found = client.predict("same", {"x": array}, signature_name=dtype)["y"]
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            plain = np.float32 if dtype == "bfloat16" else array.dtype
            np.testing.assert_array_equal(found.astype(plain), array.astype(plain))

        check()


def test_lists_and_numbers_take_the_declared_dtypes(client: Client) -> None:
    assert client.predict("half", {"x": [[1], [2]]})["y"].tolist() == [[3.5], [4.0]]
    assert client.predict("half", [[1.0]])["y"].dtype == np.float32, "a bare value is the only input"
    found = client.predict("several", {"left": [[1, 2, 3.5]], "right": [[1, 2, 3]]})
    assert {name: (value.dtype.name, value.tolist()) for name, value in found.items()} == {
        "total": ("float32", [[2.0, 4.0, 6.5]]),
        "row_sum": ("float32", [12.5]),
        "doubled": ("int32", [[2, 4, 6]]),
    }


def test_arrays_of_other_dtypes_are_cast_where_numpy_allows(client: Client) -> None:
    assert client.predict("half", {"x": np.array([[1.0]], np.float64)})["y"].dtype == np.float32
    assert client.predict("half", {"x": np.array([[3]], np.int64)})["y"].tolist() == [[4.5]]
    with pytest.raises(embedserve_client.InvalidInputError):
        client.predict("several", {"left": np.ones((1, 3)), "right": np.ones((1, 3))})


def test_strings_may_be_str_or_bytes(client: Client) -> None:
    found = client.predict("strings", {"text": ["grün", b"abc\0"]})
    assert found["upper"].tolist() == ["GRüN".encode(), b"ABC\0"]
    assert found["length"].tolist() == [5, 4]


def test_versions_labels_and_filters_are_carried(client: Client) -> None:
    one = [[2.0]]
    assert client.predict("half", one)["y"].tolist() == [[4.0]]
    assert client.predict("half", one, version=1)["y"].tolist() == [[3.0]]
    assert client.predict("half", one, label="old")["y"].tolist() == [[3.0]]
    inputs = {"left": [[1.0, 2.0, 3.0]], "right": [[0, 0, 0]]}
    assert set(client.predict("several", inputs, output_filter=["row_sum"])) == {"row_sum"}
    assert client.predict("several", {"a": 2.0, "b": 4.0}, signature_name="scalars")["product"] == 8.0


EXAMPLES = [{"x": 2.0}, {"x": [4.0], "other": ["a", b"\xff"], "n": 3}]


def test_examples_are_classified_and_regressed(client: Client) -> None:
    classified = client.classify("examples", EXAMPLES, signature_name="classify_labels")
    assert classified == [[(b"2.0", 2.0), (b"-2.0", -2.0)], [(b"4.0", 4.0), (b"-4.0", -4.0)]]
    regressed = client.regress("examples", EXAMPLES, signature_name="regress_x_to_y")
    assert (regressed.dtype.name, regressed.tolist()) == ("float32", [3.0, 4.0])
    shared = client.regress("examples", [{}, {"x": 6.0}], context={"x": 2.0}, signature_name="regress_x_to_y")
    assert shared.tolist() == [3.0, 5.0], "an example's own feature wins over the context's"


def test_metadata_names_inputs_and_outputs(client: Client) -> None:
    found = client.metadata("several")
    assert (found.name, found.version) == ("several", 1)
    signature = found.signatures["serving_default"]
    assert {name: str(spec) for name, spec in signature.inputs.items()} == {
        "left": "float [?, 3]",
        "right": "int32 [?, 3]",
    }
    assert {name: str(spec) for name, spec in signature.outputs.items()} == {
        "doubled": "int32 [?, 3]",
        "row_sum": "float [?]",
        "total": "float [?, 3]",
    }
    assert str(client.metadata("same").signatures["string"].inputs["x"]) == "string of any rank"


def test_status_and_health_tell_the_versions(client: Client) -> None:
    assert [(each.version, each.state) for each in client.status("half")] == [
        (2, State.AVAILABLE),
        (1, State.AVAILABLE),
    ]
    assert [each.version for each in client.status("half", version=1)] == [1]
    assert client.health()
    assert client.health("half")
    assert not client.health("absent")


ERRORS: dict[str, tuple[Callable[[Client], Any], type[Exception], Code]] = {
    "no such model": (
        lambda client: client.predict("absent", {"x": np.ones((1, 1), np.float32)}),
        embedserve.ServableNotFoundError,
        Code.NOT_FOUND,
    ),
    "no such version": (
        lambda client: client.predict("half", [[1.0]], version=9),
        embedserve.ServableNotFoundError,
        Code.NOT_FOUND,
    ),
    "no such label": (
        lambda client: client.predict("half", [[1.0]], label="absent"),
        embedserve.InvalidModelSpecError,
        Code.INVALID_ARGUMENT,
    ),
    "version and label": (
        lambda client: client.predict("half", [[1.0]], version=1, label="old"),
        embedserve.InvalidModelSpecError,
        Code.INVALID_ARGUMENT,
    ),
    "no such signature": (
        lambda client: client.predict("half", [[1.0]], signature_name="absent"),
        embedserve.SignatureNotFoundError,
        Code.FAILED_PRECONDITION,
    ),
    "no such input": (
        lambda client: client.predict("half", {"z": np.ones((1, 1), np.float32)}),
        embedserve.InvalidInputError,
        Code.INVALID_ARGUMENT,
    ),
    "a wrong rank": (
        lambda client: client.predict("several", {"left": np.ones(3, np.float32), "right": np.ones(3, np.int32)}),
        embedserve.InvalidInputError,
        Code.INVALID_ARGUMENT,
    ),
    "a wrong kind": (
        lambda client: client.predict("half", {"x": [["text"]]}),
        embedserve.InvalidInputError,
        Code.INVALID_ARGUMENT,
    ),
    "out of range": (
        lambda client: client.predict("several", {"left": [[1, 2, 3]], "right": [[1 << 40, 0, 0]]}),
        embedserve.InvalidInputError,
        Code.INVALID_ARGUMENT,
    ),
    "a ragged list": (
        lambda client: client.predict("half", {"x": [[1.0], [1.0, 2.0]]}),
        embedserve.InvalidInputError,
        Code.INVALID_ARGUMENT,
    ),
    "no such output": (
        lambda client: client.predict("half", [[1.0]], output_filter=["z"]),
        embedserve.InvalidInputError,
        Code.INVALID_ARGUMENT,
    ),
    "no examples": (
        lambda client: client.classify("examples", []),
        embedserve.InvalidInputError,
        Code.INVALID_ARGUMENT,
    ),
    "no classifier": (
        lambda client: client.classify("half", EXAMPLES),
        embedserve.InvalidInputError,
        Code.INVALID_ARGUMENT,
    ),
    "no time": (
        lambda client: client.predict("half", [[1.0]], timeout=0),
        embedserve.DeadlineExceededError,
        Code.DEADLINE_EXCEEDED,
    ),
    "no status": (lambda client: client.status("absent"), embedserve.ServableNotFoundError, Code.NOT_FOUND),
}


@pytest.mark.parametrize("what", ERRORS)
def test_an_error_has_the_class_and_code_of_the_call_in_process(what: str, client: Client) -> None:
    call, kind, code = ERRORS[what]
    with pytest.raises(kind) as raised:
        call(client)
    error = raised.value
    assert isinstance(error, embedserve_client.ServingError)
    assert error.code == code
    assert error.message


@pytest.mark.parametrize(
    "options", [{"timeout": -1}, {"timeout": "soon"}, {"headers": {"x": "a\r\nb"}}, {"headers": {"X": "a"}}]
)
def test_options_that_cannot_be_sent_are_refused(options: Any, remote: Client) -> None:
    with pytest.raises(embedserve_client.InvalidInputError):
        remote.predict("half", [[1.0]], **options)


def test_an_unknown_option_is_a_type_error(client: Client) -> None:
    with pytest.raises(TypeError, match="versions"):
        client.predict("half", [[1.0]], versions=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="retires"):
        Client("grpc://localhost", retires=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8500",
        "ftp://a",
        "grpc://",
        "grpc://a/b",
        "http://a?b",
        "grpc://a:x",
        "grpc+unix://",
        [],
        ["grpc://a", "http://a"],
    ],
)
def test_a_target_that_is_no_server_is_refused(url: Any) -> None:
    with pytest.raises(embedserve_client.InvalidInputError):
        Client(url)


def test_a_closed_client_refuses_calls(remote: Client) -> None:
    remote.predict("half", [[1.0]])
    remote.close()
    with pytest.raises(embedserve_client.RegistryStateError, match="closed"):
        remote.predict("half", [[1.0]])


async def test_awaited_calls_answer_as_blocking_ones(awaited: AsyncClient) -> None:
    assert (await awaited.predict("half", [[2.0]], version=1))["y"].tolist() == [[3.0]]
    assert (await awaited.regress("examples", EXAMPLES, signature_name="regress_x_to_y")).tolist() == [3.0, 4.0]
    assert len(await awaited.classify("examples", EXAMPLES, signature_name="classify_labels")) == 2
    assert (await awaited.metadata("half", label="old")).version == 1
    assert len(await awaited.status("half")) == 2
    assert await awaited.health()
    assert not await awaited.health("absent")
    with pytest.raises(embedserve.ServableNotFoundError):
        await awaited.predict("absent", {"x": np.ones((1, 1), np.float32)})


async def test_many_awaited_calls_share_connections(awaited: AsyncClient) -> None:
    values = [float(each) for each in range(60)]
    found = await asyncio.gather(*(awaited.predict("half", [[value]], version=1) for value in values))
    assert [each["y"].item() for each in found] == [value / 2 + 2 for value in values]
