"""``infermesh run``: what a user sees, types and gets wrong."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infermesh.simulator import Simulator
from tests.support import (
    COMMAND_S,
    ask,
    command,
    embed,
    environment,
    experiment,
    generate,
    here,
    infermesh,
    run_folders,
    texts,
    totals,
    write_experiment,
    write_jsonl,
)

Start = Callable[..., Simulator]


Finished = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of the quickstart in an empty folder; at the end it says which heavy libraries it has imported."""
    root = tmp_path_factory.mktemp("empty")
    code = (
        "import atexit, sys\n"
        "heavy = ('litellm', 'openai', 'aiohttp')\n"
        "atexit.register(lambda: print('imported:', *(n for n in heavy if n in sys.modules), file=sys.stderr))\n"
        "from infermesh.cli import main\n"
        "main()\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, "run", "+experiment=quickstart"],
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    return root, found


class TestQuickstart:
    """With neither key nor server."""

    def test_it_completes(self, finished: Finished) -> None:
        root, found = finished
        assert found.returncode == 0, found.stderr
        (folder,) = run_folders(root)
        assert ask(folder, "SELECT stage, status, rows FROM progress ORDER BY ALL") == [
            ("summaries", "done", 60),
            ("transcripts", "done", 6),
            ("transcripts", "skipped", 54),
            ("vectors", "done", 60),
        ]
        assert ask(folder, "SELECT count(*) FROM results WHERE summaries_parsed->>'summary' IS NULL") == [(0,)]

    def test_stdout_is_empty_and_stderr_says_what_next(self, finished: Finished) -> None:
        root, found = finished
        (folder,) = run_folders(root)
        shown = folder.relative_to(root)
        assert found.stdout == ""
        assert "60 rows × 3 stages" in found.stderr
        assert f"folder    {shown}" in found.stderr
        assert 'infermesh sql "' in found.stderr
        assert f"infermesh resume {shown}" in found.stderr
        assert "\x1b" not in found.stderr
        assert "Traceback" not in found.stderr

    def test_heavy_libraries_are_not_imported(self, finished: Finished) -> None:
        assert finished[1].stderr.rstrip().splitlines()[-1] == "imported:"

    def test_the_folder_has_the_config_and_the_database(self, finished: Finished) -> None:
        root, _ = finished
        (folder,) = run_folders(root)
        names = {path.name for path in folder.iterdir()}
        assert {".hydra", "run.duckdb", "report.html"} <= names <= {".hydra", "run.duckdb", "report.html", "run.log"}
        config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
        assert config["stages"]["summaries"]["max_parallel_requests"] == 32
        assert yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text()) == ["+experiment=quickstart"]
        assert (folder.parent / "latest").resolve() == folder.resolve()
        assert folder.parent == root / "outputs" / "quickstart"
        assert {path.name for path in root.iterdir()} == {"outputs"}

    def test_the_command_that_it_names_works(self, finished: Finished) -> None:
        root, _ = finished
        found = here("sql", "select count(*) as n from results", cwd=root)
        assert (found.returncode, found.stdout) == (0, "n\n60\n")


@pytest.fixture
def project(tmp_path: Path, simulator: Simulator) -> Path:
    """A folder with an experiment of the user's own, as the documentation writes one, and its data."""
    write_jsonl(tmp_path / "data" / "rows.jsonl", texts(6))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "answer.jinja").write_text("{{ text }}\n")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        f"""# @package _global_
name: mine
source: {{path: data/rows.jsonl, limit: null}}
deployments:
  gpu-0: {{model: hosted_vllm/llama-3-8b, api_base: {simulator.url}, max_parallel_requests: 64, limits: {{rpm: 60000}}}}
  gpu-1: {{model: hosted_vllm/llama-3-8b, api_base: {simulator.url}}}
models:
  llama: {{deployments: [gpu-0, gpu-1], routing_strategy: least-busy, params: {{temperature: 0.2}}, max_retries: 3}}
  minilm: {{deployments: [gpu-1]}}
stages:
  answers:
    kind: generate
    model: llama
    prompt: prompts/answer.jinja
    where: "n < 5"
    max_parallel_requests: 2
  vectors: {{kind: embed, model: minilm, text: "{{{{ text }}}}", micro_batch_size: 3}}
"""
    )
    return tmp_path


class TestOwnExperiment:
    def test_it_runs_without_any_other_file(self, project: Path, simulator: Simulator) -> None:
        found = infermesh("run", "+experiment=mine", cwd=project)
        assert found.returncode == 0, found.stderr
        (folder,) = run_folders(project)
        assert folder.parent == project / "outputs" / "mine"
        assert ask(folder, "SELECT n, answers_text FROM results WHERE n >= 4 ORDER BY n") == [
            (4, "Parcel number 4 came late."),
            (5, None),
        ]
        assert totals(simulator, "embeddings")["received"] == 2

    def test_the_same_folder_is_resumed(self, project: Path, simulator: Simulator) -> None:
        arguments = ("run", "+experiment=mine", "hydra.run.dir=outputs/here")
        assert here(*arguments, cwd=project).returncode == 0
        simulator.reset()
        write_jsonl(project / "data" / "rows.jsonl", texts(8))
        found = here(*arguments, "stages.vectors.where='n < 100'", cwd=project)
        assert found.returncode == 0, found.stderr
        assert totals(simulator)["received"] == 1  # the two new rows' vectors; both are skipped by the other stage
        assert "resuming" in found.stderr
        assert len(run_folders(project)) == 1

    def test_the_link_to_the_latest_run_is_followed(self, project: Path, simulator: Simulator) -> None:
        assert here("run", "+experiment=mine", cwd=project).returncode == 0
        simulator.reset()
        found = here("run", "+experiment=mine", "hydra.run.dir=outputs/mine/latest", cwd=project)
        assert found.returncode == 0, found.stderr
        assert totals(simulator)["received"] == 0
        (folder,) = run_folders(project)
        assert (project / "outputs" / "mine" / "latest").resolve() == folder
        assert f"resume {folder.relative_to(project)} " in found.stderr

    @pytest.mark.long
    def test_runs_that_begin_together_have_folders_of_their_own(self, project: Path) -> None:
        arguments = command("run", "+experiment=mine")
        started = [
            subprocess.Popen(arguments, cwd=project, env=environment(), stderr=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        said = [process.communicate(timeout=COMMAND_S)[1] for process in started]
        assert [process.returncode for process in started] == [0] * 4, said
        assert len(run_folders(project)) == 4

    def test_overrides_need_no_plus(self, project: Path) -> None:
        found = here(
            "run", "+experiment=mine", "stages.answers.max_parallel_requests=1", "models.llama.params.seed=7",
            "source.limit=2", "keep_errors=true", "deployments.gpu-1.weight=2", "store.threads=1", cwd=project,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        (folder,) = run_folders(project)
        config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
        assert config["stages"]["answers"]["max_parallel_requests"] == 1
        assert config["models"]["llama"]["params"] == {"temperature": 0.2, "seed": 7}
        assert ask(folder, "SELECT count(*) FROM results") == [(2,)]

    def test_a_sweep_makes_a_run_for_each_value(self, project: Path, simulator: Simulator) -> None:
        found = here("run", "-m", "+experiment=mine", "stages.answers.max_parallel_requests=2,4", cwd=project)
        assert found.returncode == 0, found.stderr
        folders = run_folders(project)
        windows = {
            yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())["stages"]["answers"][
                "max_parallel_requests"
            ]
            for folder in folders
        }
        assert len(folders) == 2
        assert windows == {2, 4}
        assert found.stdout == ""
        assert totals(simulator, "chat")["received"] == 10
        assert "stages.answers.max_parallel_requests=4" in found.stderr

    def test_the_composed_config_goes_to_stdout(self, project: Path, simulator: Simulator) -> None:
        found = here("run", "+experiment=mine", "stages.answers.max_parallel_requests=9", "--cfg", "job", cwd=project)
        assert found.returncode == 0
        config = yaml.safe_load(found.stdout)
        assert config["stages"]["answers"]["max_parallel_requests"] == 9
        assert config["store"]["commit_interval"] == 0.1
        assert found.stderr == ""
        assert totals(simulator)["received"] == 0
        assert run_folders(project) == []

    def test_failed_rows_end_with_3_and_a_way_to_look_at_them(self, project: Path, start_simulator: Start) -> None:
        refusing = start_simulator(filter_marker="number 2 ")
        overrides = (f"deployments.gpu-{number}.api_base={refusing.url}" for number in (0, 1))
        found = here("run", "+experiment=mine", *overrides, cwd=project)
        assert found.returncode == 3
        assert "finished, with failed rows" in found.stderr
        assert "content_filter" in found.stderr
        (folder,) = run_folders(project)
        assert f"infermesh resume {folder.relative_to(project)}" in found.stderr

    def test_a_guard_ends_with_4_and_the_command_that_goes_on_without_it(
        self, project: Path, start_simulator: Start
    ) -> None:
        simulator = start_simulator(faults={"server_error": 1.0})
        mapping = experiment(simulator.url, {"answers": generate()}, source={"path": "data/rows.jsonl"})
        mapping["stages"]["chunks"] = {"kind": "sql", "query": "SELECT text AS chunk FROM answers"}
        mapping["stages"]["vectors"] = {"model": "m", **embed("{{ chunks.chunk }}")}
        write_experiment(project, mapping)
        found = here("run", "+experiment=mine", "models.m.max_retries=0", "guards.max_errors=1", cwd=project)
        assert found.returncode == 4, found.stderr
        (folder,) = run_folders(project)
        assert "chunks: not asked yet" in here("status", cwd=project).stdout
        # Nobody knows how many rows the query makes.
        assert re.search(r"more than [\w ]+ left|time left not known yet", found.stderr)
        assert here("resume", cwd=project).returncode == 4  # it is unfinished, and keeps its guard
        (line,) = [line for line in found.stderr.splitlines() if line.startswith("  continue ")]
        argv = shlex.split(line.removeprefix("  continue "))
        assert argv[-2:] == ["guards.max_errors=null", f"hydra.run.dir={folder.relative_to(project)}"]
        assert here(*argv[1:], cwd=project).returncode == 3
        assert len(run_folders(project)) == 1

    def test_a_config_folder_elsewhere(self, project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Paths are looked up from the working directory, then from the folder that the configs came from."""
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        found = here("run", "--config-dir", str(project / "conf"), "+experiment=mine", cwd=elsewhere)
        assert found.returncode == 0, found.stderr
        assert len(run_folders(elsewhere)) == 1


BAD: list[tuple[list[str], list[str]]] = [
    (["stages.answers.max_parallel_request=4"], ["stages.answers.max_parallel_request: unknown key. Did you mean"]),
    (["stages.answer.max_parallel_requests=4"], ["stages.answer", "Did you mean 'stages.answers'?"]),
    (["models.llama.deployments=[gpu-2]"], ["models.llama.deployments: no deployment 'gpu-2'. Did you mean"]),
    (["stages.answers.model=lama"], ["stages.answers.model: no model 'lama'. Did you mean 'llama'?"]),
    (["stages.answers.prompt=prompts/anser.jinja"], ["stages.answers.prompt: no file", "'prompts/answer.jinja'?"]),
    (["stages.vectors.text='{{ txt }}'"], ["stages.vectors.text", "'txt' is neither a column", "Did you mean 'text'?"]),
    (["stages.vectors.where='nn > 1'"], ["stages.vectors.where", "'nn'"]),
    (["source.path=data/row.jsonl"], ["source.path: no file matches", "Did you mean 'data/rows.jsonl'?"]),
    (["keep_error=true"], ["keep_error", "Did you mean 'keep_errors'?"]),
    (["deployments.gpu-0.api_key=sk-0123456789abcdefghij"], ["deployments.gpu-0.api_key", "api_key_env"]),
    (["deployments.gpu-0.api_key_env=NO_SUCH_KEY"], ["NO_SUCH_KEY"]),
    (["stages.vectors.text='{{ answers.text }}'", "stages.answers.where='vectors.embedding is null'"], ["cycle"]),
]  # fmt: skip


class TestMistakes:
    @pytest.mark.parametrize(("overrides", "words"), BAD, ids=[overrides[0].split("=")[0] for overrides, _ in BAD])
    def test_one_line_that_helps_and_nothing_sent_or_left(
        self, project: Path, simulator: Simulator, overrides: list[str], words: list[str]
    ) -> None:
        found = here("run", "+experiment=mine", *overrides, cwd=project)
        assert found.returncode == 1
        assert found.stdout == ""
        lines = found.stderr.strip().splitlines()
        assert [line for line in lines if line.startswith("error: ")], found.stderr
        assert "Error executing job" not in found.stderr  # Hydra's own words for it, with every override
        assert "Traceback" not in found.stderr
        assert all(word in found.stderr for word in words), found.stderr
        assert totals(simulator)["received"] == 0
        assert not [path for path in (project / "outputs").rglob("*") if path.is_file() or path.is_symlink()]
        assert not list((project / "outputs").glob("*/*"))
        assert "sk-0123456789abcdefghij" not in found.stderr

    def test_the_folder_of_a_run_that_started_in_the_same_second_stays(self, project: Path) -> None:
        declared = yaml.safe_load((project / "conf" / "experiment" / "mine.yaml").read_text())
        write_experiment(project, {**declared, "hydra": {"run": {"dir": "outputs/mine/now"}}})
        other = project / "outputs" / "mine" / "now" / ".hydra" / "config.yaml"
        other.parent.mkdir(parents=True)
        other.touch()
        assert here("run", "+experiment=mine", "stages.answers.model=lama", cwd=project).returncode == 1
        assert [path for path in (project / "outputs").rglob("*") if path.is_file()] == [other]

    def test_no_experiment(self, tmp_path: Path) -> None:
        found = here("run", cwd=tmp_path)
        assert found.returncode == 2
        assert "quickstart" in found.stderr

    @pytest.mark.parametrize("arguments", [["--no-such-flag"], ["x", "y"]])
    def test_usage(self, tmp_path: Path, arguments: list[str]) -> None:
        assert here("status" if len(arguments) == 2 else "runs", *arguments, cwd=tmp_path).returncode == 2

    def test_an_experiment_that_there_is_not(self, project: Path) -> None:
        found = here("run", "+experiment=quickstat", cwd=project)
        assert found.returncode == 1
        assert "no such experiment. Did you mean 'quickstart'?" in found.stderr

    def test_an_experiment_whose_yaml_does_not_parse(self, project: Path) -> None:
        (project / "conf" / "experiment" / "broken.yaml").write_text("# @package _global_\nname: [\n")
        found = here("run", "+experiment=broken", cwd=project)
        assert found.returncode == 1
        assert "broken.yaml" in found.stderr
        assert "Traceback" not in found.stderr

    def test_an_experiment_without_its_first_line(self, project: Path) -> None:
        """``# @package _global_`` is easily forgotten; then everything stands below ``experiment``."""
        text = (project / "conf" / "experiment" / "mine.yaml").read_text()
        (project / "conf" / "experiment" / "mine.yaml").write_text(text.replace("# @package _global_\n", ""))
        found = here("run", "+experiment=mine", cwd=project)
        assert found.returncode == 1
        assert "# @package _global_" in found.stderr

    def test_a_wrong_override_of_a_finished_run_leaves_its_config(self, project: Path) -> None:
        arguments = ("run", "+experiment=mine", "hydra.run.dir=outputs/here")
        assert here(*arguments, cwd=project).returncode == 0
        before = (project / "outputs" / "here" / ".hydra" / "config.yaml").read_text()
        assert here(*arguments, "stages.vectors.text='{{ txt }}'", cwd=project).returncode == 1
        assert (project / "outputs" / "here" / ".hydra" / "config.yaml").read_text() == before


SECRET = "correct-horse-battery-staple"


class TestSecrets:
    @pytest.fixture
    def guarded(self, tmp_path: Path, start_simulator: Start) -> Path:
        """A project whose service asks for a key."""
        write_jsonl(tmp_path / "rows.jsonl", texts(3))
        mapping: dict[str, Any] = experiment(
            start_simulator(api_key=SECRET, filter_marker="number 2 ").url, {"a": generate(), "v": embed()}
        )
        mapping["deployments"]["d"]["api_key_env"] = "MY_SERVICE_KEY"
        write_experiment(tmp_path, mapping)
        return tmp_path

    @staticmethod
    def holds_secret(root: Path) -> list[Path]:
        return [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]

    def test_a_key_of_the_environment_is_used_and_written_nowhere(self, guarded: Path) -> None:
        found = infermesh("run", "+experiment=mine", cwd=guarded, MY_SERVICE_KEY=SECRET)
        assert found.returncode == 3, found.stderr  # one row is refused by the filter
        (folder,) = run_folders(guarded)
        assert ask(folder, "SELECT count(*) FROM a WHERE status = 'done'") == [(2,)]
        assert SECRET not in found.stderr + found.stdout
        assert self.holds_secret(guarded) == []

    def test_a_key_of_a_file(self, guarded: Path) -> None:
        (guarded / ".env").write_text(f"# keys\nMY_SERVICE_KEY={SECRET}\n")
        found = here("run", "--env-file", ".env", "+experiment=mine", cwd=guarded)
        assert found.returncode == 3, found.stderr
        assert self.holds_secret(guarded) == [guarded / ".env"]

    def test_the_environment_goes_before_the_file(self, guarded: Path) -> None:
        (guarded / ".env").write_text("MY_SERVICE_KEY=another\n")
        found = here("run", "--env-file", ".env", "+experiment=mine", cwd=guarded, MY_SERVICE_KEY=SECRET)
        assert found.returncode == 3, found.stderr

    def test_a_wrong_key_is_told_without_being_shown(self, guarded: Path) -> None:
        found = here("run", "+experiment=mine", cwd=guarded, MY_SERVICE_KEY="wrong-but-secret-too")
        assert found.returncode == 3
        assert "authentication" in found.stderr
        assert "wrong-but-secret-too" not in found.stderr
        assert not [
            path for path in guarded.rglob("*") if path.is_file() and b"wrong-but-secret-too" in path.read_bytes()
        ]

    def test_no_such_file(self, guarded: Path) -> None:
        found = here("run", "--env-file", "none.env", "+experiment=mine", cwd=guarded)
        assert found.returncode == 2
        assert "none.env" in found.stderr
