"""Models that come and go: one load for all who want it, beside running streams, and never more than the arena holds."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from kerneld_client import Client, errors
from tests.e2e.rig import FAKE, DaemonRig, fake_model, script, until


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonRig]:
    """A daemon whose loads take 0.3 s."""
    own = DaemonRig(tmp_path_factory.mktemp("loading"), *FAKE, script(slow_load_s=0.3, step_s=0.002))
    own.start()
    with own.connect() as k:
        k.load(fake_model(own.folder), name="toy")
    yield own
    own.clean_up()


@pytest.fixture
def k(rig: DaemonRig) -> Iterator[Client]:
    """An administrator."""
    with rig.connect() as client:
        yield client


def count(k: Client, name: str, model: str) -> int:
    """How often something happened to a model."""
    return sum(event.name == name and event.facts.get("model") == model for event in k.events())


def test_everybody_who_wants_a_model_shares_one_load_and_streams_go_on_beside_it(rig: DaemonRig, k: Client) -> None:
    path = fake_model(rig.folder, "shared", seed=1)
    stream = k.alloc("toy").infer(tokens=[5], max_tokens=900, temperature=0, ignore_eos=True)
    next(stream)
    states: list[str] = []
    loaders = [threading.Thread(target=lambda: states.append(k.load(path, name="shared").state)) for _ in range(6)]
    for loader in loaders:
        loader.start()
    until(lambda: "shared" in {m.name for m in k.models()} and k.model("shared").state == "loading")
    before = stream.offset
    assert before is not None
    until(lambda: next(stream).offset > before + 5)
    assert k.model("shared").state == "loading"
    for loader in loaders:
        loader.join(timeout=30)
    assert states == ["resident"] * 6
    assert count(k, "ModelLoaded", "shared") == 1
    stream.cancel()


def test_a_model_in_use_is_neither_unloaded_nor_removed(k: Client) -> None:
    context = k.alloc("toy")
    stream = context.infer(tokens=[5], max_tokens=900, ignore_eos=True)
    next(stream)
    for refused in (k.unload, k.remove_model):
        with pytest.raises(errors.KerneldError) as refusal:
            refused("toy")
        assert refusal.value.code.name == "FAILED_PRECONDITION"
    stream.cancel()
    stream.result()
    assert k.unload("toy").state == "registered"
    assert len(context.infer(max_tokens=5, ignore_eos=True).result().tokens) == 5  # an infer loads it again
    context.free()


def test_a_model_larger_than_the_arena_is_refused_with_needs_and_holders(rig: DaemonRig, k: Client) -> None:
    path = fake_model(rig.folder, "huge", weights_bytes=1 << 30)
    with pytest.raises(errors.KerneldError) as refusal:
        k.load(path, name="huge")
    assert refusal.value.code.name == "FAILED_PRECONDITION"
    assert "1 GiB" in str(refusal.value)
    assert "16 MiB" in str(refusal.value)
    assert k.model("huge").state == "failed"
    assert len(k.alloc("toy").infer(tokens=[5], max_tokens=5, ignore_eos=True).result().tokens) == 5
    k.remove_model("huge")


def test_models_that_do_not_fit_together_alternate(rig: DaemonRig, k: Client) -> None:
    names = ["first", "second", "third"]
    paths = [fake_model(rig.folder, name, weights_bytes=6 << 20, seed=idx) for idx, name in enumerate(names)]
    for name, path in zip(names, paths, strict=True):
        k.load(path, name=name)
        context = k.alloc(name)
        assert len(context.infer(tokens=[5], max_tokens=5, ignore_eos=True).result().tokens) == 5
        context.free()
        k.unload(name)
    assert {k.model(name).state for name in names} == {"registered"}
    for name in names:
        k.remove_model(name)


def test_a_load_outlives_the_death_of_its_worker(rig: DaemonRig, k: Client) -> None:
    path = fake_model(rig.folder, "brave", seed=9)
    states: list[str] = []
    loader = threading.Thread(target=lambda: states.append(k.load(path, name="brave").state))
    loader.start()
    until(lambda: "brave" in {m.name for m in k.models()} and k.model("brave").state == "loading")
    os.kill(rig.worker_pid(k), signal.SIGKILL)
    loader.join(timeout=30)
    assert states == ["resident"]
    assert len(k.alloc("brave").infer(tokens=[5], max_tokens=5, ignore_eos=True).result().tokens) == 5


def test_a_failed_load_can_be_tried_again(rig: DaemonRig, k: Client) -> None:
    path = fake_model(rig.folder, "mended", seed=4)
    k.register(path, name="mended")
    good = (path / "fake.json").read_text()
    (path / "fake.json").unlink()
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(errors.KerneldError):
        k.load(path, name="mended")
    path.with_name("elsewhere").rename(path)
    (path / "fake.json").write_text(good)
    assert k.load(path, name="mended").state == "resident"
