"""The OpenAI wire format over HTTP: the transport of every OpenAI-compatible endpoint."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import orjson

from infermesh.config.deployment import MAX_RESPONSE_BYTES
from infermesh.errors import AuthenticationError, ConfigError, InputError, MalformedResponseError, RequestError
from infermesh.exact_json import dumps, loads_leniently
from infermesh.redaction import origin, redact, secret_values, url_secrets
from infermesh.transports.dialect import Dialect
from infermesh.transports.errors import error_from_status, error_in_body
from infermesh.transports.http.client import HttpClient
from infermesh.transports.http.connection import Response
from infermesh.transports.http.failures import client_closed
from infermesh.transports.http.form import Form, form
from infermesh.transports.provider_table import split_model
from infermesh.types import Operation, Reply, Request
from infermesh.wire.error_bodies import is_error
from infermesh.wire.requests import request_body

__all__ = ["Access", "Listed", "NativeTransport"]

_PATHS: dict[Operation, str] = {
    "chat_completion": "/chat/completions",
    "text_completion": "/completions",
    "responses": "/responses",
    "embedding": "/embeddings",
    "transcription": "/audio/transcriptions",
}
# What an answer has that is one.
_ANSWER: dict[Operation, str] = {
    "chat_completion": "choices",
    "text_completion": "choices",
    "responses": "output",
    "embedding": "data",
    "transcription": "text",
}
_ANY_MODEL = "simulator"  # the one name that the simulator lists where it answers to all
_TEXT_FORMATS = frozenset(("text", "srt", "vtt"))


class Listed(NamedTuple):
    """What an endpoint says that it serves.

    Attributes
    ----------
    models
        Names, as requests have them. ``None``: its answer is no list of models.
    date
        Its ``Date`` header.
    open
        Whether it takes other names as well: a proxy's list of patterns, or the simulator.
    """

    models: tuple[str, ...] | None
    date: str | None
    open: bool = False


class Access(NamedTuple):
    """What it takes to ask an endpoint for other things than answers.

    Attributes
    ----------
    url
        A path → where it is.
    headers
        Sent with each request, the key among them.
    secrets
        What must not appear in a message.
    """

    label: str
    model: str
    url: Callable[[str], str]
    headers: Mapping[str, str]
    secrets: tuple[str, ...]
    ca_bundle: str | None
    written: Callable[[Request], Request]


class NativeTransport:
    """One deployment's endpoint, asked in the OpenAI wire format.

    The HTTP client is made at the first :meth:`send`, in the running loop. Connections are not limited here (limits are
    another layer's), idle ones are kept, redirects are not followed, and each request goes out once.

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
    secrets
        Values of headers that must not appear in a message, whatever the header's name.
    missing_key
        Where the endpoint needs a key and there is none: the environment variable to name. Each :meth:`send` then
        raises :class:`~infermesh.errors.AuthenticationError` and sends nothing.
    dialect
        What it takes under other names; by default what the model's name tells.
    ca_bundle
        A file or a folder with further authorities for TLS.
    max_response_bytes
        The most bytes that an answer may have, decoded.

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
        secrets: Sequence[str] = (),
        missing_key: str | None = None,
        dialect: Dialect | None = None,
        ca_bundle: str | None = None,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        self._ca_bundle = ca_bundle
        self._most = max_response_bytes
        self.label = label
        self.model = model
        self.api_base = api_base
        self._key = api_key.strip() if api_key else None
        self._headers = dict(headers or {})
        self._missing_key = missing_key
        self._dialect = dialect or Dialect(label, *split_model(model))
        self._secrets = tuple(
            filter(None, (self._key, *secret_values(self._headers), *url_secrets(api_base), *secrets))
        )
        self._client: HttpClient | None = None
        self._closed = False
        self._proxied: bool | None = None  # whether LiteLLM's proxy is in front, which its first answer tells
        if not api_base.startswith(("http://", "https://")) or origin(api_base).endswith("//?"):
            raise ConfigError(
                f"deployment {label!r}: api_base {redact(api_base, api_key)!r} is not a URL: expected something like "
                "http://host:8000/v1"
            )

    async def send(self, request: Request, timeout: float | None) -> Reply:
        """Send one request once. See :class:`~infermesh.types.Transport`."""
        edition = self._dialect.edition
        try:
            return await self._send(request, timeout, edition)
        except RequestError as error:
            if error.rewritten:
                request.fresh = True  # it is sent again once, since a new connection is not a kept one
            if (learned := self._dialect.learn(request, error, edition)) is not error:
                raise learned from None
            raise

    async def _send(self, request: Request, timeout: float | None, edition: int) -> Reply:
        operation = request.operation
        client = self._client or self._connect()
        if operation == "transcription":
            answer = await client.post_form(operation, self._form(request), timeout, fresh=request.fresh)
        else:
            opening, rest = request_body(self._dialect.written(request), self.model)
            answer = await client.post(operation, opening, timeout, rest, fresh=request.fresh)
        status, data, header = answer
        if not 200 <= status < 300:
            raise error_from_status(
                status, data, header, self.label, secrets=self._secrets, url=self.url(operation), model=self.model
            )
        try:
            body = orjson.loads(data)
        except ValueError as error:
            data = bytes(data).removeprefix(BOM_UTF8)
            try:
                body = loads_leniently(data)  # it is paid for
            except ValueError:
                if data.lstrip().startswith((b"data:", b"event:")):
                    raise self._streamed(request, answer, edition) from None
                body = _transcript(request, answer)
                if body is None:
                    raise self._malformed(f"not JSON ({error})", answer) from None
        if not isinstance(body, dict):
            body = _transcript(request, answer, body)
            if body is None:
                raise self._malformed("not a JSON object", answer)
        if ("error" in body and body["error"] and _is_whole(operation, body)) or (
            _ANSWER[operation] not in body and is_error(body)
        ):
            raise error_in_body(
                status, body, header, self.label, secrets=self._secrets, url=self.url(operation), model=self.model
            )
        if self._proxied is not False:
            self._take_cost(body, header)
        return Reply(status, body, header, data, self._secrets)

    async def models(self, timeout: float | None) -> Listed:
        """Ask which models the endpoint serves (``GET /models``), with the deployment's own headers and key.

        Raises
        ------
        RequestError
            No answer came, or its status is an error.
        """
        client = self._client or self._connect()
        url = self._url("/models")
        status, data, header = await client.get(url, timeout)
        if not 200 <= status < 300:
            raise error_from_status(status, data, header, self.label, secrets=self._secrets, url=url, model=self.model)
        try:
            found = loads_leniently(bytes(data)).get("data")
            entries = [each for each in found if isinstance(each.get("id"), str)]
        except (ValueError, AttributeError, TypeError):
            return Listed(None, header("date"))
        ids = tuple(redact(each["id"], *self._secrets) for each in entries)
        return Listed(ids, header("date"), any("*" in each or each == _ANY_MODEL for each in ids))

    def access(self) -> Access:
        """How its endpoint is reached, for its files and batches. Raises ``AuthenticationError`` where a key lacks."""
        self._check_open()
        headers = self._all_headers()
        return Access(self.label, self.model, self._url, headers, self._secrets, self._ca_bundle, self._dialect.written)

    async def aclose(self) -> None:
        """Close every connection. A request in flight fails."""
        self._closed = True
        if self._client is not None:
            await self._client.aclose()

    def url(self, operation: Operation) -> str:
        """Where requests of this kind go."""
        return self._url(_PATHS[operation])

    def _url(self, path: str) -> str:
        base, _, query = self.api_base.partition("?")
        return base.rstrip("/") + path + (f"?{query}" if query else "")

    def shown_url(self, operation: Operation) -> str:
        """The same to be shown: without a query, a user and what came from a variable."""
        return redact(self.url(operation).partition("?")[0], *self._secrets)

    def _connect(self) -> HttpClient:
        self._check_open()
        urls = {operation: self.url(operation) for operation in _PATHS}
        self._client = HttpClient(self.label, self.api_base, urls, self._all_headers(), self._ca_bundle, self._most)
        return self._client

    def _check_open(self) -> None:
        if self._missing_key:
            raise AuthenticationError(
                f"{self.label}: no key for {origin(self.api_base)}, nothing was sent: set {self._missing_key}, or name "
                "another variable in the deployment's api_key_env",
                deployment=self.label,
            )
        if self._closed:
            raise client_closed(self.label)

    def _all_headers(self) -> dict[str, str]:
        headers = {
            "accept": "application/json",
            "content-type": "application/json",
            "user-agent": f"infermesh/{_version()}",
        }
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        headers.update((name.lower(), value) for name, value in self._headers.items())
        return headers

    def _form(self, request: Request) -> Form:
        if request.audio is None:
            raise InputError("a transcription request without a clip", deployment=self.label)
        fields = {"model": [self.model]}
        for name, value in self._dialect.transcription(request.payload).items():
            if isinstance(value, list | tuple):
                fields[f"{name}[]"] = [_form_text(one) for one in value]
            else:
                fields[name] = [_form_text(value)]
        return form(fields, request.audio)

    def _take_cost(self, body: dict[str, Any], header: Callable[[str], str | None]) -> None:
        """Put what LiteLLM's proxy says in a header that the answer cost where OpenRouter says it, in the usage.

        Its documentation, "Response headers", has both names.
        """
        cost = header("x-litellm-response-cost")
        if self._proxied is None:
            self._proxied = cost is not None or header("x-litellm-call-id") is not None
        usage = body.get("usage")
        if cost is not None and isinstance(usage, dict) and usage.get("cost") is None:
            with suppress(ValueError):  # it may say None
                usage["cost"] = float(cost)

    def _streamed(self, request: Request, answer: Response, edition: int) -> MalformedResponseError:
        error = self._malformed("a stream of events, which was not asked for (`stream: false` asks for none)", answer)
        error.rewritten = self._dialect.learn_not_to_stream(request, edition)
        return error

    def _malformed(self, what: str, answer: Response) -> MalformedResponseError:
        shown = redact(" ".join(answer.data[:2000].decode("utf-8", "replace").split()), *self._secrets)[:200]
        return MalformedResponseError(
            f"{self.label}: the answer of {origin(self.api_base)} is {what}: {shown!r}. Check that api_base is an "
            "OpenAI-compatible endpoint",
            status_code=answer.status,
            deployment=self.label,
            request_id=redact(answer.header("x-request-id") or "", *self._secrets) or None,
        )


def _transcript(request: Request, answer: Response, decoded: Any = None) -> dict[str, Any] | None:
    """A transcript that came as text, or as JSON's text, whatever was asked for; ``None``: it is none."""
    if request.operation != "transcription":
        return None
    if isinstance(decoded, str):
        return {"text": decoded}
    kind = answer.header("content-type") or ""
    if request.payload.get("response_format") in _TEXT_FORMATS or (
        decoded is None and answer.data and kind.startswith("text/plain")
    ):
        return {"text": answer.data.decode("utf-8-sig", "replace").strip("\r\n")}
    return None


def _is_whole(operation: Operation, body: dict[str, Any]) -> bool:
    """Whether the body itself is the error. A response of the Responses API has a status of its own beside it."""
    return operation != "responses" or "status" not in body


def _form_text(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value).decode()


@lru_cache(maxsize=1)
def _version() -> str:
    try:
        return version("infermesh")
    except PackageNotFoundError:
        return "0"
