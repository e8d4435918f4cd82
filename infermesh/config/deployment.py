"""One deployment, as ``LMClient`` takes it and the transports read it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, get_args

from infermesh.errors import ConfigError
from infermesh.redaction import shown_url
from infermesh.types import LIMITS, Limits, TransportKind

MAX_RESPONSE_BYTES = 64 << 20
"""The most bytes that an answer may have where a deployment does not say: hundreds of long vectors as JSON."""


def check_max_response_bytes(most: object) -> None:
    """Raise ``ConfigError`` unless ``most`` is a whole number above 0."""
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ConfigError(f"max_response_bytes: expected a number of bytes, at least 1, got {most!r}")


@dataclass(slots=True, repr=False)
class DeploymentConfig:
    """One replica or account that can serve a model.

    Parameters
    ----------
    model
        The backend's name for the model, in LiteLLM's ``provider/model`` form.
    api_base
        Its base URL, such as ``http://host1:8000/v1``. ``None``: the provider's own.
    api_key
        The key itself. Without it and ``api_key_env``, the provider's usual variable is looked at.
    api_key_env
        The environment variable that holds the key.
    weight
        Its share of the load, relative to the other deployments; above 0.
    max_parallel_requests
        Requests in flight at once, over all stages and callers. ``None``: no bound.
    rpm, tpm, rpd, tpd, max_request_burst, max_token_burst, header_bucket_scope, default_output_tokens
        Limits of this deployment alone, as :class:`~infermesh.types.Limits` has them. ``None`` takes the client's
        ``header_bucket_scope`` and ``default_output_tokens``.
    transport
        ``native`` (OpenAI's wire format), ``litellm`` (every other provider), or ``auto`` to tell by the model.
    headers
        Further HTTP headers: name → value, or name → ``{"env": NAME}`` for a value that stands in an environment
        variable.
    input_cost_per_token, output_cost_per_token
        US dollars per token, instead of the price list's.
    ca_bundle
        A file (PEM) or folder with further authorities, for a server whose certificate the system does not know.
    max_response_bytes
        The most bytes that an answer may have, once it is decompressed, at least 1. A longer one is not read to its
        end, and fails. ``None`` takes the client's.

    Raises
    ------
    ConfigError
        An unknown transport, or a bound below 1.

    Examples
    --------
    >>> DeploymentConfig("hosted_vllm/llama-3-8b", "http://host1:8000/v1", rpm=600).limits.rpm
    600
    """

    # Plain types, so that OmegaConf takes the class for a structured config.
    model: str
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    api_key_env: str | None = None
    weight: float = 1.0
    max_parallel_requests: int | None = None
    rpm: float | None = None
    tpm: float | None = None
    rpd: float | None = None
    tpd: float | None = None
    max_request_burst: float | None = None
    max_token_burst: float | None = None
    header_bucket_scope: str | None = None
    default_output_tokens: int | None = None
    transport: str = "auto"
    headers: dict[str, Any] | None = field(default=None, repr=False)
    input_cost_per_token: float | None = None
    output_cost_per_token: float | None = None
    ca_bundle: str | None = None
    max_response_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.transport not in get_args(TransportKind):
            raise ConfigError(
                f"transport: expected one of {', '.join(get_args(TransportKind))}, got {self.transport!r}"
            )
        if self.max_response_bytes is not None:
            check_max_response_bytes(self.max_response_bytes)

    def __repr__(self) -> str:
        """What differs from the defaults, without keys: neither ``api_key`` nor headers, nor those in the URL."""
        shown = {each.name: getattr(self, each.name) for each in fields(self) if each.repr}
        shown["api_base"] = shown_url(self.api_base)
        given = {each.name for each in fields(self) if getattr(self, each.name) != each.default}
        return f"DeploymentConfig({', '.join(f'{name}={value!r}' for name, value in shown.items() if name in given)})"

    @property
    def limits(self) -> Limits:
        """The limits of this deployment alone. Raises ``ConfigError`` if one is out of its range."""
        given = {name: getattr(self, name) for name in LIMITS}
        return Limits(**{name: value for name, value in given.items() if value is not None})
