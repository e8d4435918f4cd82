"""A run that has rows gone from it gives their answers to rows that ask the same."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from infermesh.config.declaration import declare
from infermesh.plan import Options, make_plan
from infermesh.runs.control import Control
from infermesh.runs.execute import execute
from infermesh.runs.stats import RunStats
from infermesh.simulator import Simulator
from infermesh.store.database import Redo
from infermesh.store.known import KnownAnswers
from tests.support import Lab, Watch, embed, experiment, generate, texts, totals

Start = Callable[..., Simulator]
Rows = list[dict[str, Any]]


def with_column(rows: Rows, **fields: Any) -> Rows:
    return [{**row, **fields} for row in rows]


def samples(count: int, **fields: Any) -> Rows:
    """Identical rows: one prompt, sampled."""
    return [{"text": "Tell a story.", **fields}] * count


def sent(simulator: Simulator, endpoint: str | None = None) -> int:
    """Requests since the last look."""
    found = int(totals(simulator, endpoint)["received"])
    simulator.reset()
    return found


def again(lab: Lab, mapping: dict[str, Any], **changes: Any) -> Any:
    return execute(declare(mapping, [lab.root]), lab.folder, observer=Watch(), environ={}, **changes)


def answers(lab: Lab) -> list[str | None]:
    """The request ids of the answers in the results: those that are there twice were given to two rows."""
    return [found for (found,) in lab.sql("SELECT answers_request_id FROM results ORDER BY 1")]


class TestAddedColumn:
    def test_only_new_prompts_are_sent(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(50))
        mapping = experiment(simulator.url, {"answers": generate(), "vectors": embed("{{ answers.text }}")})
        lab.run(mapping)
        before = dict(lab.sql("SELECT n, answers_text FROM results"))
        simulator.reset()
        rows = with_column(texts(50), channel="chat")
        for row in rows[:5]:
            row["text"] += " Again."
        lab.rows(rows)
        watch = Watch()
        outcome = lab.run(mapping, watch=watch)
        assert (outcome.status, outcome.reused) == ("done", 90)
        assert totals(simulator, "chat")["received"] == 5
        assert watch.stats is not None
        assert watch.stats.requests == totals(simulator)["received"]
        found = lab.sql("SELECT n, answers_text FROM results WHERE channel = 'chat' ORDER BY n")
        assert [n for n, _ in found] == list(range(50))
        assert all(text == before[n] for n, text in found if n >= 5)
        assert lab.sql(
            "SELECT count(*), max(attempts), max(cost_usd) FROM answers, run WHERE reused_from = run_id"
        ) == [(45, 0, 0.0)]
        assert lab.one("SELECT count(*) FROM attempts WHERE stage = 'answers'") == 55
        told = [note for note in watch.notes if note.startswith("answers of rows that are gone")]
        assert told == [
            "answers of rows that are gone: 50 for answers, 50 for vectors: a request that is the same is not sent"
        ]
        assert lab.run(mapping).reused == 0
        assert lab.one("SELECT count(*) FROM results WHERE len(vectors_embedding) = 64") == 50

    def test_nothing_is_looked_up_where_nothing_has_gone(
        self, lab: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*_: Any) -> Any:
            raise AssertionError

        monkeypatch.setattr("infermesh.store.known.KnownAnswers.look_up", never)
        lab.rows(texts(5))
        mapping = experiment(simulator.url, {"answers": generate()})
        assert lab.run(mapping).status == "done"
        lab.rows(texts(8))
        watch = Watch()
        assert lab.run(mapping, watch=watch).status == "done"
        assert totals(simulator)["received"] == 8
        assert not any(note.startswith("answers of rows") for note in watch.notes)

    def test_columns_and_edits_one_after_the_other(self, lab: Lab, simulator: Simulator) -> None:
        mapping = experiment(simulator.url, {"answers": generate()})
        versions = [texts(6), with_column(texts(6), a=1), with_column(texts(6), a=1, b=2), with_column(texts(6), a=1)]
        for rows in (*versions, texts(6), with_column(texts(6), b=3)):
            lab.rows(rows)
            assert lab.run(mapping).status == "done"
            assert len(set(answers(lab))) == 6
        assert sent(simulator) == 6

    def test_other_prompts_and_other_parameters_are_sent(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(4))
        lab.run(experiment(simulator.url, {"answers": generate()}))
        simulator.reset()
        lab.rows(with_column(texts(4), a=1))
        assert lab.run(experiment(simulator.url, {"answers": generate(params={"temperature": 1.0})})).reused == 0
        assert sent(simulator) == 4
        # An edit that is taken back finds the answers of the rows that have gone.
        assert lab.run(experiment(simulator.url, {"answers": generate()})).reused == 4
        assert sent(simulator) == 0

    def test_failed_rows_are_not_taken(self, lab: Lab, simulator: Simulator, start_simulator: Start) -> None:
        lab.rows(texts(4))
        faulty = start_simulator(filter_marker="number 2")
        assert lab.run(experiment(faulty.url, {"answers": generate()})).status == "failed_rows"
        lab.rows(with_column(texts(4), a=1))
        assert lab.run(experiment(simulator.url, {"answers": generate()})).reused == 3
        assert totals(simulator)["received"] == 1

    def test_what_a_mapper_carries_is_the_new_rows(self, lab: Lab, simulator: Simulator) -> None:
        (lab.root / "own_mapper.py").write_text(
            "def to_prompt(row):\n    return {'input': row['text'], 'metadata': {'tag': row.get('tag')}}\n"
        )
        stage = {"kind": "generate", "mapper": "own_mapper:to_prompt"}
        mapping = experiment(simulator.url, {"answers": stage})
        lab.rows(texts(3))
        lab.run(mapping)
        lab.rows(with_column(texts(3), tag="new"))
        assert lab.run(mapping).reused == 3
        assert lab.one("SELECT count(*) FROM results WHERE answers_metadata->>'$.tag' = 'new'") == 3


class TestSamples:
    """Each answer is given once: identical rows are samples of a prompt."""

    def test_further_ones_are_sent(self, lab: Lab, simulator: Simulator) -> None:
        mapping = experiment(simulator.url, {"answers": generate()})
        lab.rows([*samples(3), *texts(2)])
        lab.run(mapping)
        simulator.reset()
        lab.rows(with_column([*samples(5), *texts(2)], a=1))
        assert lab.run(mapping).reused == 5
        assert sent(simulator) == 2
        assert len(set(answers(lab))) == len(answers(lab)) == 7

    def test_more_than_one_lookup(self, lab: Lab, simulator: Simulator) -> None:
        mapping = experiment(simulator.url, {"answers": generate(max_parallel_requests=256)})
        lab.rows(samples(700))
        lab.run(mapping)
        simulator.reset()
        lab.rows(samples(1300, a=1))
        assert lab.run(mapping).reused == 700
        assert sent(simulator) == 600
        assert len(set(answers(lab))) == 1300

    def test_rows_that_go_one_after_the_other(self, lab: Lab, simulator: Simulator) -> None:
        mapping = experiment(simulator.url, {"answers": generate()})
        old, new = samples(4), samples(4, a=1)
        for changed in range(5):
            lab.rows([*new[:changed], *old[changed:]])
            lab.run(mapping)
            assert len(set(answers(lab))) == 4
        assert sent(simulator) == 4

    def test_rows_that_come_back_keep_their_answer_and_lend_it_to_none(self, lab: Lab, simulator: Simulator) -> None:
        mapping = experiment(simulator.url, {"answers": generate()})
        lab.rows(samples(2))
        lab.run(mapping)
        lab.rows(samples(2, a=1))
        lab.run(mapping)
        assert sent(simulator) == 2
        lab.rows([*samples(2), *samples(1, b=1)])
        assert lab.run(mapping).reused == 0
        assert sent(simulator) == 1
        assert len(set(answers(lab))) == 3


class TestInterrupted:
    def test_answers_that_were_handed_on_before_a_stop_are_used_up(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(latency_s=0.05)
        mapping = experiment(simulator.url, {"answers": generate(max_parallel_requests=4)})
        lab.rows(samples(40))
        lab.run(mapping)
        assert sent(simulator) == 40
        lab.rows(samples(80, a=1))
        control = Control()

        def stop(stats: RunStats) -> None:
            if stats.reused and stats.requests:
                control.stop()

        outcome = execute(
            declare(mapping, [lab.root]), lab.folder, observer=Watch(on_tick=stop), environ={}, control=control
        )
        assert (outcome.status, outcome.reused) == ("interrupted", 40)
        taken = len(answers(lab)) - answers(lab).count(None)
        assert 40 < taken < 80
        outcome = lab.run(mapping)
        assert (outcome.status, outcome.reused) == ("done", 0)
        assert sent(simulator) == 40
        assert len(set(answers(lab))) == 80

    @pytest.mark.long
    def test_what_was_not_committed_is_taken_by_the_next_session(
        self, lab: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mapping = experiment(simulator.url, {"answers": generate()})
        lab.rows(samples(1200))
        lab.run(mapping)
        simulator.reset()
        lab.rows(samples(1200, a=1))
        look_up, looks = KnownAnswers.look_up, []

        def dies(known: KnownAnswers, stage: str, keys: Sequence[str]) -> Any:
            looks.append(len(keys))
            if len(looks) == 2:
                raise OSError("the machine is gone")
            return look_up(known, stage, keys)

        with monkeypatch.context() as patched:
            patched.setattr("infermesh.store.known.KnownAnswers.look_up", dies)
            with pytest.raises(BaseException):  # noqa: B017, PT011  a group of whatever the tasks met
                lab.run(mapping)
        gc.collect()  # the rows of the session that died hang in its traceback; another test counts rows
        handed = lab.one("SELECT count(*) FROM answers, run WHERE reused_from = run_id")
        assert handed == looks[0] < 1200
        assert lab.run(mapping).reused == 1200 - handed
        assert sent(simulator) == 0
        assert len(set(answers(lab))) == 1200


class TestSqlStages:
    def test_an_added_column_of_a_query(self, lab: Lab, simulator: Simulator) -> None:
        def declared(query: str) -> dict[str, Any]:
            mapping = experiment(simulator.url, {})
            mapping["stages"] = {
                "parts": {"kind": "sql", "query": query},
                "answers": {"model": "m", **generate("{{ parts.part }}")},
                "joined": {"kind": "sql", "query": "SELECT string_agg(text, ' ' ORDER BY row_id) AS text FROM answers"},
                "titles": {"model": "m", **generate("A title for: {{ joined.text }}")},
            }
            return mapping

        lab.rows(texts(6))
        query = "SELECT unnest([text, 'Once more: ' || text]) AS part, n{} FROM source ORDER BY part"
        lab.run(declared(query.format("")))
        assert sent(simulator) == 13
        watch = Watch()
        outcome = lab.run(declared(query.format(", 10 * n AS tens")), watch=watch)
        assert (outcome.status, outcome.reused) == ("done", 12)
        assert sent(simulator) == 0  # the joined text is the same, too
        assert lab.one("SELECT count(*) FROM parts_results WHERE tens = 10 * n AND answers_status = 'done'") == 12
        assert any(note.startswith("answers of rows that are gone: 12 for answers:") for note in watch.notes)
        # A row of the source that is new and asks the same, too.
        lab.rows(with_column(texts(6), a=1))
        assert lab.run(declared(query.format(", 10 * n AS tens"))).reused == 0
        assert sent(simulator) == 0

    def test_other_rows_are_known_only_after_the_query(self, lab: Lab, simulator: Simulator) -> None:
        mapping = experiment(simulator.url, {"first": generate()})
        mapping["stages"]["lines"] = {"kind": "sql", "query": "SELECT n, a, text FROM first JOIN source USING (row_id)"}
        mapping["stages"]["answers"] = {"model": "m", **generate("Sum up: {{ lines.text }}")}
        mapping["stages"]["lines"]["query"] = (
            "SELECT s.n, s.a, f.text FROM first f JOIN source s USING (row_id) WHERE f.status = 'done'"
        )
        lab.rows(texts(5, a=1))
        lab.run(mapping)
        assert sent(simulator) == 10
        lab.rows(texts(5, a=2))
        assert lab.run(mapping).reused == 10
        assert sent(simulator) == 0
        assert lab.one("SELECT count(*) FROM lines_results WHERE a = 2 AND answers_status = 'done'") == 5


class TestRetry:
    def test_what_is_done_again_is_sent(self, lab: Lab, simulator: Simulator) -> None:
        mapping = experiment(simulator.url, {"answers": generate()})
        lab.rows(samples(4))
        lab.run(mapping)
        lab.rows(samples(3, a=1))
        assert lab.run(mapping).reused == 3
        assert sent(simulator) == 4
        assert again(lab, mapping, redo=Redo("answers", "reused_from IS NOT NULL")).reused == 0
        assert sent(simulator) == 3

    def test_an_answer_that_was_given_up_is_not_handed_on_by_a_later_session(
        self, lab: Lab, simulator: Simulator
    ) -> None:
        mapping = experiment(simulator.url, {"answers": generate()})
        lab.rows(texts(4))
        lab.run(mapping)
        lab.rows(texts(4, a=1))
        lab.run(mapping)
        assert sent(simulator) == 4
        given_up = lab.one("SELECT answers_request_id FROM results WHERE n = 2")
        control = Control()
        control.stop()  # before anything is sent
        redo = Redo("answers", "row_id IN (SELECT row_id FROM source WHERE n = 2 AND a = 1)")
        assert again(lab, mapping, redo=redo, control=control).status == "interrupted"
        assert sent(simulator) == 0
        assert lab.run(mapping).reused == 0
        assert sent(simulator) == 1
        # And the new answer is that of the row from now on.
        new = lab.one("SELECT answers_request_id FROM results WHERE n = 2")
        assert new != given_up
        lab.rows(texts(4, a=2))
        assert lab.run(mapping).reused == 4
        assert sent(simulator) == 0
        assert lab.one("SELECT answers_request_id FROM results WHERE n = 2") == new


class TestWithReuse:
    def test_own_answers_come_first(self, lab: Lab, simulator: Simulator) -> None:
        mapping = experiment(simulator.url, {"answers": generate()})
        lab.rows(texts(6))
        folder = lab.folder
        lab.folder = folder.with_name("other")
        lab.run(mapping)
        lab.folder = folder
        lab.rows(texts(4))
        lab.run(mapping)
        own = set(answers(lab))
        simulator.reset()
        lab.rows(texts(6, a=1))
        assert lab.run(mapping | {"reuse": "latest"}).reused == 6
        assert sent(simulator) == 0
        assert own < set(answers(lab))
        assert lab.sql(
            "SELECT count(*) FILTER (reused_from = run_id), count(*) FILTER (reused_from <> run_id) FROM answers, run"
        ) == [(4, 2)]


def test_a_plan_takes_them_off(lab: Lab, simulator: Simulator) -> None:
    mapping = experiment(simulator.url, {"answers": generate()})
    lab.rows(texts(30))
    lab.run(mapping)
    simulator.reset()
    lab.rows([*texts(25, a=1), {"n": 99, "text": "Another one."}])
    plan = make_plan(declare(mapping, [lab.root]), lab.folder, options=Options(), environ={})
    assert [(stage.facts.rows, stage.facts.certainty) for stage in plan.estimate.stages] == [(1, "exact")]
    assert any(note.startswith("answers of rows that are gone: 30 for answers") for note in plan.notes)
    assert sent(simulator) == 0
    assert lab.run(mapping).reused == 25
    assert sent(simulator) == 1
