"""Drivers by name: the built-in ones, and those that other distributions offer under the entry-point group `kerneld.drivers`.

A driver is imported only when it is asked for, so that naming one costs nothing and a process loads the libraries of no other. Built-in
names cannot be taken over by an entry point. Whether a driver of another distribution does what it says is asked by `drivers.vetting`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from drivers.contract import CONTRACT_VERSION, Capabilities, Driver
from drivers.errors import DriverNotFound, DriverUnavailable

ENTRY_POINT_GROUP = "kerneld.drivers"
BUILT_IN = {
    "cpu": "drivers.cpu:CpuDriver",
    "cuda": "drivers.cuda.driver:CudaDriver",
    "fake": "drivers.fake:FakeDriver",
    "split": "drivers.split.driver:SplitDriver",
}
# What reads their settings, without the libraries that they compute with.
OPTION_READERS = {
    "cpu": "drivers.cpu_options:CpuOptions",
    "cuda": "drivers.cuda.options:Options",
    "split": "drivers.split.options:SplitOptions",
}
TOLD_BEFORE = frozenset({"split"})  # whose `probe` asks what the settings name
METHODS = tuple(sorted(name for name, value in vars(Driver).items() if callable(value) and not name.startswith("_")))
# Names that are taken, of what no worker can run.
NO_DRIVERS = {
    "sim": "sim is a device in virtual time (drivers.sim): it computes nothing and keeps no pages, so no worker runs it and the "
    "conformance suite does not apply. Use `kerneld sim WORKLOAD`.",
}


def available() -> list[tuple[str, str]]:
    """Return (name, origin) of every driver that can be asked for, sorted; origin is "built-in" or a distribution."""
    found = {name: _origin(point) for name, point in _offered().items()}
    found.update(dict.fromkeys(BUILT_IN, "built-in"))
    return sorted(found.items())


def create(name: str, options: Mapping[str, str] = MappingProxyType({})) -> Driver:
    """Return a new driver of that name, not opened. `options`: with which it is going to be, if that is known.

    Raises: DriverNotFound, naming those there are; DriverUnavailable, if a library that it needs is not installed, no worker runs it, or
    what its entry point names is no driver; OptionUnknown.
    """
    if name in NO_DRIVERS:
        raise DriverUnavailable(NO_DRIVERS[name])
    try:
        driver = _factory(name)(**({"options": options} if name in TOLD_BEFORE else {}))
    except ImportError as error:
        raise DriverUnavailable(
            f"{name} needs the module {error.name or 'of its entry point'}, which cannot be imported: {error}."
        ) from error
    missing = [method for method in METHODS if not callable(getattr(driver, method, None))]
    if missing:
        raise DriverUnavailable(
            f"{name} lacks {', '.join(missing)} of drivers.contract.Driver. Ask its author for a release that has them."
        )
    return driver


def check_options(name: str, options: Mapping[str, str]) -> None:
    """Whether a driver takes these settings, as far as it can be told without the driver: of `OPTION_READERS`. Raises: OptionUnknown."""
    target = OPTION_READERS.get(name)
    if target is not None:
        module_name, _, class_name = target.partition(":")
        getattr(importlib.import_module(module_name), class_name).read(options)


def probe(name: str, driver: Driver) -> Capabilities:
    """What a driver says of itself. Raises: DriverUnavailable, also if it was written for another contract."""
    told = driver.probe()
    if not isinstance(told, Capabilities):
        raise DriverUnavailable(f"{name} answers probe with {type(told).__name__}, not with drivers.contract.Capabilities.")
    if told.contract_version != CONTRACT_VERSION:
        raise DriverUnavailable(
            f"{name} {told.version} was written for version {told.contract_version} of the driver contract; this kerneld speaks version "
            f"{CONTRACT_VERSION}. Install a release of the driver that was written for it."
        )
    return told


def entry_point_of(name: str) -> EntryPoint | None:
    """What another distribution offers under a name; None of a driver that is built in, or that nobody offers."""
    return None if name in BUILT_IN else _offered().get(name)


def _factory(name: str) -> Callable[..., Driver]:
    target = BUILT_IN.get(name)
    if target is not None:
        module_name, _, class_name = target.partition(":")
        factory: Callable[..., Driver] = getattr(importlib.import_module(module_name), class_name)
        return factory
    offered = _offered()
    if name not in offered:
        names = ", ".join(known for known, _ in available())
        raise DriverNotFound(f"{name!r} is none of: {names}.")
    loaded: Callable[..., Driver] = offered[name].load()
    return loaded


def _offered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in NO_DRIVERS}


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
