"""Models: the names that people use, the directories behind them, and what is known of each.

    REGISTERED --load--> LOADING --done--> RESIDENT --unload or worker lost--> REGISTERED
                            |
                            +--refused--> FAILED --load--> LOADING

`kerneld.weights.residency` alone moves a model between these states. Invariants:
1. A path is real, is a directory, and lies under a configured model root, whatever links say; so do the files in it.
2. `weights_hash` names the bytes: files that changed since are another model, and old pages and images do not fit it.
3. `model_id` and the space ids of a model are given once and stay for the life of this front, so that pages in the host tier outlive
   an unload and the death of a worker.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from drivers.contract import InspectSpec, LoadedModel, ModelSpec, OpReport
from kerneld.calls import LoadProgress, ModelInfo, ModelState, RegisterArgs
from kerneld.errors import InvalidArgument, NotFound
from kerneld.template import ChatTemplate
from kerneld.tokenizer import Tokenizer
from memory.page import Space

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
HASHED = ("*.safetensors", "*.gguf", "config.json", "tokenizer.json", "adapter_config.json", "fake.json")
HASH_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class HostImage:
    """Where the segments of a model lie in the host tier, and their crc32c."""

    offsets: tuple[int, ...]
    checksums: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Model:
    """One registered model, on one device: what that has of it, or could have."""

    # fixed at registration
    name: str
    path: str
    max_positions: int
    quant: str
    weights_hash: str
    registered_by: str
    tokenizer: Tokenizer | None
    template: ChatTemplate | None
    base: str = ""  # of an adapter: the name of the model that it changes
    base_path: str = ""
    kv_quant: str = ""
    device: str = ""  # that has it, or could have it
    # moved by kerneld.weights.residency
    state: ModelState = ModelState.REGISTERED
    spec: ModelSpec | None = None
    model_id: int = 0
    spaces: tuple[Space, ...] = ()
    fingerprint: bytes = b""
    progress: LoadProgress = field(default_factory=lambda: LoadProgress("waiting", 0, 0))
    failure: str = ""
    lacks_room: bool = False  # that is why it failed
    streamed_bytes: int = 0  # that every forward pass reads again
    stream_rate: float = 0.0  # bytes per second at which that began
    prefill_s: float = 0.0  # per token, of a short input when it was loaded; 0: the driver does not say
    runs_on: str = ""  # what computes it, in the driver's words
    ops: tuple[OpReport, ...] = ()
    image: HostImage | None = None  # in the host tier
    resident_since: float = 0.0
    num_loads: int = 0
    is_refused: bool = False  # the driver of this device cannot run it
    # kept by whoever computes on it
    last_used_at: float = 0.0
    is_pinned: bool = False

    @property
    def source(self) -> InspectSpec:
        """The model as a driver is asked for it."""
        return InspectSpec(self.path, self.max_positions, self.quant, self.base_path, self.kv_quant)

    @property
    def is_resident(self) -> bool:
        """Whether requests can run on it now."""
        return self.state is ModelState.RESIDENT

    @property
    def space_ids(self) -> tuple[int, ...]:
        """The spaces of its KV groups, in order."""
        return tuple(space.space_id for space in self.spaces)

    @property
    def segment_sizes(self) -> tuple[int, ...]:
        """Bytes of each segment of its weights in the arena; none while that is not known."""
        return tuple(segment.size_bytes for segment in self.spec.segments) if self.spec else ()

    @property
    def size_bytes(self) -> int:
        """Bytes of weights in the arena."""
        return sum(self.segment_sizes)

    @property
    def weights_key(self) -> str:
        """What a worker calls its weights, so that a later front knows them again."""
        return f"{self.weights_hash}:{self.quant}:{self.kv_quant}:{self.max_positions}:{self.base_path}"

    def note_loaded(self, loaded: LoadedModel) -> None:
        """What the device said of its load."""
        self.streamed_bytes, self.stream_rate, self.prefill_s = loaded.streamed_bytes, loaded.stream_rate, loaded.prefill_s
        self.runs_on, self.ops = loaded.runs_on, loaded.ops

    @property
    def stream_s(self) -> float:
        """Seconds that a forward pass takes at least to read what is streamed, at the rate that was measured first."""
        return self.streamed_bytes / self.stream_rate if self.stream_rate else 0.0

    def context_limit(self) -> int:
        """The longest context it can hold; 0 while that is not known."""
        return self.spec.max_positions if self.spec else self.max_positions

    def info(self, device: str) -> ModelInfo:
        """The model as callers see it."""
        spec = self.spec
        page_tokens = self.spaces[0].page_tokens if self.spaces else 1
        return ModelInfo(
            name=self.name,
            path=self.path,
            state=self.state,
            architecture=spec.architecture if spec else "",
            dtype=spec.dtype if spec else "",
            size_bytes=self.size_bytes,
            num_parameters=spec.num_parameters if spec else 0,
            max_positions=self.context_limit(),
            vocab_size=spec.vocab_size if spec else 0,
            weights_hash=self.weights_hash,
            device=device if self.is_resident else "",
            kv_bytes_per_token=sum(space.device_frame_bytes for space in self.spaces) // page_tokens,
            failure=self.failure,
            quant=(spec.quant if spec else "") or self.quant,
            kv_quant=self.kv_quant,
            has_chat_template=self.template is not None,
            base=self.base,
            streamed_bytes=self.streamed_bytes if self.is_resident else 0,
            stream_bytes_per_s=round(self.stream_rate) if self.is_resident else 0,
            tier="device" if self.is_resident else "host" if self.image else "disk",
            device_bytes=self.size_bytes - self.streamed_bytes if self.is_resident else 0,
            host_bytes=self.size_bytes if self.image else 0,
            is_pinned=self.is_pinned,
            last_used_at=self.last_used_at,
            num_loads=self.num_loads,
        )


class ModelTable:
    """All registered models by name, as one device has them."""

    def __init__(self, roots: Iterable[str]) -> None:
        self._roots = tuple(Path(root).resolve() for root in roots)
        self._models: dict[str, Model] = {}

    def __iter__(self) -> Iterator[Model]:
        return iter(sorted(self._models.values(), key=lambda model: model.name))

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def get(self, name: str) -> Model:
        """The model of that name. Raises: NotFound."""
        model = self._models.get(name)
        if model is None:
            raise NotFound("model", name)
        return model

    def pair(self, name: str, adapter: str) -> tuple[Model, str]:
        """The model and the name of the adapter that a context is asked for; an adapter's name alone stands for its base and itself.

        Raises: NotFound; InvalidArgument, if the adapter is not one of that model.
        """
        model = self.get(name)
        if model.base:
            if adapter not in ("", name):
                raise InvalidArgument("adapter", f"{name!r} is an adapter itself; name one adapter, or its base {model.base!r} and one.")
            model, adapter = self.get(model.base), name
        if adapter and self.get(adapter).base != model.name:
            raise InvalidArgument("adapter", f"{adapter!r} is not an adapter of {model.name!r}.")
        return model, adapter

    def adapters_of(self, base: str) -> list[Model]:
        """The registered adapters of a model, by name."""
        return [model for model in self if model.base == base]

    def pinned(self) -> set[str]:
        """Names of the models that may not leave: the pinned ones, and the bases of pinned adapters."""
        return {name for model in self._models.values() if model.is_pinned for name in (model.name, model.base) if name}

    def weights_of(self, names: Iterable[str]) -> str:
        """The hashes of a context's model and adapter: what its fingerprint says of their files. Raises: NotFound."""
        return "+".join(self.get(name).weights_hash for name in names)

    def add(self, model: Model) -> None:
        """Make a model known under its name."""
        self._models[model.name] = model

    def remove(self, name: str) -> None:
        """Forget a name."""
        del self._models[name]

    def resolve(self, args: RegisterArgs) -> Path:
        """The directory that a registration names. Raises: InvalidArgument, if the name or path is not acceptable (invariant 1)."""
        if not NAME.fullmatch(args.name):
            raise InvalidArgument("name", "use 1 to 128 letters, digits, '.', '_', ':' or '-', beginning with a letter or digit.")
        if not args.path:
            raise InvalidArgument("path", "name the directory of the model.")
        path = Path(args.path).resolve()
        if not self._is_inside(path):
            roots = ", ".join(str(root) for root in self._roots) or "none is configured"
            raise InvalidArgument("path", f"{args.path} is not under a model root ({roots}); see kerneld.model_roots.")
        if not path.is_dir() and not (path.is_file() and path.suffix == ".gguf"):
            raise InvalidArgument("path", f"{args.path} is neither a directory nor a GGUF file.")
        for file in path.iterdir() if path.is_dir() else ():
            if file.is_symlink() and not self._is_inside(file.resolve()):
                raise InvalidArgument("path", f"{file.name} in {args.path} is a link to something outside of the model roots.")
        return path

    def _is_inside(self, path: Path) -> bool:
        return any(path.is_relative_to(root) for root in self._roots)


def file_stamp(path: Path) -> str:
    """Names, sizes and times of a model's files: equal stamps need no new hash."""
    parts = []
    for file in _hashed_files(path):
        stat = file.stat()
        parts.append(f"{file.name}:{stat.st_size}:{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def hash_files(path: Path) -> str:
    """SHA-256 over names, sizes and bytes of a model's files; reads all of them (run it off the loop)."""
    digest = hashlib.sha256()
    for file in _hashed_files(path):
        digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def fingerprint_of(weights_hash: str, spec: ModelSpec, page_tokens: int) -> bytes:
    """Sixteen bytes that name everything on which the bits of a page depend (promise 4)."""
    text = f"{weights_hash}|{spec.numerics}|{spec.quant}|{spec.max_positions}|{page_tokens}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _hashed_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for pattern in HASHED for file in path.glob(pattern))
