"""Flags and OpenTelemetry's variables → the observers of a server process."""

from __future__ import annotations

from importlib import util
from typing import Any

import pytest

from embedserve import AccessLog, ConfigError, Tracing
from embedserve.server.config import ObservingConfig, ServerConfig, TracingConfig
from embedserve.server.flags import parse
from embedserve.server.observing import make_observers, observing

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def tracing(*flags: str, **environment: str) -> TracingConfig | None:
    return observing(parse(flags), environment).tracing


def test_nothing_is_observed_by_default() -> None:
    assert observing(parse([]), {}) == ObservingConfig()
    assert make_observers(ObservingConfig()) == []


def test_flags_of_the_logs() -> None:
    flags = ["--log_format=json", "--access_log", "--access_log_sampling=0.1", "--access_log_slow=0.5"]
    config = observing(parse([*flags, "--access_log_failed=false"]), {})
    expected: dict[str, Any] = {"access_log_sampling": 0.1, "access_log_slow": 0.5, "access_log_failed": False}
    assert config == ObservingConfig(log_format="json", access_log=True, **expected)
    assert observing(parse(["--access_log_slow=inf"]), {}).access_log_slow is None
    assert [type(each) for each in make_observers(config)] == [AccessLog]


@pytest.mark.parametrize(
    "flag", ["--log_format=xml", "--access_log_sampling=2", "--access_log_sampling=nan", "--access_log_slow=-1"]
)
def test_an_impossible_value_is_refused_by_name(flag: str) -> None:
    with pytest.raises(ConfigError, match=flag.removeprefix("--").partition("=")[0]):
        observing(parse([flag]), {})


def test_traces_are_asked_for_by_the_flag_or_a_variable() -> None:
    assert tracing() is None
    assert tracing("--otel_endpoint=http://c:4318") == TracingConfig(endpoint="http://c:4318")
    assert tracing(**{ENDPOINT: "http://c:4318"}) == TracingConfig()
    assert tracing(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://c:4318/v1/traces") == TracingConfig()
    assert tracing(OTEL_SDK_DISABLED="true", **{ENDPOINT: "http://c"}) is None
    assert tracing(OTEL_TRACES_EXPORTER="none", **{ENDPOINT: "http://c"}) is None
    assert tracing("--otel_endpoint=http://c", OTEL_SERVICE_NAME="mine") == TracingConfig(
        endpoint="http://c", named=True
    )


@pytest.mark.parametrize(
    ("sampler", "share"),
    [
        ({}, 1.0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, 0.0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}, 0.01),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, 1.0),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}, None),
    ],
)
def test_the_share_of_a_ratio_sampler_is_drawn_before_the_sdk_is_asked(
    sampler: dict[str, str], share: float | None
) -> None:
    found = tracing("--otel_endpoint=http://c", **sampler)
    assert found is not None
    assert found.sampling == share


@pytest.mark.parametrize(
    ("flags", "environment", "named"),
    [
        (["--otel_endpoint=localhost:4318"], {}, "otel_endpoint=localhost:4318 is no URL"),
        (["--otel_endpoint=http://c"], {"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER=jaeger"),
        (
            ["--otel_endpoint=http://c"],
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "http/json: there is http/protobuf",
        ),
        (
            ["--otel_endpoint=http://c"],
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            "OTEL_TRACES_SAMPLER_ARG=2",
        ),
    ],
)
def test_an_impossible_wish_for_traces_is_refused(flags: list[str], environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        observing(parse(flags), environment)


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"])
def test_a_missing_package_is_named_with_the_remedy(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = util.find_spec
    monkeypatch.setattr("embedserve.server.observing.find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(ConfigError, match=r"pip install 'embedserve\[otlp\]'"):
        tracing("--otel_endpoint=http://c")
    assert tracing() is None


def test_an_exporter_over_grpc_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedserve.server.observing.find_spec", lambda name: None if ".grpc" in name else object())
    with pytest.raises(ConfigError, match="opentelemetry-exporter-otlp-proto-grpc"):
        tracing("--otel_endpoint=http://c", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")


def test_the_configuration_reaches_another_process() -> None:
    config = ServerConfig(observing=ObservingConfig(access_log=True, tracing=TracingConfig(endpoint="http://c")))
    assert ServerConfig.from_json(config.to_json()).observing == config.observing


def test_traces_have_an_observer() -> None:
    made = make_observers(ObservingConfig(tracing=TracingConfig(endpoint="http://127.0.0.1:9", sampling=0.5)))
    assert [type(each) for each in made] == [Tracing]
    assert "0.5 of the calls" in repr(made[0])
