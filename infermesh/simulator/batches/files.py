"""Files on the server's disk: uploads as they come in, results as they go out, a block at a time."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp import BodyPartReader, web

from infermesh.simulator.errors import ApiError

__all__ = ["FileStore", "StoredFile", "receive_body", "send_file"]

_BLOCK = 1 << 18
_MOST_UPLOAD = 512 * 2**20  # OpenAI's limit of a single file
_MOST_FIELD = 4096
_KEPT_S = 30 * 86400  # how long OpenAI keeps a file of a batch


@dataclass(slots=True)
class StoredFile:
    """One file of `/v1/files`."""

    id: str
    path: Path
    filename: str
    purpose: str
    created_at: int = field(default_factory=lambda: int(time.time()))
    kept_s: int = _KEPT_S

    def view(self, *, fresh: bool = False) -> dict[str, Any]:
        """Return it as OpenAI shows it; `fresh`, in the answer to its upload, it does not say yet when it expires."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.path.stat().st_size,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "expires_at": None if fresh else self.created_at + self.kept_s,
            "status_details": None,
        }


class FileStore:
    """The files that exist, in a folder of their own that ends with :meth:`close`."""

    def __init__(self) -> None:
        self._folder: TemporaryDirectory[str] | None = None
        self._files: dict[str, StoredFile] = {}
        self._serial = itertools.count(1)
        self._tag = os.urandom(4).hex()

    def new_path(self) -> Path:
        """Return the path of a file that is not there yet."""
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="infermesh-simulator-", ignore_cleanup_errors=True)
        return Path(self._folder.name) / f"{next(self._serial):08d}"

    def add(self, path: Path, filename: str, purpose: str) -> StoredFile:
        """Make a file known."""
        stored = StoredFile(f"file-{self._tag}{next(self._serial):08d}", path, filename, purpose)
        self._files[stored.id] = stored
        return stored

    def get(self, name: str) -> StoredFile:
        """Return a file.

        Raises
        ------
        ApiError
            404, if there is none of this id.
        """
        if name not in self._files:
            raise ApiError(404, f"No such File object: {name}", param="id")
        return self._files[name]

    def find(self, name: Any) -> StoredFile | None:
        """Return a file; None if there is none of this id."""
        return self._files.get(name)

    def delete(self, name: str) -> None:
        """Forget a file. A batch that reads it reads on."""
        self.get(name)
        del self._files[name]

    def listed(self) -> list[StoredFile]:
        """Return all files, the newest first."""
        return list(reversed(self._files.values()))

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            self._folder.cleanup()

    async def upload(self, request: web.Request) -> StoredFile:
        """Store the file of a form.

        Raises
        ------
        ApiError
            400 or 413, for what OpenAI refuses.
        """
        if request.content_type != "multipart/form-data":
            raise ApiError(400, "The request must be multipart/form-data.", code="invalid_content_type")
        fields: dict[str, str] = {}
        path, filename = self.new_path(), None
        try:
            async for part in await request.multipart():
                if not isinstance(part, BodyPartReader) or part.name is None:
                    continue
                if part.name == "file":
                    filename = part.filename or "upload"
                    await _store(part, path)
                else:
                    fields[part.name] = (await part.read_chunk(_MOST_FIELD)).decode()
        except (ValueError, AssertionError) as error:
            raise ApiError(400, f"The form could not be read: {error}.", code="invalid_form") from None
        if filename is None or "purpose" not in fields:
            name = "file" if filename is None else "purpose"
            raise ApiError(400, f"'{name}' is a required property", param=name)
        if fields["purpose"] == "batch" and not filename.endswith(".jsonl"):
            raise ApiError(400, "Invalid file format for Batch API. Must be .jsonl", param="file")
        stored = self.add(path, filename, fields["purpose"])
        stored.kept_s = int(fields.get("expires_after[seconds]", _KEPT_S))
        return stored


async def _store(part: BodyPartReader, path: Path) -> None:
    size = 0
    with path.open("wb") as file:
        while block := await part.read_chunk(_BLOCK):
            size += len(block)
            if size > _MOST_UPLOAD:
                raise ApiError(413, "The file is larger than 512 MB.", code="request_too_large")
            file.write(block)


async def receive_body(request: web.Request, path: Path, most: int) -> None:
    """Store a request's body.

    Raises
    ------
    ApiError
        413, if it has more than `most` bytes.
    """
    size = 0
    with path.open("wb") as file:
        async for block in request.content.iter_chunked(_BLOCK):
            size += len(block)
            if size > most:
                raise ApiError(413, "Request exceeds the maximum size")
            file.write(block)


async def send_file(
    request: web.Request, path: Path, headers: Mapping[str, str], *, cut: bool = False, short: bool = False
) -> web.StreamResponse:
    """Send a file in chunks, without its length, as the providers do.

    Parameters
    ----------
    cut
        Close the connection half-way.
    short
        End half-way, as if that was all.
    """
    response = web.StreamResponse(headers=dict(headers))
    response.enable_chunked_encoding()
    await response.prepare(request)
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size // (2 if cut or short else 1)
        while left and (block := file.read(min(_BLOCK, left))):
            left -= len(block)
            await response.write(block)
    if cut and request.transport is not None:
        request.transport.close()
    else:
        await response.write_eof()
    return response
