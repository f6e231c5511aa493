"""Which linears of a model an adapter can change, by the names of their modules, and where each lies in the product that serves it.

That is whatever a family's description multiplies by in a layer, outside of experts: query, key and value apart or stored together,
output, gate and up, down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.config import DecoderConfig
from drivers.models.families.sheet import Sheet
from drivers.models.families.table import FAMILIES, write_down
from drivers.models.parts import Arrangement, PartSpec, Source

WEIGHT = ".weight"
LAYER = re.compile(r"0|[1-9]\d{0,3}")


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear as it is stored: the sources of its rows in a product, which lie one behind the other there as in the file."""

    module: str
    columns: int  # in
    sources: tuple[Source, ...]

    @property
    def rows(self) -> int:
        """Out."""
        return sum(source.num_rows for source in self.sources)

    @property
    def outputs(self) -> tuple[int, int]:
        """Its rows in the product, half-open."""
        return self.sources[0].row, self.sources[0].row + self.rows

    @property
    def has_output_columns(self) -> bool:
        """Whether its input is what attention gives, head by head."""
        return self.sources[0].arrangement is Arrangement.OUTPUT_COLUMNS


@dataclass(frozen=True, slots=True)
class Product:
    """Linears that the base serves by one product."""

    layer: int
    place: str  # the part, without ".weight"
    columns: int
    rows: int
    linears: tuple[Linear, ...]


def products_of(config: DecoderConfig) -> tuple[Product, ...]:
    """Every product of every layer, in order."""
    return tuple(product for sheet in write_down(config)[1:-1] for product in _products(sheet))


def refusal(config: DecoderConfig, module: str) -> ModelUnsupported | ModelCorrupt:
    """Why an adapter of `module` fits no linear of this base."""
    family, linears = FAMILIES[config.architecture], [linear for product in products_of(config) for linear in product.linears]
    number, _, name = module.removeprefix(f"{family.prefix}{family.layers}.").partition(".")
    if LAYER.fullmatch(number) and any(linear.module == f"{family.prefix}{family.layers}.0.{name}" for linear in linears):
        return ModelCorrupt(f"The adapter changes {module}; the base has {config.num_layers} layers. It was made for another base.")
    names = dict.fromkeys(linear.module.rsplit(".", 1)[-1] for linear in linears)
    return ModelUnsupported(f"The adapter changes {module[:200]}; supported are, of {config.architecture}, {', '.join(names)}.")


def turn_down(linear: Linear, values: Tensor, config: DecoderConfig) -> Tensor:
    """A `[rank, columns]` in the order of what the product reads."""
    if not linear.has_output_columns:
        return values
    heads = (config.num_kv_heads, config.num_queries_per_kv, config.head_dim)
    return values.view(-1, *heads).transpose(1, 2).reshape(values.shape)


def turn_up(linear: Linear, values: Tensor, config: DecoderConfig) -> Tensor:
    """B `[rows, rank]` in the order of what the product gives."""
    heads = (config.num_kv_heads, config.num_queries_per_kv, config.head_dim)
    answer = values.clone()
    first = linear.sources[0].row
    for source in linear.sources:
        if source.arrangement is Arrangement.QUERY_ROWS:
            rows = slice(source.row - first, source.row - first + source.num_rows)
            answer[rows] = values[rows].view(*heads, -1).transpose(0, 1).reshape(source.num_rows, -1)
    return answer


def _products(sheet: Sheet) -> Iterator[Product]:
    parts = {part.name: part for part in sheet.parts}
    for call in sheet.calls:
        if call.op == "linear":
            part = parts[call.parts[0]]
            rows, columns = part.shape
            yield Product(sheet.idx, part.name.removesuffix(WEIGHT), columns, rows, tuple(_linears(part)))


def _linears(part: PartSpec) -> Iterator[Linear]:
    modules = dict.fromkeys(source.tensor.removesuffix(WEIGHT) for source in part.sources)
    for module in modules:
        yield Linear(module, part.shape[1], tuple(source for source in part.sources if source.tensor == module + WEIGHT))
