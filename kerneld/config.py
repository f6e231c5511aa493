"""The whole configuration: one frozen section per folder. It is read once, at start, and passed on; nothing here is global.

Every field has a unit in its name or type, a default, and a sentence (`metadata["doc"]`). `metadata` may also hold `min`, `max`
and `choices`. How values come in (file, environment, flags) and how they are shown is in `kerneld.settings`.

Paths that follow from others, unless they are given themselves:

    kerneld.runtime_dir    the folder of syscalls.socket, where that is given
    syscalls.socket        runtime_dir/kerneld.sock
    kerneld.worker_socket  runtime_dir/worker.sock
    kerneld.model_roots    state_dir/models

The section of the system calls stands here because no folder may import from one above it.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drivers.config import DriversConfig
from memory.config import MemoryConfig

KIB = 1 << 10
MIB = 1 << 20
LOG_LEVELS = ("debug", "info", "warning", "error")


class ConfigError(ValueError):
    """The configuration cannot be used; the text says where, what was given and what is accepted."""


def default_state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where durable state lies: what systemd gives, else the system's place for root, else the user's own (XDG)."""
    if environment.get("STATE_DIRECTORY"):
        return Path(environment["STATE_DIRECTORY"].split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/kerneld")
    return Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "kerneld"


def default_runtime_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where sockets lie: what systemd gives, else the system's place for root, else the user's own (XDG)."""
    if environment.get("RUNTIME_DIRECTORY"):
        return Path(environment["RUNTIME_DIRECTORY"].split(":")[0])
    if os.geteuid() == 0:
        return Path("/run/kerneld")
    if environment.get("XDG_RUNTIME_DIR"):
        return Path(environment["XDG_RUNTIME_DIR"]) / "kerneld"
    return default_state_dir(environment) / "run"


@dataclass(frozen=True, slots=True)
class KerneldConfig:
    """Section `kerneld`: the kernel itself."""

    state_dir: Path = field(
        default_factory=default_state_dir, metadata={"doc": "Folder of everything durable: database, journal, images, audit log."}
    )
    runtime_dir: Path = field(
        default_factory=default_runtime_dir, metadata={"doc": "Folder of sockets; emptied by a restart of the machine."}
    )
    worker_socket: Path = field(
        default_factory=lambda: default_runtime_dir() / "worker.sock", metadata={"doc": "Unix socket to which workers connect."}
    )
    page_file: Path | None = field(
        default=None, metadata={"doc": "File of the disk tier (memory.page_file_bytes); `pages` in the state directory unless given."}
    )
    start_workers: bool = field(default=True, metadata={"doc": "Whether the daemon starts its workers; false where systemd does."})
    model_roots: tuple[Path, ...] = field(
        default_factory=lambda: (default_state_dir() / "models",),
        metadata={"doc": "Folders under which models lie; no model is read from anywhere else."},
    )
    max_rows: int = field(default=32, metadata={"doc": "Most requests that run at once on a device.", "min": 1, "max": 1024})
    max_step_tokens: int = field(default=512, metadata={"doc": "Most tokens of one step, all requests together.", "min": 1, "max": 65536})
    max_steps: int = field(default=8, metadata={"doc": "Most steps of one quantum, made when nobody waits.", "min": 1, "max": 64})
    min_service_tokens: int = field(
        default=64, metadata={"doc": "Tokens that a request generates before it may lose its row to another one.", "min": 0, "max": 65536}
    )
    preempt_lag_s: float = field(
        default=0.25, metadata={"doc": "Device seconds by which a tenant is ahead that loses a row to one that waits.", "min": 0}
    )
    courtesy_s: float = field(
        default=0.25,
        metadata={"doc": "Device seconds by which who asks for little may be ahead of who has many rows and go first; 0: never.", "min": 0},
    )
    locality_lag_s: float = field(
        default=0.05,
        metadata={"doc": "Device seconds by which a tenant may be ahead and go first for what is cached of it; 0: never.", "min": 0},
    )
    growth_share: float = field(
        default=0.5,
        metadata={
            "doc": "Part of the output expected of running requests for which room is kept before others are seated; 0 preempts instead.",
            "min": 0.0,
            "max": 1.0,
        },
    )
    token_gap_factor: float = field(
        default=1.8,
        metadata={"doc": "A step in which input is read may take this many times what its generating requests alone take.", "min": 1.0},
    )
    token_gap_s: float = field(
        default=0.05, metadata={"doc": "Or so many seconds, where that is longer: a pause between tokens that nobody minds.", "min": 0}
    )
    max_queued: int = field(
        default=1024, metadata={"doc": "Most requests that wait, all tenants together; an eighth more for tenants with few.", "min": 1}
    )
    max_contexts: int = field(default=10_000, metadata={"doc": "Most contexts, all tenants together.", "min": 1})
    max_text_bytes: int = field(default=MIB, metadata={"doc": "Most bytes of text in one call's input.", "min": 1})
    max_messages: int = field(default=1024, metadata={"doc": "Most chat messages in one call.", "min": 1})
    max_stop_strings: int = field(default=16, metadata={"doc": "Most stop strings, and stop tokens, of one call.", "min": 0})
    max_stop_bytes: int = field(default=256, metadata={"doc": "Longest stop string, in bytes.", "min": 1})
    max_labels: int = field(default=32, metadata={"doc": "Most labels of a context.", "min": 0})
    max_label_bytes: int = field(default=256, metadata={"doc": "Longest key or value of a label, in bytes.", "min": 1})
    detach_grace_s: float = field(
        default=10.0, metadata={"doc": "Seconds that a request goes on after its reader left; 0 cancels it at once.", "min": 0}
    )
    drain_timeout_s: float = field(
        default=30.0, metadata={"doc": "Seconds that a stop waits for running requests; the rest goes on at the next start.", "min": 0}
    )
    worker_orphan_grace_s: float = field(
        default=30.0, metadata={"doc": "Seconds that a worker waits for a new daemon after its own died.", "min": 0}
    )
    step_deadline_factor: float = field(
        default=20.0, metadata={"doc": "A worker is killed when a step takes this many times what was predicted.", "min": 1}
    )
    step_deadline_floor_s: float = field(default=10.0, metadata={"doc": "Seconds that a step may always take.", "min": 0.01})
    journal_segment_bytes: int = field(default=64 * MIB, metadata={"doc": "Size at which the journal starts another file.", "min": 4 * KIB})
    disk_reserve_bytes: int = field(default=64 * MIB, metadata={"doc": "Free disk space below which no new work is admitted.", "min": 0})
    login_lifetime_s: float = field(default=3600.0, metadata={"doc": "Seconds that a login on the local socket is good for.", "min": 1})
    usage_days: int = field(default=400, metadata={"doc": "Days for which hours of usage are kept.", "min": 1})
    usage_half_life_days: float = field(
        default=7.0, metadata={"doc": "Days after which half of what a tenant used counts no more against its share.", "min": 0.01}
    )
    long_term_shares: bool = field(
        default=True, metadata={"doc": "Whether tenants that used less than their share of late get more for a while, and others less."}
    )
    share_update_s: float = field(default=300.0, metadata={"doc": "Seconds between two updates of those factors.", "min": 1})
    users: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "doc": 'Tenants of users: "uid:1000", "group:students" or, of a client certificate, "cert:NAME" to a path such as '
            '"lab/students"; other local users are under "local", other certificates are nobody.'
        },
    )
    log_level: str = field(default="info", metadata={"doc": "Least severe log lines that are written.", "choices": LOG_LEVELS})
    log_json: bool = field(default=False, metadata={"doc": "Whether log lines are JSON objects."})


@dataclass(frozen=True, slots=True)
class SyscallsConfig:
    """Section `syscalls`: the ways in."""

    socket: Path = field(
        default_factory=lambda: default_runtime_dir() / "kerneld.sock",
        metadata={"doc": "Unix socket of the system calls; the login socket beside it ends in `.login`."},
    )
    tcp: str = field(default="", metadata={"doc": "HOST:PORT for system calls over TCP; anything but loopback needs TLS. Empty: none."})
    tls_cert: Path | None = field(default=None, metadata={"doc": "Server certificate chain (PEM) for TCP."})
    tls_key: Path | None = field(default=None, metadata={"doc": "Private key (PEM) of the certificate."})
    tls_client_ca: Path | None = field(
        default=None, metadata={"doc": "Authorities (PEM) whose client certificates are accepted as identity."}
    )
    metrics: str = field(
        default="",
        metadata={
            "doc": "HOST:PORT, on loopback, of /metrics, /healthz and /readyz, for anybody on the machine, tenants' names too. Empty: none."
        },
    )
    max_message_bytes: int = field(default=4 * MIB, metadata={"doc": "Largest message of a call.", "min": 64 * KIB, "max": 256 * MIB})


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be configured."""

    memory: MemoryConfig = field(default_factory=MemoryConfig)
    drivers: DriversConfig = field(default_factory=DriversConfig)
    kerneld: KerneldConfig = field(default_factory=KerneldConfig)
    syscalls: SyscallsConfig = field(default_factory=SyscallsConfig)


def split_address(address: str, name: str = "address") -> tuple[str, int]:
    """Host and port of "HOST:PORT" or "[V6]:PORT"; `name` is the key that an error names. Raises: ConfigError."""
    host, separator, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{name} = {address!r} is not HOST:PORT, such as 127.0.0.1:8420.")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
