"""A daemon with a processor, and the same processor split in two: what comes out is the same, whatever dies or has to make room."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld_client import Client
from tests.e2e.rig import MODEL, DaemonRig, until

PROMPTS = [[11 + idx, 12, 13, 14, 15 + idx] * 30 for idx in range(4)]
ONE_AND_TWO_HALVES = (
    'drivers.devices=[{ name = "one", driver = "cpu", threads = 1, device_bytes = "64MiB" }, '
    '{ name = "halves", driver = "split", threads = 1, device_bytes = "32MiB", options = { shares = "1,2" } }]'
)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[DaemonRig]:
    """A daemon with both devices, the demo model loaded on each."""
    own = DaemonRig(tmp_path, "memory.host_bytes=64MiB", "kerneld.disk_reserve_bytes=0", "kerneld.detach_grace_s=60", ONE_AND_TWO_HALVES)
    own.start()
    yield own
    own.clean_up()


def workers(k: Client) -> dict[str, int]:
    return {worker.device: worker.pid for worker in k.top().workers}


def continuations(k: Client, model: str, num_tokens: int) -> list[tuple[int, ...]]:
    """Greedy, all at once."""
    contexts = [k.alloc(model) for _ in PROMPTS]
    streams = [
        each.infer(tokens=prompt, max_tokens=num_tokens, temperature=0, ignore_eos=True)
        for each, prompt in zip(contexts, PROMPTS, strict=True)
    ]
    return [stream.result().tokens for stream in streams]


def test_a_split_device_gives_what_one_device_gives_and_survives_its_worker(rig: DaemonRig) -> None:
    with rig.connect() as k:
        until(lambda: all(workers(k).values()))
        k.load(MODEL, name="demo", device="one")
        expected = continuations(k, "demo", 80)
        k.unload("demo")
        loaded = k.load(MODEL, name="demo", device="halves")
        assert loaded.device == "halves"
        assert continuations(k, "demo", 80) == expected

        contexts = [k.alloc("demo") for _ in PROMPTS]
        streams = [
            each.infer(tokens=prompt, max_tokens=80, temperature=0, ignore_eos=True) for each, prompt in zip(contexts, PROMPTS, strict=True)
        ]
        until(lambda: k.top().running == len(PROMPTS))
        os.kill(workers(k)["halves"], signal.SIGKILL)
        assert [stream.result().tokens for stream in streams] == expected
        assert not [part for part in k.fsck() if part.problems]


def test_pages_and_weights_of_a_split_device_come_back_from_the_host_tier(rig: DaemonRig) -> None:
    with rig.connect() as k:
        until(lambda: all(workers(k).values()))
        k.load(MODEL, name="demo", device="halves")
        context, other = k.alloc("demo"), k.alloc("demo")
        for each in (context, other):
            each.infer(tokens=PROMPTS[0], max_tokens=40, temperature=0, ignore_eos=True).result()
        golden = other.infer(max_tokens=30, temperature=0, ignore_eos=True).result().tokens
        image = context.checkpoint()
        context.suspend()
        k.unload("demo")
        k.load(MODEL, name="demo", device="halves")
        context.resume()
        result = context.infer(max_tokens=30, temperature=0, ignore_eos=True).result()
        assert result.tokens == golden
        assert result.usage.pages_recomputed == 0
        assert k.verify_image(image).ok
        assert k.restore(image).infer(max_tokens=30, temperature=0, ignore_eos=True).result().tokens == golden
        [event] = [event for event in k.events() if event.name == "ModelLoaded"][-1:]
        assert int(event.facts["host_bytes"]) > 0
