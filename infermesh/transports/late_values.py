"""A transport for requests whose parameters hold values of environment variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from infermesh.config.references import FromEnvironment
from infermesh.errors import RequestError
from infermesh.redaction import secret_parts
from infermesh.types import Reply, Request, Transport

__all__ = ["LateValues", "references_in"]


class LateValues:
    """Puts the values of variables into a request's parameters when it is sent.

    Until then a request holds the references, so that they are what is hashed and stored. Only what a declaration says
    is one, never a row's text.

    Parameters
    ----------
    transport
        What sends.
    references
        All that the declaration's parameters hold.
    environ
        Where the variables are looked up.

    Raises
    ------
    ConfigError
        A variable is not set.
    """

    def __init__(self, transport: Transport, references: list[FromEnvironment], environ: Mapping[str, str]) -> None:
        self.transport = transport
        self._values: dict[FromEnvironment, Any] = {each: each.value(environ) for each in references}
        used = [value for each in references for value in each.values(environ)]
        self._secrets = tuple(part for value in used for part in secret_parts(value))

    async def send(self, request: Request, timeout: float | None) -> Reply:
        """Send one request once. See :class:`~infermesh.types.Transport`."""
        filled = dataclasses.replace(request, payload=self._filled(request.payload))
        filled.fresh = request.fresh
        try:
            reply = await self.transport.send(filled, timeout)
        except RequestError as error:
            request.fresh = filled.fresh  # what the transport wants of the next attempt
            error.redact(self._secrets)
            raise
        reply.secrets = (*reply.secrets, *self._secrets)
        return reply

    async def aclose(self) -> None:
        """Close every connection."""
        await self.transport.aclose()

    def _filled(self, node: Any) -> Any:
        if isinstance(node, FromEnvironment):
            return self._values[node]
        if isinstance(node, dict):
            return {name: self._filled(value) for name, value in node.items()}
        return [self._filled(item) for item in node] if isinstance(node, list) else node


def references_in(node: Any) -> Iterator[FromEnvironment]:
    """The references to variables in parameters."""
    if isinstance(node, FromEnvironment):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from references_in(value)
    elif isinstance(node, list):
        for item in node:
            yield from references_in(item)
