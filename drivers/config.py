"""What an administrator may set about devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DriversConfig:
    """Section `drivers`: which driver runs the device, and how it computes."""

    use: str = field(default="cpu", metadata={"doc": "Name of the driver: built in, or from the entry points `kerneld.drivers`."})
    threads: int = field(default=0, metadata={"doc": "Threads that compute; 0 is as many as the process may use.", "min": 0, "max": 1024})
    dtype: str = field(
        default="float32",
        metadata={"doc": "Number format of weights in use and of KV.", "choices": ("float32", "bfloat16", "float16")},
    )
    batch_invariant: bool = field(
        default=False,
        metadata={"doc": "Whether a continuation must be bit-identical whatever it is batched with, at some cost in speed."},
    )
    options: Mapping[str, str] = field(
        default_factory=dict, metadata={"doc": "Settings of the driver itself; one it does not know is refused."}
    )
