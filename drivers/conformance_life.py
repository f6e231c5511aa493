"""Checks of a driver's life cycle: probe, open, inspect, load, unload, close."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

import msgspec

from drivers.conformance_bench import GRANULE_BYTES, Bench, How, Subject, open_spec, require
from drivers.contract import CONTRACT_VERSION, InspectSpec, LoadSpec
from drivers.errors import DriverError, ModelCorrupt, ModelUnsupported, OptionUnknown, UnknownModel

T = TypeVar("T")


def probe_states_sane_capabilities(subject: Subject) -> None:
    """`probe` names the driver, its device, memory and dtypes, and speaks this contract version; asked twice it says the same."""
    driver = subject.make()
    told = driver.probe()
    require(bool(told.driver and told.version and told.device_name), "driver, version and device_name are not empty")
    require(told.memory_bytes > 0, "memory_bytes is positive")
    require("float32" in told.dtypes, "float32 is among the dtypes: tests of identity compute in it")
    require(told.contract_version == CONTRACT_VERSION, f"contract_version is {CONTRACT_VERSION}")
    require(driver.probe() == told, "a second probe says the same")


def close_is_safe_twice_and_unopened(subject: Subject) -> None:
    """`close` may be called without `open`, and again."""
    unopened = subject.make()
    unopened.close()
    with subject.opened(open_spec(num_slabs=1)) as driver:
        driver.close()


def unknown_option_is_refused(subject: Subject) -> None:
    """`open` refuses an option that it does not know, and another driver can open afterwards."""
    spec = msgspec.structs.replace(open_spec(num_slabs=1), options={"no_such_option": "1"})
    with contextlib.suppress(OptionUnknown), subject.opened(spec):
        require(False, "an unknown option raises OptionUnknown")
    with subject.opened(open_spec(num_slabs=1)):
        pass


def inspect_tells_whole_granules(subject: Subject) -> None:
    """`inspect` gives segments with sizes, groups with frames of whole granules, and the same answer twice."""
    with subject.opened(open_spec(num_slabs=1)) as driver:
        told = driver.inspect(InspectSpec(str(subject.model_path)))
        require(driver.inspect(InspectSpec(str(subject.model_path))) == told, "a second inspect says the same")
    require(bool(told.segments) and all(segment.size_bytes > 0 for segment in told.segments), "every segment has a size")
    require(bool(told.groups), "there is a KV group")
    require(all(group.frame_bytes > 0 and group.frame_bytes % GRANULE_BYTES == 0 for group in told.groups), "frames are whole granules")
    require(told.vocab_size > 0 and told.max_positions > 0 and bool(told.numerics), "vocabulary, positions and numerics are told")


def shorter_positions_are_kept(subject: Subject) -> None:
    """`max_positions` of the spec is what the model ends at."""
    with subject.opened(open_spec(num_slabs=1)) as driver:
        told = driver.inspect(InspectSpec(str(subject.model_path), max_positions=64))
    require(told.max_positions == 64, "max_positions is the one that was asked for")


def refused_models_leave_nothing(subject: Subject) -> None:
    """Models that cannot run are refused by `inspect` or `load` with ModelUnsupported or ModelCorrupt, and take nothing with them."""
    with subject.bench() as bench:
        before = bench.generate(bench.prompt(20), 4).tokens
        space_ids = tuple(bench.space(group, model_id=9) for group in range(len(bench.model.groups)))
        offsets = tuple(0 for _ in bench.model.segments)
        for path in subject.refused_paths:
            source = InspectSpec(str(path))
            _require_refusal(bench.driver.inspect, source)
            _require_refusal(lambda spec: bench.driver.load(spec, _ignore), LoadSpec(9, source, space_ids, offsets))
            _require_unknown(bench, 9)
        require(bench.generate(bench.prompt(20), 4).tokens == before, "refused loads change no weights")


def load_tells_progress(subject: Subject) -> None:
    """`load` tells rising progress that ends at the total."""
    told: list[tuple[int, int]] = []
    with subject.bench() as bench:
        bench.load(2, lambda done, total: told.append((done, total)))
    done = [entry[0] for entry in told]
    require(bool(told), "progress is told")
    require(done == sorted(done) and told[-1][0] == told[-1][1], "progress rises up to the total")
    require(len({entry[1] for entry in told}) == 1, "the total stays the same")


def unload_gives_the_room_back(subject: Subject) -> None:
    """After `unload` the same offsets take another load, or the same ids, and an id that is not loaded is UnknownModel."""
    with subject.bench() as bench:
        before = bench.generate(bench.prompt(20), 4).tokens
        sizes = [-(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES for segment in bench.model.segments]
        offsets = tuple(sum(sizes[:idx]) for idx in range(len(sizes)))
        bench.driver.unload(1)
        _require_unknown(bench, 1)
        bench.load_at(2, offsets)
        require(_tokens_of(bench, 2) == before, "the model loaded again says the same")
        bench.driver.unload(2)
        bench.load_at(2, offsets)
        require(_tokens_of(bench, 2) == before, "and so it does under the ids that it had before")


def load_runs_beside_steps(subject: Subject) -> None:
    """`load` in another thread disturbs no step, and its model runs afterwards."""
    with subject.bench() as bench:
        undisturbed = bench.generate(bench.prompt(20), 32).tokens
        failures: list[Exception] = []

        def load() -> None:
            try:
                bench.load(2)
            except DriverError as error:
                failures.append(error)

        frames = bench.take(64)
        thread = threading.Thread(target=load)
        thread.start()
        beside = bench.generate(bench.prompt(20), 32, How(frames=frames, quantum=1)).tokens
        thread.join()
        require(not failures, f"the load succeeds: {failures}")
        require(beside == undisturbed, "steps beside a load give the same tokens")
        require(_tokens_of(bench, 2) == undisturbed[:4], "the model loaded beside steps runs")


def _require_refusal(call: Callable[[T], object], argument: T) -> None:
    try:
        call(argument)
    except (ModelUnsupported, ModelCorrupt):
        return
    require(False, f"{argument} is refused with ModelUnsupported or ModelCorrupt")


def _require_unknown(bench: Bench, model_id: int) -> None:
    try:
        bench.driver.unload(model_id)
    except UnknownModel:
        return
    require(False, f"unload of model {model_id}, which is not loaded, raises UnknownModel")


def _ignore(_done: int, _total: int) -> None:
    """Progress that nobody looks at."""


def _tokens_of(bench: Bench, model_id: int) -> tuple[int, ...]:
    return bench.generate(bench.prompt(20), 4, How(model_id=model_id)).tokens


CHECKS = (
    probe_states_sane_capabilities,
    close_is_safe_twice_and_unopened,
    unknown_option_is_refused,
    inspect_tells_whole_granules,
    shorter_positions_are_kept,
    refused_models_leave_nothing,
    load_tells_progress,
    unload_gives_the_room_back,
    load_runs_beside_steps,
)
