"""The deployments of an experiment: their keys, whether they answer, what they serve, and what their clocks say."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
import wave
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from infermesh.cli.doctor.findings import Finding
from infermesh.config.schema import (
    DeploymentEntry,
    EmbedStage,
    Experiment,
    HeaderFromEnv,
    ModelStageConfig,
    TranscribeStage,
)
from infermesh.errors import APIConnectionError, ConfigError, RequestError, RequestTimeoutError
from infermesh.hints import counted, one_line
from infermesh.redaction import origin, redact
from infermesh.runtime.loop import run_loop
from infermesh.transports import LiteLLMTransport, NativeTransport, make_transport
from infermesh.transports.http.message import origin_of
from infermesh.transports.http.proxies import proxy_for
from infermesh.transports.native import Listed
from infermesh.transports.provider_table import PROVIDERS, split_model
from infermesh.transports.providers import resolve_deployment
from infermesh.types import Audio, Endpoint, Operation, Request, Transport
from infermesh.wire.requests import embedding_request, generation_request, transcription_request

AT_ONCE = 64  # deployments that are asked
_SKEW_S = 60.0
_SHOWN = 8  # models of a server
_NO_LIST = (404, 405, 501)  # not found, not allowed, not implemented
_REWRITTEN = 3  # times that a request may be written anew for a server that wants other names


def keys(experiment: Experiment | None, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Which variables with keys are set: those that the deployments name, else all that a provider is known by."""
    if experiment is None:
        names = [name for provider in dict.fromkeys(PROVIDERS.values()) for name in provider.key_vars]
        held = [name for name in dict.fromkeys(names) if environ.get(name)]
        yield Finding("keys", "ok", f"set: {', '.join(held)}" if held else "none is set; servers of your own need none")
    else:
        entries = experiment.deployments.items()
        held = list(dict.fromkeys(name for _, entry in entries for name in _variables(entry)))
        needed = {name for label, entry in entries if not _has_key(label, entry, environ) for name in _variables(entry)}
        absent = [name for name in held if not environ.get(name) and name in needed]
        if others := [name for name in held if name not in absent]:
            shown = (f"{name} is {'set' if environ.get(name) else 'not set'}" for name in others)
            yield Finding("keys", "ok", ", ".join(shown))
        for name in absent:
            yield Finding("keys", "fail", f"{name} is not set", f"export it, or --env-file FILE with a line {name}=…")
    for name in held:
        value = environ.get(name, "")
        if value != value.strip("'\" \t\r\n"):
            yield Finding("keys", "warn", f"{name} begins or ends with a quote or a blank", f"export {name} without it")


def _has_key(label: str, entry: DeploymentEntry, environ: Mapping[str, str]) -> bool:
    """Whether a deployment has the keys that it cannot do without."""
    if entry.api_base == "simulator":
        return True
    try:
        return resolve_deployment(entry.deployment_config(), environ, label=label).missing_key is None
    except ConfigError:
        return False


def _variables(entry: DeploymentEntry) -> Iterator[str]:
    """The variables that a deployment's key comes from: named, or those of its provider."""
    named = [each.env for each in entry.headers.values() if isinstance(each, HeaderFromEnv)]
    prefix, _ = split_model(entry.model)
    if entry.api_key_env:
        named.append(entry.api_key_env)
    elif entry.api_base != "simulator" and prefix in PROVIDERS:
        named += PROVIDERS[prefix].key_vars[:1]
    yield from named


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one deployment did: findings, and how far its clock is ahead of this one in seconds."""

    findings: list[Finding]
    skew_s: float | None = None


def deployments(experiment: Experiment, environ: Mapping[str, str], *, timeout: float, send: bool) -> Iterator[Finding]:
    """Ask every deployment which models it serves, all at once; with ``send``, also for one tiny answer.

    Parameters
    ----------
    timeout
        Seconds that each of the two may take.
    """
    seen = run_loop(_ask_all(experiment, environ, timeout, send))
    for label in seen:
        yield from seen[label].findings
    skews = {label: found.skew_s for label, found in seen.items() if found.skew_s is not None}
    if skews:
        label, worst = max(skews.items(), key=lambda each: abs(each[1]))
        if abs(worst) > _SKEW_S:
            words = f"{abs(worst):,.0f} s {'behind' if worst > 0 else 'ahead of'} the clock of {label}"
            yield Finding("clock", "warn", words, "set it by NTP, here or there: waits that a server asks for go wrong")
        else:
            yield Finding("clock", "ok", f"within {max(abs(worst), 1):.0f} s of {counted(len(skews), 'server')}")


async def _ask_all(experiment: Experiment, environ: Mapping[str, str], timeout: float, send: bool) -> dict[str, _Seen]:
    gate = asyncio.Semaphore(AT_ONCE)
    uses = _uses(experiment)

    async def ask(label: str, entry: DeploymentEntry) -> _Seen:
        async with gate:
            try:
                return await _ask(label, entry, uses.get(label, ()), environ, timeout, send)
            except Exception as error:  # of one, so that the others are told
                words = f"could not be asked: {type(error).__name__}: {redact(one_line(error, 200))}"
                return _Seen([Finding(f"deployment {label}", "fail", words, "this is a fault of infermesh: report it")])

    entries = experiment.deployments
    found = await asyncio.gather(*(ask(label, entry) for label, entry in entries.items()))
    return dict(zip(entries, found, strict=True))


def _uses(experiment: Experiment) -> dict[str, tuple[Operation, ...]]:
    """Deployment → what stages ask it for."""
    uses: dict[str, dict[Operation, None]] = {}
    for stage in experiment.stages.values():
        if isinstance(stage, ModelStageConfig):
            model = experiment.models[stage.model]
            operation: Operation = model.endpoint
            if isinstance(stage, EmbedStage):
                operation = "embedding"
            elif isinstance(stage, TranscribeStage):
                operation = "transcription"
            for label in model.deployments:
                uses.setdefault(label, {})[operation] = None
    return {label: tuple(operations) for label, operations in uses.items()}


async def _ask(
    label: str,
    entry: DeploymentEntry,
    operations: Iterable[Operation],
    environ: Mapping[str, str],
    timeout: float,
    send: bool,
) -> _Seen:
    about = f"deployment {label}"
    if entry.api_base == "simulator":
        return _Seen(
            [Finding(about, "ok", "the embedded simulator, which starts with the run and answers to any name")]
        )
    config = entry.deployment_config()
    try:
        resolved = resolve_deployment(config, environ, label=label)
        transport = make_transport(config, label=label, environ=environ)
    except ConfigError as error:
        words, _, cure = str(error).removeprefix(f"deployment {label!r}: ").partition(": ")
        return _Seen([Finding(about, "fail", words, cure or f"look at deployments.{label} in the experiment")])
    if missing := resolved.missing_key:
        words = f"no key for {origin(resolved.api_base) if resolved.api_base else entry.model}, so nothing is sent"
        return _Seen([Finding(about, "fail", words, f"export {missing}=…, or --env-file FILE with that line")])
    try:
        listed, finding = await _listed(about, transport, resolved.wire_model, timeout)
        findings = [finding]
        if send and not (finding.state == "fail" and listed is None):
            sent = [await _sent(about, transport, operation, timeout) for operation in operations]
            if sent and all(each.state == "ok" for each in sent) and finding.state == "fail":
                findings = [Finding(about, "warn", finding.words, "nothing: it answers to that name all the same")]
            findings += sent
        return _Seen(findings, _skew(listed))
    finally:
        await transport.aclose()


async def _listed(about: str, transport: Transport, model: str, timeout: float) -> tuple[Listed | None, Finding]:
    """Whether an endpoint answers, and whether it serves a model."""
    if not isinstance(transport, NativeTransport):
        return None, await _by_litellm(about, transport, model)
    place = origin(transport.api_base) + _by_proxy(transport.api_base)
    begun = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            listed = await transport.models(timeout)
    except (TimeoutError, RequestTimeoutError):
        words = f"{place} gave no answer within {timeout:g} s"
        return None, Finding(about, "fail", words, "is it up, and not overloaded? --timeout waits longer")
    except RequestError as error:
        if error.status_code not in _NO_LIST:
            return None, _failed(about, error)
        words = f"{place} answers, but lists no models (HTTP {error.status_code})"
        cure = "look whether api_base ends as its documentation says (most: /v1); --send asks it for an answer"
        return Listed(None, None), Finding(about, "warn", words, cure)
    took = f"{place} answers in {(time.monotonic() - begun) * 1000:,.0f} ms"
    if listed.models is None:
        return listed, Finding(about, "warn", f"{took}, but not with a list of models", "is api_base an API's URL?")
    more = len(listed.models) - _SHOWN
    names = ", ".join(listed.models[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
    if _serves(listed.models, model):
        return listed, Finding(about, "ok", f"{took} and serves {model}")
    if listed.open:
        return listed, Finding(about, "ok", f"{took} and serves {names}, and other names too")
    words = f"{took}, but does not list {model}. It serves: {names or 'none'}"
    return listed, Finding(about, "fail", words, f"write one of these as deployments.{_label(about)}.model")


def _by_proxy(api_base: str) -> str:
    """The proxy before a server, which may be what answers."""
    with contextlib.suppress(ValueError):  # a request says what is wrong with it
        secure, host, port = origin_of(api_base)
        if (proxy := proxy_for("https" if secure else "http", host, port)) is not None:
            return f" through the proxy {proxy}"
    return ""


async def _by_litellm(about: str, transport: Transport, model: str) -> Finding:
    """Whether LiteLLM finds the variables that it needs; it has no list of models to ask for."""
    if "/" in model and not split_model(model)[0]:
        cure = f"for a server of your own: hosted_vllm/{model} and its api_base; LiteLLM's documentation has the others"
        return Finding(about, "warn", f"{model.partition('/')[0]} is no provider that is known here", cure)
    names = await transport.missing_variables() if isinstance(transport, LiteLLMTransport) else []
    if not names:
        return Finding(about, "ok", f"{model} by LiteLLM, which has no list of models; --send asks it for an answer")
    listed = " or ".join(names)
    if all(name.endswith("_API_KEY") for name in names):
        return Finding(about, "fail", f"no key for {model}", f"export {listed}, or --env-file FILE with that line")
    return Finding(
        about, "warn", f"{model} by LiteLLM: {listed} not set", "export them, unless a role or a profile holds the key"
    )


def _serves(models: Iterable[str], model: str) -> bool:
    """Whether a model is in a list: Google writes ``models/NAME``, Ollama ``NAME:latest``."""
    return any(model in (each, each.removeprefix("models/"), each.removesuffix(":latest")) for each in models)


async def _sent(about: str, transport: Transport, operation: Operation, timeout: float) -> Finding:
    """Ask for one tiny answer."""
    begun = time.monotonic()
    request = _tiny(operation)
    what = operation.replace("_", " ")
    try:
        async with asyncio.timeout(timeout):
            for again in reversed(range(_REWRITTEN + 1)):
                try:
                    await transport.send(request, timeout)
                    break
                except RequestError as error:
                    if not (error.rewritten and again):
                        raise
    except (TimeoutError, RequestTimeoutError):
        words = f"{what}: no answer within {timeout:g} s"
        return Finding(about, "fail", words, "--timeout waits longer; see the server's log")
    except RequestError as error:
        return _failed(about, error, f"{what}: ")
    return Finding(about, "ok", f"{what}: answered in {time.monotonic() - begun:.2f} s")


def _tiny(operation: Operation) -> Request:
    if operation == "embedding":
        return embedding_request(["ok"], {})
    if operation == "transcription":
        return transcription_request(Audio(_silence(), "silence.wav"), {})
    endpoint: Endpoint = "chat_completion" if operation == "function" else operation
    return generation_request(endpoint, "Say ok.", {"max_tokens": 16})


def _silence() -> bytes:
    """A quarter of a second without a sound."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16000)
        writer.writeframes(bytes(8000))
    return buffer.getvalue()


def _skew(listed: Listed | None) -> float | None:
    """Seconds that a server's clock is ahead of this one's."""
    if listed is not None and listed.date:
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            return parsedate_to_datetime(listed.date).timestamp() - time.time()
    return None


def _label(about: str) -> str:
    return about.removeprefix("deployment ")


def _failed(about: str, error: RequestError, what: str = "") -> Finding:
    """A failure, taken apart: an error's message ends with what to do."""
    message = error.message.removeprefix(f"{_label(about)}: ")
    for mark in (": ",) if isinstance(error, APIConnectionError) else (". ", ": "):
        words, found, cure = message.rpartition(mark)
        if found:
            return Finding(about, "fail", what + words, cure)
    return Finding(about, "fail", what + message, "see the server's log")
