"""In a template a name is the data's, or an error of the row: never a method, a global or something of Jinja's."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from decimal import Decimal
from typing import Any

import pytest

from infermesh.errors import InputError
from infermesh.inputs.templates import Template
from infermesh.simulator import Simulator
from tests.support import Lab, experiment, generate


def rendered(source: str, **context: Any) -> str:
    return Template(source, "stages.s.prompt").render(context)


@pytest.mark.parametrize(
    "source",
    [
        "{{ d.items }}",
        "{{ d['items'] }}",
        "{{ d.items | length }}",
        "{{ d.items ~ 'x' }}",
        "{% if d.items %}yes{% endif %}",
        "{% for x in d.values %}{{ x }}{% endfor %}",
        "{{ d.inner.keys }}",
        "{{ text.title }}",
        "{{ text.format }}",
        "{{ many.count }}",
        "{{ list | map(attribute='items') | join }}",
        "{{ many | map(attribute='bit_length') | join }}",
        "{{ self }}",
        "{{ d.get | tojson }}",
    ],
)
def test_a_bare_method_is_an_error_of_the_row(source: str) -> None:
    with pytest.raises(InputError) as caught:
        rendered(source, d={"a": 1, "inner": {}}, text="x", many=[1], list=[{"id": 1}])
    assert "built-in" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ d.items }}", "[1]"),
        ("{{ d.keys }}", "5"),
        ("{% for k, v in e.items() %}{{ k }}={{ v }};{% endfor %}", "a=1;b=2;"),
        ("{{ e.get('a') }}{{ e.get('z', 0) }}", "10"),
        ("{{ e.keys() | join }}", "ab"),
        ("{{ text.upper() }} {{ text.split() | length }}", "TWO WORDS 2"),
        ("{{ 'n: %s' | format(text) }}{{ '{}'.format(7) }}", "n: two words7"),
        ("{{ e.nothing is defined }}{{ e.items is defined }}{{ e.items | default('none') }}", "FalseFalsenone"),
        ("{{ day.year }}", "2024"),
        ("{{ rows | map(attribute='items') | join(',') }}", "1,2"),
        ("{{ range }}", "mine"),
        ("{{ row['First Name'] }} {{ row['x.y'] }} {{ row['1st'] }}", "Bo dotted one"),
    ],
)
def test_data_and_calls(source: str, expected: str) -> None:
    context = {
        "d": {"items": [1], "keys": 5},
        "e": {"a": 1, "b": 2},
        "text": "two words",
        "day": dt.date(2024, 1, 2),
        "rows": [{"items": 1}, {"items": 2}],
        "range": "mine",
        "First Name": "Bo",
        "x.y": "dotted",
        "1st": "one",
    }
    assert Template(source, "p").render(context) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for i in range(n) %}{{ i }} {% endfor %}", "0 1 2 "),
        ("{{ range(n) | sum }}{{ range(2, 8, 2) | list }}", "3[2, 4, 6]"),
        ("{% set ns = namespace(t=0) %}{% for i in [1, 2] %}{% set ns.t = ns.t + i %}{% endfor %}{{ ns.t }}", "3"),
        ("{{ dict(a=n).a }}{{ dict(a=n) | tojson }}", '3{"a":3}'),
        ("{% set c = cycler('x', 'y') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}", "xyx"),
        ("{% set j = joiner(', ') %}{% for i in [1, 2] %}{{ j() }}{{ i }}{% endfor %}", "1, 2"),
        ("{% macro m(k) %}{% for i in range(k) %}{{ i }}{% endfor %}{% endmacro %}{{ m(n) }}", "012"),
    ],
)
def test_jinjas_own_functions(source: str, expected: str) -> None:
    assert rendered(source, n=3) == expected


@pytest.mark.parametrize("value", ["mine", None, 0, [], {"a": 1}])
@pytest.mark.parametrize("name", ["range", "dict", "namespace", "cycler", "joiner", "lipsum"])
def test_a_column_is_before_a_function(name: str, value: Any) -> None:
    """Also where the row has nothing in it."""
    for source in (
        f"{{{{ {name} }}}}",
        f"{{% for i in [1] %}}{{{{ {name} }}}}{{% endfor %}}",
        f"{{{{ row['{name}'] }}}}",
    ):
        assert rendered(source, **{name: value}) == ("" if value is None else str(value))
    assert Template(f"[{name}]", "p", expression=True).evaluate({name: value}) == [value]
    with pytest.raises(InputError):
        rendered(f"{{{{ {name}(3) }}}}", **{name: value})


def test_functions_are_no_text_and_no_random_words() -> None:
    for source in ("{{ range }}", "{{ dict }}", "{{ lipsum() }}", "{{ [range] | join }}", "{{ range ~ 'x' }}"):
        with pytest.raises(InputError):
            rendered(source)
    assert Template("{{ lipsum(3) }}", "p").names == {"lipsum"}  # so it is told before the run


def test_stages_and_columns_called_as_functions(lab: Lab, simulator: Simulator) -> None:
    lab.rows([{"n": 0, "dict": "a word"}])
    stages = {
        "range": generate("{{ dict }}"),
        "g": generate("{{ range.text }}|{{ dict }}"),
        "h": generate("{% for i in cycler(1).items %}{{ i }}{% endfor %}{{ range['text'] }}"),
    }
    lab.run(experiment(simulator.url, stages))
    assert lab.one("SELECT text FROM g") == "a word|a word"
    assert lab.one("SELECT text FROM h") == "1a word"


def test_a_column_called_row_is_that_column() -> None:
    assert rendered("{{ row }}", row="mine") == "mine"


def test_tojson_is_json_as_people_write_it() -> None:
    value = {"z": "<b> & 'é'", "a": [1.5, 2**70], "n": float("nan")}
    assert rendered("{{ v | tojson }}", v=value) == '{"z":"<b> & \'é\'","a":[1.5,1180591620717411303424],"n":null}'
    assert json.loads(rendered("{{ v | tojson(indent=2) }}", v={"a": [1]})) == {"a": [1]}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (Decimal("1.10"), "1.1"),
        (Decimal("12345678901234567890"), "12345678901234567890"),
        (Decimal("0.12345678901234567890123"), '"0.12345678901234567890123"'),
        (dt.date(2024, 1, 2), '"2024-01-02"'),
        (dt.datetime(2024, 1, 2, 3, 4, tzinfo=dt.UTC), '"2024-01-02T03:04:00+00:00"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (b"\x01\xff", '"01ff"'),
    ],
)
def test_tojson_of_what_json_has_not(value: Any, written: str) -> None:
    assert rendered("{{ v | tojson }}", v=value) == written


@pytest.mark.parametrize(
    "source",
    [
        "{{ l | map(attribute='name') | list }}",
        "{{ [book.items] }}",
        "{{ {'k': book.no} }}",
        "{{ (l[9], 1) }}",
        "{{ [[book.no]] | tojson }}",
        "{{ [book.no] | string }}",
        "{{ [book.no] | join }}",
        "{{ 'a' ~ book.no }}",
    ],
)
def test_what_is_missing_within_a_list_is_an_error_of_the_row(source: str) -> None:
    context = {"l": [{"name": "a"}, {"n": 1}], "book": {"id": 2}}
    with pytest.raises(InputError, match=r"name|items|no|9"):
        Template(source, "p").render(context)
    if "{" not in source[2:-2]:
        with pytest.raises(InputError):
            Template(source, "p", expression=True).evaluate(context)


def test_a_null_is_nothing_in_every_text() -> None:
    context = {"a": "Bob", "b": None, "l": [{"n": "x"}, {"n": None}]}
    template = Template("{{ a ~ '-' ~ b }}/{{ [a, b] | join('-') }}/{{ l | join(',', attribute='n') }}/{{ b }}", "p")
    assert template.render(context) == "Bob-/Bob-/x,/"
    assert Template("{{ a ~ b ~ 1 }}", "p", expression=True).evaluate(context) == "Bob1"


def test_a_column_called_self() -> None:
    assert Template("{{ [row.self, q] }}", "p", expression=True).evaluate({"self": "me", "q": "hi"}) == ["me", "hi"]
    assert Template("{{ self }}", "p").render({"self": "me"}) == "me"
