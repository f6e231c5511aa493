"""The tariff of a model: what its tokens cost, in device time. A pure, monotone function of how many tokens, and where they stand.

    0             num_cached              num_tokens              num_tokens + num_output
    |-- cached_ns -|------- input_ns ------|------- output_ns -----|          per token, and `context_ns` for every token before it

Prices are integer nanoseconds, costs integer microseconds. A cost is the difference of two values of one cumulative function that is
rounded down, so that costs of adjoining ranges add up to that of the whole, exactly: a request pays the same however its tokens come.
"""

from __future__ import annotations

from typing import Final

import msgspec

_NS_PER_US: Final = 1000


class Tariff(msgspec.Struct, frozen=True, array_like=True):
    """Prices of one model, in nanoseconds of device time per token. None is negative."""

    input_ns: int  # to compute one token of input among many
    cached_ns: int  # for an input token whose KV is there already
    output_ns: int  # to generate one token, its part of a step included
    context_ns: int = 0  # for each computed token, per token that stands before it: what attention reads

    def input_us(self, num_cached: int, num_tokens: int) -> int:
        """Cost of an input that ends at `num_tokens`, of which the leading `num_cached` need no computing."""
        computed = self._until(self.input_ns, num_tokens) - self._until(self.input_ns, num_cached)
        return self.cached_ns * num_cached // _NS_PER_US + computed

    def output_us(self, position: int, num_tokens: int) -> int:
        """Cost of `num_tokens` output tokens, the first of which stands at `position`."""
        return self._until(self.output_ns, position + num_tokens) - self._until(self.output_ns, position)

    def _until(self, token_ns: int, position: int) -> int:
        """Microseconds for all tokens before `position`, were none of them cached."""
        return (token_ns * position + self.context_ns * (position * (position - 1) // 2)) // _NS_PER_US


# Until a model was measured: input 1, output 2, cached input a tenth. Source: Sheng et al. (OSDI 2024) for the first two.
UNCALIBRATED: Final = Tariff(input_ns=10_000, cached_ns=1_000, output_ns=20_000)
