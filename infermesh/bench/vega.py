"""Charts: a Vega-Lite specification in, SVG or PNG out, without a browser. Only this module knows the library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from infermesh.errors import ConfigError

# Each colour on white and on near-black: texts have a contrast of 4.5 to 1 there, marks of 3 to 1.
COLOURS: Mapping[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#57606a", "#9ea7b3"),
    "grid": ("#d8dee4", "#30363d"),
    "rate": ("#0969da", "#6cb6ff"),
    "p50": ("#57606a", "#b1bac4"),
    "p95": ("#b3500a", "#f0a35e"),
    "p99": ("#8a2b8f", "#d59bf0"),
    "chosen": ("#1a7f37", "#4cc777"),
    "failed": ("#c01f2e", "#ff7b72"),
}
# For a file of its own, which does not know where it will be shown.
LIGHT: Mapping[str, str] = {name: light for name, (light, _) in COLOURS.items()}
# For an SVG inside a page whose style sheet gives each name its colour, by day and by night.
VARIABLES: Mapping[str, str] = {name: f"var(--{name})" for name in COLOURS}


def require() -> None:
    """Raise ``ConfigError`` where the library is not there."""
    with _drawing():
        import vl_convert  # noqa: F401


def svg(spec: dict[str, Any]) -> str:
    """Draw a specification as an ``<svg>`` element. Texts in it are escaped: it may stand in a page as it is.

    Raises
    ------
    ConfigError
        The library is not there, or the specification cannot be drawn.
    """
    with _drawing():
        import vl_convert

        drawn = vl_convert.vegalite_to_svg(spec)
    return drawn


def png(spec: dict[str, Any]) -> bytes:
    """Draw a specification as a PNG, two pixels to one of the specification. Raises ``ConfigError`` as :func:`svg`."""
    with _drawing():
        import vl_convert

        drawn = vl_convert.vegalite_to_png(spec, scale=2)
    return drawn


@contextmanager
def _drawing() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise ConfigError("curves are drawn by vl-convert-python: pip install 'infermesh[plot]'") from None
    except ValueError as error:
        raise ConfigError(f"the curves could not be drawn: {error}") from error
