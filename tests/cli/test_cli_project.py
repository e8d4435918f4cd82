"""``infermesh init``, ``simulate``, ``--version``, ``--help``, and what an installed package brings along."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tomllib
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import infermesh as package
from infermesh.cli.init import TEMPLATES
from infermesh.config.compose import compose
from infermesh.config.declaration import declare
from infermesh.config.project import shipped_files
from tests.support import COMMAND_S, ask, command, environment, here, infermesh, run_folders

ROOT = Path(__file__).resolve().parents[2]


class TestInit:
    def test_a_new_project_runs_at_once(self, tmp_path: Path) -> None:
        found = here("init", "My Project", cwd=tmp_path)
        assert (found.returncode, found.stdout) == (0, "")
        assert "cd 'My Project' && infermesh run +experiment=reviews" in found.stderr
        project = tmp_path / "My Project"
        found = infermesh("run", "+experiment=reviews", cwd=project)
        assert found.returncode == 0, found.stderr
        (folder,) = run_folders(project)
        query = "SELECT count(summaries_text), count(*) FILTER (vectors_status = 'done') FROM results"
        assert ask(folder, query) == [(4, 6)]

    @pytest.mark.parametrize("template", TEMPLATES)
    def test_a_template_is_the_example_and_shadows_nothing_that_is_shipped(self, tmp_path: Path, template: str) -> None:
        """tests/test_examples.py runs them."""
        assert here("init", ".", "--template", template, cwd=tmp_path).returncode == 0
        example = ROOT / "examples" / template
        assert (tmp_path / "README.md").read_text() == (example / "README.md").read_text()
        assert [path.name for path in (tmp_path / "conf").rglob("*.yaml")] == [f"{template}.yaml"]
        assert not (ROOT / "conf" / "experiment" / f"{template}.yaml").exists()
        written = (tmp_path / "conf" / "experiment" / f"{template}.yaml").read_text()
        (override,) = set(re.findall(rf"infermesh run \+experiment={template} (models\.\S+)", written))
        composed = compose([f"+experiment={template}", override], cwd=tmp_path)
        model = override.split(".")[1]
        entry = declare(composed.mapping, composed.roots).experiment.deployments[model]
        assert (entry.model, entry.api_base) == (override.split("=")[1], None)

    def test_two_templates_in_one_folder(self, tmp_path: Path) -> None:
        for template in TEMPLATES:
            found = here("init", ".", "--template", template, cwd=tmp_path)
            kept = re.findall(r"^kept +(.+)$", found.stderr, re.M)
            assert set(kept) <= {
                "README.md",
                "conf/experiment.schema.json",
                ".gitignore",
                ".env.example",
                "outputs/.gitignore",
            }

    def test_files_that_are_there_are_kept(self, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("mine")
        found = here("init", ".", cwd=tmp_path)
        assert found.returncode == 0
        assert (tmp_path / "README.md").read_text() == "mine"
        assert "kept    README.md" in found.stderr
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert here("init", ".", cwd=tmp_path).returncode == 0
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_a_template_that_there_is_not(self, tmp_path: Path) -> None:
        found = here("init", "p", "--template", "clasify", cwd=tmp_path)
        assert found.returncode == 2
        assert "--template clasify: no such template. Did you mean 'classify'?" in found.stderr
        assert not (tmp_path / "p").exists()

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("x")
        found = here("init", "taken", cwd=tmp_path)
        assert found.returncode == 1
        assert "taken is a file" in found.stderr


class TestHelp:
    def test_version(self, tmp_path: Path) -> None:
        found = here("--version", cwd=tmp_path)
        assert found.stdout.strip() == package.__version__
        assert package.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    @pytest.mark.parametrize("name", ["run", "resume", "sql", "status", "runs", "init", "simulate"])
    def test_every_command_has_an_example(self, tmp_path: Path, name: str) -> None:
        found = here(name, "--help", cwd=tmp_path)
        assert found.returncode == 0
        assert f"infermesh {name}" in found.stdout
        assert "Example" in found.stdout

    @pytest.mark.parametrize("arguments", [["no-such-command"], ["sql"], ["sql", "select 1", "--frmat", "csv"]])
    def test_usage_errors_end_with_2(self, tmp_path: Path, arguments: list[str]) -> None:
        found = here(*arguments, cwd=tmp_path)
        assert found.returncode == 2
        assert found.stdout == ""
        assert found.stderr


class TestSimulate:
    def test_it_serves_until_interrupted(self, tmp_path: Path) -> None:
        process = subprocess.Popen(
            command("simulate", "embedding_dimensions=3", "faults.server_error=0"),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            with process.stdout as lines:
                address = urlsplit(lines.readline().strip())
                connection = HTTPConnection(str(address.hostname), address.port, timeout=10)
                connection.request("POST", "/v1/embeddings", json.dumps({"model": "m", "input": "x"}))
                answer = json.loads(connection.getresponse().read())
                connection.close()
                assert len(answer["data"][0]["embedding"]) == 3
                process.send_signal(signal.SIGINT)
                assert process.wait(COMMAND_S) == 0
        finally:
            process.kill()
            process.wait()

    @pytest.mark.parametrize(
        ("setting", "words"),
        [("latency=1", "Did you mean 'latency_s'?"), ("latency_s=-1", "latency_s"), ("faults.hnag=1", "faults.hang")],
    )
    def test_a_wrong_setting(self, tmp_path: Path, setting: str, words: str) -> None:
        found = here("simulate", setting, cwd=tmp_path)
        assert (found.returncode, found.stdout) == (2, "")
        assert words in found.stderr

    def test_the_settings_are_listed(self, tmp_path: Path) -> None:
        found = here("simulate", "--list", cwd=tmp_path)
        assert "faults.rate_limit=0.0" in found.stdout
        assert "latency_s=0.0" in found.stdout


class TestPackage:
    def test_everything_that_the_quickstart_names_is_shipped(self) -> None:
        pipeline = ROOT / "pipelines" / "quickstart"
        rows = [json.loads(line) for line in (pipeline / "data" / "tickets.jsonl").read_text().splitlines()]
        clips = [row["audio"] for row in rows if row["audio"] is not None]
        assert len(clips) == 6
        assert all((ROOT / clip).is_file() for clip in clips)
        assert set(clips) <= shipped_files()
