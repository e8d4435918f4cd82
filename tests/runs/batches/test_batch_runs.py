"""Runs whose requests go through a batch API: whatever it does, each row has its own answer, and none is paid twice."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from typing import Any

import pytest

from infermesh.config.declaration import declare
from infermesh.errors import ConfigError
from infermesh.runs.batches.batch import Batch
from infermesh.runs.control import Control
from infermesh.runs.execute import execute
from infermesh.runs.outcome import RunOutcome
from infermesh.runs.stats import RunStats
from infermesh.simulator import Simulator
from tests.support import Lab, Watch, assert_holds, embed, experiment, generate, texts, totals

Start = Callable[..., Simulator]
ROWS = 60
KEY = {"OPENAI_API_KEY": "sk-of-nobody"}


def declared(simulator: Simulator, stages: dict[str, Any] | None = None, **batch: Any) -> dict[str, Any]:
    """An experiment that sends in batches of 20 at most, and looks at them often."""
    mapping = experiment(simulator.url, stages or {"a": generate(), "b": generate("{{ a.text }} Once more.")})
    settings = {"enabled": True, "poll": 0.02, "max_requests": 20, **batch}
    mapping["deployments"] = {"d": {"model": "openai/gpt-4.1-mini", "api_base": simulator.url, "batch": settings}}
    return mapping


def run(lab: Lab, mapping: dict[str, Any], watch: Watch | None = None, **options: Any) -> RunOutcome:
    job = declare(mapping, [lab.root], environ=KEY)
    return execute(job, lab.folder, observer=watch or Watch(), environ=KEY, **options)


def batches(simulator: Simulator) -> dict[str, Any]:
    """What the simulator has counted of batches."""
    found: dict[str, Any] = simulator.stats()["batches"]
    return found


def assert_all_done(lab: Lab, stages: tuple[str, ...] = ("a", "b"), rows: int = ROWS) -> None:
    """Each row is done once, with the answer to its own request."""
    for stage in stages:
        found = lab.sql(f"SELECT count(*), count(DISTINCT row_id), count(*) FILTER (status = 'done') FROM {stage}")
        assert found == [(rows, rows, rows)], stage
    assert lab.one("SELECT count(DISTINCT text) FROM a") == rows
    assert_holds(lab.folder)


@pytest.fixture
def rows(lab: Lab) -> Lab:
    lab.rows(texts(ROWS))
    return lab


class TestWhole:
    def test_answers_are_those_of_live_requests(self, rows: Lab, simulator: Simulator) -> None:
        mapping = declared(simulator)
        assert run(rows, mapping).status == "done"
        assert_all_done(rows)
        in_batches = rows.sql("SELECT row_id, a.text, b.text FROM a JOIN b USING (row_id) ORDER BY row_id")
        assert batches(simulator)["created"] == 2 * ROWS // 20
        assert not totals(simulator, "chat")["answered"]
        mapping["deployments"]["d"]["batch"] = False
        rows.folder = rows.root / "outputs" / "lab" / "live"
        assert run(rows, mapping).status == "done"
        live = rows.sql("SELECT row_id, a.text, b.text FROM a JOIN b USING (row_id) ORDER BY row_id")
        assert in_batches == live

    def test_they_cost_half_and_say_so(self, rows: Lab, simulator: Simulator) -> None:
        outcome = run(rows, declared(simulator))
        tiers = "SELECT DISTINCT service_tier, request_rows, status_code FROM attempts"
        assert rows.sql(tiers) == [("batch", 1, 200)]
        assert outcome.batches is not None
        assert outcome.batches.answered == 2 * ROWS
        assert outcome.batches.saved_usd == pytest.approx(outcome.totals["cost_usd"], rel=1e-3)
        prompt, completion = outcome.totals["prompt_tokens"], outcome.totals["completion_tokens"]
        assert outcome.totals["cost_usd"] == pytest.approx((prompt * 0.4e-6 + completion * 1.6e-6) / 2)

    def test_nothing_is_left_of_the_files(self, rows: Lab, simulator: Simulator) -> None:
        run(rows, declared(simulator))
        assert not (rows.folder / "batches").exists()

    def test_the_tables_tell_of_each_line(self, rows: Lab, simulator: Simulator) -> None:
        run(rows, declared(simulator))
        assert rows.sql("SELECT DISTINCT state, provider_state, requests, answered FROM batches") == [
            ("collected", "completed", 20, 20)
        ]
        told = rows.sql(
            "SELECT r.custom_id, r.row_id, r.line, b.token FROM batch_rows r JOIN batches b USING (token) LIMIT 3"
        )
        for custom_id, row_id, line, token in told:
            assert custom_id.startswith(f"{token[:8]}-{line}-{row_id}-")

    def test_embeddings_one_text_a_line(self, rows: Lab, simulator: Simulator) -> None:
        watch = Watch()
        run(rows, declared(simulator, {"a": generate(), "v": embed("{{ a.text }}", micro_batch_size=8)}), watch)
        assert_all_done(rows, ("a", "v"))
        assert rows.one("SELECT count(DISTINCT embedding) FROM v") == ROWS
        assert any("micro_batch_size counts as 1" in note for note in watch.notes)

    def test_parsed_answers_and_those_that_are_asked_for_again(self, rows: Lab, simulator: Simulator) -> None:
        (rows.root / "moods.py").write_text(
            "import pydantic\n\nclass Mood(pydantic.BaseModel):\n    stars: int\n\n"
            "    @pydantic.field_validator('stars')\n    def even(cls, value):\n        assert value % 2 == 0\n"
            "        return value\n"
        )
        stage = generate(response_format="moods:Mood", on_invalid="retry")
        outcome = run(rows, declared(simulator, {"a": stage}))
        assert outcome.status == "done"
        again = rows.one("SELECT count(*) FROM attempts") - ROWS
        assert again > 20
        assert batches(simulator)["lines"] == ROWS + again
        assert rows.one("SELECT count(*) FROM a WHERE (parsed IS NULL) = (invalid IS NULL)") == 0

    def test_live_stages_beside_those_in_batches(self, rows: Lab, simulator: Simulator) -> None:
        stages = {"a": generate(), "b": generate("{{ a.text }} Once more."), "c": generate("Quickly: {{ text }}")}
        mapping = declared(simulator, stages)
        mapping["deployments"]["live"] = {"model": "hosted_vllm/any", "api_base": simulator.url}
        mapping["models"]["now"] = {"deployments": ["live"]}
        mapping["stages"]["c"]["model"] = "now"
        mapping["stages"]["e"] = {"model": "now", **generate("{{ b.text }} {{ c.text }}")}
        assert run(rows, mapping).status == "done"
        assert_all_done(rows, ("a", "b", "c", "e"))
        assert totals(simulator, "chat")["answered"] == 2 * ROWS

    def test_sql_stages_wait_for_them(self, rows: Lab, simulator: Simulator) -> None:
        mapping = declared(simulator, {"a": generate()})
        mapping["stages"]["long"] = {"kind": "sql", "query": "SELECT text FROM a WHERE row_id % 2 = 0"}
        mapping["stages"]["b"] = {"model": "m", **generate("Shorter: {{ long.text }}")}
        assert run(rows, mapping).status == "done"
        assert rows.one("SELECT count(*) FROM b WHERE status = 'done'") == ROWS // 2


class TestFaults:
    @pytest.mark.parametrize(
        "faults",
        [
            {"lost_creates": 0.5},
            {"lost_uploads": 0.5},
            {"cut_downloads": 0.2, "short_downloads": 0.3},
            {"shuffle": True, "loose_lines": True, "doubled_lines": 0.3},
            {"not_found": 0.3},
            {"azure": True},
            {"max_enqueued_tokens": 500},
            {"poll_after_s": 0.05},
        ],
        ids=lambda faults: "+".join(faults),
    )
    def test_no_line_is_made_twice(self, rows: Lab, start_simulator: Start, faults: dict[str, Any]) -> None:
        simulator = start_simulator(batches={"processing_s": 0.05, **faults})
        assert run(rows, declared(simulator)).status == "done"
        assert_all_done(rows)
        counts = batches(simulator)
        assert (counts["lines"], counts["repeated_requests"]) == (2 * ROWS, 0)

    def test_lines_that_fail_for_the_moment_go_into_another_batch(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(batches={"failed_lines": 0.2})
        mapping = declared(simulator)
        mapping["models"]["m"]["max_retries"] = 9
        assert run(rows, mapping).status == "done"
        assert_all_done(rows)
        failed = rows.one("SELECT count(*) FROM attempts WHERE error_type = 'server'")
        assert failed == batches(simulator)["failed_lines"] > 0

    def test_lines_that_are_refused_are_error_rows(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(batches={"refused_lines": 0.2})
        assert run(rows, declared(simulator, {"a": generate()})).status == "failed_rows"
        refused = batches(simulator)["failed_lines"]
        assert rows.sql("SELECT error_type, count(*) FROM a WHERE status = 'error' GROUP BY ALL") == [
            ("bad_request", refused)
        ]
        assert run(rows, declared(simulator, {"a": generate()})).counts["a"]["done"] > ROWS - refused
        assert batches(simulator)["lines"] == ROWS + refused  # a resume tries what failed, and nothing else

    def test_lines_that_are_in_no_file_are_sent_again(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(batches={"missing_lines": 0.2})
        mapping = declared(simulator)
        mapping["models"]["m"]["max_retries"] = 9
        assert run(rows, mapping).status == "done"
        assert_all_done(rows)

    def test_a_batch_that_is_refused_for_a_line_loses_that_line_alone(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(batches={"invalid_marker": "number 7 "})
        watch = Watch()
        outcome = run(rows, declared(simulator, {"a": generate()}), watch)
        assert outcome.counts["a"] == {"done": ROWS - 1, "error": 1}
        assert rows.sql("SELECT n FROM source JOIN a USING (row_id) WHERE status = 'error'") == [(7,)]
        assert any("was refused for 1 line" in note for note in watch.notes)

    def test_a_batch_that_fails_as_a_whole_stops_the_run(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(models=["gpt-4.1"])
        outcome = run(rows, declared(simulator))
        assert outcome.status == "stopped"
        assert "model_not_found" in (outcome.reason or "")
        assert outcome.counts["a"] == {"pending": ROWS}

    def test_what_an_expired_batch_has_is_used(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(batches={"processing_s": 0.4, "expires_s": 0.2})
        mapping = declared(simulator, {"a": generate()})
        done = run(rows, mapping).counts["a"]["done"]
        assert rows.one("SELECT count(*) FROM batches WHERE provider_state = 'expired'") >= 3
        counts = batches(simulator)
        assert (counts["answered_lines"], counts["repeated_answers"]) == (done, 0)
        assert ROWS / 2 < done < ROWS  # half of what is left each time, and the others after two more tries
        failed = rows.sql("SELECT error_type, count(*) FROM a WHERE error LIKE '%expired' GROUP BY ALL")
        assert failed == [("timeout", ROWS - done)]

    def test_a_key_that_is_refused_stops_the_run(self, rows: Lab, start_simulator: Start) -> None:
        outcome = run(rows, declared(start_simulator(api_key="another")))
        assert outcome.status == "stopped"
        assert outcome.counts["a"] == {"pending": ROWS}


class TestMaxWait:
    def test_the_rest_is_sent_live(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(batches={"processing_s": 2.0})
        assert run(rows, declared(simulator, {"a": generate()}, max_wait=0.5, max_requests=100)).status == "done"
        assert_all_done(rows, ("a",))
        counts, live = batches(simulator), totals(simulator, "chat")["answered"]
        assert counts["answered_lines"] + live == ROWS
        assert counts["answered_lines"] > 0 < live
        assert rows.sql("SELECT service_tier, count(*) FROM attempts GROUP BY ALL ORDER BY ALL") == [
            ("batch", counts["answered_lines"]),
            (None, live),
        ]

    def test_or_an_error(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(batches={"processing_s": 2.0})
        mapping = declared(simulator, {"a": generate()}, max_wait=0.5, then="error", max_requests=100)
        outcome = run(rows, mapping)
        answered = batches(simulator)["answered_lines"]
        assert outcome.counts["a"] == {"done": answered, "error": ROWS - answered}
        assert rows.one("SELECT DISTINCT error_type FROM a WHERE status = 'error'") == "timeout"


class TestLeaving:
    def test_detached_and_collected(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(batches={"processing_s": 0.3})
        mapping = declared(simulator)
        outcome = run(rows, mapping, detach=True)
        assert (outcome.status, outcome.exit_code) == ("waiting", 5)
        assert outcome.batches is not None
        assert outcome.batches.out == {"d": (3, ROWS)}
        assert outcome.counts == {"a": {"pending": ROWS}, "b": {"pending": ROWS}}
        assert run(rows, mapping).status == "done"
        assert_all_done(rows)
        assert batches(simulator)["lines"] == 2 * ROWS

    def test_a_stop_leaves_them_at_the_provider(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(batches={"processing_s": 0.5})
        mapping = declared(simulator)
        control = Control()

        def stop(stats: RunStats) -> None:
            if batches(simulator)["created"] == 3:
                control.stop()

        watch = Watch(stop)
        outcome = run(rows, mapping, watch, control=control)
        assert outcome.status == "interrupted"
        assert any("3 batches of 60 requests stay at the provider" in note for note in watch.notes)
        assert run(rows, mapping).status == "done"
        assert_all_done(rows)
        assert batches(simulator)["lines"] == 2 * ROWS

    def test_a_changed_prompt_is_sent_and_the_old_answers_are_not_used(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(batches={"processing_s": 0.3})
        run(rows, declared(simulator, {"a": generate()}), detach=True)
        watch = Watch()
        assert run(rows, declared(simulator, {"a": generate("Politely: {{ text }}")}), watch).status == "done"
        assert batches(simulator)["lines"] == 2 * ROWS
        assert any(f"{ROWS} answers of batches are not used" in note for note in watch.notes)
        assert_all_done(rows, ("a",))

    def test_batches_that_are_switched_off_are_collected_all_the_same(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(batches={"processing_s": 0.3})
        run(rows, declared(simulator), detach=True)
        assert run(rows, declared(simulator, enabled=False)).status == "done"
        assert_all_done(rows)
        assert batches(simulator)["lines"] == ROWS  # stage a; stage b is sent live
        assert totals(simulator, "chat")["answered"] == ROWS

    def test_results_whose_file_is_lost_are_fetched_again(self, rows: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(batches={"processing_s": 0.2, "failed_lines": 0.2})
        mapping = declared(simulator, {"a": generate()})
        control = Control()

        def stop(stats: RunStats) -> None:
            if stats.settled:
                control.stop()

        run(rows, mapping, Watch(on_tick=stop), control=control)
        for path in (rows.folder / "batches").glob("*.results.jsonl"):
            path.unlink()
        mapping["models"]["m"]["max_retries"] = 9
        assert run(rows, mapping).status == "done"
        assert batches(simulator)["repeated_answers"] == 0


@pytest.mark.parametrize("what", ["write", "written"])
def test_a_full_disk_stops_the_run_and_loses_nothing(
    rows: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Batch, what, full)
        outcome = run(rows, declared(simulator))
    assert outcome.status == "stopped"
    assert "No space left on device" in (outcome.reason or "")
    assert outcome.counts["a"] == {"pending": ROWS}
    assert run(rows, declared(simulator)).status == "done"
    assert_all_done(rows)
    assert batches(simulator)["lines"] == 2 * ROWS


class TestRefused:
    def test_a_server_of_ones_own(self, rows: Lab, simulator: Simulator) -> None:
        mapping = declared(simulator)
        mapping["deployments"]["d"]["model"] = "hosted_vllm/llama"
        with pytest.raises(ConfigError, match=r"deployments\.d\.batch: .* live requests are its batch mode"):
            run(rows, mapping)

    def test_transcriptions(self, rows: Lab, simulator: Simulator) -> None:
        with pytest.raises(ConfigError, match=r"stages\.t: d has no batches of this kind"):
            run(rows, declared(simulator, {"t": {"kind": "transcribe", "audio": "{{ text }}"}}))

    def test_a_request_that_is_another_one_each_time(self, rows: Lab, simulator: Simulator) -> None:
        (rows.root / "mine.py").write_text(
            "import itertools\nnumbers = itertools.count()\n\ndef ask(row):\n    return {'input': f'{next(numbers)}'}\n"
        )
        outcome = run(rows, declared(simulator, {"a": {"kind": "generate", "mapper": "mine:ask"}}))
        assert outcome.status == "stopped"  # by guards.first_errors, since all fail so
        assert "another one each time" in rows.one("SELECT any_value(error) FROM a")
        assert batches(simulator)["lines"] == ROWS


def test_a_budget_counts_what_is_in_batches(rows: Lab, start_simulator: Start) -> None:
    simulator = start_simulator(batches={"processing_s": 0.1})
    stages = {"a": generate(params={"max_tokens": 100})}
    each = (12 * 0.4e-6 + 100 * 1.6e-6) / 2  # at most, as far as is known before the first answer
    mapping = declared(simulator, stages, max_requests=100) | {"guards": {"max_cost_usd": 20.5 * each}}
    outcome = run(rows, mapping)
    first, *others = [requests for (requests,) in rows.sql("SELECT requests FROM batches ORDER BY made_at")]
    assert first in (19, 20)
    assert others  # the answers were shorter, and make room for more
    assert outcome.status == "done"


def test_a_laptop_may_have_a_million_rows_waiting(lab: Lab, simulator: Simulator) -> None:
    """A parked row is not in memory: far more of them than the windows admit are in batches at once."""
    lab.rows(texts(5000))
    outcome = run(lab, declared(simulator, {"a": generate(max_parallel_requests=4)}, max_requests=50_000), detach=True)
    assert outcome.batches is not None
    assert outcome.batches.out == {"d": (1, 5000)}


def test_lines_hold_what_json_lines_may_not(lab: Lab, simulator: Simulator) -> None:
    odd = ["a\u2028b", "c\u0085d", "e\nf", 'g"h', "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]
    lab.rows([json.dumps({"text": each}) for each in odd])
    assert run(lab, declared(simulator, {"a": generate()})).status == "done"
    assert lab.one("SELECT count(*) FROM a WHERE status = 'done'") == len(odd)
