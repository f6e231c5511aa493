"""Pages between the device and the host tier: orders that the suite for all drivers does not look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.conformance_bench import GREEDY, Bench, How, Subject
from drivers.conformance_models import KV_HEADS, LAYERS, write_model
from drivers.contract import Plan, RowRun
from drivers.cuda.driver import CudaDriver
from memory.page import Tier
from tests.drivers.cuda.late_runtime import late_runtimes

DOWN, UP, INSIDE = (Tier.DEVICE, Tier.HOST), (Tier.HOST, Tier.DEVICE), (Tier.DEVICE, Tier.DEVICE)


@pytest.fixture(params=range(3))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    make = late_runtimes(1000 * request.param)
    with Subject(lambda: CudaDriver(make), write_model(tmp_path), ()).bench() as bench:
        yield bench


def payloads(bench: Bench, frames: tuple[tuple[int, ...], ...]) -> list[bytes]:
    """What is in frames of the device, by way of the host tier."""
    host = bench.take_host(frames)
    bench.submit(pages=bench.moves(frames, host, DOWN))
    return [bytes(bench.host.payload(frame)) for row in host for frame in row]


def test_a_page_comes_up_that_went_down_in_the_same_plan(bench: Bench) -> None:
    begun = bench.generate(bench.prompt(37), 8)
    host, back = bench.take_host(begun.frames), bench.take(45)
    bench.submit(pages=(*bench.moves(begun.frames, host, DOWN), *bench.moves(host, back, UP)))

    assert payloads(bench, back) == payloads(bench, begun.frames)


def test_a_page_goes_round_inside_the_device_in_the_order_of_its_moves(bench: Bench) -> None:
    begun = bench.generate(bench.prompt(37), 8)
    before, fresh, last = payloads(bench, begun.frames), bench.take(45), bench.take(45)
    bench.submit(
        pages=(*bench.moves(begun.frames, fresh, INSIDE), *bench.moves(fresh, last, INSIDE), *bench.moves(last, begun.frames, INSIDE))
    )

    assert payloads(bench, begun.frames) == payloads(bench, last) == before


def test_a_copy_of_a_part_of_a_page_has_nothing_behind_it(bench: Bench) -> None:
    begun, copies = bench.generate(bench.prompt(37), 8), bench.take(45)
    moves = bench.moves(begun.frames, copies, INSIDE)
    bench.submit(pages=(moves[0]._replace(num_tokens=5), *moves[1:]))

    whole, part = payloads(bench, begun.frames)[0], payloads(bench, copies)[0]
    token = len(whole) // (LAYERS * 2 * KV_HEADS * 16)  # bytes of a token in one layer, of keys or values, of one head
    for start in range(0, len(whole), 16 * token):
        kept, end = start + 5 * token, start + 16 * token
        assert part[start:kept] == whole[start:kept] != bytes(5 * token)
        assert part[kept:end] == bytes(11 * token) != whole[kept:end]


def test_a_host_frame_holds_nothing_while_a_page_is_on_its_way_to_it(bench: Bench) -> None:
    first, second = bench.generate(bench.prompt(37), 8), bench.generate(bench.prompt(37, salt=2), 8)
    host = bench.take_host(first.frames)
    bench.submit(pages=bench.moves(first.frames, host, DOWN))
    start = bench.start(bench.prompt(5), bench.take(16), How(sampling=GREEDY))
    bench.driver.apply(Plan(1, 99, moves=bench.moves(second.frames, host, DOWN), starts=(start,), runs=(RowRun(0, 5),), num_steps=1))
    held = [bench.host.peek(frame) for row in host for frame in row]
    bench.driver.step(0)

    assert held == [None] * len(held)
    assert all(bench.host.peek(frame) is not None for row in host for frame in row)


def test_the_host_tier_is_pinned_once(bench: Bench) -> None:
    assert bench.driver._opened().runtime.pinned_spans == [bench.host.size_bytes]
