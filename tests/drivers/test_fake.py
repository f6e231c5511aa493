from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.contract import FramePatch, InspectSpec, LoadSpec, OpenSpec, Plan, RowRun, RowStart, Sampling, StepResult
from drivers.errors import DeviceLost, DeviceOutOfMemory, ModelCorrupt, ModelUnsupported, OptionUnknown, PageCorrupt, PlanRejected
from drivers.fake import FakeDriver
from drivers.fake_model import FakeModel, continuation, draw, links_after, logprob
from drivers.hostmem import HostMemory
from memory.page import Move, Tier

ROOT = Path(__file__).resolve().parents[2]
GRANULE = 1024
MEMORY = OpenSpec(4, 1 << 16, GRANULE, 16, 4, 64)
GREEDY = Sampling(temperature=0.0)
MODEL = FakeModel()
BASE = 64  # the weights of model 1 lie in the granules before it
KEY = b"0123456789abcdef"


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[FakeDriver]:
    driver = FakeDriver()
    yield driver
    driver.close()


def begin(driver: FakeDriver, folder: Path, host: HostMemory | None = None, **options: str) -> None:
    """Open the driver and load model 1 with spaces from 10 on."""
    host_bytes = host.size_bytes if host else 0
    driver.open(msgspec.structs.replace(MEMORY, options=options, host_bytes=host_bytes), host.fd if host else None)
    told = driver.inspect(InspectSpec(str(folder)))
    offsets = tuple(idx * told.segments[0].size_bytes for idx in range(len(told.segments)))
    space_ids = tuple(10 + group for group in range(len(told.groups)))
    driver.load(LoadSpec(1, InspectSpec(str(folder)), space_ids, offsets), lambda done, total: None)


def run(driver: FakeDriver, plan: Plan) -> list[StepResult]:
    driver.apply(plan)
    return [driver.step(step_idx) for step_idx in range(plan.num_steps)]


def seat(tokens: tuple[int, ...], frames: tuple[int, ...], position: int = 0, slot: int = 0) -> RowStart:
    return RowStart(slot, 1, position, tokens[position:], (frames,), GREEDY)


def tokens_of(results: list[StepResult]) -> list[int]:
    return [token for result in results for row in result.rows for token in row.tokens]


def test_a_row_says_what_its_history_says(driver: FakeDriver, tmp_path: Path) -> None:
    begin(driver, tmp_path)
    plan = Plan(1, 1, starts=(seat((7, 8, 9), (BASE, BASE + 1)),), runs=(RowRun(0, 3),), num_steps=20)

    assert tokens_of(run(driver, plan)) == continuation(MODEL, (7, 8, 9), 20, GREEDY)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 4095), min_size=1, max_size=20), st.integers(0, 19), st.integers(0, 4095))
def test_the_next_token_depends_on_every_token_before_it(tokens: list[int], idx: int, other: int) -> None:
    changed = [*tokens]
    changed[idx % len(tokens)] = other
    links = [links_after(MODEL.root, history, 0)[-1] for history in (tokens, changed)]

    assert (links[0] == links[1]) == (tokens == changed)


def test_greedy_ignores_the_seed_and_drawing_does_not() -> None:
    greedy = {draw(MODEL, 99, 5, Sampling(temperature=0.0, seed=seed)) for seed in range(20)}
    drawn = {draw(MODEL, 99, 5, Sampling(seed=seed)) for seed in range(20)}

    assert len(greedy) == 1
    assert len(drawn) > 10


def test_the_greedy_token_is_the_likeliest() -> None:
    told = logprob(MODEL, 99, draw(MODEL, 99, 5, GREEDY), 3)

    assert told.top[0] == (draw(MODEL, 99, 5, GREEDY), told.logprob)
    assert [value for _, value in told.top] == sorted((value for _, value in told.top), reverse=True)


def test_a_row_over_pages_of_another_row_fails_alone(driver: FakeDriver, tmp_path: Path) -> None:
    begin(driver, tmp_path)
    mine, other = tuple(range(3, 20)), tuple(range(30, 47))
    run(driver, Plan(1, 1, starts=(seat(other, (BASE, BASE + 1)),), runs=(RowRun(0, 17),), num_steps=1))
    run(driver, Plan(1, 2, starts=(seat(mine, (BASE + 2, BASE + 3), slot=1),), runs=(RowRun(1, 17),), num_steps=1))
    patch = FramePatch(1, 0, 0, (BASE,))

    (result,) = run(driver, Plan(1, 3, patches=(patch,), runs=(RowRun(0, 1), RowRun(1, 1)), num_steps=1))

    by_slot = {row.slot: row for row in result.rows}
    assert by_slot[0].tokens
    assert by_slot[1].error == f"Position 16 is not in frame {BASE + 3}."


def test_a_whole_table_of_another_row_is_noticed_too(driver: FakeDriver, tmp_path: Path) -> None:
    begin(driver, tmp_path)
    mine, other = tuple(range(3, 20)), tuple(range(30, 47))
    run(driver, Plan(1, 1, starts=(seat(other, (BASE, BASE + 1)),), runs=(RowRun(0, 17),), num_steps=1))
    run(driver, Plan(1, 2, starts=(seat(mine, (BASE + 2, BASE + 3), slot=1),), runs=(RowRun(1, 17),), num_steps=1))
    patch = FramePatch(1, 0, 0, (BASE, BASE + 1))

    (result,) = run(driver, Plan(1, 3, patches=(patch,), runs=(RowRun(1, 1),), num_steps=1))

    assert "history of another row" in result.rows[0].error


def test_a_row_over_a_frame_that_was_never_written_fails(driver: FakeDriver, tmp_path: Path) -> None:
    begin(driver, tmp_path)
    plan = Plan(1, 1, starts=(seat(tuple(range(3, 20)), (BASE, BASE + 1), position=16),), runs=(RowRun(0, 1),), num_steps=1)

    assert run(driver, plan)[0].rows[0].error == f"Position 0 is not in frame {BASE}."


def test_pages_of_one_group_do_not_pass_for_those_of_another(driver: FakeDriver, tmp_path: Path) -> None:
    (tmp_path / "fake.json").write_text(json.dumps({"windows": [None, 32]}))
    begin(driver, tmp_path)
    tokens = tuple(range(3, 20))
    there = RowStart(0, 1, 0, tokens, ((BASE, BASE + 1), (BASE + 2, BASE + 3)), GREEDY)
    run(driver, Plan(1, 1, starts=(there,), runs=(RowRun(0, 17),), num_steps=1))
    swapped = (FramePatch(0, 0, 0, (BASE + 2, BASE + 3)), FramePatch(0, 1, 0, (BASE, BASE + 1)))

    (result,) = run(driver, Plan(1, 2, patches=swapped, runs=(RowRun(0, 1),), num_steps=1))

    assert result.rows[0].error


def test_pages_that_left_the_window_are_not_missed(driver: FakeDriver, tmp_path: Path) -> None:
    (tmp_path / "fake.json").write_text(json.dumps({"windows": [16]}))
    begin(driver, tmp_path)
    tokens = tuple(range(3, 43))
    table = (BASE, BASE + 1, BASE + 2)
    run(driver, Plan(1, 1, starts=(seat(tokens, table),), runs=(RowRun(0, 40),), num_steps=1))
    gone = FramePatch(0, 0, 0, (-1,))

    results = run(driver, Plan(1, 2, patches=(gone,), runs=(RowRun(0, 1),), num_steps=5))

    assert all(not row.error for result in results for row in result.rows)


def test_weights_that_were_written_over_lose_the_device(driver: FakeDriver, tmp_path: Path) -> None:
    begin(driver, tmp_path)
    plan = Plan(1, 1, starts=(seat((7, 8, 9), (BASE - 1,)),), runs=(RowRun(0, 3),), num_steps=2)

    with pytest.raises(DeviceLost, match="weights at byte"):
        run(driver, plan)


def test_a_scripted_token_fails_its_row_alone(driver: FakeDriver, tmp_path: Path) -> None:
    begin(driver, tmp_path, nan_token="8")
    starts = (seat((7, 8), (BASE,)), seat((7, 9), (BASE + 1,), slot=1))

    (result,) = run(driver, Plan(1, 1, starts=starts, runs=(RowRun(0, 2), RowRun(1, 2)), num_steps=1))

    assert [(row.slot, row.error) for row in result.rows] == [(0, "The logits are not finite."), (1, "")]


def test_a_scripted_token_loses_the_device(driver: FakeDriver, tmp_path: Path) -> None:
    begin(driver, tmp_path, error_token="8")
    with pytest.raises(DeviceLost, match="Token 8"):
        run(driver, Plan(1, 1, starts=(seat((7, 8), (BASE,)),), runs=(RowRun(0, 2),), num_steps=1))


def test_a_scripted_load_finds_too_little_memory_and_leaves_nothing(driver: FakeDriver, tmp_path: Path) -> None:
    with pytest.raises(DeviceOutOfMemory):
        begin(driver, tmp_path, oom_at_load="1")
    spec = LoadSpec(1, InspectSpec(str(tmp_path)), (10,), tuple(idx << 14 for idx in range(4)))
    assert driver.load(spec, lambda done, total: None).bytes_loaded == 1 << 16


def test_a_scripted_copy_to_the_host_tier_is_damaged(driver: FakeDriver, tmp_path: Path) -> None:
    host = HostMemory.create(64 * GRANULE, GRANULE)
    begin(driver, tmp_path, host, corrupt_host_copy="2")
    out = [Move(10, Tier.DEVICE, BASE, Tier.HOST, frame, KEY, 16) for frame in (0, 2)]
    run(driver, Plan(1, 1, moves=tuple(out)))
    back = [Move(10, Tier.HOST, frame, Tier.DEVICE, BASE + 4 + frame, KEY, 16) for frame in (0, 2)]

    with pytest.raises(PageCorrupt) as caught:
        driver.apply(Plan(1, 2, moves=tuple(back)))
    assert caught.value.move_idxs == (1,)


def test_steps_and_loads_take_their_scripted_time(driver: FakeDriver, tmp_path: Path) -> None:
    began = time.monotonic()
    begin(driver, tmp_path, slow_load_s="0.02", step_s="0.005")
    run(driver, Plan(1, 1, starts=(seat((7, 8), (BASE,)),), runs=(RowRun(0, 2),), num_steps=2))

    assert time.monotonic() - began >= 0.03


def test_a_scripted_death_kills_the_process(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from drivers.contract import OpenSpec, Plan
from drivers.fake import FakeDriver
driver = FakeDriver()
driver.open(OpenSpec(1, 1 << 16, 1024, 16, 4, 64, options={{"die_at_step": "2"}}), None)
driver.apply(Plan(1, 1, num_steps=3))
driver.step(0)
print("one", flush=True)
driver.step(1)
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (finished.returncode, finished.stdout) == (-signal.SIGKILL, "one\n")


@pytest.mark.parametrize("options", [{"no_such": "1"}, {"die_at_step": "soon"}])
def test_an_option_that_is_not_in_the_script_is_refused(driver: FakeDriver, options: dict[str, str]) -> None:
    with pytest.raises(OptionUnknown):
        driver.open(msgspec.structs.replace(MEMORY, options=options), None)


@pytest.mark.parametrize(
    ("content", "error", "complaint"),
    [
        ('{"vocab_size": 3}', ModelUnsupported, "vocab_size"),
        ('{"no_such": 3}', ModelUnsupported, "no_such"),
        ('{"windows": [1]}', ModelUnsupported, "window"),
        ('{"kv_bytes_per_token": 24}', ModelUnsupported, "kv_bytes_per_token is 24"),
        ("{", ModelCorrupt, "truncated"),
    ],
)
def test_a_model_file_that_does_not_fit_is_refused_by_name(
    driver: FakeDriver, tmp_path: Path, content: str, error: type[Exception], complaint: str
) -> None:
    (tmp_path / "fake.json").write_text(content)
    driver.open(MEMORY, None)

    with pytest.raises(error, match=complaint):
        driver.inspect(InspectSpec(str(tmp_path)))


@pytest.mark.parametrize(
    "move",
    [
        Move(99, Tier.DEVICE, BASE, Tier.DEVICE, BASE + 1, KEY, 16),
        Move(10, Tier.DEVICE, BASE, Tier.HOST, 0, KEY, 16),
        Move(10, Tier.DEVICE, 1 << 20, Tier.DEVICE, BASE, KEY, 16),
        Move(10, Tier.DISK, 0, Tier.DEVICE, BASE, KEY, 16),
    ],
)
def test_a_move_that_cannot_be_is_refused_before_anything_is_made(driver: FakeDriver, tmp_path: Path, move: Move) -> None:
    begin(driver, tmp_path)
    with pytest.raises(PlanRejected):
        driver.apply(Plan(1, 1, moves=(move,), starts=(seat((7,), (BASE,)),)))
    run(driver, Plan(1, 2, starts=(seat((7,), (BASE,)),)))


def test_nothing_works_before_open_and_nothing_opens_twice(driver: FakeDriver, tmp_path: Path) -> None:
    with pytest.raises(PlanRejected, match="not open"):
        driver.inspect(InspectSpec(str(tmp_path)))
    driver.open(MEMORY, None)
    with pytest.raises(PlanRejected, match="already"):
        driver.open(MEMORY, None)
