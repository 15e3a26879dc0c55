"""A server's configuration goes to another process as JSON and arrives as it was."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tensorflow_serving.config import model_server_config_pb2

from embedserve.config import (
    AllVersions,
    BatchingOptions,
    LatestVersions,
    LoggingOptions,
    ModelConfig,
    RegistryOptions,
    RetryPolicy,
    SpecificVersions,
    VersionPolicy,
)
from embedserve.server.cli import server_config
from embedserve.server.config import ConfigFile, GrpcConfig, RestConfig, ServerConfig, TlsContents, TlsFiles
from embedserve.server.flags import parse
from embedserve.tfs.config import Platform, models_from_proto


def assert_arrives(config: ServerConfig) -> ServerConfig:
    arrived = ServerConfig.from_json(config.to_json())
    assert arrived == config
    return arrived


def test_an_empty_configuration_arrives() -> None:
    assert_arrives(ServerConfig())


@pytest.mark.parametrize(
    "policy",
    [LatestVersions(), LatestVersions(num_versions=3), AllVersions(), SpecificVersions(versions=(3, 1))],
    ids=repr,
)
def test_a_version_policy_arrives_as_the_one_it_was(policy: VersionPolicy) -> None:
    (model,) = (
        assert_arrives(ServerConfig(models=(ModelConfig(name="m", base_path="/m", version_policy=policy),))).models
        or ()
    )
    assert type(model.version_policy) is type(policy)


def test_every_option_arrives() -> None:
    model = ModelConfig(
        name="ünï",
        base_path="relative",
        version_labels={"stable": 2},
        batching=True,
        batching_options=BatchingOptions(max_batch_size=4, allowed_batch_sizes=(2, 4)),
        saved_model_tags=("serve", "gpu"),
        input_ranks={"x": 2},
        logging_config=LoggingOptions(filename_prefix="/log/m", sampling_rate=0.5),
    )
    platform = Platform(
        {"batching": True, "batching_options": BatchingOptions(max_batch_size=8), "saved_model_tags": ("a", "b")},
        num_batch_threads=3,
        session_config=b"\xff\x00",
        warmup_iterations=2,
    )
    config = ServerConfig(
        models=(model,),
        platforms={"tensorflow": platform},
        options=RegistryOptions(
            start_timeout=math.inf, poll_interval=math.inf, retry=RetryPolicy(max_retries=1), preload_modules=("a",)
        ),
        grpc=GrpcConfig(
            port=None,
            tls=TlsContents(server_key="key", server_cert="cert\n"),
            channel_arguments={"number": 1, "text": "1"},
        ),
        rest=RestConfig(timeout=None, tls=TlsFiles(cert=Path("/cert"), key=Path("/key")), metrics_path="/metrics"),
        session_config=b"\x80\x81",
    )
    arrived = assert_arrives(config)
    assert isinstance(arrived.platforms["tensorflow"].model_options["batching_options"], BatchingOptions)


def test_a_config_file_arrives_with_the_models_it_lists_however_many() -> None:
    applied = model_server_config_pb2.ModelServerConfig()
    for number in range(3000):
        applied.model_config_list.config.add(
            name=f"model_{number}", base_path=f"/models/of/some/team/model_{number}", model_platform="tensorflow"
        )
    platforms = {"tensorflow": Platform({"batching": True, "saved_model_tags": ("serve", "x")})}
    config = ServerConfig(
        models=tuple(models_from_proto(applied, platforms=platforms)),
        config_file=ConfigFile(path=Path("/models.config"), poll_interval=2.5, applied=applied),
        platforms=platforms,
    )
    assert_arrives(config)
    # Linux takes no environment variable over 128 KiB.
    assert len(config.to_json()) < 2**17


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model_base_path=/m", "--enable_batching", "--rest_api_timeout_in_ms=0"),
        ("--model_base_path=/m", "--tensorflow_session_parallelism=2", "--file_system_poll_wait_seconds=0"),
        ("--model_base_path=/m", "--grpc_channel_arguments=a=1,b=x", "--num_request_iterations_for_warmup=3"),
    ],
)
def test_what_the_flags_say_arrives(arguments: tuple[str, ...]) -> None:
    assert_arrives(server_config(parse(arguments), {}))
