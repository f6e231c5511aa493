"""A model on several devices is the model: the same tokens, the same bits, whatever was shared out how."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import pytest

from drivers.conformance_bench import open_spec
from drivers.contract import InspectSpec, LoadSpec, RowResult, RowStart, Sampling
from drivers.cpu_runners import NativeRunner
from drivers.errors import DeviceOutOfMemory, ModelUnsupported, OptionUnknown, PlanRejected
from drivers.split.cpu_stage import CpuStage, CpuStageModel
from drivers.split.driver import SplitDriver
from drivers.split.stage import Part, PartPlaces, Progress
from drivers.tails import ArenaTails
from tests.drivers.cpu_rig import GRANULE_BYTES, CpuRig, save_model

NO_NATIVE = {"0.native": "off", "1.native": "off"}
TOLD = Sampling(temperature=0.0, num_logprobs=5)
WAYS: dict[str, tuple[str, Mapping[str, str], str, str]] = {
    "float32": ("float32", {}, "", ""),
    "bfloat16": ("bfloat16", {}, "", ""),
    "int8": ("bfloat16", {}, "int8", ""),
    "int4, int8 pages": ("bfloat16", {}, "int4", "int8"),
    "fp8 pages": ("bfloat16", {}, "", "fp8"),
    "torch": ("float32", NO_NATIVE, "", ""),
}
SHARES = ("1,1", "1,3", "5,1")


def whole_options(options: Mapping[str, str]) -> dict[str, str]:
    """What a driver of one part is told in place of what those of a split one are."""
    return {name.removeprefix("0."): value for name, value in options.items() if name.startswith("0.")}


def told(rig: CpuRig, prompt: tuple[int, ...]) -> list[RowResult]:
    """Two rows, one of them in chunks, then seven steps of both; every number that a caller could see."""
    other = tuple(reversed(prompt))[:9]
    results = rig.run([(0, 17), (1, 9)], starts=(rig.start(0, prompt, TOLD, 8), rig.start(1, other, TOLD, 16)))
    results += rig.run([(0, len(prompt) - 17), (1, 1)])
    results += rig.run([(0, 1), (1, 1)], 7)
    rig.run([], 0, clears=(0, 1))
    return [step[slot] for step in results for slot in sorted(step)]


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("way", WAYS)
def test_the_bits_are_those_of_one_device(tmp_path: Path, way: str, shares: str) -> None:
    dtype, options, quant, kv_quant = WAYS[way]
    save_model(tmp_path, "Llama", num_hidden_layers=5)
    alone = CpuRig(tmp_path, dtype=dtype, options=whole_options(options), quant=quant, kv_quant=kv_quant)
    split = CpuRig(tmp_path, dtype=dtype, options={"shares": shares, **options}, quant=quant, kv_quant=kv_quant, driver=SplitDriver())
    prompt = tuple(range(3, 40))
    assert told(split, prompt) == told(alone, prompt)


@pytest.mark.parametrize("family", ["Gemma2", "Qwen3", "GPT2"])
def test_families_with_windows_ties_and_learned_positions_split(tmp_path: Path, family: str) -> None:
    changes: dict[str, object] = {"sliding_window": 16} if family == "Gemma2" else {}
    if family == "GPT2":
        changes = {"n_layer": 4, "n_embd": 96, "n_head": 6, "n_positions": 512}
    save_model(tmp_path, family, **{"num_hidden_layers": 4, **changes})
    alone, split = CpuRig(tmp_path), CpuRig(tmp_path, options={"shares": "1,2"}, driver=SplitDriver())
    prompt = tuple(range(3, 53))
    assert told(split, prompt) == told(alone, prompt)


def test_three_parts_are_one_device_too(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    alone, split = CpuRig(tmp_path), CpuRig(tmp_path, options={"parts": "cpu,cpu,cpu"}, driver=SplitDriver())
    prompt = tuple(range(3, 40))
    assert told(split, prompt) == told(alone, prompt)


IN_TORCH = {"first part": {"0.native": "off"}, "second part": {"1.native": "off"}, "both": NO_NATIVE}


def spoil(driver: SplitDriver, frames: Iterable[int], num_tokens: int = 0) -> None:
    """Make everything behind the first tokens of pages not finite."""
    for part in driver._spaces[10].parts:
        assert isinstance(part, ArenaTails)
        for view in part.arena.token_views(part.shape):
            view[list(frames), :, :, num_tokens:] = float("nan")


@pytest.mark.parametrize("where", IN_TORCH)
def test_what_frames_held_before_does_not_matter(tmp_path: Path, where: str) -> None:
    save_model(tmp_path, "Llama")
    driver, prompt = SplitDriver(), tuple(range(3, 40))
    clean, spoilt = (
        CpuRig(tmp_path, options=IN_TORCH[where], driver=SplitDriver()),
        CpuRig(tmp_path, options=IN_TORCH[where], driver=driver),
    )
    spoil(driver, spoilt.free)
    assert told(spoilt, prompt) == told(clean, prompt)


@pytest.mark.parametrize("where", IN_TORCH)
def test_parts_hand_on_what_others_take_in_every_dtype(tmp_path: Path, where: str) -> None:
    save_model(tmp_path, "Llama")
    alone = CpuRig(tmp_path, dtype="bfloat16")
    split = CpuRig(tmp_path, dtype="bfloat16", options=IN_TORCH[where], driver=SplitDriver())
    [[one], [other]] = ([row.logprobs for row in told(rig, tuple(range(3, 40))) if row.logprobs][:1] for rig in (alone, split))
    assert other[0].logprob == pytest.approx(one[0].logprob, abs=0.2)


@pytest.mark.parametrize("where", IN_TORCH)
def test_a_row_that_comes_back_into_a_page_sees_nothing_behind_it(tmp_path: Path, where: str) -> None:
    save_model(tmp_path, "Llama")
    driver, tokens = SplitDriver(), tuple(range(3, 23))
    rig = CpuRig(tmp_path, options=IN_TORCH[where], driver=driver)
    [frames] = tables = rig.tables(30)
    longer = rig.start(1, range(5, 45), TOLD, room=8)  # pages of the shorter one are padded to its length
    [before] = rig.run([(0, 20), (1, 40)], starts=(RowStart(0, 1, 0, tokens, tables, TOLD), longer))
    rig.run([], 0, clears=(0,))
    spoil(driver, frames[1:], num_tokens=3)
    [after] = rig.run([(0, 1), (1, 1)], starts=(RowStart(0, 1, 19, tokens[19:], tables, TOLD),))
    assert after[0].tokens == before[0].tokens


def test_a_model_of_another_split_has_other_numerics(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    names = {CpuRig(tmp_path, options={"shares": shares}, driver=SplitDriver()).spec.numerics for shares in ("1,1", "1,2", "2,1")}
    assert len(names) == 3


def test_bundles_and_frames_cost_what_the_fuller_part_needs(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama", num_hidden_layers=4)
    alone, split = CpuRig(tmp_path), CpuRig(tmp_path, options={"shares": "1,1"}, driver=SplitDriver())
    assert split.spec.groups == alone.spec.groups  # two layers of four on either half: nothing is lost
    lost = sum(each.size_bytes for each in split.spec.segments) / sum(each.size_bytes for each in alone.spec.segments)
    assert 1.0 <= lost < 2.0  # the embedding is on the first part alone


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"parts": "cpu"}, "two or more"),
        ({"parts": "cpu,tpu"}, "two or more of cpu, cuda"),
        ({"shares": "1"}, "a whole number for each of the 2"),
        ({"shares": "1,0"}, "a whole number"),
        ({"2.native": "off"}, "no option 2.native"),
        ({"1.colour": "red"}, "no option colour"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, str], word: str) -> None:
    with pytest.raises(OptionUnknown, match=word):
        SplitDriver().open(msgspec.structs.replace(open_spec(4), options=options), None)


def test_granules_too_small_to_share_are_refused() -> None:
    with pytest.raises(PlanRejected, match="1 cannot be shared out between 2"):
        SplitDriver().open(msgspec.structs.replace(open_spec(4), granule_bytes=64), None)


def test_granules_that_are_not_whole_units_are_refused() -> None:
    odd = msgspec.structs.replace(open_spec(4), granule_bytes=4096 + 32, slab_bytes=(4096 + 32) * 64)
    with pytest.raises(PlanRejected, match="4128 is not a multiple of 64"):
        SplitDriver().open(odd, None)


def test_fewer_layers_than_parts_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama", num_hidden_layers=2)
    with pytest.raises(ModelUnsupported, match="2 layers, fewer than the 3 parts"):
        CpuRig(tmp_path, options={"parts": "cpu,cpu,cpu"}, driver=SplitDriver())


def test_shares_unlike_what_the_parts_hold_are_refused_with_better_ones(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama", num_hidden_layers=4)
    with pytest.raises(ModelUnsupported, match=r'Shares near "[0-9]+,[0-9]+" fit it') as refusal:
        CpuRig(tmp_path, options={"shares": "1,30"}, driver=SplitDriver())
    shares = str(refusal.value).partition('Shares near "')[2].partition('"')[0]
    assert CpuRig(tmp_path, options={"shares": shares}, driver=SplitDriver()).generate(range(3, 9), 4)


def test_adapters_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    rig = CpuRig(tmp_path, driver=SplitDriver())
    with pytest.raises(ModelUnsupported, match="no adapters"):
        rig.driver.inspect(InspectSpec(str(tmp_path), base=str(tmp_path)))


def test_a_load_off_its_granules_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    rig = CpuRig(tmp_path, driver=SplitDriver())
    offsets = tuple(64 for _ in rig.spec.segments)
    with pytest.raises(PlanRejected, match="not on a granule"):
        rig.driver.load(LoadSpec(2, InspectSpec(str(tmp_path)), (20,), offsets), lambda _done, _total: None)


def test_a_frame_that_leaves_the_arena_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    rig = CpuRig(tmp_path, driver=SplitDriver())
    last = (rig.num_slabs * (1 << 20) - rig.spec.groups[0].frame_bytes) // GRANULE_BYTES
    assert rig.run([(0, 3)], starts=(RowStart(0, 1, 0, (1, 2, 3), ((last,),), TOLD),))
    with pytest.raises(PlanRejected, match="a frame outside"):
        rig.run([(1, 3)], starts=(RowStart(1, 1, 0, (1, 2, 3), ((last + 1,),), TOLD),))


def test_each_part_tells_the_ops_of_its_own_layers(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama", num_hidden_layers=4)
    rig = CpuRig(tmp_path, options={"shares": "1,3"}, driver=SplitDriver())
    offsets = itertools.accumulate((each.size_bytes for each in rig.spec.segments[:-1]), initial=4 << 20)
    loaded = rig.driver.load(LoadSpec(2, InspectSpec(str(tmp_path)), (20,), tuple(offsets)), lambda _done, _total: None)
    attention = [report for report in loaded.ops if "paged_attention" in report.covers]
    assert [(report.num_calls, report.why[:6]) for report in attention] == [(1, "part 0"), (3, "part 1")]
    assert sum(report.num_calls for report in loaded.ops if "embed" in report.covers) == 1
    assert loaded.runs_on.startswith("layers 0 to 0 on 25 % of the memory: native")
    assert loaded.prefill_s > 0.0


class Poor(CpuStage):
    """A part that would give any slab back, and never has one again."""

    def give_back(self, slabs: tuple[int, ...]) -> None:
        pass

    def take(self, slabs: tuple[int, ...]) -> None:
        raise DeviceOutOfMemory(1 << 20, 0)


class Watched(CpuStage):
    """A part that keeps the models that it made."""

    def __init__(self, made: list[CpuStageModel]) -> None:
        super().__init__()
        self._made = made

    def load(self, part: Part, places: PartPlaces, progress: Progress) -> CpuStageModel:
        self._made.append(super().load(part, places, progress))
        return self._made[-1]


def test_a_load_that_is_cut_short_leaves_nothing_behind(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    made: list[CpuStageModel] = []
    rig = CpuRig(tmp_path, driver=SplitDriver(lambda _name: Watched(made)))
    made.clear()

    def progress(done: int, total: int) -> None:
        if done == total:
            raise ConnectionResetError

    offsets = tuple(itertools.accumulate((each.size_bytes for each in rig.spec.segments[:-1]), initial=4 << 20))
    with pytest.raises(ConnectionResetError):
        rig.driver.load(LoadSpec(2, InspectSpec(str(tmp_path)), (20,), offsets), progress)
    assert made
    assert all(is_closed(model) for model in made)
    made.clear()
    rig.driver.load(LoadSpec(2, InspectSpec(str(tmp_path)), (20,), offsets), lambda _done, _total: None)
    rig.driver.unload(2)
    assert [is_closed(model) for model in made] == [True, True]


def is_closed(model: CpuStageModel) -> bool:
    """Whether native code has forgotten it."""
    assert isinstance(model.runner, NativeRunner)
    return model.runner._model._program is None


class Keen(CpuStage):
    """A part that gives no slab back, and would take any."""

    def give_back(self, slabs: tuple[int, ...]) -> None:
        raise PlanRejected("It needs them.")

    def take(self, slabs: tuple[int, ...]) -> None:
        pass


def beside_a_processor(kind: type[CpuStage]) -> SplitDriver:
    """Open, the second of two parts being of a kind."""
    kinds = iter((CpuStage, CpuStage, CpuStage, kind))  # two for `probe`
    driver = SplitDriver(lambda _name: next(kinds)())
    driver.open(open_spec(4), None)
    return driver


def test_slabs_are_given_back_on_all_parts_or_on_none() -> None:
    driver = beside_a_processor(Keen)
    with pytest.raises(PlanRejected, match="It needs them"):
        driver.give_back((1,))
    with pytest.raises(PlanRejected, match="held already"):
        driver.take((1,))
    driver.close()


def test_a_device_whose_parts_of_a_slab_are_not_whole_pages_gives_none_back() -> None:
    driver = SplitDriver()
    assert driver.probe().gives_back
    driver.open(msgspec.structs.replace(open_spec(4), slab_bytes=8 << 10, granule_bytes=4 << 10, options={"shares": "1,3"}), None)
    assert not driver.probe().gives_back
    driver.close()


def test_slabs_are_taken_on_all_parts_or_on_none() -> None:
    driver = beside_a_processor(Poor)
    driver.give_back((1, 2))
    with pytest.raises(DeviceOutOfMemory):
        driver.take((1,))
    with pytest.raises(PlanRejected, match="not held"):
        driver.give_back((1,))
    driver.close()
