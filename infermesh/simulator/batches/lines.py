"""How each provider writes a batch's requests and results, line by line.

Sources: https://platform.openai.com/docs/guides/batch,
https://docs.claude.com/en/docs/build-with-claude/batch-processing and https://ai.google.dev/gemini-api/docs/batch-api.
What they leave open (the code of an invalid line, where a line that failed stands) is as in captures of real traffic in
OpenRouterTeam/docs, `docs/batch-research/`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson

from infermesh.simulator.answers import Answer, Answers
from infermesh.simulator.batches.requests import Scan, listed_requests, prompt_tokens, read_lines
from infermesh.simulator.errors import ApiError, anthropic_error, google_code
from infermesh.simulator.settings import SimulatorSettings

__all__ = [
    "ANTHROPIC_BYTES",
    "OPENAI_ENDPOINTS",
    "AnthropicLines",
    "GeminiLines",
    "Lines",
    "OpenAILines",
    "store_requests",
]

OPENAI_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
OPENAI_BYTES, OPENAI_REQUESTS = 200 * 10**6, 50_000
ANTHROPIC_BYTES, ANTHROPIC_REQUESTS = 256 * 10**6, 100_000
GEMINI_BYTES = 2 * 10**9
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_serial = itertools.count(1)


class Lines(Protocol):
    """One provider's lines."""

    failures_apart: bool  # whether lines that failed have a file of their own
    prefix: str  # of a batch's id
    expired_kept: bool  # whether a batch that expired gives back what was answered

    def read(self, line: bytes) -> tuple[str, Any]:
        """Return a line's custom_id and its request."""
        ...

    def answer(self, body: Any) -> Answer:
        """Answer a request; an `ApiError` is the line's error."""
        ...

    def done(self, custom_id: str, answer: Answer) -> bytes:
        """Write the line of an answer."""
        ...

    def failed(self, custom_id: str, error: ApiError) -> bytes:
        """Write the line of a request that failed."""
        ...

    def unserved(self, custom_id: str, how: str) -> bytes | None:
        """Write the line of a request that was not worked on; `how` the batch ended: `expired` or `cancelled`.

        None: it has no line.
        """
        ...


class OpenAILines:
    """Lines of `/v1/batches`.

    Parameters
    ----------
    endpoint
        The path that all lines name.
    """

    failures_apart = True
    prefix = "batch_"
    expired_kept = True

    def __init__(self, endpoint: str, answers: Answers, settings: SimulatorSettings) -> None:
        methods: Mapping[str, Callable[[Any, bool], Answer]] = dict(
            zip(
                OPENAI_ENDPOINTS,
                (answers.chat, answers.completions, answers.responses, answers.embeddings),
                strict=True,
            )
        )
        self._endpoint = endpoint
        self._answer = methods[endpoint]
        self._settings = settings

    def scan(self, path: Path) -> Scan:
        """Read all lines once, as OpenAI does in state `validating`: it stops at the first that is not valid."""
        scan, limits = Scan(), self._settings.batches
        if path.stat().st_size > (limits.max_bytes or OPENAI_BYTES):
            scan.errors.append(_invalid("invalid_request", "The file is too large for a batch.", "file_id", None))
            return scan
        seen: set[str] = set()
        for number, (start, line) in enumerate(read_lines(path), 1):
            if number > (limits.max_requests or OPENAI_REQUESTS):
                message = f"The batch has more than {limits.max_requests or OPENAI_REQUESTS} requests."
                scan.errors.append(_invalid("too_many_tasks", message, "file_id", None))
                return scan
            if (error := self._problem(line, number, scan, seen)) is not None:
                scan.errors.append(error)
                if len(scan.errors) == limits.named_lines:
                    return scan
                continue
            scan.starts.append(start)
        if not scan.starts and not scan.errors:
            scan.errors.append(_invalid("empty_file", "The input file has no requests.", None, None))
        return scan

    @staticmethod
    def no_file() -> Scan:
        """Return what is found where the input is no file for batches: that, too, is found out only afterwards."""
        message = "The input file could not be found, or is not for batches."
        return Scan(errors=[_invalid("invalid_request", message, "file_id", None)])

    def _problem(self, line: bytes, number: int, scan: Scan, seen: set[str]) -> dict[str, Any] | None:
        """What is wrong with a line; else note it in `scan`."""
        try:
            data = orjson.loads(line)
        except orjson.JSONDecodeError:
            data = None
        if not isinstance(data, dict):
            return _invalid("invalid_json_line", "This line is not parseable as valid JSON.", None, number)
        custom_id, body = data.get("custom_id"), data.get("body")
        if not isinstance(custom_id, str) or not custom_id:
            message = "Missing required parameter: 'custom_id'."
            return _invalid("missing_required_parameter", message, "custom_id", number)
        if custom_id in seen:
            message = f"The custom_id '{custom_id}' for this request is a duplicate of another request."
            return _invalid("duplicate_custom_id", message, "custom_id", number)
        if data.get("method") != "POST":
            return _invalid("invalid_method", "The method of a request must be POST.", "method", number)
        if data.get("url") != self._endpoint:
            message = f"The URL provided for this request does not match the batch endpoint {self._endpoint}."
            return _invalid("invalid_url", message, "url", number)
        marker = self._settings.batches.invalid_marker
        if not isinstance(body, dict) or (marker is not None and marker in line.decode()):
            return _invalid("invalid_request", "The request is not valid.", "body", number)
        model = body.get("model")
        if not isinstance(model, str) or not model:
            return _invalid("invalid_request", "The model is missing.", "body.model", number)
        if self._settings.models is not None and model not in self._settings.models:
            message = f"The provided model '{model}' is not supported by the Batch API."
            return _invalid("model_not_found", message, "body.model", number)
        if scan.model is not None and model != scan.model:
            message = f"The provided model '{model}' does not match that of the first line."
            return _invalid("mismatched_model", message, "body.model", number)
        if body.get("stream"):
            message = "The Batch API does not support streaming."
            return _invalid("streaming_unsupported", message, "body.stream", number)
        scan.model = model
        seen.add(custom_id)
        scan.custom_ids.append(custom_id)
        scan.tokens += prompt_tokens(body)
        return None

    def read(self, line: bytes) -> tuple[str, Any]:
        """Return a line's custom_id and its body."""
        data = orjson.loads(line)
        return data["custom_id"], data["body"]

    def answer(self, body: Any) -> Answer:
        """Answer a body."""
        return self._answer(body, False)

    def done(self, custom_id: str, answer: Answer) -> bytes:
        """Write a line of the output file."""
        return self._line(custom_id, 200, answer.body)

    def failed(self, custom_id: str, error: ApiError) -> bytes:
        """Write a line of the error file: the status says that it failed, `error` is null."""
        return self._line(custom_id, error.status, error.body())

    def unserved(self, custom_id: str, how: str) -> bytes:
        """Write a line of the error file that has no response."""
        messages = {
            "expired": "This request could not be executed before the completion window expired.",
            "cancelled": "This request was not executed because the batch was cancelled.",
        }
        error = {"code": f"batch_{how}", "message": messages[how]}
        return orjson.dumps({"id": _request_id(), "custom_id": custom_id, "response": None, "error": error})

    @staticmethod
    def _line(custom_id: str, status: int, body: bytes) -> bytes:
        # The body goes in as it is: an answer of megabytes is not read again.
        head = orjson.dumps({"id": _request_id(), "custom_id": custom_id})[:-1]
        response = f',"response":{{"status_code":{status},"request_id":"req_sim{next(_serial)}","body":'.encode()
        return head + response + body + b'},"error":null}'


class AnthropicLines:
    """Lines of `/v1/messages/batches`: all results are in one file."""

    failures_apart = False
    prefix = "msgbatch_"
    expired_kept = True

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def read(self, line: bytes) -> tuple[str, Any]:
        """Return a line's custom_id and its params."""
        data = orjson.loads(line)
        return data["custom_id"], data["params"]

    def answer(self, body: Any) -> Answer:
        """Answer params. What is wrong with them is found out only here, as Anthropic does."""
        if isinstance(body, dict) and body.get("stream"):
            raise ApiError(400, "stream: streaming is not supported in batches")
        return self._answers.messages(body, tier="batch")

    def done(self, custom_id: str, answer: Answer) -> bytes:
        """Write a result that succeeded."""
        return self._head(custom_id) + b'{"type":"succeeded","message":' + answer.body + b"}}"

    def failed(self, custom_id: str, error: ApiError) -> bytes:
        """Write a result that errored."""
        result = {"type": "errored", "error": anthropic_error(error)}
        return self._head(custom_id) + orjson.dumps(result) + b"}"

    def unserved(self, custom_id: str, how: str) -> bytes:
        """Write a result that expired or was canceled, which Anthropic spells with one l."""
        kind = "canceled" if how == "cancelled" else how
        return self._head(custom_id) + orjson.dumps({"type": kind}) + b"}"

    @staticmethod
    def _head(custom_id: str) -> bytes:
        return orjson.dumps({"custom_id": custom_id})[:-1] + b',"result":'


class GeminiLines:
    """Lines of a Gemini batch from a file: all results are in one file, of an expired one there are none.

    Parameters
    ----------
    model
        That of the path. Lines have none.
    """

    failures_apart = False
    prefix = "batches/"
    expired_kept = False

    def __init__(self, model: str, answers: Answers, settings: SimulatorSettings) -> None:
        self._model = model
        self._answers = answers
        self._settings = settings

    def scan(self, path: Path) -> Scan:
        """Read all lines once, as the create does.

        Raises
        ------
        ApiError
            400, for a line that cannot be read. What is wrong with a request shows in the results.
        """
        scan, limits = Scan(model=self._model), self._settings.batches
        if path.stat().st_size > (limits.max_bytes or GEMINI_BYTES):
            raise ApiError(400, "The input file is too large for a batch.")
        for number, (start, line) in enumerate(read_lines(path), 1):
            if limits.max_requests is not None and number > limits.max_requests:
                raise ApiError(400, f"The batch has more than {limits.max_requests} requests.")
            try:
                data = orjson.loads(line)
            except orjson.JSONDecodeError:
                data = None
            marker = limits.invalid_marker
            spoiled = marker is not None and marker in line.decode()
            if not isinstance(data, dict) or not isinstance(data.get("request"), dict) or spoiled:
                raise ApiError(400, f"Request contains an invalid argument: line {number} of the input file.")
            scan.starts.append(start)
            scan.custom_ids.append(str(data.get("key")))
            scan.tokens += prompt_tokens(data["request"])
        if not scan.starts:
            raise ApiError(400, "The input file has no requests.")
        return scan

    def read(self, line: bytes) -> tuple[str, Any]:
        """Return a line's key and its request."""
        data = orjson.loads(line)
        return str(data.get("key")), data["request"]

    def answer(self, body: Any) -> Answer:
        """Answer a request."""
        return self._answers.generate_content({**body, "model": self._model})

    def done(self, custom_id: str, answer: Answer) -> bytes:
        """Write a line with an answer."""
        return orjson.dumps({"key": custom_id})[:-1] + b',"response":' + answer.body + b"}"

    def failed(self, custom_id: str, error: ApiError) -> bytes:
        """Write a line with an error, whose code is gRPC's."""
        return orjson.dumps({"key": custom_id, "error": {"code": google_code(error), "message": error.message}})

    def unserved(self, custom_id: str, how: str) -> None:
        """Nothing says what was not worked on."""


def store_requests(body: Path, target: Path, settings: SimulatorSettings) -> Scan:
    """Check the body of a create of Anthropic's, and write its requests as lines.

    Raises
    ------
    ApiError
        400 or 413, for what Anthropic refuses at once; what is wrong with `params` shows in the results.
    """
    scan, seen = Scan(), set[str]()
    most = settings.batches.max_requests or ANTHROPIC_REQUESTS
    marker = settings.batches.invalid_marker
    with target.open("wb") as file:
        for index, request in enumerate(listed_requests(body)):
            where = f"requests.{index}"
            if index >= most:
                raise ApiError(413, f"A batch has at most {most} requests")
            if not isinstance(request, dict):
                raise ApiError(400, f"{where}: Input should be an object")
            for name, kind in (("custom_id", str), ("params", dict)):
                if not isinstance(request.get(name), kind):
                    raise ApiError(400, f"{where}.{name}: Field required")
            custom_id = request["custom_id"]
            if len(custom_id) > 64:
                raise ApiError(400, f"{where}.custom_id: String should have at most 64 characters")
            if not _CUSTOM_ID.fullmatch(custom_id):
                raise ApiError(400, f"{where}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
            if custom_id in seen:
                message = f"custom_id's must be unique within a batch. Duplicate custom_id found: {custom_id}"
                raise ApiError(400, f"requests: {message}")
            seen.add(custom_id)
            line = orjson.dumps({"custom_id": custom_id, "params": request["params"]})
            if marker is not None and marker in line.decode():
                raise ApiError(400, f"{where}.params: Input is not valid")
            scan.starts.append(file.tell())
            scan.custom_ids.append(custom_id)
            scan.tokens += prompt_tokens(request["params"])
            file.write(line + b"\n")
    if not scan.starts:
        raise ApiError(400, "requests: List should have at least 1 item after validation, not 0")
    return scan


def _request_id() -> str:
    return f"batch_req_sim{next(_serial):08d}"


def _invalid(code: str, message: str, param: str | None, line: int | None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}
