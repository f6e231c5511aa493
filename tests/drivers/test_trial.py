"""A model says what its prefill costs when it is loaded."""

from __future__ import annotations

from pathlib import Path

from drivers.contract import InspectSpec, LoadedModel, LoadSpec, OpenSpec
from drivers.cpu import CpuDriver
from tests.drivers.cpu_rig import GRANULE_BYTES, PAGE_TOKENS, CpuRig, save_model

SLAB = 1 << 20


def loaded(driver: CpuDriver, path: Path, model_id: int) -> LoadedModel:
    """Load a model at the start of the arena."""
    source = InspectSpec(str(path))
    offsets, end = [], 0
    for segment in driver.inspect(source).segments:
        offsets.append(end)
        end += -(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES
    return driver.load(LoadSpec(model_id, source, (model_id,), tuple(offsets)), lambda _done, _total: None)


def test_the_pace_is_tried_once_per_model(tmp_path: Path) -> None:
    save_model(tmp_path / "one", "Llama")
    save_model(tmp_path / "two", "Llama", num_hidden_layers=1)
    driver = CpuDriver()
    driver.open(OpenSpec(8, SLAB, GRANULE_BYTES, PAGE_TOKENS, 8, 512, threads=1), None)

    first = loaded(driver, tmp_path / "one", 1).prefill_s
    driver.unload(1)
    again = loaded(driver, tmp_path / "one", 2).prefill_s
    driver.unload(2)
    other = loaded(driver, tmp_path / "two", 3).prefill_s
    driver.close()

    assert first > 0.0
    assert again == first
    assert other != first


def test_the_trial_leaves_nothing_in_the_arena(tmp_path: Path) -> None:
    save_model(tmp_path, "Qwen2")
    rig = CpuRig(tmp_path)

    end = rig.free and min(rig.free) * GRANULE_BYTES
    assert end
    assert not rig.driver._opened().ground.arena.bytes[end:].any()
    rig.driver.close()


def test_a_model_of_few_positions_is_tried_within_them(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama", max_position_embeddings=20)
    driver = CpuDriver()
    driver.open(OpenSpec(8, SLAB, GRANULE_BYTES, PAGE_TOKENS, 8, 512, threads=1), None)

    assert loaded(driver, tmp_path, 1).prefill_s > 0.0
    driver.close()
