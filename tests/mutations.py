"""What comes from outside, for property tests: texts, JSON values, and valid values with something changed."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

# Numbers at which somebody's type ends.
_EDGES = [0, -1, 1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**19, 10**400]
_ODD_TEXTS = [
    "",
    " ",
    "\0",
    "null",
    "nan",
    "-1",
    "1e999",
    "\u2028",
    "%s{0}",
    "{{ x }}",
    "'\";--",
    "\ufeff",
    "text",
    "٣",
]

any_text = st.text(st.characters(), max_size=30)  # half surrogates too
clean_text = st.text(max_size=20) | st.sampled_from(_ODD_TEXTS)
numbers = st.integers() | st.sampled_from(_EDGES) | st.floats() | st.booleans()
scalars = st.none() | numbers | clean_text


# Stands for a value that is nested more deeply than Python's own writer of JSON can write; see :func:`written`.
_DEEP = re.compile(r'"deep (\d+)"')


def written(value: Any) -> bytes:
    """JSON as somebody else may write it: with ``NaN``, with half surrogates in escapes, nested without an end."""
    return _DEEP.sub(lambda found: _nested(int(found[1])), json.dumps(value)).encode()


def _nested(levels: int) -> str:
    return '{"a":[' * (levels // 2) + "0" + "]}" * (levels // 2)


def json_values(names: st.SearchStrategy[Any] = clean_text) -> st.SearchStrategy[Any]:
    """Any value that a lenient reader of JSON may give; ``names`` are its keys."""
    nested = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
        max_leaves=8,
    )
    return nested | st.sampled_from([f"deep {levels}" for levels in (100, 300, 900, 1016, 3000)])


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    return [(*path, key) for key, _ in items] + [p for key, value in items for p in _places(value, (*path, key))]


@st.composite
def mutated(
    draw: st.DrawFn,
    valid: st.SearchStrategy[Any],
    values: st.SearchStrategy[Any] | None = None,
    names: st.SearchStrategy[Any] = clean_text,
) -> Any:
    """A valid value in which up to four things were dropped, renamed, doubled, moved or put in place of others."""
    tree = copy.deepcopy(draw(valid))
    values = (json_values(names) if values is None else values).map(copy.deepcopy)
    for _ in range(draw(st.integers(0, 4))):
        places = _places(tree)
        if not places:
            break
        *path, key = draw(st.sampled_from(places))
        node = tree
        for step in path:
            node = node[step]
        _MUTATIONS[draw(st.sampled_from(list(_MUTATIONS)))](draw, node, key, values, names)
    return tree


def _replace(draw: st.DrawFn, node: Any, key: Any, values: Any, names: Any) -> None:
    node[key] = draw(values)


def _drop(draw: st.DrawFn, node: Any, key: Any, values: Any, names: Any) -> None:
    del node[key]


def _rename(draw: st.DrawFn, node: Any, key: Any, values: Any, names: Any) -> None:
    if isinstance(node, dict):
        node[draw(names)] = node.pop(key)


def _add(draw: st.DrawFn, node: Any, key: Any, values: Any, names: Any) -> None:
    if isinstance(node, dict):
        node[draw(names)] = draw(values)
    else:
        node.insert(key, draw(values))


def _wrap(draw: st.DrawFn, node: Any, key: Any, values: Any, names: Any) -> None:
    node[key] = draw(st.sampled_from([[node[key]], {"value": node[key]}, [node[key], node[key]]]))


def _unwrap(draw: st.DrawFn, node: Any, key: Any, values: Any, names: Any) -> None:
    inner = node[key]
    if isinstance(inner, dict | list) and inner:
        node[key] = next(iter(inner.values() if isinstance(inner, dict) else inner))


_MUTATIONS: dict[str, Callable[..., None]] = {
    "replace": _replace,
    "drop": _drop,
    "rename": _rename,
    "add": _add,
    "wrap": _wrap,
    "unwrap": _unwrap,
}
