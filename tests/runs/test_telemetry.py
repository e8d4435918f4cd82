"""Metrics and spans for others' tools, which neither slow nor fail a run, and carry no text of anybody's."""

from __future__ import annotations

import gzip
import importlib.util
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from infermesh.config.declaration import declare
from infermesh.errors import ConfigError
from infermesh.runs import telemetry as telemetry_module
from infermesh.runs.stats import RunStats
from tests.support import Lab, Watch, embed, experiment, generate, texts

pytest.importorskip("opentelemetry.sdk")


class Collector:
    """An OTLP collector over HTTP: path → the bodies that came."""

    def __init__(self) -> None:
        self.came: dict[str, list[bytes]] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                zipped = self.headers.get("Content-Encoding") == "gzip"
                collector.came.setdefault(self.path, []).append(gzip.decompress(body) if zipped else body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.server.shutdown()
    found.server.server_close()


def declared(url: str, **telemetry: Any) -> dict[str, Any]:
    mapping = experiment(
        url,
        {"a": generate("Secret prompt: {{ text }}", max_parallel_requests=2), "v": embed(micro_batch_size=4)},
        telemetry=telemetry,
        guards={"first_errors": None},
    )
    mapping["deployments"]["d"] |= {"input_cost_per_token": 0.001, "output_cost_per_token": 0.001}
    return mapping


def test_prometheus_finds_it_while_the_run_goes_on(lab: Lab, start_simulator: Any) -> None:
    service = start_simulator(latency_s=0.02, faults={"server_error": 0.2})
    lab.rows(texts(40))
    watch = Watch()
    seen: list[str] = []

    def scrape(stats: RunStats) -> None:
        (where,) = re.findall(r"telemetry: (\S+)", "\n".join(watch.notes))
        with urllib.request.urlopen(where) as answer:
            seen.append(answer.read().decode())

    watch._on_tick = scrape
    outcome = lab.run(declared(service.url, prometheus=0), watch=watch)
    assert outcome.exit_code in (0, 3)
    page = seen[-1]
    assert "gen_ai_client_operation_duration_seconds_bucket{" in page
    labels = 'gen_ai_operation_name="chat",gen_ai_provider_name="hosted_vllm",gen_ai_request_model="any"'
    assert labels in page
    assert 'gen_ai_token_type="output"' in page
    assert 'infermesh_rows_total{infermesh_stage="a",infermesh_status="done"}' in page
    assert 'error_type="server"' in page
    assert 'infermesh_rows_pending{infermesh_stage="a"}' in page
    assert 'gen_ai_operation_name="embeddings"' in page
    assert "infermesh_cost" in page
    assert "parcel" not in page.lower()
    assert "secret prompt" not in page.lower()


def test_spans_and_metrics_go_to_a_collector(lab: Lab, start_simulator: Any, collector: Collector) -> None:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    service = start_simulator(faults={"server_error": 0.3})
    lab.rows(texts(30))
    lab.run(declared(service.url, otlp=collector.url))
    spans = []
    for body in collector.came["/v1/traces"]:
        request = ExportTraceServiceRequest.FromString(body)
        spans += [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]
    rows = [span for span in spans if not span.parent_span_id]
    assert {span.name for span in rows} == {"chat any", "embeddings any"}
    chats = [span for span in rows if span.name == "chat any"]
    assert len(chats) == 30
    stored = lab.sql("SELECT sum(attempts), count(*) FILTER (attempts > 1) FROM a")
    ((attempts, again),) = stored
    ids = {span.span_id for span in chats}
    children = [span for span in spans if span.parent_span_id in ids]
    assert len(children) == attempts - (30 - again)  # a row of one request is its own span
    for span in spans:
        assert span.end_time_unix_nano >= span.start_time_unix_nano > 1.6e18
    attributes = {each.key: each.value for each in chats[0].attributes}
    assert attributes["gen_ai.usage.input_tokens"].int_value > 0
    names = set()
    for body in collector.came["/v1/metrics"]:
        found = ExportMetricsServiceRequest.FromString(body)
        names |= {m.name for group in found.resource_metrics for scope in group.scope_metrics for m in scope.metrics}
    assert {"gen_ai.client.operation.duration", "gen_ai.client.token.usage", "infermesh.rows"} <= names
    assert b"parcel" not in b"".join(collector.came["/v1/traces"]).lower()


def test_a_port_that_is_taken_and_a_collector_that_is_away(lab: Lab, start_simulator: Any) -> None:
    service = start_simulator()
    lab.rows(texts(5))
    watch = Watch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mapping = declared(service.url, prometheus=port, otlp="http://127.0.0.1:9")
        assert lab.run(mapping, watch=watch).exit_code == 0
    assert any(f"nobody can be served at 127.0.0.1:{port}" in note for note in watch.notes)


def test_what_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (("prometheus", "here"), ("prometheus", 70_000), ("otlp", "localhost:4318")):
        with pytest.raises(ConfigError, match=rf"telemetry\.{key}: expected a"):
            declare(declared("http://127.0.0.1:9/v1", **{key: value}), [lab.root])
    lab.rows(texts(1))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'infermesh\[telemetry\]'"):
        lab.run(declared("http://127.0.0.1:9/v1", prometheus=0))
    assert not lab.folder.exists()


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-4.1", "openai"),
        ("azure/x", "azure.ai.openai"),
        ("anthropic/c", "anthropic"),
        ("vertex_ai/g", "gcp.vertex_ai"),
    ],
)
def test_providers_have_the_conventions_names(model: str, provider: str) -> None:
    assert telemetry_module.provider_of(model) == provider
