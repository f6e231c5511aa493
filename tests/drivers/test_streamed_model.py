"""Models that do not fit the arena, on the CPU driver: the same text, within the arena, and what a broken file costs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch

from drivers.contract import InspectSpec, LoadedModel, LoadSpec, ModelSpec, OpenSpec, Plan, RowRun, RowStart, StepResult
from drivers.cpu import CpuDriver
from drivers.errors import PlanRejected
from drivers.hostmem import HostMemory
from memory.weights import packed
from tests.drivers.cpu_rig import GRANULE_BYTES, GREEDY, CpuRig, prompt_of, save_model

SLAB_BYTES = 1 << 18
HOST_BYTES = 4 << 20
PAGE_TOKENS = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers."""
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, "Llama", num_hidden_layers=8)
    return directory


@pytest.fixture(scope="module")
def texts(model: Path) -> dict[int, list[int]]:
    """What the wholly resident model says."""
    rig = CpuRig(model)
    try:
        return {seed: rig.generate(prompt_of(20 + 9 * seed, seed), 12) for seed in range(3)}
    finally:
        rig.driver.close()


class Rig:
    """A driver whose arena is as large as said; models lie one behind the other, pages behind them."""

    def __init__(self, num_slabs: int, host_fd: int | None = None) -> None:
        self.driver = CpuDriver()
        host_bytes = 0 if host_fd is None else HOST_BYTES
        self.driver.open(OpenSpec(num_slabs, SLAB_BYTES, GRANULE_BYTES, PAGE_TOKENS, 8, 512, threads=1, host_bytes=host_bytes), host_fd)
        self.end = 0
        self.seq = 0
        self.specs: dict[int, ModelSpec] = {}

    def load(
        self,
        model_id: int,
        path: Path,
        streamed: Sequence[int] = (),
        num_slots: int = 2,
        images: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
    ) -> LoadedModel:
        """Load a model, these segments of it streamed."""
        source = InspectSpec(str(path))
        spec = self.specs[model_id] = self.driver.inspect(source)
        largest = max((spec.segments[idx].size_bytes for idx in streamed), default=0)
        offsets = [-1 if idx in streamed else self._take(segment.size_bytes) for idx, segment in enumerate(spec.segments)]
        slots = tuple(self._take(largest) for _ in range(num_slots if streamed else 0))
        return self.driver.load(LoadSpec(model_id, source, (model_id,), tuple(offsets), slots, *images), lambda done, total: None)

    def start(self, slot: int, model_id: int, tokens: Sequence[int], room: int = 16) -> RowStart:
        """A row with frames of its own."""
        size = self.specs[model_id].groups[0].frame_bytes
        frames = tuple(self._take(size) // GRANULE_BYTES for _ in range(-(-(len(tokens) + room) // PAGE_TOKENS)))
        return RowStart(slot, model_id, 0, tuple(tokens), (frames,), GREEDY)

    def run(self, runs: dict[int, int], num_steps: int, starts: Sequence[RowStart] = (), clears: Sequence[int] = ()) -> list[StepResult]:
        """Apply a plan and run its steps."""
        self.seq += 1
        rows = tuple(RowRun(slot, count) for slot, count in runs.items())
        self.driver.apply(Plan(1, self.seq, clears=tuple(clears), starts=tuple(starts), runs=rows, num_steps=num_steps))
        return [self.driver.step(idx) for idx in range(num_steps)]

    def _take(self, size_bytes: int) -> int:
        start, self.end = self.end, self.end + -(-size_bytes // GRANULE_BYTES) * GRANULE_BYTES
        return start


def tokens_of(steps: Sequence[StepResult], slot: int) -> list[int]:
    """What a row said."""
    return [token for step in steps for row in step.rows if row.slot == slot for token in row.tokens]


@pytest.fixture
def rigs() -> Iterator[list[Rig]]:
    """Rigs to be closed at the end."""
    made: list[Rig] = []
    yield made
    for rig in made:
        rig.driver.close()


def new_rig(rigs: list[Rig], num_slabs: int = 16, host_fd: int | None = None) -> Rig:
    """A rig that the fixture closes."""
    rigs.append(Rig(num_slabs, host_fd))
    return rigs[-1]


@pytest.mark.parametrize(
    ("streamed", "num_slots"),
    [(range(1, 9), 2), (range(1, 9), 3), ((2, 4, 6, 8), 2), ((1, 3, 8), 2), ((5,), 2), (range(1, 9), 1)],
    ids=["all", "three-slots", "every-other", "odd", "one", "one-slot"],
)
def test_a_streamed_model_says_what_the_resident_one_says(
    model: Path, texts: dict[int, list[int]], rigs: list[Rig], streamed: Sequence[int], num_slots: int
) -> None:
    rig = new_rig(rigs)
    rig.load(1, model, streamed, num_slots)
    prompts = {seed: prompt_of(20 + 9 * seed, seed) for seed in texts}
    starts = [rig.start(seed, 1, prompt) for seed, prompt in prompts.items()]
    steps = rig.run({seed: len(prompt) for seed, prompt in prompts.items()}, 1, starts)
    steps += rig.run(dict.fromkeys(prompts, 1), 11)
    assert {seed: tokens_of(steps, seed) for seed in texts} == texts


def test_its_weights_never_take_more_than_their_places(model: Path, rigs: list[Rig]) -> None:
    rig = new_rig(rigs)
    loaded = rig.load(1, model, range(1, 9), 2)
    sizes = [segment.size_bytes for segment in rig.specs[1].segments]
    arena = rig.driver._opened().ground.arena  # the test's way to see what nobody else may
    assert loaded.bytes_loaded == sizes[0] + sizes[-1]
    assert loaded.streamed_bytes == sum(sizes[1:-1])
    assert rig.end <= sizes[0] + sizes[-1] + 2 * max(sizes[1:-1]) + len(sizes) * GRANULE_BYTES
    assert not arena.bytes[rig.end :].any()
    rig.run({0: 20}, 1, [rig.start(0, 1, prompt_of(20))])
    rig.run({0: 1}, 8)
    assert not arena.bytes[rig.end :].any()


def test_no_second_copy_of_streamed_weights_is_in_memory(tmp_path: Path, rigs: list[Rig]) -> None:
    save_model(tmp_path, "Llama", num_hidden_layers=8, hidden_size=512, intermediate_size=1536, num_attention_heads=8, head_dim=64)
    rig = new_rig(rigs, 160)
    loaded = rig.load(1, tmp_path, range(1, 9), 2)
    rig.run({0: 20}, 1, [rig.start(0, 1, prompt_of(20))])
    before = psutil.Process().memory_info().rss
    rig.run({0: 1}, 6)
    grown = psutil.Process().memory_info().rss - before
    assert loaded.streamed_bytes > 2 * 160 * SLAB_BYTES
    assert grown < loaded.streamed_bytes // 8


def test_a_file_cut_short_fails_the_rows_of_that_model_alone(
    tmp_path: Path, model: Path, texts: dict[int, list[int]], rigs: list[Rig]
) -> None:
    save_model(tmp_path, "Llama", num_hidden_layers=8)
    rig = new_rig(rigs)
    rig.load(1, tmp_path, range(1, 9))
    rig.load(2, model)
    starts = [rig.start(0, 1, prompt_of(20)), rig.start(1, 2, prompt_of(20)), rig.start(2, 1, prompt_of(9))]
    good = rig.run({0: 20, 1: 20, 2: 9}, 1, starts)
    assert good[0].failed_models == {}
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 3)
    steps = good + rig.run({0: 1, 1: 1, 2: 1}, 11)
    broken = next(step for step in steps if step.failed_models)
    errors = {row.slot: row.error for row in broken.rows if row.error}
    assert list(broken.failed_models) == [1]
    assert sorted(errors) == [0, 2]
    assert all("could not be read" in error and "model.safetensors" in error for error in errors.values())
    assert tokens_of(steps, 1) == texts[0]


def test_a_failed_model_can_be_loaded_again(tmp_path: Path, texts: dict[int, list[int]], rigs: list[Rig]) -> None:
    save_model(tmp_path, "Llama", num_hidden_layers=8)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    rig = new_rig(rigs)
    rig.load(1, tmp_path, range(1, 9))
    file.write_bytes(whole[: len(whole) // 3])
    [first, *_rest] = [step for _ in range(3) for step in rig.run({0: 20}, 1, [rig.start(0, 1, prompt_of(20))], [0] if rig.seq else ())][
        -1:
    ]
    assert list(first.failed_models) == [1]
    file.write_bytes(whole)
    rig.driver.unload(1)
    rig.end = 0
    rig.load(1, tmp_path, range(1, 9))
    steps = rig.run({0: 20}, 1, [rig.start(0, 1, prompt_of(20))], [0])
    steps += rig.run({0: 1}, 11)
    assert tokens_of(steps, 0) == texts[0]


def test_nothing_is_written_after_an_unload(model: Path, rigs: list[Rig]) -> None:
    rig = new_rig(rigs)
    rig.load(1, model, range(1, 9))
    arena = rig.driver._opened().ground.arena  # the test's way to see what nobody else may
    rig.driver.unload(1)
    arena.bytes.zero_()
    rig.load(2, model)
    rig.run({0: 20}, 1, [rig.start(0, 2, prompt_of(20))])
    assert not arena.bytes[rig.end :].any()


@pytest.mark.parametrize(
    ("streamed", "num_slots", "told"),
    [((0,), 2, "first and the last"), ((9,), 2, "first and the last"), ((3,), 0, "slots are for")],
)
def test_loads_that_cannot_be_streamed_are_refused(
    model: Path, rigs: list[Rig], streamed: Sequence[int], num_slots: int, told: str
) -> None:
    with pytest.raises(PlanRejected, match=told):
        new_rig(rigs).load(1, model, streamed, num_slots)


@pytest.fixture
def host_fd() -> int:
    """A host tier of 4 MiB; the driver closes it."""
    host = HostMemory.create(HOST_BYTES, GRANULE_BYTES)
    fd = os.dup(host.fd)
    host.close()
    return fd


def images_of(rig: Rig) -> tuple[int, ...]:
    """Where the images of model 1 are to lie."""
    return tuple(packed([segment.size_bytes for segment in rig.specs[1].segments], GRANULE_BYTES))


def say(rig: Rig, model_id: int = 1) -> list[int]:
    """Prompt 0 and what follows."""
    steps = rig.run({0: 20}, 1, [rig.start(0, model_id, prompt_of(20))], [0] if rig.seq else ())
    return tokens_of(steps + rig.run({0: 1}, 11), 0)


def test_a_parked_model_is_streamed_from_the_host_tier(tmp_path: Path, texts: dict[int, list[int]], rigs: list[Rig], host_fd: int) -> None:
    save_model(tmp_path, "Llama", num_hidden_layers=8)
    rig = new_rig(rigs, 16, host_fd)
    rig.load(1, tmp_path, range(1, 9))
    checksums = rig.driver.park(1, images_of(rig))
    (tmp_path / "model.safetensors").unlink()  # nobody reads it any more
    assert len(checksums) == 10
    assert say(rig) == texts[0]


def test_a_model_comes_back_from_its_images(model: Path, texts: dict[int, list[int]], rigs: list[Rig], host_fd: int) -> None:
    rig = new_rig(rigs, 16, host_fd)
    rig.load(1, model, range(1, 9))
    checksums = rig.driver.park(1, images_of(rig))
    rig.driver.unload(1)
    rig.end = 0
    rig.load(1, model, range(1, 9), images=(images_of(rig), checksums))
    source = rig.driver._loaded.models[1].streamed.source  # type: ignore[union-attr]
    assert say(rig) == texts[0]
    assert source.images is not None
    assert source.images.corrupt == set()


def test_an_image_that_does_not_hold_is_read_from_the_files(
    model: Path, texts: dict[int, list[int]], rigs: list[Rig], host_fd: int
) -> None:
    rig = new_rig(rigs, 16, host_fd)
    rig.load(1, model, range(1, 9))
    images = images_of(rig)
    checksums = rig.driver.park(1, images)
    rig.driver.unload(1)
    os.pwrite(host_fd, b"\xff" * 64, images[3])
    rig.end = 0
    rig.load(1, model, range(1, 9), images=(images, checksums))
    source = rig.driver._loaded.models[1].streamed.source  # type: ignore[union-attr]
    assert say(rig) == texts[0]
    assert source.images is not None
    assert source.images.corrupt == {3}


def test_what_a_damaged_image_has_between_the_parts_does_not_stay(tmp_path: Path, rigs: list[Rig], host_fd: int) -> None:
    save_model(tmp_path, "Llama", hidden_size=36, intermediate_size=50, num_attention_heads=3, num_key_value_heads=3, head_dim=12)
    rig = new_rig(rigs, 16, host_fd)
    rig.load(1, tmp_path)
    arena = rig.driver._opened().ground.arena.bytes
    weights, images = arena[: rig.end].clone(), images_of(rig)
    checksums = rig.driver.park(1, images)
    rig.driver.unload(1)
    os.pwrite(host_fd, b"\xff" * rig.specs[1].segments[1].size_bytes, images[1])
    rig.end = 0
    assert rig.load(1, tmp_path, images=(images, checksums)).num_corrupt == 1
    assert torch.equal(arena[: rig.end], weights)


def test_a_model_that_is_parked_again_trusts_its_new_images(
    model: Path, texts: dict[int, list[int]], rigs: list[Rig], host_fd: int
) -> None:
    rig = new_rig(rigs, 16, host_fd)
    rig.load(1, model, range(1, 9))
    images = images_of(rig)
    checksums = rig.driver.park(1, images)
    rig.driver.unload(1)
    os.pwrite(host_fd, b"\xff" * 64, images[3])
    rig.end = 0
    rig.load(1, model, range(1, 9), images=(images, checksums))
    assert say(rig) == texts[0]
    source = rig.driver._loaded.models[1].streamed.source  # type: ignore[union-attr]
    assert rig.driver.park(1, images) == checksums
    assert source.images is not None
    assert source.images.corrupt == set()
