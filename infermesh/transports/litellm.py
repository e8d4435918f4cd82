"""Ask through LiteLLM every provider that does not speak OpenAI's wire format.

LiteLLM takes seconds and some 180 MB to import, so the first request imports it, in a thread. Its answers are turned
into dicts of OpenAI's shape and its exceptions into the error tree: no other layer sees which transport served a
request. Each request goes out once, since dispatch retries. No parameter is dropped: one that the provider does not
take is an :class:`~infermesh.errors.InputError`, and nothing is sent.

Where it differs from the native transport
------------------------------------------
- A success whose body is an error gets a status that LiteLLM made up (400, 422), and so the class of that status.
- ``max_tokens`` below 16 is raised to 16 for the Responses endpoint.
- Rate-limit headers are missing for some providers and operations (``hosted_vllm`` embeddings, for one), as is the
  ``x-request-id`` of an answer without an id of its own.
- ``response_format=text`` (or srt, vtt) transcripts keep the line break at their end.
- LiteLLM returns zeros for an answer without usage. They are reported as unknown, as the native transport does, so the
  usage of an answer that really took no tokens is unknown too.
- ``raw_response`` is LiteLLM's reading of the answer, not the body as it came.
- A kept connection that the server ends under a request costs a retry: LiteLLM does not tell it from a new one.
- Interim answers (1xx) without end are read, and kept in memory, until the timeout.
- It serves two orders of magnitude fewer requests a second.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import logging
import os
import re
import sys
import threading
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from socket import gaierror
from typing import Any, ClassVar

from infermesh.config.deployment import MAX_RESPONSE_BYTES
from infermesh.errors import (
    APIConnectionError,
    AuthenticationError,
    InputError,
    MalformedResponseError,
    RequestError,
)
from infermesh.redaction import names_secret, origin, redact, secret_values, url_secrets
from infermesh.transports.dialect import Dialect
from infermesh.transports.errors import error_from_status, error_in_body, timed_out
from infermesh.transports.http.trust import VARIABLES
from infermesh.transports.native import Access
from infermesh.transports.provider_table import split_model
from infermesh.types import Operation, Reply, Request
from infermesh.wire.error_bodies import is_error

__all__ = ["LiteLLMTransport", "answer_body", "import_litellm"]

logger = logging.getLogger("infermesh")

_FUNCTIONS = {
    "chat_completion": "acompletion",
    "text_completion": "atext_completion",
    "responses": "aresponses",
    "embedding": "aembedding",
    "transcription": "atranscription",
}
# Providers of OpenAI's wire: the transcription endpoint of others may not know `response_format`, and LiteLLM gives
# their answers ids of its own.
_OPENAI_WIRE = frozenset(("openai", "azure", "groq", "hosted_vllm", "custom_openai", "openai_like"))
_NO_BASE = re.compile(r"must provide one of the .?(base_url|azure_endpoint)", re.IGNORECASE)
_INVENTED_ID = re.compile(r"chatcmpl-[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$")
# LiteLLM replaces a timeout of None by its own default.
_FOREVER_S = 365 * 86_400.0

_MALFORMED = re.compile(
    r"unable to get json response|invalid response|provider returned|received response is not|no 'choices'",
    re.IGNORECASE,
)
# What LiteLLM's own code raises at an answer of another shape.
_READING_ERRORS = (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError)
_PREFIXES = re.compile(r"^(?:litellm\.)?(?:\w+(?:Error|Exception|Timeout)(?::| -) )+")

_LOADING = threading.Lock()  # several requests may be the first, each in a thread


class LiteLLMTransport:
    """One deployment's provider, asked through LiteLLM.

    Parameters
    ----------
    label
        The deployment's label, for messages.
    model
        LiteLLM's name of the model, such as ``anthropic/claude-…``.
    api_base
        Base URL. ``None``: the provider's own.
    api_key
        ``None``: LiteLLM looks at the provider's environment variables.
    headers
        Further headers.
    secrets
        Values of headers that must not appear in a message, whatever the header's name.
    dialect
        What it takes under other names; by default what the model's name tells.
    ca_bundle
        A file with authorities for TLS, in place of the system's.
    max_response_bytes
        The most bytes that an answer may have, decoded.
    """

    _open: ClassVar[int] = 0

    def __init__(
        self,
        *,
        label: str,
        model: str,
        api_base: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        secrets: Sequence[str] = (),
        dialect: Dialect | None = None,
        ca_bundle: str | None = None,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        self.label = label
        self.model = model
        self.api_base = api_base
        self._key = api_key.strip() if api_key else None
        self._headers = dict(headers or {})
        self._ca_bundle = ca_bundle
        self._dialect = dialect or Dialect(label, *split_model(model))
        self._common: dict[str, Any] = {"model": model, "num_retries": 0, "max_retries": 0}
        if api_base is not None:
            self._common["api_base"] = api_base
        if self._key is not None:
            self._common["api_key"] = self._key
        if headers:
            self._common["extra_headers"] = dict(headers)
        if ca_bundle is not None:
            self._common["ssl_verify"] = os.path.expanduser(ca_bundle)
        self._secrets = tuple(filter(None, (self._key, *secret_values(headers or {}), *secrets)))
        self._most = max_response_bytes
        self._invents_ids = model.partition("/")[0] not in _OPENAI_WIRE
        self._litellm: Any = None
        self._closed = False

    async def send(self, request: Request, timeout: float | None) -> Reply:
        """Send one request once. See :class:`~infermesh.types.Transport`."""
        edition = self._dialect.edition
        try:
            return await self._send(request, timeout)
        except RequestError as error:
            if (learned := self._dialect.learn(request, error, edition)) is not error:
                raise learned from None
            raise

    async def _send(self, request: Request, timeout: float | None) -> Reply:
        self._check_open()
        litellm = self._litellm
        if litellm is None:
            litellm = await self._load()
        call = getattr(litellm, _FUNCTIONS[request.operation])
        arguments = self.arguments(request)
        arguments["timeout"] = _FOREVER_S if timeout is None else timeout
        from infermesh.transports.litellm_clients import BOUND, Bound

        BOUND.set(Bound(self._most, self.label, self._place))
        try:
            # LiteLLM's own timeout is for each read, this one for the whole request.
            async with asyncio.timeout(timeout):
                answer = await call(**arguments)
        except Exception as error:
            # `from None`: the foreign messages may quote keys.
            raise self.failure(error, timeout) from None
        body, header = answer_body(request.operation, answer), _header_lookup(answer)
        if self._invents_ids and _INVENTED_ID.match(str(body.get("id"))):
            body["id"] = header("request-id") or header("x-request-id")  # what the provider can look up
        return Reply(200, body, header, secrets=self._secrets)

    def access(
        self,
        base_url: str,
        base_vars: Sequence[str],
        sign: Callable[[Mapping[str, str]], Mapping[str, str]],
        environ: Mapping[str, str] = os.environ,
        *,
        ends: Sequence[str] = ("/v1/messages", "/v1"),
    ) -> Access:
        """How its endpoint is reached for what LiteLLM has no calls for, such as batches. LiteLLM is not loaded.

        Parameters
        ----------
        base_url
            Where it is, unless ``api_base`` or the first of ``base_vars`` that is set says another.
        sign
            Makes the headers with the key, of the variables. A key of the deployment comes as ``""``.
        ends
            What a base URL may end in that paths have themselves.

        Raises
        ------
        AuthenticationError
            ``sign`` made no header, and there is none of the deployment's own.
        """
        self._check_open()
        base = self.api_base or next(filter(None, map(environ.get, base_vars)), base_url)
        signed = sign({**environ, "": self._key} if self._key else environ)
        headers = {**signed, **{name.lower(): value for name, value in self._headers.items()}}
        if not signed and not any(map(names_secret, headers)):
            raise AuthenticationError(
                f"{self.label}: no key for {origin(base)}, nothing was sent: set the provider's variable, or name "
                "another one in the deployment's api_key_env",
                deployment=self.label,
            )
        secrets = tuple({*self._secrets, *secret_values(headers), *url_secrets(base)})
        written = self._dialect.written
        return Access(
            self.label, self.model, partial(_joined, base, tuple(ends)), headers, secrets, self._ca_bundle, written
        )

    async def missing_variables(self) -> list[str]:
        """The environment variables that LiteLLM looks for in vain; none where the key is known. Nothing is sent."""
        if self._common.get("api_key") or self.api_base:
            return []
        litellm = await self._load()
        return [str(name) for name in litellm.validate_environment(self.model)["missing_keys"]]

    async def aclose(self) -> None:
        """Close LiteLLM's connections with the last transport that uses them: it has one pool for all."""
        if self._closed:
            return
        self._closed = True
        litellm, self._litellm = self._litellm, None
        if litellm is None:
            return
        LiteLLMTransport._open -= 1
        if not LiteLLMTransport._open:
            session, litellm.aclient_session = litellm.aclient_session, None
            if session is not None:
                await session.aclose()
            await litellm.close_litellm_async_clients()
            # LiteLLM keeps the closed clients and would use them again.
            litellm.in_memory_llm_clients_cache.flush_cache()
            litellm.base_llm_aiohttp_handler.client_session = None

    def _check_open(self) -> None:
        if self._closed:
            raise APIConnectionError(f"{self.label}: the client is closed", deployment=self.label, retryable=False)

    @property
    def _place(self) -> str:
        return origin(self.api_base) if self.api_base else self.model

    async def _load(self) -> Any:
        litellm = await asyncio.to_thread(import_litellm, f"{self.label}: LiteLLM is loaded for {self.model}")
        self._check_open()  # again: loading takes seconds, and what is opened now would be closed by nobody
        if self._litellm is None:
            self._litellm = litellm
            LiteLLMTransport._open += 1
            if litellm.aclient_session is None:
                # One HTTP client for all. Without it LiteLLM makes one for each text completion and closes none.
                from infermesh.transports.litellm_clients import guarded

                litellm.aclient_session = guarded(litellm.OpenAIChatCompletion.get_async_http_client())
        return litellm

    def arguments(self, request: Request) -> dict[str, Any]:
        """What LiteLLM is asked for a request."""
        arguments = {**self._dialect.written(request).payload, **self._common}
        if request.operation == "transcription":
            if request.audio is None:
                raise InputError("a transcription request without a clip", deployment=self.label)
            arguments["file"] = (request.audio.filename, request.audio.data)
            if self.model.partition("/")[0] in _OPENAI_WIRE:
                arguments |= self._dialect.transcription(request.payload)
        # LiteLLM looks for MCP tools among the tools, with a package that it does not install.
        elif "tools" in arguments and not _has_mcp():
            arguments["_skip_mcp_handler"] = True
        return arguments

    def failure(self, error: Exception, timeout: float | None) -> RequestError:
        """Translate LiteLLM's exception by the one that it wraps. Its own status may be made up: 500 for a reset."""
        import httpx

        chain = _chain(error)
        ours = next((link for link in chain if isinstance(link, RequestError)), None)
        if ours is not None:  # of litellm_clients
            return ours
        secrets = (*self._secrets, *secret_values(os.environ))
        if (why := _refused_here(error, chain)) is not None:
            return InputError(f"{self.label}: nothing was sent: {redact(why, *secrets)[:500]}", deployment=self.label)
        for link in chain:
            if isinstance(link, httpx.HTTPStatusError):
                response = link.response
                return error_from_status(
                    response.status_code,
                    _content(response, error),
                    response.headers.get,
                    self.label,
                    secrets=secrets,
                    url=str(response.url),
                    model=self.model,
                )
        if (not_http := _not_http(chain)) is not None:
            return MalformedResponseError(
                f"{self.label}: the answer of {self._place} is not HTTP ({redact(not_http, *secrets)}): check that "
                "api_base has the right scheme and port, and any proxy between here and the server",
                deployment=self.label,
            )
        never_made = httpx.ConnectError | httpx.ConnectTimeout | gaierror | ConnectionRefusedError
        unconnected = any(isinstance(link, never_made) for link in chain)
        if not unconnected and any(isinstance(link, TimeoutError | httpx.TimeoutException) for link in chain):
            return timed_out(self.label, timeout)
        said = redact(_PREFIXES.sub("", str(error)).partition("Traceback (most recent")[0].strip(), *secrets)[:500]
        network = [link for link in chain if isinstance(link, httpx.TransportError | OSError)]
        if network:
            why = str(network[-1])
            if not why or why.startswith("<RawResponseMessage"):  # aiohttp's, with all headers in it
                why = type(network[-1]).__name__
            cause = redact(why, *secrets)[:200]
            failed = APIConnectionError(
                f"{self.label}: {self._place}: {cause}: check that the server is running, api_base and the network",
                deployment=self.label,
            )
            failed.connected = not unconnected
            return failed
        if (hidden := _quoted_error(said)) is not None:  # a success with an error in it
            return error_in_body(200, hidden, _nothing, self.label, secrets=secrets, model=self.model)
        status = getattr(error, "status_code", None)
        if any(isinstance(link, _READING_ERRORS) for link in chain) or _MALFORMED.search(str(error)):
            return MalformedResponseError(
                f"{self.label}: the answer is not the protocol's: {said}. Check that api_base is the "
                "provider's endpoint",
                status_code=200,
                deployment=self.label,
            )
        if "api_key" in said and status in (None, 401, 500):
            return AuthenticationError(
                f"{self.label}: no key: {said}: set the provider's variable, or api_key_env", deployment=self.label
            )
        if isinstance(status, int) and 400 <= status < 500:  # LiteLLM refused it itself
            return error_from_status(status, said, _nothing, self.label, secrets=secrets, model=self.model)
        return APIConnectionError(f"{self.label}: LiteLLM failed: {said}", deployment=self.label)


def import_litellm(why: str = "LiteLLM is loaded") -> Any:
    """Import and set up LiteLLM once, for all the requests that come while it is being loaded."""
    with _LOADING:
        if "litellm" not in sys.modules:
            logger.warning("%s, which takes some seconds", why)
        return _set_up()


@cache
def _set_up() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it downloads its price list at import
    if (bundle := next(filter(None, map(os.environ.get, VARIABLES)), None)) is not None:
        os.environ.setdefault("SSL_CERT_FILE", bundle)  # the one that it reads
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")  # else it loads a .env file from the working directory
    import litellm as module

    litellm: Any = module
    litellm.suppress_debug_info = True
    litellm.drop_params = False
    litellm.DEFAULT_MAX_RETRIES = 0  # OpenAI embeddings take this where max_retries is 0
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from infermesh.transports.litellm_clients import guard_clients

    guard_clients()
    return litellm


@cache
def _has_mcp() -> bool:
    return importlib.util.find_spec("mcp") is not None


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain and len(chain) < 12:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _refused_here(error: Exception, chain: Sequence[BaseException]) -> str | None:
    """Why LiteLLM itself refused the request, and what to do; ``None`` where the provider may have seen it."""
    missing = next((link for link in chain if isinstance(link, ImportError)), None)
    if missing is not None:
        package = "'litellm[google]'" if (missing.name or "").startswith("google") else missing.name or "…"
        return f"LiteLLM lacks a package for this provider: {missing}. Install it: pip install {package}"
    if _NO_BASE.search(str(error)):
        return "this provider has no URL of its own: set the deployment's api_base"
    if type(error).__name__ == "UnsupportedParamsError":
        said = _PREFIXES.sub("", str(error)).partition(" To drop these")[0].partition("If you want to use")[0].strip()
        return (
            f"{said.rstrip('. ')}. With `drop_params: true` in params LiteLLM leaves it out; with "
            "`allowed_openai_params: [NAME]` it is sent all the same"
        )
    return None


def _not_http(chain: Sequence[BaseException]) -> str | None:
    """What is wrong with an answer that is not HTTP; ``None`` where it is, or only ended too early."""
    from aiohttp import ClientPayloadError
    from aiohttp.http_exceptions import HttpProcessingError

    found = [link for link in chain if isinstance(link, HttpProcessingError)]
    if not found or any(isinstance(link, ClientPayloadError) for link in chain):
        return None
    return " ".join(str(found[-1].message).split())[:200]


def _joined(base: str, ends: tuple[str, ...], path: str) -> str:
    """A path behind a base URL, which may have a query, and may end in what the path has itself."""
    base, _, query = base.partition("?")
    base = base.rstrip("/")
    for end in ends:
        base = base.removesuffix(end)
    return base + path + (f"?{query}" if query else "")


def _content(response: Any, error: Exception) -> Any:
    try:
        content = response.content
    except Exception:  # the body was streamed and is gone
        content = b""
    return content or _PREFIXES.sub("", str(error))


def _quoted_error(said: str) -> dict[str, Any] | None:
    """The error object that LiteLLM puts into its message as Python writes it, where it is one that is known."""
    try:
        found = ast.literal_eval(said) if said.startswith("{") else None
    except (ValueError, SyntaxError):
        return None
    return found if isinstance(found, dict) and is_error(found) else None


def _nothing(name: str) -> None:
    return None


def answer_body(operation: Operation, answer: Any) -> dict[str, Any]:
    """LiteLLM's answer as a dict of OpenAI's shape, as the native transport decodes it."""
    if isinstance(answer, str):  # a transcript asked for as text
        return {"text": answer}
    body: dict[str, Any] = answer if isinstance(answer, dict) else answer.model_dump(warnings=False)
    usage = body.get("usage")
    if isinstance(usage, dict) and not any(value for value in usage.values() if isinstance(value, int)):
        body["usage"] = None
    if operation == "responses" and isinstance(body.get("id"), str):
        body["id"] = _provider_id(body["id"])
    return body


def _provider_id(response_id: str) -> str:
    """LiteLLM packs its own routing into a response's id: ``resp_`` + base64 of ``litellm:…;response_id:<id>``."""
    try:
        packed = b64decode(response_id.removeprefix("resp_"), validate=True).decode()
    except ValueError:
        return response_id
    return packed.rpartition("response_id:")[2] if packed.startswith("litellm:") else response_id


def _header_lookup(answer: Any) -> Any:
    hidden = getattr(answer, "_hidden_params", None)
    found: dict[str, str] = {}
    for source in (
        getattr(answer, "_response_headers", None),
        _field(hidden, "headers"),
        _field(hidden, "additional_headers"),
    ):
        if isinstance(source, Mapping):
            found.update((str(k).lower().removeprefix("llm_provider-"), str(v)) for k, v in source.items())

    def header(name: str) -> str | None:
        return found.get(name.lower())

    return header


def _field(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
