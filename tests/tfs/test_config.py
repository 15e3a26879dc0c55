"""TensorFlow Serving's text-proto files become options; a mistake in one has TensorFlow Serving's code and words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from embedserve.config import AllVersions, LatestVersions, LoggingOptions, ModelConfig, SpecificVersions
from embedserve.errors import Code, ConfigError
from embedserve.store_url import StoreUrl
from embedserve.tfs.config import (
    Platform,
    models_from_proto,
    platforms_from_file,
    read_model_server_config,
)
from embedserve.tfs.protos import message_class, read_text_proto


def server_config(text: str) -> Any:
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def listed(*models: str) -> Any:
    return server_config("model_config_list { " + " ".join(f"config {{ {model} }}" for model in models) + " }")


GOOD = 'name: "m" base_path: "/models/m" model_platform: "tensorflow"'


# Messages.


@pytest.mark.parametrize(
    ("name", "field", "number"),
    [
        ("MonitoringConfig", "prometheus_config", 1),
        ("SSLConfig", "client_verify", 4),
        ("BatchingParameters", "max_execution_batch_size", 9),
        ("ModelWarmupOptions", "enable_all_batch_sizes_warmup", 5),
        ("SessionBundleConfig", "mixed_precision", 791),
        ("SessionBundleConfig", "experimental_fixed_input_tensors", 778),
        ("SavedModelBundleSourceAdapterConfig", "legacy_config", 1000),
        ("ThreadPoolFactoryConfig", "thread_pool_factory_config", 1),
        ("SavedModelConfig", "critical", 3),
    ],
)
def test_missing_messages_have_the_original_names_and_numbers(name: str, field: str, number: int) -> None:
    descriptor = message_class(name).DESCRIPTOR
    assert descriptor.full_name == f"tensorflow.serving.{name}"
    assert descriptor.fields_by_name[field].number == number


def test_fields_of_rewriters_that_we_lack_survive_a_round_trip() -> None:
    saved = message_class("SavedModelConfig")()
    data = b"\x0a\x08\x12\x04\x0a\x02hi\x18\x01\x18\x01"
    saved.ParseFromString(data)
    assert saved.SerializeToString() == data
    assert saved.session_overrides.disable_meta_optimizer  # type: ignore[attr-defined]


# Files.


def test_a_config_file_with_every_liberty_of_the_text_format_is_read(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(
        """
        # Two models.
        model_config_list: {
          config: { name: 'one', base_path: "/models/" "one", model_platform: "tensorflow" },
          config { name: "two"; base_path: "/models/two"; model_platform: "tensorflow"
                   model_version_policy { specific { versions: 1 versions: 2 } }
                   version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 } }
        }
        """
    )
    assert models_from_proto(read_model_server_config(file)) == [
        ModelConfig(name="one", base_path="/models/one"),
        ModelConfig(
            name="two",
            base_path="/models/two",
            version_policy=SpecificVersions(versions=(1, 2)),
            version_labels={"stable": 1, "canary": 2},
        ),
    ]


def test_a_parse_error_is_logged_with_its_place_and_names_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "bad.config"
    file.write_text("improperly formatted file")
    with pytest.raises(ConfigError) as caught:
        read_model_server_config(file)
    assert (caught.value.code, str(caught.value)) == (Code.INVALID_ARGUMENT, f"Invalid protobuf file: '{file}'")
    assert (
        "Error parsing text-format tensorflow.serving.ModelServerConfig: 1:1: Message type "
        '"tensorflow.serving.ModelServerConfig" has no field named "improperly".'
    ) in caplog.text


@pytest.mark.parametrize("content", [b"model_config_list { config { name: 3 } }", b"\xff\xfe", b"model_config_list {"])
def test_whatever_does_not_parse_is_an_invalid_protobuf_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.config"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^Invalid protobuf file: "):
        read_model_server_config(file)


def test_a_file_that_cannot_be_read_has_the_file_systems_code(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError) as caught:
        read_model_server_config(missing)
    assert (caught.value.code, str(caught.value)) == (Code.NOT_FOUND, f"{missing}; No such file or directory")
    with pytest.raises(ConfigError) as caught:
        read_model_server_config(tmp_path)
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_an_empty_file_is_an_empty_config(tmp_path: Path) -> None:
    file = tmp_path / "empty.config"
    file.touch()
    assert models_from_proto(read_model_server_config(file)) == []


def test_ssl_and_monitoring_files_are_read(tmp_path: Path) -> None:
    ssl, monitoring = tmp_path / "ssl", tmp_path / "monitoring"
    ssl.write_text(r'server_key: "a\n" "b" server_cert: "c" client_verify: true')
    monitoring.write_text('prometheus_config { enable: true path: "/metrics" }')
    tls: Any = read_text_proto(ssl, message_class("SSLConfig")())
    assert (tls.server_key, tls.server_cert, tls.client_verify) == ("a\nb", "c", True)
    prometheus: Any = read_text_proto(monitoring, message_class("MonitoringConfig")())
    assert (prometheus.prometheus_config.enable, prometheus.prometheus_config.path) == (True, "/metrics")


# Models.


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", LatestVersions()),
        ("model_version_policy {}", LatestVersions()),
        ("model_version_policy { latest {} }", LatestVersions()),
        ("model_version_policy { latest { num_versions: 3 } }", LatestVersions(num_versions=3)),
        ("model_version_policy { all {} }", AllVersions()),
        ("model_version_policy { specific { versions: [7, 5] } }", SpecificVersions(versions=(7, 5))),
        ("model_version_policy { specific {} }", SpecificVersions()),
    ],
)
def test_version_policies(policy: str, expected: object) -> None:
    assert models_from_proto(listed(f"{GOOD} {policy}"))[0].version_policy == expected


def test_the_deprecated_model_type_means_tensorflow() -> None:
    assert models_from_proto(listed('name: "m" base_path: "/m" model_type: TENSORFLOW'))[0].name == "m"


@pytest.mark.parametrize("path", ["file:///models/a%20b", "file://localhost/models/a%20b", "/models/a b"])
def test_local_paths_and_file_uris(path: str) -> None:
    config = listed(f'name: "m" base_path: "{path}" model_platform: "tensorflow"')
    assert models_from_proto(config)[0].base_path == Path("/models/a b")


LOGGING = 'logging_config { log_collector_config { type: "file" filename_prefix: "/logs/m" }'


@pytest.mark.parametrize(
    ("sampling", "rate"),
    [
        ("", 0.0),
        ("sampling_config { sampling_rate: 0.25 }", 0.25),
        ("sampling_config { sampling_rate: 0.25 per_task_sampling_configs { sampling_rate: 0.5 } }", 0.5),
        (
            "sampling_config { sampling_rate: 0.25 per_task_sampling_configs { dc: 'x' sampling_rate: 0.5 } "
            "per_task_sampling_configs { task_index: 0 sampling_rate: 0.75 } }",
            0.25,
        ),
    ],
)
def test_a_logging_config_says_where_and_how_often(sampling: str, rate: float) -> None:
    (model,) = models_from_proto(listed(f"{GOOD} {LOGGING} {sampling} }}"))
    assert model.logging_config == LoggingOptions(filename_prefix=Path("/logs/m"), sampling_rate=rate)
    assert models_from_proto(listed(GOOD))[0].logging_config is None


SETTING = "ModelServerConfig::model_type (deprecated) {} ModelServerConfig::model_platform, model name is m"


@pytest.mark.parametrize(
    ("models", "code", "message"),
    [
        ([GOOD, GOOD], Code.INVALID_ARGUMENT, "Illegal to list model m multiple times in config list"),
        (
            ['name: "m" base_path: "models/m" model_platform: "tensorflow"'],
            Code.INVALID_ARGUMENT,
            "Expected model m to have an absolute path or URI; got base_path()=models/m",
        ),
        (['name: "m" base_path: "/m"'], Code.INVALID_ARGUMENT, "Illegal setting neither " + SETTING.format("nor")),
        ([GOOD + " model_type: TENSORFLOW"], Code.INVALID_ARGUMENT, "Illegal setting both " + SETTING.format("and")),
        (
            ['name: "m" base_path: "/m" model_type: OTHER'],
            Code.INVALID_ARGUMENT,
            "ModelServerConfig::model_type choice 2 not supported.",
        ),
        (
            ['name: "m" base_path: "/m" model_platform: "pytorch"'],
            Code.INVALID_ARGUMENT,
            "Model m requests unsupported platform pytorch",
        ),
        (
            [GOOD + ' logging_config { log_collector_config { type: "kafka" filename_prefix: "/logs/m" } }'],
            Code.NOT_FOUND,
            "Cannot find LogCollector::Factory for type: kafka",
        ),
        (
            [GOOD + ' logging_config { log_collector_config { type: "file" filename_prefix: "logs/m" } }'],
            Code.INVALID_ARGUMENT,
            "Model m: log_collector_config needs a filename_prefix with an absolute path; got 'logs/m'",
        ),
        (
            [f"{GOOD} {LOGGING} sampling_config {{ sampling_rate: 1.5 }} }}"],
            Code.INVALID_ARGUMENT,
            "Model m: sampling_rate must be between 0 and 1; was 1.5",
        ),
        (
            [f'{GOOD} {LOGGING} custom_logging_config {{ type_url: "x.y/Z" }} }}'],
            Code.UNIMPLEMENTED,
            "Model m: custom_logging_config of type x.y/Z is not known",
        ),
        (
            ['name: "m" base_path: "gs://bucket/m" model_platform: "tensorflow"'],
            Code.UNIMPLEMENTED,
            "model m has base_path gs://bucket/m",
        ),
        (['base_path: "/m" model_platform: "tensorflow"'], Code.INVALID_ARGUMENT, "the model with base_path /m has no"),
    ],
)
def test_a_bad_model_is_refused_in_tensorflow_servings_words(models: list[str], code: Code, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        models_from_proto(listed(*models))
    assert caught.value.code is code
    assert str(caught.value).startswith(message)


def test_a_base_path_may_be_in_a_store() -> None:
    (model,) = models_from_proto(listed('name: "m" base_path: "http://me:pw@h/m/" model_platform: "tensorflow"'))
    assert model.base_path == StoreUrl("http://me:pw@h/m")
    with pytest.raises(ConfigError) as caught:
        models_from_proto(listed('name: "m" base_path: "nonsense://me:pw@h/m" model_platform: "tensorflow"'))
    assert caught.value.message.startswith("model m has base_path nonsense://***@h/m, which cannot be read: ")
    assert "pw" not in caught.value.message


def test_duplicates_are_found_before_relative_paths_and_those_before_platforms() -> None:
    relative = 'name: "r" base_path: "r"'
    with pytest.raises(ConfigError, match="multiple times"):
        models_from_proto(listed(relative, GOOD, GOOD))
    with pytest.raises(ConfigError, match="absolute path"):
        models_from_proto(listed('name: "n" base_path: "/n"', relative))


def test_a_custom_config_is_an_error_and_not_the_end_of_the_process() -> None:
    with pytest.raises(ConfigError, match="does not yet support custom model config"):
        models_from_proto(server_config('custom_model_config { type_url: "x" }'))


# A second config.


def test_only_a_list_or_the_same_config_follows_a_list() -> None:
    before = listed(GOOD)
    assert models_from_proto(before, previous=before)
    assert models_from_proto(listed(), previous=before) == []
    for after in ("", 'custom_model_config { type_url: "x" }'):
        with pytest.raises(ConfigError, match=r"^Cannot transition to requested config\.") as caught:
            models_from_proto(server_config(after), previous=before)
        assert caught.value.code is Code.FAILED_PRECONDITION


def test_anything_follows_an_empty_config() -> None:
    assert len(models_from_proto(listed(GOOD), previous=server_config(""))) == 1


def test_a_model_keeps_its_platform() -> None:
    platforms = {"tensorflow": Platform({}), "other": Platform({"batching": True})}
    other = GOOD.replace('"tensorflow"', '"other"')
    assert models_from_proto(listed(other), platforms=platforms)[0].batching is True
    with pytest.raises(ConfigError) as caught:
        models_from_proto(listed(other), platforms=platforms, previous=listed(GOOD))
    assert str(caught.value) == (
        "Illegal to change a model's platform. For model m platform was tensorflow and new platform requested is other"
    )


# Platforms.

ADAPTER = """
platform_configs {{ key: "{key}" value {{ source_adapter_config {{
  [type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig] {{ legacy_config {{ {config} }} }}
}} }} }}
"""


def platform(tmp_path: Path, config: str) -> Platform:
    file = tmp_path / "platforms"
    file.write_text(ADAPTER.format(key="tensorflow", config=config))
    return platforms_from_file(file)["tensorflow"]


def test_a_platform_sets_session_batching_and_warm_up(tmp_path: Path) -> None:
    found = platform(
        tmp_path,
        """
        session_config { intra_op_parallelism_threads: 3 }
        batching_parameters { max_batch_size { value: 4 } num_batch_threads { value: 2 } }
        saved_model_tags: "serve" saved_model_tags: "gpu" enable_model_warmup: true
        model_warmup_options { num_request_iterations { value: 5 } } enable_per_model_batching_params: true
        prefer_tflite_model: true num_tflite_pools: 3
        """,
    )
    options = dict(found.model_options)
    tflite = {"prefer_tflite_model": True, "num_tflite_pools": 3}
    assert options.pop("batching_options").max_batch_size == 4
    assert options == {"batching": True, "saved_model_tags": ("serve", "gpu"), "warmup": "auto", **tflite}
    assert (found.num_batch_threads, found.per_model_batching, found.warmup_iterations) == (2, True, 5)
    session: Any = message_class("SessionBundleConfig")().session_config  # type: ignore[attr-defined]
    session.ParseFromString(found.session_config)
    assert session.intra_op_parallelism_threads == 3


def test_an_empty_platform_neither_batches_nor_warms_up(tmp_path: Path) -> None:
    found = platform(tmp_path, "")
    tflite = {"prefer_tflite_model": False, "num_tflite_pools": None}
    assert found.model_options == {"batching": False, "saved_model_tags": ("serve",), "warmup": "none", **tflite}
    assert (found.num_batch_threads, found.session_config) == (None, b"")


def test_a_platforms_mixed_precision_is_a_graph_rewrite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    session: Any = message_class("SessionBundleConfig")().session_config  # type: ignore[attr-defined]
    session.ParseFromString(platform(tmp_path, 'mixed_precision: "bfloat16"').session_config)
    assert session.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 == 1
    assert platform(tmp_path, 'mixed_precision: "float8"').session_config == b""
    assert "mixed_precision 'float8' is ignored" in caplog.text


def test_a_platform_that_is_not_one_of_saved_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Saved model config functionality is not implemented\.") as caught:
        platform(tmp_path, "enable_saved_model_config: true")
    assert caught.value.code is Code.UNIMPLEMENTED
    file = tmp_path / "platforms"
    file.write_text('platform_configs { key: "tensorflow" value {} }')
    with pytest.raises(ConfigError, match=r"source_adapter_config of type \(none\)"):
        platforms_from_file(file)
