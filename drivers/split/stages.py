"""Stages by the name of the driver whose device they are; what a device needs is imported only when it is asked for."""

from __future__ import annotations

from drivers.errors import DriverUnavailable
from drivers.split.stage import Stage


def make_stage(name: str) -> Stage:
    """A stage that is not open yet, of a name in `drivers.split.options.KINDS`. Raises: DriverUnavailable, if a library is missing."""
    if name == "cpu":
        from drivers.split.cpu_stage import CpuStage

        return CpuStage()
    try:
        from drivers.split.cuda_stage import CudaStage
    except ImportError as error:
        raise DriverUnavailable(f"{name} needs the module {error.name or 'of its driver'}, which cannot be imported: {error}.") from error
    return CudaStage()
