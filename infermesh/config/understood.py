"""What a user writes behind ``infermesh run``: what is clear is put into Hydra's form, the rest is told.

An experiment may be named alone, or by its file; a key that only one section has needs no section, and may be written
as an option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from infermesh.config.file_names import row_file
from infermesh.config.overrides import EXPERIMENT, OVERRIDE, SECTIONS, as_written, readable
from infermesh.config.parameters import is_parameter
from infermesh.config.project import (
    config_folders,
    experiment_name,
    experiments,
    primary_folder,
    refuse_not_offered,
    written,
)
from infermesh.config.schema import STAGE_KINDS, EngineConfig, Experiment, GuardsConfig, SourceConfig, StoreConfig
from infermesh.errors import ConfigError
from infermesh.hints import command, near, nearest
from infermesh.redaction import redact

__all__ = ["FLAGS", "SHORT", "WITH_VALUE", "Understood", "UsageError", "source_of", "understood"]

_DOTTED = re.compile(rf"(?:{'|'.join(SECTIONS)})(?:\.[\w-]+)+")
_IDENTITY = ("path", "sql", "dataset")  # what a source is; a text that stands for all of it is one of them
# Keys that only one section has: `limit` is `source.limit`.
_ONE_SECTION: dict[str, type[BaseModel]] = {
    "source": SourceConfig,
    "guards": GuardsConfig,
    "store": StoreConfig,
    "engine": EngineConfig,
}
SHORT = {name: f"{section}.{name}" for section, model in _ONE_SECTION.items() for name in model.model_fields}
# What is often written as an option, and what to write instead.
_INSTEAD = {
    "resume": f"a run is continued by {command('resume')} RUN",
    "dry-run": f"nothing is sent by {command('plan')}, which takes the same arguments",
    "config": "a folder of configs is added by --config-dir DIR, and an experiment is named alone: infermesh run NAME",
    "output": "results are read with infermesh sql or export; the run's folder is hydra.run.dir=DIR",
    "n": "the first rows alone are source.limit=N",
    "e": "an experiment is named alone: infermesh run NAME",
    "verbose": "what went wrong is in the run's run.log and in infermesh status",
}
_INSTEAD |= {
    "dryrun": _INSTEAD["dry-run"],
    "continue": _INSTEAD["resume"],
    "o": _INSTEAD["output"],
    "out": _INSTEAD["output"],
    "output-dir": _INSTEAD["output"],
    "l": _INSTEAD["n"],
    "v": _INSTEAD["verbose"],
    "debug": _INSTEAD["verbose"],
}
# Hydra's own options, with which of them take a value. Its parser would take any beginning of a name for the name.
FLAGS = frozenset({"--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"})
FLAGS |= {"--shell-completion", "-sc"}
WITH_VALUE = frozenset({"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"})
WITH_VALUE |= {"--config-dir", "-cd", "--experimental-rerun"}
INFO = ("--info", "-i")
_INFO_VALUES = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class UsageError(ConfigError):
    """An option that is none."""


@dataclass(slots=True)
class Understood:
    """A command line as Hydra takes it: its options and the overrides. ``notes``: what was decided for the user."""

    options: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def understood(arguments: Sequence[str], home: Path, config_dir: Path | None = None) -> Understood:
    """Read what stands behind ``infermesh run``: what is clear is put into Hydra's form, the rest is told.

    Parameters
    ----------
    arguments
        Overrides, names of experiments, and Hydra's options.
    home
        The project's folder.
    config_dir
        A folder of configs that comes before the project's.

    Raises
    ------
    ConfigError
        An argument is none of these, or its meaning is not clear. The message says what to write.

    Examples
    --------
    >>> from pathlib import Path
    >>> understood(["quickstart", "limit=5", "stages.summaries.prompt=Say {{ text }}"], Path.cwd()).overrides
    ['+experiment=quickstart', 'source.limit=5', "stages.summaries.prompt='Say {{ text }}'"]
    """
    if {"-sc", "--shell-completion"} & set(arguments):  # what stands behind it is no override
        return Understood([*arguments])
    try:
        return _Reader(arguments, home, config_dir).read()
    except ConfigError as error:
        raise type(error)(redact(str(error))) from None


class _Reader:
    """Reads one command line."""

    def __init__(self, arguments: Sequence[str], home: Path, config_dir: Path | None) -> None:
        self._words = [*arguments]
        self._home, self._config_dir = home, config_dir
        self._found = Understood()
        self._experiment: str | None = None

    def read(self) -> Understood:
        self._join_equals()
        while self._words:
            word = _unquoted(self._words.pop(0))
            if not word.strip() or word.startswith("="):
                raise ConfigError(f"'{word}': no key is there. Is a variable of the shell empty? Expected KEY=VALUE")
            if word.startswith("-") and word != "-":
                self._option(word)
            elif "=" in word or word.startswith("~"):
                self._found.overrides.append(self._keyed(word))
            else:
                self._bare(word)
        said = {}
        if self._experiment is not None:
            refuse_not_offered(self._experiment, self._home, self._config_dir)
            said = written(self._experiment, self._home, self._config_dir)
        self._refuse_lists(said)
        sweeps = self._sweeps(said)
        overrides = [self._override(argument, said, sweeps) for argument in self._found.overrides]
        self._found.overrides = [*overrides, *_short_source(said, overrides)]
        return self._found

    def _join_equals(self) -> None:
        """``a = b``, as three words, is ``a=b``."""
        words = self._words
        for at in reversed(range(1, len(words) - 1)):
            if words[at] == "=":
                words[at - 1 : at + 2] = ["=".join((words[at - 1], words[at + 1]))]

    def _next(self) -> str | None:
        """The next word, if it can be the value of the one before it."""
        free = self._words and "=" not in self._words[0] and not self._words[0].startswith(("-", "+", "~"))
        return self._words[0] if free else None

    def _option(self, word: str) -> None:
        name, equals, value = word.partition("=")
        if name in FLAGS:
            self._found.options.append(word)
        elif name in WITH_VALUE:
            chosen = value if equals else next(iter(self._words), "")
            if name in ("--cfg", "-c") and chosen not in ("job", "hydra", "all"):
                raise UsageError(f"{name}: expected {name} job, which shows the composed config and runs nothing")
            self._found.options.append(word)
            if not equals and self._words:
                self._found.options.append(self._words.pop(0))
        elif name in INFO:
            chosen = self._words.pop(0) if not equals and self._words and self._words[0] in _INFO_VALUES else value
            self._found.options.append(f"--info={chosen or 'all'}")
        else:
            self._own_option(name, value if equals else None)

    def _own_option(self, name: str, value: str | None) -> None:
        """A key written as an option: ``--limit 5``, ``--source.limit=5``, ``--experiment mine``."""
        key = name.lstrip("-").replace("-", "_")
        if name.startswith("--") and (key == "experiment" or _home_of(key) is not None):
            given = self._words.pop(0) if value is None and self._next() is not None else value
            if given is None and _is_flag(key):
                given = "true"
            if given is None:
                raise UsageError(f"{name}: no value. Keys are set without dashes: {_home_of(key) or key}=VALUE")
            self._found.overrides.append(self._keyed(f"{key}={given}"))
            return
        instead = _INSTEAD.get(name.lstrip("-"))
        hint = f" Instead, {instead}." if instead else nearest(name, [*FLAGS, *WITH_VALUE, "--env-file"])
        if not hint.startswith((" Instead", " Did you mean")):
            hint = " A key is set without dashes: source.limit=5. See infermesh run --help."
        raise UsageError(f"{name}: no such option.{hint}")

    def _keyed(self, word: str) -> str:
        """An override with its key in full."""
        found = OVERRIDE.fullmatch(word)
        if found is None:
            return word
        mark, key, text = found["mark"], found["key"], found["text"]
        if key == EXPERIMENT:
            return self._chosen(text) if mark != "++" else word
        if not mark and key == "source" and _names_rows(text) and not self._is_option("source", text):
            return f"source.path={text}"
        full = SHORT.get(key)
        if full is not None and not mark and key not in Experiment.model_fields and not self._is_group(key):
            self._found.notes.append(f"{key}={text} is taken as {full}={text}")
            key = full
        return f"{mark}{key}={text}"

    def _chosen(self, name: str) -> str:
        """The override that chooses an experiment. Several, for a sweep, stay as they are."""
        plain = re.fullmatch(r"[^,\[\]{}()'\"]*", name) is not None
        name = experiment_name(name, self._home) if plain else name
        self._experiment = name if plain else None
        return f"{'' if _chooses_itself(self._home) else '+'}{EXPERIMENT}={name}"

    def _bare(self, word: str) -> None:
        """A word without ``=``: an experiment's name, or something that needs one."""
        value = self._next()
        if word.lstrip("+") == EXPERIMENT and value is not None:
            self._found.overrides.append(self._keyed(f"{EXPERIMENT}={self._words.pop(0)}"))
            return
        key, colon, text = word.partition(":")
        if colon and (full := _home_of(key.strip())) is not None:
            raise ConfigError(f"{word}: a key takes = and not a colon: {full}={text.strip()}")
        named = experiment_name(word, self._home) in experiments(self._home, self._config_dir)
        full = None if named else _home_of(word.lstrip("+"))
        if full is not None:
            raise ConfigError(f"{word}: a key and its value are one word: {full}={value or 'VALUE'}")
        chosen = [argument for argument in (*self._found.overrides, *self._words) if _chooses(argument)]
        if chosen:
            if named:
                raise ConfigError(f"{word}: a run takes one experiment, and {chosen[0].lstrip('+')} is there already.")
            raise ConfigError(f"{word}: neither KEY=VALUE nor an option. An override is one word: source.limit=5")
        self._found.overrides.append(self._chosen(word))

    def _override(self, argument: str, said: Mapping[str, Any], sweeps: bool) -> str:
        found = OVERRIDE.fullmatch(argument)
        if found is not None and found["key"] == EXPERIMENT and not sweeps and re.match(r"[^\[(]*,", found["text"]):
            raise ConfigError(f"{argument.lstrip('+')}: a run takes one experiment; -m runs one after the other")
        if found is None or found["key"] == EXPERIMENT:
            return argument
        key = found["key"]
        if not found["mark"]:
            self._refuse_unknown(key, found["text"], said)
        return f"{found['mark']}{key}={readable(key, found['text'], sweeps=sweeps)}"

    def _refuse_unknown(self, key: str, text: str, said: Mapping[str, Any]) -> None:
        """Refuse a key that is in no section, and say where such a key stands."""
        first, *rest = key.split(".")
        chooses = self._is_group(key) and (first not in _stage_keys() or self._is_option(first, text))
        if first in Experiment.model_fields or chooses or first.startswith(("hydra", "$")):
            return
        stages = said.get("stages")
        stage = next(iter(stages), "STAGE") if isinstance(stages, Mapping) and stages else "STAGE"
        if rest and isinstance(stages, Mapping) and first in stages:
            hint = f" Did you mean 'stages.{key}'?"
        elif not rest and first in _stage_keys():
            hint = f" Did you mean 'stages.{stage}.{key}'?"
        elif not rest and is_parameter(first):
            hint = f" Did you mean 'stages.{stage}.params.{key}'?"
        else:
            meant = near(first, [*Experiment.model_fields, *(() if rest else SHORT)])
            hint = f" Did you mean '{SHORT.get(meant, meant)}'?" if meant else nearest("", Experiment.model_fields)
        raise ConfigError(f"{key}: unknown key.{hint}")

    def _refuse_lists(self, said: Mapping[str, Any]) -> None:
        """Refuse a list in the place of names, which Hydra could not merge."""
        for section in SECTIONS:
            if isinstance(said.get(section), list):
                write = "{path: FILE}, or a glob such as data/*.csv" if section == "source" else _as_names(section)
                raise ConfigError(f"{section}: expected names with what belongs to each, not a list: {write}")

    def _sweeps(self, said: Mapping[str, Any]) -> bool:
        """Whether there will be a job for each value."""
        hydra = said.get("hydra")
        return bool({"-m", "--multirun"} & set(self._found.options)) or "MULTIRUN" in f"{hydra} {self._found.overrides}"

    def _is_group(self, key: str) -> bool:
        """Whether a key chooses a file of a folder of configs, and sets no value."""
        name = key.partition("@")[0]
        return "/" in name or any((folder / name).is_dir() for folder in config_folders(self._home, self._config_dir))

    def _is_option(self, group: str, name: str) -> bool:
        folders = config_folders(self._home, self._config_dir)
        return any((folder / group / f"{name}.yaml").is_file() for folder in folders)


def _names_rows(text: str) -> bool:
    """Whether a text is a file of rows, a folder or a glob."""
    return row_file(text).format is not None or text.endswith("/") or "*" in text


def _unquoted(word: str) -> str:
    """An argument without quotes around all of it, which a shell would have taken off: ``'source.limit=5'``."""
    found = re.fullmatch(r"(['\"])([\w.+]+=[^'\"]*)\1", word)
    return found[2] if found else word


def _is_flag(key: str) -> bool:
    field = Experiment.model_fields.get(key) or SourceConfig.model_fields.get(key)
    return field is not None and field.annotation is bool


def _chooses(argument: str) -> bool:
    return argument.lstrip("+").startswith(f"{EXPERIMENT}=")


def _chooses_itself(home: Path) -> bool:
    """Whether the project's config.yaml names an experiment, so that another one takes its place."""
    try:
        said = yaml.safe_load((primary_folder(home) / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # told by Hydra, if it is the one that it reads
        return False
    entries = said.get("defaults") if isinstance(said, dict) else None
    return any(isinstance(entry, dict) and EXPERIMENT in entry for entry in entries or [])


def _home_of(key: str) -> str | None:
    """A key in full, if it is one that can be told by its name; else ``None``."""
    if key in SHORT:
        return SHORT[key]
    return key if _DOTTED.fullmatch(key) or key in Experiment.model_fields else None


def _stage_keys() -> set[str]:
    return {name for kind in STAGE_KINDS.values() for name in kind.model_fields}


def _as_names(section: str) -> str:
    return f"write 'NAME:' below '{section}:' for each, without a dash, and its keys below that"


def _short_source(said: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """An override that says in full what the YAML says as ``source: FILE``, if another one sets a key beside it."""
    given = said.get("source")
    keys = [argument.lstrip("+").partition("=")[0] for argument in overrides]
    beside = [key for key in keys if key.startswith("source.")]
    if not isinstance(given, str) or not beside or any(key == f"source.{name}" for key in beside for name in _IDENTITY):
        return []
    return [f"source.{name}={as_written(value)}" for name, value in source_of(given).items()]


def source_of(text: str) -> dict[str, str]:
    """What a source is that is one text: a query, else a file or a glob.

    Examples
    --------
    >>> source_of("data/*.csv")
    {'path': 'data/*.csv'}
    """
    return {"sql" if re.match(r"\s*(select|from|with)\s", text, re.IGNORECASE) else "path": text}
