"""nginx, HAProxy and Envoy in front of the listener: REST and gRPC through each, to one port of `HttpProtocol`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from embedserve.errors import Code
from tests.interop.clients import CLIENTS
from tests.interop.rpcs import MODEL, halves, predicted, steps
from tests.support.programs import answers, fetch, free_port, wait_until

pytestmark = pytest.mark.timeout(240)

LARGE = 300_000


class Front(NamedTuple):
    """Where a proxy listens for REST, and for gRPC; None where it takes no gRPC."""

    rest: int
    grpc: int | None


@contextmanager
def running(*command: object, front: Front, log: Path) -> Iterator[Front]:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    with log.open("w") as file:
        process = subprocess.Popen([str(word) for word in command], stdout=file, stderr=file)
    try:
        up = answers(f"http://127.0.0.1:{front.rest}/v1/models/{MODEL}")
        wait_until(lambda: process.poll() is not None or up())
        assert process.poll() is None, log.read_text()[-3000:]
        yield front
    finally:
        process.terminate()
        process.wait(30)
        print(log.read_text()[-3000:])  # Shown with a failure.


NGINX = """
daemon off; master_process off; pid {work}/pid; error_log stderr;
events {{}}
http {{
    access_log off; client_max_body_size 128m;
    client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work}; uwsgi_temp_path {work};
    scgi_temp_path {work};
    # Two upstreams of one port: nginx would send gRPC over a kept connection of HTTP/1.1.
    upstream rest {{ server 127.0.0.1:{port}; keepalive 8; }}
    upstream grpc {{ server 127.0.0.1:{port}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{rest};
        location / {{ {http} proxy_pass http://rest; }}
    }}
    server {{
        listen 127.0.0.1:{grpc} http2;
        location / {{ grpc_pass grpc://grpc; grpc_read_timeout 120s; }}
    }}
}}
"""
NGINX_HTTP = {
    "nginx, HTTP/1.0": "",  # Its default: a connection for each request.
    "nginx, HTTP/1.1": 'proxy_http_version 1.1; proxy_set_header Connection "";',
    "nginx, unbuffered": 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off;',
}

HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 120s
    timeout server 120s
frontend rest
    bind 127.0.0.1:{rest}
    default_backend {backend}
frontend grpc
    bind 127.0.0.1:{grpc} proto h2
    default_backend h2
backend h1
    option httpchk GET /v1/models/{model}
    http-check expect status 200
    server one 127.0.0.1:{port} check inter 500ms
backend h2
    option httpchk
    http-check send meth GET uri /v1/models/{model} ver HTTP/2 hdr host listener
    http-check expect status 200
    server one 127.0.0.1:{port} proto h2 check inter 500ms check-proto h2
"""

ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {rest}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          codec_type: AUTO
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {{match: {{prefix: /v1/}}, route: {{cluster: {backend}, timeout: 120s}}}}
              - {{match: {{prefix: /}}, route: {{cluster: h2, timeout: 120s}}}}
  clusters:
  - name: h1
    load_assignment: &there
      cluster_name: listener
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}
  - name: h2
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    health_checks:
    - {{timeout: 5s, interval: 0.5s, unhealthy_threshold: 2, healthy_threshold: 1, grpc_health_check: {{}}}}
    load_assignment: *there
"""

Make = Callable[[int, Path], tuple[list[object], Front]]


def nginx(http: str) -> Make:
    def make(port: int, work: Path) -> tuple[list[object], Front]:
        front = Front(free_port(), free_port())
        file = work / "nginx.conf"
        file.write_text(NGINX.format(work=work, port=port, http=http, **front._asdict()))
        return ["nginx", "-p", work, "-c", file], front

    return make


def haproxy(backend: str) -> Make:
    def make(port: int, work: Path) -> tuple[list[object], Front]:
        front = Front(free_port(), free_port())
        file = work / "haproxy.cfg"
        file.write_text(HAPROXY.format(port=port, backend=backend, model=MODEL, **front._asdict()))
        return ["haproxy", "-f", file], front

    return make


def envoy(backend: str) -> Make:
    def make(port: int, work: Path) -> tuple[list[object], Front]:
        there = free_port()
        file = work / "envoy.yaml"
        file.write_text(ENVOY.format(rest=there, port=port, backend=backend))
        program = Path(sys.executable).with_name("envoy")
        options = ("--log-level", "warning", "--concurrency", 1, "--use-dynamic-base-id")
        return [program, "-c", file, *options], Front(there, there)

    return make


PROXIES: dict[str, Make] = {
    **{name: nginx(http) for name, http in NGINX_HTTP.items()},
    "HAProxy, HTTP/1.1": haproxy("h1"),
    "HAProxy, HTTP/2": haproxy("h2"),
    "Envoy, HTTP/1.1": envoy("h1"),
    "Envoy, HTTP/2": envoy("h2"),
}


@pytest.fixture(params=PROXIES)
def front(request: pytest.FixtureRequest, ports: Mapping[str, int], tmp_path: Path) -> Iterator[Front]:
    command, front = PROXIES[request.param](ports["HttpProtocol"], tmp_path)
    with running(*command, front=front, log=tmp_path / "log") as started:
        yield started


def test_through_a_proxy(front: Front) -> None:
    """Small and large requests over REST and gRPC, errors with their words, and the end of a deadline."""
    url = f"http://127.0.0.1:{front.rest}/v1/models/{MODEL}"
    for count in (2, LARGE, 2):
        status, found = fetch(f"{url}:predict", {"instances": [[float(number)] for number in range(count)]})
        assert status == 200
        assert found["predictions"] == [[number / 2 + 2] for number in range(count)]
    status, found = fetch(f"{url}:predict", {"instances": "no numbers"})
    assert status == 400
    assert found["error"]
    assert front.grpc is not None
    for kind in ("blocking", "h2"):
        client = CLIENTS[kind](front.grpc)
        for count in (2, LARGE):
            outcome = client.call("Predict", halves(count))
            assert (outcome.code, outcome.text) == (Code.OK, "")
            np.testing.assert_array_equal(predicted(outcome.response), np.arange(count, dtype=np.float32) / 2 + 2)
        outcome = client.call("Predict", steps(10**12), timeout=0.3)
        assert outcome.code is Code.DEADLINE_EXCEEDED
        request = halves()
        request.model_spec.name = "né ☃%"
        outcome = client.call("Predict", request)
        assert outcome.code is Code.NOT_FOUND
        assert outcome.text.startswith("Servable not found for request: Latest(né ☃%)")
    (answer,) = CLIENTS["aio"](front.grpc).stream("Watch", [_health()], 1)
    assert answer.status == 1


def _health() -> object:
    from grpc_health.v1 import health_pb2

    return health_pb2.HealthCheckRequest()
