"""Devices as they are configured: for each one the whole configuration as it holds there, so that no part of it asks for anything else.

Without a list of devices there is one, called after its driver ("cpu0"), and the configuration is the daemon's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from drivers.config import DeviceConfig
from kerneld.config import Config

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def config_by_device(config: Config) -> Mapping[str, Config]:
    """The configuration as it holds for each device, by name, in the order in which they are given."""
    devices = config.drivers.devices
    if not devices:
        return {f"{config.drivers.use}0": config}
    return {device.name: _config_of(config, device) for device in devices}


def _config_of(config: Config, device: DeviceConfig) -> Config:
    given = {item.name: value for item in fields(device) if (value := getattr(device, item.name)) is not None}
    page_file = Path(given["page_file"]) if given.get("page_file") else config.kerneld.state_dir / f"pages-{device.name}"
    drivers = replace(config.drivers, use=device.driver, devices=(), **_only(given, config.drivers))
    memory = replace(config.memory, **_only(given, config.memory))
    kernel = replace(config.kerneld, **(_only(given, config.kerneld) | {"page_file": page_file}))
    return replace(config, memory=memory, drivers=drivers, kerneld=kernel)


def _only(given: Mapping[str, Any], section: Any) -> dict[str, Any]:
    """What was given of the keys of a section."""
    return {item.name: given[item.name] for item in fields(section) if item.name in given}
