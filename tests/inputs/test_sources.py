"""What a source's rows become: as stored, and as templates see them."""

from __future__ import annotations

import gzip
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.config.schema import StoreConfig
from infermesh.errors import ConfigError
from tests.loaded import load, load_text
from tests.support import ask, write_jsonl

if sys.version_info >= (3, 14):
    from compression.zstd import compress as zstd_compress
else:
    from backports.zstd import compress as zstd_compress


class TestJsonl:
    @pytest.mark.parametrize(
        ("values", "kind"),
        [
            ([1, -2, None], "BIGINT"),
            ([1.5, 2, None], "DOUBLE"),
            ([True, False, None], "BOOLEAN"),
            (["a", "", None], "VARCHAR"),
            (["2024-01-01", "12:00"], "VARCHAR"),
            (["007", "1e3", "null", "true"], "VARCHAR"),
            ([None, None], "VARCHAR"),
            ([1, "one", None], "JSON"),
            ([True, 1], "JSON"),
            ([[1, [2]], [], None], "JSON"),
            ([{"a": {"b": [1, "ü"]}}, {}], "JSON"),
            (["text", {"now": "an object"}], "JSON"),
            ([9223372036854775807, 1], "HUGEINT"),
            ([9223372036854775808, -1], "HUGEINT"),
        ],
    )
    def test_values_come_back_as_they_were_written(self, tmp_path: Path, values: list[Any], kind: str) -> None:
        write_jsonl(tmp_path / "rows.jsonl", [{"x": value} for value in values])
        loaded = load(tmp_path)
        assert loaded.types == {"x": kind}
        assert [row["x"] for row in loaded.rows] == values
        assert [type(row["x"]) for row in loaded.rows if kind == "JSON"] == (
            [type(value) for value in values] if kind == "JSON" else []
        )

    @pytest.mark.parametrize(
        ("values", "kind"),
        [
            ([1, -2, None], "BIGINT"),
            ([1.5, 2], "DOUBLE"),
            ([2**62 + 1], "HUGEINT"),
            ([10**30, 1], "JSON"),
            ([0.1234567890123456789, 1], "DOUBLE"),
            ([[1], {}], "JSON"),
            ([True], "BOOLEAN"),
        ],
    )
    @pytest.mark.parametrize("before", ["absent", "null", "text"])
    def test_what_the_first_lines_do_not_show(self, tmp_path: Path, values: list[Any], kind: str, before: str) -> None:
        first: dict[str, Any] = {} if before == "absent" else {"x": None if before == "null" else "12345678901234567"}
        rows = [{"n": n, "note": "12345678901234567890 1e400 \u00e9", **first} for n in range(100)]
        rows += [{"x": value, "n": 100 + n, "late": n} for n, value in enumerate(values)]
        write_jsonl(tmp_path / "rows.jsonl", rows)
        loaded = load(tmp_path)
        assert loaded.types == {"n": "BIGINT", "note": "VARCHAR", "late": "BIGINT"} | {
            "x": "JSON" if before == "text" else kind
        }
        assert [row["x"] for row in loaded.rows[100:]] == values

    def test_each_of_many_keys_has_its_type(self, tmp_path: Path) -> None:
        row = {f"k{n}": "x" if n % 3 == 0 else 10 ** (n % 25) for n in range(400)}
        write_jsonl(tmp_path / "rows.jsonl", [row])
        loaded = load(tmp_path)
        assert loaded.rows == [row]
        for name, value in row.items():
            kind = "VARCHAR"
            if isinstance(value, int):
                kind = "BIGINT" if value < 10**18 else "HUGEINT" if value < 2**64 else "JSON"
            assert loaded.types[name] == kind, name

    def test_large_integers_among_fractions_keep_every_digit(self, tmp_path: Path) -> None:
        values = [9007199254740993, 0.5]
        write_jsonl(tmp_path / "rows.jsonl", [{"x": value} for value in values])
        assert [row["x"] for row in load(tmp_path).rows] == values

    @pytest.mark.parametrize(
        "text",
        [
            "ü €  漢字 🙂",
            "quotes \" and ' and \\",
            "lines\nand\ttabs\r\n",
            "a\x00b",
            "{{ jinja }}",
            "'; drop table x; --",
        ],
    )
    def test_text_is_kept_to_the_letter(self, tmp_path: Path, text: str) -> None:
        write_jsonl(tmp_path / "rows.jsonl", [{"x": text, "nested": {"x": text}}])
        assert load(tmp_path).rows == [{"x": text, "nested": {"x": text}}]

    @pytest.mark.parametrize(
        "key", ["a.b", 'with "quotes"', "it's", "back\\slash", "two words", "$", "[0]", "0", "a/b~c", "ü", "*"]
    )
    def test_any_key_can_be_a_column(self, tmp_path: Path, key: str) -> None:
        write_jsonl(tmp_path / "rows.jsonl", [{key: 1, "other": "x"}, {key: 2, "other": "y"}])
        assert load(tmp_path).rows == [{key: 1, "other": "x"}, {key: 2, "other": "y"}]

    def test_columns_stand_in_the_order_of_their_appearance(self, tmp_path: Path) -> None:
        lines = '{"z": 1, "y": 2, "x": 3, "w": 4}\n{"w": 4, "x": 3, "y": 2, "z": 1}\n{"b": 3, "z": 1, "a": 5}\n'
        assert load_text(tmp_path, lines).columns == ["z", "y", "x", "w", "b", "a"]

    def test_a_key_that_a_row_does_not_have_is_null(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}, {"b": "x"}])
        assert load(tmp_path).rows == [{"a": 1, "b": None}, {"a": None, "b": "x"}]

    def test_rows_keep_the_files_order(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "rows.jsonl", ({"n": n, "filler": "x" * 200} for n in range(30_000)))
        assert [row["n"] for row in load(tmp_path).rows] == list(range(30_000))

    def test_malformed_lines_stay_as_rows_with_their_line_and_reason(self, tmp_path: Path) -> None:
        text = b'{"a": 1}\n\n{"a":\n[1, 2]\n  \n"text"\n{"a": 2}\n\xff{"a": 3}\nnull\n{"a": 4} {"a": 5}\n{"a": 6}'
        loaded = load_text(tmp_path, text)
        assert [row["a"] for row in loaded.rows] == [1, None, None, None, 2, None, None, None, 6]
        expected = {
            1: ("line 3", "not valid JSON"),
            2: ("line 4", "array"),
            3: ("line 6", "not a JSON object"),
            5: ("line 8", "not valid JSON"),
            6: ("line 9", "null"),
            7: ("line 10", "not valid JSON"),
        }
        assert loaded.errors.keys() == expected.keys()
        for number, words in expected.items():
            assert all(word in loaded.errors[number] for word in (*words, "rows.jsonl"))

    def test_line_numbers_count_within_each_file(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "part-1.jsonl", [{"a": 1}, "oops"])
        write_jsonl(tmp_path / "part-2.jsonl", ["", "", "oops", {"a": 2}])
        loaded = load(tmp_path, "part-*.jsonl")
        assert "part-1.jsonl, line 2" in loaded.errors[1]
        assert "part-2.jsonl, line 3" in loaded.errors[2]

    def test_windows_line_ends(self, tmp_path: Path) -> None:
        loaded = load_text(tmp_path, b'{"a": 1}\r\n\r\n{"a": 2}\r\noops\r\n')
        assert [row["a"] for row in loaded.rows] == [1, 2, None]
        assert "line 4" in loaded.errors[2]

    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
    def test_a_byte_order_mark_is_no_part_of_the_text(self, tmp_path: Path, name: str) -> None:
        data = b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n'
        assert load_text(tmp_path, gzip.compress(data) if name.endswith("gz") else data, name).rows == [
            {"a": 1},
            {"a": 2},
        ]

    def test_keys_that_sql_cannot_tell_apart_or_name(self, tmp_path: Path) -> None:
        rows = load_text(tmp_path, '{"": 0, "Text": "A", "a*b": 1}\n{"text": "b", "": 1, "x/y~z": 2}\n').rows
        assert rows[0] == {"column0": 0, "Text": "A", "a*b": 1, "text_1": None, "x/y~z": None}
        assert rows[1] == {"column0": 1, "Text": None, "a*b": None, "text_1": "b", "x/y~z": 2}

    def test_a_key_that_stands_there_twice_makes_its_row_malformed(self, tmp_path: Path) -> None:
        loaded = load_text(tmp_path, '{"a": 1, "a": 2}\n{"a": 3}\n')
        assert "line 1: a key stands there twice" in loaded.errors[0]
        assert loaded.errors.keys() == {0}

    def test_what_cannot_be_read_is_an_error_of_its_row(self, tmp_path: Path) -> None:
        deep = "[" * 5000 + "]" * 5000
        loaded = load_text(tmp_path, f'{{"a": 1, "x": {deep}}}\n{{"a": 2, "x": [NaN, -Infinity]}}\n{{"a": 3}}\n')
        assert loaded.errors == {0: "x: nested too deeply"}
        assert str(loaded.rows[1]["x"]) == "[nan, -inf]"

    @pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 123456789012345678901234567890])
    def test_integers_of_any_size(self, tmp_path: Path, number: int) -> None:
        text = f'{{"n": {number}, "deep": {{"n": [{number}]}}}}\n{{"n": 1}}\n'
        first, second = load_text(tmp_path, text).rows
        assert first == {"n": number, "deep": {"n": [number]}}
        assert second["n"] == 1

    def test_a_malformed_line_names_its_own_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n\nbroken\n'))
        (tmp_path / "b.jsonl.zst").write_bytes(zstd_compress(b'{"a": 2}\n[3]\n'))
        (tmp_path / "c.jsonl").write_text('{"a": 3}\nno\n')
        errors = load(tmp_path, "*.jsonl*").errors
        assert [errors[row].partition(": ")[0].rpartition("/")[2] for row in sorted(errors)] == [
            "a.jsonl.gz, line 3",
            "b.jsonl.zst, line 2",
            "c.jsonl, line 2",
        ]

    @pytest.mark.parametrize("indent", [None, 2])
    def test_a_json_file_with_one_array(self, tmp_path: Path, indent: int | None) -> None:
        """Not a line each, but everybody has such files: they must not pass for broken lines."""
        rows = [{"a": 1, "b": "[x]"}, {"a": 2, "b": "ü,\n{"}]
        assert load_text(tmp_path, json.dumps(rows, indent=indent), "rows.json").rows == rows


class TestCsv:
    def test_cells_stay_text(self, tmp_path: Path) -> None:
        loaded = load_text(tmp_path, "id,price,flag,when\n007,1.50,true,2024-01-01\n1e3,NaN,no,12:00\n", "rows.csv")
        assert set(loaded.types.values()) == {"VARCHAR"}
        assert loaded.rows == [
            {"id": "007", "price": "1.50", "flag": "true", "when": "2024-01-01"},
            {"id": "1e3", "price": "NaN", "flag": "no", "when": "12:00"},
        ]

    def test_quoted_cells(self, tmp_path: Path) -> None:
        loaded = load_text(tmp_path, 'a,b\n"one, two","say ""hi"""\n"two\nlines",ü\n', "rows.csv")
        assert loaded.rows == [{"a": "one, two", "b": 'say "hi"'}, {"a": "two\nlines", "b": "ü"}]

    def test_tabs(self, tmp_path: Path) -> None:
        assert load_text(tmp_path, "a\tb\n1\tx, y\n", "rows.tsv").rows == [{"a": "1", "b": "x, y"}]

    def test_one_column_needs_no_quotes(self, tmp_path: Path) -> None:
        rows = load_text(tmp_path, 'text\nhello, there\n"one, ""two"""\n', "rows.csv").rows
        assert rows == [{"text": "hello, there"}, {"text": 'one, "two"'}]

    @pytest.mark.parametrize(
        ("text", "bad"),
        [
            ("a,b\n1,2\n3\n4,5,6\n7,8\n", {1: "line 3", 2: "line 4"}),
            ('a,b\n"1\n1",2\n\n3,4,5\n7,8\n', {1: "line 5"}),
            ('a,b\n"never closed,2\n3,4\n', {0: "line 2"}),
            ('a,b\n"1" x,2\n3,4\n', {0: "line 2"}),
            ("a,b\n1,\udce9\n3,4\n", {0: "line 2"}),
        ],
        ids=["short and long", "after a value of two lines", "open quote", "text after a quote", "not UTF-8"],
    )
    def test_malformed_lines_are_rows_with_an_error_and_the_rest_goes_on(
        self, tmp_path: Path, text: str, bad: dict[int, str]
    ) -> None:
        loaded = load_text(tmp_path, text.encode("utf-8", "surrogateescape"), "rows.csv")
        assert loaded.errors.keys() == bad.keys()
        for row_id, where in bad.items():
            assert f"rows.csv, {where}: " in loaded.errors[row_id]
        assert [row["a"] for row_id, row in enumerate(loaded.rows) if row_id not in bad][-1] in ("7", "3")


class TestOtherFormats:
    def test_parquet_keeps_its_types(self, tmp_path: Path) -> None:
        duckdb.connect().execute(
            "COPY (SELECT 7::INTEGER AS i, [1.5, 2.5] AS l, {'a': 'x', 'b': [1]} AS s, '0042' AS code, "
            "TIMESTAMPTZ '2024-05-01 12:00:00+02' AS at, DATE '2024-05-01' AS day, NULL::INTEGER AS nothing) "
            f"TO '{tmp_path / 'rows.parquet'}' (FORMAT parquet)"
        )
        (row,) = load(tmp_path, "rows.parquet").rows
        assert row.pop("at").astimezone(UTC) == datetime(2024, 5, 1, 10, tzinfo=UTC)
        assert str(row.pop("day")) == "2024-05-01"
        assert row == {"i": 7, "l": [1.5, 2.5], "s": {"a": "x", "b": [1]}, "code": "0042", "nothing": None}

    def test_a_glob_takes_files_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        for part in (10, 2, 1):
            write_jsonl(tmp_path / "parts" / f"{part:03}.jsonl", [{"n": part * 10 + row} for row in range(3)])
        assert [row["n"] for row in load(tmp_path, "parts/*.jsonl").rows] == [10, 11, 12, 20, 21, 22, 100, 101, 102]

    def test_many_files_are_read_within_the_memory_that_the_store_has(self, tmp_path: Path) -> None:
        """Whatever it has of threads: each of DuckDB's would hold large buffers for each file that it has open."""
        for part in range(20):
            write_jsonl(tmp_path / "parts" / f"{part:02}.jsonl", [{"n": part * 3 + row} for row in range(3)])
        for attempt in range(10):
            (tmp_path / f"{attempt}").mkdir()
            (tmp_path / f"{attempt}/parts").symlink_to(tmp_path / "parts")
            loaded = load(tmp_path / f"{attempt}", "parts/*.jsonl", store_config=StoreConfig(threads=8))
            assert [row["n"] for row in loaded.rows] == list(range(60))

    def test_many_csv_files_are_read_within_the_memory_that_the_store_has(self, tmp_path: Path) -> None:
        (tmp_path / "parts").mkdir()
        with duckdb.connect() as connection:
            rows = "SELECT range AS n, repeat('lorem ipsum ', 5) AS text FROM range(150_000)"  # 10 MB
            connection.execute(f"COPY ({rows}) TO '{tmp_path}/parts/00.csv' (FORMAT csv, HEADER)")
        for part in range(1, 40):
            (tmp_path / f"parts/{part:02}.csv").hardlink_to(tmp_path / "parts/00.csv")
        loaded = load(tmp_path, "parts/*.csv", limit=9, store_config=StoreConfig(memory_limit="64MB", threads=8))
        assert [row["n"] for row in loaded.rows] == [str(n) for n in range(9)]

    @pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
    @pytest.mark.long
    def test_rows_too_long_for_the_memory_that_the_store_has(self, tmp_path: Path, form: str) -> None:
        with duckdb.connect() as connection:
            rows = "SELECT range AS n, repeat('lorem ipsum ', 1500) AS text FROM range(2100)"  # 18 KB each
            kind = {"jsonl": "json", "csv": "csv, HEADER", "parquet": "parquet"}[form]
            connection.execute(f"COPY ({rows}) TO '{tmp_path}/rows.{form}' (FORMAT {kind})")
        loaded = load(tmp_path, f"rows.{form}", store_config=StoreConfig(memory_limit="8MB"))
        assert [int(row["n"]) for row in loaded.rows] == list(range(2100))
        assert {row["text"] for row in loaded.rows} == {"lorem ipsum " * 1500}

    @pytest.mark.parametrize(("name", "text"), [("rows.jsonl.gz", '{"a": "1"}\n'), ("rows.csv.gz", "a\n1\n")])
    def test_compressed_files(self, tmp_path: Path, name: str, text: str) -> None:
        assert load_text(tmp_path, gzip.compress(text.encode()), name).rows == [{"a": "1"}]

    @pytest.mark.parametrize("name", ["rows.jsonl.zst", "rows.csv.zst", "rows.jsonl.gz", "rows.csv.gz"])
    def test_compressed_files_hold_the_same_rows_as_plain_ones(self, tmp_path: Path, name: str) -> None:
        """Quotes, line breaks and text that looks like numbers among them; and the same keys."""
        rows = [{"n": f"{n:03}", "text": f'Parcel "{n}",\nlate; «sorry»'} for n in range(3000)]
        write_jsonl(tmp_path / "made.jsonl", rows)
        (tmp_path / "plain").mkdir()
        plain = name.rpartition(".")[0]
        compression = {"zst": "zstd", "gz": "gzip"}[name.rpartition(".")[2]]
        with duckdb.connect() as connection:
            rows_in = f"SELECT * FROM read_json('{tmp_path}/made.jsonl', columns={{n: 'VARCHAR', text: 'VARCHAR'}})"
            for file, options in ((f"plain/{plain}", ""), (name, f", COMPRESSION {compression}")):
                format = "FORMAT json" if plain.endswith("jsonl") else "FORMAT csv, HEADER"
                connection.execute(f"COPY ({rows_in}) TO '{tmp_path / file}' ({format}{options})")
        loaded, expected = load(tmp_path, name), load(tmp_path / "plain", plain)
        assert loaded.rows == rows
        assert (loaded.rows, loaded.keys, loaded.types) == (expected.rows, expected.keys, expected.types)

    def test_malformed_lines_of_a_compressed_file(self, tmp_path: Path) -> None:
        loaded = load_text(tmp_path, gzip.compress(b'{"a": 1}\noops\n'), "rows.jsonl.gz")
        assert "not valid JSON" in loaded.errors[1]

    def test_a_query(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "rows.jsonl", [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}])
        sql = f"SELECT a * 10 AS ten, b FROM read_json_auto('{tmp_path / 'rows.jsonl'}') WHERE a > 1; "
        assert load(tmp_path, None, sql=sql).rows == [{"ten": 20, "b": "y"}]

    def test_a_wrong_query_says_why(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"source\.sql.*nowhere"):
            load(tmp_path, None, sql="SELECT * FROM nowhere")

    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
    def test_the_limit_takes_the_first_rows(self, tmp_path: Path, name: str) -> None:
        text = '{"n": "1"}\n{"n": "2"}\n{"n": "3"}\n' if name.endswith("jsonl") else "n\n1\n2\n3\n"
        assert [row["n"] for row in load_text(tmp_path, text, name, limit=2).rows] == ["1", "2"]
        # A higher limit on the same run adds the rows that it lets in.
        assert [row["n"] for row in load(tmp_path, name, limit=3).rows] == ["1", "2", "3"]

    def test_the_format_can_be_named(self, tmp_path: Path) -> None:
        assert load_text(tmp_path, "a,b\n1,2\n", "rows.data", format="csv").rows == [{"a": "1", "b": "2"}]


class TestRefused:
    def test_no_such_file_names_the_nearest(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "data" / "tickets.jsonl", [{}])
        with pytest.raises(ConfigError, match=r"source\.path.*data/ticket\.jsonl.*Did you mean 'data/tickets\.jsonl'"):
            load(tmp_path, "data/ticket.jsonl")

    def test_no_such_file_says_where_it_was_looked_for(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=f"Looked in: {tmp_path}"):
            load(tmp_path, "nothing/like/it.jsonl")

    def test_an_unknown_ending(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"rows\.xlsx.*source\.format"):
            load_text(tmp_path, "x", "rows.xlsx")

    def test_files_of_several_formats(self, tmp_path: Path) -> None:
        (tmp_path / "rows.csv").write_text("a\n1\n")
        (tmp_path / "rows.jsonl").write_text("{}\n")
        with pytest.raises(ConfigError, match="one kind for all files"):
            load(tmp_path, "rows.*")

    @pytest.mark.parametrize("column", ["row_id", "ROW_KEY"])
    def test_reserved_columns(self, tmp_path: Path, column: str) -> None:
        with pytest.raises(ConfigError, match=f"'{column}'.*Rename it"):
            load_text(tmp_path, json.dumps({column: 1}))

    def test_columns_of_a_query_that_differ_in_case_only(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError):
            load(tmp_path, None, sql='select 1 as "Name", 2 as "name", 3 as row_key')

    def test_a_file_that_is_not_what_its_name_says(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"rows\.parquet is no Parquet file"):
            load_text(tmp_path, "no parquet", "rows.parquet")

    def test_a_refused_source_leaves_nothing_behind(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError):
            load_text(tmp_path, '{"row_id": 1}\n')
        assert load_text(tmp_path, '{"a": 1}\n').rows == [{"a": 1}]


class TestEmpty:
    @pytest.mark.parametrize("text", ["", "\n\n"])
    def test_an_empty_file_has_no_rows(self, tmp_path: Path, text: str) -> None:
        assert load_text(tmp_path, text).rows == []

    def test_a_csv_with_nothing_but_a_header(self, tmp_path: Path) -> None:
        loaded = load_text(tmp_path, "a,b\n", "rows.csv")
        assert loaded.rows == []
        assert loaded.columns == ["a", "b"]


class TestRowKeys:
    def test_a_key_belongs_to_the_content_wherever_it_stands(self, tmp_path: Path) -> None:
        first = load_text(tmp_path / mkdir(tmp_path, "1"), '{"a": 1}\n{"a": 2}\n{"a": 3}\n')
        second = load_text(tmp_path / mkdir(tmp_path, "2"), '{"a": 3}\n{"a": 1}\n{"a": 2}\n')
        assert dict(zip(("1", "2", "3"), first.keys, strict=True)) == dict(
            zip(("3", "1", "2"), second.keys, strict=True)
        )

    def test_equal_rows_have_keys_of_their_own(self, tmp_path: Path) -> None:
        keys = load_text(tmp_path, '{"a": 1}\n{"a": 2}\n{"a": 1}\n{"a": 1}\n').keys
        assert len(set(keys)) == 4
        assert len({key.rpartition("-")[0] for key in keys}) == 2

    def test_malformed_lines_have_keys_of_their_own(self, tmp_path: Path) -> None:
        assert len(set(load_text(tmp_path, "oops\n[1]\noops\n{}\n").keys)) == 4

    def test_another_way_of_writing_the_same_row(self, tmp_path: Path) -> None:
        first = load_text(tmp_path / mkdir(tmp_path, "1"), '{"a": 1, "b": "ü"}\n')
        second = load_text(tmp_path / mkdir(tmp_path, "2"), '{"a":1,"b":"\\u00fc"}  \n')
        assert first.keys == second.keys

    @pytest.mark.parametrize(("one", "other"), [('"1"', "1"), ("null", '"null"'), ("1", "true"), ('""', "null")])
    def test_values_of_another_type_make_another_row(self, tmp_path: Path, one: str, other: str) -> None:
        keys = load_text(tmp_path, f'{{"a": {one}}}\n{{"a": {other}}}\n').keys
        assert len({key.rpartition("-")[0] for key in keys}) == 2


class TestChangedSource:
    """A run that goes on with a source that has been edited meanwhile."""

    @staticmethod
    def ids(root: Path) -> dict[Any, int]:
        return dict(ask(root, "SELECT a, row_id FROM source"))

    @staticmethod
    def live(root: Path) -> list[Any]:
        return [a for (a,) in ask(root, "SELECT a FROM results ORDER BY row_id")]

    def test_rows_keep_their_ids_when_they_move(self, tmp_path: Path) -> None:
        load_text(tmp_path, '{"a": 1}\n{"a": 2}\n{"a": 3}\n')
        load_text(tmp_path, '{"a": 3}\n{"a": 1}\n{"a": 2}\n')
        assert self.ids(tmp_path) == {1: 0, 2: 1, 3: 2}

    def test_new_rows_join_at_the_end(self, tmp_path: Path) -> None:
        load_text(tmp_path, '{"a": 1}\n{"a": 2}\n')
        load_text(tmp_path, '{"a": 9}\n{"a": 1}\n{"a": 8}\n{"a": 2}\n')
        assert self.ids(tmp_path) == {1: 0, 2: 1, 9: 2, 8: 3}

    def test_vanished_rows_are_retired_and_can_come_back(self, tmp_path: Path) -> None:
        load_text(tmp_path, '{"a": 1}\n{"a": 2}\n{"a": 3}\n')
        assert [row["a"] for row in load_text(tmp_path, '{"a": 1}\n{"a": 3}\n').rows] == [1, 3]
        assert self.live(tmp_path) == [1, 3]
        assert self.ids(tmp_path) == {1: 0, 2: 1, 3: 2}
        load_text(tmp_path, '{"a": 2}\n{"a": 4}\n')
        assert self.live(tmp_path) == [2, 4]
        assert self.ids(tmp_path) == {1: 0, 2: 1, 3: 2, 4: 3}

    def test_one_of_equal_rows_goes(self, tmp_path: Path) -> None:
        load_text(tmp_path, '{"a": 1}\n{"a": 1}\n{"a": 1}\n')
        load_text(tmp_path, '{"a": 1}\n{"a": 1}\n')
        assert self.live(tmp_path) == [1, 1]

    def test_rows_come_into_an_empty_source(self, tmp_path: Path) -> None:
        load_text(tmp_path, "")
        load_text(tmp_path, '{"a": 1}\n{"a": 2}\n')
        assert self.ids(tmp_path) == {1: 0, 2: 1}

    def test_every_row_goes_and_comes_back(self, tmp_path: Path) -> None:
        load_text(tmp_path, '{"a": 1}\n{"a": 2}\n')
        assert load_text(tmp_path, "").rows == []
        assert [row["a"] for row in load_text(tmp_path, '{"a": 2}\n{"a": 1}\n').rows] == [1, 2]

    def test_a_mended_line_is_a_row_and_the_other_stays_malformed(self, tmp_path: Path) -> None:
        load_text(tmp_path, '{"a": 1}\noops\n{"a": 2}\nworse\n')
        loaded = load_text(tmp_path, '{"a": 1}\n{"a": 5}\n{"a": 2}\nworse\n')
        assert sorted(row["a"] for row in loaded.rows if row["a"] is not None) == [1, 2, 5]
        ((number, message),) = loaded.errors.items()
        assert loaded.rows[number] == {"a": None}
        assert "line 4" in message
        assert "worse" in message

    @pytest.mark.parametrize(
        ("before", "after"),
        [("1", '"x"'), ('"x"', "[1]"), ("1", "1.5"), ('"x"', '{"k": 1}'), ("true", "2"), ("[1]", '"x"')],
    )
    def test_a_columns_type_changes(self, tmp_path: Path, before: str, after: str) -> None:
        load_text(tmp_path, f'{{"a": {before}}}\n')
        loaded = load_text(tmp_path, f'{{"a": {after}}}\n')
        assert [row["a"] for row in loaded.rows] == [json.loads(after)]

    def test_a_changed_source_that_cannot_be_read_changes_nothing(self, tmp_path: Path) -> None:
        load_text(tmp_path, '{"a": 1}\n')
        with pytest.raises(ConfigError):
            load_text(tmp_path, '{"row_id": 1}\n')
        assert self.live(tmp_path) == [1]


def mkdir(root: Path, name: str) -> str:
    (root / name).mkdir()
    return name
