"""What an administrator may set about devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """One of several devices. What is None is as in the sections `drivers`, `memory` and `kerneld`."""

    name: str = field(default="", metadata={"doc": "What it is called everywhere: small letters, digits, '-' and '_'."})
    driver: str = field(default="", metadata={"doc": "Name of its driver."})
    threads: int | None = field(default=None, metadata={"doc": "As drivers.threads.", "min": 0, "max": 1024})
    dtype: str | None = field(default=None, metadata={"doc": "As drivers.dtype.", "choices": DTYPES})
    batch_invariant: bool | None = field(default=None, metadata={"doc": "As drivers.batch_invariant."})
    options: Mapping[str, str] | None = field(default=None, metadata={"doc": "As drivers.options."})
    device_bytes: int | None = field(default=None, metadata={"doc": "As memory.device_bytes.", "min": 1 << 20})
    host_bytes: int | None = field(default=None, metadata={"doc": "As memory.host_bytes: a host tier of its own.", "min": 0})
    page_file_bytes: int | None = field(default=None, metadata={"doc": "As memory.page_file_bytes: a file of its own.", "min": 0})
    page_file: str | None = field(default=None, metadata={"doc": "As kerneld.page_file; `pages-NAME` in the state directory unless given."})
    max_rows: int | None = field(default=None, metadata={"doc": "As kerneld.max_rows.", "min": 1, "max": 1024})
    max_step_tokens: int | None = field(default=None, metadata={"doc": "As kerneld.max_step_tokens.", "min": 1, "max": 65536})


@dataclass(frozen=True, slots=True)
class DriversConfig:
    """Section `drivers`: which driver runs the device, and how it computes; or the devices, where there are several."""

    use: str = field(default="cpu", metadata={"doc": "Name of the driver: built in, or from the entry points `kerneld.drivers`."})
    threads: int = field(default=0, metadata={"doc": "Threads that compute; 0 is as many as the process may use.", "min": 0, "max": 1024})
    dtype: str = field(
        default="float32",
        metadata={"doc": "Number format of weights in use and of KV.", "choices": DTYPES},
    )
    batch_invariant: bool = field(
        default=False,
        metadata={
            "doc": "Whether a continuation must be bit-identical whatever it is batched with; native code of the cpu driver always is."
        },
    )
    options: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "doc": "Settings of the driver itself; one it does not know is refused. cpu: native (on, off), isa, cpus (0-3,8); "
            "cuda: device, run_ahead, graphs; split: parts, shares, and N.NAME of part N."
        },
    )
    trust: bool = field(
        default=False,
        metadata={"doc": "Whether drivers of other distributions run without having passed the conformance suite: at your own risk."},
    )
    check_limit_s: float = field(
        default=300.0,
        metadata={"doc": "How long the conformance suite may take on a driver of another distribution, before its first use.", "min": 1.0},
    )
    devices: tuple[DeviceConfig, ...] = field(
        default=(),
        metadata={
            "doc": 'Several devices, in place of the one of drivers.use: [{ name = "gpu0", driver = "cuda", device_bytes = "20GiB" }, '
            '{ name = "cpu0", driver = "cpu" }]; what one leaves out is as in the other keys.'
        },
    )
