"""SageMaker's `/ping` and `/invocations` in front of the REST API, by the rules of its TensorFlow Serving container.

A request is translated and passed on: the custom attributes name model, version and method, and the media type names
the form of the body. The module decides nothing about models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import orjson

from embedserve.asgi.calls import Receive, Scope, Send
from embedserve.asgi.listening import RegistryListening
from embedserve.errors import InvalidInputError
from embedserve.http.direct import DirectCall
from embedserve.http.heads import RequestHead
from embedserve.rest.media_types import BODY_TYPES, INSTANCES

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry
    from embedserve.rest.app import RestApp

__all__ = ["SageMakerApp"]

_PATHS = frozenset({"/ping", "/invocations"})
_ATTRIBUTES = b"x-amzn-sagemaker-custom-attributes"
_PAIR = re.compile(r"(tfs-[a-z\-]+)=([^,]+)")
_METHODS = ("predict", "classify", "regress")
_JSON = frozenset({"application/json", "application/jsonlines", "application/jsons"})


class SageMakerApp(RegistryListening):
    """ASGI application: answers `/ping` and `/invocations`, and passes all else to the REST API.

    Args:
        app: The REST API of the registry.
        default_model: The model of requests that name none; without it, the only model.
    """

    def __init__(self, app: RestApp, default_model: str = "") -> None:
        self._app = app
        self._registry: ModelRegistry = app.registry
        self._default = default_model

    def __repr__(self) -> str:
        return f"<SageMakerApp of {self._registry!r}>"

    def takes_whole(self, size: int) -> bool:
        """As the REST API's."""
        return self._app.takes_whole(size)

    def direct(self, head: RequestHead, is_http2: bool) -> DirectCall | None:
        """As the REST API's, which knows neither path."""
        return self._app.direct(head, is_http2)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an ASGI connection."""
        if scope["type"] != "http" or scope["path"] not in _PATHS:
            await self._app(scope, receive, send)
        elif scope["path"] == "/ping":
            await self._ping(scope, send)
        elif scope["method"] != "POST":
            await _answer(send, 405, f"/invocations takes POST, not {scope['method']}", ((b"allow", b"POST"),))
        else:
            await self._invoke(scope, receive, send)

    async def _ping(self, scope: Scope, send: Send) -> None:
        reason = self._registry.unready()
        if reason is None and self._default:
            reason = self._registry.readiness().get(self._default, f"could not find model {self._default}")
        head = scope["method"] == "HEAD"
        await _answer(send, 200 if reason is None else 503, reason, head=head)

    async def _invoke(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        sent = headers.get(b"content-type", b"").decode("latin-1")
        media = sent.partition(";")[0].strip().lower()
        if media not in _JSON and media not in BODY_TYPES:
            await _answer(send, 415, f"Unsupported Media Type: {sent or 'Unknown'}")
            return
        try:
            target, method = self._target(headers.get(_ATTRIBUTES, b"").decode("latin-1"))
        except InvalidInputError as error:
            await _answer(send, 400, error.message)
            return
        # Only predictions have rows without a name around them.
        content = (INSTANCES if method == "predict" else "application/json") if media in _JSON else sent
        fields = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        translated = {
            **scope,
            "path": unquote(target),
            "raw_path": target.encode(),
            "headers": [*fields, (b"content-type", content.encode("latin-1"))],
        }
        await self._app(translated, receive, send)

    def _target(self, attributes: str) -> tuple[str, str]:
        """The target of the REST API and its method, by the custom attributes of a request.

        Raises:
            InvalidInputError: No model is meant, or the method does not exist.
        """
        given: Mapping[str, str] = dict(_PAIR.findall(attributes))
        method = given.get("tfs-method", "predict").strip()
        if method not in _METHODS:
            raise InvalidInputError(f"tfs-method={method} in the custom attributes: it is one of {', '.join(_METHODS)}")
        name = given.get("tfs-model-name", self._default).strip()
        if not name:
            models = self._registry.models()
            if len(models) != 1:
                raise InvalidInputError(
                    "the request names no model: add the header X-Amzn-SageMaker-Custom-Attributes: "
                    f"tfs-model-name=NAME; the models are {', '.join(models) or 'none yet'}"
                )
            (name,) = models
        version = given.get("tfs-model-version", "").strip()
        return f"/v1/models/{quote(name, safe='')}{f'/versions/{quote(version)}' if version else ''}:{method}", method


async def _answer(
    send: Send, status: int, error: str | None, fields: tuple[tuple[bytes, bytes], ...] = (), *, head: bool = False
) -> None:
    body = b"" if error is None else orjson.dumps({"error": error})
    told: Any = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json"), *fields]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": b"" if head else body})
