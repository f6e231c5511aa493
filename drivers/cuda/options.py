"""Settings of the CUDA driver (`OpenSpec.options`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drivers.errors import OptionUnknown

MAX_RUN_AHEAD = 8


@dataclass(frozen=True, slots=True)
class Options:
    """`device`: which one, as CUDA counts those that the process sees. `run_ahead`: decode steps that are queued behind the one that is
    asked for. `graphs`: whether they are captured.

    Two steps are enough where a step takes longer than the host needs for one; a plan that is cut waits for those queued.
    """

    device: int = 0
    run_ahead: int = 2
    graphs: bool = True

    @classmethod
    def read(cls, given: Mapping[str, str]) -> Options:
        """Raises: OptionUnknown."""
        unknown = sorted(given.keys() - {"device", "run_ahead", "graphs"})
        if unknown:
            raise OptionUnknown(f"The cuda driver has the options device, run_ahead and graphs; it was given {', '.join(unknown)}.")
        device = given.get("device", "0")
        if not device.isdecimal():
            raise OptionUnknown(f"device is {device!r}; it is the number of a CUDA device, 0 being the first.")
        run_ahead, graphs = given.get("run_ahead", "2"), given.get("graphs", "on")
        if not run_ahead.isdecimal() or int(run_ahead) > MAX_RUN_AHEAD:
            raise OptionUnknown(f"run_ahead is {run_ahead!r}; it is a number of steps, 0 to {MAX_RUN_AHEAD}.")
        if graphs not in ("on", "off"):
            raise OptionUnknown(f"graphs is {graphs!r}; it is on or off.")
        return cls(int(device), int(run_ahead), graphs == "on")
