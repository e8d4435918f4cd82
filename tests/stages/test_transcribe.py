"""The transcribe stage, against a simulated service."""

from __future__ import annotations

from typing import Any

import pytest

from infermesh.simulator import Simulator
from tests.support import Lab, experiment, totals, transcribe, wav


def clips(lab: Lab, *names: Any) -> None:
    """Rows that name clips; those that end in .wav are written, with their name for words."""
    for name in names:
        if isinstance(name, str) and name.endswith(".wav"):
            path = lab.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wav(f"These are the words of {path.stem}.", seconds=0.5))
    lab.rows([{"n": n, "audio": name} for n, name in enumerate(names)])


def test_a_clips_words(lab: Lab, simulator: Simulator) -> None:
    clips(lab, "audio/one.wav", "audio/two.wav")
    lab.run(experiment(simulator.url, {"t": transcribe()}))
    assert lab.sql("SELECT status, text, language, duration_s FROM t ORDER BY row_id") == [
        ("done", "These are the words of one.", "en", 0.5),
        ("done", "These are the words of two.", "en", 0.5),
    ]


def test_the_path_is_a_template(lab: Lab, simulator: Simulator) -> None:
    clips(lab, "audio/one.wav")
    lab.rows([{"n": 0, "name": "one"}])
    lab.run(experiment(simulator.url, {"t": transcribe("audio/{{ name }}.wav")}))
    assert lab.statuses("t") == {0: "done"}


def test_an_absolute_path(lab: Lab, simulator: Simulator) -> None:
    clips(lab, "one.wav")
    lab.rows([{"n": 0, "audio": str(lab.root / "one.wav")}])
    lab.run(experiment(simulator.url, {"t": transcribe()}))
    assert lab.statuses("t") == {0: "done"}


@pytest.mark.parametrize(
    "name",
    ["none.wav.gone", "", "folder", None, "x" * 5000, "a\x00b", "https://host/clip.mp3", "~nobody/clip"],
    ids=["missing", "empty", "folder", "null", "too long", "nul", "url", "home"],
)
def test_a_clip_that_cannot_be_read_costs_its_row(lab: Lab, simulator: Simulator, name: str | None) -> None:
    clips(lab, "one.wav", name)
    (lab.root / "folder").mkdir()
    outcome = lab.run(experiment(simulator.url, {"t": transcribe()}))
    assert outcome.exit_code == 3
    assert lab.statuses("t") == {0: "done", 1: "error"}
    ((kind, error, attempts),) = lab.sql("SELECT error_type, error, attempts FROM t WHERE row_id = 1")
    assert (kind, attempts) == ("input", 0)
    assert "stages.t.audio" in error
    assert totals(simulator)["received"] == 1


def test_a_clip_that_is_too_large(lab: Lab, simulator: Simulator) -> None:
    clips(lab, "one.wav", "two.wav")
    (lab.root / "two.wav").write_bytes(wav("Long.", seconds=2))
    stage = transcribe(max_transcription_bytes=20_000)
    lab.run(experiment(simulator.url, {"t": stage}))
    assert lab.statuses("t") == {0: "done", 1: "error"}
    ((kind, error),) = lab.sql("SELECT error_type, error FROM t WHERE row_id = 1")
    assert kind == "input"
    assert "max_transcription_bytes" in error
    assert "20,000" in error
    simulator.reset()
    stage["max_transcription_bytes"] = None
    lab.run(experiment(simulator.url, {"t": stage}))
    assert lab.statuses("t") == {0: "done", 1: "done"}
    assert totals(simulator)["received"] == 1


def test_what_is_no_audio_is_refused_by_the_service(lab: Lab, simulator: Simulator) -> None:
    clips(lab, "one.wav")
    (lab.root / "one.wav").write_bytes(wav()[:20])
    lab.run(experiment(simulator.url, {"t": transcribe()}))
    assert lab.sql("SELECT status, error_type FROM t") == [("error", "bad_request")]


def test_parameters_go_along(lab: Lab, simulator: Simulator) -> None:
    clips(lab, "one.wav")
    lab.run(experiment(simulator.url, {"t": transcribe(params={"language": "fr"})}))
    assert lab.one("SELECT language FROM t") == "fr"


def test_an_edited_stage_sends_only_changed_clips(lab: Lab, simulator: Simulator) -> None:
    clips(lab, "one.wav", "two.wav")
    lab.run(experiment(simulator.url, {"t": transcribe(where="n >= 0")}))
    (lab.root / "two.wav").write_bytes(wav("Recorded anew.", seconds=1))
    simulator.reset()
    lab.run(experiment(simulator.url, {"t": transcribe(where="n > -1")}))
    assert totals(simulator)["received"] == 1
    assert lab.one("SELECT text FROM t WHERE row_id = 1") == "Recorded anew."
