"""Jinja templates over a row: sandboxed, strict about undefined names, and honest about what they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from infermesh.errors import ConfigError, InputError
from infermesh.inputs.formats import names_template
from infermesh.inputs.paths import find, similar_file

_ABSENT: Any = object()


class _Environment(ImmutableSandboxedEnvironment):
    """``row.items`` means the column ``items``, not the dict's method: data comes before attributes."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _empty_for_null(value: Any) -> Any:
    """What stands for a value in a text: nothing for null, which a model would read as the word None."""
    return "" if value is None else value


_ENVIRONMENT = _Environment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False, finalize=_empty_for_null
)


class Template:
    """A compiled template.

    Parameters
    ----------
    source
        The template's text.
    path
        Where it stands in the config, for messages: ``stages.summaries.prompt``.
    expression
        Evaluate one expression to a value (``{{ messages }}`` gives the list itself) instead of rendering text.

    Raises
    ------
    ConfigError
        The template does not parse.
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

    def _attributes(self, tree: nodes.Template) -> list[tuple[str, str]]:
        """``(name, attribute)`` for each ``name.attribute`` and ``name["attribute"]`` of an outside name."""
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
        """The text for one row. Raises ``InputError``."""
        try:
            return self._render(context)
        except Exception as error:  # a template may raise anything
            raise self._failed(error) from error

    def evaluate(self, context: Mapping[str, Any]) -> Any:
        """The value for one row, of a template made with ``expression``. Raises ``InputError``."""
        try:
            value = self._evaluate(**context)
        except Exception as error:
            raise self._failed(error) from error
        if isinstance(value, StrictUndefined):
            raise InputError(f"{self.path}: '{self.source}' is undefined for this row.")
        return value

    def _failed(self, error: Exception) -> InputError:
        return InputError(f"{self.path}: the template could not be rendered for this row: {error}")


def _renderer(source: str, names: set[str]) -> Callable[[Mapping[str, Any]], str]:
    """Compile; a template that uses none of Jinja's global functions is spared two copies of every row.

    One that only puts values into text is spared Jinja altogether, for rows whose values are plain.
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
    """A format with ``%s``, and the path to each value, of a template with nothing but ``{{ name.key }}`` in text."""
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


def _dotted(node: nodes.Node) -> tuple[str, ...]:
    """``("stage", "column")`` of ``stage.column``; empty for any other expression."""
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
    """Fill a format; what is not there, or not in a dict, is left to Jinja, which also knows the message."""

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
    """A template from a config value: the text itself, or the file that it names.

    Raises
    ------
    ConfigError
        The value is a file's name and there is no such file, or the template does not parse.
    """
    if not names_template(value):
        return Template(value, path)
    file = find(value, roots)
    if file is None:
        raise ConfigError(f"{path}: no file '{value}'.{similar_file(value, roots)}")
    try:
        return Template(file.read_text(encoding="utf-8"), f"{path} ({value})")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {value} is not UTF-8 text: {error}") from None
