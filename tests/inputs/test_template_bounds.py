"""What a template may make of a row, and how long it may compute: an accident costs its row, not the machine."""

from __future__ import annotations

import threading
import tracemalloc
from typing import Any

import pytest

from infermesh.errors import ConfigError, InputError
from infermesh.inputs import bounds
from infermesh.inputs.templates import Template
from infermesh.simulator import Simulator
from tests.support import Lab, experiment, generate

N = 10**9
ROW: dict[str, Any] = {
    "n": N,
    "text": "a" * 10_000,
    "lines": "a\n" * 10_000,
    "rows": list(range(1000)),
    "d": {str(n): n for n in range(1000)},
    "five": 5,
    "raw": b"a%1000000000d",
}
TWICE = "{{% set ns = namespace(s={0}) %}}{{% for i in range(64) %}}{1}{{% endfor %}}{{{{ ns.s }}}}"


def twice(start: str, step: str) -> str:
    return TWICE.format(start, f"{{% set ns.s = {step} %}}")


TOO_MUCH = [
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ text * n }}",
    "{{ n * text }}",
    "{{ [0] * n }}",
    "{{ (1, 2) * n }}",
    "{{ raw * n }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a' | center(width=n) }}",
    "{{ 'a'.center(n) }}",
    "{{ 'a'['center'](n) }}",
    "{{ ('a' | attr('center'))(n) }}",
    "{{ 'a'.ljust(n) }}",
    "{{ 'a'.rjust(n, 'x') }}",
    "{{ 'a'.zfill(n) }}",
    "{{ '\t'.expandtabs(n) }}",
    "{{ '\t'.expandtabs(tabsize=n) }}",
    "{{ five.to_bytes(n, 'big') }}",
    "{{ raw.center(n) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%*d' % (n, 1) }}",
    "{{ '%(a)1000000000d' % {'a': 1} }}",
    "{{ '%99999999999999999999d' % 1 }}",
    "{{ raw % 1 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '%(a)1000000000d' | format(a=1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, n) }}",
    "{{ '{:.1000000000f}'.format(1.0) }}",
    "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "{{ ('{:1000000000}' | safe).format(1) }}",
    "{{ [1] | slice(n) | list }}",
    "{{ [1] | batch(n, 'x') | list }}",
    "{{ [1] | batch(linecount=n, fill_with='x') | list }}",
    "{{ range(10**9) | list }}",
    "{% for i in range(n) %}x{% endfor %}",
    "{{ text | replace('', text * 1000) }}",
    "{{ text | replace('a', text) }}",
    "{{ text.replace('a', text) }}",
    "{{ text.translate({97: text}) }}",
    "{{ text.join(text) }}",
    "{{ text | join(text) }}",
    "{{ rows | map('center', 10**9) | list }}",
    "{{ 'a' | indent(10**9) }}",
    "{{ lines | indent(1000000, true) }}",
    "{{ lines | indent(text) }}",
    "{{ d | tojson(indent=10**9) }}",
    "{{ d | tojson(n) }}",
    "{{ text | wordwrap(1, wrapstring=text) }}",
    "{{ (text * 100) | wordwrap(1) }}",
    "{{ 1 | round(1000000000, 'floor') }}",
    "{{ 1.5 | round(n) }}",
    "{{ 2 ** n }}",
    "{{ (2 ** 100000) ** 100000 }}",
    "{{ 10 ** (10 ** 8) }}",
    "{{ [text] * 100000 }}",
    "{{ ([text] * 100000) | tojson }}",
    "{{ ([text] * 100000) | string }}",
    "{{ ([text] * 100000) | pprint }}",
    "{{ ([text] * 100000) | join }}",
    "{{ ([text] * 100000) ~ '' }}",
    "{{ '%s' % [[text] * 100000] }}",
    "{{ '{}'.format([text] * 100000) }}",
    "{{ dict.fromkeys(range(100000), text) }}",
    twice("'ab'", "ns.s + ns.s"),
    twice("'ab'", "ns.s ~ ns.s"),
    twice("[1]", "ns.s + ns.s"),
    twice("(1,)", "ns.s + ns.s"),
    twice("'ab'", "[ns.s, ns.s] | join"),
    twice("'ab'", "''.join([ns.s, ns.s])"),
    twice("'ab'", "ns.s | replace('ab', 'abab')"),
    twice("'ab'", "ns.s.replace('ab', 'abab')"),
    twice("'ab'", "'%s%s' % (ns.s, ns.s)"),
    twice("'ab'", "'{0}{0}'.format(ns.s)"),
    twice("3", "ns.s * ns.s"),
    twice("'ab'", "ns.s.join([ns.s, ns.s])"),
    twice("['ab']", "[ns.s, ns.s]"),
    TWICE.format("'ab'", "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}"),
    "{% for i in range(100000) %}{{ text }}{% endfor %}",
    "{% for i in range(100000) %}{{ text | upper }}{% endfor %}",
    "{% for i in range(100000) %}{{ d }}{% endfor %}",
    "{% set x %}{% for i in range(100000) %}{{ text }}{% endfor %}{% endset %}",
    "{% macro m() %}{% for i in range(100000) %}{{ text }}{% endfor %}{% endmacro %}{{ m() }}",
    "{% filter upper %}{% for i in range(100000) %}{{ text }}{% endfor %}{% endfilter %}",
    "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = ns.l + [text | list] %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
]
TOO_LONG = [
    "{% for a in rows %}{% for b in rows %}{% for c in rows %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in rows if a %}{% for b in rows if b %}{% for c in rows if c %}x{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) | map('string') %}{{ b }}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m(n) %}{{ caller() }}{% if n %}{% call m(n - 1) %}{{ caller() }}{{ caller() }}{% endcall %}{% endif %}"
    "{% endmacro %}{% call m(60) %}x{% endcall %}",
    "{% for x in rows recursive %}{% if loop.depth < 40 %}{{ loop(rows) }}{% endif %}{% endfor %}",
]


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that are reached in a moment."""
    monkeypatch.setattr(bounds, "MAX_TEXT", 1 << 20)
    monkeypatch.setattr(bounds, "MAX_MADE", 1 << 24)
    monkeypatch.setattr(bounds, "MAX_SECONDS", 0.05)


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("source", [*TOO_MUCH, *TOO_LONG])
def test_what_makes_too_much_is_an_error_of_the_row(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"stages\.s\.prompt: .* for this row: \S") as caught:
            Template(source, "stages.s.prompt").render(ROW)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()
    assert "MemoryError" not in str(caught.value)


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("source", ["[{'role': 'user', 'content': text * n}]", "[text * 1000] * 1000", "2 ** n"])
def test_an_expression_has_bounds(source: str) -> None:
    with pytest.raises(InputError, match=r"allowed|together"):
        Template(source, "stages.s.messages", expression=True).evaluate(ROW)


def test_what_it_says() -> None:
    with pytest.raises(InputError, match="makes a text or a list of 10,000,000,000,000 bytes, and 67,108,864 are"):
        Template("{{ text * n }}", "p").render(ROW)


def test_each_rendering_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of an earlier one counts, however many there are, and an error leaves nothing behind."""
    monkeypatch.setattr(bounds, "MAX_TEXT", 1 << 20)
    monkeypatch.setattr(bounds, "MAX_MADE", 1 << 22)
    template = Template("{% for i in range(900) %}{{ text | upper | lower }}{% endfor %}", "p")
    plain = Template("{{ text | trim }}{% if n %}{{ d | tojson }}{% endif %}", "p")
    for _ in range(10):
        assert len(template.render({"text": "x" * 1000})) == 900_000
        assert plain.render(ROW)
        with pytest.raises(InputError):
            template.render({"text": "x" * 10_000})


def test_what_people_write_is_far_from_the_bounds() -> None:
    source = (
        "{% macro line(x) %}- {{ x }}\n{% endmacro %}{% set ns = namespace(all='') %}"
        "{% for x in rows %}{% set ns.all = ns.all ~ line(x) %}{% endfor %}{{ ns.all }}"
        "{{ '%5.2f|%s|%%' % (1.5, 'x') }}{{ '{:>5}|{a}'.format(7, a='y') }}{{ '-' * 20 }}{{ [1] + [2] }}{{ 7 % 3 }}"
        "{{ 'a\nb' | indent(2) }}{{ 'ab' | center(6) }}{{ 2 ** 10 }}{{ 'x'.join(['a', 'b']) }}{{ 1.25 | round(1) }}"
        "{{ [1, 2, 3] | batch(2, 0) | list }}{{ [1, 2, 3] | slice(2) | list }}{{ 'a b' | wordwrap(1) }}"
        "{{ 'x' | replace('x', 'yy') }}{{ 'a\tb'.expandtabs(4) }}{{ 'abc'.translate({98: 'B'}) }}{{ 'ab'.zfill(4) }}"
    )
    made = Template(source, "p").render({"rows": range(1000)})
    assert made.startswith("- 0\n- 1\n")
    assert made.endswith(
        "- 999\n 1.50|x|%    7|y--------------------[1, 2]1a\n  b  ab  1024axb1.2[[1, 2], [3, 0]][[1, 2], [3]]a\nb"
        "yya   baBc00ab"
    )


def test_renderings_in_two_threads() -> None:
    template = Template("{% for a in range(300) %}{% for b in range(300) %}x{% endfor %}{% endfor %}", "p")
    made: list[int] = []

    def render() -> None:
        made.extend(len(template.render({})) for _ in range(5))

    threads = [threading.Thread(target=render) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [90_000] * 20


@pytest.mark.parametrize(
    "source", ["(" * 5000 + "1" + ")" * 5000, "{% for a in x %}" * 30 + "{% endfor %}" * 30, "{% if a %}" * 2000]
)
def test_a_template_that_is_nested_too_deeply_is_told_before_the_run(source: str) -> None:
    with pytest.raises(ConfigError, match=r"stages\.s\.prompt"):
        Template(source if source[0] == "{" else f"{{{{ {source} }}}}", "stages.s.prompt")


def test_a_row_that_makes_too_much_costs_itself(lab: Lab, simulator: Simulator) -> None:
    lab.rows([{"n": n} for n in (1, 2, 10**9, 3)])
    outcome = lab.run(experiment(simulator.url, {"g": generate("{{ 'a' * n }}")}))
    assert outcome.exit_code == 3
    assert lab.statuses("g") == {1: "done", 2: "done", 10**9: "error", 3: "done"}
    assert "1,000,000,000" in lab.one("SELECT error FROM g WHERE status = 'error'")
