"""The OpenAI wire format over pyreqwest: the transport of every OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from mimetypes import guess_type
from typing import TYPE_CHECKING, Any

import orjson

from infermesh.errors import (
    APIConnectionError,
    AuthenticationError,
    ConfigError,
    InputError,
    MalformedResponseError,
    RequestError,
)
from infermesh.redaction import origin, redact, secret_values
from infermesh.transports.errors import error_from_status, error_in_body, timed_out
from infermesh.transports.sockets import Mark, close_marked, next_mark
from infermesh.types import Operation, Reply, Request
from infermesh.wire import request_body

if TYPE_CHECKING:
    from pyreqwest.client import Client
    from pyreqwest.http import Url
    from pyreqwest.request import ConsumedRequest, RequestBuilder

__all__ = ["NativeTransport"]

_PATHS: dict[Operation, str] = {
    "chat_completion": "/chat/completions",
    "text_completion": "/completions",
    "responses": "/responses",
    "embedding": "/embeddings",
    "transcription": "/audio/transcriptions",
}
_CONNECT_TIMEOUT_S = 30.0
_TEXT_FORMATS = frozenset(("text", "srt", "vtt"))

# What the last cause of a failed connection contains → what happened, what to check.
_CAUSES = (
    ("refused", "connection refused", "is the server running, and is the port in api_base right?"),
    ("dns error", "the host name cannot be resolved", "check the host in api_base, and the network"),
    ("lookup address", "the host name cannot be resolved", "check the host in api_base, and the network"),
    ("too many open files", "this process has no file descriptors left", "raise `ulimit -n` or lower concurrency"),
    ("certificate", "the TLS certificate was not accepted", "check the host in api_base and its certificate"),
    ("invalidcontenttype", "the TLS handshake failed", "does the server speak plain http:// on that port?"),
    ("unreachable", "the network is unreachable", "check the network and any proxy settings"),
    ("reset", "the server reset the connection", "it may have restarted, or be out of memory: see its log"),
    ("broken pipe", "the server closed the connection", "it may have restarted, or be out of memory: see its log"),
    ("before message completed", "the server closed the connection without an answer", "see the server's log"),
)


@dataclass(eq=False, slots=True)
class _Pool:
    """One HTTP client, the mark of its connections, and how many of its requests are waited for."""

    client: Client
    mark: Mark
    live: int = 0
    retired: bool = False


class NativeTransport:
    """One deployment's endpoint, asked in the OpenAI wire format.

    The HTTP client is made at the first :meth:`send`, in the running loop. Connections are not limited here (limits are
    another layer's), idle ones are kept, redirects are not followed, and each request goes out once. The connection of
    a cancelled request is shut down, at the latest when the requests that went out before it have ended.

    Parameters
    ----------
    label
        The deployment's label, for messages.
    model
        The model's name on the wire.
    api_base
        Base URL, up to and including ``/v1``. A query (``?api-version=…``) is kept behind each path.
    api_key
        Sent as a bearer token; ``None`` sends none.
    headers
        Further headers; one named as a default header replaces it.
    missing_key
        Where the endpoint needs a key and there is none: the environment variable to name. Each :meth:`send` then
        raises :class:`~infermesh.errors.AuthenticationError` and sends nothing.

    Raises
    ------
    ConfigError
        ``api_base`` is not an http(s) URL.
    """

    def __init__(
        self,
        *,
        label: str,
        model: str,
        api_base: str,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        missing_key: str | None = None,
    ) -> None:
        self.label = label
        self.model = model
        self.api_base = api_base
        self._key = api_key.strip() if api_key else None
        self._headers = dict(headers or {})
        self._missing_key = missing_key
        self._secrets = tuple(filter(None, (self._key, *secret_values(self._headers))))
        self._pool: _Pool | None = None
        self._retired: set[_Pool] = set()
        self._urls: dict[str, Url] = {}
        self._foreign: type[Exception] = Exception
        self._closed = False
        if not api_base.startswith(("http://", "https://")) or origin(api_base).endswith("//?"):
            raise ConfigError(
                f"deployment {label!r}: api_base {redact(api_base, api_key)!r} is not a URL: expected something like "
                "http://host:8000/v1"
            )

    async def send(self, request: Request, timeout: float | None) -> Reply:
        """Send one request once. See :class:`~infermesh.types.Transport`."""
        pool = self._pool
        if pool is None:
            pool = self._connect()
        builder = pool.client.post(self._urls[request.operation])
        if timeout is not None:
            builder = builder.timeout(_duration(timeout))
        if request.operation == "transcription":
            outgoing = self._form(builder, request)
        else:
            outgoing = builder.body_bytes(request_body(request, self.model)).build()
        pool.live += 1
        try:
            response = await outgoing.send()
            data = await response.bytes()
        except self._foreign as error:
            # `from None`: the foreign message quotes the URL, which may hold a key.
            raise self._failure(error, timeout) from None
        except asyncio.CancelledError:
            self._retire(pool)
            raise
        finally:
            pool.live -= 1
            if pool.retired and not pool.live:
                self._discard(pool)
        status = response.status
        header = response.get_header
        if not 200 <= status < 300:
            raise error_from_status(
                status,
                data.to_bytes(),
                header,
                self.label,
                secrets=self._secrets,
                url=self.api_base,
                model=self.model,
            )
        if request.operation == "transcription" and request.payload.get("response_format") in _TEXT_FORMATS:
            return Reply(status, {"text": data.to_bytes().decode("utf-8", "replace").strip("\r\n")}, header)
        try:
            body = orjson.loads(memoryview(data))
        except ValueError as error:
            raise self._malformed(f"not JSON ({error})", data.to_bytes(), status, header("x-request-id")) from None
        if not isinstance(body, dict):
            raise self._malformed("not a JSON object", data.to_bytes(), status, header("x-request-id"))
        # A response of the Responses API always has the key, and its own status.
        if "error" in body and body["error"] and request.operation != "responses":
            raise error_in_body(status, body, header, self.label, secrets=self._secrets)
        return Reply(status, body, header)

    async def aclose(self) -> None:
        """Close every connection. A request in flight fails."""
        self._closed = True
        if self._pool is not None:
            self._retire(self._pool)
        for pool in list(self._retired):
            await pool.client.close()
            self._discard(pool)

    def _retire(self, pool: _Pool) -> None:
        """Take a pool out of use. Its connections are shut down as soon as none serves a request that is waited for."""
        pool.retired = True
        self._retired.add(pool)
        if self._pool is pool:
            self._pool = None

    def url(self, operation: Operation) -> str:
        """Where requests of this kind go."""
        base, _, query = self.api_base.partition("?")
        return base.rstrip("/") + _PATHS[operation] + (f"?{query}" if query else "")

    def _discard(self, pool: _Pool) -> None:
        self._retired.discard(pool)
        close_marked(pool.mark)

    def _connect(self) -> _Pool:
        if self._missing_key:
            raise AuthenticationError(
                f"{self.label}: no key for {origin(self.api_base)}, nothing was sent: set {self._missing_key}, or name "
                "another variable in the deployment's api_key_env",
                deployment=self.label,
            )
        if self._closed:
            raise APIConnectionError(f"{self.label}: the client is closed", deployment=self.label, retryable=False)
        # Imported here, so that `import infermesh` does not load a TLS stack.
        from pyreqwest.client import ClientBuilder
        from pyreqwest.exceptions import PyreqwestError
        from pyreqwest.http import Url

        mark = next_mark()
        try:
            self._urls = {operation: Url(self.url(operation)) for operation in _PATHS}
            builder = (
                ClientBuilder()
                .user_agent(f"infermesh/{_version()}")
                .default_headers(self._default_headers())
                .follow_redirects(False)
                .max_connections(None)
                .connect_timeout(timedelta(seconds=_CONNECT_TIMEOUT_S))
                .tcp_keepalive(timedelta(seconds=mark.idle_s))
                .tcp_keepalive_interval(timedelta(seconds=mark.interval_s))
            )
            self._pool = _Pool(builder.build(), mark)
        except (PyreqwestError, ValueError, TypeError):
            # The foreign message may quote the header: say which ones there are, not what is in them.
            raise InputError(
                f"{self.label}: the client cannot be made: check that api_base ({origin(self.api_base)}) is a URL and "
                f"that the key and the headers ({', '.join(self._headers) or 'none'}) are plain ASCII on one line",
                deployment=self.label,
            ) from None
        self._foreign = PyreqwestError
        return self._pool

    def _default_headers(self) -> dict[str, str]:
        headers = {"accept": "application/json", "content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        headers.update((name.lower(), value) for name, value in self._headers.items())
        return headers

    def _form(self, builder: RequestBuilder, request: Request) -> ConsumedRequest:
        from pyreqwest.multipart import FormBuilder, PartBuilder

        if request.audio is None:
            raise InputError("a transcription request without a clip", deployment=self.label)
        form = FormBuilder().text("model", self.model)
        fields = dict(request.payload)
        fields.setdefault("response_format", default_transcript_format(self.model))
        for name, value in fields.items():
            for text in value if isinstance(value, list | tuple) else (value,):
                form = form.text(f"{name}[]" if isinstance(value, list | tuple) else name, _form_text(text))
        mime, _ = guess_type(request.audio.filename)
        part = PartBuilder.from_bytes(request.audio.data).file_name(request.audio.filename)
        boundary = form.boundary
        outgoing = builder.multipart(form.part("file", part.mime(mime or "application/octet-stream"))).build()
        # The client's default content type goes before the form's own.
        outgoing.headers["content-type"] = f"multipart/form-data; boundary={boundary}"
        return outgoing

    def _malformed(self, what: str, data: bytes, status: int, request_id: str | None) -> MalformedResponseError:
        shown = redact(" ".join(data[:2000].decode("utf-8", "replace").split()), *self._secrets)[:200]
        return MalformedResponseError(
            f"{self.label}: the answer of {origin(self.api_base)} is {what}: {shown!r}. Check that api_base is an "
            "OpenAI-compatible endpoint",
            status_code=status,
            deployment=self.label,
            request_id=request_id,
        )

    def _failure(self, error: Exception, timeout: float | None) -> RequestError:
        """Translate a failure below HTTP."""
        from pyreqwest import exceptions as foreign

        causes = _causes(error)
        text = " / ".join(causes).lower()
        if isinstance(error, foreign.RequestTimeoutError):
            # The total timeout surfaces as ConnectTimeoutError wherever it strikes before the answer's head has come:
            # only the causes tell whether a connection was still being made.
            if "client error (connect)" in text or "tcp connect" in text:
                return timed_out(
                    self.label,
                    min(timeout or math.inf, _CONNECT_TIMEOUT_S),
                    f" (no connection to {origin(self.api_base)})",
                )
            return timed_out(self.label, timeout)
        if isinstance(error, foreign.BodyDecodeError) and not _broke_off(text):
            return MalformedResponseError(
                f"{self.label}: the answer of {origin(self.api_base)} cannot be decoded ({causes[-1]}): check any "
                "proxy between here and the server",
                deployment=self.label,
            )
        if isinstance(error, foreign.ClientClosedError):
            return APIConnectionError(f"{self.label}: the client was closed", deployment=self.label, retryable=False)
        if isinstance(error, foreign.BuilderError):
            return InputError(f"{self.label}: the request cannot be built: {causes[-1]}", deployment=self.label)
        if isinstance(error, foreign.BodyDecodeError):
            what, check = "the connection broke before the answer was complete", "see the server's log"
        else:
            what, check = next(
                ((what, check) for mark, what, check in _CAUSES if mark in text), (causes[-1], "check api_base")
            )
        return APIConnectionError(f"{self.label}: {origin(self.api_base)}: {what}: {check}", deployment=self.label)


def default_transcript_format(model: str) -> str:
    """``verbose_json``, which brings language and duration, or ``json`` for the models that refuse it."""
    return "json" if "gpt-4o" in model else "verbose_json"


def _causes(error: Exception) -> list[str]:
    details: Any = getattr(error, "details", None) or {}
    causes = [redact(str(cause.get("message", ""))) for cause in details.get("causes") or ()]
    return causes or [redact(str(getattr(error, "message", error)))]


def _broke_off(causes: str) -> bool:
    return any(mark in causes for mark in ("end of file", "reading a body from connection", "reset", "closed"))


def _form_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


@lru_cache(maxsize=256)
def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


@lru_cache(maxsize=1)
def _version() -> str:
    try:
        return version("infermesh")
    except PackageNotFoundError:
        return "0"
