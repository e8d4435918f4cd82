"""Gemini's files and batches, as its Developer API has them.

Sources: https://ai.google.dev/gemini-api/docs/batch-api, https://ai.google.dev/api/batch-api and …/api/files, and what
the google-genai SDK sends and reads; for what they leave open (the error of a cancelled batch, what a create refuses)
captures of real traffic in OpenRouterTeam/docs, `docs/batch-research/google-ai-studio.md`. What a cancelled batch gives
back is nowhere said: here, what was answered.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from infermesh.simulator.answers import Answers
from infermesh.simulator.batches.batch import Batch, Batches
from infermesh.simulator.batches.files import StoredFile, receive_body, send_file
from infermesh.simulator.batches.lines import GeminiLines
from infermesh.simulator.errors import ApiError, HangUp
from infermesh.simulator.routes import Routes, decoded

__all__ = ["GeminiBatches"]

_PREFIX = GeminiLines.prefix
_VERSIONS = ("v1beta", "v1")  # the guide's, and the SDK's
_STATES = {
    "validating": "PENDING",
    "in_progress": "RUNNING",
    "finalizing": "RUNNING",
    "cancelling": "RUNNING",
    "completed": "SUCCEEDED",
    "failed": "FAILED",
    "expired": "EXPIRED",
    "cancelled": "CANCELLED",
}
_MOST_UPLOAD = 2 * 10**9
_ENDS = ("completed", "failed", "expired", "cancelled")


class GeminiBatches:
    """The routes, over the batches and files of a simulator."""

    def __init__(self, batches: Batches, answers: Answers) -> None:
        self._batches = batches
        self._store = batches.store
        self._answers = answers
        self._uploads: dict[str, tuple[Path, str]] = {}  # id → where its bytes go, and the file's displayName
        self._serial = count(1)

    def routes(self) -> Routes:
        """Return method, path, endpoint and name of the call, and who answers it."""
        found: Routes = []
        for version in _VERSIONS:
            found += [
                ("POST", f"/upload/{version}/files", "gemini_batches", "upload", self._upload),
                ("GET", f"/download/{version}/files/{{id}}:download", "gemini_batches", "download", self._download),
                ("GET", f"/{version}/files/{{id}}:download", "gemini_batches", "download", self._download),
                ("POST", f"/{version}/models/{{m}}:batchGenerateContent", "gemini_batches", "create", self._create),
                ("GET", f"/{version}/batches", "gemini_batches", "list", self._list),
                ("GET", f"/{version}/batches/{{id}}", "gemini_batches", "retrieve", self._retrieve),
                ("POST", f"/{version}/batches/{{id}}:cancel", "gemini_batches", "cancel", self._cancel),
                ("DELETE", f"/{version}/batches/{{id}}", "gemini_batches", "delete", self._delete),
            ]
        return found

    async def _upload(self, request: web.Request) -> web.Response:
        """Begin a resumable upload, or take bytes of one."""
        command = request.headers.get("X-Goog-Upload-Command", "")
        if command == "start":
            body = decoded(await request.read() or b"{}").get("file") or {}
            name = str(next(self._serial))
            shown = body.get("displayName") or body.get("display_name") or "upload"
            self._uploads[name] = self._store.new_path(), str(shown)
            url = f"{request.url.origin()}{request.path}?upload_id={name}&upload_protocol=resumable"
            headers = {"X-Goog-Upload-URL": url, "X-Goog-Upload-Status": "active"}
            return web.Response(content_type="text/plain", headers=headers)
        found = self._uploads.get(request.query.get("upload_id", ""))
        if found is None or not command.startswith("upload"):
            raise ApiError(400, "The upload was not started, or its X-Goog-Upload-Command is not known.")
        path, shown = found
        if request.headers.get("X-Goog-Upload-Offset") != str(path.stat().st_size if path.exists() else 0):
            raise ApiError(400, "X-Goog-Upload-Offset is not where the upload stands.")
        piece = path.with_suffix(".piece")
        await receive_body(request, piece, _MOST_UPLOAD)
        await asyncio.to_thread(_append, piece, path)
        if "finalize" not in command:
            return web.Response(content_type="text/plain", headers={"X-Goog-Upload-Status": "active"})
        del self._uploads[request.query["upload_id"]]
        stored = self._store.add(path, shown, "batch")
        if self._batches.chance("lost_uploads"):
            raise HangUp
        return web.json_response({"file": _file(stored)}, headers={"X-Goog-Upload-Status": "final"})

    async def _download(self, request: web.Request) -> web.StreamResponse:
        stored = self._store.get(request.match_info["id"])
        if request.query.get("alt") != "media":
            raise ApiError(400, "A download needs alt=media.")
        if stored.purpose != "batch_output":
            raise ApiError(400, f"The file {stored.id} was uploaded and cannot be downloaded.")
        cut, short = self._batches.chance("cut_downloads"), self._batches.chance("short_downloads")
        headers = {"Content-Type": "application/octet-stream"}
        return await send_file(request, stored.path, headers, cut=cut, short=short)

    async def _create(self, request: web.Request) -> bytes:
        model, settings = request.match_info["m"], self._batches.settings
        if settings.models is not None and model not in settings.models:
            raise ApiError(404, f"models/{model} is not found, or is not supported for batchGenerateContent.")
        body = decoded(await request.read()).get("batch")
        wanted = _either(body, "inputConfig", "input_config")
        file, shown = _either(wanted, "fileName", "file_name"), _either(body, "displayName", "display_name")
        if not isinstance(file, str) or not isinstance(shown, str):
            raise ApiError(400, "batch.displayName and batch.inputConfig.fileName are needed: requests come as a file.")
        stored = self._store.find(file.removeprefix("files/"))
        if stored is None:
            raise ApiError(404, f"The file {file} does not exist, or you may not read it.")
        lines = GeminiLines(model, self._answers, settings)
        # A line that cannot be read is refused at once.
        scan = await asyncio.to_thread(lines.scan, stored.path)
        batch = await self._batches.create(lines, stored.path, scan, model=model, file=file, shown=shown)
        if self._batches.chance("lost_creates"):
            raise HangUp
        return self._shown(batch)

    async def _list(self, request: web.Request) -> bytes:
        size, start = request.query.get("pageSize", "50"), request.query.get("pageToken", "0")
        if not size.isdecimal() or not start.isdecimal() or not 1 <= int(size) <= 1000:
            raise ApiError(400, "pageSize or pageToken is not valid.")
        shown, end = self._batches.shown(_PREFIX), int(start) + int(size)
        page = shown[int(start) : end]
        found: dict[str, Any] = {"operations": [self._view(each) for each in page]} if page else {}
        return orjson.dumps(found | ({"nextPageToken": str(end)} if len(shown) > end else {}))

    async def _retrieve(self, request: web.Request) -> web.Response:
        batch = self._get(request)
        return self._batches.response(self._shown(batch), batch)

    async def _cancel(self, request: web.Request) -> bytes:
        self._get(request).cancel()
        return b"{}"

    async def _delete(self, request: web.Request) -> bytes:
        """Forget a batch and its results; it is not cancelled by that."""
        batch = self._get(request)
        for stored in filter(None, batch.files):
            if self._store.find(stored.id) is not None:
                self._store.delete(stored.id)
        self._batches.forget(batch)
        return b"{}"

    def _get(self, request: web.Request) -> Batch:
        return self._batches.get(_PREFIX + request.match_info["id"], _PREFIX)

    def _shown(self, batch: Batch) -> bytes:
        return orjson.dumps(self._view(batch))

    def _view(self, batch: Batch) -> dict[str, Any]:
        total = len(batch.scan.starts) if batch.scan is not None else 0
        counts = {
            "requestCount": total,
            "successfulRequestCount": batch.completed,
            "failedRequestCount": batch.failed,
            "pendingRequestCount": 0 if batch.ended else total - batch.completed - batch.failed,
        }
        ended = next((batch.at[how] for how in _ENDS if how in batch.at), None)
        late = ended is not None and time.time() < ended + self._batches.settings.batches.late_output_s
        stored = batch.files[0] if batch.ended and not late else None
        output = {} if stored is None else {"responsesFile": f"files/{stored.id}"}
        metadata = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "name": batch.id,
            "model": f"models/{batch.facts['model']}",
            "displayName": batch.facts["shown"],
            "inputConfig": {"fileName": batch.facts["file"]},
            "createTime": _instant(batch.at["created"]),
            "updateTime": _instant(max(batch.at.values())),
            # int64 is a text in protobuf's JSON, and what is 0 is left out
            "batchStats": {name: str(number) for name, number in counts.items() if number},
            "state": f"BATCH_STATE_{_STATES[batch.status]}",
        }
        if ended is not None:
            metadata["endTime"] = _instant(ended)
        found: dict[str, Any] = {"name": batch.id, "metadata": metadata}
        if output:
            metadata["output"] = output
        if batch.ended:
            found["done"] = True
        if batch.status == "completed":
            found["response"] = {"@type": metadata["@type"].replace("Batch", "BatchOutput"), **output}
        elif batch.errors:
            full = batch.errors[0]["code"] == "token_limit_exceeded"
            found["error"] = {"code": 8 if full else 13, "message": batch.errors[0]["message"]}
        elif batch.ended:
            found["error"] = {"code": 13, "message": f"The batch was {batch.status}."}
        return found


def _append(piece: Path, path: Path) -> None:
    with piece.open("rb") as source, path.open("ab") as target:
        while block := source.read(1 << 20):
            target.write(block)
    piece.unlink()


def _either(holder: Any, camel: str, snake: str) -> Any:
    """Return a field, whose name may be in camelCase or in snake_case."""
    return (holder.get(camel) or holder.get(snake)) if isinstance(holder, dict) else None


def _file(stored: StoredFile) -> dict[str, Any]:
    return {
        "name": f"files/{stored.id}",
        "displayName": stored.filename,
        "mimeType": "application/jsonl",
        "sizeBytes": str(stored.path.stat().st_size),
        "createTime": _instant(stored.created_at),
        "expirationTime": _instant(stored.created_at + 2 * 86_400),
        "state": "ACTIVE",
        "source": "UPLOADED",
    }


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
