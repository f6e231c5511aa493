"""The long-term factor: whoever used less than its share of late has more weight for a while, and whoever used more has less.

    among siblings     S = weight / sum of weights      U = decayed usage / sum of decayed usage
    factor             clamp(sqrt(S / U), 1/4, 4)       in thousandths

Source: share over half-life-decayed usage is the level fair-share of Slurm; the root tempers it, and the clamp bounds what a past can do
to the present. Between two updates factors are constant, so the bounds of `kerneld.fairshare` hold then, for weights times factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

ONE_MILLI: Final = 1000
LEAST_MILLI: Final = 250
MOST_MILLI: Final = 4000
# Siblings that have used less than this together, in device time, have no past worth balancing: the first requests on a fresh machine
# would swing factors between the clamps.
WARM_UP_US: Final = 300_000_000.0


def factors(weights: Mapping[str, int], used_us: Mapping[str, float], warm_up_us: float = WARM_UP_US) -> dict[str, int]:
    """The factors of siblings in thousandths, by their weights and decayed usages."""
    all_used, all_weights = sum(used_us.get(path, 0.0) for path in weights), sum(weights.values())
    if all_used < warm_up_us or all_used <= 0.0:
        return dict.fromkeys(weights, ONE_MILLI)
    return {path: _factor(weight / all_weights, used_us.get(path, 0.0) / all_used) for path, weight in weights.items()}


def _factor(share: float, used_share: float) -> int:
    if used_share * MOST_MILLI**2 <= share * ONE_MILLI**2:  # no division: nobody need have used anything
        return MOST_MILLI
    return max(LEAST_MILLI, min(MOST_MILLI, round(ONE_MILLI * math.sqrt(share / used_share))))
