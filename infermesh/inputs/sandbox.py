"""The environment that prompts run in: Jinja's sandbox, strict about undefined names, bounded in time and size.

Data comes before attributes, null is no text, and a name that is missing is an error wherever it stands.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from jinja2 import Environment, StrictUndefined, Undefined, UndefinedError, nodes, pass_environment, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS, do_replace, make_attrgetter
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, LoopContext, TemplateReference
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from markupsafe import Markup

from infermesh.exact_json import dumps, loads
from infermesh.inputs import bounds
from infermesh.inputs.bounds import BUDGET


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
        self.write("environment.concat(map(str, map(environment.finalize, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))))")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._operation("add", node, frame)

    def visit_Mul(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._operation("multiply", node, frame)

    def visit_Pow(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._operation("power", node, frame)

    def visit_Mod(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._operation("modulo", node, frame)

    def _operation(self, name: str, node: nodes.BinExpr, frame: Frame) -> None:
        self.write(f"environment.{name}(")
        self.visit(node.left, frame)
        self.write(", ")
        self.visit(node.right, frame)
        self.write(")")


class _Fields:
    """A formatter that measures each field before it is made."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        bounds.check_spec(format_spec)
        _weigh(value)
        text = super().format_field(value, format_spec)  # type: ignore[misc]
        BUDGET.take(len(text))
        return text


class _Formatter(_Fields, SandboxedFormatter):
    pass


class _EscapeFormatter(_Fields, SandboxedEscapeFormatter):
    pass


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
        return _Method(bounds.measured(found, obj, name), f"this {kind} has no key {str(name)!r}", obj, str(name))


class _BoundedEnvironment(_Environment):
    """What may make much out of little asks :data:`~infermesh.inputs.bounds.BUDGET` first."""

    concat = staticmethod(bounds.joined)
    intercepted_binops = frozenset({"+", "*", "**", "%"})  # never done when the template is compiled
    add = staticmethod(bounds.add)
    multiply = staticmethod(bounds.multiply)
    power = staticmethod(bounds.power)
    modulo = staticmethod(bounds.modulo)

    def getitem(self, obj: Any, argument: Any) -> Any:
        BUDGET.count(1)  # filters look up an attribute of each item
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        BUDGET.count(1)
        if not __self.is_safe_callable(__obj):
            raise SecurityError(f"{__obj!r} is not safely callable")
        if isinstance(__obj, LoopContext):  # a recursive loop goes over what it is called with
            args = tuple(map(bounds.turns, args))
        return __context.call(__obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        sandboxed = super().wrap_str_format(value)
        if sandboxed is None:
            return None
        form, by_name = value.__self__, value.__name__ == "format_map"
        made = _EscapeFormatter(self, escape=form.escape) if isinstance(form, Markup) else _Formatter(self)

        def formatted(*values: Any, **named: Any) -> str:
            if by_name:
                (named,), values = values, ()
            made_text: str = type(form)(made.vformat(form, values, named))
            return made_text

        return functools.update_wrapper(formatted, value)


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
    return bounds.joined((str(_counted(item)) for item in items), str(d))


def _to_json(value: Any, indent: int | None = None) -> str:
    """The filter ``tojson``: UTF-8, keys in their order, nothing escaped for HTML, NaN as ``null``."""
    try:
        text = dumps(value, _json_form).decode()
    except TypeError:
        refuse_missing(value)  # says more than that it is no JSON
        raise
    if indent is None:
        return text
    BUDGET.take(len(text) + bounds.indented("\n" * sum(map(text.count, ",[{]}")), indent))
    return json.dumps(loads(text), ensure_ascii=False, indent=indent)


def refuse_missing(value: Any) -> None:
    """Raise what a value is that is not there, wherever it stands in the one given."""
    if isinstance(value, Undefined):
        str(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            refuse_missing(item)
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_missing(item)


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
    if callable(value):
        raise TypeError(f"{type(value).__name__} is no value of JSON")
    return str(value)


def _weigh(value: Any) -> None:
    """Refuse a list or a mapping whose text would be too long."""
    if isinstance(value, list | dict | tuple):
        BUDGET.take(bounds.weight(value))


def _counted(value: Any) -> Any:
    """A value as text has it, taken from what the rendering may make."""
    if type(value) is not str:
        _weigh(value)
        value = str(_empty_for_null(value))
    if len(value) > bounds.SMALL:
        BUDGET.take(len(value))
    return value


@pass_eval_context
def _replace(context: EvalContext, text: Any, old: Any, new: Any, count: int | None = None) -> str:
    """The filter ``replace``."""
    old, new = str(old), str(new)
    if len(new) > len(old):
        BUDGET.take(bounds.replaced(str(text), old, new, -1 if count is None else count))
    return do_replace(context, text, old, new, count)


def _bounded_json(value: Any, indent: int | None = None) -> str:
    """The filter ``tojson`` where a template may have made the value."""
    _weigh(value)
    return _to_json(value, indent)


def _asking(name: str, size: Callable[..., int]) -> Callable[..., Any]:
    """Jinja's own filter, which asks for the size that ``size`` makes of the same arguments first."""
    original = FILTERS[name]
    passed = getattr(original, "jinja_pass_arg", None) is not None  # it gets the environment, say, before the value

    @functools.wraps(original)
    def asking(*arguments: Any, **named: Any) -> Any:
        BUDGET.take(bounds.size_of(size, *arguments[passed:], **named))
        return original(*arguments, **named)

    return asking


def _at_once(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that gives a list, where Jinja's own gives a generator.

    As text, that would be ``<generator object … at 0x7f…>``, another one at each rendering.
    """

    @functools.wraps(filter_)
    def at_once(*arguments: Any, **named: Any) -> Any:
        made = filter_(*arguments, **named)
        return made if isinstance(made, str) else bounds.listed(made)

    return at_once


_LAZY = ("map", "select", "reject", "selectattr", "rejectattr", "unique", "batch", "slice", "items", "reverse")
_TURNS = "turns of a loop"  # a filter of this name cannot be written


def _bounded_filters() -> dict[str, Callable[..., Any]]:
    filters: dict[str, Callable[..., Any]] = {
        "tojson": _bounded_json,
        "list": bounds.listed,
        "string": _asking("string", bounds.weight),
        "join": _join,
        "center": _asking("center", lambda text, width=80: width),
        "indent": _asking("indent", lambda text, width=4, *_, **__: bounds.indented(str(text), width)),
        "replace": _replace,
        "format": _asking("format", lambda text, *values, **named: bounds.percent(str(text), named or values)),
        "batch": _asking("batch", lambda rows, linecount, *_, **__: linecount * 8),
        "pprint": _asking("pprint", lambda value, *_, **__: bounds.weight(value)),
        "slice": _asking("slice", lambda rows, slices, *_, **__: slices * 64),
        "round": _asking("round", lambda number, precision=0, *_, **__: bounds.digits(precision)),
        "wordwrap": _asking("wordwrap", _wrapped),
        _TURNS: bounds.turns,
    }
    return filters | {name: _at_once(filters.get(name, FILTERS[name])) for name in _LAZY}


def _wrapped(
    text: Any, width: int = 79, break_long_words: bool = True, wrapstring: str | None = None, *_: Any, **__: Any
) -> int:
    return bounds.wrapped(str(text), width, "\n" if wrapstring is None else wrapstring)


def _made(kind: type[_Environment], finalize: Callable[[Any], Any], **filters: Callable[..., Any]) -> _Environment:
    made = kind(undefined=_Missing, trim_blocks=True, lstrip_blocks=True, autoescape=False, finalize=finalize)
    made.filters |= filters
    del made.globals["lipsum"]  # words by chance
    return made


ENVIRONMENT = _made(_BoundedEnvironment, _counted, **_bounded_filters())
# For templates that can make no more than a few times what their row has: without loops, calls and arithmetic.
PLAIN = _made(_Environment, _empty_for_null, tojson=_to_json)
_PLAIN_NODES = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.If,
    nodes.CondExpr,
    nodes.Test,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Filter,
    nodes.Keyword,
)
_PLAIN_FILTERS = frozenset(
    {"d", "default", "trim", "upper", "lower", "capitalize", "title", "length", "count", "int", "float"}
    | {"tojson", "first", "last", "escape", "e", "safe", "abs", "truncate"}
)


def is_plain(tree: nodes.Template) -> bool:
    """Whether a template needs no bounds."""
    return all(
        isinstance(node, _PLAIN_NODES)
        and (not isinstance(node, nodes.Filter) or (node.name in _PLAIN_FILTERS and not _indents(node)))
        for node in tree.find_all(nodes.Node)
    )


def _indents(node: nodes.Filter) -> bool:
    return node.name == "tojson" and bool(node.args or node.kwargs or node.dyn_args or node.dyn_kwargs)


def count_turns(tree: nodes.Template) -> nodes.Template:
    """Count the turns of every loop."""
    for node in tree.find_all(nodes.For):
        counted = nodes.Filter(node.iter, _TURNS, [], [], None, None, lineno=node.lineno)
        node.iter = counted.set_environment(ENVIRONMENT)
    return tree
