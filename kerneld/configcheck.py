"""What no single field of the configuration can tell: which values do not fit together."""

from __future__ import annotations

import sys

from drivers import registry
from drivers.config import DeviceConfig, DriversConfig
from drivers.errors import OptionUnknown
from kerneld.config import Config, ConfigError, SyscallsConfig, is_loopback, split_address
from kerneld.deviceconfig import NAME, config_by_device
from memory.config import MemoryConfig


def check_config(config: Config) -> None:
    """Check what no single field can tell. Raises: ConfigError, naming the keys that do not fit together."""
    _check_names(config.drivers.devices)
    for name, each in config_by_device(config).items():
        try:
            _check_sizes(each)
            _check_options(each.drivers)
        except ConfigError as error:
            raise ConfigError(f"device {name}: {error}" if config.drivers.devices else str(error)) from None
    for who, tenant in config.kerneld.users.items():
        _check_user(who, tenant)
    _check_addresses(config.syscalls)


def _check_names(devices: tuple[DeviceConfig, ...]) -> None:
    names = [device.name for device in devices]
    for device in devices:
        if not NAME.fullmatch(device.name):
            raise ConfigError(f"drivers.devices: a device has the name {device.name!r}; use 1 to 32 small letters, digits, '-' or '_'.")
        if not device.driver:
            raise ConfigError(f'drivers.devices: {device.name} has no driver: give it one, such as driver = "cpu".')
        if names.count(device.name) > 1:
            raise ConfigError(f"drivers.devices: two devices have the name {device.name!r}.")


def _check_sizes(config: Config) -> None:
    """What the memory and the rows of one device have to be to each other."""
    memory, kernel = config.memory, config.kerneld
    if memory.slab_bytes > memory.device_bytes:
        raise ConfigError(f"memory.slab_bytes ({memory.slab_bytes}) is larger than memory.device_bytes ({memory.device_bytes}).")
    _check_tiers(memory)
    if kernel.max_step_tokens < kernel.max_rows:
        raise ConfigError(
            f"kerneld.max_step_tokens ({kernel.max_step_tokens}) gives kerneld.max_rows ({kernel.max_rows}) rows less than a token each."
        )


def check_drivers(config: Config) -> None:
    """Check that there are drivers of the names that are given, for whoever is to run them. Raises: ConfigError."""
    known = [name for name, _origin in registry.available()]
    for each in config_by_device(config).values():
        if each.drivers.use not in known:
            raise ConfigError(
                f"drivers.use is {each.drivers.use!r}, and there is no such driver: there are {', '.join(known)}. "
                f"One of another distribution is installed with pip into the environment of {sys.executable}."
            )


def _check_options(drivers: DriversConfig) -> None:
    try:
        registry.check_options(drivers.use, drivers.options)
    except OptionUnknown as error:
        raise ConfigError(f"drivers.options: {error.detail}") from None


def _check_tiers(memory: MemoryConfig) -> None:
    for tier, low, high in (("device", memory.device_low, memory.device_high), ("host", memory.host_low, memory.host_high)):
        if low > high:
            raise ConfigError(f"memory.{tier}_low ({low}) is above memory.{tier}_high ({high}).")
    if memory.page_file_bytes and memory.host_bytes < memory.slab_bytes:
        raise ConfigError(
            "memory.page_file_bytes needs a host tier, because pages go to disk from there: set memory.host_bytes to"
            f" {memory.slab_bytes} (memory.slab_bytes) at least, or memory.page_file_bytes to 0."
        )
    if 0 < memory.host_bytes < memory.slab_bytes:
        raise ConfigError(
            f"memory.host_bytes ({memory.host_bytes}) is smaller than memory.slab_bytes ({memory.slab_bytes}), so there would be no host"
            " tier: set it to that at least, set memory.slab_bytes lower, or memory.host_bytes to 0, which turns it off."
        )
    if 0 < memory.page_file_bytes < memory.slab_bytes:
        raise ConfigError(
            f"memory.page_file_bytes ({memory.page_file_bytes}) is smaller than memory.slab_bytes ({memory.slab_bytes}); 0 turns it off."
        )


def _check_user(who: str, tenant: str) -> None:
    kind, _, name = who.partition(":")
    if kind not in ("uid", "group", "cert") or not name or (kind == "uid" and not name.isdigit()):
        raise ConfigError(f'kerneld.users: {who!r} is neither "uid:NUMBER" nor "group:NAME" nor "cert:COMMON NAME".')
    if not tenant or not all(tenant.split("/")):
        raise ConfigError(f'kerneld.users: {who!r} is mapped to {tenant!r}, which is not a tenant path such as "lab/students".')


def _check_addresses(syscalls: SyscallsConfig) -> None:
    if (syscalls.tls_cert is None) != (syscalls.tls_key is None):
        raise ConfigError("syscalls.tls_cert and syscalls.tls_key are given together or not at all.")
    if syscalls.tls_client_ca is not None and syscalls.tls_cert is None:
        raise ConfigError("syscalls.tls_client_ca needs syscalls.tls_cert and syscalls.tls_key.")
    if syscalls.tcp and not is_loopback(split_address(syscalls.tcp, "syscalls.tcp")[0]) and syscalls.tls_cert is None:
        raise ConfigError(
            f"syscalls.tcp = {syscalls.tcp!r} can be reached from other machines: set syscalls.tls_cert and syscalls.tls_key."
        )
    if syscalls.metrics and not is_loopback(split_address(syscalls.metrics, "syscalls.metrics")[0]):
        raise ConfigError(f"syscalls.metrics = {syscalls.metrics!r} must be on loopback, such as 127.0.0.1:9420.")
