"""A real Whisper: speech is heard, forms are taken, and a clip that is none costs its own row."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from infermesh import LMClient
from tests.engines.conftest import Engine
from tests.engines.install import WHISPER
from tests.support import wav


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng, which speaks, is not installed: apt-get install espeak-ng")
    clip = tmp_path_factory.mktemp("speech") / "clip.wav"
    words = "The quick brown fox jumps over the lazy dog."
    subprocess.run(["espeak-ng", "-s", "130", "-w", str(clip), words], check=True)
    return clip


def client(whisper: Engine) -> LMClient:
    return LMClient(f"openai/{WHISPER}", api_base=whisper.base, api_key="x", timeout=120, max_retries=0)


def test_speech(whisper: Engine, speech: Path) -> None:
    with client(whisper) as asking:
        result = asking.transcribe(speech)
    assert "fox" in result.text.lower()


@pytest.mark.parametrize("form", ["json", "verbose_json"])
def test_forms(whisper: Engine, speech: Path, form: str) -> None:
    with client(whisper) as asking:
        assert "dog" in asking.transcribe(speech, response_format=form).text.lower()


def test_a_clip_that_is_none_costs_its_own_row(whisper: Engine, speech: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF of nothing")
    silent = tmp_path / "silent.wav"
    silent.write_bytes(wav())
    with client(whisper) as asking:
        batch = asking.transcribe_batch([speech, broken, speech])
    assert list(batch.failures) == [1]
