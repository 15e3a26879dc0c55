"""The flag table against TensorFlow Serving's list and our options, and how a command line is read."""

from __future__ import annotations

import pytest

from embedserve.server.flags import FLAGS, Flag, FlagError, parse, usage

NAMES = """
port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms rest_api_enable_cors_support
enable_batching allow_version_labels_for_unavailable_models batching_parameters_file
enable_per_model_batching_parameters model_config_file model_config_file_poll_wait_seconds model_name model_base_path
num_load_threads num_unload_threads max_num_load_retries load_retry_interval_micros file_system_poll_wait_seconds
flush_filesystem_caches tensorflow_session_parallelism tensorflow_session_config_file tensorflow_intra_op_parallelism
tensorflow_inter_op_parallelism use_alts_credentials ssl_config_file platform_config_file
per_process_gpu_memory_fraction saved_model_tags grpc_channel_arguments grpc_max_threads enable_model_warmup
num_request_iterations_for_warmup version monitoring_config_file remove_unused_fields_from_bundle_metagraph
prefer_tflite_model num_tflite_pools num_tflite_interpreters_per_pool enable_signature_method_name_check
xla_cpu_compilation_enabled xla_gpu_compilation_enabled enable_profiler thread_pool_factory_config_file mixed_precision
skip_initialize_tpu enable_grpc_healthcheck_service enable_serialization_as_tensor_content
"""
TENSORFLOW_SERVING = NAMES.split()


def test_every_flag_of_tensorflow_serving_is_there() -> None:
    assert len(TENSORFLOW_SERVING) == 48
    assert [name for name, flag in FLAGS.items() if flag.support != "own"] == TENSORFLOW_SERVING


@pytest.mark.parametrize("flag", FLAGS.values(), ids=lambda flag: flag.name)
def test_a_flag_says_what_it_does_and_why_it_differs(flag: Flag) -> None:
    assert flag.help.endswith(".")
    assert bool(flag.note) == (flag.support in ("differs", "ignored"))
    assert f"--{flag.name}=" in usage("x")


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--port=9000", "port", 9000),
        ("--port=-1", "port", -1),
        ("--load_retry_interval_micros=6000000000", "load_retry_interval_micros", 6_000_000_000),
        ("--per_process_gpu_memory_fraction=0.5", "per_process_gpu_memory_fraction", 0.5),
        ("--enable_batching", "enable_batching", True),
        ("--enable_batching=TRUE", "enable_batching", True),
        ("--enable_batching=0", "enable_batching", False),
        ("--enable_model_warmup=False", "enable_model_warmup", False),
        ("--model_name=a=b", "model_name", "a=b"),
        ("--model_name=", "model_name", ""),
    ],
)
def test_values_are_read_as_their_kind(argument: str, name: str, value: object) -> None:
    assert parse([argument]).given == {name: value}


def test_the_last_occurrence_counts() -> None:
    flags = parse(["--port=1", "--model_name=a", "--port=2"])
    assert (flags.number("port"), flags.text("model_name")) == (2, "a")


def test_a_flag_not_given_has_its_default() -> None:
    flags = parse([])
    assert (flags.number("port"), flags.text("model_name"), flags.on("enable_profiler")) == (8500, "default", True)
    assert "port" not in flags


def test_one_argument_that_is_no_flag_is_the_models_directory() -> None:
    assert parse(["models/", "--port=1"]).directory == "models/"


@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help_is_asked_for(argument: str) -> None:
    assert parse(["--port=1", argument]).help


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rest_port=1"], "unknown argument: --rest_port=1; did you mean --rest_api_port?"),
        (["--enable-batching"], "unknown argument: --enable-batching; did you mean --enable_batching?"),
        (["--noenable_batching"], "unknown argument: --noenable_batching; did you mean --enable_batching?"),
        (["-port=1"], "unknown argument: -port=1; did you mean --port?"),
        (["--zzz"], "unknown argument: --zzz; --help lists every flag"),
        (["--port=abc"], "Couldn't interpret value abc for flag port."),
        (["--port=1.5"], "Couldn't interpret value 1.5 for flag port."),
        (["--port=1_0"], "Couldn't interpret value 1_0 for flag port."),
        (["--port=3000000000"], "Couldn't interpret value 3000000000 for flag port."),
        (["--enable_batching=yes"], "Couldn't interpret value yes for flag enable_batching."),
        (["--settle=soon"], "Couldn't interpret value soon for flag settle."),
        (["--port", "8500"], "flag --port needs a value: --port=8500"),
        (["a", "b"], "unknown argument: b; one directory of models is enough"),
        (
            ["bench", "models"],
            "unknown argument: models; one directory of models is enough, and 'bench' is given already. A flag's value "
            "follows its name after =, as in --port=8500; the commands are inspect, "
            "status, top, predict, tune, verify, client, live, completion and install-command",
        ),
    ],
)
def test_what_is_not_understood_is_an_error_that_says_what_is_meant(arguments: list[str], message: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse(arguments)
    assert str(caught.value).startswith(message)


def test_usage_is_laid_out_as_tensorflow_servings() -> None:
    lines = usage("server").splitlines()
    assert lines[0].startswith("usage: server")
    assert lines[6] == "Flags:"
    assert '\t--model_name="default"           \tstring\tName of the single model at --model_base_path.' in lines
    assert "\t--version=false                  \tbool\tPrint the versions and exit." in lines
