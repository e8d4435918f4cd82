"""The commands as users know them, against the simulated service; as processes where streams or codes are the point."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from infermesh.simulator import Simulator
from tests.e2e.oneshot_shell import Shell
from tests.support import totals, wav, write_jsonl

KEY = "sk-aaaaaaaaaaaaaaaaaaaaaaaa"


@pytest.fixture
def shell(tmp_path: Path, simulator: Simulator) -> Shell:
    return Shell(tmp_path, simulator.url)


def rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


class TestOneAnswer:
    def test_a_prompt(self, shell: Shell) -> None:
        done = shell.run("generate", "--prompt", "Hello")
        assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")

    def test_a_text(self, shell: Shell) -> None:
        done = shell.here("embed", "--text", "hello world")
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)) == 64

    def test_a_clip_and_several(self, shell: Shell) -> None:
        (shell.folder / "recording.wav").write_bytes(wav("Good morning."))
        done = shell.here("transcribe", "recording.wav")
        assert (done.returncode, done.stdout) == (0, "Good morning.\n")
        done = shell.here("transcribe", "recording.wav", "missing.wav")
        assert done.returncode == 3
        first, second = rows(done.stdout)
        assert (first["path"], first["text"], first["language"]) == ("recording.wav", "Good morning.", "en")
        assert "does not exist" in str(second["error"])

    def test_files_of_the_command_line_may_be_anywhere(
        self, shell: Shell, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Those that rows name may not, unless their folder is allowed."""
        clip = tmp_path_factory.mktemp("elsewhere") / "there.wav"
        clip.write_bytes(wav("Elsewhere."))
        write_jsonl(shell.folder / "in.jsonl", [{"path": str(clip)}])
        for given in (str(clip), os.path.relpath(clip, shell.folder)):
            assert shell.here("transcribe", given).stdout == "Elsewhere.\n"
        bench = ("bench", "transcribe", "--requests", "2", "--warmup", "0", "--concurrency", "1")
        assert shell.here(*bench, str(clip)).returncode == 0
        for command in (("transcribe",), bench):
            done = shell.here(*command, "--input-jsonl", "in.jsonl")
            assert done.returncode != 0
            assert f"allow_paths: ['{clip.parent}']" in done.stdout + done.stderr
            done = shell.here(*command, "--input-jsonl", "in.jsonl", "--allow-path", str(clip.parent))
            assert done.returncode == 0, done.stderr
        write_jsonl(clip.parent / "beside.jsonl", [{"path": "there.wav"}])
        for command in (("transcribe",), bench):
            done = shell.here(*command, "--input-jsonl", str(clip.parent / "beside.jsonl"))
            assert done.returncode == 0, done.stderr

    def test_parsed_json(self, shell: Shell) -> None:
        (shell.folder / "shape.json").write_text(
            json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
        )
        done = shell.here("generate", "--prompt", "A number.", "--response-format", "shape.json", "--parse-json")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout)["n"], int)

    def test_replicas(self, shell: Shell, start_simulator: Callable[..., Simulator]) -> None:
        other = start_simulator()
        bases = ("--api-base", shell.url, "--api-base", other.url, "--api-base", other.url)
        done = shell.here("generate", "--model", "llama-3-8b", *bases, "--prompt", "Hello", model=False)
        assert (done.returncode, done.stdout) == (0, "Hello\n")

    def test_a_toml_file_of_deployments(self, shell: Shell) -> None:
        toml = shell.folder / "deployments.toml"
        entry = '[deployments.gpu-{n}]\nmodel = "hosted_vllm/meta-llama/Meta-Llama-3-8B-Instruct"\napi_base = "{url}"\n'
        toml.write_text("# two\n" + "".join(entry.format(n=n, url=shell.url) for n in range(2)))
        asked = ("generate", "--model", "llama-3-8b", "--deployments-toml", "deployments.toml", "--prompt", "Hello")
        done = shell.here(*asked, "--routing-strategy", "least-busy", model=False)
        assert (done.returncode, done.stdout) == (0, "Hello\n")
        toml.write_text(entry.format(n=0, url=shell.url) + "max_paralel_requests = 3\n")
        done = shell.here(*asked, model=False)
        assert done.returncode == 1
        assert "max_paralel_requests: unknown key. Did you mean 'max_parallel_requests'?" in done.stderr
        toml.write_text(entry.format(n=0, url=shell.url) + f'api_key = "{KEY}"\n')
        done = shell.here(*asked, model=False)
        assert done.returncode == 1
        assert "api_key_env" in done.stderr
        assert KEY not in done.stderr

    def test_an_env_file_and_the_embedded_simulator(self, shell: Shell) -> None:
        (shell.folder / ".env").write_text("OPENAI_API_KEY=nobody\n")
        asked = ("generate", "--model", "any", "--api-base", "simulator", "--env-file", ".env", "--prompt", "Hello")
        done = shell.run(*asked, model=False)
        assert (done.returncode, done.stdout) == (0, "Hello\n"), done.stderr

    def test_a_failed_request(self, tmp_path: Path, start_simulator: Callable[..., Simulator]) -> None:
        done = Shell(tmp_path, start_simulator(filter_marker="bomb").url).here("generate", "--prompt", "a bomb")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")

    @pytest.mark.parametrize("flag", ["--api-key", "--prompt", "--system"])
    def test_a_key_on_the_command_line(self, shell: Shell, simulator: Simulator, flag: str) -> None:
        done = shell.here("generate", *(("--prompt", "x") if flag != "--prompt" else ()), flag, KEY)
        assert done.returncode == 2
        assert "visible to" in done.stderr
        assert KEY not in done.stderr
        assert totals(simulator)["received"] == 0

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("generate",), "--prompt"),
            (("transcribe", "a.wav", "--input-jsonl", "x.jsonl"), "either"),
            (("generate", "--prompt", "same", "--input-jsonl", "x.jsonl"), "template"),
            (("generate", "--input-jsonl", "x.txt"), "expected a .jsonl"),
            (("generate", "--input-jsonl", "x.jsonl", "--output-jsonl", "y.csv"), ".parquet"),
            (("generate", "--prompt", "x", "--resume"), "--resume"),
            (("generate", "--prompt", "x", "--endpoint", "chat"), "chat_completion"),
        ],
    )
    def test_usage(self, shell: Shell, arguments: tuple[str, ...], says: str) -> None:
        done = shell.here(*arguments)
        assert done.returncode == 2, done.stderr
        assert says in done.stderr
        assert not list(shell.folder.iterdir())


class TestFiles:
    def test_a_row_of_each_kind_and_a_malformed_line(self, shell: Shell) -> None:
        write_jsonl(
            shell.folder / "in.jsonl",
            [
                {"prompt": "One."},
                {"messages": [{"role": "user", "content": "Two."}]},
                {"responses_input": "Three."},
                "{not json",
                {"text": "nothing to ask"},
            ],
        )
        done = shell.here("generate", "--input-jsonl", "in.jsonl", "--output-jsonl", "out.jsonl", "--max-tokens", "9")
        assert done.returncode == 3, done.stderr
        assert done.stdout == ""
        found = shell.lines("out.jsonl")
        assert [row["output_text"] for row in found] == ["One.", "Two.", "Three.", None, None]
        assert set(found[0]) == {
            *("_index", "output_text", "output_parsed", "token_usage", "request_id", "finish_reason", "error"),
            "error_type",
        }
        assert found[0]["token_usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        assert found[0]["finish_reason"] == "stop"
        assert "line 4" in found[3]["error"]
        assert "prompt, messages, responses_input" in found[4]["error"]
        asked = shell.here("sql", "select count(*) as n from results", "--run", "out.jsonl.infermesh", model=False)
        assert asked.stdout == "n\n5\n"
        resumed = shell.here("resume", "out.jsonl.infermesh", model=False)
        assert resumed.returncode == 1
        assert "--resume" in resumed.stderr

    def test_a_command_that_can_only_fail_stops(self, shell: Shell, start_simulator: Callable[..., Simulator]) -> None:
        shell.url = start_simulator(api_key="right").url
        write_jsonl(shell.folder / "in.jsonl", [{"text": f"Row {n}."} for n in range(100)])
        line = ("embed", "--input-jsonl", "in.jsonl", "--output-jsonl", "out.jsonl", "--max-parallel-requests", "2")
        one = ("--micro-batch-size", "1")
        stopped = shell.here(*line, *one)
        assert stopped.returncode == 4
        assert "--first-errors is 20" in stopped.stderr
        assert "guards." not in stopped.stderr.partition("stopped by a guard")[2]
        assert shell.here(*line, *one, "--first-errors", "0").returncode == 3
        shell.environ["HOSTED_VLLM_API_KEY"] = "right"
        assert shell.here(*line).returncode == 0

    @pytest.mark.long
    def test_csv_parquet_and_stdin(self, shell: Shell) -> None:
        (shell.folder / "in.csv").write_text('text,n\n"one, two",1\nthree,2,4\nfour,3\n')
        done = shell.here("embed", "--input-jsonl", "in.csv", "--output-jsonl", "out.parquet")
        assert done.returncode == 3, done.stderr
        with duckdb.connect() as connection:
            found = connection.execute(
                f"SELECT _index, len(embedding), error_type FROM '{shell.folder / 'out.parquet'}' ORDER BY 1"
            ).fetchall()
        assert found == [(0, 64, None), (1, None, "malformed_input"), (2, 64, None)]
        (shell.folder / "in.csv").write_text('text,n\n"one, two",1\nthree,2\nfour,3\n')
        done = shell.here("embed", "--input-jsonl", "in.csv", "--output-jsonl", "out.parquet", "--resume")
        assert done.returncode == 0, done.stderr
        done = shell.here("embed", "--input-jsonl", "out.parquet", "--text", "{{ request_id }}")
        assert done.returncode == 0, done.stderr
        assert {len(row["embedding"]) for row in rows(done.stdout)} == {64}  # type: ignore[arg-type]
        command = ("generate", "--input-jsonl", "-", "--output-jsonl", "piped.jsonl")
        done = shell.run(*command, stdin='{"prompt": "From a pipe."}\n')
        assert done.returncode == 0, done.stderr
        assert shell.run(*command, "--resume").returncode == 0
        assert [row["output_text"] for row in shell.lines("piped.jsonl")] == ["From a pipe."]

    def test_clips_in_a_file_and_on_the_command_line(self, shell: Shell) -> None:
        for name in ("a", "b"):
            (shell.folder / f"{name}.wav").write_bytes(wav(f"Clip {name}."))
        write_jsonl(shell.folder / "in.jsonl", [{"path": "a.wav"}, {"path": "none.wav"}])
        done = shell.here("transcribe", "--input-jsonl", "in.jsonl", "--output-jsonl", "out.jsonl")
        assert done.returncode == 3, done.stderr
        first, second = shell.lines("out.jsonl")
        assert (first["path"], first["text"], first["language"]) == ("a.wav", "Clip a.", "en")
        assert first["duration_s"] > 0
        assert second["path"] == "none.wav"
        assert second["error_type"] == "input"
        done = shell.here("transcribe", "a.wav", "b.wav", "--output-jsonl", "clips.jsonl")
        assert done.returncode == 0, done.stderr
        assert [row["text"] for row in shell.lines("clips.jsonl")] == ["Clip a.", "Clip b."]

    def test_templates_and_a_checkpoint_folder(self, shell: Shell) -> None:
        write_jsonl(shell.folder / "in.jsonl", [{"name": "Ada"}, {"name": "Bo"}])
        shell.environ["INFERMESH_CHECKPOINT_DIR"] = str(shell.folder / "kept")
        files = ("--input-jsonl", "in.jsonl", "--output-jsonl", "out.jsonl")
        done = shell.here("generate", "--prompt", "Hello {{ name }}.", *files)
        assert done.returncode == 0, done.stderr
        assert [row["output_text"] for row in shell.lines("out.jsonl")] == ["Hello Ada.", "Hello Bo."]
        (folder,) = (shell.folder / "kept").iterdir()
        assert folder.name.startswith("out.jsonl-")
        assert not (shell.folder / "out.jsonl.infermesh").exists()
        changed = shell.here("generate", "--prompt", "Bye {{ name }}.", *files, "--resume")
        assert changed.returncode == 1
        assert "prompt: 'Hello {{ name }}.' → 'Bye {{ name }}.'" in changed.stderr

    def test_a_closed_pipe_ends_quietly(self, shell: Shell) -> None:
        write_jsonl(shell.folder / "in.jsonl", [{"prompt": f"Number {n}. " * 50} for n in range(2000)])
        process = subprocess.Popen(
            shell.argv(["generate", "--input-jsonl", "in.jsonl"]),
            cwd=shell.folder,
            env=shell.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["error"] is None
        process.stdout.close()
        stderr = process.stderr.read()
        process.stderr.close()
        assert process.wait(30) == 0
        assert "Error" not in stderr
        assert "Broken" not in stderr


class TestBench:
    @pytest.mark.long
    def test_the_sweep_finds_the_capacity(self, tmp_path: Path, start_simulator: Callable[..., Simulator]) -> None:
        shell = Shell(tmp_path, start_simulator(latency_s=0.3, capacity=8).url)
        done = shell.run(
            *("bench", "generate", "--prompt", "Write a haiku.", "--warmup", "4", "--requests", "32"),
            *("--concurrency", "4,8,16", "--output-json", "bench.json", "--plot", "bench.html"),
        )
        assert done.returncode == 0, done.stderr
        *levels, last = done.stdout.splitlines()
        assert [line.split()[0] for line in levels] == ["c=4", "c=8", "c=16"]
        assert all("err=0/32" in line for line in levels)
        assert last == "recommended_max_parallel_requests=8"
        figures = json.loads((tmp_path / "bench.json").read_text())
        assert figures["recommended_max_parallel_requests"] == 8
        assert [level["concurrency"] for level in figures["levels"]] == [4, 8, 16]
        for level in figures["levels"]:  # the service counts four tokens in its answer
            assert level["completion_tokens_per_s"] == pytest.approx(4 * level["rps"], rel=0.01)
            assert level["prompt_tokens_per_s"] > level["rps"]
        page = (tmp_path / "bench.html").read_text()
        assert '"label":"recommended: 8"' in page
        assert "Recommended max_parallel_requests: 8." in page

    def test_a_picture_that_is_no_page_is_refused_before_anything_is_sent(
        self, shell: Shell, simulator: Simulator
    ) -> None:
        before = totals(simulator)["received"]
        flags = ("--prompt", "x", "--requests", "2", "--warmup", "0", "--concurrency", "1")
        done = shell.here("bench", "generate", *flags, "--plot", "b.svg")
        assert done.returncode == 1
        assert "--plot b.svg: expected a .html file. Each chart on the page has a button" in done.stderr
        assert totals(simulator)["received"] == before
        assert shell.here("bench", "generate", *flags, "--plot", "b.html").returncode == 0
        assert "Throughput" in (shell.folder / "b.html").read_text()

    @pytest.mark.parametrize("kind", ["embed", "transcribe"])
    def test_the_other_kinds_from_a_file(self, shell: Shell, kind: str) -> None:
        (shell.folder / "a.wav").write_bytes(wav("Hello."))
        write_jsonl(
            shell.folder / "in.jsonl", [{"text": "one", "path": "a.wav"}, "broken", {"text": "two", "path": "a.wav"}]
        )
        done = shell.here("bench", kind, "--input-jsonl", "in.jsonl", "--requests", "4", "--concurrency", "1,2")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("err=0/4") == 2


@pytest.mark.parametrize(
    "command", ["generate", "embed", "transcribe", "bench generate", "bench embed", "bench transcribe"]
)
def test_help_fits_a_screen(shell: Shell, command: str) -> None:
    shell.environ["COLUMNS"] = "80"
    done = shell.here(*command.split(), "--help", model=False)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) <= 64
    assert any(f"Example: infermesh {command}" in line for line in lines)
    assert "--api-key" not in done.stdout


def test_parsing_asks_nothing_of_the_server(shell: Shell) -> None:
    write_jsonl(shell.folder / "in.jsonl", [{"prompt": "[1, 2]"}, {"prompt": "words"}])
    done = shell.here("generate", "--input-jsonl", "in.jsonl", "--output-jsonl", "out.jsonl", "--parse-json")
    assert done.returncode == 0, done.stderr
    assert [row["output_parsed"] for row in shell.lines("out.jsonl")] == [[1, 2], None]


@pytest.mark.parametrize("prompt", ["{{ no_such_column }}", "{{ text | no_such_filter }}"])
def test_what_never_started_leaves_the_users_folder(shell: Shell, prompt: str) -> None:
    results = shell.folder / "results"
    results.mkdir()
    write_jsonl(shell.folder / "in.jsonl", [{"text": "Hello"}])
    files = ("--input-jsonl", "in.jsonl", "--output-jsonl", "results/out.jsonl")
    assert shell.here("generate", *files, "--prompt", prompt).returncode == 1
    assert list(results.iterdir()) == []


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_mapper_that_changes_the_directory(shell: Shell, name: str) -> None:
    (shell.folder / "leaves_for.py").write_text(
        "import os\ndef mapped(row):\n    os.chdir('/')\n    return {'input': row['text']}\n"
    )
    write_jsonl(shell.folder / "in.jsonl", [{"text": "a"}, {"text": "b"}])
    done = shell.run("generate", "--input", "in.jsonl", "--mapper", "leaves_for:mapped", "--output", name)
    assert done.returncode == 0, done.stderr
    assert (shell.folder / name).stat().st_size > 0
