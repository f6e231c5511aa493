"""What a driver gets from `HostDriver` for nothing: refusals, and two models at a time. The suite is run on the example."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from drivers.conformance_bench import open_spec
from drivers.contract import Capabilities, InspectSpec, LoadSpec, Plan, RowRun, RowStart, Sampling
from drivers.errors import DeviceLost, HostTierInvalid, ModelUnsupported, OptionUnknown, PlanRejected
from drivers.host_driver import HostDriver
from drivers.hostmem import HostMemory
from memory.page import Move, Tier
from tests.drivers.cpu_rig import save_model
from tests.e2e.rig import ROOT

GREEDY = Sampling(temperature=0.0)
MIB = 1 << 20


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The plugin of the examples, from where it lies."""
    path = ROOT / "examples" / "driver_plugin" / "kerneld_bag_of_words.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def driver(example: ModuleType, tmp_path: Path) -> Iterator[HostDriver]:
    """Open, and nothing loaded; there is a model in the folder."""
    save_model(tmp_path, "Llama")
    driver: HostDriver = example.BagDriver()
    driver.open(open_spec(8), None)
    yield driver
    driver.close()


def load(driver: HostDriver, folder: Path, model_id: int, space_id: int, start: int = 0) -> None:
    """The model of a folder, from there on in the arena."""
    offsets = (start, start + MIB)
    driver.load(LoadSpec(model_id, InspectSpec(str(folder)), (space_id,), offsets), lambda _done, _total: None)


def likeliest(driver: HostDriver, model_id: int, frame: int) -> tuple[int, ...]:
    """What a model says behind three tokens."""
    start = RowStart(0, model_id, 0, (11, 12, 13), ((frame,),), GREEDY)
    driver.apply(Plan(1, model_id, starts=(start,), runs=(RowRun(0, 3),), num_steps=1))
    [row] = driver.step(0).rows
    driver.apply(Plan(1, model_id + 10, clears=(0,)))
    return row.tokens


@pytest.mark.parametrize("asked", [{"base": "/other"}, {"quant": "int8"}, {"kv_quant": "fp8"}])
def test_what_a_driver_does_not_state_is_refused_before_it_is_asked(driver: HostDriver, tmp_path: Path, asked: dict[str, str]) -> None:
    source = msgspec.structs.replace(InspectSpec(str(tmp_path)), **asked)
    with pytest.raises(ModelUnsupported, match="bag driver"):
        driver.inspect(source)
    with pytest.raises(ModelUnsupported, match="bag driver"):
        driver.load(LoadSpec(1, source, (10,), (0, MIB)), lambda _done, _total: None)


@pytest.mark.parametrize("changes", [{"dtype": "float16"}, {"options": {"speed": "high"}}, {"batch_invariant": True}])
def test_settings_that_a_driver_does_not_state_are_refused(example: ModuleType, changes: dict[str, object]) -> None:
    class Plain(example.BagDriver):  # type: ignore[name-defined, misc]
        def probe(self) -> Capabilities:
            told: Capabilities = super().probe()
            return msgspec.structs.replace(told, batch_invariant=False)

    driver = Plain()
    with pytest.raises(OptionUnknown):
        driver.open(msgspec.structs.replace(open_spec(1), **changes), None)
    driver.open(open_spec(1), None)
    driver.close()
    driver.close()
    with pytest.raises(DeviceLost):
        driver.inspect(InspectSpec("/nowhere"))


def test_two_models_at_a_time_have_ids_and_spaces_of_their_own(driver: HostDriver, tmp_path: Path) -> None:
    load(driver, tmp_path, model_id=1, space_id=10)
    for model_id, space_id in ((1, 20), (2, 10)):
        with pytest.raises(PlanRejected, match="in use already"):
            load(driver, tmp_path, model_id, space_id, start=2 * MIB)
    load(driver, tmp_path, model_id=2, space_id=20, start=2 * MIB)
    granules = MIB // open_spec(1).granule_bytes
    assert likeliest(driver, 1, frame=4 * granules) == likeliest(driver, 2, frame=5 * granules)
    driver.unload(2)
    assert likeliest(driver, 1, frame=4 * granules)
    driver.apply(Plan(1, 30, moves=(Move(20, Tier.DEVICE, 5 * granules, Tier.DEVICE, 6 * granules, bytes(16), 3),)))  # its pages stay


def test_a_model_that_goes_under_a_plan_is_named(driver: HostDriver, tmp_path: Path) -> None:
    load(driver, tmp_path, model_id=1, space_id=10)
    driver.apply(Plan(1, 1, starts=(RowStart(0, 1, 0, (11, 12), ((1024,),), GREEDY),), runs=(RowRun(0, 2),), num_steps=1))
    driver.unload(1)
    with pytest.raises(PlanRejected, match="unloaded under a plan"):
        driver.step(0)


@pytest.mark.parametrize("start", [RowStart(0, 9, 0, (11,), ((0,),), GREEDY), RowStart(0, 1, 0, (11,), ((1 << 20,),), GREEDY)])
def test_a_plan_that_names_what_is_not_there_is_refused(driver: HostDriver, tmp_path: Path, start: RowStart) -> None:
    load(driver, tmp_path, model_id=1, space_id=10)
    with pytest.raises(PlanRejected):
        driver.apply(Plan(1, 1, starts=(start,), runs=(RowRun(0, 1),), num_steps=1))
    assert likeliest(driver, 1, frame=1024)


def test_slots_are_refused(driver: HostDriver, tmp_path: Path) -> None:
    with pytest.raises(PlanRejected, match="streams no segments"):
        driver.load(LoadSpec(1, InspectSpec(str(tmp_path)), (10,), (0, MIB), slots=(2 * MIB,)), lambda _done, _total: None)


def test_the_host_tier_is_given_back_at_the_end_and_stays_the_callers_if_it_is_none(example: ModuleType) -> None:
    host = HostMemory.create(MIB, open_spec(1).granule_bytes)
    driver = example.BagDriver()
    with pytest.raises(HostTierInvalid):
        driver.open(open_spec(1, host_bytes=2 * MIB), host.fd)
    driver.open(open_spec(1, host_bytes=MIB), host.fd)
    driver.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        host.close()
