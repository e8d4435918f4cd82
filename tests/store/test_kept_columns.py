"""Which columns of the input an output repeats, and what they are called there."""

from __future__ import annotations

import pytest

from infermesh.errors import ConfigError
from infermesh.store.kept_columns import kept_names
from infermesh.store.output_file import own_names

OURS = {"_index", "text", "error"}


@pytest.mark.parametrize(
    ("asked", "columns", "kept"),
    [
        (["all"], ["id", "note"], {"id": "id", "note": "note"}),
        (["note", "id", "note"], ["id", "note"], {"note": "note", "id": "id"}),
        (["all"], ["id", "text"], {"id": "id", "text": "input_text"}),
        (["all"], ["Text", "input_text"], {"Text": "input_input_Text", "input_text": "input_text"}),
        (["text"], ["text", "input_TEXT"], {"text": "input_input_text"}),
        (["all"], ["all", "id"], {"all": "all", "id": "id"}),
        (["id"], [], {}),
    ],
)
def test_a_field_of_ours_keeps_its_name(asked: list[str], columns: list[str], kept: dict[str, str]) -> None:
    found = kept_names(asked, columns, OURS)
    assert found == kept
    assert [*found] == [*kept]


@pytest.mark.parametrize("asked", [["ids"], ["id", "ids"]])
def test_an_unknown_column_is_named(asked: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"the input has no column '{asked[-1]}'\. Did you mean 'id'"):
        kept_names(asked, ["id"], OURS)


@pytest.mark.parametrize("asked", [["*"], ["ALL"], ["id", "all"]])
def test_all_is_a_word_that_stands_alone(asked: list[str]) -> None:
    with pytest.raises(ConfigError, match="'all' alone keeps every column"):
        kept_names(asked, ["id"], OURS)


def test_names_that_an_output_may_have() -> None:
    assert own_names("generate") >= {"_index", "output_text", "reasoning", "tool_calls", "metadata", "error"}
    assert "text" not in own_names("embed")
    assert own_names("transcribe") >= {"path", "text"}
