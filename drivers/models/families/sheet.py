"""A segment being written down: its calls and its parts together, so that neither can name what the other lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drivers.models.config import DecoderConfig, LayerConfig
from drivers.models.parts import Arrangement, PartSpec, Source
from drivers.ops.calls import Call, NormSettings, Settings

Values = tuple[Sequence[str], Sequence[str]]  # read, written


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a linear that are stored together, under the name of a module."""

    module: str
    rows: int
    arrangement: Arrangement = Arrangement.PLAIN
    first: int = 0  # of the stored rows
    stored: int | None = None  # how many rows are stored; None: just these

    def weight(self, prefix: str, columns: int, row: int) -> Source:
        """What fills rows of a matrix from `row` on."""
        shape = (columns, self.rows) if self.arrangement is Arrangement.TRANSPOSED else (self.stored or self.rows, columns)
        return Source(f"{prefix}{self.module}.weight", shape, row, self.arrangement, self._taken)

    def bias(self, prefix: str, row: int) -> Source:
        """What fills values of a vector from `row` on."""
        arrangement = self.arrangement if self.arrangement is Arrangement.QUERY_ROWS else Arrangement.PLAIN
        return Source(f"{prefix}{self.module}.bias", (self.stored or self.rows,), row, arrangement, self._taken)

    @property
    def _taken(self) -> tuple[int, int] | None:
        return None if self.stored is None else (self.first, self.first + self.rows)


class Sheet:
    """Calls and parts of one segment, in order. `idx` counts layers; the first and the last segment have none."""

    def __init__(self, config: DecoderConfig, prefix: str, idx: int = -1) -> None:
        """`prefix` stands before the stored names of the segment."""
        self.config = config
        self.prefix = prefix
        self.idx = idx
        self.calls: list[Call] = []
        self.parts: list[PartSpec] = []

    @property
    def layer(self) -> LayerConfig:
        """What the layer has that others may not have."""
        return self.config.layers[self.idx]

    def call(
        self, op: str, values: tuple[Sequence[str], Sequence[str]], settings: Settings | None = None, parts: Sequence[str] = ()
    ) -> None:
        """One op; `values` are those that it reads and those that it writes."""
        inputs, outputs = values
        self.calls.append(Call(op, tuple(inputs), tuple(outputs), tuple(parts), () if settings is None else (settings,)))

    def tensor(self, name: str, stored: str, shape: tuple[int, ...], arrangement: Arrangement = Arrangement.PLAIN) -> str:
        """A part that one stored tensor fills; answers its name."""
        self.parts.append(PartSpec(name, shape, (Source(self.prefix + stored, shape, arrangement=arrangement),)))
        return name

    def norm(self, x: str, y: str, part: str, stored: str) -> None:
        """The norm of the family, over the hidden size."""
        config, width = self.config, (self.config.hidden_size,)
        parts = [self.tensor(part, f"{stored}.weight", width)]
        if config.has_layer_norm:
            parts.append(self.tensor(f"{part}.bias", f"{stored}.bias", width))
        op = "layer_norm" if config.has_layer_norm else "rms_norm"
        self.call(op, ([x], [y]), NormSettings(config.norm_eps, config.has_unit_offset), parts)

    def linear(self, part: str, values: tuple[str, str], columns: int, pieces: Sequence[Piece], has_bias: bool) -> None:
        """A product of `values`' first into its second, stored in pieces above one another."""
        names = [f"{part}.weight", f"{part}.bias"][: 2 if has_bias else 1]
        rows = [sum(piece.rows for piece in pieces[:idx]) for idx in range(len(pieces) + 1)]
        weights = tuple(piece.weight(self.prefix, columns, row) for piece, row in zip(pieces, rows, strict=False))
        self.parts.append(PartSpec(names[0], (rows[-1], columns), weights))
        if has_bias:
            biases = tuple(piece.bias(self.prefix, row) for piece, row in zip(pieces, rows, strict=False))
            self.parts.append(PartSpec(names[1], (rows[-1],), biases))
        self.call("linear", ([values[0]], [values[1]]), None, names)

    def add(self, x: str) -> None:
        """Back into the stream that runs through all layers."""
        self.call("add", ([x, "residual"], ["residual"]))
