"""The seam to the network: one :class:`~infermesh.types.Transport` a deployment.

Neither LiteLLM nor the HTTP client is imported before the first request.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from infermesh.config.deployment import MAX_RESPONSE_BYTES, DeploymentConfig
from infermesh.redaction import secret_values
from infermesh.transports.dialect import Dialect
from infermesh.transports.exposure import warn_of_exposed_keys
from infermesh.transports.late_values import LateValues
from infermesh.transports.litellm import LiteLLMTransport
from infermesh.transports.native import NativeTransport
from infermesh.transports.provider_table import split_model
from infermesh.transports.providers import resolve_deployment
from infermesh.types import Transport

__all__ = [
    "LateValues",
    "LiteLLMTransport",
    "NativeTransport",
    "make_transport",
]


def make_transport(config: DeploymentConfig, *, label: str, environ: Mapping[str, str] | None = None) -> Transport:
    """Make the transport of a deployment, by the rule of :func:`~infermesh.transports.providers.resolve_deployment`.

    Parameters
    ----------
    config
        The deployment.
    label
        Its label, for messages and results.
    environ
        Where keys are looked up. ``None``: the process's environment.

    Raises
    ------
    ConfigError
        A variable that ``api_key_env`` or a header names is not set, or the URL is missing or wrong. A key that is
        missing at a provider that needs one is not raised here: each request then fails with an
        ``AuthenticationError`` that names the variable.
    """
    dialect = Dialect(label, *split_model(config.model))
    found = resolve_deployment(config, os.environ if environ is None else environ, label=label)
    warn_of_exposed_keys(label, found.api_base, (found.api_key, *secret_values(found.headers), *found.secrets))
    if found.kind == "native":
        assert found.api_base is not None
        return NativeTransport(
            label=label,
            model=found.wire_model,
            api_base=found.api_base,
            api_key=found.api_key,
            headers=found.headers,
            secrets=found.secrets,
            missing_key=found.missing_key,
            dialect=dialect,
            ca_bundle=config.ca_bundle,
            max_response_bytes=config.max_response_bytes or MAX_RESPONSE_BYTES,
        )
    return LiteLLMTransport(
        label=label,
        model=found.wire_model,
        api_base=found.api_base,
        api_key=found.api_key,
        headers=found.headers,
        secrets=found.secrets,
        dialect=dialect,
        ca_bundle=config.ca_bundle,
        max_response_bytes=config.max_response_bytes or MAX_RESPONSE_BYTES,
    )
