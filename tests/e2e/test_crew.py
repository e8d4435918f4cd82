"""A run over several processes: the same results, the same load on the servers, and it stops and resumes as one."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infermesh.config.compose import compose
from infermesh.config.declaration import declare, declared
from infermesh.errors import ConfigError
from infermesh.runs.execute import execute
from infermesh.simulator import Simulator
from tests.counting import CountingServer
from tests.e2e.conftest import Launch
from tests.support import (
    COMMAND_S,
    Lab,
    Watch,
    ask,
    committed,
    embed,
    experiment,
    generate,
    infermesh,
    texts,
    totals,
    transcribe,
    wait_until,
    wav,
    write_experiment,
    write_jsonl,
)

ROOT = Path(__file__).resolve().parents[2]
LOCAL = {"kind": "local", "workers": 2}
EVERY_KIND = {
    "heard": transcribe(where="audio is not null"),
    "topic": generate("Name the topic of: {{ text }} {{ heard.text or '' }}", parse_json=False),
    "words": {
        "kind": "python",
        "function": "functions_of_rows:words",
        "reads": ["topic"],
        "columns": {"n_words": "BIGINT"},
    },
    "vectors": embed("{{ topic.text }}", micro_batch_size=7),
    "long": {"kind": "sql", "query": "select n, text from source join words using (row_id) where n % 4 = 0 order by n"},
    "again": generate("Once more: {{ text }}", rows="long"),
}
FUNCTIONS = """
def words(row):
    if row["n"] == 3:
        raise ValueError("three")
    return {"n_words": len(row["topic"]["text"].split())}
"""


@pytest.fixture
def server() -> Iterator[CountingServer]:
    with CountingServer(0.05) as server:
        yield server


def every_kind(root: Path, url: str) -> dict[str, Any]:
    """A declaration with every kind of stage, and its rows and functions."""
    (root / "clip.wav").write_bytes(wav("a parcel"))
    (root / "functions_of_rows.py").write_text(FUNCTIONS)
    rows = [row | {"audio": "clip.wav" if n % 5 == 0 else None} for n, row in enumerate(texts(60))]
    write_jsonl(root / "rows.jsonl", rows)
    stages = {name: dict(stage) for name, stage in EVERY_KIND.items()}
    mapping = experiment(url, stages)
    for stage in ("words", "long"):
        del mapping["stages"][stage]["model"]
    return mapping


_VARIES = {"finished_at", "queue_s", "service_s", "request_id"}


def stored(folder: Path, tables: Iterable[str] = EVERY_KIND) -> dict[str, list[tuple[Any, ...]]]:
    """What a run has stored, without what differs between two runs of one process as well: times and ids."""
    found = {"progress": sorted(ask(folder, "FROM progress"))}
    for table in tables:
        names = {name for (name,) in ask(folder, f"SELECT column_name FROM (DESCRIBE {table})")}
        left_out = ", ".join(sorted(names & _VARIES)) or "row_key"
        found[table] = ask(folder, f"SELECT * EXCLUDE ({left_out}) FROM {table} ORDER BY row_id")
    return found


def test_every_kind_of_stage_gives_what_one_process_gives(tmp_path: Path, simulator: Simulator) -> None:
    found = []
    every = every_kind(tmp_path, simulator.url)
    for engine in ({"kind": "process"}, LOCAL):
        mapping = every | {"engine": engine}
        folder = tmp_path / "outputs" / "lab" / str(engine["kind"])
        watch = Watch()
        outcome = execute(declare(mapping, [tmp_path]), folder, observer=watch, environ={})
        assert outcome.status == "failed_rows"  # the function refuses row 3
        assert watch.stats is not None
        counts = {
            name: (stage.total, stage.done, stage.failed, stage.skipped, stage.in_flight)
            for name, stage in watch.stats.stages.items()
        }
        assert watch.stats.requests == outcome.totals["requests"]
        found.append((stored(folder), counts, watch.stats.settled, watch.stats.rows, outcome.counts, outcome.failures))
    for one, two in zip(*found, strict=True):
        assert one == two


@pytest.mark.long
def test_the_quickstart_gives_what_one_process_gives(tmp_path: Path) -> None:
    found = []
    for engine in ("process", "local"):
        job = declared(compose(["+experiment=quickstart", f"engine={engine}", "source.limit=20"], cwd=ROOT))
        folder = tmp_path / "outputs" / "quickstart" / engine
        assert execute(job, folder, observer=Watch(), environ={}).status == "done"
        found.append(stored(folder, ("source", "transcripts", "summaries", "vectors")))
        assert job.hash == declared(compose(["+experiment=quickstart", "source.limit=20"], cwd=ROOT)).hash
    assert found[0] == found[1]


@pytest.mark.long
def test_the_windows_are_the_runs(lab: Lab, server: CountingServer) -> None:
    lab.rows(texts(300))
    mapping = experiment(server.url, {"a": generate(max_parallel_requests=10)})
    lab.run(mapping | {"engine": {"workers": 3}})
    assert server.most <= 10
    assert len(server.seen) == len(server.counts) == 300
    assert lab.one("SELECT count(*) FROM attempts") == 300


@pytest.mark.long
def test_slots_are_the_runs_and_few_of_them_bound_the_workers(lab: Lab, server: CountingServer) -> None:
    lab.rows(texts(40))
    mapping = experiment(server.url, {"a": generate()})
    mapping["deployments"]["d"]["max_parallel_requests"] = 3
    watch = Watch()
    lab.run(mapping | {"engine": {"workers": 5}}, watch=watch)
    assert server.most <= 3
    assert len(server.seen) == 40
    assert watch.notes[0] == (
        "engine: 3 workers, processes of this machine (engine.workers is 5, so engine.kind is local); "
        "more than 3 would have nothing to send: the deployments of m take 3 requests at once"
    )


def test_answers_of_earlier_runs_and_of_rows_that_are_gone_are_known(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(50))
    mapping = experiment(simulator.url, {"a": generate()}) | {"engine": LOCAL}
    lab.run(mapping)
    lab.folder = lab.folder.with_name("second")
    lab.rows(texts(60, more=1))
    lab.run(mapping | {"reuse": "latest"})
    assert totals(simulator)["received"] == 60
    assert lab.one("SELECT count(*) FROM a WHERE reused_from IS NOT NULL") == 50
    lab.rows(texts(60, more=2))  # all rows are other ones, and ask the same
    assert lab.run(mapping).reused == 60
    assert totals(simulator)["received"] == 60


def test_a_guard_stops_all_workers(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(2000))
    mapping = experiment(simulator.url, {"a": generate("{{ text.nothing.at_all }}")})
    outcome = lab.run(mapping | {"engine": LOCAL, "guards": {"max_errors": 30}})
    assert outcome.status == "stopped"
    assert outcome.reason is not None
    assert outcome.reason.startswith("guards.max_errors is 30")
    assert 0 < outcome.counts["a"]["pending"] < 2000


def test_a_budget_is_kept_less_closely_and_the_run_says_so(lab: Lab, server: CountingServer) -> None:
    lab.rows(texts(400))
    mapping = experiment(server.url, {"a": generate(max_parallel_requests=8)})
    mapping["deployments"]["d"] |= {"input_cost_per_token": 0.001, "output_cost_per_token": 0.001}
    watch = Watch()
    outcome = lab.run(mapping | {"engine": LOCAL, "guards": {"max_cost_usd": 0.4}}, watch=watch)
    assert watch.notes[1].startswith("guards.max_cost_usd: with workers it is looked at as answers come")
    assert outcome.status == "stopped"
    assert 0.4 <= outcome.totals["cost_usd"] <= 0.4 + 6 * 8 * 0.008  # answers of 0.008 dollars


@pytest.mark.long
def test_a_day_is_sent_to_its_end(lab: Lab, server: CountingServer) -> None:
    lab.rows(texts(60))
    mapping = experiment(server.url, {"a": generate(max_parallel_requests=8)})
    mapping["deployments"]["d"]["limits"] = {"rpd": 40}
    watch = Watch(on_tick=lambda stats: None)
    declaration = declare(mapping | {"engine": {"workers": 3}, "guards": {"max_duration": 6}}, [lab.root])
    outcome = execute(declaration, lab.folder, observer=watch, environ={})
    assert outcome.counts["a"] == {"done": 40, "pending": 20}
    assert len(server.seen) == 40
    assert any(note.startswith("rpd of deployment d is used up until 00:00 UTC (40 of 40)") for note in watch.notes)


def test_a_pause_that_one_worker_is_asked_for_is_everybodys(lab: Lab, server: CountingServer) -> None:
    lab.rows(texts(400))
    server.refuse_next, server.refusal = 1, {"retry-after": "2"}
    mapping = experiment(server.url, {"a": generate(max_parallel_requests=30)})
    assert lab.run(mapping | {"engine": {"workers": 3}}).counts["a"] == {"done": 400}
    times = [at for at, _ in server.seen]
    refused = times[0]
    assert [at - refused for at in times if refused + 0.3 < at < refused + 1.9] == []


def test_it_is_asked_stopped_and_resumed_by_another_engine(
    tmp_path: Path, server: CountingServer, launch: Launch
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", texts(1000))
    write_experiment(tmp_path, experiment(server.url, {"a": generate(max_parallel_requests=16)}))
    run = ("run", "+experiment=mine", "hydra.run.dir=outputs/here")
    server.delay_s = 0.5  # it goes on for half a minute
    process = launch(*run, "engine=local", "engine.workers=2", cwd=tmp_path)
    here = tmp_path / "outputs" / "here"
    wait_until(lambda: committed(here, "a") > 20, "rows of workers")
    asked = infermesh("status", "outputs/here", cwd=tmp_path)
    assert "running" in asked.stdout + asked.stderr
    assert infermesh("stop", "outputs/here", cwd=tmp_path).returncode == 0
    assert process.wait(COMMAND_S) == 130
    done = committed(here, "a")
    assert len(server.seen) == done == ask(here, "SELECT count(*) FROM attempts")[0][0]
    server.delay_s = 0.0
    refused = infermesh("resume", "outputs/here", "source.limit=3", cwd=tmp_path)
    assert "source.limit=3: a resumed run keeps its declaration, but for engine and engine.*" in refused.stderr
    resumed = infermesh("resume", "outputs/here", "engine=process", "engine.silence=20s", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "engine:" not in resumed.stderr
    assert len(server.seen) == len(server.counts) == 1000
    assert json.loads(ask(here, "SELECT config FROM run")[0][0])["engine"]["kind"] == "process"


def test_ctrl_c_drains_the_workers(tmp_path: Path, server: CountingServer, launch: Launch) -> None:
    write_jsonl(tmp_path / "rows.jsonl", texts(1000))
    write_experiment(tmp_path, experiment(server.url, {"a": generate(max_parallel_requests=16)}))
    server.delay_s = 0.5
    process = launch("run", "+experiment=mine", "hydra.run.dir=outputs/here", "workers=2", cwd=tmp_path)
    wait_until(lambda: len(server.seen) > 20, "requests of workers")
    process.send_signal(signal.SIGINT)
    assert process.wait(COMMAND_S) == 130
    here = tmp_path / "outputs" / "here"
    assert len(server.seen) == committed(here, "a") == ask(here, "SELECT count(*) FROM attempts")[0][0]


def test_a_function_of_the_script_itself_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "mine", len, raising=False)
    lab.rows(texts(1))
    mapping = experiment("http://127.0.0.1:9/v1", {})
    mapping["stages"]["f"] = {"kind": "python", "function": "__main__:mine"}
    with pytest.raises(Exception, match=r"stages.f: '__main__:mine' .* engine.kind: process"):
        lab.run(mapping | {"engine": LOCAL})


def test_without_ray_its_engine_says_what_to_install(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lab.rows(texts(1))
    mapping = experiment("http://127.0.0.1:9/v1", {"a": generate()}) | {"engine": {"kind": "ray"}}
    with pytest.raises(ConfigError, match=r"Ray is not installed. pip install 'infermesh\[ray\]'"):
        lab.run(mapping)


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://10.0.0.1:8265", "10.0.0.1"])
def test_an_address_that_is_no_clusters(lab: Lab, address: str) -> None:
    mapping = experiment("http://127.0.0.1:9/v1", {"a": generate()})
    with pytest.raises(ConfigError, match=r"engine.address: expected local, auto"):
        lab.run(mapping | {"engine": {"kind": "ray", "address": address}})
