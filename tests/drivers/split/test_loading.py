"""Where the weights of a split model come from, and what an image of them takes along."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.conformance_bench import open_spec
from drivers.contract import InspectSpec, LoadedModel, LoadSpec
from drivers.hostmem import HostMemory
from drivers.split.cpu_stage import CpuStage, CpuStageModel
from drivers.split.driver import SplitDriver
from drivers.split.plan import SplitPlan
from drivers.split.stage import Part, PartPlaces, Progress
from tests.drivers.cpu_rig import save_model

MIB = 1 << 20
GRANULE_BYTES = open_spec(1).granule_bytes
OTHERS = b"\xa5" * 64  # somebody's bytes


class Asked(CpuStage):
    """A part that keeps what it was asked to read from files."""

    def __init__(self, missing: list[tuple[int, ...]]) -> None:
        super().__init__()
        self._missing = missing

    def load(self, part: Part, places: PartPlaces, progress: Progress) -> CpuStageModel:
        self._missing.append(tuple(places.missing))
        return super().load(part, places, progress)


class Loader:
    """A driver with a host tier, and an arena that is full of somebody's bytes."""

    def __init__(self, folder: Path, host: HostMemory) -> None:
        self.missing: list[tuple[int, ...]] = []  # of each part of the last load
        self.driver = SplitDriver(lambda _name: Asked(self.missing), {"shares": "1,3"})
        self.driver.open(open_spec(8, host.size_bytes), os.dup(host.fd))
        self.source = InspectSpec(str(folder))
        self.sizes = [segment.size_bytes for segment in self.driver.inspect(self.source).segments]
        self.places = tuple(itertools.accumulate(self.sizes[:-1], initial=GRANULE_BYTES))  # in the arena and in the host tier
        self.driver._opened().memory.restore(0, memoryview(OTHERS * (8 * MIB // 64)))

    def load(self, checksums: tuple[int, ...] = ()) -> LoadedModel:
        """From the host tier, if there are checksums."""
        self.missing.clear()
        images = self.places if checksums else ()
        spec = LoadSpec(1, self.source, (10,), self.places, host_offsets=images, checksums=checksums)
        return self.driver.load(spec, lambda _done, _total: None)

    @property
    def plan(self) -> SplitPlan:
        """Where the loaded model lies."""
        return self.driver._models[1].plan


@pytest.fixture
def host() -> Iterator[HostMemory]:
    host = HostMemory.create(4 * MIB, GRANULE_BYTES)
    yield host
    host.close()


@pytest.fixture
def loader(tmp_path: Path, host: HostMemory) -> Iterator[Loader]:
    save_model(tmp_path, "Llama", num_hidden_layers=5)
    own = Loader(tmp_path, host)
    yield own
    own.driver.close()


def test_an_image_takes_along_nothing_of_whoever_was_there_before(loader: Loader, host: HostMemory) -> None:
    loader.load()
    loader.driver.park(1, loader.places)
    images = bytes(host.span(0, host.size_bytes))
    assert OTHERS not in images
    assert any(sum(used) < size for used, size in zip((each.used_bytes for each in loader.plan.bundles), loader.sizes, strict=True))


def test_what_the_host_tier_has_is_not_read_from_files(loader: Loader) -> None:
    first = loader.load()
    assert all(loader.missing)
    assert (first.host_bytes, first.num_corrupt) == (0, 0)
    checksums = loader.driver.park(1, loader.places)
    loader.driver.unload(1)
    again = loader.load(checksums)
    assert loader.missing == [(), ()]
    assert (again.host_bytes, again.num_corrupt) == (sum(loader.sizes), 0)


def test_a_bundle_that_does_not_hold_is_read_from_files_on_every_part(loader: Loader, host: HostMemory) -> None:
    loader.load()
    checksums = loader.driver.park(1, loader.places)
    bundles = loader.plan.bundles
    loader.driver.unload(1)
    host.span(loader.places[1] + 5, 1)[0] ^= 1
    again = loader.load(checksums)
    assert loader.missing == [tuple(segment for segment, _start in places) for places in bundles[1].places]
    assert (again.host_bytes, again.num_corrupt) == (sum(loader.sizes) - loader.sizes[1], 1)
    assert loader.driver.park(1, loader.places) == checksums


def test_bytes_that_changed_where_nothing_lies_do_not_stay(loader: Loader, host: HostMemory) -> None:
    loader.load()
    checksums = loader.driver.park(1, loader.places)
    loader.driver.unload(1)
    host.span(loader.places[0], loader.sizes[0])[-64:] = OTHERS
    assert loader.load(checksums).num_corrupt == 1
    assert loader.driver.park(1, loader.places) == checksums
