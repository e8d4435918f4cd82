"""Columns that have one value in all rows of a file: the names of its folders, ``lang=en/`` (hive partitioning).

They are the same for every format and every reader: text, beside the columns that the file has itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote

from infermesh.store.schema import literal, quoted

__all__ = ["Constants", "folder_columns", "select_constants", "without"]

Constants = Mapping[str, str | None]
_NULL = "__HIVE_DEFAULT_PARTITION__"  # how Hive and Spark call the folder of the rows without a value


def folder_columns(file: str) -> Constants:
    """The columns that a file's folders name, with their values.

    Examples
    --------
    >>> folder_columns("data/lang=en/day=01/x.csv")
    {'lang': 'en', 'day': '01'}
    """
    found: dict[str, tuple[str, str | None]] = {}
    for part in Path(file).parts[:-1]:
        name, equals, value = part.partition("=")
        if name and equals:
            found[name.lower()] = (name, None if value == _NULL else unquote(value))
    return dict(found.values())


def without(constants: Constants, names: Iterable[str]) -> Constants:
    """The constants that have none of these names: what stands in a file counts, in whatever case it is written."""
    taken = {name.lower() for name in names}
    return {name: value for name, value in constants.items() if name.lower() not in taken}


def select_constants(constants: Constants) -> str:
    """What stands behind the other columns of a SELECT."""
    return "".join(f", {constant(value)} AS {quoted(name)}" for name, value in constants.items())


def constant(value: str | None) -> str:
    """A constant as SQL."""
    return "NULL::VARCHAR" if value is None else literal(value)
