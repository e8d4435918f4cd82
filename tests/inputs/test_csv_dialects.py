"""CSV as it comes: the dialect of each file, told from its first lines, and that a malformed line changes nothing."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import pytest

from infermesh.errors import ConfigError
from tests.loaded import load, load_text

AS_IT_COMES: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
    "comma": ("x.csv", "id,t\n1,a\n2,b\n", [{"id": "1", "t": "a"}, {"id": "2", "t": "b"}]),
    "semicolon": ("x.csv", "id;t\n1;a,b\n2;c\n", [{"id": "1", "t": "a,b"}, {"id": "2", "t": "c"}]),
    "tabs, commas in the header": (
        "x.tsv",
        "id\tq (yes, no, unsure)\twhy, in short\n1\tyes\tfast\n",
        [{"id": "1", "q (yes, no, unsure)": "yes", "why, in short": "fast"}],
    ),
    "tabs without the suffix": (
        "x.csv",
        "id\tq, r\n1\tyes\n2\tno\n",
        [{"id": "1", "q, r": "yes"}, {"id": "2", "q, r": "no"}],
    ),
    "no comments": ("x.csv", "id,t\n#1,a\n2,b\n", [{"id": "#1", "t": "a"}, {"id": "2", "t": "b"}]),
    "a trailing delimiter": (
        "x.csv",
        "id,t,\n1,a,\n2,b,\n",
        [{"id": "1", "t": "a", "column2": None}, {"id": "2", "t": "b", "column2": None}],
    ),
    "a trailing delimiter in the rows": ("x.csv", "id,t\n1,a,\n2,b,\n", [{"id": "1", "t": "a"}, {"id": "2", "t": "b"}]),
    "names with blanks": ("x.csv", "id, t \n1, a\n", [{"id": "1", "t": " a"}]),
    "a name twice": ("x.csv", "id,score,Score\n1,10,900\n", [{"id": "1", "score": "10", "Score_1": "900"}]),
    "a name that is empty": ("x.csv", ",t\n0,a\n", [{"column0": "0", "t": "a"}]),
    "blank lines first": ("x.csv", "\n \nid,t\n1,a\n", [{"id": "1", "t": "a"}]),
    "Excel's sep": ("x.csv", "sep=;\nid;t\n1;a,b\n", [{"id": "1", "t": "a,b"}]),
    "Excel's sep, a tab": ("x.csv", "sep=\t\nid\tt\n1\ta,b\n", [{"id": "1", "t": "a,b"}]),
    "Excel's sep in quotes": ("x.csv", '"sep=;"\nid;t\n1;a,b\n', [{"id": "1", "t": "a,b"}]),
    "carets": ("x.csv", "id^t\n1^a\n2^b,c\n", [{"id": "1", "t": "a"}, {"id": "2", "t": "b,c"}]),
    "blanks around quotes": (
        "x.csv",
        'id,t\n1, "x, y"\n2,"z" \n"3" , "a\nb"\n4, v \n',
        [{"id": "1", "t": "x, y"}, {"id": "2", "t": "z"}, {"id": "3", "t": "a\nb"}, {"id": "4", "t": " v "}],
    ),
    "columns named as ours": (
        "x.csv",
        "line,error,f0,hash\n1,2,3,4\n",
        [{"line": "1", "error": "2", "f0": "3", "hash": "4"}],
    ),
    "quotes within": (
        "x.csv",
        'id,t\n1,5" nail\n2,"say ""hi"", then\nleave"\n',
        [{"id": "1", "t": '5" nail'}, {"id": "2", "t": 'say "hi", then\nleave'}],
    ),
    "carriage returns": ("x.csv", "id,t\r1,a\r2,b\r", [{"id": "1", "t": "a"}, {"id": "2", "t": "b"}]),
    "suffix in capitals": ("X.CSV", "id,t\n1,a\n", [{"id": "1", "t": "a"}]),
}


@pytest.mark.parametrize(
    ("packed", "bad"),
    [(False, False), (False, True), (True, True)],
    ids=["plain", "plain, with a malformed line", "gz, with a malformed line"],
)
@pytest.mark.parametrize("what", AS_IT_COMES)
def test_as_it_comes(tmp_path: Path, what: str, packed: bool, bad: bool) -> None:
    name, text, rows = AS_IT_COMES[what]
    if bad:
        text += "7\r" if text.endswith("\r") else "7\n"
    data = gzip.compress(text.encode()) if packed else text.encode()
    name = f"{name}.gz" if packed else name
    loaded = load_text(tmp_path, data, name)
    assert [row for at, row in enumerate(loaded.rows) if at not in loaded.errors] == rows
    assert len(loaded.errors) == bad
    assert all(f"{name}, line " in error for error in loaded.errors.values())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    data = (mark + "id,t\n1,äpfel\n2\n").encode(encoding)
    loaded = load_text(tmp_path, data, "x.csv")
    assert loaded.rows[0] == {"id": "1", "t": "äpfel"}
    assert "x.csv, line 3: expected 2 values, found 1" in loaded.errors[1]


def test_another_encoding_has_to_be_named(tmp_path: Path) -> None:
    data = "id,café\n1,thé\n".encode("latin-1")
    with pytest.raises(ConfigError, match=r"x\.csv: its first line is not UTF-8 text\. Set source\.encoding"):
        load_text(tmp_path, data, "x.csv")
    assert load_text(tmp_path, data, "x.csv", encoding="latin-1").rows == [{"id": "1", "café": "thé"}]
    with pytest.raises(ConfigError, match="cannot be read as no-such text"):
        load_text(tmp_path, data, "x.csv", encoding="no-such")


def test_each_file_has_its_own_dialect_and_an_empty_one_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,t\n1,a\n")
    (tmp_path / "b.csv").write_text("")
    (tmp_path / "c.csv").write_text("t;id\nc;3\n")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"id\tt\n4\td\n"))
    expected = [{"id": n, "t": t} for n, t in (("1", "a"), ("3", "c"), ("4", "d"))]
    assert load(tmp_path, "*.csv*").rows == expected


def test_a_folders_name_is_no_column_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "lang=en").mkdir()
    (tmp_path / "lang=en" / "x.csv").write_text("id,lang\n1,fr\n")
    (tmp_path / "lang=en" / "y.csv").write_text("id\n1\n")

    def rows(name: str, **config: Any) -> list[dict[str, Any]]:
        (tmp_path / "run.duckdb").unlink(missing_ok=True)
        return load(tmp_path, f"lang=en/{name}", **config).rows

    assert rows("x.csv") == [{"id": "1", "lang": "fr"}]
    assert rows("x.csv", hive=True) == [{"id": "1", "lang": "fr"}]
    assert rows("y.csv") == [{"id": "1"}]
    assert rows("y.csv", hive=True) == [{"id": "1", "lang": "en"}]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_file_that_was_found_is_the_one_that_is_read(tmp_path: Path, suffix: str) -> None:
    def content(n: int) -> str:
        return f"n\n{n}\n" if suffix == "csv" else f'{{"n": "{n}"}}\n'

    names = ["x[1]", "x1", "a*b", "ab", "q?", "qq", "it's #1 +5%", "-dash"]
    for n, name in enumerate(names):
        (tmp_path / f"{name}.{suffix}").write_text(content(n))
    for n, name in enumerate(names):
        assert load(tmp_path, f"{name}.{suffix}").rows == [{"n": str(n)}], name


def test_what_is_declared_counts(tmp_path: Path) -> None:
    text = "# made by hand\n1~'a~b'\n# so was this\n2~c\n"
    loaded = load_text(tmp_path, text, "x.csv", delimiter="~", quote="'", comment="#", header=False)
    assert loaded.rows == [{"column0": "1", "column1": "a~b"}, {"column0": "2", "column1": "c"}]
    (tmp_path / "run.duckdb").unlink()
    assert load_text(tmp_path, 'a\tb\n"x\ty\n', "y.csv", quote="").rows == [{"a": '"x', "b": "y"}]
    with pytest.raises(ConfigError, match="for CSV files alone"):
        load_text(tmp_path, "{}\n", "x.jsonl", delimiter=";")


def test_types_change_no_value(tmp_path: Path) -> None:
    text = "a,b,c,d\n1,1,2024-01-02 10:00:00,true\n4.7,1e5,2024-01-03,no\n"
    auto = load_text(tmp_path, text, "x.csv", types="auto")
    assert auto.types == {"a": "DOUBLE", "b": "DOUBLE", "c": "TIMESTAMP", "d": "BOOLEAN"}
    (tmp_path / "run.duckdb").unlink()
    given = load_text(tmp_path, text, "x.csv", types={"a": "INTEGER"})
    assert given.rows[0]["a"] == 1
    assert given.errors == {1: "column a: 4.7 is no INTEGER (source.types)"}


def test_a_header_over_malformed_lines_alone_is_still_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sku,fruit\n1,apple\n")
    (tmp_path / "b.csv").write_text("sku,fruit\n5\n")
    loaded = load(tmp_path, "*.csv")
    assert loaded.rows[0] == {"sku": "1", "fruit": "apple"}
    assert "b.csv, line 2: expected 2 values, found 1" in loaded.errors[1]
    (tmp_path / "run.duckdb").unlink()
    sentence = load_text(tmp_path, "Hello, world\nfoo\n", "s.csv")
    assert sentence.rows == [{"Hello, world": "foo"}]


def test_line_separators_of_unicode_end_no_line(tmp_path: Path) -> None:
    assert load_text(tmp_path, "id,t\u2028x\n1,a\u2028b\n", "x.csv").rows == [{"id": "1", "t\u2028x": "a\u2028b"}]


def test_types(tmp_path: Path) -> None:
    text = "id,stars,at\n1,5,2024-01-02\n2,many,2024-01-03\n"
    assert load_text(tmp_path, text, "x.csv").types == dict.fromkeys(("id", "stars", "at"), "VARCHAR")
    (tmp_path / "run.duckdb").unlink()
    auto = load_text(tmp_path, text, "x.csv", types="auto")
    assert auto.types == {"id": "BIGINT", "stars": "VARCHAR", "at": "DATE"}
    (tmp_path / "run.duckdb").unlink()
    given = load_text(tmp_path, text, "x.csv", types={"stars": "INTEGER"})
    assert given.rows[0]["stars"] == 5
    assert given.errors == {1: "column stars: many is no INTEGER (source.types)"}
    with pytest.raises(ConfigError, match=r"source\.types: no column 'star'.*stars"):
        load_text(tmp_path, text, "x.csv", types={"star": "INTEGER"})
    with pytest.raises(ConfigError, match=r"source\.types\.stars: 'NUMBERS' is no type"):
        load_text(tmp_path, text, "x.csv", types={"stars": "NUMBERS"})


def test_blank_lines_of_one_column_are_rows_without_a_value(tmp_path: Path) -> None:
    expected = [{"q": "a"}, {"q": None}, {"q": "b"}]
    assert load_text(tmp_path, "q\na\n\nb\n", "x.csv").rows == expected
    assert load_text(tmp_path, 'q\na\n\nb\n"open\n', "y.csv").rows[:3] == expected


def test_quotes_escaped_by_a_backslash(tmp_path: Path) -> None:
    text = 'id,t\n1,"say \\"hi\\", ok"\n2,"a\\\\b"\n'
    expected = [{"id": "1", "t": 'say "hi", ok'}, {"id": "2", "t": "a\\b"}]
    assert load_text(tmp_path, text, "x.csv", escape="\\").rows == expected
    with_bad = load_text(tmp_path, text + "3\n", "y.csv", escape="\\")
    assert with_bad.rows[:2] == expected
    assert "line 4: expected 2 values, found 1" in with_bad.errors[2]


@pytest.mark.parametrize("bad", ["", "3\n"])
def test_a_delimiter_of_several_characters(tmp_path: Path, bad: str) -> None:
    loaded = load_text(tmp_path, f'id||t\n1||x|y\n2|| "p||q"\n{bad}', "x.csv", delimiter="||")
    assert loaded.rows[:2] == [{"id": "1", "t": "x|y"}, {"id": "2", "t": "p||q"}]
    assert len(loaded.errors) == len(bad[:1])


CELLS = [
    "a",
    "x y",
    '"q"',
    '"q, r"',
    '"q""r"',
    " a",
    ' "q"',
    '"q" ',
    '  "q"',
    ' "q, r" ',
    "",
    '""',
    "'s'",
    '5" p',
    "#c",
]
CELLS += [
    '"n\nl"',
    '"n\rl" ',
    "\x00b",
    "é",
    '\\"',
    '"\\',
    "NULL",
    "\ufeff",
    "  ",
    "\t",
    "\x0b",
    "\x85",
    "\u2028",
    '"a"b',
]


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 12))])
def test_a_malformed_line_changes_nothing_about_the_others(tmp_path: Path, seed: int) -> None:
    """DuckDB reads the file without one, our own reader the one with it."""
    chosen = random.Random(seed)
    for number in range(4):
        width, end, delimiter = chosen.choice([1, 2, 3]), chosen.choice(["\n", "\r\n", "\r"]), chosen.choice(",,\t")
        lines = ["abc"[:width], *(chosen.choices(CELLS, k=width) for _ in range(chosen.randint(1, 4)))]
        text = "".join(delimiter.join(cells) + end for cells in lines)
        bad = delimiter.join("z" * (width + 2)) + end
        seen = []
        for name, content in (("well.csv", text), ("bad.csv", text + bad)):
            (tmp_path / "run.duckdb").unlink(missing_ok=True)
            loaded = load_text(tmp_path, content, name, delimiter=delimiter)
            wrong = {row: error.partition(".csv")[2] for row, error in loaded.errors.items()}
            seen.append((loaded.columns, loaded.rows, wrong))
        columns, rows, wrong = seen[1]
        assert seen[0] == (columns, rows[:-1], {row: wrong[row] for row in wrong if row < len(rows) - 1}), (
            number,
            text,
        )
