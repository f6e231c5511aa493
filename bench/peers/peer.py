"""A peer's process as the measuring side sees it. It is stopped between tasks, so that it takes nothing from the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


class Peer:
    """An engine that is ready."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._answer()

    def seconds(self, prompts: Sequence[Sequence[int]], num_output: int) -> float:
        """How long all of these take, begun at once. Raises: RuntimeError, if fewer tokens came than asked for."""
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        print(json.dumps({"prompts": list(prompts), "num_output": num_output}), file=self._process.stdin, flush=True)
        answer = self._answer()
        if answer["num_output"] != num_output:
            raise RuntimeError(f"{self._process.args} gave {answer['num_output']} tokens instead of {num_output}")
        return answer["seconds"]

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        self._process.send_signal(signal.SIGSTOP)
        answer: dict[str, float] = json.loads(line)
        return answer


@contextmanager
def running_peer(python: Path, script: str, *arguments: str) -> Iterator[Peer]:
    """Start a peer's script in its own environment, and end it afterwards."""
    command = [str(python), str(FOLDER / script), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    log = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process:
        try:
            yield Peer(process)
        finally:
            process.kill()
