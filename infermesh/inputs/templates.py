"""Jinja templates over a row: sandboxed, strict about undefined names. They tell which columns they name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import DecimalException
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError, Undefined, meta, nodes

from infermesh.config.file_names import TEMPLATE_SUFFIXES, names_template
from infermesh.errors import ConfigError, InputError
from infermesh.inputs.bounds import BUDGET
from infermesh.inputs.paths import find, similar_file
from infermesh.inputs.sandbox import ENVIRONMENT, PLAIN, count_turns, is_plain, refuse_missing

_ABSENT: Any = object()
_PATH = re.compile(r"(?:~|\.{0,2})/?[\w.-]+(?:[/\\][\w.-]+)*\.[A-Za-z][A-Za-z0-9]{0,9}")
_WITHIN_TEXT = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
ROW = "row"  # names the whole row in a template, for columns whose name is no identifier


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
    functions
        Jinja's own functions that it names: ``range``, ``dict`` and the like. A column or a stage of that name wins.
    columns
        ``(stage, column)`` for each ``stage.column`` that it names.
    start, is_text
        The text before the first value or block, and whether that is all.

    Raises
    ------
    ConfigError
        The template does not parse, or a string within an expression holds a template of its own.

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
                tree = ENVIRONMENT.parse(f"{{{{ {inner} }}}}")
                self._evaluate = ENVIRONMENT.compile_expression(inner, undefined_to_none=False)
            else:
                tree = ENVIRONMENT.parse(source)
                self._render = _renderer(tree)
            self.names: set[str] = meta.find_undeclared_variables(tree)
        except TemplateSyntaxError as error:
            hint = _two_words(source)
            raise ConfigError(f"{path}: line {error.lineno} of the template: {error.message}{hint}") from None
        except (RecursionError, SyntaxError, MemoryError) as error:  # of Python's compiler
            raise ConfigError(f"{path}: the template is nested too deeply: {error}") from None
        except Exception as error:  # Jinja computes what is constant
            raise ConfigError(f"{path}: what is constant in the template fails: {error}") from None
        if expression:
            _refuse_templates_in_strings(tree, path)
        self.functions = _functions(tree)
        self.columns: set[tuple[str, str]] = set(self._attributes(tree))
        self.start, self.is_text = _leading_text(tree)

    def _attributes(self, tree: nodes.Template) -> list[tuple[str, str]]:
        """``(name, attribute)`` of each ``name.attribute`` and ``name["attribute"]`` with a name from outside."""
        found = []
        for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
            base = node.node  # type: ignore[attr-defined]
            if isinstance(base, nodes.Name) and base.name in self.names | self.functions:
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
        BUDGET.begin()
        try:
            value = self._evaluate(self._with_row(context))  # not by keyword: a column may be called ``self``
            if not isinstance(value, Undefined):
                refuse_missing(value)
        except Exception as error:
            raise self._failed(error) from error
        if isinstance(value, Undefined):
            raise InputError(f"{self.path}: '{self.source}' is undefined for this row.")
        return value

    def _with_row(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """The context, with the row itself as ``row`` where the template names it and no column is called so."""
        return {**context, ROW: context} if ROW in self.names and ROW not in context else context

    def _failed(self, error: Exception) -> InputError:
        words = "" if isinstance(error, DecimalException) else str(error)  # it has but a list of classes
        words = words or type(error).__name__
        return InputError(f"{self.path}: the template could not be rendered for this row: {words[:1000]}")


def _refuse_templates_in_strings(tree: nodes.Template, path: str) -> None:
    """Refuse ``{{ column }}`` in a string of an expression: it would be sent as it stands, to every row alike."""
    for node in tree.find_all(nodes.Const):
        if not isinstance(node.value, str) or not ("{{" in node.value or "{%" in node.value):
            continue
        pieces = _WITHIN_TEXT.split(node.value)
        texts = (json.dumps(text, ensure_ascii=False) if text else "" for text in pieces[::2])
        parts = [part for pair in zip(texts, [*pieces[1::2], ""], strict=True) for part in pair if part]
        instead = " ~ ".join(parts) if len(pieces) > 1 else '"{" ~ "{" for two braces that are to be sent'
        if "{%" in node.value:
            instead = 'an expression, such as "one" if column else "another"'
        raise ConfigError(
            f"{path}: {node.value!r:.200} is a string, and nothing within a string is filled in: it would be sent as "
            f"it stands. In its place, write {instead}; or messages as a YAML list, whose texts are templates"
        )


_WORDS = re.compile(r"\{\{-?\s*([A-Za-z_]\w*(?:[ .-]+\w+)*[ ]+\w+)\s*-?\}\}")


def _two_words(source: str) -> str:
    """The end of a message about a template that names a column of two words."""
    found = _WORDS.search(source)
    return f". A column whose name has blanks is written {{{{ row[{found[1]!r}] }}}}" if found else ""


def _functions(tree: nodes.Template) -> set[str]:
    """The names of Jinja's own functions in a template."""
    return {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"} & ENVIRONMENT.globals.keys()


def _renderer(tree: nodes.Template) -> Callable[[Mapping[str, Any]], str]:
    """Compile a template to a function of a row's context.

    Most templates only put values into text: they become a format with ``%s`` and never reach Jinja, unless a value is
    missing. The others share the row with Jinja instead of copying it twice.
    """
    substitution = _substitution(tree)
    plain = is_plain(tree)
    functions = {name: ENVIRONMENT.globals[name] for name in _functions(tree)}
    template = (PLAIN if plain else ENVIRONMENT).from_string(tree if plain else count_turns(tree))
    root, new_context = template.root_render_func, template.new_context
    begin, bounded_join = BUDGET.begin, ENVIRONMENT.concat

    def render_plain(context: Mapping[str, Any]) -> str:
        return "".join(root(new_context(context, shared=True)))  # type: ignore[arg-type]

    def render_bounded(context: Mapping[str, Any]) -> str:
        begin()
        shared = {**functions, **context} if functions else context
        return bounded_join(root(new_context(shared, shared=True)))  # type: ignore[arg-type]

    render = render_plain if plain and not functions else render_bounded
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


def load_template(value: str, path: str, roots: Sequence[Path], *, gives_path: bool = False) -> Template:
    """Make a template from a config's value, which is the text itself or the name of a file.

    Parameters
    ----------
    value
        A one-line text that ends in ``.jinja``, ``.j2``, ``.jinja2``, ``.txt`` or ``.md`` and has no ``{`` is a file.
    path
        Where it stands in the config, for messages.
    roots
        The folders that the file is looked up in.
    gives_path
        What the template gives is a path, so that one without a ``{{`` may well be the name of a file.

    Raises
    ------
    ConfigError
        There is no such file, or the template does not parse; or the value is a file's name, but not written as one.
    """
    if not names_template(value):
        if not gives_path:
            _refuse_file_as_text(value, path, roots)
        return Template(value, path)
    file = find(value, roots)
    if file is None:
        raise ConfigError(f"{path}: no file '{value}'.{similar_file(value, roots)}")
    try:
        return Template(file.read_text(encoding="utf-8-sig"), f"{path} ({value})")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {value} is not UTF-8 text: {error}") from None


def _refuse_file_as_text(value: str, path: str, roots: Sequence[Path]) -> None:
    """Refuse the name of a file that is there and would be sent itself, as a text."""
    name = value.strip()
    if looks_like_file(name) and (file := find(name, roots)) is not None and file.is_file():
        endings = ", ".join(TEMPLATE_SUFFIXES)
        cure = "leave out the space around it" if names_template(name) else f"let its name end in one of {endings}"
        raise ConfigError(f"{path}: {name} is a file, but would be sent as a text of that name: {cure}.")


def looks_like_file(text: str) -> bool:
    """Whether a text is what a path to a file looks like."""
    return _PATH.fullmatch(text.strip()) is not None
