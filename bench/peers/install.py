"""Installs the peers, each into an environment of its own under .peers, and brings models into their forms. `python -m bench.peers.install`

OpenVINO GenAI and vLLM come as wheels; llama.cpp is compiled from the source in the package of its Python binding, for this machine's
processor, which takes some ten minutes. transformers is there already: the tests use it. vLLM has wheels for few platforms; where it
cannot be installed, that is said, and the comparison goes without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.peers.peer import FOLDER

ROOT = FOLDER.parents[1]
PEERS = ROOT / ".peers"
TORCH = "torch==2.13.0"
DONE = "installed"  # a file in an environment that is complete
LLAMA_CPP_OPTIONS = "-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF"


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment. Raises: RuntimeError, if it is not installed."""
    python = PEERS / peer / "bin" / "python"
    if not python.exists():
        raise RuntimeError(f"{peer} is not installed; run: python -m bench.peers.install")
    return python


def converted(peer: str, source: Path, kind: str) -> Path:
    """The model of a Hugging Face directory in the form of "openvino" or "llama_cpp"; made once."""
    suffix = ".gguf" if peer == "llama_cpp" else ""
    target = PEERS / "models" / f"{peer}-{source.name}-{kind}{suffix}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name("part-" + target.name)
        arguments = [str(source), str(aside), kind]
        if peer == "openvino":
            arguments.append(str(ROOT / "examples" / "demo_model" / "tokenizer.json"))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        command = [str(python_of(peer)), str(FOLDER / f"{peer}_export.py"), *arguments]
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)  # both libraries talk at length
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr[-2000:]}")
        aside.replace(target)
    return target


def is_installed(peer: str) -> bool:
    """Whether a peer has its environment, with everything in it."""
    return (PEERS / peer / DONE).exists()


def main() -> None:
    """Make the environments; what is there already stays."""
    _environment("openvino", [TORCH], [TORCH, "optimum-intel[openvino]", "openvino-genai"])
    # Comes along with optimum and breaks transformers, if it was built for another torch.
    subprocess.run([str(python_of("openvino")), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=True)
    _environment("llama_cpp", ["--no-binary", "llama-cpp-python", "llama-cpp-python"], ["gguf", "safetensors"])
    try:
        _environment("vllm", [TORCH], ["--no-deps", "--only-binary", ":all:", "--requirement", str(FOLDER / "vllm_requirements.txt")])
    except subprocess.CalledProcessError:
        print("vLLM cannot be installed here (see pip's words above); the comparison goes without it.", file=sys.stderr)


def _environment(peer: str, *installs: list[str]) -> None:
    folder = PEERS / peer
    if not folder.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    for packages in installs:
        command = [str(python_of(peer)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run(command, check=True, env={**os.environ, "CMAKE_ARGS": LLAMA_CPP_OPTIONS})
    (folder / DONE).touch()


if __name__ == "__main__":
    main()
