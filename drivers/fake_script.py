"""What the fake driver is told by `OpenSpec.options`: what goes wrong, and what things are said to cost."""

from __future__ import annotations

import msgspec

from drivers.contract import CopyTimes

DRAFT_BYTES = 12 << 10  # that a model has beyond the arena once it guesses
MEASURED_BYTES = 1 << 20


class FakeScript(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps, loads and copies are counted from 1, from `open` on; 0 and -1 mean never."""

    die_at_step: int = 0  # the process is killed
    hang_at_step: int = 0  # the step never returns
    step_s: float = 0.0  # every step takes so long
    error_token: int = -1  # computing it loses the device
    nan_token: int = -1  # computing it fails the row alone
    oom_at_load: int = 0  # this load finds too little memory
    slow_load_s: float = 0.0  # every load takes so long
    corrupt_host_copy: int = 0  # this copy to the host tier has a bit flipped
    corrupt_parked: int = 0  # this segment of weights in the host tier has a bit flipped
    draft_hits: int = 0  # of the tokens that are guessed for a row in a step, so many are right
    # Figures that the driver tells without taking that time; 0: of copies and of prefill it says nothing.
    copy_rate: float = 0.0  # bytes per second between host tier and device, either way
    prefill_s: float = 0.0  # seconds per token

    def copies(self, up_bytes: int, down_bytes: int) -> CopyTimes:
        """What copies of so many bytes are said to take."""
        if not self.copy_rate:
            return CopyTimes()
        return CopyTimes(up_bytes, up_bytes / self.copy_rate, down_bytes, down_bytes / self.copy_rate)

    def compute_s(self, num_tokens: int, elapsed_s: float) -> float:
        """What a step of so many tokens is said to take."""
        return num_tokens * self.prefill_s if self.prefill_s else elapsed_s
