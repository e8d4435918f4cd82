"""The picture or the sound that a row names, if it is a file that the row may name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from aiohttp import web

from infermesh.config.schema import SourceConfig
from infermesh.errors import InfermeshError, InputError
from infermesh.exact_json import loads
from infermesh.inputs.formats import SNIFFED, sniff
from infermesh.inputs.row_files import RowFiles
from infermesh.pages.app.site import SITE
from infermesh.query.reader import RunReader
from infermesh.store.schema import SOURCE, literal, quoted

__all__ = ["media"]

_MOST_BYTES = 64 << 20
# What a browser shows and runs nothing of.
_SHOWN = ("image/png", "image/jpeg", "image/gif", "image/webp", "video/mp4", "video/webm")


async def media(request: web.Request) -> web.Response:
    """``/api/media/N/RUN?column=C``: the file that this column of this row names. Nothing is fetched from elsewhere."""
    site = request.app[SITE]
    _, folder = site.run_of(request)
    number, column = request.match_info["number"], request.query.get("column", "")
    if not number.isdecimal() or len(number) > 18:
        raise web.HTTPNotFound
    try:
        kind, data = await site.in_thread(_read, folder, int(number), request.query.get("of") or SOURCE, column)
    except (InfermeshError, OSError, ValueError) as error:
        raise web.HTTPNotFound(text=f"{error}\n") from None
    return web.Response(
        body=data, content_type=kind, headers={"Content-Security-Policy": "default-src 'none'; sandbox"}
    )


def _read(folder: Path, number: int, origin: str, column: str) -> tuple[str, bytes]:
    with RunReader(folder) as reader:
        described = reader.rows(
            f"SELECT column_name FROM duckdb_columns() WHERE table_name = {literal(origin)} "
            f"AND column_name = {literal(column)}"
        )
        if not described or column in ("row_id", "row_key"):
            raise InputError(f"no column '{column}'")
        found = reader.rows(f"SELECT {quoted(column)}::VARCHAR FROM {quoted(origin)} WHERE row_id = {number}")
        ((config, roots),) = reader.rows("SELECT config, roots FROM run")
    if not found or not found[0][0]:
        raise InputError("the row names no file there")
    files = _row_files(loads(config or "{}"), [Path(root) for root in loads(roots or "[]")])
    path = files.find(found[0][0])
    if path is None:
        raise InputError("there is no such file")
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        files.judge(path, stat)
        if stat.st_size > _MOST_BYTES:
            raise InputError("the file is larger than what is shown here")
        data = file.read(_MOST_BYTES)
    signature = sniff(data[:SNIFFED])
    if signature is None or not (signature.mime in _SHOWN or signature.mime.startswith("audio/")):
        raise InputError("the file is no picture and no sound")
    return signature.mime, data


def _row_files(config: dict[str, Any], roots: list[Path]) -> RowFiles:
    source = config.get("source")
    return RowFiles(roots, SourceConfig.model_validate(source) if source else None, config.get("allow_paths") or ())
