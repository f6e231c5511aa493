"""The weights of a model larger than the device: what stays of it, and where the rest is fetched from, pass for pass.

    files      --read, arranged, converted-->  slot      the loader's way
    host tier  --copied-->                     slot      where it has images; each is checked the first time it is used

An image that does not hold its checksum is not used again: that segment comes from the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from crc32c import crc32c

from drivers.arena import Arena
from drivers.contract import LoadSpec
from drivers.copier import Copier
from drivers.errors import StreamBroken
from drivers.hostmem import HostMemory
from drivers.models.decoder import DecoderWeights, Layer
from drivers.models.loader import ModelFiles, Target, load_weights, segment_views
from drivers.models.streaming import SegmentStream
from drivers.weight_image import PIECE_BYTES, Copied, check_images, copy_segments


@dataclass(frozen=True, slots=True)
class Images:
    """Where the host tier has the segments of a model, and what is known of them."""

    host: HostMemory
    offsets: Sequence[int]  # of every segment, in bytes
    checksums: Sequence[int]
    checked: set[int] = field(default_factory=set)  # segments whose image was read once and held
    corrupt: set[int] = field(default_factory=set)  # segments whose image did not hold


class SegmentSource:
    """Fills slots. Its methods are called from the thread of one stream."""

    def __init__(self, files: ModelFiles, target: Target, streamed: Sequence[int], slots: Sequence[int]) -> None:
        """`streamed` are the segments, in the order of a pass; `slots` byte offsets in the arena."""
        self._files = files
        # A copier of its own: it does not give way to steps, which wait for it.
        self._target = replace(target, copier=Copier())
        self._streamed = streamed
        self._slots = slots
        self.images: Images | None = None

    def fill(self, idx: int, slot: int, check: Callable[[], None]) -> int:
        """See `drivers.models.streaming.Fill`. Raises: ModelCorrupt, OSError; the slot is then half written."""
        segment, start = self._streamed[idx], self._slots[slot]
        size_bytes = self._files.segments[segment].size_bytes
        images = self.images
        if images is None or segment in images.corrupt or not self._copy(images, segment, start, check):
            self._read(segment, replace(self._target, offsets=(start,)), check)
        return size_bytes

    def write_image(self, segment: int, target: memoryview) -> None:
        """Read a segment from its files to where its image is to be. Raises: ModelCorrupt, OSError."""
        with torch.inference_mode():
            place = replace(self._target, arena=torch.frombuffer(target, dtype=torch.uint8), offsets=(0,), copier=Copier())
            self._read(segment, place, lambda: None)

    def _read(self, segment: int, target: Target, check: Callable[[], None]) -> None:
        load_weights(replace(self._files, segments=(self._files.segments[segment],)), target, lambda _done, _total: check())

    def _copy(self, images: Images, segment: int, start: int, check: Callable[[], None]) -> bool:
        """Copy an image into a slot. Returns whether it held."""
        size_bytes = self._files.segments[segment].size_bytes
        place: np.ndarray = self._target.arena[start : start + size_bytes].numpy()
        span = images.host.span(images.offsets[segment], size_bytes)
        if segment not in images.checked:
            (found,) = copy_segments([Copied(span, place.data)], self._target.copier, lambda _size: check())
            (images.checked if found == images.checksums[segment] else images.corrupt).add(segment)
            return segment in images.checked
        source = np.frombuffer(span, dtype=np.uint8)
        for first in range(0, size_bytes, PIECE_BYTES):
            check()
            np.copyto(place[first : first + PIECE_BYTES], source[first : first + PIECE_BYTES])
        return True


class StreamedLayers:
    """The layers of a decoder, some resident, some on their way. Each `iter` is one forward pass; one at a time."""

    def __init__(self, resident: Mapping[int, Layer], slots: Sequence[Sequence[Layer]], stream: SegmentStream) -> None:
        """`resident` by layer; `slots[i][j]` is the i-th streamed layer seen in slot j."""
        self._resident = resident
        self._slots = slots
        self._stream = stream

    def __iter__(self) -> Iterator[Layer]:
        """Give each layer in turn; it is finished when the next one is asked for. Raises: StreamBroken."""
        stream = self._stream
        turn = stream.begin()
        for layer in range(len(self._resident) + len(self._slots)):
            if layer in self._resident:
                yield self._resident[layer]
                continue
            slot = stream.wait(turn)
            yield self._slots[turn % stream.num_segments][slot]
            stream.finish(turn)
            turn += 1


@dataclass(frozen=True, slots=True)
class StreamedWeights:
    """A model of which only a part is in the arena."""

    weights: DecoderWeights
    stream: SegmentStream
    source: SegmentSource

    def park(
        self, arena: Arena, host: HostMemory, places: Sequence[tuple[int, int]], host_offsets: Sequence[int], copier: Copier
    ) -> tuple[int, ...]:
        """Write the image of every segment, and stream from there from now on; they stay what they are until the stream is closed.

        Answers their checksums. Raises: PlanRejected, ModelCorrupt, OSError; the files are then streamed from as before.
        """
        check_images([size for _, size in places], host_offsets, host)
        checksums: list[int] = []
        for idx, ((offset, size), start) in enumerate(zip(places, host_offsets, strict=True)):
            span = host.span(start, size)
            if offset < 0:
                self.source.write_image(idx, span)
                checksums.append(crc32c(span))
            else:
                checksums += copy_segments([Copied(arena.span(offset, size), span)], copier, lambda _size: None)
        self.source.images = Images(host, host_offsets, checksums)
        return tuple(checksums)


def stream_weights(
    files: ModelFiles, target: Target, spec: LoadSpec, host: HostMemory | None, progress: Callable[[int, int], None]
) -> StreamedWeights:
    """Load what stays, and stream the segments whose offset is negative; the first slots are full when this returns.

    The caller closes the stream. Raises: ModelCorrupt, ModelUnsupported, PlanRejected, StreamBroken.
    """
    streamed = [idx for idx, offset in enumerate(target.offsets) if offset < 0]
    kept = [idx for idx, offset in enumerate(target.offsets) if offset >= 0]
    source = SegmentSource(files, target, streamed, spec.slots)
    if spec.host_offsets and host is not None:
        check_images([segment.size_bytes for segment in files.segments], spec.host_offsets, host)
        source.images = Images(host, spec.host_offsets, spec.checksums)
    resident = replace(target, offsets=tuple(target.offsets[idx] for idx in kept))
    views = dict(
        zip(kept, load_weights(replace(files, segments=tuple(files.segments[idx] for idx in kept)), resident, progress), strict=True)
    )
    first, end = views.pop(0), views.pop(len(files.segments) - 1)
    seen = [[Layer(slot, segment_views(files.segments[idx], target, slot)) for slot in spec.slots] for idx in streamed]
    stream = SegmentStream(len(streamed), len(spec.slots), source.fill)
    try:
        stream.wait(min(len(streamed), len(spec.slots)) - 1)
    except StreamBroken:
        stream.close()
        raise
    layers = StreamedLayers({idx - 1: Layer(target.offsets[idx], parts) for idx, parts in views.items()}, seen, stream)
    return StreamedWeights(DecoderWeights(first, layers, end), stream, source)
