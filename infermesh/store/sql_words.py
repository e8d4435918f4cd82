"""What to write where SQL refuses: columns of text among numbers, names with blanks, ``row[…]`` as in templates."""

from __future__ import annotations

import itertools
import re

from infermesh.hints import near, one_line
from infermesh.store.schema import quoted

__all__ = ["as_column", "as_sql", "refusal", "two_words"]

_ROW = re.compile(r"""\brow\s*\[\s*(?:"([^"]+)"|'([^']+)')\s*\]""")
_TWO_WORDS = re.compile(
    r"\s*([A-Za-z_]\w*(?:[ -][A-Za-z_]\w*)+)\s*(?:[<>=!]|\b(?:is|in|like|ilike|between)\b)", re.IGNORECASE
)
_NAME = re.compile(r'"[^"]+"|[A-Za-z_][\w.]*(?!\w*\s*\()(?![\w.])')
_OPERATOR = re.compile(r"[-+*/%<>=!]|(?:between|not|in)\b", re.IGNORECASE)
_BEFORE = re.compile(r'(?:"[^"]+"|[A-Za-z_][\w.]*)\s*$')

# An unknown name, and what DuckDB proposes in its place, however far.
_GUESSES = re.compile(
    r'(?P<before>column (?:named )?"(?P<column>[^"\n]+)"(?: not found in FROM clause)?|'
    r"name (?P<other>\S+) does not exist)!?\s+(?:Did you mean|Candidate bindings:)[\s:]*"
    r'(?P<guesses>"[^"\n]+"(?:, "[^"\n]+")*)\??'
)


def as_sql(condition: str) -> str:
    """A condition in which a column may be named as in a template, ``row["my text"]``, as SQL has it.

    Examples
    --------
    >>> as_sql("row['my text'] <> ''")
    '"my text" <> \\'\\''
    """
    return _ROW.sub(lambda found: quoted(found[1] or found[2]), condition)


def two_words(condition: str) -> str:
    """The end of a message about a condition that begins with a column of two words; empty for others."""
    found = _TWO_WORDS.match(condition)
    return f". A column whose name has blanks is written {quoted(found[1])}" if found else ""


def as_column(hint: str) -> str:
    """A hint at a column's name as SQL writes it: ``my text`` needs quotes."""
    found = re.fullmatch(r" Did you mean '(.*)'\?", hint)
    return f" Did you mean {quoted(found[1])}?" if found and not found[1].isidentifier() else hint


def refusal(error: object, most: int) -> str:
    """DuckDB's message in one line; where a column of text stands where a number must, what to write instead.

    Parameters
    ----------
    error
        Its error. One in several lines marks the place that it is about.
    most
        Characters of a message that is not replaced.

    Examples
    --------
    >>> said = "Binder Error: Cannot compare values of type VARCHAR and type INTEGER_LITERAL - an explicit cast is needed"
    >>> refusal(f"{said}\\n\\nLINE 1: SELECT a WHERE stars < 3\\n                       ^^^^^^^^^", 300)
    'stars is text and not a number. Write stars::DOUBLE in its place; or, if it comes from CSV, whose columns are all text, give it a type: source.types: {stars: DOUBLE} (or auto)'
    """  # noqa: E501
    said = _GUESSES.sub(_near_guesses, str(error))
    if "VARCHAR" not in said or not re.search(r"explicit (type )?cast", said):
        return one_line(said, most)
    name = _marked(said)
    if name is None:
        return f"{one_line(said, most)} A column of CSV is text: write NAME::DOUBLE, or set source.types: auto"
    plain = name.strip('"').rpartition(".")[2] if "." in name and '"' not in name else name.strip('"')
    return (
        f"{plain} is text and not a number. Write {name}::DOUBLE in its place; or, if it comes from CSV, whose columns "
        f"are all text, give it a type: source.types: {{{plain}: DOUBLE}} (or auto)"
    )


def _near_guesses(found: re.Match[str]) -> str:
    """DuckDB's guesses at a name, without those that are far from it."""
    name = found["column"] or found["other"]
    guesses = [guess for guess in re.findall(r'"([^"]+)"', found["guesses"]) if near(name, [guess])]
    listed = " or ".join(map(quoted, guesses))
    return f"{found['before']}. Did you mean {listed}?" if guesses else found["before"]


def _marked(said: str) -> str | None:
    """The column in the place that a message marks with ``^``."""
    lines = said.splitlines()
    for line, mark in itertools.pairwise(lines):
        if line.startswith("LINE ") and mark.strip(" ^") == "" and "^" in mark:
            at = mark.index("^")
            found = _BEFORE.search(line[:at]) if _OPERATOR.match(line, at) else _NAME.search(line, at)
            return found[0].strip() if found else None
    return None
