"""Answers to the prompt, text or audio files of the command line, printed to stdout."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from infermesh.config.declaration import Declaration
from infermesh.errors import RequestError
from infermesh.results import EmbeddingResult, GenerationResult, TranscriptionResult
from infermesh.runs.direct import DirectStage, open_stage
from infermesh.runtime.loop import run_loop
from infermesh.stages.base import Result
from infermesh.wire.structured import to_json


def print_answers(declaration: Declaration, rows: Sequence[Mapping[str, Any]], *, many: bool, parse: bool) -> int:
    """Send each row and print its answer.

    Parameters
    ----------
    many
        Print a JSON line for each row, failed ones too, instead of the answer alone.
    parse
        Print the parsed answer as JSON where it could be parsed.

    Returns
    -------
    int
        0; 1 if the only request failed; 3 if some of several did.
    """
    logging.getLogger("infermesh").addHandler(logging.StreamHandler(sys.stderr))
    with open_stage(declaration) as stage:
        results = run_loop(_send(stage, rows))
    out = sys.stdout.buffer
    failed = 0
    for index, (row, result) in enumerate(zip(rows, results, strict=True)):
        if isinstance(result, RequestError):
            failed += 1
            print(f"error: {result.message}", file=sys.stderr)
        if many:
            out.write(orjson.dumps(_clip_fields(index, row, result)) + b"\n")
        elif not isinstance(result, RequestError):
            out.write(_answer_bytes(result, parse) + b"\n")
    out.flush()
    if not failed:
        return 0
    return 3 if many else 1


async def _send(stage: DirectStage, rows: Sequence[Mapping[str, Any]]) -> list[Result | RequestError]:
    try:
        return await stage.ask_each(rows)
    finally:
        await stage.aclose()


def _answer_bytes(result: Result, parse: bool) -> bytes:
    if isinstance(result, EmbeddingResult):
        return orjson.dumps(result.embedding)
    if isinstance(result, GenerationResult):
        if parse and result.output_parsed is not None:
            return to_json(result.output_parsed).encode()
        return result.output_text.encode("utf-8", "replace")
    return str(result).encode("utf-8", "replace")


def _clip_fields(index: int, row: Mapping[str, Any], result: Result | RequestError) -> dict[str, Any]:
    """A clip's result, with the fields that an output file has."""
    error = result if isinstance(result, RequestError) else None
    done = result if isinstance(result, TranscriptionResult) else TranscriptionResult()
    return {
        "_index": index,
        "path": row["path"],
        "text": None if error else done.text,
        "language": done.language,
        "duration_s": done.duration_s,
        "request_id": result.request_id,
        "error": error.message if error else None,
        "error_type": error.kind if error else None,
    }
