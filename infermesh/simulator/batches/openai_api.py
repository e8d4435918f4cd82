"""OpenAI's `/v1/files` and `/v1/batches`.

Sources: https://platform.openai.com/docs/api-reference/files and …/batch, and what the openai SDK sends and reads.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import orjson
from aiohttp import web

from infermesh.simulator.answers import Answers
from infermesh.simulator.batches.batch import Batch, Batches
from infermesh.simulator.batches.files import StoredFile, send_file
from infermesh.simulator.batches.lines import OPENAI_ENDPOINTS, OpenAILines
from infermesh.simulator.errors import ApiError, HangUp
from infermesh.simulator.routes import Routes, decoded

__all__ = ["OpenAIBatches"]

ItemT = TypeVar("ItemT", Batch, StoredFile)

_PREFIX = OpenAILines.prefix
_MOST_PAIRS, _MOST_KEY, _MOST_VALUE = 16, 64, 512  # of `metadata`
_MOVES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class OpenAIBatches:
    """The routes, over the batches and files of a simulator."""

    def __init__(self, batches: Batches, answers: Answers) -> None:
        self._batches = batches
        self._store = batches.store
        self._answers = answers

    def routes(self) -> Routes:
        """Return method, path, endpoint and name of the call, and who answers it."""
        return [
            ("POST", "/v1/files", "files", "upload", self._upload),
            ("GET", "/v1/files", "files", "list", self._list_files),
            ("GET", "/v1/files/{id}", "files", "retrieve", self._retrieve_file),
            ("GET", "/v1/files/{id}/content", "files", "download", self._download),
            ("DELETE", "/v1/files/{id}", "files", "delete", self._delete),
            ("POST", "/v1/batches", "batches", "create", self._create),
            ("GET", "/v1/batches", "batches", "list", self._list),
            ("GET", "/v1/batches/{id}", "batches", "retrieve", self._retrieve),
            ("POST", "/v1/batches/{id}/cancel", "batches", "cancel", self._cancel),
        ]

    async def _upload(self, request: web.Request) -> bytes:
        stored = await self._store.upload(request)
        if self._batches.chance("lost_uploads"):
            raise HangUp
        return orjson.dumps(stored.view(fresh=True))

    async def _list_files(self, request: web.Request) -> bytes:
        purpose = request.query.get("purpose")
        files = [each for each in self._store.listed() if purpose in (None, each.purpose)]
        if request.query.get("order", "desc") == "asc":
            files.reverse()
        page, more = _page(files, request, 10_000, 10_000, "File")
        return _listing([each.view() for each in page], more)

    async def _retrieve_file(self, request: web.Request) -> bytes:
        return orjson.dumps(self._store.get(request.match_info["id"]).view())

    async def _download(self, request: web.Request) -> web.StreamResponse:
        stored = self._store.get(request.match_info["id"])
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f'attachment; filename="{stored.filename}"',
        }
        cut, short = self._batches.chance("cut_downloads"), self._batches.chance("short_downloads")
        return await send_file(request, stored.path, headers, cut=cut, short=short)

    async def _delete(self, request: web.Request) -> bytes:
        name = request.match_info["id"]
        self._store.delete(name)
        return orjson.dumps({"id": name, "object": "file", "deleted": True})

    async def _create(self, request: web.Request) -> bytes:
        body = decoded(await request.read())
        for name in ("input_file_id", "endpoint", "completion_window"):
            if not isinstance(body.get(name), str):
                message = f"Missing required parameter: '{name}'."
                raise ApiError(400, message, code="missing_required_parameter", param=name)
        for name, known in (("endpoint", OPENAI_ENDPOINTS), ("completion_window", ("24h",))):
            if body[name] not in known:
                message = f"Invalid value: '{body[name]}'. Supported values are: {', '.join(map(repr, known))}."
                raise ApiError(400, message, code="invalid_value", param=name)
        metadata = _checked(body.get("metadata"))
        stored = self._store.find(body["input_file_id"])
        lines = OpenAILines(body["endpoint"], self._answers, self._batches.settings)
        if stored is None or stored.purpose != "batch":
            source, scan = self._store.new_path(), lines.no_file
            source.touch()
        else:
            source, scan = stored.path, partial(lines.scan, stored.path)
        batch = await self._batches.create(
            lines, source, scan, endpoint=body["endpoint"], input_file_id=body["input_file_id"], metadata=metadata
        )
        if self._batches.chance("lost_creates"):
            raise HangUp
        return self._shown(batch)

    async def _list(self, request: web.Request) -> bytes:
        page, more = _page(self._batches.shown(_PREFIX), request, 20, 100, "Batch")
        return _listing([self._view(each) for each in page], more)

    async def _retrieve(self, request: web.Request) -> web.Response:
        batch = self._batches.get(request.match_info["id"], _PREFIX)
        return self._batches.response(self._shown(batch), batch)

    async def _cancel(self, request: web.Request) -> bytes:
        batch = self._batches.get(request.match_info["id"], _PREFIX)
        if batch.ended:
            raise ApiError(409, f"Cannot cancel a batch with status '{batch.status}'.")
        batch.cancel()
        return self._shown(batch)

    def _shown(self, batch: Batch) -> bytes:
        return orjson.dumps(self._view(batch))

    def _view(self, batch: Batch) -> dict[str, Any]:
        azure = self._batches.settings.batches.azure

        def instant(seconds: float | None) -> Any:
            if seconds is None:
                return None
            return datetime.fromtimestamp(seconds, UTC).isoformat() if azure else int(seconds)

        ids = [None if each is None or not batch.ended else each.id for each in batch.files]
        counts = {"total": batch.total, "completed": batch.completed, "failed": batch.failed}
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.facts["endpoint"],
            "model": None if batch.scan is None else batch.scan.model,
            "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
            "input_file_id": batch.facts["input_file_id"],
            "completion_window": "24h",
            "status": batch.status.capitalize() if azure else batch.status,
            "output_file_id": ids[0],
            "error_file_id": ids[1],
            "created_at": instant(batch.at["created"]),
            "expires_at": instant(batch.at["created"] + self._batches.settings.batches.expires_s),
            **{f"{move}_at": instant(batch.at.get(move)) for move in _MOVES},
            "request_counts": {name: count or None for name, count in counts.items()} if azure else counts,
            "metadata": batch.facts["metadata"],
            "usage": {
                "input_tokens": batch.tokens[0],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": batch.tokens[1],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": sum(batch.tokens),
            },
        }


def _checked(metadata: Any) -> dict[str, str] | None:
    """Return what a batch may carry of the client's own."""
    if metadata is None:
        return None
    if not isinstance(metadata, dict) or len(metadata) > _MOST_PAIRS:
        raise ApiError(400, "'metadata' must be an object of at most 16 pairs.", code="invalid_value", param="metadata")
    for key, value in metadata.items():
        if len(key) > _MOST_KEY or not isinstance(value, str) or len(value) > _MOST_VALUE:
            message = "A key of 'metadata' has at most 64 characters, a value is text of at most 512."
            raise ApiError(400, message, code="invalid_value", param=f"metadata.{key[:_MOST_KEY]}")
    return metadata


def _page(items: list[ItemT], request: web.Request, usual: int, most: int, kind: str) -> tuple[list[ItemT], bool]:
    """Return the items after `after`, as many as `limit` says, and whether there are more."""
    text = request.query.get("limit", str(usual))
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise ApiError(400, f"Invalid 'limit': expected 1 to {most}.", code="invalid_value", param="limit")
    start = 0
    if (after := request.query.get("after")) is not None:
        ids = [each.id for each in items]
        if after not in ids:
            raise ApiError(404, f"No {kind} found with id '{after}'", param="after")
        start = ids.index(after) + 1
    end = start + int(text)
    return items[start:end], len(items) > end


def _listing(views: list[dict[str, Any]], more: bool) -> bytes:
    ids = [view["id"] for view in views] or [None]
    return orjson.dumps({"object": "list", "data": views, "first_id": ids[0], "last_id": ids[-1], "has_more": more})
