"""One self-contained HTML file from a template: nothing is loaded, and nothing but our own two scripts can run.

Rows, answers and error messages are hostile. Three things keep them texts, each enough by itself: the templates escape
all they are given, the charts' data stands in a script element that no browser executes, and a content security policy
names the hashes of what may run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from infermesh.exact_json import dumps
from infermesh.hints import counted
from infermesh.pages.charts import COLOURS, Chart
from infermesh.pages.words import clean, duration, moment, money
from infermesh.runtime.whole_file import write_whole

__all__ = ["as_served", "asset", "fragment", "render", "served_style", "write"]


def render(template: str, charts: Sequence[Chart], **values: Any) -> str:
    """A page.

    Parameters
    ----------
    template
        A file of ``templates/``, which extends ``page.html.jinja``.
    charts
        In the order of the page; the template places each by its name.
    values
        What the template names. Texts in them may hold anything.
    """
    scripts, style = _scripts(), _style()
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _templates()
        .get_template(template)
        .render(
            policy=policy,
            style=Markup(style),
            licence=asset("uPlot.LICENSE"),
            scripts=[Markup(script) for script in scripts],
            data=Markup(chart_data(charts)),
            charts={chart.name: chart for chart in charts},
            **values,
        )
    )


def as_served(template: str, charts: Sequence[Chart], **values: Any) -> str:
    """A page of the local app: its scripts and its style are files of the server. Parameters as of :func:`render`."""
    return (
        _templates()
        .get_template(template)
        .render(data=Markup(chart_data(charts)), charts={chart.name: chart for chart in charts}, **values)
    )


def fragment(template: str, macro: str, *values: Any) -> str:
    """A part of a page: what a macro of a template makes of these values."""
    return str(getattr(_templates().get_template(template).module, macro)(*values)).strip()


def chart_data(charts: Sequence[Chart]) -> str:
    """The charts as JSON for a script element: no text in it ends the element."""
    return dumps([chart.as_json() for chart in charts]).decode().replace("<", "\\u003c")


def write(path: Path, page: str) -> None:
    """Write a page; one that is there stays whole until the new one is. Raises ``OSError``."""
    write_whole(path, page.encode("utf-8", "replace"))


@functools.cache
def _templates() -> Environment:
    pages = Environment(
        loader=PackageLoader("infermesh.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,  # no Markup: that is ours
    )
    pages.filters |= {
        "breakable": lambda name: Markup("<wbr>").join(re.split(r"(?<=[._])", clean(name))),
        "number": lambda value: "–" if value is None else f"{value:,}",
        "duration": duration,
        "money": money,
        "moment": moment,
        "counted": counted,
    }
    return pages


@functools.cache
def _scripts() -> tuple[str, ...]:
    return asset("uPlot.iife.min.js"), asset("page.js")


@functools.cache
def _style() -> str:
    colours = [
        f"{select} {{ {' '.join(f'--{name}: {pair[shade]};' for name, pair in COLOURS.items())} }}"
        for select, shade in ((":root", 0), ("@media (prefers-color-scheme: dark) { :root:not(.printed)", 1))
    ]
    return f"{asset('uPlot.min.css')}\n{colours[0]}\n{colours[1]} }}\n{asset('page.css')}"


def served_style() -> str:
    """The app's style: that of every page, and its own."""
    return f"{_style()}\n{asset('view.css')}"


def asset(name: str) -> str:
    """A file of ``assets/``."""
    return files("infermesh.pages").joinpath("assets", name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    """The source expression of a content security policy that lets exactly this text run or apply.

    Source: Content Security Policy Level 3, section 2.3.1, ``hash-source``.
    """
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
