"""OpenAI's files and batches, which Azure and Groq, and LiteLLM's proxy, have too.

Sources: https://platform.openai.com/docs/api-reference/batch and …/guides/batch; for what they leave open (where a line
that failed stands, the codes of a validation that failed) captures of real traffic in OpenRouterTeam/docs,
``docs/batch-research/openai.md``; for Azure MicrosoftDocs/azure-ai-docs, ``how-to/batch.md``, whose states are
capitalized, whose times are texts and whose error file may be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from infermesh.errors import RequestError
from infermesh.redaction import redact
from infermesh.transports.batches.http import BatchHttp, line_error, moment, seconds_to_wait
from infermesh.transports.batches.wire import BatchLimits, BatchStatus, LineProblem, LineResult, one_line
from infermesh.transports.native import Access
from infermesh.types import Operation, Request
from infermesh.wire.requests import request_body

__all__ = ["OpenAIBatches"]

_PATHS: dict[Operation, str] = {
    "chat_completion": "/v1/chat/completions",
    "text_completion": "/v1/completions",
    "responses": "/v1/responses",
    "embedding": "/v1/embeddings",
}
_ENDED = ("completed", "expired", "cancelled")
_UNSERVED = ("batch_expired", "batch_cancelled")
_FULL = ("token_limit_exceeded", "quotaexceeded", "too_many_batches")
_MARK = "infermesh"  # in a batch's metadata
_EARLIER_S = 86_400.0  # a provider's clock, and ours, may differ; and pages may come in another order


class OpenAIBatches:
    """See :class:`~infermesh.transports.batches.wire.BatchWire`.

    The limits are those of OpenAI's guide: 50,000 requests and 200 MB a file. Groq's are the same; Azure takes more.
    """

    limits = BatchLimits(50_000, 200_000_000, frozenset(_PATHS))
    uploads = True

    def __init__(self, access: Access) -> None:
        self._access = access
        self._http = BatchHttp(access)

    async def load(self) -> None:
        """Nothing is needed."""

    def line(self, custom_id: str, request: Request) -> bytes:
        """A line of the input file."""
        opening, rest = request_body(self._access.written(request), self._access.model)
        head = {"custom_id": custom_id, "method": "POST", "url": _PATHS[request.operation]}
        return one_line(b"".join((orjson.dumps(head)[:-1], b',"body":', opening, rest, b"}"))) + b"\n"

    def glance(self, line: bytes) -> LineResult:
        """Whose result a line is: as :meth:`result`, which takes no longer."""
        return self.result(line)

    def result(self, line: bytes, request: Request | None = None) -> LineResult:
        """A line of the output file or of the error file: its status, not ``error``, says how it ended."""
        data = orjson.loads(line)
        if not isinstance(data, dict):
            raise ValueError("not an object")
        custom_id, response, error = data.get("custom_id"), data.get("response"), data.get("error")
        if not isinstance(custom_id, str):
            custom_id = None
        if isinstance(response, dict) and isinstance(response.get("status_code"), int):
            status, body, read = response["status_code"], response.get("body"), True
            if isinstance(body, str):  # as Mistral's, in its error file
                try:
                    body = orjson.loads(body)
                except ValueError:
                    body, read = {"error": {"message": body}}, False
            good = 200 <= status < 300 and isinstance(body, dict) and read
            return LineResult(custom_id, "answered" if good else "failed", status, body)
        if isinstance(error, dict) and error.get("code") in _UNSERVED:
            return LineResult(custom_id, "unserved", None, error)
        return LineResult(custom_id, "failed", None, {"error": error if error is not None else data})

    def error(self, result: LineResult) -> RequestError:
        """The error of a line that failed."""
        return line_error(self._access, result)

    async def upload(self, path: Path, name: str) -> str:
        """Send the input file."""
        with path.open("rb") as file:

            def made() -> aiohttp.FormData:
                form = aiohttp.FormData()
                form.add_field("purpose", "batch")
                form.add_field("file", file, filename=name, content_type="application/jsonl")
                return form

            said = await self._http.call("POST", self._access.url("/files"), body=made)
        return str(said.body["id"])

    async def create(self, token: str, operation: Operation, file_id: str | None, path: Path) -> BatchStatus:
        """Make a batch of an uploaded file."""
        body = {
            "input_file_id": file_id,
            "endpoint": _PATHS[operation],
            "completion_window": "24h",
            "metadata": {_MARK: token},
        }
        return self._read(await self._http.call("POST", self._access.url("/batches"), json=body))

    async def find(self, token: str, file_id: str | None, requests: int, since: float) -> BatchStatus | None:
        """Look for a batch that has the token in its metadata, or else was made of this file.

        The order of the listing is nowhere promised; the newest first is what all of them do. So it is read on for a
        day behind ``since``.
        """
        params = {"limit": "100"}
        while True:
            said = await self._http.call("GET", self._access.url("/batches"), params=params)
            page = [each for each in said.body.get("data") or () if isinstance(each, dict)]
            for each in page:
                marked = each.get("metadata") or {}
                if marked.get(_MARK) == token or (file_id and each.get("input_file_id") == file_id):
                    return self._read_status(each, said.header)
            made = [moment(each.get("created_at")) for each in page]
            if not page or not said.body.get("has_more") or max(filter(None, made), default=since) < since - _EARLIER_S:
                return None
            params["after"] = str(said.body.get("last_id") or page[-1].get("id"))

    async def status(self, batch_id: str) -> BatchStatus:
        """Ask how a batch is."""
        return self._read(await self._http.call("GET", self._access.url(f"/batches/{batch_id}")))

    async def cancel(self, batch_id: str) -> None:
        """Ask it to end. 409, and 400 at some, say that it has ended."""
        try:
            await self._http.call("POST", self._access.url(f"/batches/{batch_id}/cancel"))
        except RequestError as error:
            if error.status_code not in (400, 409):
                raise

    async def download(self, status: BatchStatus, target: Path) -> None:
        """Append the output file and the error file."""
        for each in status.files:
            await self._http.fetch(self._access.url(f"/files/{each}/content"), target)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    def _read(self, said: Any) -> BatchStatus:
        return self._read_status(said.body, said.header)

    def _read_status(self, body: dict[str, Any], header: Callable[[str], str | None]) -> BatchStatus:
        said = str(body.get("status") or "").lower()
        files = tuple(str(body[name]) for name in ("output_file_id", "error_file_id") if body.get(name))
        counts = body.get("request_counts") or {}
        total, done, failed = (counts.get(name) or 0 for name in ("total", "completed", "failed"))
        phase: Any = "ended" if said in _ENDED or (said == "failed" and files) else "working"
        if said == "failed" and not files:
            phase = "failed"
        return BatchStatus(
            str(body.get("id")),
            phase,
            said,
            total or None,
            done + failed if total else None,
            files,
            tuple(self._problems(body.get("errors"))),
            seconds_to_wait(header),
        )

    def _problems(self, errors: Any) -> Iterable[LineProblem]:
        found = errors.get("data") if isinstance(errors, dict) else errors  # Groq's is the list itself
        for each in found if isinstance(found, list) else ():
            if isinstance(each, dict):
                line, code = each.get("line"), str(each.get("code") or "")
                if not isinstance(line, int) or line < 1 or each.get("param") == "body.model":
                    line = None  # a model that there is not is every line's
                message = redact(str(each.get("message") or code), *self._access.secrets)
                yield LineProblem(None if line is None else line - 1, code, message, code.lower() in _FULL)
