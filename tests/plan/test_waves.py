"""Plans of declarations with sql and python stages, and with answers of earlier runs."""

from __future__ import annotations

from typing import Any

from infermesh.config.declaration import declare
from infermesh.plan import Options, Plan, make_plan
from infermesh.simulator import Simulator
from tests.support import Lab, experiment, generate, texts, totals

Rows = dict[str, tuple[int | None, str]]


def declared(url: str, stages: dict[str, Any], **sections: Any) -> dict[str, Any]:
    mapping = experiment(url, {}, **sections)
    models = {name: ({"model": "m"} if stage["kind"] == "generate" else {}) | stage for name, stage in stages.items()}
    return mapping | {"stages": models}


def plan(lab: Lab, mapping: dict[str, Any]) -> Plan:
    return make_plan(declare(mapping, [lab.root]), lab.folder, options=Options(), environ={})


def rows(found: Plan) -> Rows:
    return {stage.facts.name: (stage.facts.rows, stage.facts.certainty) for stage in found.estimate.stages}


def sql(query: str) -> dict[str, Any]:
    return {"kind": "sql", "query": query}


def test_a_query_over_the_source_is_counted(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(10))
    halves = sql("select n, unnest([left(text, 6), right(text, 5)]) as part from source")
    mapping = declared(
        simulator.url,
        {"halves": halves, "a": generate("{{ part }} {{ halves.n }}", where="n < 8", max_parallel_requests=4)},
    )
    assert rows(plan(lab, mapping)) == {"a": (16, "exact")}
    lab.run(mapping)
    assert totals(simulator)["received"] == 16
    assert rows(plan(lab, mapping)) == {"a": (0, "exact")}


def test_a_query_over_answers_is_not_known_before_them(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(6))
    stages = {
        "a": generate(),
        "joined": sql("select string_agg(text, ' ') as texts from a"),
        "b": generate("{{ joined.texts }}"),
    }
    mapping = declared(simulator.url, stages)
    found = plan(lab, mapping)
    assert rows(found) == {"a": (6, "exact"), "joined": (None, "unknown"), "b": (None, "unknown")}
    assert found.estimate.unknown == [
        "joined: rows are not known before the run",
        "b: rows are not known before the run",
    ]
    lab.run(mapping)
    simulator.reset()
    edited = declared(simulator.url, {**stages, "b": generate("Once more: {{ joined.texts }}")})
    assert rows(plan(lab, edited)) == {"a": (0, "exact"), "b": (1, "exact")}
    lab.run(edited)
    assert totals(simulator)["received"] == 1


def test_a_function_is_not_called(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(5))
    (lab.root / "planned_functions.py").write_text("def loud(row):\n    raise SystemExit('called')\n")
    python = {"kind": "python", "function": "planned_functions:loud"}
    stages = {"p": python, "a": generate("{{ p.value }}"), "b": generate("{{ text }}")}
    found = plan(lab, declared(simulator.url, stages))
    assert rows(found) == {"p": (5, "exact"), "b": (5, "exact"), "a": (5, "estimated")}
    each = {stage.facts.name: stage for stage in found.estimate.stages}
    assert (each["p"].requests, each["a"].requests) == (0, 5)
    problem = each["a"].facts.problem
    assert problem is not None
    assert "what p makes of a row is not known before the run" in problem


def test_answers_of_earlier_runs_are_taken_off(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(12))
    mapping = declared(simulator.url, {"a": generate(), "b": generate("{{ a.text }} Once more.")})
    lab.run(mapping | {"source": {"path": "rows.jsonl", "limit": 5}})
    lab.folder = lab.folder.with_name("next")
    assert rows(plan(lab, mapping)) == {"a": (12, "exact"), "b": (12, "exact")}
    simulator.reset()
    found = plan(lab, mapping | {"reuse": "latest"})
    assert rows(found) == {"a": (7, "exact"), "b": (7, "estimated")}
    # Both stages could use any of the ten answers, but each is one answer.
    assert any("answers of the latest run: 5 of a, 5 of b" in note for note in found.notes), found.notes
    assert totals(simulator)["received"] == 0
    lab.run(mapping | {"reuse": "latest"})
    assert totals(simulator)["received"] == 14
