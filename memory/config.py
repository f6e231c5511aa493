"""What an administrator may set about memory. Sizes are bytes; the config file also takes "512MiB" or "2GiB"."""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """Section `memory`: how large the tiers are, and how they are cut."""

    device_bytes: int = field(default=2 * GIB, metadata={"doc": "Device memory for weights and KV together.", "min": MIB})
    host_bytes: int = field(
        default=GIB, metadata={"doc": "Host memory for KV pages that left the device, a slab at least; 0 turns it off.", "min": 0}
    )
    disk_bytes: int = field(
        default=8 * GIB, metadata={"doc": "Disk space for checkpoint images, all tenants together; 0 is no limit.", "min": 0}
    )
    page_tokens: int = field(default=16, metadata={"doc": "Tokens of one page.", "min": 1, "max": 256})
    slab_bytes: int = field(
        default=4 * MIB,
        metadata={
            "doc": "Unit in which memory is lent to weights and KV; what is left behind the last whole page of one lies idle.",
            "min": 64 << 10,
        },
    )
    granule_bytes: int = field(
        default=4096, metadata={"doc": "Unit of frame addresses; frames and segments start on one.", "min": 512, "max": 64 << 10}
    )
    write_behind: bool = field(
        default=True, metadata={"doc": "Whether full pages are copied to the host tier before anybody needs their room."}
    )
    compact_ratio: float = field(
        default=1.1,
        metadata={"doc": "Slabs that KV may hold over what its pages need packed, before they are moved together; 0 is never.", "min": 0.0},
    )
    idle_return_s: float = field(
        default=0.0, metadata={"doc": "Idle time after which free slabs are given back to the device; 0 is never.", "min": 0.0}
    )
    stream: bool = field(
        default=True, metadata={"doc": "Whether a model larger than the device is run by streaming its layers; false refuses it."}
    )
    stream_kv_bytes: int = field(
        default=256 * MIB,
        metadata={
            "doc": "Device memory that weights leave to KV pages before they are streamed; an eighth of the device at most.",
            "min": 0,
        },
    )
    max_copies: int = field(
        default=64,
        metadata={"doc": "Most pages that one plan copies ahead of need, until bandwidth is measured; then time decides.", "min": 1},
    )
    host_weights_share: float = field(
        default=0.5, metadata={"doc": "Most of the host tier that weights of models take; 0 parks none.", "min": 0.0, "max": 1.0}
    )
    min_residency_s: float = field(
        default=10.0, metadata={"doc": "Seconds that a model in use stays on the device before another takes its room.", "min": 0.0}
    )
    max_model_wait_s: float = field(
        default=30.0, metadata={"doc": "Seconds after which requests on a model take the room of one that is in use.", "min": 0.0}
    )
    page_file_bytes: int = field(
        default=0, metadata={"doc": "Disk space for KV pages that left the host tier; 0 turns the tier off.", "min": 0}
    )
    device_low: float = field(
        default=0.05,
        metadata={"doc": "Part of the device that is free before its coldest pages are copied down ahead of need.", "min": 0.0, "max": 1.0},
    )
    device_high: float = field(
        default=0.1,
        metadata={"doc": "Part of the device that is then kept free, or in pages with a copy below.", "min": 0.0, "max": 1.0},
    )
    host_low: float = field(
        default=0.05, metadata={"doc": "Part of the host tier that is free before pages go to disk.", "min": 0.0, "max": 1.0}
    )
    host_high: float = field(
        default=0.1, metadata={"doc": "Part of the host tier that is free when no more pages go to disk.", "min": 0.0, "max": 1.0}
    )
    host_clean: float = field(
        default=0.5,
        metadata={
            "doc": "Part of the host tier, but for weights, that is kept free or in pages that are on disk too.",
            "min": 0.0,
            "max": 1.0,
        },
    )
    prefix_cache_bytes: int = field(
        default=0,
        metadata={
            "doc": "Most pages of freed contexts that are kept, while nobody needs the room, for new ones that begin alike; 0 keeps none.",
            "min": 0,
        },
    )
