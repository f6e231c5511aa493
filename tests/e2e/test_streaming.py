"""A model larger than the device: the same text, told as streamed, and what a file that breaks under it costs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld_client import Client, errors
from tests.e2e.rig import MODEL, DaemonRig, until

SMALL = ("memory.device_bytes=16MiB", "memory.host_bytes=4MiB", "memory.slab_bytes=256KiB", "kerneld.disk_reserve_bytes=0")
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonRig]:
    """A daemon whose device holds two thirds of the demo model."""
    own = DaemonRig(tmp_path_factory.mktemp("streaming"), *SMALL)
    own.start()
    yield own
    own.clean_up()


@pytest.fixture
def k(rig: DaemonRig) -> Iterator[Client]:
    """An administrator."""
    with rig.connect() as client:
        yield client


def say(k: Client, model: str) -> list[int]:
    """Forty tokens, greedily."""
    context = k.alloc(model)
    tokens = context.infer(PROMPT, max_tokens=40, temperature=0, ignore_eos=True).result().tokens
    context.free()
    return list(tokens)


def copy_of_model(rig: DaemonRig, name: str) -> Path:
    """The demo model's files, to be broken."""
    path = rig.folder / name
    path.mkdir()
    for file in MODEL.iterdir():
        if file.suffix in (".json", ".safetensors", ".jinja"):
            shutil.copy(file, path / file.name)
    return path


def test_a_model_larger_than_the_device_says_what_it_says_elsewhere(rig: DaemonRig, k: Client, tmp_path: Path) -> None:
    loaded = k.load(MODEL, name="demo")
    assert 0 < loaded.streamed_bytes < loaded.bytes
    assert loaded.bytes > 16 << 20
    assert loaded.stream_bytes_per_s > 0
    streamed = say(k, "demo")
    k.unload("demo")
    assert k.model("demo").streamed_bytes == 0
    large = DaemonRig(tmp_path, "memory.device_bytes=64MiB", *SMALL[1:])
    try:
        large.start()
        with large.connect() as other:
            assert other.load(MODEL, name="demo").streamed_bytes == 0
            assert say(other, "demo") == streamed
    finally:
        large.clean_up()


def test_a_file_that_breaks_costs_its_requests_and_no_worker(rig: DaemonRig, k: Client) -> None:
    path = copy_of_model(rig, "fragile")
    k.load(path, name="fragile")
    worker = rig.worker_pid(k)
    expected = say(k, "fragile")
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    with weights.open("r+b") as file:
        file.truncate(len(whole) // 3)
    ended = k.alloc("fragile").infer(PROMPT, max_tokens=40, temperature=0, ignore_eos=True).result()
    assert ended.finish_reason == "error"
    assert "could not be read" in ended.detail
    until(lambda: k.model("fragile").state == "failed")
    assert "model.safetensors" in k.model("fragile").failure
    weights.write_bytes(whole)
    assert k.load(path, name="fragile").state == "resident"
    assert say(k, "fragile") == expected
    assert rig.worker_pid(k) == worker


def test_a_new_front_goes_on_with_what_the_worker_streams(tmp_path: Path) -> None:
    own = DaemonRig(tmp_path, *SMALL)
    try:
        own.start()
        with own.connect() as k:
            k.load(MODEL, name="demo")
            told, worker = say(k, "demo"), own.worker_pid(k)
        own.kill()
        own.start()
        with own.connect() as k:
            until(lambda: k.model("demo").state == "resident")
            assert say(k, "demo") == told
            assert own.worker_pid(k) == worker
            assert k.model("demo").streamed_bytes > 0
    finally:
        own.clean_up()


def test_streaming_can_be_turned_off(tmp_path: Path) -> None:
    off = DaemonRig(tmp_path, *SMALL, "memory.stream=false")
    try:
        off.start()
        with off.connect() as k:
            with pytest.raises(errors.KerneldError) as refusal:
                k.load(MODEL, name="demo")
            assert refusal.value.code.name == "FAILED_PRECONDITION"
    finally:
        off.clean_up()
