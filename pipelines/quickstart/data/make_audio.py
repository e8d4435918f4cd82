"""Make the spoken notes of the quickstart from the table of texts below.

Each note is spoken by espeak-ng, resampled by sox to 8 kHz, 8 bit, mono, and given its own words in a RIFF
LIST/INFO ``ICMT`` (comment) chunk, where the simulator reads them. The LIST chunk follows the data chunk, as the RIFF
format allows, so that readers which stop at the samples never meet it.

Run it from anywhere: ``python pipelines/quickstart/data/make_audio.py``
"""

import struct
import subprocess
import tempfile
from pathlib import Path

AUDIO = Path(__file__).parent / "audio"

# file name -> (espeak-ng voice, words per minute, text)
NOTES: dict[str, tuple[str, int, str]] = {
    "note-1.wav": (
        "en-gb",
        165,
        "Hello, my battery died after only ten kilometres. Please call me back.",
    ),
    "note-2.wav": (
        "en-us",
        170,
        "The courier left my parcel with a neighbour, and now nobody can find it. "
        "I need to know where it is before Friday.",
    ),
    "note-3.wav": (
        "de+f3",
        160,
        "Guten Tag. Seit dem letzten Update kann ich mich in der App nicht mehr anmelden. "
        "Mein Fahrrad bleibt verriegelt.",
    ),
    "note-4.wav": (
        "en-gb+f2",
        175,
        "I was charged twice for the same helmet. Please refund one payment.",
    ),
    "note-5.wav": (
        "en-gb-scotland+f4",
        165,
        "I would like to send back a helmet that is too small. Where do I find the return label, "
        "and when will I get my money back?",
    ),
    "note-6.wav": ("en-us+f3", 165, "Thank you so much. The new bike is wonderful."),
}


def chunk(tag: bytes, payload: bytes) -> bytes:
    """Return one RIFF chunk: tag, little-endian size, payload, and a pad byte after an odd payload."""
    return tag + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)


def with_comment(wav: bytes, text: str) -> bytes:
    """Return `wav` with `text` as its ICMT comment (UTF-8, NUL-terminated) behind its last chunk."""
    body = wav[8:] + chunk(b"LIST", b"INFO" + chunk(b"ICMT", text.encode() + b"\0"))
    return chunk(b"RIFF", body)


def main() -> None:
    """Write every note of `NOTES` to the audio folder."""
    AUDIO.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        spoken, small = Path(folder, "spoken.wav"), Path(folder, "small.wav")
        to_8_bit = ["-r", "8000", "-c", "1", "-b", "8", "-e", "unsigned-integer"]
        for name, (voice, speed, text) in NOTES.items():
            subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-w", spoken, text], check=True, timeout=60)
            subprocess.run(["sox", "-R", "-G", spoken, *to_8_bit, small], check=True, timeout=60)
            (AUDIO / name).write_bytes(with_comment(small.read_bytes(), text))


if __name__ == "__main__":
    main()
