"""Pages of a split device: what a fork takes along, what is refused, and what lies behind the last token of a page."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from drivers.conformance_bench import open_spec
from drivers.contract import InspectSpec, LoadSpec, Plan, RowStart
from drivers.errors import PlanRejected
from drivers.hostmem import HostMemory, host_frame_bytes
from drivers.split.driver import SplitDriver
from drivers.tails import ArenaTails
from memory.page import Move, Tier
from tests.drivers.cpu_rig import GREEDY, CpuRig, save_model

IN_TORCH = {"0.native": "off", "1.native": "off"}
SPACE = 10


def behind(driver: SplitDriver, frame: int, num_tokens: int) -> list[torch.Tensor]:
    """What lies behind the first tokens of a page, on every part."""
    parts = [part for part in driver._spaces[SPACE].parts if isinstance(part, ArenaTails)]
    return [view[frame, :, :, num_tokens:] for part in parts for view in part.arena.token_views(part.shape)]


def test_a_fork_takes_along_no_more_than_it_shares(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    driver = SplitDriver()
    rig = CpuRig(tmp_path, options=IN_TORCH, driver=driver)
    source, target = rig.free[:2]
    for part in behind(driver, source, 0):
        part.fill_(2.0)
    driver.apply(Plan(1, 1, moves=(Move(SPACE, Tier.DEVICE, source, Tier.DEVICE, target, bytes(16), 3),)))
    assert len(behind(driver, target, 3)) == 2
    assert not any(part.any() for part in behind(driver, target, 3))
    assert all(part[:, :, :3].eq(2.0).all() for part in behind(driver, target, 0))


def test_a_chunk_clears_behind_itself_in_the_page_that_it_opens(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    driver = SplitDriver()
    rig = CpuRig(tmp_path, options=IN_TORCH, driver=driver)
    [frames] = tables = rig.tables(32)
    for part in behind(driver, frames[1], 0):
        part.fill_(float("nan"))
    rig.run([(0, 5)], starts=(RowStart(0, 1, 0, tuple(range(3, 23)), tables, GREEDY),))
    rig.run([(0, 15)])
    assert not any(part.any() for part in behind(driver, frames[1], 4))


def test_a_page_that_would_leave_the_host_tier_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama")
    spec = msgspec.structs.replace(open_spec(4), host_bytes=1 << 20)
    host = HostMemory.create(spec.host_bytes, spec.granule_bytes)
    driver, source = SplitDriver(), InspectSpec(str(tmp_path))
    driver.open(spec, host.fd)
    model = driver.inspect(source)
    offsets = tuple(sum(each.size_bytes for each in model.segments[:idx]) for idx in range(len(model.segments)))
    driver.load(LoadSpec(1, source, (SPACE,), offsets), lambda _done, _total: None)
    frame = sum(each.size_bytes for each in model.segments) // spec.granule_bytes
    last = (spec.host_bytes - host_frame_bytes(model.groups[0].frame_bytes, spec.granule_bytes)) // spec.granule_bytes
    driver.apply(Plan(1, 1, moves=(Move(SPACE, Tier.DEVICE, frame, Tier.HOST, last, bytes(16), 16),)))
    with pytest.raises(PlanRejected):
        driver.apply(Plan(1, 2, moves=(Move(SPACE, Tier.DEVICE, frame, Tier.HOST, last + 1, bytes(16), 16),)))
    driver.close()
