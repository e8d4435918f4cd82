"""Composing a declaration with Hydra: where configs are found, what overrides mean, errors that help.

Outside the command line, this is the only module that knows Hydra and OmegaConf; they are imported by the first call.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infermesh.config.schema import Experiment
from infermesh.config.secrets import refuse_inline_keys
from infermesh.errors import ConfigError
from infermesh.hints import nearest
from infermesh.redaction import redact

_SECTIONS = "source|limits|deployments|models|stages|store|simulator|guards|sinks"
_SWEEPABLE = re.compile(rf"(?:{_SECTIONS})\.[^=@/~+]+=")
_LOCK = threading.Lock()  # Hydra keeps its state in singletons


@dataclass(frozen=True, slots=True)
class Composed:
    """A declaration as Hydra composed it.

    Attributes
    ----------
    mapping
        Plain dicts, lists and scalars, interpolations resolved; not validated yet. Keys without a value are left out.
    roots
        What relative paths in it are relative to, first match wins.
    folder
        ``hydra.run.dir``: the one that was asked for, else ``outputs/<name>/<time>``. ``None`` where the declaration
        has no name.
    overrides
        What was changed of the declaration, as Hydra writes it, without Hydra's own keys; ``None`` where it was not
        composed by Hydra.
    """

    mapping: dict[str, Any]
    roots: list[Path]
    folder: Path | None
    overrides: list[str] | None


def compose(overrides: Sequence[str], *, config_dir: Path | None = None, cwd: Path | None = None) -> Composed:
    """Compose a declaration from overrides such as ``+experiment=NAME`` and ``stages.x.y=value``.

    Works any number of times, in any thread, and leaves Hydra as it was.

    Parameters
    ----------
    overrides
        As ``infermesh run`` takes them.
    config_dir
        A folder of configs that goes before the project's own ``conf/``.
    cwd
        The project: its ``conf/`` goes before the shipped one. The working directory where it is not given; else the
        result's folder is below it.

    Raises
    ------
    ConfigError
        An override is wrong, a config is missing or does not parse, or a key stands inline.
    """
    refuse_inline(overrides)
    arguments = [addable(override) for override in overrides]
    home = Path.cwd() if cwd is None else cwd.absolute()
    config_dir = None if config_dir is None else config_dir.absolute()
    with _LOCK:
        try:
            mapping, folder, task = _compose(arguments, home, config_dir)
        except Exception as error:
            raise ConfigError(composition_error(error, home, config_dir)) from None
    if folder is not None and cwd is not None:
        folder = home / folder
    return Composed(mapping, roots(home, config_dir), folder, task)


def _compose(
    arguments: list[str], home: Path, config_dir: Path | None
) -> tuple[dict[str, Any], Path | None, list[str]]:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    hydra_before, config_before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        with (
            search_path(config_dir),
            hydra.initialize_config_dir(str(primary_folder(home)), "infermesh", version_base="1.3"),
        ):
            config = hydra.compose("config", arguments, return_hydra_config=True)
            HydraConfig.instance().set_config(config)  # for what a config says of ${hydra:…}
            try:
                folder = Path(config.hydra.run.dir)
            except OmegaConfBaseException:  # it names the experiment, which may have no name
                folder = None
            task = list(config.hydra.overrides.task)
            with open_dict(config):
                del config["hydra"]
            return plain(config), folder, task
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra_before, config_before


def plain(config: Any) -> dict[str, Any]:
    """An OmegaConf config as plain values, resolved; keys that are still ``???`` are left out, for validation to miss.

    Raises omegaconf's errors.
    """
    from omegaconf import OmegaConf

    found: dict[str, Any] = _without_missing(OmegaConf.to_container(config, resolve=True))
    return found


def _without_missing(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_missing(value) for key, value in node.items() if value != "???"}
    return [_without_missing(value) for value in node] if isinstance(node, list) else node


def shipped_project() -> Path:
    """The folder that holds the shipped conf/ and pipelines/: inside an installed wheel, or the clone."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_project"
    return inside if inside.is_dir() else package.parent


def roots(home: Path, config_dir: Path | None) -> list[Path]:
    """What a declaration's relative paths are relative to."""
    return [home, *([config_dir.parent] if config_dir else []), shipped_project()]


def primary_folder(home: Path) -> Path:
    """Hydra's primary config folder: the project's own, else the shipped one."""
    own = home / "conf"
    return own if own.is_dir() else shipped_project() / "conf"


@contextlib.contextmanager
def search_path(config_dir: Path | None) -> Iterator[None]:
    """Let Hydra look in ``config_dir`` first and in the shipped configs last."""
    plugin = _search_plugin()
    before, plugin.config_dir = plugin.config_dir, None if config_dir is None else config_dir.as_uri()
    try:
        yield
    finally:
        plugin.config_dir = before


@functools.cache
def _search_plugin() -> Any:
    """The plugin, registered: once, because Hydra keeps every one that it is given."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class ShippedConfigs(SearchPathPlugin):
        """A launcher may pickle it: it holds strings only."""

        shipped = (shipped_project() / "conf").as_uri()
        config_dir: str | None = None

        def manipulate_search_path(self, search_path: Any) -> None:
            if self.config_dir is not None:  # Hydra itself would put it last, behind what it is meant to change
                search_path.prepend("config-dir", self.config_dir)
            search_path.append("infermesh", self.shipped)

    Plugins.instance().register(ShippedConfigs)
    return ShippedConfigs


def experiments(home: Path, config_dir: Path | None = None) -> list[str]:
    """The names of the experiments that can be chosen."""
    folders = [home / "conf", shipped_project() / "conf", *([config_dir] if config_dir else [])]
    return sorted({file.stem for folder in folders for file in (folder / "experiment").glob("*.yaml")})


def check_chosen(mapping: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` where no experiment was chosen, or its file lacks its first line."""
    if not mapping.get("stages") and not mapping.get("models"):
        if isinstance(mapping.get("experiment"), Mapping):
            raise ConfigError(
                "the experiment's keys have come below 'experiment'. Its file must begin with the line: "
                "# @package _global_"
            )
        names = ", ".join(experiments(Path.cwd()))
        raise ConfigError(f"no experiment was chosen: infermesh run +experiment=NAME. There is: {names}.")


def addable(argument: str) -> str:
    """``stages.x.y=…`` sets a key whether or not the YAML spells it out; a misspelt one is caught by validation."""
    return f"++{argument}" if _SWEEPABLE.match(argument) else argument


def refuse_inline(overrides: Sequence[str]) -> None:
    """Raise ``ConfigError`` where an override, or one value of a sweep, holds a key; the message does not repeat it."""
    for override in overrides:
        for mapping in _as_mappings(override):
            refuse_inline_keys(mapping)


def _as_mappings(argument: str) -> Iterator[dict[str, Any]]:
    """``a.b=c`` as nested dicts, one for each value that it sweeps over; nothing for what is no override."""
    name, equals, text = argument.lstrip("+~").partition("=")
    if not equals:
        return
    for value in _values(argument, text):
        node: Any = value
        for part in reversed(name.split(".")):
            node = {part: node}
        yield node


def _values(override: str, text: str) -> list[Any]:
    """The values of an override as Hydra reads them; its text where Hydra cannot read it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Sweep
    from hydra.errors import HydraException

    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except HydraException:
        return [text]
    value = parsed.value()
    if isinstance(value, ChoiceSweep):
        return [_unquoted(choice) for choice in value.list]
    return [text] if isinstance(value, Sweep) else [value]


def _unquoted(value: Any) -> Any:
    """A choice of a sweep without Hydra's quotes."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {_unquoted(name): _unquoted(item) for name, item in value.items()}
    return [_unquoted(item) for item in value] if isinstance(value, list) else value


def composition_error(error: Exception, home: Path, config_dir: Path | None = None) -> str:
    """Hydra's message in one or two lines, with the nearest valid name where a key is misspelt.

    Raises ``error`` itself where it is none of Hydra's.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        raise error
    text = redact(re.sub(r"\s*\n\s*", " ", str(error)).strip())
    missing = re.match(r"Could not override '([^']+)'", text)
    if missing:
        top = missing[1].split(".")[0]
        if missing[1] == "experiment":
            return (
                "experiment=NAME: an experiment is added to the config, so it takes a +: infermesh run +experiment=NAME"
            )
        return f"{missing[1]}: unknown key.{nearest(top, Experiment.model_fields)}"
    if "Could not find 'experiment/" in text or "In 'config': Could not find" in text:
        wanted = re.search(r"Could not find '([^']+)'", text)
        name = wanted[1] if wanted else text
        group, _, option = name.rpartition("/")
        if group == "experiment":
            return f"+experiment={option}: there is no such experiment.{nearest(option, experiments(home, config_dir))}"
    return text
