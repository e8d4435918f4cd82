"""A run's metrics and traces for others' tools: a page for Prometheus, and OTLP, both by OpenTelemetry's SDK.

The names are those of OpenTelemetry's semantic conventions for generative AI clients, where they have one
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/ and …/gen-ai-spans/, in development there):
``gen_ai.client.operation.duration`` and ``gen_ai.client.token.usage`` with their buckets, the attributes
``gen_ai.operation.name``, ``gen_ai.provider.name``, ``gen_ai.request.model``, ``gen_ai.response.model``,
``gen_ai.token.type`` and ``error.type``; a span named ``{operation} {model}``, of kind client, which covers all
retries. In one thing the duration departs from them: it is of each request, as in the table ``attempts``, since a
request that was turned away tells of the server, and a row that waited for its quota does not. ``infermesh.*`` is what
they have no name for.

All is taken from rows as they are committed, in the writer's thread: without telemetry there is nothing to pay for,
and with it the event loop pays nothing. No prompt, no answer and no message of an error is part of it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infermesh.config.schema import Experiment, GenerateStage, RowStageConfig, SqlStage
from infermesh.errors import ConfigError
from infermesh.hints import one_line
from infermesh.redaction import redact
from infermesh.runs.stats import RunStats
from infermesh.store.schema import AFTER_OUTPUTS, ATTEMPTS, ATTEMPTS_LOG

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

__all__ = ["Telemetry", "operation_of", "provider_of", "refuse_missing"]

logger = logging.getLogger("infermesh")
# https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/: the boundaries that they SHOULD be specified with.
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
# The same page's values of gen_ai.provider.name, by our prefix of a model; any other is called as we call it.
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "text-completion-openai": "openai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
_ENDPOINTS = {"chat_completion": "chat", "text_completion": "text_completion", "responses": "chat"}
_KINDS = {"embed": "embeddings", "transcribe": "transcription", "python": "function"}
_QUEUE = 65_536  # spans that wait to be sent; beyond that they are dropped, and the SDK says so in run.log
_OPEN = 65_536  # rows whose first requests have failed, and that have not settled
_CLOSE_S = 5.0
_CLOSE_AWAY_S = 0.5  # where the collector has not answered before
_Key = tuple[str, str, str | None]
# Where values stand in a row of a stage's table, and in one of attempts.
_STATE = {column.name: number - len(AFTER_OUTPUTS) for number, column in enumerate(AFTER_OUTPUTS)}
_REQUEST = {column.name: number for number, column in enumerate(ATTEMPTS)}
# Ours, and the names in spans.
_OF_SPAN = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "request_id": "gen_ai.response.id",
    "cost_usd": "infermesh.cost_usd",
    "queue_s": "infermesh.queue_s",
}
_OF_ATTEMPT = {
    "attempt": "infermesh.attempt",
    "deployment": "infermesh.deployment",
    "status_code": "http.response.status_code",
    "error_type": "error.type",
}


def provider_of(model: str) -> str:
    """The conventions' name of who serves a model, by its name in a config.

    Examples
    --------
    >>> provider_of("openai/gpt-4.1-mini"), provider_of("bedrock/nova"), provider_of("hosted_vllm/llama")
    ('openai', 'aws.bedrock', 'hosted_vllm')
    """
    prefix = model.partition("/")[0] if "/" in model else "openai"
    return _PROVIDERS.get(prefix, prefix)


def operation_of(stage: RowStageConfig, experiment: Experiment) -> str:
    """The conventions' name of what a stage's requests do."""
    if isinstance(stage, GenerateStage):
        return _ENDPOINTS[experiment.models[stage.model].endpoint]
    return _KINDS[stage.kind]


class Telemetry:
    """Instruments of one session, and where they are seen.

    Parameters
    ----------
    experiment
        The declaration: ``telemetry`` in it says where to, and at least one of its keys is set.
    run_id
        Of the run, for the resource.
    stats
        The session's counts, which gauges show.
    note
        Tells the user a line.

    Raises
    ------
    ConfigError
        What it takes is not installed.
    """

    def __init__(self, experiment: Experiment, run_id: str, stats: RunStats, note: Callable[[str], None]) -> None:
        config = experiment.telemetry
        refuse_missing()
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
        from opentelemetry.sdk.resources import Resource

        self._stats = stats
        self._note = note
        self._failed = False
        stages = {name: each for name, each in experiment.stages.items() if not isinstance(each, SqlStage)}
        self._operations = {name: operation_of(each, experiment) for name, each in stages.items()}
        self._models = {label: entry.model for label, entry in experiment.deployments.items()}
        self._attributes: dict[tuple[str | None, ...], dict[str, str]] = {}
        self._dollars: dict[tuple[str, str | None, str | None], float] = {}  # of one commit
        self._requests: OrderedDict[tuple[str, int], list[tuple[Any, ...]]] = OrderedDict()
        self._closers: list[Callable[[], object]] = []
        self._words = _ToRunLog()
        theirs = logging.getLogger("opentelemetry")
        if not theirs.handlers:
            theirs.addHandler(logging.NullHandler())  # else the last words of a thread go to the terminal
        theirs.addHandler(self._words)
        resource = Resource.create(
            {"service.name": "infermesh", "service.instance.id": run_id, "infermesh.experiment": experiment.name}
        )
        readers = []
        if config.prometheus is not None:
            readers.append(self._prometheus(config.prometheus))
        if config.otlp is not None:
            readers.append(self._otlp_metrics(config.otlp))
        views = [
            View(instrument_name=name, aggregation=ExplicitBucketHistogramAggregation(edges))
            for name, edges in (("gen_ai.client.operation.duration", _SECONDS), ("gen_ai.client.token.usage", _TOKENS))
        ]
        provider = MeterProvider(
            [each for each in readers if each is not None], resource, shutdown_on_exit=False, views=views
        )
        self._closers.append(provider.shutdown)
        self._tracer = None if config.otlp is None else self._make_tracer(config.otlp, resource)
        meter = provider.get_meter("infermesh")
        self._duration = meter.create_histogram("gen_ai.client.operation.duration", "s", "Time of one request")
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}", "Tokens of one request")
        self._rows = meter.create_counter("infermesh.rows", "{row}", "Rows settled at a stage")
        self._cost = meter.create_counter("infermesh.cost", "{USD}", "US dollars of requests")
        for name, what in (("in_flight", "Rows with a request sent or waiting"), ("pending", "Rows not settled")):
            meter.create_observable_gauge(f"infermesh.rows.{name}", [self._gauge(name)], "{row}", what)
        meter.create_observable_gauge("infermesh.run.paused", [self._paused], "1", "1 while the run is paused")

    # Where they are seen

    def _prometheus(self, where: str | int) -> Any:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import CollectorRegistry, start_http_server

        host, _, port = str(where).rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        registry = CollectorRegistry()
        try:
            server, thread = start_http_server(int(port), host, registry)
        except OSError as error:
            words = one_line(error.strerror or error)
            self._note(f"telemetry.prometheus: nobody can be served at {host}:{port}: {words}; the run goes on without")
            return None

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join(_CLOSE_S)

        self._closers.append(close)
        self._note(f"telemetry: http://{host}:{server.server_port}/metrics")
        return PrometheusMetricReader(registry=registry, scope_info_enabled=False)

    def _otlp_metrics(self, url: str) -> Any:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        return PeriodicExportingMetricReader(OTLPMetricExporter(f"{url.rstrip('/')}/v1/metrics", timeout=_CLOSE_S))

    def _make_tracer(self, url: str, resource: Any) -> Any:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(f"{url.rstrip('/')}/v1/traces", timeout=_CLOSE_S)
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_QUEUE))
        self._closers.append(provider.shutdown)
        return provider.get_tracer("infermesh")

    def close(self) -> None:
        """Send what is left, for five seconds at most: a collector that is away delays no run."""
        work = threading.Thread(target=self._close, name="infermesh-telemetry", daemon=True)
        work.start()
        work.join(_CLOSE_AWAY_S if self._words.said else _CLOSE_S)
        self._words.over = True  # nobody is there to hear it

    def _close(self) -> None:
        for close in reversed(self._closers):
            with contextlib.suppress(Exception):
                close()
        logging.getLogger("opentelemetry").removeHandler(self._words)

    # What is seen

    def take(self, rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
        """Count rows that were committed. Called in the writer's thread; it raises nothing."""
        try:
            self._take(rows)
        except Exception as error:
            if not self._failed:
                self._failed = True
                logger.warning("telemetry: rows could not be counted; the run goes on", exc_info=error)

    def _take(self, rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
        settled: Counter[_Key] = Counter()
        for request in rows.get(ATTEMPTS_LOG, ()):
            if request[_REQUEST["stage"]] in self._operations:
                self._take_request(request)
        for stage, states in rows.items():
            if stage not in self._operations:
                continue
            for state in states:
                settled[stage, state[1], state[_STATE["error_type"]]] += 1
                if state[_STATE["sole_request"]]:
                    self._count(stage, state[_STATE["deployment"]], state[_STATE["model_id"]], state, _STATE)
                if self._tracer is not None and state[_STATE["attempts"]] and state[_STATE["reused_from"]] is None:
                    self._trace(stage, state)
        for (stage, status, error), count in settled.items():
            attributes = {"infermesh.stage": stage, "infermesh.status": str(status)}
            self._rows.add(count, attributes | ({"error.type": error} if error else {}))
        for key, dollars in self._dollars.items():
            self._cost.add(dollars, self._attributes_of(*key))
        self._dollars.clear()

    def _take_request(self, request: tuple[Any, ...]) -> None:
        stage = request[_REQUEST["stage"]]
        self._count(stage, request[_REQUEST["deployment"]], None, request, _REQUEST)
        if self._tracer is not None:
            self._requests.setdefault((stage, request[_REQUEST["row_id"]]), []).append(request)
            if len(self._requests) > _OPEN:
                self._requests.popitem(last=False)

    def _count(
        self, stage: str, deployment: str | None, answered_by: str | None, row: tuple[Any, ...], at: Mapping[str, int]
    ) -> None:
        """Count a request, or the row that tells of its one. ``at``: where its values stand."""
        self._duration.record(
            row[at["service_s"]] or 0.0, self._attributes_of(stage, deployment, answered_by, row[at["error_type"]])
        )
        for kind, place in (("input", at["prompt_tokens"]), ("output", at["completion_tokens"])):
            if row[place]:
                self._tokens.record(row[place], self._attributes_of(stage, deployment, answered_by, None, kind))
        if row[at["cost_usd"]]:
            key = stage, deployment, answered_by
            self._dollars[key] = self._dollars.get(key, 0.0) + row[at["cost_usd"]]

    def _attributes_of(
        self,
        stage: str,
        deployment: str | None,
        answered_by: str | None,
        error: str | None = None,
        token_type: str | None = None,
    ) -> dict[str, str]:
        """The attributes of a request; made once for each that there are."""
        key = stage, deployment, answered_by, error, token_type
        if (found := self._attributes.get(key)) is None:
            model = self._models.get(deployment or "", "")
            named = {
                "gen_ai.operation.name": self._operations[stage],
                "gen_ai.provider.name": provider_of(model) if model else None,
                "gen_ai.request.model": model.partition("/")[2] or model,
                "gen_ai.response.model": answered_by,
                "gen_ai.token.type": token_type,
                "error.type": error,
                "infermesh.stage": stage,
                "infermesh.deployment": deployment,
            }
            found = self._attributes[key] = {name: value for name, value in named.items() if value}
        return found

    def _trace(self, stage: str, state: tuple[Any, ...]) -> None:
        """A span of the row at the stage, and one of each of its requests below it."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        assert self._tracer is not None
        row_id, status = state[0], state[1]
        values = {name: state[number] for name, number in _STATE.items()}
        attributes: dict[str, Any] = dict(self._attributes_of(stage, values["deployment"], values["model_id"]))
        attributes |= {"infermesh.row_id": row_id, "infermesh.attempts": values["attempts"]}
        attributes |= {theirs: values[ours] for ours, theirs in _OF_SPAN.items() if values[ours] is not None}
        end = _ns(values["finished_at"])
        requests = self._requests.pop((stage, row_id), [])
        starts = [_ns(request[_REQUEST["started_at"]]) for request in requests]
        start = min([end - int((values["service_s"] or 0.0) * 1e9), *starts])
        name = f"{attributes['gen_ai.operation.name']} {attributes.get('gen_ai.request.model', stage)}"
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, start_time=start, attributes=attributes)
        if status == "error":
            span.set_attribute("error.type", values["error_type"] or "error")
            span.set_status(Status(StatusCode.ERROR))
        context = set_span_in_context(span)
        for request, began in zip(requests, starts, strict=True):
            told = {theirs: request[_REQUEST[ours]] for ours, theirs in _OF_ATTEMPT.items()}
            attempt = self._tracer.start_span(
                f"attempt {told['infermesh.attempt']}",
                context=context,
                kind=SpanKind.CLIENT,
                start_time=began,
                attributes={key: value for key, value in told.items() if value is not None},
            )
            if told["error.type"]:
                attempt.set_status(Status(StatusCode.ERROR))
            attempt.end(began + int((request[_REQUEST["service_s"]] or 0.0) * 1e9))
        span.end(max(end, start))

    def _gauge(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            from opentelemetry.metrics import Observation

            for stage, counts in self._stats.stages.items():
                value = counts.in_flight if name == "in_flight" else counts.total - counts.settled
                yield Observation(value, {"infermesh.stage": stage})

        return observe

    def _paused(self, _: CallbackOptions) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        yield Observation(int(self._stats.paused))


class _ToRunLog(logging.Handler):
    """What the SDK has to say, such as that a collector is away, goes to ``run.log`` and not to the terminal."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said = self.over = False

    def emit(self, record: logging.LogRecord) -> None:
        self.said = True
        if self.over:
            return
        logger.warning("telemetry: %s", redact(one_line(record.getMessage(), 300)))


def refuse_missing() -> None:
    """Raise ``ConfigError`` where what telemetry takes is not installed."""
    for module in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http", "opentelemetry.exporter.prometheus"):
        try:
            found = importlib.util.find_spec(module)
        except ImportError:
            found = None
        if found is None:
            raise _missing()


def _missing() -> ConfigError:
    return ConfigError("telemetry takes further packages: pip install 'infermesh[telemetry]'. Or leave it out.")


def _ns(moment: datetime | int) -> int:
    """Nanoseconds since the epoch, of a time as the writer takes it."""
    if isinstance(moment, datetime):
        return int(moment.replace(tzinfo=UTC).timestamp() * 1e9)
    return moment * 1000
