"""Templates of a small grammar over any row: a text, or an error of the row or the config, and nothing of Python's."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from infermesh.errors import ConfigError, InputError
from infermesh.inputs.templates import Template
from tests.mutations import any_text, json_values

_NAMES = ["a", "b", "row", "loop", "range", "dict", "namespace", "self", "items", "missing"]
_DUNDERS = ["__class__", "__init__", "__globals__", "__mro__", "__subclasses__", "__dict__", "_x", "f_back", "gi_frame"]
_ATTRIBUTES = [*_NAMES, *_DUNDERS, "format", "keys", "upper", "real", "0", "join", "mro"]
_FILTERS = [
    *("length", "tojson", "join(',')", "first", "list", "string", "default('x')", "upper", "items", "sort", "unique"),
    *("map(attribute='__class__')", "attr('__class__')", "map('attr', '__init__')", "groupby('a')", "batch(2)", "sum"),
    *("format(1)", "replace('a', 'b')", "truncate(3)", "int", "float", "round", "center(9)", "pprint", "e", "safe"),
]
_literals = st.sampled_from(
    ["1", "-1", "1.5", "'x'", "''", "none", "true", "[]", "{}", "[a, b]", "{'a': b}", "'{0.__class__}'"]
)
_expressions = st.recursive(
    st.sampled_from(_NAMES) | _literals,
    lambda inner: st.one_of(
        st.builds("{}.{}".format, inner, st.sampled_from(_ATTRIBUTES)),
        st.builds("{}['{}']".format, inner, st.sampled_from(_ATTRIBUTES)),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("({} | {})".format, inner, st.sampled_from(_FILTERS)),
        st.builds("{}({})".format, inner, st.just("") | inner),
        st.builds("({} {} {})".format, inner, st.sampled_from([*"+-*/%~", "**", "//", "==", "<", "in", "and"]), inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("({} is {})".format, inner, st.sampled_from(["defined", "none", "string", "mapping", "iterable"])),
    ),
    max_leaves=6,
)
_templates = st.recursive(
    any_text | st.builds("{{{{ {} }}}}".format, _expressions),
    lambda inner: st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("{{% for x in {} %}}{}{{{{ x }}}}{{% endfor %}}".format, _expressions, inner),
        st.builds("{{% if {} %}}{}{{% endif %}}".format, _expressions, inner),
        st.builds("{{% set a = {} %}}{}".format, _expressions, inner),
        st.builds("{{% macro m(x) %}}{}{{% endmacro %}}{{{{ m({}) }}}}".format, inner, _expressions),
    ),
    max_leaves=4,
)
_rows = st.dictionaries(st.sampled_from(_NAMES), json_values(st.sampled_from(_ATTRIBUTES)), max_size=4)
_PYTHONS = (
    "<class '",
    "<built-in",
    "<function",
    "<bound method",
    "<module",
    "<generator",
    "object at 0x",
    "mappingproxy",
)


@given(_templates, _rows)
def test_a_text_or_an_error(source: str, row: dict[str, Any]) -> None:
    before = repr(row)
    try:
        found = Template(source, "stages.s.prompt").render(row)
    except (ConfigError, InputError):
        found = ""
    assert isinstance(found, str)
    if not any(name in source for name in ("range", "dict", "namespace")):  # a list of these shows their names
        assert not any(mark in found for mark in _PYTHONS if mark not in source + before)
    assert repr(row) == before


@given(_expressions, _rows)
def test_a_value_or_an_error(source: str, row: dict[str, Any]) -> None:
    try:
        found = Template(source, "stages.s.messages", expression=True).evaluate(row)
    except (ConfigError, InputError):
        return
    # Jinja's own functions are refused where a value is used.
    assert not isinstance(found, type) or found.__name__ in ("dict", "Namespace")
