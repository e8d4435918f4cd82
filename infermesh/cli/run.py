"""``infermesh run`` and ``infermesh resume``: Hydra composes, execution runs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from infermesh.cli.app import fail
from infermesh.cli.progress import make_observer
from infermesh.cli.runs import describe, find_run, newest_unfinished, run_folders
from infermesh.config import Experiment, load, nearest, refuse_inline_keys
from infermesh.errors import ConfigError, InfermeshError
from infermesh.execution import DATABASE, RunOutcome, execute
from infermesh.store.database import Redo, connect
from infermesh.store.output import read_record

_SECTIONS = "source|limits|deployments|models|stages|store|simulator|guards|sinks"
_SWEEPABLE = re.compile(rf"(?:{_SECTIONS})\.[^=@/~+]+=")


def shipped_project() -> Path:
    """The folder that holds the shipped conf/ and pipelines/: inside an installed wheel, or the clone."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_project"
    return inside if inside.is_dir() else package.parent


def run_hydra(argv: list[str]) -> int:
    """Compose with Hydra and run each job; the exit code of the worst."""
    if not argv:
        print("error: which experiment? infermesh run +experiment=NAME", file=sys.stderr)
        _list_experiments()
        return 2
    try:
        for argument in argv:
            refuse_inline_keys(_as_mapping(argument))  # Hydra writes a sweep's overrides to a file before any job
    except ConfigError as error:
        fail(str(error))
    jobs = _Jobs(argv)
    main = jobs.hydra_main()
    with _arguments(["infermesh", *(_addable(argument) for argument in argv)]), _full_errors():
        try:
            main()
        except InfermeshError as error:
            fail(str(error))
        except Exception as error:
            fail(_composition_error(error))
    return jobs.exit_code


class _Jobs:
    """What Hydra calls for each job, and the codes that they ended with."""

    def __init__(self, argv: list[str]) -> None:
        self._overrides = [argument for argument in argv if "=" in argument]
        self._config_dir = _config_dir(argv)
        self.codes: list[int] = []

    @property
    def exit_code(self) -> int:
        """The worst of all jobs."""
        return next((code for code in (1, 130, 4, 3) if code in self.codes), 0)

    def hydra_main(self) -> Any:
        """The function that parses argv and runs the jobs."""
        import hydra
        from hydra.core.plugins import Plugins
        from hydra.plugins.search_path_plugin import SearchPathPlugin

        shipped, config_dir = shipped_project() / "conf", self._config_dir

        class ShippedConfigs(SearchPathPlugin):
            """A project's own conf/ comes first, the shipped one after it."""

            def manipulate_search_path(self, search_path: Any) -> None:
                if config_dir is not None:  # Hydra itself would put it last, behind what it is meant to change
                    search_path.prepend("config-dir", config_dir.as_uri())
                search_path.append("infermesh", shipped.as_uri())

        Plugins.instance().register(ShippedConfigs)
        own = Path.cwd() / "conf"
        first = own if own.is_dir() else shipped
        return hydra.main(version_base="1.3", config_path=str(first), config_name="config")(self.job)

    def job(self, config: Any) -> None:
        """Run one job."""
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        if hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN":
            overrides = " ".join(override.lstrip("+") for override in hydra_config.overrides.task)
            print(f"job {hydra_config.job.num}: {overrides}", file=sys.stderr)
        with contextlib.suppress(ValueError):
            folder = folder.relative_to(Path.cwd())
        mapping = _without_missing(OmegaConf.to_container(config, resolve=True))
        roots = [Path.cwd(), *([self._config_dir.parent] if self._config_dir else []), shipped_project()]
        code = run_job(mapping, folder, roots, overrides=list(hydra_config.overrides.task))
        self.codes.append(code)
        if code == 1:
            (Path(hydra_config.sweep.dir) / "multirun.yaml").unlink(missing_ok=True)  # it may hold a refused key
        if code == 130:
            raise SystemExit(130)  # an interrupted sweep starts no further job


def run_job(
    mapping: Mapping[str, Any],
    folder: Path,
    roots: list[Path],
    *,
    overrides: list[str] | None = None,
    redo: Redo | None = None,
) -> int:
    """Run or resume an experiment in a folder, with progress and a closing word; the exit code."""
    fresh = not (folder / DATABASE).exists()
    observer = make_observer()
    kept = {file: file.read_bytes() for file in (folder / ".hydra").glob("*.yaml")}
    try:
        _check_chosen(mapping)
        load(mapping)  # before anything is written: an inline key must not reach the folder
        _write_config(folder, mapping, overrides)
        outcome = execute(mapping, folder, roots=roots, observer=observer, overrides=overrides, redo=redo)
    except KeyboardInterrupt:
        if fresh:
            _discard(folder)
        print("interrupted before the first request", file=sys.stderr)
        return 130
    except InfermeshError as error:
        if fresh:
            _discard(folder)
        else:
            for file, content in kept.items():  # what stands there is what was run
                file.write_bytes(content)
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    print(_closing(outcome), file=sys.stderr)
    for problem in outcome.files.errors:
        print(f"error: {problem}", file=sys.stderr)
    if outcome.files.errors:
        print(f"the run itself is whole: infermesh resume {outcome.folder} writes its files again", file=sys.stderr)
    return outcome.exit_code


def resume_run(name: str | None) -> int:
    """Go on with a run in its folder, from the config that it keeps."""
    folder = find_run(name) if name is not None else newest_unfinished()
    if folder is None:
        print("nothing to resume: no unfinished run below outputs/", file=sys.stderr)
        failed = next((info for info in map(describe, run_folders()[:1]) if info.failed), None)
        if failed is not None:
            print(
                f"the newest one finished with {failed.failed} failed row states; infermesh resume {failed.folder} "
                "tries them again",
                file=sys.stderr,
            )
        return 0
    mapping, roots = _declared(folder)
    print(f"resuming {folder}", file=sys.stderr)
    return run_job(mapping, folder, roots)


def retry_run(name: str | None, stage: str, where: str, *, dry_run: bool) -> int:
    """Send settled rows of a stage again, those that a condition chooses; says how many they are first."""
    folder = find_run(name)
    mapping, roots = _declared(folder)
    redo = Redo(stage, where)
    over_rows = [name for name, config in mapping.get("stages", {}).items() if config.get("kind") != "sql"]
    if stage not in over_rows:
        fail(f"--stage {stage}: no such stage over rows.{nearest(stage, over_rows)}", code=2)
    try:
        with connect(folder / DATABASE, read_only=True) as connection:
            rows = redo.count(connection)
    except InfermeshError as error:
        fail(f"--{error}", code=2)
    print(f"{folder}: {rows} rows of {stage} where {where}", file=sys.stderr)
    if dry_run or not rows:
        return 0
    return run_job(mapping, folder, roots, redo=redo)


def _declared(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """The declaration that a run keeps, and what its paths are relative to."""
    try:
        with connect(folder / DATABASE, read_only=True) as connection:
            row = connection.execute("SELECT config, roots FROM run").fetchone()
            output = read_record(connection)
    except InfermeshError as error:
        fail(str(error))
    if output is not None:
        fail(f"{folder} is the checkpoint of {output.path}: run the command that made it again, with --resume")
    if row is None:
        fail(f"{folder / DATABASE} holds no run: it ended before its source was loaded. Run it again.")
    kept = [Path(root) for root in orjson.loads(row[1])]
    return orjson.loads(row[0]), [Path.cwd(), *(root for root in kept if root != Path.cwd())]


def _closing(outcome: RunOutcome) -> str:
    """What a user wants to know when a run has ended."""
    stages = []
    for stage, counts in outcome.counts.items():
        words = {"done": "done", "error": "failed", "skipped": "skipped", "pending": "pending"}
        told = ", ".join(f"{counts[key]} {words[key]}" for key in words if counts.get(key))
        stages.append(f"  {stage}: {told or 'no rows'}")
    verb = {
        "done": "complete",
        "failed_rows": "finished, with failed rows",
        "interrupted": "interrupted",
        "stopped": "stopped by a guard",
    }
    totals = outcome.totals
    cost = "" if totals["cost_usd"] is None else f", ${totals['cost_usd']:.4f}"
    tokens = totals["prompt_tokens"] + totals["completion_tokens"]
    lines = [
        f"{outcome.experiment}: {verb[outcome.status]} in {outcome.elapsed_s:.1f} s "
        f"({totals['requests']} requests, {tokens} tokens{cost})",
        *stages,
        *([f"  kept      {outcome.kept} answers whose request is unchanged"] if outcome.kept else []),
        *([f"  reused    {outcome.reused} answers of earlier runs"] if outcome.reused else []),
        f"  folder    {outcome.folder}",
        f'  query     infermesh sql "select * from results limit 5" --run {outcome.folder}',
        *(f"  written   {file}" for file in outcome.files.written),
    ]
    if outcome.failures:
        stage, kind, rows, example = outcome.failures[0]
        lines.append(f"  failures  {rows} × {stage}: {kind}: {(example or '').splitlines()[0][:160]}")
        lines.append(
            f'            infermesh sql "select row_id, error_type, error from {stage} '
            f"where status = 'error'\" --run {outcome.folder}"
        )
    if outcome.status == "stopped":
        lines.insert(1, f"  stopped   {outcome.reason}; raise or remove that guard to go on")
    if outcome.status != "done":
        again = "tries the failed rows again" if outcome.status == "failed_rows" else "sends only what is left"
        lines.append(f"  resume    infermesh resume {outcome.folder}   ({again})")
    else:
        lines.append(f"  resume    infermesh resume {outcome.folder}   (nothing is left to send)")
    return "\n".join(lines)


def _check_chosen(mapping: Mapping[str, Any]) -> None:
    if not mapping.get("stages") and not mapping.get("models"):
        if isinstance(mapping.get("experiment"), Mapping):
            raise ConfigError(
                "the experiment's keys have come below 'experiment'. Its file must begin with the line: "
                "# @package _global_"
            )
        names = ", ".join(_experiments())
        raise ConfigError(f"no experiment was chosen: infermesh run +experiment=NAME. There is: {names}.")


def _experiments() -> list[str]:
    folders = [Path.cwd() / "conf" / "experiment", shipped_project() / "conf" / "experiment"]
    return sorted({file.stem for folder in folders if folder.is_dir() for file in folder.glob("*.yaml")})


def _list_experiments() -> None:
    print(f"there is: {', '.join(_experiments())}", file=sys.stderr)


def _addable(argument: str) -> str:
    """``stages.x.y=…`` sets a key whether or not the YAML spells it out; a misspelt one is caught by validation."""
    return f"++{argument}" if _SWEEPABLE.match(argument) else argument


def _as_mapping(argument: str) -> dict[str, Any]:
    """``a.b=c`` as nested dicts; empty for what is no override."""
    name, equals, value = argument.lstrip("+~").partition("=")
    node: Any = value
    for part in reversed(name.split(".")):
        node = {part: node}
    return node if equals else {}


def _config_dir(argv: list[str]) -> Path | None:
    for number, argument in enumerate(argv):
        name, _, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            chosen = value or (argv[number + 1] if number + 1 < len(argv) else "")
            return Path(chosen).resolve() if chosen else None
    return None


@contextlib.contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _full_errors() -> Iterator[None]:
    """Let Hydra's exceptions reach us instead of being printed and swallowed by it."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _composition_error(error: Exception) -> str:
    """Hydra's message in one or two lines, with the nearest valid name where a key is misspelt."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        raise error
    text = re.sub(r"\s*\n\s*", " ", str(error)).strip()
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
            return f"+experiment={option}: there is no such experiment.{nearest(option, _experiments())}"
    return text


def _without_missing(node: Any) -> Any:
    """Drop keys that are still ``???``, so that validation reports them as missing."""
    if isinstance(node, dict):
        return {key: _without_missing(value) for key, value in node.items() if value != "???"}
    return [_without_missing(value) for value in node] if isinstance(node, list) else node


def _write_config(folder: Path, mapping: Mapping[str, Any], overrides: list[str] | None) -> None:
    import yaml

    target = folder / ".hydra"
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.yaml").write_text(yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True))
    if overrides is not None:
        (target / "overrides.yaml").write_text(yaml.safe_dump(overrides))


def _discard(folder: Path) -> None:
    """Remove a folder in which nothing ran, unless it holds something that is not ours."""
    if folder.is_dir() and all(item.name in (".hydra", "run.log") for item in folder.iterdir()):
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
