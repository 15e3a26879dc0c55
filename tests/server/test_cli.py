"""Flags and files become a server's configuration; what cannot be is refused before anything starts."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from embedserve.__main__ import main
from embedserve.config import BatchingOptions, RegistryOptions, RetryPolicy
from embedserve.errors import Code, ConfigError
from embedserve.server.cli import server_config
from embedserve.server.config import ServerConfig, TlsContents
from embedserve.server.flags import parse
from embedserve.server.tensorflow_setup import session_config_from_flags
from tests.support.programs import ROOT, run_program

pytestmark = pytest.mark.slow


def configured(*arguments: str, environment: Mapping[str, str] | None = None) -> ServerConfig:
    return server_config(parse(arguments), environment or {})


def refused(*arguments: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        configured(*arguments)
    return caught.value


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    return tmp_path / "file.pbtxt"


SINGLE = "--model_base_path=/models/m"


# What is served.


def test_a_directory_of_models_is_served_with_the_registrys_own_defaults(tmp_path: Path) -> None:
    config = configured(str(tmp_path))
    assert (config.root, config.models, config.config_file) == (tmp_path, None, None)
    ours = {"start_timeout": math.inf, "gc_freeze": True}
    assert config.options == RegistryOptions(**ours)
    assert (config.grpc.port, config.rest.port, config.rest.required) == (8500, 8501, False)


def test_a_relative_directory_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert configured("models/").root == tmp_path / "models"
    (model,) = configured("--model_base_path=models/m").models or ()
    assert (model.name, model.base_path) == ("default", tmp_path / "models" / "m")


@pytest.mark.parametrize("flag", ["--model_base_path=/x", "--model_config_file=/x", "--saved_model_tags=gpu"])
def test_a_directory_and_another_way_to_name_models_exclude_each_other(tmp_path: Path, flag: str) -> None:
    assert "not both" in refused(str(tmp_path), flag).message


def test_the_single_model_flags_serve_as_tensorflow_serving_does() -> None:
    config = configured("--model_name=digits", "--model_base_path=/models/digits")
    (model,) = config.models or ()
    assert (model.name, model.base_path, model.batching) == ("digits", Path("/models/digits"), False)
    assert config.options.batching is False
    assert config.options.retry == RetryPolicy(max_retries=5, initial=60, maximum=60)
    assert config.options.start_timeout == math.inf


@pytest.mark.parametrize(
    ("environment", "arguments", "name", "path"),
    [
        ({"MODEL_NAME": "digits", "MODEL_BASE_PATH": "/data"}, (), "digits", "/data/digits"),
        ({"MODEL_BASE_PATH": "/data"}, (), "model", "/data/model"),
        ({"MODEL_NAME": "digits"}, (), "digits", "/models/digits"),
        ({"MODEL_NAME": "digits"}, ("--model_name=other",), "other", "/models/digits"),
        ({"MODEL_NAME": "digits"}, ("--model_base_path=/x",), "default", "/x"),
    ],
)
def test_a_containers_environment_names_the_model(
    environment: dict[str, str], arguments: tuple[str, ...], name: str, path: str
) -> None:
    (model,) = configured(*arguments, environment=environment).models or ()
    assert (model.name, str(model.base_path)) == (name, path)


def test_a_config_file_names_the_models_and_may_be_polled(text_file: Path) -> None:
    text_file.write_text(
        'model_config_list { config { name: "m" base_path: "/m" model_platform: "tensorflow" } }',
    )
    config = configured(
        f"--model_config_file={text_file}",
        "--model_config_file_poll_wait_seconds=2",
        "--model_name=ignored",
        "--saved_model_tags=serve,gpu",
    )
    (model,) = config.models or ()
    assert (model.name, model.saved_model_tags) == ("m", ("serve", "gpu"))
    assert config.config_file is not None
    assert (config.config_file.path, config.config_file.poll_interval) == (text_file, 2)


def test_without_a_poll_interval_the_config_file_is_read_once(text_file: Path) -> None:
    text_file.touch()
    config = configured(f"--model_config_file={text_file}")
    assert config.models == ()
    assert config.config_file is not None
    assert config.config_file.poll_interval is None


def test_a_config_file_with_labels_starts_only_when_unavailable_versions_may_have_them(text_file: Path) -> None:
    text_file.write_text(
        'model_config_list { config { name: "m" base_path: "/m" model_platform: "tensorflow" '
        'version_labels { key: "stable" value: 1 } } }'
    )
    error = refused(f"--model_config_file={text_file}")
    assert error.code is Code.FAILED_PRECONDITION
    assert error.message.startswith(
        "Request to assign label to version 1 of model m, which is not currently available for inference"
    )
    allowed = configured(f"--model_config_file={text_file}", "--allow_version_labels_for_unavailable_models")
    assert (allowed.models or ())[0].version_labels == {"stable": 1}


# Checks at start, in TensorFlow Serving's words.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [SINGLE, "--port=0"],
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set.",
        ),
        (
            [SINGLE, "--use_alts_credentials", "--ssl_config_file=/x"],
            "Either use_alts_credentials must be false or ssl_config_file must be empty.",
        ),
        ([], "Both server_options.model_base_path and server_options.model_config_file are empty!"),
        (
            [SINGLE, "--batching_parameters_file=/x"],
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true.",
        ),
        (
            [
                SINGLE,
                "--tensorflow_session_parallelism=1",
                "--tensorflow_intra_op_parallelism=1",
                "--tensorflow_inter_op_parallelism=1",
            ],
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all.",
        ),
        ([SINGLE, "--port=8501", "--rest_api_port=8501"], "server_options.http_port cannot be same as grpc_port."),
        ([SINGLE, "--port=65536"], "--port=65536 is not a port"),
        ([SINGLE, "--grpc_channel_arguments=a=1,b"], "--grpc_channel_arguments: 'b' has no value"),
        ([SINGLE, "--file_system_poll_wait_seconds=-1"], "--file_system_poll_wait_seconds=-1 would never look"),
        ([SINGLE, "--rest_tls_cert_file=/x"], "TLS on the REST port needs both"),
        ([SINGLE, "--servable=graph"], "servable: Input should be"),
        ([SINGLE, "--optimize=all"], "optimize: Input should be"),
        ([SINGLE, "--drain_timeout=-1"], "drain_timeout: Input should be"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], message: str) -> None:
    assert refused(*arguments).message.startswith(message)


@pytest.mark.parametrize(
    "flag",
    [
        "model_config_file",
        "ssl_config_file",
        "monitoring_config_file",
        "platform_config_file",
        "tensorflow_session_config_file",
        "batching_parameters_file",
    ],
)
def test_a_file_that_does_not_parse_is_named(text_file: Path, flag: str) -> None:
    text_file.write_text("no_such_field: 1")
    error = refused(SINGLE, "--enable_batching", f"--{flag}={text_file}")
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, f"Invalid protobuf file: '{text_file}'")


# Options.


def test_batching_is_as_the_flag_says() -> None:
    config = configured(SINGLE, "--enable_batching")
    (model,) = config.models or ()
    tensorflow_servings = BatchingOptions(max_batch_size=1000, max_enqueued_batches=10, oversize="reject")
    assert (config.options.batching, config.options.batching_options) == (True, tensorflow_servings)
    assert (model.batching, model.batching_options) == (True, tensorflow_servings)


def test_a_batching_file_sets_the_options_and_the_threads(text_file: Path) -> None:
    text_file.write_text("max_batch_size { value: 8 } num_batch_threads { value: 3 }")
    config = configured(
        SINGLE,
        "--enable_batching",
        f"--batching_parameters_file={text_file}",
        "--enable_per_model_batching_parameters",
    )
    assert config.options.batching_options.max_batch_size == 8
    assert config.options.num_batch_threads == 3
    assert config.options.enable_per_model_batching_parameters
    assert configured(SINGLE, "--num_batch_threads=7").options.num_batch_threads == 7


def test_adaptive_batching_is_a_flag_beside_the_others(text_file: Path, tmp_path: Path) -> None:
    config = configured(SINGLE, "--adaptive_batching")
    (model,) = config.models or ()
    assert (config.options.batching, model.batching) == ("adaptive", "adaptive")
    assert config.options.batching_options == BatchingOptions()
    text_file.write_text("max_batch_size { value: 8 }")
    flags = ("--adaptive_batching", "--target_latency=0.25", f"--batching_parameters_file={text_file}")
    for more in ((), ("--enable_batching",)):
        options = configured(str(tmp_path), *flags, *more).options
        assert options.batching == "adaptive"
        assert (options.batching_options.max_batch_size, options.batching_options.target_latency) == (8, 0.25)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--adaptive_batching", "--enable_batching=false"), "--adaptive_batching batches requests"),
        (("--target_latency=0.2",), "--target_latency says what --adaptive_batching aims at"),
        (("--adaptive_batching", "--target_latency=0"), "target_latency: Input should be greater than 0"),
    ],
)
def test_adaptive_batching_flags_that_do_not_fit_are_refused(flags: tuple[str, ...], message: str) -> None:
    assert message in refused(SINGLE, *flags).message


def test_a_directory_batches_what_is_safe_unless_the_flag_says(tmp_path: Path) -> None:
    assert configured(str(tmp_path)).options.batching == "auto"
    assert configured(str(tmp_path), "--enable_batching").options.batching is True
    assert configured(str(tmp_path), "--enable_batching=false").options.batching is False


def test_options_come_from_their_flags(tmp_path: Path) -> None:
    options = configured(
        SINGLE,
        "--num_load_threads=3",
        "--num_unload_threads=5",
        "--max_num_load_retries=1",
        "--load_retry_interval_micros=500000",
        "--file_system_poll_wait_seconds=7",
        "--enable_model_warmup=false",
        "--num_request_iterations_for_warmup=4",
        "--enable_signature_method_name_check",
        "--allow_version_labels_for_unavailable_models",
        "--servable=session",
        "--optimize=xla",
        "--optimize_tolerance=0.001",
        "--max_pending_requests=11",
        "--watch=false",
        "--settle=1.5",
        "--start_timeout=20",
        "--drain_timeout=2",
        "--transition=resource",
        "--preload_modules=json, math",
        "--op_libraries=a.so,b.so",
        "--gc_freeze=false",
        "--max_request_bytes=1000",
        "--max_inflight_bytes=2000",
        "--num_batch_threads=2",
        "--prefer_tflite_model",
        "--num_tflite_pools=3",
        "--request_log_max_file_bytes=100",
        "--request_log_max_total_bytes=200",
    ).options
    assert options == RegistryOptions(
        batching=False,
        num_load_threads=5,
        retry=RetryPolicy(max_retries=1, initial=0.5, maximum=0.5),
        poll_interval=7,
        warmup="none",
        num_warmup_iterations=4,
        enable_signature_method_name_check=True,
        allow_version_labels_for_unavailable_models=True,
        servable="session",
        optimize="xla",
        optimize_tolerance=0.001,
        max_pending_requests=11,
        watch=False,
        settle=1.5,
        start_timeout=20,
        drain_timeout=2,
        transition="resource",
        preload_modules=("json", "math"),
        op_libraries=("a.so", "b.so"),
        gc_freeze=False,
        max_request_bytes=1000,
        max_inflight_bytes=2000,
        num_batch_threads=2,
        prefer_tflite_model=True,
        num_tflite_pools=3,
        request_log_max_file_bytes=100,
        request_log_max_total_bytes=200,
    )


def test_zero_poll_seconds_scan_once_and_a_negative_retry_interval_does_not_wait() -> None:
    options = configured(SINGLE, "--file_system_poll_wait_seconds=0", "--load_retry_interval_micros=-1").options
    assert (options.poll_interval, options.watch, options.retry.delay(1)) == (math.inf, False, 0)


def test_a_platform_file_overrides_the_batching_and_warm_up_flags(text_file: Path) -> None:
    text_file.write_text(
        """
        platform_configs { key: "tensorflow" value { source_adapter_config {
          [type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig] {
            legacy_config { batching_parameters { max_batch_size { value: 4 } num_batch_threads { value: 6 } } } }
        } } }
        """
    )
    config = configured(SINGLE, f"--platform_config_file={text_file}", "--enable_model_warmup")
    assert config.options.batching_options.max_batch_size == 4
    assert (config.options.num_batch_threads, config.options.warmup) == (6, "none")
    assert list(config.platforms) == ["tensorflow"]


def test_each_flag_without_effect_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    configured(SINGLE, "--flush_filesystem_caches=false", "--rest_api_num_threads=8")
    ignored = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(ignored) == 2
    assert ignored[0].startswith("--flush_filesystem_caches is ignored: only remote file systems")


# Ports.


def test_ports_and_what_they_offer() -> None:
    config = configured(
        SINGLE,
        "--port=9000",
        "--grpc_socket_path=s.sock",
        "--rest_api_port=9001",
        "--rest_api_timeout_in_ms=2500",
        "--rest_api_enable_cors_support",
        "--rest_early",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb,grpc.so_reuseaddr=1",
        "--enable_grpc_healthcheck_service",
        "--enable_profiler=false",
        "--grpc_reflection",
        "--enable_serialization_as_tensor_content",
    )
    grpc, rest = config.grpc, config.rest
    assert (grpc.port, grpc.socket_path) == (9000, "s.sock")
    assert grpc.channel_arguments == {
        "grpc.max_connection_age_ms": 2000,
        "grpc.lb_policy_name": "grpclb",
        "grpc.so_reuseaddr": 1,
    }
    assert (grpc.health, grpc.reflection, grpc.tensor_content) == (True, True, True)
    assert (rest.port, rest.required, rest.timeout, rest.cors, rest.early) == (9001, True, 2.5, True, True)


@pytest.mark.parametrize(
    ("flags", "access"),
    [
        ([SINGLE], {"reload": "all", "session_run": "none", "profiler": "local"}),
        ([SINGLE, "--enable_profiler=false"], {"reload": "all", "session_run": "none", "profiler": "none"}),
        (
            [SINGLE, "--reload_clients=none", "--session_run_clients=all", "--profiler_clients=all"],
            {"reload": "none", "session_run": "all", "profiler": "all"},
        ),
    ],
)
def test_tensorflow_servings_flags_leave_only_the_reload_open_to_all(flags: list[str], access: dict[str, str]) -> None:
    assert configured(*flags).grpc.access.model_dump() == access


def test_a_directory_of_models_is_reloaded_from_its_own_machine_only(tmp_path: Path) -> None:
    assert configured(str(tmp_path)).grpc.access.reload == "local"
    assert configured(str(tmp_path), "--reload_clients=all").grpc.access.reload == "all"


def test_clients_of_an_unknown_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="--profiler_clients=some: there is none, local, all"):
        configured(SINGLE, "--profiler_clients=some")


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ([], ()),
        (["--host=127.0.0.1"], ("127.0.0.1",)),
        (["--host=127.0.0.1,127.0.0.2", "--host=[::1]"], ("127.0.0.1", "127.0.0.2", "::1")),
        (["--host=::1", "--host=::1,[::1]"], ("::1",)),
        (["--host=0.0.0.0,127.0.0.1,::1"], ("0.0.0.0", "::1")),
        (["--host=127.0.0.1,::"], ("::",)),
        (["--host=::ffff:127.0.0.1,127.0.0.1", "--host=[::ffff:7f00:2]"], ("127.0.0.1", "127.0.0.2")),
        (["--host=::ffff:0.0.0.0,127.0.0.1"], ("0.0.0.0",)),
    ],
)
def test_hosts_are_listed_or_repeated_and_hold_for_every_port(given: list[str], hosts: tuple[str, ...]) -> None:
    config = configured(SINGLE, *given)
    assert config.grpc.hosts == config.rest.hosts == hosts


def test_a_hosts_name_stands_for_the_addresses_that_this_machine_has() -> None:
    assert set(configured(SINGLE, "--host=localhost").rest.hosts) & {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    "host",
    ["no.such.host.invalid", "300.0.0.1", "a b", "x" * 300, "0127.0.0.1", "1", "127.1", "0x7f.0.0.1", "010.0.0.1"],
)
def test_a_host_that_cannot_be_looked_up_is_named(host: str) -> None:
    message = refused(SINGLE, f"--host={host}").message
    assert message.startswith(f"--host={host} is no IP address, and no name that can be looked up: ")


@pytest.mark.parametrize("given", ["", ",", "127.0.0.1,", ",127.0.0.1", "127.0.0.1,,::1", "127.0.0.1, "])
def test_an_empty_part_of_the_hosts_is_refused(given: str) -> None:
    message = refused(SINGLE, f"--host={given}").message
    assert message.startswith(f"--host={given} ")
    assert ("has an empty part" if given.strip(",") else "names no address") in message
    assert "has an empty part" in refused(SINGLE, "--host=127.0.0.1", "--host=").message


def test_port_zero_turns_a_port_off() -> None:
    config = configured(SINGLE, "--port=0", "--grpc_socket_path=s.sock", "--rest_api_port=0")
    assert (config.grpc.port, config.rest.port) == (None, None)


def test_a_rest_timeout_of_zero_is_no_timeout() -> None:
    assert configured(SINGLE, "--rest_api_timeout_in_ms=0").rest.timeout is None


def test_the_default_rest_port_gives_way_to_grpc(caplog: pytest.LogCaptureFixture) -> None:
    assert configured(SINGLE, "--port=8501").rest.port is None
    assert "Skipped exporting HTTP/REST API." in caplog.text


def test_tls_contents_are_read_and_never_shown(text_file: Path) -> None:
    text_file.write_text(r'server_key: "SECRET" server_cert: "cert\n" custom_ca: "ca" client_verify: true')
    tls = configured(SINGLE, f"--ssl_config_file={text_file}").grpc.tls
    assert tls == TlsContents(server_key="SECRET", server_cert="cert\n", custom_ca="ca", client_verify=True)
    assert "SECRET" not in repr(tls)
    text_file.write_text('server_key: "k"')
    assert "needs server_key and server_cert" in refused(SINGLE, f"--ssl_config_file={text_file}").message


def test_rest_tls_files_are_checked(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.touch()
    flags = (SINGLE, f"--rest_tls_cert_file={cert}", f"--rest_tls_key_file={key}")
    assert str(key) in refused(*flags).message
    key.touch()
    tls = configured(*flags).rest.tls
    assert tls is not None
    assert (tls.cert, tls.key, tls.client_ca) == (cert, key, None)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config { enable: true path: "/metrics" }', "/metrics"),
        ("prometheus_config {}", None),
        ("", None),
    ],
)
def test_the_metrics_path_comes_from_the_monitoring_file(text_file: Path, text: str, path: str | None) -> None:
    text_file.write_text(text)
    assert configured(SINGLE, f"--monitoring_config_file={text_file}").rest.metrics_path == path


def test_metrics_are_on_without_a_file_where_there_is_a_rest_port(tmp_path: Path) -> None:
    for arguments in (str(tmp_path),), (SINGLE,):
        assert configured(*arguments).rest.metrics_path == "/monitoring/prometheus/metrics"
    assert configured(SINGLE, "--rest_api_port=0").rest.metrics_path is None


def test_metrics_without_a_rest_port_are_warned_about(text_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    text_file.write_text("prometheus_config { enable: true }")
    config = configured(SINGLE, f"--monitoring_config_file={text_file}", "--rest_api_port=0")
    assert config.rest.metrics_path is None
    assert "--monitoring_config_file is ignored" in caplog.text


# The server.


@pytest.mark.parametrize("flags", [["--server=pyvoy"], ["--server=pyvoy", "--http3=false"], ["--http3"]])
def test_a_server_that_is_gone_is_refused_with_its_successor(flags: list[str]) -> None:
    message = refused(SINGLE, *flags).message
    assert "every port answers REST, gRPC and gRPC-Web" in message
    assert "\n" not in message


def test_there_is_a_single_server_and_two_servers_of_grpc() -> None:
    assert configured(SINGLE, "--server=uvicorn").grpc.server == "embedserve"
    assert "--server=gunicorn: there is a single server" in refused(SINGLE, "--server=gunicorn").message
    assert configured(SINGLE, "--grpc_server=grpcio").grpc.server == "grpcio"
    assert "--grpc_server=x: there is embedserve, grpcio" in refused(SINGLE, "--grpc_server=x").message


def test_alts_credentials_bring_grpcio() -> None:
    config = configured(SINGLE, "--use_alts_credentials").grpc
    assert (config.server, config.alts) == ("grpcio", True)
    both = refused(SINGLE, "--use_alts_credentials", "--grpc_server=embedserve").message
    assert "--use_alts_credentials needs --grpc_server=grpcio" in both


# TensorFlow's session.


def test_no_session_flag_means_tensorflows_defaults() -> None:
    assert session_config_from_flags(parse([SINGLE])) == b""


def test_session_flags_override_the_files_fields_only_where_given(text_file: Path) -> None:
    from tensorflow.core.protobuf.config_pb2 import ConfigProto

    text_file.write_text("intra_op_parallelism_threads: 3 inter_op_parallelism_threads: 4 allow_soft_placement: true")

    def session(*arguments: str) -> ConfigProto:
        return ConfigProto.FromString(
            session_config_from_flags(parse([f"--tensorflow_session_config_file={text_file}", *arguments]))
        )

    plain = session("--per_process_gpu_memory_fraction=0.25", "--mixed_precision=bfloat16")
    assert (plain.intra_op_parallelism_threads, plain.inter_op_parallelism_threads) == (3, 4)
    assert plain.allow_soft_placement
    assert plain.gpu_options.per_process_gpu_memory_fraction == 0.25
    assert plain.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 == 1
    both = session("--tensorflow_session_parallelism=2")
    assert (both.intra_op_parallelism_threads, both.inter_op_parallelism_threads) == (2, 2)
    one = session("--tensorflow_intra_op_parallelism=5", "--tensorflow_session_parallelism=2")
    assert (one.intra_op_parallelism_threads, one.inter_op_parallelism_threads) == (5, 0)
    assert session("--xla_gpu_compilation_enabled").graph_options.optimizer_options.global_jit_level == 1


def test_xla_on_the_cpu_extends_tensorflows_own_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_min_cluster_size=2")
    session_config_from_flags(parse(["--xla_cpu_compilation_enabled"]))
    assert os.environ["TF_XLA_FLAGS"] == "--tf_xla_min_cluster_size=2 --tf_xla_cpu_global_jit"


def test_the_session_config_reaches_tensorflows_runtime() -> None:
    code = """
from embedserve.server.flags import parse
from embedserve.server.tensorflow_setup import apply, session_config_from_flags
apply(session_config_from_flags(parse(["--tensorflow_intra_op_parallelism=3", "--tensorflow_inter_op_parallelism=2"])))
import tensorflow as tf
threads = tf.config.threading
print(threads.get_intra_op_parallelism_threads(), threads.get_inter_op_parallelism_threads(), tf.executing_eagerly())
print(tf.function(lambda x: x + 1)(tf.constant(1)).numpy())
"""
    assert run_program("-c", code) == "3 2 True\n2\n"


def test_pools_that_no_flag_sizes_follow_a_quota() -> None:
    code = """
from embedserve.server import tensorflow_setup
from embedserve.server.flags import parse
tensorflow_setup.present_cpus, tensorflow_setup.usable_cpus = lambda: 64, lambda: 3
flags = parse(["--tensorflow_intra_op_parallelism=5"])
tensorflow_setup.apply(tensorflow_setup.session_config_from_flags(flags))
import tensorflow as tf
threads = tf.config.threading
print(threads.get_intra_op_parallelism_threads(), threads.get_inter_op_parallelism_threads(), tf.executing_eagerly())
"""
    assert run_program("-c", code) == "5 3 True\n"


# The process's first steps.


def test_help_and_version_are_printed_and_succeed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--model_config_file_poll_wait_seconds=0" in capsys.readouterr().out
    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["TensorFlow ModelServer", "TensorFlow Library"]


def test_an_unknown_flag_ends_the_start_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--modelname=x"]) == 255
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: python -m embedserve")
    assert captured.err == "unknown argument: --modelname=x; did you mean --model_name?\n"


def test_a_refused_configuration_is_reported_on_stdout(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedserve.server.cli.configure_logging", lambda **_: None)
    assert main([f"--model_config_file={tmp_path / 'none'}"]) == 255
    assert capsys.readouterr().out.startswith(f"Failed to start server. Error: NOT_FOUND: {tmp_path / 'none'}; No such")


@pytest.mark.parametrize("flag", ["--workers=-1", "--max_inflight_bytes=-5", "--max_stuck_runs=-1"])
def test_a_negative_number_is_refused_in_one_line(flag: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "embedserve", tmp_path, flag], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 255
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith("Failed to start server. Error: INVALID_ARGUMENT")
    assert flag.partition("=")[0].strip("-") in line
