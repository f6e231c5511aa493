"""`kerneld doctor`: whether this machine can run the daemon as it is configured, and what to do where it cannot.

Software and devices are looked at here, what the machine gives (memory, disk, sockets, limits) in `cli.host`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

from cli.findings import Finding, Level
from cli.host import examine_host
from cli.render import bytes_text
from drivers import registry, vetting
from drivers.errors import DriverError
from kerneld.config import Config
from kerneld.deviceconfig import config_by_device

REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[.*?\])?(?:>=([0-9.]+))?")
MIN_PYTHON = (3, 11)


def examine(config: Config) -> Iterator[Finding]:
    """Look at everything, cheapest first."""
    yield check_python()
    yield from check_packages()
    yield check_compiler()
    yield check_native()
    for device, each in config_by_device(config).items():
        yield from check_driver(each, device if config.drivers.devices else "")
    yield from check_torch()
    yield from check_accelerators()
    yield from examine_host(config)


def check_python() -> Finding:
    """The interpreter's version."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < MIN_PYTHON:
        return Finding("python", Level.FAIL, found, "Install Python 3.11 or newer.")
    return Finding("python", Level.OK, f"{found}, {sys.executable}")


def check_packages() -> Iterator[Finding]:
    """Every package that the daemon needs, against the least version that kerneld's own metadata asks for."""
    try:
        requirements = metadata.requires("kerneld") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "kerneld", Level.WARN, "not installed as a distribution", "pip install kerneld[daemon], or `make setup` in a checkout."
        )
        return
    for requirement in requirements:
        if "extra ==" in requirement and "daemon" not in requirement:
            continue
        match = REQUIREMENT.match(requirement)
        if match is not None:
            yield check_package(match[1], match[2] or "0")


def check_package(name: str, least: str) -> Finding:
    """One package, and that it is not too old."""
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, Level.FAIL, "not installed", "pip install 'kerneld[daemon]'")
    if version_key(found) < version_key(least):
        return Finding(name, Level.FAIL, f"{found}, older than {least}", f"pip install --upgrade {name}")
    return Finding(name, Level.OK, found)


def version_key(version: str) -> tuple[int, ...]:
    """The numbers of a release, for comparison; what follows them is left out."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()


def check_compiler() -> Finding:
    """The compilers that native code is built with: one of C for page copies, one of C++ for the engine of the cpu driver."""
    asked = {"C": os.environ.get("CC") or "cc", "C++": os.environ.get("CXX") or "c++"}
    found = {language: shutil.which(name) for language, name in asked.items()}
    missing = [f"no {language} compiler ({asked[language]})" for language, path in found.items() if path is None]
    if missing:
        advice = "Page copies (C) and the cpu driver (C++) are slower without. On Debian and Ubuntu: sudo apt install g++"
        return Finding("compiler", Level.WARN, ", ".join(missing), advice)
    return Finding("compiler", Level.OK, ", ".join(filter(None, found.values())))


def check_native() -> Finding:
    """The native code of the cpu driver: built now, if it was not before."""
    try:
        from drivers.native.build import cpu_library
        from drivers.native.isa import levels
    except ImportError:
        return Finding("native code", Level.WARN, "not looked at without its packages", "pip install 'kerneld[daemon]'")
    built = cpu_library()
    if built.library is None:
        return Finding("native code", Level.WARN, f"torch computes in its place: {built.why}", "Mend that, and start the daemon again.")
    others = "" if built.level == levels()[0] else f" (KERNELD_ISA; this processor could run {levels()[0]})"
    return Finding("native code", Level.OK, f"built for {built.level}{others}")


def check_driver(config: Config, device: str = "") -> Iterator[Finding]:
    """The configured driver on this machine; `device` is the name of one of several."""
    name, of_device = config.drivers.use, f" of {device}" if device else ""
    finding = check_conformance(config, f"conformance{of_device}")
    if finding is not None:
        yield finding
        if finding.level is Level.FAIL:
            return
    try:
        found = registry.probe(name, registry.create(name, config.drivers.options))
    except DriverError as error:
        yield Finding(
            f"driver{of_device}", Level.FAIL, f"{name}: {error}", "Install what it needs, or choose another driver with drivers.use."
        )
        return
    yield Finding(f"driver{of_device}", Level.OK, f"{found.driver} {found.version} on {found.device_name}")
    if config.drivers.dtype not in found.dtypes:
        yield Finding(
            f"dtype{of_device}",
            Level.FAIL,
            f"{name} cannot compute in {config.drivers.dtype}",
            f"Set drivers.dtype to one of {', '.join(found.dtypes)}.",
        )
    if config.drivers.batch_invariant and not found.batch_invariant:
        yield Finding(f"batch_invariant{of_device}", Level.FAIL, f"{name} is not batch-invariant", "Set drivers.batch_invariant = false.")
    if config.memory.device_bytes > found.memory_bytes:
        wanted, has = bytes_text(config.memory.device_bytes), bytes_text(found.memory_bytes)
        yield Finding(f"device memory{of_device}", Level.FAIL, f"{wanted} configured, the device has {has}", "Lower memory.device_bytes.")


def check_conformance(config: Config, check: str) -> Finding | None:
    """Whether a driver of another distribution does what the contract says; None of one that is built in, or not there."""
    name, limit_s = config.drivers.use, config.drivers.check_limit_s
    if config.drivers.trust and registry.entry_point_of(name) is not None:
        return Finding(check, Level.WARN, f"{name} is not asked, as drivers.trust says", "Take that out once it passes.")
    verdict = vetting.verdict_on(name, limit_s)
    if verdict is not None and verdict.complaint and verdict.is_remembered:
        verdict = vetting.verdict_on(name, limit_s, anew=True)
    if verdict is None:
        return None
    if verdict.complaint:
        return Finding(check, Level.FAIL, vetting.refusal(name, verdict), "Install a release that passes.")
    return Finding(check, Level.OK, f"{name} of {verdict.distribution} passes the suite")


def check_torch() -> Iterator[Finding]:
    """The instructions that torch computes with on this processor."""
    try:
        import torch
    except ImportError:
        return  # said among the packages
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "DEFAULT":
        yield Finding("processor", Level.WARN, "no vector instructions that torch knows", "Expect the cpu driver to be slow here.")
    else:
        yield Finding("processor", Level.OK, f"{capability}, {torch.get_num_threads()} threads")


def check_accelerators() -> Iterator[Finding]:
    """NVIDIA devices, where the library for them is."""
    try:
        from drivers import nvml
    except ImportError:
        yield Finding("accelerators", Level.WARN, "nvidia-ml-py is not installed", "pip install nvidia-ml-py")
        return
    try:
        num_devices = nvml.num_devices()
    except DriverError as error:
        yield Finding("accelerators", Level.WARN, str(error), "Run nvidia-smi, and mend what it says.")
        return
    if not num_devices:
        yield Finding("accelerators", Level.OK, "no NVIDIA driver on this machine")
    for index in range(num_devices):
        try:
            facts = nvml.read_facts(index)
        except DriverError as error:
            yield Finding(f"gpu {index}", Level.FAIL, str(error), "Take it out of use until it is mended.")
            continue
        text = f"{facts.name}, {bytes_text(facts.total_bytes - facts.used_bytes)} of {bytes_text(facts.total_bytes)} free"
        yield Finding(f"gpu {index}", Level.OK, text)
        for complaint in facts.complaints:
            yield Finding(f"gpu {index}", Level.WARN, complaint, "See nvidia-smi -q.")
