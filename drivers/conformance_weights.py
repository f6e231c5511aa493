"""Checks of weights in the host tier: parked there, and loaded from there."""

from __future__ import annotations

from crc32c import crc32c

from drivers.conformance_bench import Bench, How, Subject, require
from drivers.contract import InspectSpec, LoadedModel, LoadSpec
from drivers.errors import PlanRejected, UnknownModel


def parked_weights_come_back(subject: Subject) -> None:
    """`park` copies every segment and answers the crc32c of each; a load from there reads no file, and the model says the same."""
    with subject.bench() as bench:
        told = bench.generate(bench.prompt(20), 6).tokens
        offsets, checksums = _park(bench)
        require(bench.generate(bench.prompt(20), 6).tokens == told, "a model that was parked is still loaded")
        bench.driver.unload(1)
        loaded = _load(bench, 2, offsets, checksums)
        require(loaded.host_bytes == loaded.bytes_loaded > 0, "host_bytes counts all that came from the host tier")
        require(loaded.num_corrupt == 0, "images that hold are not called corrupt")
        require(bench.generate(bench.prompt(20), 6, How(model_id=2)).tokens == told, "a model from the host tier says what it said before")


def parked_weights_are_checked(subject: Subject) -> None:
    """A segment in the host tier that does not hold its checksum is counted, and comes from the files."""
    with subject.bench() as bench:
        told = bench.generate(bench.prompt(20), 6).tokens
        offsets, checksums = _park(bench)
        bench.driver.unload(1)
        for offset in (offsets[0], offsets[-1]):
            bench.host.span(offset, 1)[:] = bytes([bench.host.span(offset, 1)[0] ^ 1])
        loaded = _load(bench, 2, offsets, checksums)
        require(loaded.num_corrupt == 2, "num_corrupt counts segments whose image does not hold")
        require(loaded.host_bytes < loaded.bytes_loaded, "host_bytes counts only what came from the host tier")
        require(bench.generate(bench.prompt(20), 6, How(model_id=2)).tokens == told, "what does not hold is read from the files")


def parking_knows_its_models_and_bounds(subject: Subject) -> None:
    """`park` refuses a model that is not loaded, and places outside of the host tier; then the model is as it was."""
    with subject.bench() as bench:
        offsets = bench.host_weights
        for model_id, places, error in ((9, offsets, UnknownModel), (1, tuple(offset + (1 << 40) for offset in offsets), PlanRejected)):
            try:
                bench.driver.park(model_id, places)
            except error:
                continue
            require(False, f"it raises {error.__name__}")
        require(len(bench.generate(bench.prompt(20), 3).tokens) == 3, "the model runs on")


def _park(bench: Bench) -> tuple[tuple[int, ...], tuple[int, ...]]:
    offsets = bench.host_weights
    checksums = bench.driver.park(1, offsets)
    sizes = [segment.size_bytes for segment in bench.model.segments]
    found = tuple(crc32c(bench.host.span(offset, size)) for offset, size in zip(offsets, sizes, strict=True))
    require(checksums == found, "park answers the crc32c of what it wrote, segment by segment")
    return offsets, checksums


def _load(bench: Bench, model_id: int, offsets: tuple[int, ...], checksums: tuple[int, ...]) -> LoadedModel:
    """Load the model to another place, from images."""
    space_ids = tuple(bench.space(group, model_id) for group in range(len(bench.model.groups)))
    places = bench.take_weights()
    spec = LoadSpec(model_id, InspectSpec(str(bench.model_path)), space_ids, places, host_offsets=offsets, checksums=checksums)
    return bench.driver.load(spec, lambda _done, _total: None)


CHECKS = (parked_weights_come_back, parked_weights_are_checked, parking_knows_its_models_and_bounds)
