"""The errors of an OpenAI-compatible service, and how Anthropic and Google write them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

import orjson
from pydantic import ValidationError

__all__ = ["ApiError", "HangUp", "anthropic_error", "from_validation", "google_code", "google_error"]

# https://docs.claude.com/en/api/errors
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# HTTP status → code and name: https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
_GOOGLE = {
    400: (3, "INVALID_ARGUMENT"),
    403: (7, "PERMISSION_DENIED"),
    404: (5, "NOT_FOUND"),
    405: (12, "UNIMPLEMENTED"),
    413: (3, "INVALID_ARGUMENT"),
    429: (8, "RESOURCE_EXHAUSTED"),
    503: (14, "UNAVAILABLE"),
    504: (4, "DEADLINE_EXCEEDED"),
}


class HangUp(Exception):
    """What was asked for is done, and the socket is closed instead of an answer."""


class ApiError(Exception):
    """A request is answered with an error status.

    Parameters
    ----------
    status
        The HTTP status.
    message
        For people.
    kind
        `error.type`.
    code
        `error.code`, for programs.
    param
        `error.param`: the field at fault.
    headers
        Sent with the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Return the error as OpenAI writes it."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """Return the error as Anthropic writes it."""
    usual = "api_error" if error.status >= 500 else "invalid_request_error"
    inner = {"type": _ANTHROPIC_TYPES.get(error.status, usual), "message": error.message}
    return {"type": "error", "error": inner, "request_id": None}


def google_code(error: ApiError) -> int:
    """Return the code of gRPC that says the same."""
    return _GOOGLE.get(error.status, (13, ""))[0]


def google_error(error: ApiError) -> tuple[int, dict[str, Any]]:
    """Return status and body as Google writes them. A wrong key is a 400."""
    if error.status == 401:
        reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
        details = [{**reason, "domain": "googleapis.com"}]
        message = "API key not valid. Please pass a valid API key."
        return 400, {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT", "details": details}}
    status = _GOOGLE.get(error.status, (13, "INTERNAL"))[1]
    return error.status, {"error": {"code": error.status, "message": error.message, "status": status}}


def from_validation(error: ValidationError) -> ApiError:
    """Turn pydantic's first error into a 400."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # pydantic's path ends with the member of a union that it tried ("messages.0.content.str").
    path = takewhile(lambda part: part != "str" and "[" not in part, map(str, first["loc"]))
    param = ".".join(path)
    if first["type"] == "missing":
        message, code = f"Missing required parameter: '{param}'.", "missing_required_parameter"
    else:
        message, code = f"Invalid value for '{param}': {first['msg']}.", "invalid_value"
    return ApiError(400, message, code=code, param=param)
