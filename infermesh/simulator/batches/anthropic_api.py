"""Anthropic's `/v1/messages/batches`.

Sources: https://docs.claude.com/en/api/creating-message-batches and its neighbours, and what the anthropic SDK sends
and reads.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from infermesh.simulator.answers import Answers
from infermesh.simulator.batches.batch import Batch, Batches
from infermesh.simulator.batches.files import receive_body, send_file
from infermesh.simulator.batches.lines import ANTHROPIC_BYTES, AnthropicLines, store_requests
from infermesh.simulator.errors import ApiError, HangUp
from infermesh.simulator.routes import Routes

__all__ = ["AnthropicBatches"]

_PREFIX = AnthropicLines.prefix


class AnthropicBatches:
    """The routes, over the batches of a simulator."""

    def __init__(self, batches: Batches, answers: Answers) -> None:
        self._batches = batches
        self._store = batches.store
        self._lines = AnthropicLines(answers)

    def routes(self) -> Routes:
        """Return method, path, endpoint and name of the call, and who answers it."""
        return [
            ("POST", "/v1/messages/batches", "message_batches", "create", self._create),
            ("GET", "/v1/messages/batches", "message_batches", "list", self._list),
            ("GET", "/v1/messages/batches/{id}", "message_batches", "retrieve", self._retrieve),
            ("DELETE", "/v1/messages/batches/{id}", "message_batches", "delete", self._delete),
            ("POST", "/v1/messages/batches/{id}/cancel", "message_batches", "cancel", self._cancel),
            ("GET", "/v1/messages/batches/{id}/results", "message_batches", "download", self._results),
        ]

    async def _create(self, request: web.Request) -> bytes:
        body, target = self._store.new_path(), self._store.new_path()
        settings = self._batches.settings
        try:
            await receive_body(request, body, settings.batches.max_bytes or ANTHROPIC_BYTES)
            scan = await asyncio.to_thread(store_requests, body, target, settings)
        finally:
            body.unlink(missing_ok=True)
        batch = await self._batches.create(self._lines, target, scan)
        batch.total = len(scan.starts)
        if self._batches.chance("lost_creates"):
            raise HangUp
        return orjson.dumps(_view(batch, request, settings.batches.expires_s))

    async def _list(self, request: web.Request) -> bytes:
        shown = self._batches.shown(_PREFIX)
        text = request.query.get("limit", "20")
        if not text.isdecimal() or not 1 <= int(text) <= 1000:
            raise ApiError(400, "limit: Input should be from 1 to 1000")
        size, ids = int(text), [each.id for each in shown]
        start = 0
        for name in ("after_id", "before_id"):
            if name in request.query and request.query[name] not in ids:
                raise ApiError(400, f"{name}: there is no batch of this id")
        if "after_id" in request.query:
            start = ids.index(request.query["after_id"]) + 1
        elif "before_id" in request.query:
            end = ids.index(request.query["before_id"])
            start, size = max(end - size, 0), min(size, end)
        page = shown[start : start + size]
        more = start > 0 if "before_id" in request.query else len(shown) > start + size
        views = [_view(each, request, self._batches.settings.batches.expires_s) for each in page]
        ends = [page[0].id, page[-1].id] if page else [None, None]
        return orjson.dumps({"data": views, "has_more": more, "first_id": ends[0], "last_id": ends[1]})

    async def _retrieve(self, request: web.Request) -> web.Response:
        batch = self._batches.get(request.match_info["id"], _PREFIX)
        view = _view(batch, request, self._batches.settings.batches.expires_s)
        return self._batches.response(orjson.dumps(view), batch)

    async def _delete(self, request: web.Request) -> bytes:
        batch = self._batches.get(request.match_info["id"], _PREFIX)
        if not batch.ended:
            raise ApiError(400, "The batch has not ended: cancel it first")
        self._batches.forget(batch)
        return orjson.dumps({"id": batch.id, "type": "message_batch_deleted"})

    async def _cancel(self, request: web.Request) -> bytes:
        batch = self._batches.get(request.match_info["id"], _PREFIX)
        batch.cancel()  # nothing says what a batch that has ended answers; it stays as it is
        return orjson.dumps(_view(batch, request, self._batches.settings.batches.expires_s))

    async def _results(self, request: web.Request) -> web.StreamResponse:
        batch = self._batches.get(request.match_info["id"], _PREFIX)
        if not batch.ended:
            raise ApiError(404, f"The results of batch {batch.id} are not available yet")
        stored = batch.files[0]
        path = batch.source.parent / "empty" if stored is None else stored.path
        if stored is None:
            path.touch()
        cut, short = self._batches.chance("cut_downloads"), self._batches.chance("short_downloads")
        return await send_file(request, path, {"Content-Type": "application/x-jsonl"}, cut=cut, short=short)


def _view(batch: Batch, request: web.Request, expires_s: float) -> dict[str, Any]:
    served = batch.completed + batch.failed
    counts = {"processing": batch.total - served, "succeeded": batch.completed, "errored": batch.failed}
    counts |= {"canceled": 0, "expired": 0}
    if batch.ended:
        counts |= {"processing": 0, "canceled" if batch.status == "cancelled" else "expired": batch.unserved}
    status = "ended" if batch.ended else "canceling" if batch.status == "cancelling" else "in_progress"
    ended = next((batch.at[how] for how in ("completed", "failed", "expired", "cancelled") if how in batch.at), None)
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": counts,
        "created_at": _instant(batch.at["created"]),
        "expires_at": _instant(batch.at["created"] + expires_s),
        "ended_at": _instant(ended),
        "archived_at": None,
        "cancel_initiated_at": _instant(batch.at.get("cancelling")),
        "results_url": f"{request.url.origin()}/v1/messages/batches/{batch.id}/results" if batch.ended else None,
    }


def _instant(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
