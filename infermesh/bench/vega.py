"""Draw a Vega-Lite specification as SVG or PNG, without a browser. Only this module imports vl-convert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from infermesh.errors import ConfigError

# Name → colour on white, colour on near-black. Texts have a contrast of 4.5 to 1, marks of 3 to 1, as WCAG 2.1 AA asks.
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
# For a separate file: its background is white, wherever it is shown.
LIGHT: Mapping[str, str] = {name: light for name, (light, _) in COLOURS.items()}
# For an SVG inside a page: the page's style sheet sets these variables, for the light and the dark theme.
VARIABLES: Mapping[str, str] = {name: f"var(--{name})" for name in COLOURS}


def require() -> None:
    """Raise ``ConfigError`` if the extra ``plot`` is not installed."""
    with _config_errors():
        import vl_convert  # noqa: F401


def svg(spec: dict[str, Any]) -> str:
    """Draw a specification as an ``<svg>`` element. Its texts are escaped, so it can be put into a page unchanged.

    Raises
    ------
    ConfigError
        The extra ``plot`` is not installed, or the specification cannot be drawn.
    """
    with _config_errors():
        import vl_convert

        drawn = vl_convert.vegalite_to_svg(spec)
    return drawn


def png(spec: dict[str, Any]) -> bytes:
    """Draw a specification as a PNG, at twice its size in pixels. Raises ``ConfigError`` as :func:`svg` does."""
    with _config_errors():
        import vl_convert

        drawn = vl_convert.vegalite_to_png(spec, scale=2)
    return drawn


@contextmanager
def _config_errors() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise ConfigError("curves are drawn by vl-convert-python: pip install 'infermesh[plot]'") from None
    except ValueError as error:
        raise ConfigError(f"the curves could not be drawn: {error}") from error
