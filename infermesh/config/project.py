"""Where a project's configs are: its folders, its experiments' files, and what to say of one that is not there."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from infermesh.config.file_names import row_file
from infermesh.config.yaml_words import yaml_words
from infermesh.errors import ConfigError
from infermesh.hints import nearest

EXPERIMENTS = "experiment"  # the folder below conf/
_SUFFIXES = (".yaml", ".yml")
_DEEPEST = 8  # experiments that build on each other
_ELSEWHERE = (".", "conf*", "conf*/*", "experiment*", "exp*")  # where else a file of an experiment is put


def shipped_project() -> Path:
    """The folder of the shipped ``conf/`` and ``pipelines/``: in an installed wheel, or the repository."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_project"
    return inside if inside.is_dir() else package.parent


@functools.cache
def shipped_files() -> frozenset[str]:
    """The files of ``conf/``, ``pipelines/`` and ``examples/`` that are packed. A clone that is in use holds more."""
    listed = Path(__file__).with_name("shipped.txt").read_text(encoding="utf-8")
    return frozenset(listed.split())


def roots(home: Path, config_dir: Path | None, experiment: object = None) -> list[Path]:
    """The folders in which a declaration's relative paths are looked up, in this order.

    Parameters
    ----------
    experiment
        The experiment's name, or several. The shipped folder is one of them only where an experiment is a shipped one,
        or builds on one. A file that a project lacks is missing, whatever lies in a clone of this repository.
    """
    own = [home, *([config_dir.parent] if config_dir else [])]
    folders = config_folders(home, config_dir)
    names = str(experiment or "").strip("[]").replace(",", " ").split()  # Hydra writes several as [a,b]
    shipped = any(file.is_relative_to(folders[-1]) for name in names for file, _ in _chain(name, folders))
    return [*own, shipped_project()] if shipped else own


def primary_folder(home: Path) -> Path:
    """Hydra's primary config folder: the project's, else the shipped one."""
    own = home / "conf"
    return own if own.is_dir() else shipped_project() / "conf"


def config_folders(home: Path, config_dir: Path | None = None) -> list[Path]:
    """The folders of configs, the one that wins first."""
    return [*([config_dir] if config_dir else []), home / "conf", shipped_project() / "conf"]


def experiments(home: Path, config_dir: Path | None = None) -> list[str]:
    """The names of all experiments."""
    return options_of(EXPERIMENTS, home, config_dir)


def options_of(group: str, home: Path, config_dir: Path | None = None) -> list[str]:
    """The names in a config group; none where there is no such group."""
    folders = config_folders(home, config_dir)
    files = (
        (file, folder / group)
        for folder in folders
        for file in ((folder / group).rglob("*.yaml") if group else ())
        if _offered(file, folder, folders)
    )
    return sorted({file.relative_to(folder).with_suffix("").as_posix() for file, folder in files})


def _offered(file: Path, folder: Path, folders: list[Path]) -> bool:
    """Whether a project may choose a file of a folder of configs: of the shipped one, what is shipped."""
    ours = folder in folders[:-1]  # in the clone itself, the shipped folder is the project's own
    return ours or f"conf/{file.relative_to(folder).as_posix()}" in shipped_files()


def experiment_name(text: str, home: Path) -> str:
    """An experiment's name where its file may be given: ``conf/experiment/mine.yaml`` is ``mine``.

    Examples
    --------
    >>> from pathlib import Path
    >>> experiment_name("conf/experiment/deep/one.yaml", Path.cwd())
    'deep/one'
    """
    name = text.strip().replace("\\", "/")
    own = f"{(home / 'conf' / EXPERIMENTS).as_posix()}/"
    for start in (own, "./", f"conf/{EXPERIMENTS}/", f"{EXPERIMENTS}/"):
        name = name.removeprefix(start)
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def written(name: str, home: Path, config_dir: Path | None = None) -> dict[str, Any]:
    """What the file of an experiment says, over what the experiments say that it builds on; empty if there is none.

    Nothing is resolved: this is for what has to be known before the config is composed.

    Raises
    ------
    ConfigError
        A file is no YAML, or holds no keys, or a list where there must be names.
    """
    found: dict[str, Any] = {}
    for _, said in _chain(name, config_folders(home, config_dir)):
        found |= said
    return found


def _chain(name: str, folders: list[Path], depth: int = 0) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file of an experiment with what it says, after those that it builds on."""
    places = ((folder, folder / EXPERIMENTS / f"{name}.yaml") for folder in folders)
    file = next((file for folder, file in places if file.is_file() and _offered(file, folder, folders)), None)
    if file is None or depth > _DEEPEST:
        return
    said = _read(file)
    for base in said.get("defaults") or []:
        if isinstance(base, str) and base != "_self_":
            yield from _chain(base.removeprefix(f"/{EXPERIMENTS}/"), folders, depth + 1)
    yield file, said


def _read(file: Path) -> dict[str, Any]:
    shown = shown_path(file)
    try:
        text = file.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):  # Hydra would not find the first line
            raise ConfigError(f"{shown}: it begins with a byte order mark. Save it as UTF-8 without one.")
        said = yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise ConfigError(yaml_words(error, file, shown)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: not UTF-8 text: {error}") from None
    if not isinstance(said, dict):
        what = "nothing is in it" if said is None else f"it is {'a list' if isinstance(said, list) else 'text'}"
        raise ConfigError(f"{shown}: an experiment is keys with values (name: …, source: …, stages: …); {what}.")
    return said


def _loader() -> type:
    """OmegaConf's way of reading is YAML's own with a few differences, none of which matters here."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def shown_path(file: Path) -> str:
    """A file as messages call it: relative to the working directory if it is below it."""
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)


def refuse_not_offered(name: str, home: Path, config_dir: Path | None = None) -> None:
    """Raise ``ConfigError`` for an experiment that somebody wrote into the clone: Hydra would find it anywhere."""
    written_there = (shipped_project() / "conf" / EXPERIMENTS / f"{name}.yaml").is_file()
    if written_there and name not in experiments(home, config_dir):
        raise ConfigError(missing_experiment(name, home, config_dir))


def missing_experiment(name: str, home: Path, config_dir: Path | None = None) -> str:
    """What to say of an experiment that is not there: where it was looked for, and where it may be."""
    start = f"+experiment={name}: there is no such experiment"
    if row_file(name).format is not None:
        return f"{start}: that names a file of rows. An experiment's rows are source.path={name}"
    elsewhere = _elsewhere(name.rpartition("/")[2], home)
    close = nearest(name, experiments(home, config_dir))
    if not elsewhere and close.startswith(" Did you mean"):
        return f"{start}.{close}"
    folders = [folder / EXPERIMENTS for folder in config_folders(home, config_dir)[:-1]]
    looked = " and ".join(f"{folder}{'' if folder.is_dir() else ' (no such folder)'}" for folder in folders)
    return f"{start}. Looked in {looked}.{elsewhere or close}"


def _elsewhere(name: str, home: Path) -> str:
    """Where else a file of that name is, and what to do; empty if nowhere."""
    for parent in (*home.parents, shipped_project()):
        if (parent / "conf" / EXPERIMENTS / f"{name}.yaml").is_file():
            return f" It is in {parent}: cd {parent}"
    for pattern in _ELSEWHERE:
        for suffix in _SUFFIXES:
            for file in sorted(home.glob(f"{pattern}/{name}{suffix}")):
                target = Path("conf") / EXPERIMENTS / f"{name}.yaml"
                made = "" if (home / target).parent.is_dir() else f"mkdir -p {target.parent} && "
                shown = shown_path(file)
                return f" {shown} has to be {target}: {made}{shlex.join(['mv', shown, str(target)])}"
    return ""
