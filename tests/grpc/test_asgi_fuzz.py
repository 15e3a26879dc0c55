"""Whatever comes in over ASGI, what goes out is whole: HTTP that a client understands, and never a bug's INTERNAL."""

from __future__ import annotations

import asyncio
import gzip
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedserve.errors import Code
from embedserve.grpc import GrpcApp
from embedserve.grpc.transports import asgi
from embedserve.grpc.transports.frames import frame
from tests.grpc.conftest import predict_request, registry
from tests.grpc.fabricated import CHECK, KINDS, PREDICT, REFLECTION, WATCH, Connection

pytestmark = pytest.mark.slow

REQUEST = predict_request(x=[1, 2]).SerializeToString()
MODEL_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"

# What is right comes first and often, so that something gets past the checks.
paths = (
    st.sampled_from([*[PREDICT] * 6, CHECK, WATCH, REFLECTION, MODEL_STATUS, "/", "", PREDICT + "/", "/a"]) | st.text()
)
kinds = (
    st.sampled_from(KINDS[:2])
    | st.sampled_from([*KINDS, KINDS[0] + b"+proto", KINDS[1] + b"; a=b", b"application/grpc-web+json"])
    | st.binary()
)
headers = st.lists(
    st.tuples(
        st.just(b"grpc-timeout"), st.sampled_from([b"1n", b"50m", b"9H", b"99999999H", b"", b"-1S"]) | st.binary()
    )
    | st.tuples(st.just(b"grpc-encoding"), st.sampled_from([b"gzip", b"identity", b"zstd"]) | st.binary())
    | st.tuples(st.just(b"grpc-accept-encoding"), st.sampled_from([b"gzip", b"identity,gzip"]) | st.binary())
    | st.tuples(st.just(b"origin"), st.binary())
    | st.tuples(st.sampled_from([b"x-embedserve-priority", b"x-embedserve-priority-bin", b"te"]), st.binary()),
    max_size=4,
)
messages = st.sampled_from([REQUEST, b"", REQUEST[:-3]]) | st.binary(max_size=50)
framed = st.builds(frame, messages, st.sampled_from([0, 0, 0, 1, 2, 0x80, 255]))
zipped = st.builds(lambda message: frame(gzip.compress(message), 1), messages)
pieces = (
    st.just([frame(REQUEST)])
    | st.just([frame(REQUEST)[:9], frame(REQUEST)[9:]])
    | st.lists(framed | zipped | st.binary(max_size=20), max_size=4)
)
right = st.fixed_dictionaries(
    {"path": st.just(PREDICT), "content_type": st.sampled_from(KINDS), "method": st.just("POST"), "headers": headers}
)
scopes = right | st.fixed_dictionaries(
    {
        "path": paths,
        "content_type": kinds,
        "method": st.sampled_from([*["POST"] * 8, "OPTIONS", "GET"]),
        "headers": headers,
    }
)

# What gRPC calls INTERNAL without a bug of ours.
GRPCS_OWN = "the message is compressed, and grpc-encoding does not say how"


def test_every_answer_is_whole(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(asgi, "GRACE", 0.01)
    codes: Counter[Code | None] = Counter()
    with asyncio.Runner() as runner:
        reg = registry(batching=False)
        app = GrpcApp(reg, compression="gzip", cors="https://app.example")

        @settings(
            max_examples=400, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
        )
        @given(scopes, pieces, st.booleans(), st.booleans())
        def ask(scope: dict[str, Any], body: Sequence[bytes], leaves: bool, repeats: bool) -> None:
            async def asked() -> None:
                connection = Connection(app, *body, ends=not leaves, repeats=repeats, **scope)
                connection.go()
                await asyncio.wait_for(connection.run(), 30)
                assert reg.inflight.reserved == 0
                if not leaves and scope["path"] not in (WATCH, REFLECTION) and connection.sent:
                    answer = connection.understood()
                    codes[answer.code] += 1
                    assert answer.code is not Code.INTERNAL or answer.text == GRPCS_OWN

            runner.run(asked())

        runner.run(reg.start())
        ask()
        runner.run(reg.aclose())
    assert repr(app).endswith(" 0 calls>")
    assert not [record for record in caplog.records if record.exc_info]
    assert codes[Code.OK] > 20, "too little of it was right enough to get anywhere"
