"""Gemini's batches, as its Developer API has them: a file of requests, and a file of responses.

Sources: https://ai.google.dev/gemini-api/docs/batch-api, https://ai.google.dev/api/batch-api and …/api/files; for what
they leave open (the error of a line, what is refused at once) captures of real traffic in OpenRouterTeam/docs,
``docs/batch-research/google-ai-studio.md``, and what the google-genai SDK and LiteLLM read; for a batch that has
succeeded before its file is there tidyverse/ellmer#926. Codes of errors:
https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

from infermesh.errors import AuthenticationError, MalformedResponseError, RequestError
from infermesh.exact_json import loads
from infermesh.redaction import redact
from infermesh.transports.batches.http import BatchHttp, line_error, moment, seconds_to_wait
from infermesh.transports.batches.wire import BatchLimits, BatchStatus, LineProblem, LineResult, one_line
from infermesh.transports.litellm import LiteLLMTransport, import_litellm
from infermesh.transports.litellm_contents import LiteLLMContents
from infermesh.types import Operation, Request

__all__ = ["GeminiBatches"]

_URL = "https://generativelanguage.googleapis.com"
_URL_VARIABLES = ("GEMINI_API_BASE",)
_KEY_VARIABLES = ("GOOGLE_API_KEY", "GEMINI_API_KEY")  # in LiteLLM's order: a batch is one of the key's project
_VERSION = "/v1beta"
_PAGE = "100"
_MIME = "application/jsonl"
_OUTPUT_S = 3600.0  # for how long after its end a batch that has succeeded may have no file
_RESULTS = ("response", "error", "status")
_NAME = re.compile(r"[\w.-]+")
# "You do not have permission to access the File abc or it may not exist."
_FILE = re.compile(r"\bfile\b.*\bexist", re.IGNORECASE | re.DOTALL)
_STATE = re.compile(r"^(BATCH|JOB)_STATE_")
# The code → its HTTP status and its name, as google/rpc/code.proto has them.
_CODES = {
    1: (499, "CANCELLED"),
    2: (500, "UNKNOWN"),
    3: (400, "INVALID_ARGUMENT"),
    4: (504, "DEADLINE_EXCEEDED"),
    5: (404, "NOT_FOUND"),
    6: (409, "ALREADY_EXISTS"),
    7: (403, "PERMISSION_DENIED"),
    8: (429, "RESOURCE_EXHAUSTED"),
    9: (400, "FAILED_PRECONDITION"),
    10: (409, "ABORTED"),
    11: (400, "OUT_OF_RANGE"),
    12: (501, "UNIMPLEMENTED"),
    13: (500, "INTERNAL"),
    14: (503, "UNAVAILABLE"),
    15: (500, "DATA_LOSS"),
    16: (401, "UNAUTHENTICATED"),
}
_CANCELLED, _FULL = 1, 8


class GeminiBatches:
    """See :class:`~infermesh.transports.batches.wire.BatchWire`.

    A file has at most 2 GB, by the guide. Of requests it names no most: 50,000 is what inspect_ai sends, and nothing is
    cheaper in a larger one. A line is ``{"key": …, "request": …}``; the model is in the create's path. Embeddings have
    a call of their own (``asyncBatchEmbedContent``), which the reference calls experimental, and are not sent.

    Parameters
    ----------
    transport
        The deployment's own, by which live requests would go.

    Raises
    ------
    AuthenticationError
        There is no key.
    """

    limits = BatchLimits(50_000, 2_000_000_000, frozenset[Operation](("chat_completion",)))
    uploads = True

    def __init__(self, transport: LiteLLMTransport) -> None:
        self._access = transport.access(_URL, _URL_VARIABLES, _signed, ends=(_VERSION, "/v1"))
        self._http = BatchHttp(self._access)
        self._model = self._access.model.removeprefix("gemini/")
        self._contents = LiteLLMContents(transport, self._model)

    async def load(self) -> None:
        """Import LiteLLM, which takes seconds, in a thread."""
        await asyncio.to_thread(import_litellm, f"{self._access.label}: LiteLLM is loaded for {self._access.model}")

    def line(self, custom_id: str, request: Request) -> bytes:
        """A line of the input file."""
        head = orjson.dumps({"key": custom_id})[:-1]
        return one_line(b"".join((head, b',"request":', self._contents.params(request).body, b"}"))) + b"\n"

    def glance(self, line: bytes) -> LineResult:
        """Whose result a line is. A response is not translated."""
        data = loads(line)
        if not isinstance(data, dict) or not any(name in data for name in _RESULTS):
            raise ValueError("not a result")
        key = data.get("key")
        custom_id = key if isinstance(key, str) else None
        if isinstance(data.get("response"), dict):
            return LineResult(custom_id, "answered", 200, data["response"])
        said = data.get("error") or data.get("status") or data
        if not isinstance(said, dict):
            return LineResult(custom_id, "failed", None, {"error": {"message": str(said)}})
        code = _number(said.get("code"))
        if code == _CANCELLED:
            return LineResult(custom_id, "unserved", None, {"code": "cancelled", "message": str(said.get("message"))})
        # A status of HTTP is none of gRPC's codes, which end at 16.
        status, name = _CODES.get(code or 0, (code if code is not None and 400 <= code < 600 else None, None))
        error = {"code": status, **({"status": name} if name else {}), "message": str(said.get("message") or said)}
        return LineResult(custom_id, "failed", status, {"error": error})

    def result(self, line: bytes, request: Request | None = None) -> LineResult:
        """A line of the results."""
        found = self.glance(line)
        if found.kind != "answered":
            return found
        try:
            return replace(found, body=self._contents.answer(found.body, request))
        except ValueError as error:
            return LineResult(found.custom_id, "failed", None, {"error": {"message": str(error)}})

    def error(self, result: LineResult) -> RequestError:
        """The error of a line that failed."""
        return line_error(self._access, result)

    async def upload(self, path: Path, name: str) -> str:
        """Send the input file: one request that asks where to, and one with its bytes."""
        size = str((await asyncio.to_thread(path.stat)).st_size)
        asked = {
            "x-goog-upload-protocol": "resumable",
            "x-goog-upload-command": "start",
            "x-goog-upload-header-content-length": size,
            "x-goog-upload-header-content-type": _MIME,
        }
        about = {"file": {"displayName": name, "mimeType": _MIME}}
        url = self._access.url(f"/upload{_VERSION}/files")
        begun = await self._http.call("POST", url, headers=asked, json=about, blank=True)
        given = urlsplit(begun.header("x-goog-upload-url") or "")
        if not given.query:
            raise self._strange("the answer to an upload's start names no URL to go on at")
        # The key and the prompts go to no other place than the endpoint, whatever it says: a proxy's answer may be
        # Google's own.
        there = f"{url}{'&' if '?' in url else '?'}{given.query}"
        sent = {"x-goog-upload-offset": "0", "x-goog-upload-command": "upload, finalize", "content-length": size}
        with path.open("rb") as file:
            said = await self._http.call("POST", there, headers=sent, body=lambda: file)
        made = said.body.get("file")
        if not isinstance(made, dict) or not isinstance(made.get("name"), str):
            raise self._strange("the answer to an upload names no file")
        return str(made["name"])

    async def create(self, token: str, operation: Operation, file_id: str | None, path: Path) -> BatchStatus:
        """Make a batch of an uploaded file. A line that cannot be read is a 400 for all of them.

        A file is kept for two days. Where it is gone, no batch was made, and it is sent once more.
        """
        try:
            return await self._create(token, file_id)
        except RequestError as error:
            if error.status_code not in (403, 404) or not _FILE.search(error.message):
                raise
        return await self._create(token, await self.upload(path, f"infermesh-{token}.jsonl"))

    async def find(self, token: str, file_id: str | None, requests: int, since: float) -> BatchStatus | None:
        """Look for the batch that has the token as its name, or else was made of this file.

        The listing promises no order and has no filter: it is read to its end.
        """
        params = {"pageSize": _PAGE}
        while True:
            said = await self._http.call("GET", self._access.url(f"{_VERSION}/batches"), params=params)
            for each in said.body.get("operations") or ():
                about = _about(each)
                made_of = _object(about.get("inputConfig")).get("fileName")
                if about.get("displayName") == token or (file_id is not None and made_of == file_id):
                    return self._read(each, said.header)
            following = said.body.get("nextPageToken")
            if not following or following == params.get("pageToken"):
                return None
            params["pageToken"] = str(following)

    async def status(self, batch_id: str) -> BatchStatus:
        """Ask how a batch is."""
        said = await self._http.call("GET", self._batch(batch_id))
        return self._read(said.body, said.header)

    async def cancel(self, batch_id: str) -> None:
        """Ask it to end. 409, and 400 but for a wrong key, say that it has ended."""
        try:
            await self._http.call("POST", self._batch(batch_id, ":cancel"), json={}, blank=True)
        except RequestError as error:
            if error.status_code not in (400, 409) or isinstance(error, AuthenticationError):
                raise

    async def download(self, status: BatchStatus, target: Path) -> None:
        """Append the results."""
        for each in status.files:
            url = self._access.url(f"/download{_VERSION}/files/{quote(each.removeprefix('files/'), safe='')}:download")
            await self._http.fetch(f"{url}{'&' if '?' in url else '?'}alt=media", target)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _create(self, token: str, file_id: str | None) -> BatchStatus:
        url = self._access.url(f"{_VERSION}/models/{quote(self._model, safe='')}:batchGenerateContent")
        batch = {"displayName": token, "inputConfig": {"fileName": file_id}}
        said = await self._http.call("POST", url, json={"batch": batch})
        return self._read(said.body, said.header)

    def _batch(self, batch_id: str, call: str = "") -> str:
        return self._access.url(f"{_VERSION}/batches/{quote(batch_id.removeprefix('batches/'), safe='')}{call}")

    def _read(self, body: Mapping[str, Any], header: Callable[[str], str | None]) -> BatchStatus:
        about, said = _about(body), str(body.get("name") or "")
        if not said.startswith("batches/"):
            raise self._strange("the answer is no batch")
        state = _STATE.sub("", str(about.get("state") or "UNSPECIFIED"))
        counts = {name: _number(value) or 0 for name, value in _object(about.get("batchStats")).items()}
        total = counts.get("requestCount") or None
        finished = counts.get("successfulRequestCount", 0) + counts.get("failedRequestCount", 0)
        named = (_object(about.get("output")) or _object(body.get("response"))).get("responsesFile")
        files = (named,) if isinstance(named, str) and _NAME.fullmatch(named.removeprefix("files/")) else ()
        error = _object(body.get("error"))
        phase = _phase(state, files, error, moment(about.get("endTime")))
        if phase != "working" and not files:
            finished = 0  # whatever was counted: there is nothing to fetch
        return BatchStatus(
            said,
            phase,
            state.lower(),
            total,
            finished if total else None,
            files if phase == "ended" else (),
            (self._problem(error),) if error and state == "FAILED" else (),
            seconds_to_wait(header),
        )

    def _problem(self, error: Mapping[str, Any]) -> LineProblem:
        code = _number(error.get("code")) or 2
        message = redact(str(error.get("message") or error), *self._access.secrets)
        return LineProblem(None, _CODES.get(code, (0, str(code)))[1], message, code == _FULL)

    def _strange(self, what: str) -> MalformedResponseError:
        label = self._access.label
        return MalformedResponseError(
            f"{label}: {what}. Check that api_base is that of Gemini's Developer API", deployment=label
        )


def _signed(variables: Mapping[str, str]) -> dict[str, str]:
    """The headers with the key."""
    key = next(filter(None, map(variables.get, ("", *_KEY_VARIABLES))), None)
    return {"x-goog-api-key": key, "accept": "application/json"} if key else {}


def _phase(state: str, files: tuple[str, ...], error: Mapping[str, Any], ended: float | None) -> Any:
    """``working``, ``ended`` or ``failed``.

    A batch that has succeeded is still at work until its file is there, for an hour. One that failed for a fault of
    the provider's has ended without results, so that its lines go into another.
    """
    if state in ("SUCCEEDED", "PARTIALLY_SUCCEEDED"):
        late = ended is not None and time.time() > ended + _OUTPUT_S
        return "ended" if files or late else "working"
    if state == "FAILED" and not files:
        status = _CODES.get(_number(error.get("code")) or 2, (400, ""))[0]
        return "ended" if status in (409, 499) or status >= 500 else "failed"
    return "ended" if state in ("FAILED", "CANCELLED", "EXPIRED") else "working"


def _about(operation: Any) -> Mapping[str, Any]:
    return _object(_object(operation).get("metadata"))


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int | None:
    """An integer, which JSON of protobuf may have as a text."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
