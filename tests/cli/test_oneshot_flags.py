"""What commands without a declaration print names flags, and only ones that there are."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from infermesh.cli.oneshot.declare import _KEYS, as_flags
from tests.support import here, write_jsonl


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("models.model.max_retries: expected a number", "--max-retries: expected a number"),
        ("limits.account.rpm: expected a number", "--rpm: expected a number"),
        ("for up to 600 s (models.*.max_wait_unreachable)", "for up to 600 s (--max-wait-unreachable)"),
        ("models.model.params.top_k: is sent", "--param top_k: is sent"),
        ("models.model.params.seed: is sent", "--seed: is sent"),
        (
            "stages.generate: params.response_format is sent, but no answer is parsed: write it as the stage's own "
            "key, stages.generate.response_format, and 'parsed' is filled",
            "--param response_format is sent, but no answer is parsed: write --response-format, and 'parsed' is filled",
        ),
        (
            "stages.embed.text: 'txet' is neither a column of the source nor a stage.",
            "--text: 'txet' is no column of the input.",
        ),
        ("source: a.csv: Set source.encoding, to latin-1", "--input-jsonl: a.csv: Set --input-encoding, to latin-1"),
        (
            "source: a.csv is a Parquet file. Set source.format to parquet, or rename it.",
            "--input-jsonl: a.csv is a Parquet file. Rename it.",
        ),
        (
            "stages.generate: the source has a column 'generate' of that name, so a template could mean either. Rename "
            "the stage.",
            "the input has a column 'generate' of that name, so a template could mean either. Rename the column.",
        ),
        ("infermesh resume goes on with it later", "the same command with --resume goes on with it later"),
        ("deployments.h:80.api_base: expected a URL", "--api-base: expected a URL"),
        (
            "deployments.default: no key for m: name another variable in the deployment's api_key_env",
            "default: no key for m: name another variable in api_key_env in a file for --deployments-toml",
        ),
        ("h: 400: the source and guards.md and params.seed", "h: 400: the source and guards.md and params.seed"),
    ],
)
def test_keys_of_a_declaration_become_flags(message: str, said: str) -> None:
    assert as_flags(message) == said


def test_the_keys_of_a_file_of_deployments_stay() -> None:
    message = "deployments.gpu-0.model: missing; it is required."
    assert as_flags(message, toml=True) == message


def test_every_flag_that_may_be_named_is_there(tmp_path: Path) -> None:
    helps = " ".join(here(kind, "--help", cwd=tmp_path, COLUMNS="200").stdout for kind in ("generate", "embed"))
    helps += here("transcribe", "--help", cwd=tmp_path, COLUMNS="200").stdout
    flags = set(re.findall(r"--[a-z][a-z0-9-]+", helps))
    hidden = {"--input", "--api-key", "--paths"}  # another name of one, one that is refused, and arguments
    assert {f"--{key.replace('_', '-')}" for key in _KEYS} - hidden <= flags


def test_a_server_that_is_away_is_waited_for_as_a_flag_says(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "One?"}])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        server = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        files = ("--input-jsonl", "in.jsonl", "--output-jsonl", "out.jsonl")
        model = ("--model", "hosted_vllm/m", "--api-base", server)
        found = here("generate", *model, *files, "--max-wait-unreachable", "0.5", cwd=tmp_path)
    assert found.returncode == 4, found.stderr
    assert "for up to 0.5 s (--max-wait-unreachable)" in found.stderr
    assert "  stopped   --max-wait-unreachable is 0.5 s, and nobody answers: " in found.stderr
    assert "models." not in found.stderr


def test_the_encoding_of_a_csv_file_is_a_flag(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes("prömpt,prompt\n1,Grüße\n".encode("latin-1"))
    model = ("--model", "any", "--api-base", "simulator")
    found = here("generate", *model, "--input-jsonl", "in.csv", cwd=tmp_path)
    assert found.returncode == 1
    assert "in.csv: its first line is not UTF-8 text. Set --input-encoding, to latin-1" in found.stderr
    found = here("generate", *model, "--input-jsonl", "in.csv", "--input-encoding", "latin-1", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "Grüße" in found.stdout
