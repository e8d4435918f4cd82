"""Compose a declaration with Hydra: where configs are found, what overrides mean, what an error says.

Outside the command line, this is the only module that knows Hydra. The first call imports them.
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

from infermesh.config.project import (
    EXPERIMENTS,
    experiments,
    missing_experiment,
    primary_folder,
    roots,
    shipped_project,
    shown_path,
)
from infermesh.config.references import keeping_references, restored
from infermesh.config.yaml_words import yaml_words
from infermesh.errors import ConfigError
from infermesh.hints import nearest
from infermesh.redaction import redact

_HINT = re.compile(r"\s*See https?://\S+( for (more )?(details|info\w*))?\.?")  # another project's page
_LOCK = threading.Lock()  # Hydra's state is global


@dataclass(frozen=True, slots=True)
class Composed:
    """A declaration as Hydra composed it.

    Attributes
    ----------
    mapping
        Plain dicts, lists and scalars. Interpolations are resolved, except for those of environment variables
        (:mod:`infermesh.config.references`); keys without a value (``???``) are left out. Not validated yet: see
        :func:`~infermesh.config.declaration.declare`.
    roots
        The folders that relative paths are looked up in, in this order.
    folder
        ``hydra.run.dir``: the one that was given, else ``outputs/<name>/<time>``. ``None``: the declaration has no
        name.
    overrides
        What was changed of the declaration, as Hydra writes it, without Hydra's own keys; ``None`` where it was not
        composed by Hydra.
    notes
        What was decided for the user, a line each.
    """

    mapping: dict[str, Any]
    roots: list[Path]
    folder: Path | None
    overrides: list[str] | None
    notes: tuple[str, ...] = ()


def compose(overrides: Sequence[str], *, config_dir: Path | None = None, cwd: Path | None = None) -> Composed:
    """Compose a declaration from overrides, as ``infermesh run`` does.

    It may be called any number of times, in any thread, and leaves Hydra's global state as it was.

    Parameters
    ----------
    overrides
        What stands behind ``infermesh run``: ``NAME`` or ``+experiment=NAME``, ``stages.x.y=value``.
    config_dir
        A folder of configs that are looked up before those of the project.
    cwd
        The project's folder: its ``conf/`` comes before the shipped one, and the result's folder is below it. ``None``:
        the working directory.

    Raises
    ------
    ConfigError
        An override is wrong or holds a key, or a config is missing or does not parse.

    Examples
    --------
    >>> compose(["+experiment=quickstart", "source.limit=5"]).mapping["source"]["limit"]
    5
    """
    # Late: the schema takes a quarter of a second to make.
    from infermesh.config.overrides import addable, refuse_inline
    from infermesh.config.understood import understood

    home = Path.cwd() if cwd is None else cwd.absolute()
    config_dir = None if config_dir is None else config_dir.absolute()
    given = understood(overrides, home, config_dir)
    if given.options:
        raise ConfigError(f"{given.options[0]}: an option of infermesh run alone; expected overrides, KEY=VALUE")
    refuse_inline(given.overrides)
    arguments = [addable(override) for override in given.overrides]
    with _LOCK:
        try:
            mapping, folder, task, experiment = _compose(arguments, home, config_dir)
        except Exception as error:
            raise ConfigError(composition_error(error, home, config_dir)) from None
    if folder is not None and cwd is not None:
        folder = home / folder
    return Composed(mapping, roots(home, config_dir, experiment), folder, task, tuple(given.notes))


def _compose(
    arguments: list[str], home: Path, config_dir: Path | None
) -> tuple[dict[str, Any], Path | None, list[str], object]:
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
            task, experiment = overrides_of(config.hydra), chosen_experiment(config.hydra)
            with open_dict(config):
                del config["hydra"]
            return plain(config), folder, task, experiment
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra_before, config_before


def plain(config: Any) -> dict[str, Any]:
    """An OmegaConf config as plain values, with interpolations resolved but for references to the environment.

    Keys that are still ``???`` are left out, so that validation says that they are missing. Raises omegaconf's errors.
    """
    from omegaconf import OmegaConf

    found = OmegaConf.to_container(keeping_references(config), resolve=True)
    plain: dict[str, Any] = restored(_without_missing(found))
    return plain


def overrides_of(hydra_config: Any) -> list[str]:
    """The overrides of a job as they were written: Hydra's own list resolves the interpolations in them."""
    from omegaconf import OmegaConf

    written: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    return [*map(str, written)]


def chosen_experiment(hydra_config: Any) -> object:
    """The name of the experiment that a job was composed of, or several as ``[a,b]``; ``None`` if of none."""
    chosen: object = hydra_config.runtime.choices.get(EXPERIMENTS)
    if chosen is None:  # Hydra has no choice where there are several
        for override in hydra_config.overrides.task:
            name, _, value = str(override).lstrip("+").partition("=")
            chosen = value if name == EXPERIMENTS else chosen
    return chosen


def _without_missing(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_missing(value) for key, value in node.items() if value != "???"}
    return [_without_missing(value) for value in node] if isinstance(node, list) else node


@contextlib.contextmanager
def search_path(config_dir: Path | None) -> Iterator[None]:
    """Inside, Hydra looks for configs in ``config_dir`` first and in the shipped ones last."""
    plugin = _search_plugin()
    before, plugin.config_dir = plugin.config_dir, None if config_dir is None else _location(config_dir)
    try:
        yield
    finally:
        plugin.config_dir = before


def _location(folder: Path) -> str:
    """A folder as Hydra's search path has it: it takes what stands behind ``file://`` as it is, blanks and all."""
    return f"file://{folder.as_posix()}"


@functools.cache
def _search_plugin() -> Any:
    """The registered plugin. It is registered once, because Hydra never forgets one."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class ShippedConfigs(SearchPathPlugin):
        """It holds strings alone, because a launcher may pickle it."""

        shipped = _location(shipped_project() / "conf")
        config_dir: str | None = None

        def manipulate_search_path(self, search_path: Any) -> None:
            if self.config_dir is not None:  # Hydra's own --config-dir comes last, after the configs it should replace
                search_path.prepend("config-dir", self.config_dir)
            search_path.append("infermesh", self.shipped)

    Plugins.instance().register(ShippedConfigs)
    return ShippedConfigs


def check_chosen(mapping: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` if no experiment was chosen, or its file lacks the line ``# @package _global_``."""
    if not mapping.get("stages") and not mapping.get("models"):
        if isinstance(mapping.get("experiment"), Mapping):
            raise ConfigError(
                "the experiment's keys stand below 'experiment'. Its file must begin with the line: # @package _global_"
            )
        names = ", ".join(experiments(Path.cwd()))
        raise ConfigError(f"no experiment was chosen: infermesh run +experiment=NAME. There is: {names}.")


def composition_error(error: Exception, home: Path, config_dir: Path | None = None) -> str:
    """Hydra's message on one line, with the nearest valid name if a key is misspelt.

    Raises ``error`` itself if it is none of Hydra's.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from infermesh.config.schema import Experiment

    if not isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        raise error
    said: BaseException | None = error
    while said is not None and not str(said).strip():  # Hydra wraps some of OmegaConf's errors into one without words
        said = said.__cause__ or said.__context__
    if isinstance(said, YAMLError):
        file = Path(str(getattr(getattr(said, "problem_mark", None), "name", "")))
        return redact(yaml_words(said, file, shown_path(file)))
    text = redact(" ".join(_HINT.sub("", str(said or type(error).__name__)).split())).replace("'++", "'")
    if found := re.match(r"Interpolation key '([^']+)' not found full_key: (\S+)", text):
        return (
            f"{found[2]}: ${{{found[1]}}} refers to a key of the config, and there is none of that name. As text, it "
            f"is written \\${{"
        )
    if (found := re.match(r"Error merging override \+*([^=]+)=", text)) and "${" in text:
        return f"{found[1]}: ${{ begins a reference to a key of the config. As text, it is written \\${{"
    if missing := re.match(r"Could not override '([^']+)'", text):
        first = missing[1].split(".")[0]
        if first in Experiment.model_fields:  # a config.yaml of the project's own, without that key or group
            return f"{missing[1]}: the project's config.yaml has no such key. With a + before it, it is added."
        return f"{missing[1]}: unknown key.{nearest(first, Experiment.model_fields)}"
    if wanted := re.search(r"Could not find '([^']+)'", text):
        if wanted[1].startswith(f"{EXPERIMENTS}/"):
            return redact(missing_experiment(wanted[1].partition("/")[2], home, config_dir))
        group, _, option = wanted[1].rpartition("/")
        there = re.search(r"Available options in '[^']*': (.*?)( Config search path|$)", text)
        hint = nearest(option, there[1].split()) if there else ""
        return f"{group}={option}: there is no such config in the folder {group}/ of conf/.{hint}"
    return text
