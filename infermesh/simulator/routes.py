"""What the routes of all endpoints share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import orjson
from aiohttp import web

from infermesh.simulator.errors import ApiError
from infermesh.simulator.settings import Endpoint

__all__ = ["Call", "Routes", "decoded"]

# Answers a call: with the JSON of a 200, or with a response of its own.
Call: TypeAlias = Callable[[web.Request], Awaitable[bytes | web.StreamResponse]]
# Method, path, endpoint and name of a call, and who answers it.
Routes: TypeAlias = list[tuple[str, str, Endpoint, str, Call]]


def decoded(body: bytes) -> dict[str, Any]:
    """Return a request's JSON object.

    Raises
    ------
    ApiError
        400, if it is none.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        message = f"We could not parse the JSON body of your request: {error}."
        raise ApiError(400, message, code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(400, "The body of the request must be a JSON object.", code="invalid_json")
    return data
