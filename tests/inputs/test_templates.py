"""Templates over a row."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from infermesh.errors import ConfigError, InputError
from infermesh.inputs.templates import Template, load_template


def render(source: str, **context: Any) -> str:
    return Template(source, "stages.s.prompt").render(context)


def evaluate(source: str, **context: Any) -> Any:
    return Template(source, "stages.s.messages", expression=True).evaluate(context)


class TestRendering:
    def test_columns_and_upstream_columns(self) -> None:
        assert render("{{ a }} {{ s.text }}", a=1, s={"text": "x"}) == "1 x"

    def test_nothing_is_escaped(self) -> None:
        assert render("{{ a }}", a="<b> & \"q\" 'q'") == "<b> & \"q\" 'q'"

    @pytest.mark.parametrize(
        "source", ["<{{ a }}{{ s.text }}>", "<{{ a }}{{ s['text'] }}{# not plain #}{% if 1 %}>{% endif %}"]
    )
    def test_null_is_nothing(self, source: str) -> None:
        assert render(source, a=None, s={"text": None}) == "<>"

    def test_a_value_is_never_taken_for_a_template(self) -> None:
        assert render("{{ a }}", a="{{ 7 * 7 }}{% if x %}") == "{{ 7 * 7 }}{% if x %}"

    def test_block_tags_leave_no_blank_lines(self) -> None:
        assert render("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"

    @pytest.mark.parametrize(
        ("source", "name"),
        [("{{ absent }}", "absent"), ("{{ row.absent }}", "absent"), ("{% if absent %}x{% endif %}", "absent")],
    )
    def test_an_undefined_name_is_an_error_of_the_row(self, source: str, name: str) -> None:
        with pytest.raises(InputError, match=rf"stages\.s\.prompt: .*{name}"):
            render(source, row={})

    def test_a_name_that_may_be_missing_can_have_a_default(self) -> None:
        assert render("{{ absent | default('none') }}{% if absent is defined %}x{% endif %}") == "none"

    @pytest.mark.parametrize(
        "source", ["{{ 1 / a }}", "{{ a.b.c }}", "{{ a() }}", "{{ 'x' + a }}", "{{ a | fromjson }}"]
    )
    def test_whatever_fails_is_an_input_or_config_error(self, source: str) -> None:
        with pytest.raises((InputError, ConfigError), match=r"stages\.s\.prompt"):
            render(source, a=0)

    @pytest.mark.parametrize("name", ["items", "keys", "values", "get", "pop", "update", "copy"])
    def test_data_comes_before_methods(self, name: str) -> None:
        assert render(f"{{{{ row.{name} }}}} {{{{ row['{name}'] }}}}", row={name: "mine"}) == "mine mine"

    def test_methods_are_there_where_no_data_is(self) -> None:
        assert render("{% for k, v in row.items() %}{{ k }}={{ v }};{% endfor %}", row={"a": 1, "b": 2}) == "a=1;b=2;"


class TestSandbox:
    @pytest.mark.parametrize(
        "source",
        [
            "{{ ''.__class__.__mro__ }}",
            "{{ a.__init__.__globals__ }}",
            "{{ a.append(1) }}",
            "{{ d.update({'x': 1}) }}",
            "{{ cycler.__init__.__globals__.os }}",
            "{{ '{0.__class__}'.format(a) }}",
        ],
    )
    def test_nothing_outside_the_row_is_reached_or_changed(self, source: str) -> None:
        row: dict[str, Any] = {"a": [], "d": {}}
        with pytest.raises(InputError):
            render(source, **row)
        assert row == {"a": [], "d": {}}

    def test_no_files_are_included(self) -> None:
        with pytest.raises((InputError, ConfigError)):
            render("{% include '/etc/hostname' %}")


class TestExpressions:
    @pytest.mark.parametrize("source", ["{{ messages }}", "messages", "  {{messages}}\n"])
    def test_a_list_stays_a_list(self, source: str) -> None:
        messages = [{"role": "user", "content": "Hello"}]
        assert evaluate(source, messages=messages) is messages

    def test_an_expression_may_build_its_value(self) -> None:
        found = evaluate("{{ [{'role': 'system', 'content': s}] + history }}", s="be brief", history=[{"role": "user"}])
        assert found == [{"role": "system", "content": "be brief"}, {"role": "user"}]

    def test_a_value_of_any_type(self) -> None:
        when = datetime(2025, 1, 1)
        assert evaluate("{{ when }}", when=when) == when

    def test_undefined_is_an_error_of_the_row(self) -> None:
        with pytest.raises(InputError, match=r"stages\.s\.messages.*absent"):
            evaluate("{{ absent }}")

    def test_null_is_a_value(self) -> None:
        assert evaluate("{{ a }}", a=None) is None

    @pytest.mark.parametrize(
        "source", ["{{ a", "{{ a b }}", "{{ }}", "{% if a %}{{ a }}{% endif %}", "{{ a }} {{ b }}"]
    )
    def test_what_is_no_expression_is_refused_before_the_run(self, source: str) -> None:
        with pytest.raises(ConfigError, match=r"stages\.s\.messages"):
            Template(source, "stages.s.messages", expression=True)


class TestDependencies:
    @pytest.mark.parametrize(
        ("source", "names", "columns"),
        [
            ("plain", set(), set()),
            ("{{ a }}{{ s.text }}", {"a", "s"}, {("s", "text")}),
            ("{{ s['text'] }}", {"s"}, {("s", "text")}),
            ("{{ s.parsed.summary.x }}", {"s"}, {("s", "parsed")}),
            ("{% for x in s.parsed %}{{ x.y }}{% endfor %}", {"s"}, {("s", "parsed")}),
            ("{% set t = s.text %}{{ t.upper() }}", {"s"}, {("s", "text")}),
            ("{% if s.text %}{{ a | default(b) }}{% endif %}", {"s", "a", "b"}, {("s", "text")}),
            ("{{ range(3) | list }}{{ dict(a=1) }}", {"range", "dict"} - {"range", "dict"}, set()),
        ],
    )
    def test_outside_names_and_their_attributes(
        self, source: str, names: set[str], columns: set[tuple[str, str]]
    ) -> None:
        template = Template(source, "p")
        assert template.names == names
        assert template.columns == columns

    def test_of_an_expression(self) -> None:
        template = Template("{{ first.messages + extra }}", "p", expression=True)
        assert template.names == {"first", "extra"}
        assert template.columns == {("first", "messages")}

    def test_of_an_expression_without_braces(self) -> None:
        template = Template("first.messages + extra", "p", expression=True)
        assert template.names == {"first", "extra"}
        assert template.columns == {("first", "messages")}


class TestLoading:
    def test_a_syntax_error_names_path_and_line(self) -> None:
        with pytest.raises(ConfigError, match=r"stages\.s\.prompt: line 2"):
            load_template("fine\n{% if %}", "stages.s.prompt", [])

    @pytest.mark.parametrize("name", ["p.jinja", "p.j2", "p.jinja2", "p.txt", "p.md"])
    def test_a_file(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("Übersetze {{ a }}", encoding="utf-8")
        assert load_template(name, "p", [tmp_path]).render({"a": 1}) == "Übersetze 1"

    def test_the_first_folder_that_has_it_wins(self, tmp_path: Path) -> None:
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "p.txt").write_text(folder)
        (tmp_path / "two" / "only.txt").write_text("only two")
        roots = [tmp_path / "one", tmp_path / "two"]
        assert load_template("p.txt", "p", roots).render({}) == "one"
        assert load_template("only.txt", "p", roots).render({}) == "only two"

    def test_text_stands_for_itself(self, tmp_path: Path) -> None:
        assert load_template("Say hello.", "p", [tmp_path]).render({}) == "Say hello."
        assert load_template("Read {{ a }}.txt", "p", [tmp_path]).render({"a": "x"}) == "Read x.txt"

    def test_a_missing_file_names_the_nearest(self, tmp_path: Path) -> None:
        (tmp_path / "summary.jinja").write_text("x")
        with pytest.raises(
            ConfigError, match=r"stages\.s\.prompt: no file 'sumary\.jinja'.*Did you mean 'summary\.jinja'"
        ):
            load_template("sumary.jinja", "stages.s.prompt", [tmp_path])

    def test_a_file_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="not UTF-8"):
            load_template("p.txt", "p", [tmp_path])

    def test_a_broken_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "p.jinja").write_text("{% if %}")
        with pytest.raises(ConfigError, match=r"stages\.s\.prompt.*p\.jinja"):
            load_template("p.jinja", "stages.s.prompt", [tmp_path])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ tags | map('upper') }}", "['B', 'A']"),
        ("{{ tags | select('eq', 'a') ~ '!' }}", "['a']!"),
        ("{{ [tags | unique] }}", "[['b', 'a']]"),
        ("{{ tags | reverse | string }}", "['a', 'b']"),
        ("{{ tags | batch(1) }}{{ tags | slice(1) }}", "[['b'], ['a']][['b', 'a']]"),
        ("{{ {'a': 1} | items }}{{ 'ab' | reverse }}", "[('a', 1)]ba"),
        ("{{ tags | reject('eq', 'a') | join }}{% for tag in tags | reverse %}{{ tag }}{% endfor %}", "bab"),
    ],
)
def test_a_filter_that_gives_many_gives_a_list(source: str, text: str) -> None:
    assert Template(source, "p").render({"tags": ["b", "a"]}) == text


@pytest.mark.parametrize("constant", ["1.a", "1.__class__", "(1 if 'x'.y else 2)", "(0.a ~ 0)"])
def test_a_constant_that_fails_is_an_error_of_the_config(constant: str) -> None:
    source = f"{{% macro m(x) %}}{{% endmacro %}}{{{{ m(text if {constant} else text) }}}}"
    with pytest.raises(ConfigError, match=r"^stages\.s\.prompt: what is constant in the template fails: "):
        Template(source, "stages.s.prompt")


@pytest.mark.parametrize("source", ["{{ range | tojson }}", "{{ [dict] | tojson }}", "{{ {'f': range} | tojson(2) }}"])
def test_a_function_has_no_json(source: str) -> None:
    with pytest.raises(InputError, match="could not be rendered"):
        Template(source, "p").render({})


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("{{ review }}", "review"),
        ("Rate 'this': {{ a.b }} and {{x}}!", '"Rate \'this\': " ~ a.b ~ " and " ~ x ~ "!"'),
        ("{% if x %}y{% endif %}", 'an expression, such as "one" if column else "another"'),
        ("{{ unclosed", '"{" ~ "{" for two braces that are to be sent'),
    ],
)
def test_a_template_within_a_string_of_an_expression_is_refused(text: str, instead: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Template(f'[{{"role": "user", "content": "{text}"}}]', "stages.a.messages", expression=True)
    assert str(caught.value).startswith("stages.a.messages: ")
    assert str(caught.value).endswith(
        f"In its place, write {instead}; or messages as a YAML list, whose texts are templates"
    )


def test_braces_that_are_to_be_sent() -> None:
    made = Template('["{" ~ "{ x }}"]', "stages.a.messages", expression=True)
    assert made.evaluate({}) == ["{{ x }}"]
