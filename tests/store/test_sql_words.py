"""What to write where SQL refuses a column of text."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

from infermesh.errors import ConfigError
from infermesh.store.connection import open_duckdb
from infermesh.store.filter import RowFilter, column_references
from infermesh.store.schema import Column
from infermesh.store.sql_words import refusal


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with open_duckdb() as connection:
        connection.execute("CREATE TABLE results AS SELECT '5' AS stars, 'x' AS \"my stars\"")
        yield connection


@pytest.mark.parametrize(
    ("query", "write"),
    [
        ("select avg(stars) from results", "stars::DOUBLE"),
        ("select sum(r.stars) from results r", "r.stars::DOUBLE"),
        ("from results where 3 > stars", "stars::DOUBLE"),
        ("select stars + 1 from results", "stars::DOUBLE"),
        ("from results where stars between 1 and 3", "stars::DOUBLE"),
        ('from results where "my stars" < 3', '"my stars"::DOUBLE'),
    ],
)
def test_a_number_is_needed(connection: duckdb.DuckDBPyConnection, query: str, write: str) -> None:
    with pytest.raises(duckdb.Error) as caught:
        connection.execute(query)
    said = refusal(caught.value, 300)
    assert f"Write {write} in its place" in said
    assert "source.types: {" in said


def test_other_errors_stay_as_they_are(connection: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.Error) as caught:
        connection.execute("select nothing from results")
    assert "::DOUBLE" not in refusal(caught.value, 300)


COLUMNS = [Column("my text", "VARCHAR"), Column("stars", "VARCHAR")]


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("stars < 3", "Write stars::DOUBLE"),
        ("my text = 'z'", 'is written "my text"'),
        ("my_text = 'z'", 'Did you mean "my text"?'),
    ],
)
def test_a_condition_that_does_not_bind(condition: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RowFilter(condition, "stages.a.where", COLUMNS, {})
    assert words in str(caught.value)


def test_a_condition_names_a_column_as_a_template_does() -> None:
    condition = "row[\"my text\"] = 'z' and row['stars'] <> ''"
    assert column_references(condition, "w") == {("my text",), ("stars",)}
    chosen = RowFilter(condition, "w", COLUMNS, {})
    assert chosen.passing([{"my text": "z", "stars": "1"}, {"my text": "y", "stars": "1"}]) == [True, False]
    chosen.close()
