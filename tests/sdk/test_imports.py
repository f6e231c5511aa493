"""The client is a package of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "sqlalchemy", "msgspec", "tokenizers", "kerneld", "memory", "drivers", "syscalls", "cli", "prometheus_client")


def test_importing_the_client_loads_neither_the_tower_nor_anything_heavy() -> None:
    script = f"import sys, kerneld_client, kerneld_client.aio; print([name for name in {HEAVY!r} if name in sys.modules])"
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT / "sdk/python")}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_client_is_typed() -> None:
    assert (ROOT / "sdk/python/kerneld_client/py.typed").exists()
