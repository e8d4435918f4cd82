"""The transcribe stage, against a simulated service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from infermesh.errors import ConfigError, InputError
from infermesh.inputs.audio import read_audio
from infermesh.inputs.row_files import RowFiles
from infermesh.simulator import Simulator
from tests.support import Lab, experiment, totals, transcribe, wav, write_jsonl


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


SECRET = b"OPENAI_API_KEY=planted\n"


def outside(lab: Lab) -> Path:
    """A folder beside the project with a clip in it."""
    folder = lab.root.parent / f"{lab.root.name}-elsewhere"
    folder.mkdir()
    (folder / "there.wav").write_bytes(wav("Elsewhere."))
    return folder


def refused(lab: Lab, simulator: Simulator, stage: dict[str, Any], **sections: Any) -> list[str]:
    """Run rows of which nothing may be sent, and return their errors, in the rows' order."""
    lab.run(experiment(simulator.url, {"t": stage}, **sections))
    found = lab.sql("SELECT status, error_type, error FROM t ORDER BY row_id")
    assert {(status, kind) for status, kind, _ in found} == {("error", "input")}
    assert totals(simulator)["received"] == 0
    return [str(error) for *_, error in found]


def test_only_sound_is_sent_for_a_row(lab: Lab, simulator: Simulator) -> None:
    contents = [SECRET, b"ID3_KEY=x", "text".encode("utf-16"), b"\x89PNG\r\n\x1a\n", b"%PDF-1.7"]
    files = {f"{number}/{name}": data for number, data in enumerate(contents) for name in (".env", "clip.wav")}
    for name, data in files.items():
        (lab.root / name).parent.mkdir(exist_ok=True)
        (lab.root / name).write_bytes(data)
    lab.rows([{"audio": name} for name in files])
    for name, error in zip(files, refused(lab, simulator, transcribe()), strict=True):
        assert "neither sound nor a film" in error, name
        assert "flac" in error, name
        assert "planted" not in error, name


@pytest.mark.parametrize("stage", [transcribe(), {"kind": "transcribe", "mapper": "row"}], ids=["template", "mapper"])
def test_a_file_elsewhere_is_refused(
    lab: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, stage: dict[str, Any]
) -> None:
    folder = outside(lab)
    monkeypatch.setenv("HOME", str(folder))
    (lab.root / "link.wav").symlink_to(folder / "there.wav")
    (lab.root / "again.wav").symlink_to("link.wav")
    (lab.root / "linked").symlink_to(folder)
    ways = {
        "absolute": str(folder / "there.wav"),
        "dots": f"../{folder.name}/there.wav",
        "link": "link.wav",
        "linked folder": "linked/there.wav",
        "home": "~/there.wav",
        "link of a link": "again.wav",
    }
    lab.rows([{"audio": name, "path": name} for name in ways.values()])
    errors = refused(lab, simulator, stage)
    assert [way for way, error in zip(ways, errors, strict=True) if f"allow_paths: ['{folder}']" not in error] == []
    lab.run(experiment(simulator.url, {"t": stage}, allow_paths=[str(folder)]))
    assert lab.sql("SELECT status, text FROM t") == [("done", "Elsewhere.")] * len(ways)


def test_what_the_declaration_names_is_sent(lab: Lab, simulator: Simulator) -> None:
    folder = outside(lab)
    (folder / "raw.pcm").write_bytes(b"no known format")
    lab.rows([{"name": "there"}])
    lab.run(
        experiment(
            simulator.url,
            {
                "folder": transcribe(f"{folder}/{{{{ name }}}}.wav"),
                "file": transcribe(str(folder / "raw.pcm")),
                "dots": transcribe(f"../{folder.name}/{{{{ name }}}}.wav"),
                "other": transcribe(f"{folder}/../{{{{ name }}}}.wav"),
            },
        )
    )
    assert totals(simulator)["received"] == 3
    assert lab.one("SELECT status FROM file") == "done"
    assert lab.one("SELECT error_type FROM other") == "input"


def test_a_row_does_not_leave_the_folder_of_its_template(lab: Lab, simulator: Simulator) -> None:
    folder = outside(lab)
    (folder / "clips").mkdir()
    lab.rows([{"name": "../there"}])
    (error,) = refused(lab, simulator, transcribe(f"{folder}/clips/{{{{ name }}}}.wav"))
    assert "allow_paths" in error


@pytest.mark.parametrize("pattern", ["rows.jsonl", "*.jsonl", "**/*.jsonl"])
@pytest.mark.parametrize("name", ["there.wav", "{folder}/there.wav"])
def test_clips_beside_the_source(lab: Lab, simulator: Simulator, pattern: str, name: str) -> None:
    folder = outside(lab)
    write_jsonl(folder / "rows.jsonl", [{"audio": name.format(folder=folder)}])
    lab.run(experiment(simulator.url, {"t": transcribe()}, source={"path": f"{folder}/{pattern}"}))
    assert lab.sql("SELECT status, text FROM t") == [("done", "Elsewhere.")]


def test_a_template_may_name_a_folder_beside_the_source(lab: Lab, simulator: Simulator) -> None:
    folder = outside(lab)
    write_jsonl(folder / "rows" / "rows.jsonl", [{"name": "there"}])
    source = {"path": f"{folder}/rows/rows.jsonl"}
    lab.run(experiment(simulator.url, {"t": transcribe("../{{ name }}.wav")}, source=source))
    assert lab.sql("SELECT status, text FROM t") == [("done", "Elsewhere.")]


def test_what_is_no_file_is_never_opened(lab: Lab, simulator: Simulator) -> None:
    """A pipe would be waited for, a file of /proc says that it is empty and is not."""
    os.mkfifo(lab.root / "pipe.wav")
    (lab.root / "environ.wav").symlink_to("/proc/self/environ")
    (lab.root / "null.wav").symlink_to("/dev/zero")
    (lab.root / "round.wav").symlink_to("round.wav")
    lab.rows([{"n": n, "audio": f"{name}.wav"} for n, name in enumerate(("pipe", "environ", "null", "round"))])
    lab.run(experiment(simulator.url, {"t": transcribe()}, allow_paths=["/proc", "/dev"]))
    assert set(lab.statuses("t").values()) == {"error"}
    assert "empty" in lab.one("SELECT error FROM t WHERE row_id = 1")
    assert totals(simulator)["received"] == 0


def test_a_file_that_is_exchanged_for_a_link_is_not_sent(lab: Lab) -> None:
    """Between the look at the row and the reading of its file."""
    folder = outside(lab)
    files = RowFiles([lab.root])
    (lab.root / "clip.wav").write_bytes(wav())
    files.judge(lab.root / "clip.wav")
    (lab.root / "clip.wav").unlink()
    (lab.root / "clip.wav").symlink_to(folder / "there.wav")
    with pytest.raises(InputError, match="allow_paths"):
        read_audio(lab.root / "clip.wav", files=files)


def test_a_folder_that_is_not_there_is_told_before_the_run(lab: Lab, simulator: Simulator) -> None:
    lab.rows([{"audio": "x.wav"}])
    with pytest.raises(ConfigError, match="allow_paths: no folder 'nowhere'"):
        lab.run(experiment(simulator.url, {"t": transcribe()}, allow_paths=["nowhere"]))


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
