"""Odd rows in prompts: each is a text or an error of that row, whatever the template does with it."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import orjson
import pytest

from infermesh.errors import InputError
from infermesh.inputs import bounds
from infermesh.inputs.templates import Template
from infermesh.simulator import Simulator
from tests.support import Lab, experiment, generate, transcribe


def deep(levels: int) -> Any:
    value: Any = "core"
    for level in range(levels):
        value = [value] if level % 2 else {"k": value}
    return value


VALUES: dict[str, Any] = {
    "none": None,
    "empty": "",
    "template": "{{ 7 * 7 }}{% for x in range(9) %}{{ x }}{% endfor %}{# c #}",
    "raw": "{% raw %}{{ secret }}{% endraw %}{% include '/etc/passwd' %}",
    "format": "{0.__class__} %(a)s %s %d {} {{}} %",
    "python": "__import__('os').system('true')",
    "half a pair": "a\ud800b",
    "other half": "\udfff",
    "nul": "a\0b",
    "controls": "".join(map(chr, range(32))) + "\x7f\x1b[31m\x9b",
    "separators": "a\u2028b\u2029c\x85d\ufeff",
    "bidi": "\u202eabc\u2066",
    "combining": "a" + "\u0301" * 1000,
    "nan": math.nan,
    "infinite": -math.inf,
    "huge": 10**5000,
    "large": 2**64,
    "negative": -(10**30),
    "decimal": Decimal("1E+400"),
    "decimal nan": Decimal("NaN"),
    "bytes": b"\xff\0{{ x }}",
    "date": dt.date(1, 1, 1),
    "time": dt.timedelta.max,
    "true": True,
    "empty list": [],
    "empty object": {},
    "deep": deep(100),
    "too deep": deep(3000),
    "long list": list(range(50_000)),
    "long text": "x" * 1_000_000,
    "odd keys": {"": 1, " ": 2, "a.b": 3, "__class__": 4, "items": 5, "\0": 6, "{{ x }}": 7, "self": 8, "\ud800": 9},
    "no text keys": {1: "a", None: "b", (1, 2): "c", b"k": "d", math.nan: "e"},
    "dunders": {"__class__": "x", "__init__": "y", "__globals__": {"os": "z"}, "mro": "m"},
    "callable names": {"__call__": "x", "jinja_pass_arg": 1, "unsafe_callable": 1, "alters_data": 1, "__html__": "<b>"},
    "nested": [[None, {"a": [math.nan, {"b": b"x"}]}]],
}
TEMPLATES = [
    "{{ v }}",
    "<{{ v }}> {% if v %}yes{% endif %}",
    "{{ v | tojson }}",
    "{{ v | tojson(indent=2) }}",
    "{{ v ~ v }}",
    "{{ v | string | upper | trim | length }}",
    "{% for x in v %}{{ x }}{{ loop.index }},{% endfor %}",
    "{% for k, x in v.items() %}{{ k }}={{ x }};{% endfor %}",
    "{{ v.a.b.c }}",
    "{{ v['a.b'] }}{{ v[''] }}",
    "{{ v.__class__ }}",
    "{{ v.__class__.__mro__[1].__subclasses__() }}",
    "{{ v['__init__']['__globals__']['os'] }}",
    "{{ (v | attr('__class__')) }}",
    "{{ v.mro() }}",
    "{{ v() }}",
    "{{ v.format(v) }}",
    "{{ v % v }}",
    "{{ v | format(v) }}",
    "{{ v + v }}{{ v * 2 }}",
    "{{ v ** v }}",
    "{{ v // 0 }}",
    "{{ v == v }}{{ v in [v] }}{{ v is mapping }}",
    "{{ [v] | join(', ') }}{{ [v, v] | sort | list }}{{ [v, v] | unique | list }}",
    "{{ v | first }}{{ v | last }}{{ v | length }}",
    "{{ v | int }}{{ v | float }}{{ v | round(2) }}{{ v | abs }}",
    "{{ v | replace('a', v) }}{{ v | truncate(10) }}{{ v | wordwrap(20) | length }}{{ v | indent }}",
    "{{ v | center(30) }}{{ v | title }}{{ v | striptags | length }}{{ v | urlencode | length }}{{ v | e | length }}",
    "{{ row }}{{ row.v }}{{ row['v'] | default('x') }}",
    "{% set ns = namespace(x=v) %}{{ ns.x }}{{ dict(a=v).a }}",
    "{{ v | groupby('a') | list }}{{ v | map(attribute='a') | list }}{{ v | sum }}",
    "{{ v[0] }}{{ v[-1] }}{{ v[::-1] }}{{ v[10 ** 30] }}",
    "{{ range(v) | list }}",
    "{{ v.decode() }}{{ v.encode() }}",
    "{{ v.isoformat() }}{{ v.strftime('%Y %') }}",
    "{% macro m(a) %}{{ a }}{{ caller() }}{% endmacro %}{% call m(v) %}{{ v }}{% endcall %}",
    "{{ v | pprint | length }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_odd_values(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(bounds, "MAX_SECONDS", 0.1)
    prompt, expression = Template(source, "stages.s.prompt"), None
    if source.count("{{") == 1 and "{%" not in source:
        expression = Template(source, "stages.s.messages", expression=True)
    for value in VALUES.values():
        row = {"v": value, "secret": "planted"}
        try:
            made = prompt.render(row)
        except InputError as error:
            made = str(error)
            assert made.startswith("stages.s.prompt: ")
            assert len(made) < 1_200
        assert isinstance(made, str)
        for sign in ("<class", "<built-in", "<bound method", "<function", "root:x:"):
            assert sign not in made
        if expression is not None:
            with suppress(InputError):
                expression.evaluate(row)
    assert VALUES["odd keys"]["items"] == 5  # nothing was changed
    assert len(VALUES["long list"]) == 50_000


def test_the_text_of_a_row_is_no_template() -> None:
    for name in ("template", "raw", "format", "python"):
        for source in ("{{ v }}", "{% if v %}{{ v }}{% endif %}", "{{ v | trim }}", "{{ v ~ '' }}", "{{ [v] | join }}"):
            assert Template(source, "p").render({"v": VALUES[name]}) == VALUES[name]


def odd_lines() -> Iterator[bytes]:
    """The values as lines of a file, as far as JSON has them; half a pair is written with an escape."""
    for value in VALUES.values():
        try:
            yield json.dumps({"v": value}, ensure_ascii="\\ud" not in ascii(value)).encode() + b"\n"
        except (TypeError, ValueError, RecursionError, UnicodeEncodeError):
            continue
    yield b'{"v": "\\ud800"}\n{"v": {"\\udfff": 1}}\n'


@pytest.mark.parametrize("prompt", ["{{ v }}", "{% for x in [v] %}{{ x | tojson }}{{ '\\ud800' }}{% endfor %}"])
def test_a_run_over_odd_rows_ends(lab: Lab, simulator: Simulator, prompt: str) -> None:
    (lab.root / "rows.jsonl").write_bytes(b"".join(odd_lines()))
    outcome = lab.run(experiment(simulator.url, {"g": generate(prompt)}))
    assert outcome.exit_code in (0, 3)
    assert lab.one("SELECT count(*) FROM progress WHERE status = 'pending'") == 0
    assert lab.one("SELECT count(*) FROM g") == lab.one("SELECT count(*) FROM source")
    assert lab.one("SELECT count(*) FROM g WHERE error_type NOT IN ('input', 'malformed_input')") == 0


def test_odd_names_of_files(lab: Lab, simulator: Simulator) -> None:
    names = ["a\0b", "x" * 5000, "/", "//", "..", "../..", "~", "~root", "\n", "{{ v }}", ".", "CON", "\u202e"]
    names += ["file:///etc/passwd", "http://169.254.169.254/latest/meta-data", "ftp://host/x", "a/" * 2000]
    names += ["/proc/self/mem", "/dev/stdin"]
    lab.rows([{"n": n, "audio": name, "path": name} for n, name in enumerate(names)])
    lab.run(experiment(simulator.url, {"t": transcribe(), "m": {"kind": "transcribe", "mapper": "row"}}))
    for stage in ("t", "m"):
        assert set(lab.sql(f"SELECT status, error_type FROM {stage}")) == {("error", "input")}


def test_odd_rows_are_json_again() -> None:
    """What tojson writes of them is JSON."""
    template = Template("{{ v | tojson }}", "p")
    for name, value in VALUES.items():
        try:
            made = template.render({"v": value})
        except InputError:
            assert name in (
                "too deep",
                "huge",
                "half a pair",
                "other half",
                "odd keys",
                "no text keys",
                "decimal nan",
            ), name
            continue
        if name not in ("negative", "decimal", "huge"):  # orjson has no such numbers
            orjson.loads(made)
