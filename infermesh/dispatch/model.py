"""A logical model: its three operations, each from a wire request to a typed result with usage, cost and metrics.

The client, the runner and the benchmarks all send their requests through here.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from infermesh.dispatch import Deployment, Router
from infermesh.dispatch.batched import Batching
from infermesh.dispatch.blame import blame
from infermesh.dispatch.dispatcher import Dispatcher
from infermesh.dispatch.reasking import (
    asked_again,
    cost,
    merged,
    parse_into,
    parsed,
    unusable,
    with_earlier,
    with_failed_reask,
)
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import (
    BadRequestError,
    InputError,
    MalformedResponseError,
    NoDeploymentError,
    RequestError,
    ServerError,
    StoppedError,
)
from infermesh.hints import counted
from infermesh.results import EmbeddingResult, GenerationResult, RequestMetrics, TokenUsage, TranscriptionResult
from infermesh.runtime.foreign import ForeignFunction, NoAnswer
from infermesh.types import (
    USE_CLIENT_DEFAULT,
    Audio,
    Endpoint,
    Operation,
    Reply,
    Request,
    RoutingStrategy,
    Timeout,
)
from infermesh.wire.answers import parse_generation, parse_transcription, refusal_of
from infermesh.wire.endings import ending
from infermesh.wire.requests import (
    embedding_request,
    estimate_tokens,
    generation_request,
    messages_from,
    transcription_request,
)
from infermesh.wire.structured import ResponseFormat
from infermesh.wire.vectors import parse_embeddings

logger = logging.getLogger("infermesh")

OnInvalid = Literal["null", "retry", "error"]
MAX_REASKS = 2
_HARMLESS = "text"
_CHECKS = 8  # answers at once that a user's validators look at


@dataclass(slots=True)
class _Split:
    """What is known of a request of several texts that failed."""

    probed: bool = False
    refused: bool = False  # whatever the texts


class LogicalModel:
    """One model as callers name it, over the deployments that serve it.

    Parameters
    ----------
    name
        Its name in messages.
    deployments
        Other models may share them, and with them their limits and slots.
    backends
        The deployments' names for the model.
    strategy
        How a deployment is chosen for a request.
    endpoint
        Where generations are sent, unless a request says otherwise.
    params
        Wire parameters of every request, for callers that add them.
    retry
        How often a request is tried again, and after how long.
    timeout
        Seconds for one attempt; ``None`` waits for ever.
    counts_tokens
        Whether any of the limits counts tokens, so that those of a request must be estimated.
    rng
        Source of the random choices and of the jitter.

    Attributes
    ----------
    backends
        The distinct backend names, sorted, with commas between. With the endpoint they decide the answer.
    identity
        Both as one text, which is hashed into the keys of stored answers.
    labels
        The deployments' labels.
    counts_tokens
        As above. It may be set while requests pass.
    router
        Chooses among them.
    """

    def __init__(
        self,
        name: str,
        deployments: Sequence[Deployment],
        *,
        backends: Sequence[str],
        strategy: RoutingStrategy = "simple-shuffle",
        endpoint: Endpoint = "chat_completion",
        params: Mapping[str, Any] | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        counts_tokens: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.endpoint: Endpoint = endpoint
        self.params = dict(params or {})
        self.timeout = timeout
        self.backends = ",".join(sorted(set(backends)))
        self.identity = f"{endpoint}|{self.backends}"  # if it changed, no stored answer would be found again
        self.labels = [deployment.label for deployment in deployments]
        self.counts_tokens = counts_tokens
        self._prices = {deployment.label: deployment.price for deployment in deployments}
        rng = rng or random.Random()
        retry = retry or RetryPolicy()
        self.router = router = Router(deployments, strategy, rng=rng, patience_s=retry.patience_s)
        self._dispatcher = Dispatcher(router, retry, rng=rng)
        # For the parts of a request that has failed with all its retries.
        once_more = replace(retry, max_retries=min(retry.max_retries, 1))
        self._impatient = Dispatcher(router, once_more, rng=rng, tells=False)
        self._checks: ForeignFunction | None = None
        self._told_refusal = False
        self._lengths: dict[Any, int] = {}  # `dimensions` as asked for → the length of the vectors

    @property
    def route(self) -> Batching | None:
        """Where its requests are looked up first: what puts them into batches. ``None``: they are sent live."""
        return self._dispatcher.batching

    @route.setter
    def route(self, batching: Batching | None) -> None:
        self._dispatcher.batching = batching

    def stop(self, *, drop: bool = False) -> None:
        """Send nothing more; requests that wait to be sent end with ``StoppedError``, with ``drop`` all of them."""
        self._dispatcher.stop(drop=drop)
        self._impatient.stop(drop=drop)

    def pause(self, on: bool) -> None:
        """Send nothing while ``on``; requests wait."""
        self._dispatcher.pause(on)
        self._impatient.pause(on)

    def _seconds(self, timeout: Timeout) -> float | None:
        seconds = self.timeout if timeout is USE_CLIENT_DEFAULT else timeout
        return None if seconds == math.inf else seconds  # a timer cannot be set to infinity

    def key(self, *parts: object) -> str:
        """Hash what decides an answer, for requests that are not hashed by their payload."""
        return hashlib.blake2b(repr((self.identity, *parts)).encode(), digest_size=16).hexdigest()

    def generation_request(
        self,
        input: str | Sequence[Mapping[str, Any]] | Mapping[str, Any],
        params: Mapping[str, Any],
        *,
        system: str | None = None,
        response_format: ResponseFormat | None = None,
        endpoint: Endpoint | None = None,
    ) -> Request:
        """Build a generation request. Raises ``InputError`` where the input does not fit the endpoint."""
        endpoint = endpoint or self.endpoint
        if response_format is not None:
            params = {**params, "response_format": response_format.wire or None}
        if system is not None:
            if endpoint == "chat_completion" and not isinstance(input, Mapping):
                input = messages_from(input, system)
            elif endpoint == "responses":
                params = {"instructions": system, **params}
            elif isinstance(input, str):
                input = f"{system}\n\n{input}"
        return generation_request(endpoint, input, params)

    def generate(
        self,
        request: Request,
        response_format: ResponseFormat | None = None,
        *,
        on_invalid: OnInvalid = "null",
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> Coroutine[Any, Any, GenerationResult]:
        """Send a generation request.

        With a ``response_format``, the answer is parsed into ``output_parsed``. Where it does not satisfy the format,
        ``on_invalid="null"`` logs a warning and leaves that ``None``; ``"retry"`` tells the model what was wrong and
        asks again, at most twice, but not after an answer that a limit has cut. Where asking again fails, the answer
        that there is stays. In both cases the result's ``invalid`` says what is wrong; ``"error"`` raises an
        ``InvalidAnswerError`` that does. Raises ``RequestError``.
        """
        if response_format is None:
            return self._generate(request, timeout)
        return self._generate_parsed(request, response_format, on_invalid, timeout)

    async def _generate_parsed(
        self, request: Request, response_format: ResponseFormat, on_invalid: OnInvalid, timeout: Timeout
    ) -> GenerationResult:
        result = await self._generate(request, timeout)
        reasks = MAX_REASKS if on_invalid == "retry" else 0
        while True:
            problem = await self._parse_into(result, response_format, self._seconds(timeout))
            if problem is None:
                return result
            if ending(result.finish_reason) == "cut":  # the same limit would cut it again
                limit = request.output_tokens
                where = "at the server's limit" if limit is None else f"at max_tokens={limit}"
                problem = f"the answer was cut {where} (finish_reason {result.finish_reason!r}): raise it"
                reasks = 0
            elif (refusal := refusal_of(result)) is not None:  # it would refuse again
                problem = f"the model refused: {refusal[:200]!r}"
                reasks = 0
            if on_invalid == "error":
                raise unusable(result, problem)
            result.invalid = problem
            if not reasks:
                logger.warning("%s: output_parsed is None: %s", result.request_id or self.name, problem)
                return result
            reasks -= 1
            try:
                again = await self._generate(asked_again(request, result, problem), timeout)
            except StoppedError as error:
                error.metrics = with_earlier(error.metrics, result.metrics)
                raise
            except RequestError as error:
                # The first answer is paid for, and better than none.
                logger.warning(
                    "%s: output_parsed is None: %s; asking again failed: %s",
                    result.request_id or self.name,
                    problem,
                    error,
                )
                return with_failed_reask(result, error)
            result = merged(result, again)

    async def _parse_into(
        self, result: GenerationResult, response_format: ResponseFormat, timeout: float | None
    ) -> str | None:
        """Fill ``output_parsed``; in a thread, with a bound in time, where validators of the user's have to be called.

        Returns what is wrong where the text does not satisfy the format.
        """
        if not response_format.runs_code:
            return parse_into(result, response_format)
        if self._checks is None:
            self._checks = ForeignFunction(f"the validators of {self.name}", parsed, _CHECKS)
        try:
            problem, result.output_parsed, result.reasoning = await self._checks.call(
                (replace(result), response_format), timeout
            )
        except NoAnswer as error:
            return f"its validators: {error}"
        found: str | None = problem
        return found

    async def _generate(self, request: Request, timeout: Timeout) -> GenerationResult:
        if self.counts_tokens:
            request.prompt_tokens = estimate_tokens(request)
        parse = _PARSERS[request.operation]
        result, metrics = await self._dispatcher.send(request, parse, self._seconds(timeout))
        result.metrics = metrics
        result.cost = cost(metrics)
        return result

    async def embed(
        self, texts: Sequence[str], params: Mapping[str, Any], *, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> list[EmbeddingResult | RequestError]:
        """Embed texts in one request. One that fails for what may be one text's fault is sent again in halves.

        Where a half fails as well, a harmless text is tried: if it is refused too, the fault is no text's, and nothing
        more is sent for these. A text may also make a server hang up, or a proxy before it say that nobody is there:
        that is split as long as the harmless text is answered each time.

        Returns
        -------
        list
            For each text its result or its error.
        """
        return await self._embed_split(texts, params, timeout, None)

    async def _embed_split(
        self, texts: Sequence[str], params: Mapping[str, Any], timeout: Timeout, split: _Split | None
    ) -> list[EmbeddingResult | RequestError]:
        dispatcher = self._dispatcher if split is None else self._impatient
        try:
            return list(await self._embed(texts, params, timeout, dispatcher))
        except RequestError as error:
            failure = error
        fault = _suspect(failure)
        if len(texts) == 1 or fault is None:
            return [failure] * len(texts)
        if fault == "away" or (split is not None and not split.probed):
            said, probe = await self._try_harmless(params, timeout)
            failure.metrics = with_earlier(probe, failure.metrics)
            if fault == "away" and said is not None:
                if isinstance(said, StoppedError):  # nobody knows whose fault it is: the texts wait for another run
                    said.metrics, failure = failure.metrics, said
                return [failure] * len(texts)
        if split is None:
            split = _Split()
        elif fault == "text" and not split.probed:
            split.probed = True
            split.refused = self._refuses_all(said)
        half = len(texts) // 2
        results: list[EmbeddingResult | RequestError] = []
        for part in (texts[:half], texts[half:]):
            if split.refused:  # what failed last says the same, and has its attempts counted
                results += [results[-1] if results else failure] * len(part)
            else:
                results += await self._embed_split(part, params, timeout, split)
        if results[0] is not failure:
            results[0].metrics = with_earlier(results[0].metrics, failure.metrics)
        return results

    async def _try_harmless(
        self, params: Mapping[str, Any], timeout: Timeout
    ) -> tuple[RequestError | None, RequestMetrics | None]:
        """How a text fails that nothing is wrong with, ``None`` if it does not; and what it took to find out."""
        try:
            (result,) = await self._embed([_HARMLESS], params, timeout, self._impatient, rows=0)
        except RequestError as error:
            return error, error.metrics
        return None, result.metrics

    def _refuses_all(self, said: RequestError | None) -> bool:
        """Whether the failure of the harmless text says that every text fails. An overload of the moment does not."""
        refused = said is not None and _suspect(said) == "text"
        if refused and not self._told_refusal:
            self._told_refusal = True
            logger.warning(
                "%s: embeddings fail whatever the text: so does %r, which was sent to find out. "
                "Requests of several texts that fail are not split. It said: %s",
                self.name,
                _HARMLESS,
                said,
            )
        return refused

    async def _embed(
        self,
        texts: Sequence[str],
        params: Mapping[str, Any],
        timeout: Timeout,
        dispatcher: Dispatcher,
        *,
        rows: int | None = None,
    ) -> list[EmbeddingResult]:
        request = embedding_request(texts, params)
        request.rows = len(texts) if rows is None else rows
        if self.counts_tokens:
            request.prompt_tokens = estimate_tokens(request)
        weights = [len(text) for text in texts]

        def parse(reply: Reply) -> tuple[list[EmbeddingResult], TokenUsage | None]:
            results = parse_embeddings(reply, len(texts), weights)
            self._check_lengths(results, reply, params.get("dimensions"))
            parts = [result.token_usage for result in results if result.token_usage is not None]
            return results, TokenUsage(sum(part.prompt_tokens for part in parts)) if parts else None

        results, metrics = await dispatcher.send(request, parse, self._seconds(timeout))
        price = self._prices[metrics.deployment]
        for result in results:
            result.metrics = metrics
            result.cost = None if price is None or result.token_usage is None else price(result.token_usage)
        return results

    def _check_lengths(self, results: Sequence[EmbeddingResult], reply: Reply, asked: Any) -> None:
        """Refuse vectors of another length than this model's others. The commonest of the first request counts."""
        lengths = [result.dimensions for result in results]
        known = self._lengths.get(asked)
        if known is None:
            known = max(set(lengths), key=lengths.count)
            if len(lengths) > 1:
                self._lengths[asked] = known
        odd = next((length for length in lengths if length != known), None)
        if odd is not None:
            raise MalformedResponseError(
                f"expected vectors of {counted(known, 'number')}, as this model's others have, but one of {odd} came",
                status_code=reply.status_code,
            )

    def dearest(self, usage: TokenUsage) -> float | None:
        """What these tokens cost at the dearest of its deployments, in US dollars; ``None``: no price is known."""
        if self.route is not None:
            usage = replace(usage, details={**(usage.details or {}), "service_tier": "batch"})
        costs = [price(usage) for price in self._prices.values() if price is not None]
        return max((cost for cost in costs if cost is not None), default=None)

    async def transcribe(
        self, audio: Audio, params: Mapping[str, Any], *, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> TranscriptionResult:
        """Transcribe one clip. Raises ``RequestError``."""

        def parse(reply: Reply) -> tuple[TranscriptionResult, TokenUsage | None]:
            result = parse_transcription(reply)
            if result.token_usage is None and result.duration_s is not None:  # billed by time
                return result, TokenUsage(details={"audio_seconds": result.duration_s})
            return result, result.token_usage

        request = transcription_request(audio, params)
        result, metrics = await self._dispatcher.send(request, parse, self._seconds(timeout))
        result.metrics = metrics
        result.cost = cost(metrics)
        return result


def _parser(operation: Operation) -> Callable[[Reply], tuple[GenerationResult, TokenUsage | None]]:
    def parse(reply: Reply) -> tuple[GenerationResult, TokenUsage | None]:
        result = parse_generation(operation, reply)
        return result, result.token_usage

    return parse


_PARSERS = {operation: _parser(operation) for operation in get_args(Endpoint)}


def _suspect(error: RequestError) -> Literal["text", "away"] | None:
    """Whether a request of several texts may have failed for one of them.

    ``text``: one may be wrong, or break the server. ``away``: the server seems not to be there, which one text can
    bring about if it ends its process. ``None``: the texts have no part in it.
    """
    if isinstance(error, NoDeploymentError) and isinstance(error.__cause__, RequestError):
        error = error.__cause__
    fault = blame(error, math.inf)
    if fault == "away":
        return "away"
    if isinstance(error, ServerError):
        return "text" if fault == "failure" and error.status_code != 498 else None
    return "text" if isinstance(error, BadRequestError | InputError | MalformedResponseError) else None
