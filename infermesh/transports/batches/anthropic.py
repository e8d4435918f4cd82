"""Anthropic's Message Batches: the requests are the body of the create, and there are no files.

Sources: https://platform.claude.com/docs/en/build-with-claude/batch-processing and …/api/creating-message-batches; for
what they leave open (when counts fill, what is refused at once) captures of real traffic in OpenRouterTeam/docs,
``docs/batch-research/anthropic.md``; for a batch that is not found a second after it was made
anthropics/anthropic-sdk-python#1432.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from infermesh.errors import NotFoundError, RequestError
from infermesh.exact_json import loads
from infermesh.redaction import origin
from infermesh.transports.batches.http import BatchHttp, line_error, moment, seconds_to_wait
from infermesh.transports.batches.wire import BatchLimits, BatchStatus, LineResult, one_line
from infermesh.transports.litellm import LiteLLMTransport, import_litellm
from infermesh.transports.litellm_messages import LiteLLMMessages
from infermesh.types import Operation, Request

__all__ = ["AnthropicBatches"]

_URL = "https://api.anthropic.com"
_URL_VARIABLES = ("ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL")  # LiteLLM's, in its order
_PATH = "/v1/messages/batches"
_VERSION = "2023-06-01"
_BETA = "anthropic-beta"
# https://platform.claude.com/docs/en/api/errors: which status goes with which type. A line has the type alone.
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_OPENING, _CLOSING = b'{"requests":[', b"]}"
_BETAS = b'{"betas":['  # how a line begins whose request needs them
_BLOCK = 1 << 18
_EARLIER_S = 60.0  # what the provider's clock may differ from ours
_PAGE = "100"
_LOOK_AGAIN_S = 60.0


class AnthropicBatches:
    """See :class:`~infermesh.transports.batches.wire.BatchWire`.

    The limits are those of the guide, 100,000 requests and 256 MB, less what the body has around its lines. A batch of
    a tenth of them is as good: nothing is cheaper in a large one, and it is lost, found and fetched as a whole.

    A line is ``{"custom_id": …, "params": …}``. Where LiteLLM would send a request with the header ``anthropic-beta``,
    it begins with ``"betas": […]``: :meth:`create` takes that out, and sends all of them in the batch's own header, as
    lines have none. So it needs nothing but the file, in whatever process.

    Parameters
    ----------
    transport
        The deployment's own, by which live requests would go.

    Raises
    ------
    AuthenticationError
        There is no key.
    """

    limits = BatchLimits(100_000, 256_000_000 - 1000, frozenset[Operation](("chat_completion",)))
    uploads = False

    def __init__(self, transport: LiteLLMTransport) -> None:
        self._access = transport.access(_URL, _URL_VARIABLES, _signed)
        self._http = BatchHttp(self._access)
        self._messages = LiteLLMMessages(transport, self._access.model.removeprefix("anthropic/"))
        self._whose: dict[str, str | None] = {}  # ids of batches that are known → their token, where that is known
        self._unsure: dict[str, int] = {}  # tokens of which nobody can say whether there is a batch → its requests

    async def load(self) -> None:
        """Import LiteLLM, which takes seconds, in a thread."""
        await asyncio.to_thread(import_litellm, f"{self._access.label}: LiteLLM is loaded for {self._access.model}")

    def line(self, custom_id: str, request: Request) -> bytes:
        """A line of the file."""
        params, betas = self._messages.params(request)
        head = {**({"betas": betas} if betas else {}), "custom_id": custom_id}
        return one_line(b"".join((orjson.dumps(head)[:-1], b',"params":', params, b"}"))) + b"\n"

    def glance(self, line: bytes) -> LineResult:
        """Whose result a line is. An answer is not translated: for 100,000 of them that takes 13 seconds."""
        data = loads(line)
        if not isinstance(data, dict) or not isinstance(data.get("result"), dict):
            raise ValueError("not a result")
        custom_id, kind = data.get("custom_id"), data["result"].get("type")
        if not isinstance(custom_id, str):
            custom_id = None
        if kind in ("canceled", "expired"):
            return LineResult(custom_id, "unserved", None, {"code": kind, "message": f"the batch {kind} before it"})
        good = kind == "succeeded" and isinstance(data["result"].get("message"), dict)
        return LineResult(custom_id, "answered" if good else "failed", 200 if good else None, data["result"])

    def result(self, line: bytes, request: Request | None = None) -> LineResult:
        """A line of the results: its type says how it ended."""
        found = self.glance(line)
        if found.kind == "unserved":
            return found
        result = found.body
        if found.kind == "answered":
            try:
                return replace(found, body=self._messages.answer(result["message"], request))
            except ValueError as error:
                return LineResult(found.custom_id, "failed", None, {"error": {"message": str(error)}})
        failed = result.get("error")
        inner = failed.get("error") if isinstance(failed, dict) else None
        if not isinstance(inner, dict):
            return LineResult(found.custom_id, "failed", None, {"error": failed or result})
        return LineResult(found.custom_id, "failed", _STATUS.get(str(inner.get("type"))), {"error": inner})

    def error(self, result: LineResult) -> RequestError:
        """The error of a line that failed."""
        return line_error(self._access, result)

    async def upload(self, path: Path, name: str) -> str:
        """There are no files."""
        raise NotImplementedError("the lines go into the create")

    async def create(self, token: str, operation: Operation, file_id: str | None, path: Path) -> BatchStatus:
        """Make a batch of the lines in a file, of which a block is in memory at a time.

        A line that is refused at once (``requests.3.custom_id: …``) is a 400 for all of them. Of what ``line`` writes
        none is, unless it is too long: what is wrong with ``params`` stands in the results.
        """
        size, requests, betas = await asyncio.to_thread(_measured, path)
        headers = {"content-type": "application/json", "content-length": str(size)}
        if named := sorted({*betas, *_split(self._access.headers.get(_BETA, ""))}):
            headers[_BETA] = ",".join(named)
        self._unsure[token] = requests
        try:
            said = await self._http.call("POST", self._url(), headers=headers, body=lambda: _body(path))
        except RequestError as error:
            if error.status_code is not None and 400 <= error.status_code < 500:
                del self._unsure[token]
            raise
        return self._known(token, self._read(said.body, said.header))

    async def find(self, token: str, file_id: str | None, requests: int, since: float) -> BatchStatus | None:
        """Look for a batch of so many requests that was made since then.

        A batch holds no mark of ours. Its results do, in their ``custom_id``, once it has ended: one whose first
        result begins otherwise is not ours. While one is in progress it is taken for ours if no other comes into
        question, since one that is made again is paid again; should it be another's, its results have none of our
        lines, which then count as not served. Batches that this object has made, found or been asked about come into
        question for no other token. Where several do, or it may be that of another token as well, nobody can tell
        until one has ended: a ``RequestError`` that is worth another try then says so.
        """
        self._unsure[token] = requests
        open_ones: list[BatchStatus] = []
        async for each, header in self._listed(since - _EARLIER_S):
            status = self._read(each, header)
            if status.total != requests or self._whose.get(status.id, token) != token:
                continue
            own = await self._is_own(status, token) if status.phase == "ended" else None
            if own:
                return self._known(token, status)
            if own is None:
                open_ones.append(status)
        if not open_ones:
            del self._unsure[token]
            return None
        alone = list(self._unsure.values()).count(requests) == 1
        if alone and len(open_ones) == 1 and open_ones[0].phase == "working":
            return self._known(token, open_ones[0])
        raise RequestError(
            f"{self._access.label}: {' or '.join(each.id for each in open_ones)} may be the batch whose creation was "
            "not confirmed, which its results will tell: it is not made again before",
            deployment=self._access.label,
            retry_after=_LOOK_AGAIN_S,
            retryable=True,
        )

    async def status(self, batch_id: str) -> BatchStatus:
        """Ask how a batch is. A 404 is no proof that there is none: one was seen between two good answers."""
        self._whose.setdefault(batch_id, None)
        said = await self._http.call("GET", self._url(batch_id))
        return self._read(said.body, said.header)

    async def cancel(self, batch_id: str) -> None:
        """Ask it to end. 400 and 409 say that it has ended."""
        try:
            await self._http.call("POST", self._url(batch_id, "cancel"))
        except RequestError as error:
            if error.status_code not in (400, 409):
                raise

    async def download(self, status: BatchStatus, target: Path) -> None:
        """Append the results."""
        for each in status.files:
            await self._http.fetch(each, target)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    def _known(self, token: str, status: BatchStatus) -> BatchStatus:
        self._whose[status.id] = token
        self._unsure.pop(token, None)
        return status

    async def _listed(self, since: float) -> AsyncIterator[tuple[dict[str, Any], Callable[[str], str | None]]]:
        """The batches made since then, the newest first, as the listing promises."""
        params = {"limit": _PAGE}
        while True:
            said = await self._http.call("GET", self._url(), params=params)
            page = [each for each in said.body.get("data") or () if isinstance(each, dict)]
            for each in page:
                if (made := moment(each.get("created_at"))) is not None and made < since:
                    return
                yield each, said.header
            if not page or not said.body.get("has_more"):
                return
            params["after_id"] = str(said.body.get("last_id") or page[-1].get("id"))

    async def _is_own(self, status: BatchStatus, token: str) -> bool | None:
        """Whether its first result has our mark; ``None``: it cannot be read, which may be for the moment."""
        try:
            first = orjson.loads(await self._http.first_line(status.files[0]))
            return str(first["custom_id"]).startswith(f"{token[:8]}-")
        except (NotFoundError, ValueError, KeyError, TypeError):
            return None

    def _url(self, *parts: str) -> str:
        return self._access.url("/".join((_PATH, *parts)))

    def _read(self, body: Mapping[str, Any], header: Callable[[str], str | None]) -> BatchStatus:
        said, batch_id = str(body.get("processing_status") or ""), str(body.get("id"))
        counts = {name: count for name, count in (body.get("request_counts") or {}).items() if isinstance(count, int)}
        total = sum(counts.values())
        ended = said == "ended"
        return BatchStatus(
            batch_id,
            "ended" if ended else "working",
            said,
            total or None,
            total - counts.get("processing", 0) if total else None,
            (self._results(batch_id, body.get("results_url")),) if ended else (),
            (),
            seconds_to_wait(header),
        )

    def _results(self, batch_id: str, given: Any) -> str:
        """Where the results are. The key goes to no other place than the endpoint, whatever a batch says."""
        own = self._url(batch_id, "results")
        return given if isinstance(given, str) and origin(given) == origin(own) else own


def _signed(variables: Mapping[str, str]) -> dict[str, str]:
    """The headers with the key: Anthropic's own, and the bearer token of a login."""
    fixed = {"anthropic-version": _VERSION, "accept": "application/json"}
    if key := variables.get("") or variables.get("ANTHROPIC_API_KEY"):
        return {**fixed, "x-api-key": key}
    token = variables.get("ANTHROPIC_AUTH_TOKEN")
    return {**fixed, "authorization": f"Bearer {token}"} if token else {}


def _split(names: str) -> set[str]:
    return {each.strip() for each in names.split(",")} - {""}


def _unmarked(line: bytes) -> tuple[bytes, list[str]]:
    """A line of the body without its end, and the betas that it asks for."""
    line = line.rstrip(b"\r\n")
    if not line.startswith(_BETAS):
        return line, []
    end = line.index(b"]") + 1
    return b"{" + line[end + 1 :], orjson.loads(line[len(_BETAS) - 1 : end])


def _measured(path: Path) -> tuple[int, int, set[str]]:
    """How long the body is, how many requests it has, and the betas of all of them."""
    size, requests, betas = len(_OPENING) + len(_CLOSING), 0, set[str]()
    with path.open("rb") as file:
        for line in file:
            requests += 1
            written, named = _unmarked(line)
            size += len(written)
            betas.update(named)
    return size + max(requests - 1, 0), requests, betas


def _blocks(path: Path) -> Iterator[bytes]:
    block, between = bytearray(_OPENING), b""
    with path.open("rb") as file:
        for line in file:
            block += between + _unmarked(line)[0]
            between = b","
            if len(block) >= _BLOCK:
                yield bytes(block)
                block.clear()
    yield bytes(block + _CLOSING)


async def _body(path: Path) -> AsyncIterator[bytes]:
    """The body, read in a thread block by block."""
    blocks = _blocks(path)
    while (block := await asyncio.to_thread(next, blocks, None)) is not None:
        yield block
