"""Any bytes as a source: a row or an error row for every line, or one clear error, and nothing of DuckDB's."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from infermesh.errors import ConfigError, StoreError
from tests.loaded import Loaded, load_text
from tests.mutations import clean_text, json_values, written

_FEW = settings(max_examples=max(settings().max_examples // 5, 1))  # each makes a database
_NAMES = st.sampled_from(["a", "b", "A", "", "n/m", 'q"', "*", "x y", "row_id", "~1", "\0"]) | clean_text
_json_lines = st.lists(
    st.dictionaries(_NAMES, json_values(_NAMES), max_size=3).map(written) | json_values(_NAMES).map(written), max_size=5
)
_odd_bytes = st.sampled_from(
    [b"{", b'{"a": 1, "a": 2}', b"\xff", b"\0", b"[]", b'{"a": 1}x', b"\xef\xbb\xbf", b"NaN", b"\r"]
)
_lines = st.tuples(_json_lines, st.lists(_odd_bytes | st.binary(max_size=12), max_size=3)).map(
    lambda two: two[0] + two[1]
)
_cells = st.lists(st.lists(clean_text, min_size=1, max_size=3), max_size=5)


def loaded(data: bytes, name: str) -> Loaded | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return load_text(Path(folder), data, name)
        except (ConfigError, StoreError):
            return None


@_FEW
@given(_lines)
def test_every_line_is_a_row(lines: list[bytes]) -> None:
    lines = [line for line in lines if line.strip() and not set(line) & set(b"\r\n\0")]
    found = loaded(b"".join(line + b"\n" for line in lines), "rows.jsonl")
    if found is not None and lines and not lines[0].lstrip().startswith((b"[", b"\xef\xbb\xbf")):
        assert len(found.rows) == len(lines)
        assert len(set(found.keys)) == len(lines)
        for number, line in enumerate(lines):
            assert (number in found.errors) or is_object(line)


def is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


@_FEW
@given(_cells, st.binary(max_size=8))
def test_any_csv_is_loaded_or_refused(cells: Sequence[Sequence[str]], odd: bytes) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["a", "b"], *cells])
    found = loaded(text.getvalue().encode(), "rows.csv")
    assert found is None or len(found.rows) >= sum(any(cell.strip() for cell in row) for row in cells)
    loaded(text.getvalue().encode() + odd, "rows.csv")


@_FEW
@given(st.binary(max_size=60), st.sampled_from(["rows.jsonl", "rows.csv", "rows.tsv", "rows.jsonl.gz", "rows.parquet"]))
def test_any_bytes_are_loaded_or_refused(data: bytes, name: str) -> None:
    loaded(data, name)
