"""Jinja templates over a row: sandboxed, strict about undefined names. They tell which columns they name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from jinja2 import (
    Environment,
    StrictUndefined,
    TemplateSyntaxError,
    Undefined,
    UndefinedError,
    meta,
    nodes,
    pass_environment,
)
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import make_attrgetter
from jinja2.runtime import TemplateReference
from jinja2.sandbox import ImmutableSandboxedEnvironment

from infermesh.errors import ConfigError, InputError
from infermesh.exact_json import dumps, loads
from infermesh.inputs.formats import names_template
from infermesh.inputs.paths import find, similar_file

_ABSENT: Any = object()
ROW = "row"  # names the whole row in a template, for columns whose name is no identifier


class _Missing(StrictUndefined):
    """What is not there: an error of the row in every use, also within a list or a mapping that becomes text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)  # raises what it is


class _Method(_Missing):
    """A method of a value: it can be called, and is no value in any other way.

    ``{% for key, value in order.items() %}`` is what it says. ``{{ order.items }}``, of an order without that key, is
    an error of the row and not the text ``<built-in method items …>`` (pallets/jinja#1554).
    """

    __slots__ = ("_method",)

    def __init__(self, method: Any, hint: str, obj: Any, name: str) -> None:
        super().__init__(hint, obj, name)
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:  # what Jinja asks of what it calls is not there
        if name.startswith("jinja_") or name[:2] == "__" or name in ("unsafe_callable", "alters_data"):
            raise AttributeError(name)
        return super().__getattr__(name)


class _Code(CodeGenerator):
    """``{{ a ~ b }}`` has of each value what ``{{ a }}{{ b }}`` has of it: nothing of a null."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("str_join(map(environment.finalize, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class _Environment(ImmutableSandboxedEnvironment):
    """``row.items`` is the column ``items``, not the dict's method: data comes before attributes."""

    code_generator_class = _Code

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return self._data(super().getattr(obj, attribute), obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        try:
            return obj[argument]
        except (AttributeError, TypeError, LookupError):
            return self._data(super().getitem(obj, argument), obj, argument)

    def _data(self, found: Any, obj: Any, name: Any) -> Any:
        if not callable(found) or isinstance(found, Undefined) or not _is_data(obj) or not self.is_safe_callable(found):
            return found
        kind = "object" if isinstance(obj, Mapping) else type(obj).__name__
        return _Method(found, f"this {kind} has no key {str(name)!r}", obj, str(name))


def _is_data(value: Any) -> bool:
    """Whether a value is one of a row, and none of Jinja's own."""
    return not type(value).__module__.startswith("jinja2")


def _empty_for_null(value: Any) -> Any:
    """A value as text has it. Null becomes nothing: a model would read ``None`` as a word."""
    if value is None:
        return ""
    if (callable(value) and not isinstance(value, Undefined)) or isinstance(value, TemplateReference):
        raise UndefinedError(f"{getattr(value, '__name__', 'this')} is a function or a template, and no text")
    return value


@pass_environment
def _join(environment: Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """The filter ``join``, with nothing in the place of a null."""
    items = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return str(d).join(str(_empty_for_null(item)) for item in items)


def _to_json(value: Any, indent: int | None = None) -> str:
    """The filter ``tojson``: UTF-8, keys in their order, nothing escaped for HTML, NaN as ``null``."""
    try:
        text = dumps(value, _json_form).decode()
    except TypeError:
        _refuse_missing(value)  # says more than that it is no JSON
        raise
    return text if indent is None else json.dumps(loads(text), ensure_ascii=False, indent=indent)


def _refuse_missing(value: Any) -> None:
    """Raise what a value is that is not there, wherever it stands in the one given."""
    if isinstance(value, Undefined):
        str(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            _refuse_missing(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_missing(item)


def _json_form(value: Any) -> Any:
    """What JSON has of a value that it has not: exact numbers, dates and ids as text, bytes as hexadecimal digits."""
    if isinstance(value, Decimal):
        if value == value.to_integral_value():
            return int(value)
        return float(value) if Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return str(value)


_ENVIRONMENT = _Environment(
    undefined=_Missing, trim_blocks=True, lstrip_blocks=True, autoescape=False, finalize=_empty_for_null
)
_ENVIRONMENT.filters["tojson"] = _to_json
_ENVIRONMENT.filters["join"] = _join


class Template:
    """A compiled template.

    Parameters
    ----------
    source
        The template's text.
    path
        Where it stands in the config, for messages: ``stages.summaries.prompt``.
    expression
        Take the source for one expression and give its value instead of a text: ``{{ messages }}`` is the list itself.

    Attributes
    ----------
    names
        The names that it takes from outside: columns of the row, and stages.
    columns
        ``(stage, column)`` for each ``stage.column`` that it names.
    start, is_text
        The text before the first value or block, and whether that is all.

    Raises
    ------
    ConfigError
        The template does not parse.

    Examples
    --------
    >>> Template("Summarise: {{ text }}", "stages.s.prompt").render({"text": "It rained."})
    'Summarise: It rained.'
    """

    def __init__(self, source: str, path: str, *, expression: bool = False) -> None:
        self.source = source
        self.path = path
        try:
            if expression:
                inner = source.strip()
                if inner.startswith("{{") and inner.endswith("}}"):
                    inner = inner[2:-2].strip()
                tree = _ENVIRONMENT.parse(f"{{{{ {inner} }}}}")
                self._evaluate = _ENVIRONMENT.compile_expression(inner, undefined_to_none=False)
            else:
                tree = _ENVIRONMENT.parse(source)
                self._render = _renderer(source, meta.find_undeclared_variables(tree))
        except TemplateSyntaxError as error:
            raise ConfigError(f"{path}: line {error.lineno} of the template: {error.message}") from None
        self.names: set[str] = meta.find_undeclared_variables(tree)
        self.columns: set[tuple[str, str]] = set(self._attributes(tree))
        self.start, self.is_text = _leading_text(tree)

    def _attributes(self, tree: nodes.Template) -> list[tuple[str, str]]:
        """``(name, attribute)`` of each ``name.attribute`` and ``name["attribute"]`` with a name from outside."""
        found = []
        for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
            base = node.node  # type: ignore[attr-defined]
            if isinstance(base, nodes.Name) and base.name in self.names:
                if isinstance(node, nodes.Getattr):
                    found.append((base.name, node.attr))
                elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
                    found.append((base.name, str(node.arg.value)))
        return found

    def render(self, context: Mapping[str, Any]) -> str:
        """Render the text for one row. Raises ``InputError``."""
        try:
            return self._render(self._with_row(context))
        except Exception as error:  # a template may raise anything
            raise self._failed(error) from error

    def evaluate(self, context: Mapping[str, Any]) -> Any:
        """Give the value for one row, of a template made with ``expression``. Raises ``InputError``."""
        try:
            value = self._evaluate(self._with_row(context))  # not by keyword: a column may be called ``self``
            if not isinstance(value, Undefined):
                _refuse_missing(value)
        except Exception as error:
            raise self._failed(error) from error
        if isinstance(value, Undefined):
            raise InputError(f"{self.path}: '{self.source}' is undefined for this row.")
        return value

    def _with_row(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """The context, with the row itself as ``row`` where the template names it and no column is called so."""
        return {**context, ROW: context} if ROW in self.names and ROW not in context else context

    def _failed(self, error: Exception) -> InputError:
        return InputError(f"{self.path}: the template could not be rendered for this row: {error}")


def _renderer(source: str, names: set[str]) -> Callable[[Mapping[str, Any]], str]:
    """Compile a template to a function of a row's context.

    Most templates only put values into text: they become a format with ``%s`` and never reach Jinja, unless a value is
    missing. Others, if they use none of Jinja's global functions, share the row with Jinja instead of copying it twice.
    """
    template = _ENVIRONMENT.from_string(source)
    if names & _ENVIRONMENT.globals.keys():
        return template.render
    root, new_context, join = template.root_render_func, template.new_context, _ENVIRONMENT.concat

    def render(context: Mapping[str, Any]) -> str:
        return join(root(new_context(context, shared=True)))  # type: ignore[arg-type]

    substitution = _substitution(_ENVIRONMENT.parse(source))
    return render if substitution is None else _substitute(*substitution, render)


def _substitution(tree: nodes.Template) -> tuple[str, list[tuple[str, ...]]] | None:
    """A format with ``%s`` and the path to each value, for a template of text and ``{{ name.key }}`` alone."""
    form: list[str] = []
    paths: list[tuple[str, ...]] = []
    for output in tree.body:
        if not isinstance(output, nodes.Output):
            return None
        for node in output.nodes:
            if isinstance(node, nodes.TemplateData):
                form.append(node.data.replace("%", "%%"))
            elif path := _dotted(node):
                form.append("%s")
                paths.append(path)
            else:
                return None
    return "".join(form), paths


def _leading_text(tree: nodes.Template) -> tuple[str, bool]:
    """The text before the first expression or block, and whether it is all that there is."""
    first = tree.body[0] if tree.body else None
    text = first.nodes[0] if isinstance(first, nodes.Output) else None
    if not isinstance(first, nodes.Output) or not isinstance(text, nodes.TemplateData):
        return "", not tree.body
    return text.data, len(tree.body) == len(first.nodes) == 1


def _dotted(node: nodes.Node) -> tuple[str, ...]:
    """``("stage", "column")`` for ``stage.column``; empty for any other expression."""
    if isinstance(node, nodes.Name):
        return (node.name,)
    if isinstance(node, nodes.Getattr):
        return (*base, node.attr) if (base := _dotted(node.node)) else ()
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        return (*base, node.arg.value) if (base := _dotted(node.node)) else ()
    return ()


def _substitute(
    form: str, paths: Sequence[tuple[str, ...]], otherwise: Callable[[Mapping[str, Any]], str]
) -> Callable[[Mapping[str, Any]], str]:
    """A function that fills a format. A row that lacks a value is left to ``otherwise``: Jinja knows what to say."""
    steps = [(name, keys) for name, *keys in paths]

    def render(context: Mapping[str, Any]) -> str:
        values = []
        for name, keys in steps:
            value = context.get(name, _ABSENT)
            for key in keys:
                value = value.get(key, _ABSENT) if type(value) is dict else _ABSENT
            if value is _ABSENT:
                return otherwise(context)
            values.append("" if value is None else value)
        return form % tuple(values)

    return render


def load_template(value: str, path: str, roots: Sequence[Path]) -> Template:
    """Make a template from a config's value, which is the text itself or the name of a file.

    Parameters
    ----------
    value
        A one-line text that ends in ``.jinja``, ``.j2``, ``.jinja2``, ``.txt`` or ``.md`` and has no ``{`` is a file.
    path
        Where it stands in the config, for messages.
    roots
        The folders that the file is looked up in.

    Raises
    ------
    ConfigError
        There is no such file, or the template does not parse.
    """
    if not names_template(value):
        return Template(value, path)
    file = find(value, roots)
    if file is None:
        raise ConfigError(f"{path}: no file '{value}'.{similar_file(value, roots)}")
    try:
        return Template(file.read_text(encoding="utf-8-sig"), f"{path} ({value})")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {value} is not UTF-8 text: {error}") from None
