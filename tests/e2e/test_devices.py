"""One daemon with several workers: two processors of unlike size and speed, and devices of different kinds."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from drivers.contract import Sampling
from drivers.fake_model import FakeModel, continuation
from kerneld_client import Client, errors
from tests.e2e.rig import FAKE, MODEL, DaemonRig, fake_model, until

PROMPT = [11, 12, 13, 14, 15]
TWO_PROCESSORS = (
    'drivers.devices=[{ name = "quick", driver = "cpu", threads = 2, device_bytes = "32MiB" }, '
    '{ name = "roomy", driver = "cpu", threads = 1, device_bytes = "128MiB" }]'
)
TWO_KINDS = 'drivers.devices=[{ name = "cpu0", driver = "cpu", threads = 1, device_bytes = "64MiB" }, { name = "toy0", driver = "fake" }]'


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[DaemonRig]:
    """A daemon with two processors, started."""
    own = DaemonRig(tmp_path, "memory.host_bytes=32MiB", "kerneld.disk_reserve_bytes=0", "kerneld.detach_grace_s=60", TWO_PROCESSORS)
    own.start()
    yield own
    own.clean_up()


def deep_model(folder: Path, times: int = 3) -> Path:
    """The demo model with each of its layers several times: it says nothing sensible, and is larger."""
    path = folder / "deep"
    shutil.copytree(MODEL, path, ignore=shutil.ignore_patterns("*.py", "__pycache__", "*.png"))
    config = json.loads((path / "config.json").read_text())
    num_layers = config["num_hidden_layers"]
    config["num_hidden_layers"] = times * num_layers
    (path / "config.json").write_text(json.dumps(config))
    tensors = load_file(path / "model.safetensors")
    layers = {name: value for name, value in tensors.items() if ".layers." in name}
    for name, value in layers.items():
        head, _, rest = name.partition(".layers.")
        number, _, tail = rest.partition(".")
        tensors |= {f"{head}.layers.{int(number) + num_layers * copy}.{tail}": value.clone() for copy in range(1, times)}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def tokens(k: Client, model: str, num_tokens: int) -> tuple[int, ...]:
    return k.alloc(model).infer(tokens=PROMPT, max_tokens=num_tokens, temperature=0, ignore_eos=True).result().tokens


def workers(k: Client) -> dict[str, int]:
    return {worker.device: worker.pid for worker in k.top().workers}


def test_two_processors_serve_one_daemon(rig: DaemonRig) -> None:
    with rig.connect() as k:
        until(lambda: all(workers(k).values()))
        large = k.load(deep_model(rig.folder), name="deep")
        assert (large.device, large.streamed_bytes) == ("roomy", 0), "where it fits as a whole"
        k.load(MODEL, name="demo", device="quick")
        both = k.load(MODEL, name="demo", device="roomy")
        assert both.device == "quick, roomy"
        assert [copy.state.value for copy in both.copies] == ["resident", "resident"]

        alone = tokens(k, "demo", 24)
        assert tokens(k, "demo", 24) == alone
        slow = k.alloc("deep").infer(tokens=PROMPT, max_tokens=150, temperature=0, ignore_eos=True)
        fast = [k.alloc("demo").infer(tokens=PROMPT, max_tokens=24, temperature=0, ignore_eos=True) for _ in range(3)]
        assert [stream.result().tokens for stream in fast] == [alone] * 3
        assert len(slow.result().tokens) == 150
        assert {tier.device for tier in k.memory().tiers} == {"quick", "roomy"}
        assert not [part for part in k.fsck() if part.problems]


def test_a_worker_that_is_killed_takes_nothing_from_the_other(rig: DaemonRig) -> None:
    with rig.connect() as k:
        until(lambda: all(workers(k).values()))
        k.load(deep_model(rig.folder), name="deep")
        k.load(MODEL, name="demo", device="quick")
        expected = {name: tokens(k, name, 120) for name in ("demo", "deep")}
        before = workers(k)
        streams = {name: k.alloc(name).infer(tokens=PROMPT, max_tokens=120, temperature=0, ignore_eos=True) for name in expected}
        until(lambda: k.top().running == 2)
        os.kill(before["roomy"], signal.SIGKILL)
        assert {name: stream.result().tokens for name, stream in streams.items()} == expected
        until(lambda: all(workers(k).values()))
        after = {worker.device: worker for worker in k.top().workers}
        assert (after["quick"].pid, after["quick"].restarts) == (before["quick"], 0)
        assert (after["roomy"].pid != before["roomy"], after["roomy"].restarts) == (True, 1)


def test_a_daemon_that_is_killed_finds_both_workers_again(rig: DaemonRig) -> None:
    with rig.connect() as k:
        until(lambda: all(workers(k).values()))
        k.load(deep_model(rig.folder), name="deep")
        k.load(MODEL, name="demo", device="quick")
        expected = {name: tokens(k, name, 100) for name in ("demo", "deep")}
        before = workers(k)
        contexts = {name: k.alloc(name) for name in expected}
        streams = [context.infer(tokens=PROMPT, max_tokens=100, temperature=0, ignore_eos=True) for context in contexts.values()]
        until(lambda: k.top().running == 2)
        assert len(streams) == 2, "they are read until the daemon is gone"
    rig.kill()
    rig.start()
    with rig.connect() as k:
        until(lambda: all(k.context(context.id).stat().state.value == "idle" for context in contexts.values()))
        assert {name: k.context(context.id).read().tokens[len(PROMPT) :] for name, context in contexts.items()} == expected
        assert workers(k) == before
        assert {name: k.model(name).device for name in expected} == {"demo": "quick", "deep": "roomy"}


def test_devices_of_different_kinds_each_run_what_they_can(tmp_path: Path) -> None:
    settings = [item for item in FAKE if not item.startswith("drivers.")]
    rig = DaemonRig(tmp_path, *settings, TWO_KINDS)
    rig.start()
    try:
        with rig.connect() as k:
            until(lambda: all(workers(k).values()))
            assert k.load(fake_model(tmp_path), name="toy").device == "toy0"
            assert k.load(MODEL, name="demo", device="cpu0").device == "cpu0"
            with pytest.raises(errors.KerneldError, match=r"config\.json"):
                k.load(tmp_path / "toy", name="toy", device="cpu0")
            assert k.model("toy").device == "toy0", "where it was"
            assert tokens(k, "toy", 9) == tuple(continuation(FakeModel(), PROMPT, 9, Sampling(temperature=0.0)))
            assert len(tokens(k, "demo", 9)) == 9
    finally:
        rig.clean_up()
