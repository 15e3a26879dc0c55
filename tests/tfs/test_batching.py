"""Batching parameters, the server's or a version's own, become options; a mistake has TensorFlow Serving's words."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from embedserve.config import BatchingOptions, ModelConfig, RegistryOptions
from embedserve.errors import Code, ConfigError, LoadError
from embedserve.tfs.batching import batching_from_proto, batching_of_version, num_batch_threads
from embedserve.tfs.protos import message_class


def batching(text: str) -> Any:
    return text_format.Parse(text, message_class("BatchingParameters")())


def test_batching_parameters_have_tensorflow_servings_defaults() -> None:
    assert batching_from_proto(batching("")) == BatchingOptions(
        max_batch_size=1000, batch_timeout_micros=0, max_enqueued_batches=10, oversize="reject"
    )
    assert num_batch_threads(batching("")) is None


def test_every_batching_parameter_is_read() -> None:
    parameters = batching(
        """
        max_batch_size { value: 128 } batch_timeout_micros { value: 5000 } max_enqueued_batches { value: 100 }
        num_batch_threads { value: 3 } thread_pool_name { value: "pool" } allowed_batch_sizes: 64
        allowed_batch_sizes: 128 pad_variable_length_inputs: true enable_large_batch_splitting { value: true }
        max_execution_batch_size { value: 64 }
        """
    )
    assert num_batch_threads(parameters) == 3
    assert batching_from_proto(parameters) == BatchingOptions(
        max_batch_size=128,
        batch_timeout_micros=5000,
        max_enqueued_batches=100,
        allowed_batch_sizes=(64, 128),
        pad_variable_length_inputs=True,
        enable_large_batch_splitting=True,
        max_execution_batch_size=64,
        oversize="reject",
    )


def test_splitting_without_sizes_runs_batches_of_1000() -> None:
    assert batching_from_proto(batching("enable_large_batch_splitting { value: true }")).execution_size == 1000


def test_no_enqueued_batches_are_one_without_splitting() -> None:
    assert batching_from_proto(batching("max_enqueued_batches { value: 0 }")).max_enqueued_batches == 1


SPLIT = "enable_large_batch_splitting { value: true } "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "allowed_batch_sizes: 10",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 10; expected 1000",
        ),
        ("max_batch_size { value: 0 }", "input_batch_size_limit must be positive; was 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
        (SPLIT + "max_enqueued_batches { value: 0 }", "max_enqueued_batches must be positive; was 0"),
        (
            SPLIT + "max_batch_size { value: 8 } max_execution_batch_size { value: 16 }",
            "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to "
            "max_execution_batch_size.",
        ),
    ],
)
def test_bad_batching_parameters_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        batching_from_proto(batching(text))
    assert str(caught.value).startswith(message)


def test_batch_threads_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"^num_batch_threads must be positive; was 0$"):
        num_batch_threads(batching("num_batch_threads { value: 0 }"))


# A version's own.

PER_MODEL = RegistryOptions(
    batching=True, batching_options=BatchingOptions(max_batch_size=16), enable_per_model_batching_parameters=True
)
FILE = "batching_params.pbtxt"


def model(path: Path, **options: Any) -> ModelConfig:
    return ModelConfig(name="m", base_path=path, **options)


def test_a_versions_own_file_replaces_the_options_and_its_absence_means_unbatched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "embedserve")
    assert batching_of_version(tmp_path, model(tmp_path), PER_MODEL) == (False, PER_MODEL.batching_options)
    assert f"{tmp_path} is not batched: it has no {FILE}" in caplog.text
    (tmp_path / FILE).write_text("max_batch_size { value: 7 } num_batch_threads { value: 0 }")
    expected = BatchingOptions(max_batch_size=7, max_enqueued_batches=10, oversize="reject")
    assert batching_of_version(tmp_path, model(tmp_path), PER_MODEL) == (True, expected)
    assert batching_of_version(tmp_path, model(tmp_path, batching="auto"), PER_MODEL) == ("auto", expected)
    aims = model(tmp_path, batching="adaptive", batching_options=BatchingOptions(target_latency=0.5))
    aiming = expected.model_copy(update={"target_latency": 0.5})
    assert batching_of_version(tmp_path, aims, PER_MODEL) == ("adaptive", aiming)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_batch_size: 4", "Invalid protobuf file: "),
        ("allowed_batch_sizes: 3", "Last entry in allowed_batch_sizes must match max_batch_size"),
    ],
)
def test_a_bad_file_of_a_version_fails_its_load(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(LoadError, match=f"^{words}") as caught:
        batching_of_version(tmp_path, model(tmp_path), PER_MODEL)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_versions_own_file_counts_only_where_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("no such field")
    defaults = RegistryOptions()
    assert batching_of_version(tmp_path, model(tmp_path), defaults) == ("auto", defaults.batching_options)
    own = BatchingOptions(max_batch_size=5)
    unbatched = model(tmp_path, batching=False, batching_options=own)
    assert batching_of_version(tmp_path, unbatched, PER_MODEL) == (False, own)
