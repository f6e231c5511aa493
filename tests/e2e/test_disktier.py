"""Contexts on disk, with real processes and a real model: they leave memory, outlive everybody, and go on where they were."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kerneld_client import Client, Context
from tests.e2e.conftest import SMALL
from tests.e2e.rig import MODEL, ROOT, DaemonRig, until

PROMPT = "# module {}\nimport os\n\n" + "def run(argument):\n    return argument + 1\n\n" * 30
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[DaemonRig]:
    """A daemon with a host tier for two contexts or so, and a disk tier for all."""
    own = DaemonRig(tmp_path, *SMALL, "memory.host_bytes=8MiB", "memory.slab_bytes=1MiB", "memory.page_file_bytes=256MiB")
    own.start()
    yield own
    own.clean_up()


def begin(k: Client, count: int) -> list[Context]:
    """Contexts with a past of some hundred tokens, each with another beginning."""
    k.load(str(MODEL), name="demo")
    contexts = [k.alloc("demo") for _ in range(count)]
    for idx, context in enumerate(contexts):
        context.infer(PROMPT.format(idx), max_tokens=8, **GREEDY).result()
    return contexts


def goes_on(context: Context) -> tuple[int, ...]:
    """What a context says next."""
    return context.infer(max_tokens=12, **GREEDY).result().tokens


def expected(contexts: list[Context]) -> list[tuple[int, ...]]:
    """What each would say next, told by forks that are gone again."""
    told = []
    for context in contexts:
        child = context.fork()
        told.append(goes_on(child))
        child.free()
    return told


def kernelctl(rig: DaemonRig, *arguments: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-P", "-m", "cli.main", *arguments]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'sdk/python'}", "KERNELD_SOCKET": str(rig.socket), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_a_context_goes_to_disk_and_outlives_the_daemon(rig: DaemonRig) -> None:
    with rig.connect() as k:
        (context,) = begin(k, 1)
        golden = expected([context])

        out = kernelctl(rig, "ctx", "suspend", context.id, "--to", "disk")
        pages = context.stat().pages
        assert "suspended" in out
        assert (pages.device, pages.host, pages.lost) == (0, 0, 0)
        assert pages.disk > 10

    assert rig.stop() == 0
    rig.start()
    with rig.connect() as k:
        k.load(str(MODEL), name="demo")
        again = k.context(context.id)
        assert (again.stat().state, again.stat().pages) == ("suspended", pages)
        again.resume()
        result = again.infer(max_tokens=12, **GREEDY).result()
        assert [result.tokens] == golden
        assert (result.usage.pages_restored, result.usage.pages_recomputed) == (pages.disk, 0)


def test_more_contexts_than_memory_holds_survive_their_worker_and_their_daemon(rig: DaemonRig) -> None:
    with rig.connect() as k:
        contexts = begin(k, 10)
        golden = expected(contexts)
        for context in contexts[:4]:
            context.suspend(to_disk=True)
            context.resume()

        rig.kill_worker(k)
        assert [goes_on(context) for context in contexts[:5]] == golden[:5]

        contexts[6].suspend(to_disk=True)
        rig.kill()
        rig.start()
        contexts[6].resume()
        assert [goes_on(context) for context in contexts[5:]] == golden[5:]


def test_what_is_freed_gives_its_room_on_disk_back(rig: DaemonRig) -> None:
    with rig.connect() as k:
        (context,) = begin(k, 1)
        context.suspend(to_disk=True)
        used = page_file_bytes(rig)
        context.free()
        assert used > 1 << 20
        until(lambda: page_file_bytes(rig) < 8192)


def page_file_bytes(rig: DaemonRig) -> int:
    """What the page file takes on the disk."""
    return (rig.state / "pages").stat().st_blocks * 512
