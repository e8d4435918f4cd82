"""The query that a run ends with: few columns, and answers in them."""

from __future__ import annotations

from typing import Any

import pytest

from infermesh.query.glance import first_query_of
from infermesh.query.reader import RunReader
from infermesh.simulator import Simulator
from tests.support import Lab, embed, experiment, generate, texts

SCHEMA = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}
TABLE = {"kind": "sql", "query": "SELECT text FROM a"}


@pytest.mark.parametrize(
    ("stages", "query"),
    [
        ({"a": generate()}, "select row_id, a_text from results order by row_id limit 5"),
        ({"a": generate(), "v": embed("{{ a.text }}")}, "select row_id, a_text from results order by row_id limit 5"),
        (
            {"a": generate(), "B": generate("{{ a.text }}", response_format=SCHEMA)},
            "select row_id, a_text, B_parsed from results order by row_id limit 5",
        ),
        (
            {"a": generate(), "w": TABLE, "b": generate(rows="w")},
            "select row_id, b_text from w_results order by row_id limit 5",
        ),
        ({"v": embed()}, "from progress"),
        ({"a": generate("{{ 1 / 0 }}")}, "from progress"),
    ],
)
def test_the_answers_of_the_last_stages(lab: Lab, simulator: Simulator, stages: dict[str, Any], query: str) -> None:
    lab.rows(texts(3))
    mapping = experiment(simulator.url, stages)
    mapping["stages"].get("w", {}).pop("model", None)
    outcome = lab.run(mapping)
    with RunReader(lab.folder) as reader:
        assert first_query_of(reader) == query
        assert first_query_of(reader, outcome.counts) == query
        assert len(reader.rows(query)) in (1, 2, 3)
