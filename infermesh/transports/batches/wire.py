"""What the batch APIs of all providers have in common, as a protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from infermesh.errors import RequestError
from infermesh.types import Operation, Request

__all__ = ["BatchLimits", "BatchStatus", "BatchWire", "LineProblem", "LineResult", "one_line"]

# What some readers of JSON lines take for the end of one (Python's ``str.splitlines``), though JSON may have it in a
# text as it is: NEL, LINE SEPARATOR and PARAGRAPH SEPARATOR, in UTF-8 and as JSON's escape.
_LINE_ENDS = (("\u0085".encode(), b"\\u0085"), ("\u2028".encode(), b"\\u2028"), ("\u2029".encode(), b"\\u2029"))


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a provider takes in one batch.

    Attributes
    ----------
    requests, bytes
        At most.
    operations
        What may be asked for in one.
    """

    requests: int
    bytes: int
    operations: frozenset[Operation]


@dataclass(frozen=True, slots=True)
class LineProblem:
    """What a provider found wrong with a batch as a whole, or with one of its lines.

    Attributes
    ----------
    line
        From 0; ``None``: the batch.
    full
        Whether too much waits at the provider already, so that the same batch is taken later.
    """

    line: int | None
    code: str
    message: str
    full: bool = False


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """How a batch is, as its provider says.

    Attributes
    ----------
    id
        The provider's.
    phase
        ``working``; ``ended``: there may be results, whatever became of its lines; ``failed``: none was worked on.
    said
        The provider's own word for its state.
    total, finished
        Lines, and those that have a result so far, well or not; ``None`` where the provider does not say.
    files
        What :meth:`BatchWire.download` fetches.
    problems
        Why it failed.
    retry_after
        Seconds after which to look again; ``None``: as one likes.
    """

    id: str
    phase: Literal["working", "ended", "failed"]
    said: str
    total: int | None = None
    finished: int | None = None
    files: tuple[str, ...] = ()
    problems: tuple[LineProblem, ...] = ()
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class LineResult:
    """One line of the results.

    Attributes
    ----------
    custom_id
        ``None`` where it has none.
    kind
        ``answered``; ``failed``, with what an HTTP answer would have said; ``unserved``: the batch ended before it.
    status
        As of an HTTP answer; ``None`` where there is none.
    body
        The answer in OpenAI's format, or what was said of the failure.
    """

    custom_id: str | None
    kind: Literal["answered", "failed", "unserved"]
    status: int | None = None
    body: Any = None


class BatchWire(Protocol):
    """One deployment's batch API.

    Each method but the pure ones sends one request, once, and raises :class:`~infermesh.errors.RequestError`. Whether a
    ``create`` that raised has made a batch is not known, unless its status says so.

    Attributes
    ----------
    limits
        The provider's own.
    uploads
        Whether the lines go into a file first.
    """

    limits: BatchLimits
    uploads: bool

    async def load(self) -> None:
        """Import what lines and results need. Else the first of them does, which may take seconds."""
        ...

    def line(self, custom_id: str, request: Request) -> bytes:
        """A request as a line, with its end. Pure. Raises ``InputError`` where it cannot be written."""
        ...

    def glance(self, line: bytes) -> LineResult:
        """Whose result a line is, and of what kind, without its body. Pure. Raises ``ValueError`` where it is none."""
        ...

    def result(self, line: bytes, request: Request | None = None) -> LineResult:
        """Read a line of the results. Pure. Raises ``ValueError`` where it is none.

        Without the request that it answers, an answer may not be read as a live one's would.
        """
        ...

    def error(self, result: LineResult) -> RequestError:
        """The error of a line that failed, as a live request would have raised it. Pure."""
        ...

    async def upload(self, path: Path, name: str) -> str:
        """Send the lines; returns the file's id."""
        ...

    async def create(self, token: str, operation: Operation, file_id: str | None, path: Path) -> BatchStatus:
        """Make a batch of what was uploaded, or of the lines in ``path``; ``token`` marks it as ours."""
        ...

    async def find(self, token: str, file_id: str | None, requests: int, since: float) -> BatchStatus | None:
        """Look in the provider's listing for the batch of a token, made after ``since`` (epoch seconds)."""
        ...

    async def status(self, batch_id: str) -> BatchStatus:
        """Ask how a batch is."""
        ...

    async def cancel(self, batch_id: str) -> None:
        """Ask it to end; what has ended stays as it is."""
        ...

    async def download(self, status: BatchStatus, target: Path) -> None:
        """Append all results to a file. Raises where a connection breaks off in between."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


def one_line(data: bytes) -> bytes:
    """JSON without raw characters that some readers of lines take for the end of one."""
    for raw, escaped in _LINE_ENDS:
        if raw in data:
            data = data.replace(raw, escaped)
    return data
