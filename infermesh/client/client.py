"""The Python client: one model behind one or more deployments, from scripts, threads, notebooks and event loops.

How it is made, opened and closed stands here. What it can be asked is in :mod:`infermesh.client.generation`,
:mod:`infermesh.client.embedding` and :mod:`infermesh.client.transcription`. There every method is twice, plain and with
an ``a`` in front, and only hands on what it was given. What they do is written once, in
:mod:`infermesh.client.operations` and :mod:`infermesh.client.batches`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from infermesh.client.build import client_model, deployment_configs, spread_slots
from infermesh.client.embedding import EmbeddingCalls
from infermesh.client.generation import GenerationCalls
from infermesh.client.lifetime import ClientLoop
from infermesh.client.operations import Operations, check_choice, check_max_bytes, check_timeout, client_default
from infermesh.client.transcription import TranscriptionCalls
from infermesh.config.deployment import MAX_RESPONSE_BYTES, DeploymentConfig
from infermesh.dispatch.retry import RetryPolicy
from infermesh.inputs.audio import DEFAULT_MAX_BYTES
from infermesh.limits import Limits
from infermesh.transports import make_transport
from infermesh.types import Endpoint, HeaderBucketScope, RoutingStrategy

__all__ = ["LMClient"]


class LMClient(GenerationCalls, EmbeddingCalls, TranscriptionCalls):
    """Sends requests to one model: one at a time, a list of them, or a stream.

    Use it where code of yours makes the prompts and takes the results: in scripts, threads, notebooks and asyncio. It
    keeps rate limits, retries failures that may pass, spreads requests over replicas, and returns typed results. For
    rows in files, and for jobs that must survive a crash, there is ``infermesh run``.

    All work is done on an event loop in a thread of the client's own. Every caller, synchronous or asynchronous, shares
    its limits, slots and connections. The thread starts with the first call and ends with :meth:`close`. Use the client
    in ``with`` or ``async with``, which may be entered again later.

    Parameters
    ----------
    model
        ``provider/model`` as LiteLLM writes it; with ``deployments``, any name.
    api_base
        The server's base URL, or a list of URLs with a replica each. ``None`` is the provider's own.
    api_key
        A key. ``None`` takes it from the provider's usual environment variable.
    deployments
        Label → :class:`~infermesh.config.deployment.DeploymentConfig` (or its fields as a mapping), instead of
        ``api_base``. Limits set there are that deployment's own.
    endpoint
        ``chat_completion``, ``text_completion`` or ``responses``.
    max_parallel_requests
        Requests in flight at once, over all callers, at least 1. ``None`` sets no bound, and a batch starts all its
        items at once.
    rpm, tpm, rpd, tpd
        Requests and tokens per minute and per UTC day, shared by all deployments. Requests wait until they fit.
        ``None`` is no limit.
    max_request_burst, max_token_burst
        Requests and tokens that may be sent at once after an idle time. ``None`` paces them evenly.
    header_bucket_scope
        Which limits the server's ``x-ratelimit-*`` headers speak of: ``minute`` or ``day``; ``auto`` infers it.
    default_output_tokens
        Tokens to reserve for an answer without ``max_tokens``. ``None`` takes the mean of the answers so far.
    shared_limits
        The name of the account that these limits are of, where runs (``limits.NAME.shared: true``) and other clients
        on this machine use it too: all of them together keep to it. ``None``: the limits are this client's alone.
    timeout
        Seconds for one attempt, above 0. ``None`` waits for ever. One in ``default_request_kwargs`` takes its place.
    max_retries
        Attempts after the first, for failures that may pass. 0 sends every request once.
    default_request_kwargs
        Options and wire parameters of every request. Those of a call take their place.
    routing_strategy
        ``simple-shuffle``, ``least-busy`` or ``latency-based-routing``.
    max_transcription_bytes
        Largest clip that is sent, in bytes, at least 1. ``None`` sends any, and reads it into memory whole. One in
        ``default_request_kwargs`` takes its place.
    max_response_bytes
        The most bytes that an answer may have, once it is decompressed, for deployments that do not set their own. A
        longer one is not read to its end, and fails with a ``MalformedResponseError``.
    input_cost_per_token, output_cost_per_token
        US dollars, for deployments that do not set their own. ``None`` goes by the price list.

    Raises
    ------
    ConfigError
        A parameter is out of its range, or names something that does not exist. Nothing was sent.

    Examples
    --------
    >>> from infermesh import LMClient
    >>> client = LMClient("hosted_vllm/llama-3-8b", api_base="http://localhost:8000/v1", max_parallel_requests=64)
    >>> with client:
    ...     batch = client.generate_batch([f"Name a city in region {n}." for n in range(100)])
    >>> len(batch), batch.failures
    (100, {})

    Under asyncio every method has a counterpart with an ``a`` in front:

    >>> import asyncio
    >>> async def main():
    ...     async with LMClient("hosted_vllm/llama-3-8b", api_base="http://localhost:8000/v1") as client:
    ...         return await client.agenerate("What is the capital of France?")
    >>> asyncio.run(main()).finish_reason
    'stop'

    The examples of the methods use an open ``client``.
    """

    def __init__(
        self,
        model: str,
        *,
        api_base: str | Sequence[str] | None = None,
        api_key: str | None = None,
        deployments: Mapping[str, DeploymentConfig | Mapping[str, Any]] | None = None,
        endpoint: Endpoint = "chat_completion",
        max_parallel_requests: int | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
        rpd: float | None = None,
        tpd: float | None = None,
        max_request_burst: float | None = None,
        max_token_burst: float | None = None,
        header_bucket_scope: HeaderBucketScope = "auto",
        default_output_tokens: int | None = None,
        shared_limits: str | None = None,
        timeout: float | None = 600.0,
        max_retries: int = 3,
        default_request_kwargs: Mapping[str, Any] | None = None,
        routing_strategy: RoutingStrategy = "simple-shuffle",
        max_transcription_bytes: int | None = DEFAULT_MAX_BYTES,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        input_cost_per_token: float | None = None,
        output_cost_per_token: float | None = None,
    ) -> None:
        self.model = model
        defaults = dict(default_request_kwargs or {})
        largest = client_default("max_transcription_bytes", max_transcription_bytes, defaults, check_max_bytes)
        configs, slots, window = spread_slots(
            deployment_configs(model, api_base, api_key, deployments, max_response_bytes), max_parallel_requests
        )
        logical_model, deployed = client_model(
            model,
            configs,
            account=Limits(
                rpm=rpm,
                tpm=tpm,
                rpd=rpd,
                tpd=tpd,
                max_request_burst=max_request_burst,
                max_token_burst=max_token_burst,
                header_bucket_scope=header_bucket_scope,
                default_output_tokens=default_output_tokens,
            ),
            strategy=routing_strategy,
            endpoint=check_choice("endpoint", endpoint, Endpoint),
            retry=RetryPolicy(max_retries=max_retries),
            timeout=client_default("timeout", timeout, defaults, check_timeout),
            costs=(input_cost_per_token, output_cost_per_token),
            shared=shared_limits,
        )
        self._operations = Operations(logical_model, slots, defaults, largest)
        self._loop = ClientLoop(deployed, lambda label: make_transport(configs[label], label=label), window)

    def __repr__(self) -> str:
        return f"LMClient({self.model!r})"

    def __enter__(self) -> Self:
        self._loop.reopen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._loop.reopen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def close(self) -> None:
        """End all calls that are under way, in whichever thread, and close every connection.

        Calls that are ended so raise ``RuntimeError``. A closed client may be opened again with ``with client:``.
        """
        self._loop.close()

    async def aclose(self) -> None:
        """Do what :meth:`close` does, without blocking the event loop."""
        await self._loop.aclose()
