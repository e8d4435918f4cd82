"""The service's routes: a request comes in, an answer or a fault goes out."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import orjson
from aiohttp import BodyPartReader, web

from infermesh.simulator.answers import Answer, Answers
from infermesh.simulator.batches.anthropic_api import AnthropicBatches
from infermesh.simulator.batches.batch import Batches
from infermesh.simulator.batches.files import FileStore
from infermesh.simulator.batches.gemini_api import GeminiBatches
from infermesh.simulator.batches.openai_api import OpenAIBatches
from infermesh.simulator.errors import ApiError, HangUp, anthropic_error, google_error
from infermesh.simulator.quota import Quota
from infermesh.simulator.routes import Call, decoded
from infermesh.simulator.service import FaultPlan, Service
from infermesh.simulator.settings import Endpoint, SimulatorSettings
from infermesh.simulator.stats import Stats, Ticket, fingerprint

__all__ = ["SimulatorApp"]

_PATHS: dict[Endpoint, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
    "transcriptions": "/v1/audio/transcriptions",
    "messages": "/v1/messages",
    "generate_content": "/{version:v1|v1beta}/models/{model}:generateContent",
}
_JSON = "application/json"
_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
_GOOGLE_KEY = "x-goog-api-key"
_GOOGLES = ("generate_content", "gemini_batches")


class SimulatorApp:
    """One simulated service.

    Parameters
    ----------
    settings
        What it does.

    Notes
    -----
    Make it inside a running event loop.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self.stats = Stats()
        self._service = Service(settings)
        self._faults = FaultPlan(settings.faults, settings.seed)
        self._quota = Quota(settings.rpm, settings.tpm)
        answers = Answers(settings)
        self._answers: dict[Endpoint, Callable[[Any, bool], Answer]] = {
            "chat": answers.chat,
            "completions": answers.completions,
            "responses": answers.responses,
            "embeddings": answers.embeddings,
            "transcriptions": answers.transcriptions,
            "messages": answers.messages,
            "generate_content": answers.generate_content,
        }
        self._batches = Batches(settings, self.stats.batches, FileStore())
        self._calls = [
            *GeminiBatches(self._batches, answers).routes(),  # before OpenAI's, whose paths some of these match
            *OpenAIBatches(self._batches, answers).routes(),
            *AnthropicBatches(self._batches, answers).routes(),
        ]
        # A random prefix, so that the request ids of two simulators differ.
        self._id_prefix = f"req_{os.urandom(5).hex()}"
        self._serial = itertools.count(1)

    def build(self) -> web.Application:
        """Return the application that serves it."""
        app = web.Application(client_max_size=self.settings.max_body_bytes)
        for endpoint, path in _PATHS.items():
            app.router.add_post(path, partial(self._handle, endpoint))
        served: dict[tuple[str, str], list[_Handler]] = {}
        for method, path, endpoint, name, call in self._calls:
            served.setdefault((method, path), []).append(partial(self._manage, endpoint, name, call))
        for (method, path), handlers in served.items():
            handler = handlers[0] if len(handlers) == 1 else partial(_by_key, handlers[0], handlers[1])
            app.router.add_route(method, path, handler)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/stats", self._report)
        app.router.add_post("/stats/reset", self._reset)
        app.router.add_get("/health", self._health)
        app.router.add_route("*", "/{path:.*}", self._unknown)
        app.on_cleanup.append(self._close)
        return app

    async def _close(self, app: web.Application) -> None:
        await self._batches.close()
        self._batches.store.close()

    async def _handle(self, endpoint: Endpoint, request: web.Request) -> web.StreamResponse:
        ticket = self.stats.ticket(endpoint)
        try:
            return await self._respond(endpoint, request, ticket)
        except ApiError as error:
            return self._refuse(endpoint, error, ticket)
        finally:
            ticket.close()

    async def _manage(self, endpoint: Endpoint, name: str, call: Call, request: web.Request) -> web.StreamResponse:
        """Answer a call about files or batches."""
        ticket = self.stats.ticket(endpoint)
        self.stats.batches.calls[f"{endpoint}.{name}"] += 1
        try:
            fault = self._faults.draw(endpoint)
            self._authorize(request)
            if (ended := await self._meet(fault, request, ticket)) is not None:
                return ended
            if fault == "server_error":
                ticket.fault(fault)
                raise ApiError(500, "The server had an error while processing your request.", kind="server_error")
            answer = await call(request)
            if isinstance(answer, bytes):
                return await self._finish(request, Answer(answer, 0), {}, fault, ticket)
            if not answer.prepared:
                answer.headers.update(self._headers(answer.headers["Content-Type"], {}))
            ticket.settle(answer.status)
            return answer
        except ApiError as error:
            return self._refuse(endpoint, error, ticket)
        except HangUp:
            ticket.settle(None)
            return self._hang_up(request)
        except web.HTTPRequestEntityTooLarge:
            too_large = ApiError(413, "The request body is too large.", code="request_too_large")
            return self._refuse(endpoint, too_large, ticket)
        finally:
            ticket.close()

    def _refuse(self, endpoint: Endpoint, error: ApiError, ticket: Ticket) -> web.Response:
        if endpoint in _GOOGLES:
            status, written = google_error(error)
            ticket.settle(status)
            return self._send(orjson.dumps(written), status, headers=error.headers)
        ticket.settle(error.status)
        anthropic = endpoint in ("messages", "message_batches")
        body = orjson.dumps(anthropic_error(error)) if anthropic else error.body()
        return self._send(body, error.status, headers=error.headers)

    async def _meet(self, fault: str | None, request: web.Request, ticket: Ticket) -> web.Response | None:
        """Let a fault happen that comes before any work. None: there was none."""
        if fault in ("hang", "drop"):
            ticket.fault(fault)
            if fault == "hang":
                await self._hang()
            ticket.settle(None)
            return self._hang_up(request)
        if fault in ("rate_limit", "unavailable"):
            ticket.fault(fault)
            raise self._refusal(fault)
        return None

    async def _respond(self, endpoint: Endpoint, request: web.Request, ticket: Ticket) -> web.StreamResponse:
        fault = self._faults.draw(endpoint)
        data = await self._read(endpoint, request)
        self._authorize(request)
        if (ended := await self._meet(fault, request, ticket)) is not None:
            return ended
        if not isinstance(data, dict):
            data = decoded(data)
        if "model" in request.match_info:  # Gemini's is in the path
            data = {**data, "model": request.match_info["model"]}
        answer = self._answers[endpoint](data, fault == "invalid_json_content")
        headers = self._quota.admit(answer.total_tokens)
        ticket.fingerprint = fingerprint(data)
        if answer.spoiled:
            ticket.fault("invalid_json_content")
        async with self._service.place():
            await self._service.think(endpoint)
            if fault == "server_error":
                ticket.fault(fault)
                raise ApiError(500, "The server had an error while processing your request.", kind="server_error")
            if answer.events is not None:
                return await self._stream(request, answer, headers, fault, ticket)
            await self._service.decode(answer.decode_tokens)
        return await self._finish(request, answer, headers, fault, ticket)

    async def _finish(
        self, request: web.Request, answer: Answer, headers: dict[str, str], fault: str | None, ticket: Ticket
    ) -> web.StreamResponse:
        body = answer.body
        if fault == "malformed":
            ticket.fault(fault)
            body = b'{"id": "malformed", "choices": [{' + body[:64]
        if fault != "truncate":
            ticket.settle(200)
            return self._send(body, 200, answer.content_type, headers)
        ticket.fault(fault)
        ticket.settle(200)
        response = web.StreamResponse(headers=self._headers(answer.content_type, headers))
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        self._hang_up(request)
        return response

    async def _stream(
        self, request: web.Request, answer: Answer, headers: dict[str, str], fault: str | None, ticket: Ticket
    ) -> web.StreamResponse:
        events = answer.events or []
        if fault in ("truncate", "malformed"):
            ticket.fault(fault)
        if fault == "truncate":
            events = events[: max(1, len(events) // 2)]
        elif fault == "malformed":
            events = [(b'data: {"choices": [{\n\n', 0), *events[-1:]]
        response = web.StreamResponse(headers=self._headers("text/event-stream", headers))
        await response.prepare(request)
        *earlier, (last, last_tokens) = events
        if self.settings.tokens_per_second is None:
            # No time passes between them, so they go in one packet.
            earlier = [(b"".join(event for event, _ in earlier), 0)]
        for event, tokens in earlier:
            await self._service.decode(tokens)
            await response.write(event)
        await self._service.decode(last_tokens)
        ticket.settle(200)
        await response.write(last)
        if fault == "truncate":
            self._hang_up(request)
        else:
            await response.write_eof()
        return response

    async def _read(self, endpoint: Endpoint, request: web.Request) -> bytes | dict[str, Any]:
        """Return the body, decoded only if it is a form."""
        try:
            if endpoint != "transcriptions":
                return await request.read()
            return await self._form(request)
        except web.HTTPRequestEntityTooLarge:
            raise ApiError(413, "The request body is too large.", code="request_too_large") from None

    async def _form(self, request: web.Request) -> dict[str, Any]:
        if request.content_type != "multipart/form-data":
            raise ApiError(400, "The request must be multipart/form-data.", code="invalid_content_type")
        fields: dict[str, Any] = {}
        size = 0
        try:
            async for part in await request.multipart():
                if not isinstance(part, BodyPartReader) or part.name is None:
                    continue
                value = bytes(await part.read())
                size += len(value)
                if size > self.settings.max_body_bytes:
                    raise ApiError(413, "The request body is too large.", code="request_too_large")
                fields[part.name] = value if part.name == "file" else value.decode()
        except (ValueError, AssertionError) as error:
            raise ApiError(400, f"The form could not be read: {error}.", code="invalid_form") from None
        return fields

    def _authorize(self, request: web.Request) -> None:
        key = self.settings.api_key
        if request.path.startswith("/upload/") and "upload_id" in request.query:  # the id of what was begun is enough
            return
        # OpenAI's, Anthropic's and Google's.
        given = [request.headers.get(name) for name in ("Authorization", "x-api-key", _GOOGLE_KEY)]
        if key is not None and given[0] != f"Bearer {key}" and key not in given[1:]:
            message = "No API key provided." if not any(given) else "Incorrect API key provided."
            raise ApiError(401, message, kind="authentication_error", code="invalid_api_key")

    def _refusal(self, fault: str) -> ApiError:
        wait = self.settings.faults.retry_after_s
        headers = {} if wait is None else {"retry-after": f"{wait:g}"}
        if fault == "rate_limit":
            return ApiError(429, "Rate limit reached.", kind="requests", code="rate_limit_exceeded", headers=headers)
        return ApiError(503, "The engine is currently overloaded.", kind="service_unavailable", headers=headers)

    async def _hang(self) -> None:
        # When the client leaves, aiohttp cancels the handler here.
        seconds = self.settings.faults.hang_s
        await (asyncio.sleep(seconds) if seconds is not None else asyncio.Event().wait())

    @staticmethod
    def _hang_up(request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.close()
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        try:
            self._authorize(request)
        except ApiError as error:
            return self._send(error.body(), error.status)
        names = self.settings.models or ["simulator"]
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "infermesh"} for name in names]
        return self._send(orjson.dumps({"object": "list", "data": models}))

    async def _report(self, request: web.Request) -> web.Response:
        return self._send(
            orjson.dumps(self.stats.report(request.query.get("hashes") == "1", request.query.get("lines") == "1"))
        )

    async def _reset(self, request: web.Request) -> web.Response:
        self.stats.reset()
        return self._send(b"{}")

    async def _health(self, request: web.Request) -> web.Response:
        return self._send(b'{"status":"ok"}')

    async def _unknown(self, request: web.Request) -> web.Response:
        known = request.path in (*_PATHS.values(), "/v1/models", "/stats", "/stats/reset", "/health")
        message = f"Unknown request URL: {request.method} {request.path}."
        return self._send(ApiError(405 if known else 404, message, code="unknown_url").body(), 405 if known else 404)

    def _send(
        self, body: bytes, status: int = 200, content_type: str = _JSON, headers: dict[str, str] | None = None
    ) -> web.Response:
        return web.Response(body=body, status=status, headers=self._headers(content_type, headers or {}))

    def _headers(self, content_type: str, headers: dict[str, str]) -> dict[str, str]:
        own = {"Content-Type": content_type, "x-request-id": f"{self._id_prefix}{next(self._serial):012x}"}
        return own | headers


async def _by_key(google: _Handler, other: _Handler, request: web.Request) -> web.StreamResponse:
    """Answer a call at a path that two providers have: the header with the key tells whose it is."""
    return await (google if _GOOGLE_KEY in request.headers else other)(request)
