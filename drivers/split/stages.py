"""Stages by the name of the driver whose device they are; what a device needs is imported only when it is asked for."""

from __future__ import annotations

from drivers.errors import OptionUnknown
from drivers.split.stage import Stage


def make_stage(name: str) -> Stage:
    """A stage that is not open yet. Raises: OptionUnknown; ImportError, if a library is missing."""
    if name == "cpu":
        from drivers.split.cpu_stage import CpuStage

        return CpuStage()
    raise OptionUnknown(f"{name} cannot be a part of a split device; cpu and cuda can.")
