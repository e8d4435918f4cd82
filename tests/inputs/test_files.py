"""Files as they lie about: compressed, torn, empty, wrongly named, in folders that are columns."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.errors import ConfigError, StoreError
from tests.loaded import load, load_text

if sys.version_info >= (3, 14):
    from compression.zstd import compress as zstd_compress
else:
    from backports.zstd import compress as zstd_compress

PACKED: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstd_compress}
TEXTS = {
    "csv": "".join(f"{i},x{i * i}\n" for i in range(50_000)),
    "jsonl": "".join(f'{{"a": {i}}}\n' for i in range(50_000)),
}
TEXTS["csv"] = "id,q\n" + TEXTS["csv"]


def parquet(path: Path, query: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")


def fresh(root: Path, path: str, **config: Any) -> list[dict[str, Any]]:
    (root / "run.duckdb").unlink(missing_ok=True)
    return load(root, path, **config).rows


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("format", TEXTS)
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, format: str, packing: str) -> None:
    whole = PACKED[packing](TEXTS[format].encode())
    name = f"x.{format}.{packing}"
    with pytest.raises(ConfigError, match=rf"x\.{format}\.{packing} ends too early") as raised:
        load_text(tmp_path, whole[:-500], name)
    assert "encoding" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".source")] == []
    short = "".join(TEXTS[format].splitlines(keepends=True)[:501])
    assert len(load_text(tmp_path, PACKED[packing](short.encode()), name).rows) == 501 - (format == "csv")  # its header


@pytest.mark.parametrize("packing", PACKED)
def test_several_compressed_parts_are_one_file(tmp_path: Path, packing: str) -> None:
    pack = PACKED[packing]
    assert load_text(tmp_path, pack(b"id\n1\n") + pack(b"2\n"), f"x.csv.{packing}").rows == [{"id": "1"}, {"id": "2"}]


def test_the_first_rows_are_had_without_the_rest(tmp_path: Path) -> None:
    torn = gzip.compress(TEXTS["jsonl"].encode())[:-500]
    assert load_text(tmp_path, torn, "x.jsonl.gz", limit=2).rows == [{"a": 0}, {"a": 1}]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.csv.gz", b"id\n1\n", "not compressed with gzip, as its name says, but is plain. Rename it"),
        ("x.csv.zst", gzip.compress(b"id\n1\n", mtime=0), "not compressed with zstd, as its name says, but holds gzip"),
        ("x.csv", gzip.compress(b"id\n1\n", mtime=0), "is compressed with gzip: its name must end in .gz"),
        ("x.jsonl", zstd_compress(b"{}"), "is compressed with zstd: its name must end in .zst"),
        ("x.csv", b"BZh91AY&SY\0\0\0\0\0\0\0", "is compressed with bzip2, which is not read"),
        ("x.csv", b"PK\x03\x04\0\0\0\0", "is compressed with zip, which is not read"),
        ("x.csv", b"PAR1\0\0\0\0PAR1", "is a Parquet file"),
        ("x.parquet", b"PAR1\0\0\0\0", "ends too early for a Parquet file"),
        ("x.parquet", b"id\n1\n", "is no Parquet file"),
        ("x.csv.gz", gzip.compress(b"id\n1\n", mtime=0)[:-8] + b"12345678", "is damaged"),
    ],
)
def test_a_file_is_what_its_name_says(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_text(tmp_path, data, name)
    assert said in str(raised.value)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["csv", "csv.zst", "csv.gz", "jsonl", "jsonl.gz", "json", "parquet"])
def test_a_file_of_no_bytes_has_no_rows(tmp_path: Path, name: str) -> None:
    format, _, packing = name.partition(".")
    (tmp_path / f"a.{name}").write_bytes(b"")
    file = tmp_path / f"b.{name}"
    if format == "parquet":
        parquet(file, "SELECT '1' AS id")
    else:
        text = b"id\n1\n" if format == "csv" else b'{"id": "1"}\n'
        file.write_bytes(PACKED[packing](text) if packing else text)
    assert load(tmp_path, f"*.{name}").rows == [{"id": "1"}]


def test_a_glob_below_folders_that_look_like_patterns(tmp_path: Path) -> None:
    project = tmp_path / "p [1]"
    (project / "run [x]").mkdir(parents=True)
    for number in (1, 2):
        (project / "run [x]" / f"{number}.jsonl").write_text(f'{{"a": {number}}}\n')
    for path in ("run [x]/*.jsonl", "run [x]/[12].jsonl", "run*/*.jsonl", "**/*.jsonl"):
        assert fresh(project, path) == [{"a": 1}, {"a": 2}], path


def test_each_json_file_is_an_array_or_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}\n')
    (tmp_path / "b.json").write_text('[{"a": 2}, 3, {"a": 4}]')
    (tmp_path / "c.json").write_text("\n\noops\n")
    loaded = load(tmp_path, "*.json")
    assert [row["a"] for row in loaded.rows] == [1, 2, None, 4, None]
    assert "b.json, item 2: not a JSON object but" in loaded.errors[2]
    assert "c.json, line 3: not valid JSON: oops" in loaded.errors[4]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_json_lines_with_another_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    assert load_text(tmp_path, '{"a":"é"}\n{"a":"日"}\n'.encode(encoding)).rows == [{"a": "é"}, {"a": "日"}]


BAD = {"csv": "2\n", "jsonl": "2\n", "parquet": ""}


@pytest.mark.parametrize("bad", [False, True], ids=["", "with a malformed line"])
@pytest.mark.parametrize("format", BAD)
def test_folders_are_columns_of_text_in_every_format(tmp_path: Path, format: str, bad: bool) -> None:
    for folder, number in (
        ("lang=en/day=01", 1),
        ("lang=a%20b/day=__HIVE_DEFAULT_PARTITION__", 3),
        ("own=1/Lang=fr", 4),
    ):
        file = tmp_path / folder / f"x.{format}"
        file.parent.mkdir(parents=True)
        if format == "parquet":
            parquet(file, f"SELECT '{number}' AS id, 'mine' AS \"Own\"")
        elif format == "csv":
            file.write_text(f"id,Own\n{number},mine\n{BAD[format] if bad else ''}")
        else:
            file.write_text(f'{{"id": "{number}", "Own": "mine"}}\n{BAD[format] if bad else ""}')
    loaded = load(tmp_path, "*/*/x.*", hive=True)
    rows = [row for at, row in enumerate(loaded.rows) if at not in loaded.errors]
    lowered = [{name.lower(): value for name, value in row.items()} for row in rows]
    assert lowered == [
        {"id": "3", "own": "mine", "lang": "a b", "day": None},
        {"id": "1", "own": "mine", "lang": "en", "day": "01"},
        {"id": "4", "own": "mine", "lang": "fr", "day": None},
    ]


def test_folders_are_columns_beside_comments(tmp_path: Path) -> None:
    (tmp_path / "lang=en").mkdir()
    (tmp_path / "lang=en" / "x.csv").write_text("#c\nid\n1\n#d\n2\n")
    assert load(tmp_path, "*/x.csv", hive=True, comment="#").rows == [
        {"id": "1", "lang": "en"},
        {"id": "2", "lang": "en"},
    ]


def test_the_same_line_in_two_folders_makes_two_rows(tmp_path: Path) -> None:
    for lang in ("en", "fr"):
        (tmp_path / f"lang={lang}").mkdir()
        (tmp_path / f"lang={lang}" / "x.jsonl").write_text('{"id": 1}\n')
    keys = load(tmp_path, "*/x.jsonl", hive=True).keys
    assert len({key.partition("-")[0] for key in keys}) == 2


@pytest.mark.parametrize("bad", ["", "3\n"])
def test_headers_that_differ_in_case_are_one_column(tmp_path: Path, bad: str) -> None:
    (tmp_path / "a.csv").write_text("id,Q\n1,x\n")
    (tmp_path / "b.csv").write_text(f"ID,q\n2,y\n{bad}")
    assert load(tmp_path, "*.csv").rows[:2] == [{"id": "1", "Q": "x"}, {"id": "2", "Q": "y"}]


def test_values_of_parquet_are_what_they_are_everywhere(tmp_path: Path) -> None:
    """Python's floats are doubles, and its times have microseconds and end."""
    ns = "TIMESTAMP_NS '2024-03-31 02:30:00.123456789'"
    parquet(
        tmp_path / "x.parquet",
        f"SELECT 0.1::FLOAT AS f, [0.2::FLOAT] AS l, {{'f': 0.3::FLOAT}} AS s, 'nan'::FLOAT AS nan, {ns} AS ns, [{ns}] "
        "AS nsl, TIMESTAMP_NS '2024-03-31 02:30:00.5' AS us, 'infinity'::TIMESTAMP AS i, '-infinity'::DATE AS d, "
        "DATE '2024-03-31' AS day, NULL::TIMESTAMP_NS AS none",
    )
    row = load(tmp_path, "x.parquet").rows[0]
    assert str(row.pop("nan")) == "nan"
    assert row == {
        "f": 0.1,
        "l": [0.2],
        "s": {"f": 0.3},
        "ns": "2024-03-31 02:30:00.123456789",
        "nsl": ["2024-03-31 02:30:00.123456789"],
        "us": datetime(2024, 3, 31, 2, 30, 0, 500000),
        "i": "infinity",
        "d": "-infinity",
        "day": date(2024, 3, 31),
        "none": None,
    }


def test_integers_beside_floats_are_never_rounded(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", "SELECT 9007199254740993 AS a, 1 AS b, 12345678901234567.89::DECIMAL(20, 2) AS c")
    parquet(tmp_path / "b.parquet", "SELECT 0.5::DOUBLE AS A, 0.1::FLOAT AS b, 0.5::DOUBLE AS c, {'a': 0.5} AS s")
    loaded = load(tmp_path, "*.parquet")
    assert loaded.types == {"a": "JSON", "b": "DOUBLE", "c": "JSON", "s": "STRUCT(a DECIMAL(2,1))"}
    assert [row["a"] for row in loaded.rows] == [9007199254740993, 0.5]
    assert [row["b"] for row in loaded.rows] == [1, 0.1]
    assert "12345678901234567.89" in str(loaded.rows[0]["c"])


@pytest.mark.parametrize("blank", ["", " "])
def test_numbers_of_json_keep_every_digit(tmp_path: Path, blank: str) -> None:
    lines = [
        '{"p":0.1234567890123456789,"o":{"k":[12345678901234567.89]},"z":1}',
        '{"p":1234567890123456789.5,"o":{"k":[0.5]},"z":2.5}',
        '{"p":1e400,"o":{},"z":1e5}',
        '{"p":0.30000000000000004,"o":{},"z":1.50}',
        '{"p":0.1234567890123456788,"o":{},"z":1}',
    ]
    loaded = load_text(tmp_path, "\n".join(lines).replace(":", f":{blank}"), "x.jsonl")
    assert loaded.types == {"p": "JSON", "o": "JSON", "z": "DOUBLE"}
    assert [str(row["p"]) for row in loaded.rows] == [
        "0.1234567890123456789",
        "1234567890123456789.5",
        "1E+400",
        "0.30000000000000004",
        "0.1234567890123456788",
    ]
    assert loaded.rows[0]["o"] == {"k": [Decimal("12345678901234567.89")]}
    assert [row["z"] for row in loaded.rows] == [1, 2.5, 1e5, 1.5, 1]
    assert all(type(row["z"]) is float for row in loaded.rows)
    assert len({key.partition("-")[0] for key in loaded.keys}) == 5


def test_a_number_too_large_for_a_double_is_no_infinity(tmp_path: Path) -> None:
    assert [str(row["a"]) for row in load_text(tmp_path, '{"a":1e400}\n{"a":0.5}\n', "x.jsonl").rows] == [
        "1E+400",
        "0.5",
    ]


def test_a_folder_that_duckdb_cannot_write_in_is_told(tmp_path: Path) -> None:
    (tmp_path / "why?").mkdir()
    with pytest.raises(StoreError, match=r"why\?.*Rename it"):
        load_text(tmp_path / "why?", '{"a": 1}\n')
