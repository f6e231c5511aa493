"""Prospects: what stands between a model and a device, for whoever chooses one. A look that changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from drivers.client import Device
from kerneld.calls import ModelState
from kerneld.models import Model, ModelTable
from kerneld.weights.placement import Placement
from memory.errors import PagingError


class Prospect(IntEnum):
    """How a model would come to be on a device: the less, the better."""

    THERE = 0  # or on its way
    FREE = 1  # beside the models that are there
    FITS = 2  # once idle models have left
    CROWDED = 3  # once models that are in use have left
    STREAMED = 4  # it is larger than the device
    NEVER = 5


def prospect_of(model: Model, models: ModelTable, placement: Placement, demand: Callable[[Model], int], device: Device | None) -> Prospect:
    """The prospect of a model of which the driver has told its sizes; `demand`: requests on each model of the device."""
    if model.state in (ModelState.RESIDENT, ModelState.LOADING):
        return Prospect.THERE
    try:
        may_stream = device is not None and device.capabilities.streams
        places = placement.places(model, may_stream=may_stream)
        placement.check_room(model, may_stream=may_stream)
    except PagingError:
        return Prospect.NEVER
    if places != model.segment_sizes:
        return Prospect.STREAMED
    if placement.fits(places):
        return Prospect.FREE
    mobile = [each for each in models if each.is_resident and each.name not in models.pinned() and each.name != model.base]
    if placement.fits(places, [each.name for each in mobile if not demand(each)]):
        return Prospect.FITS
    return Prospect.CROWDED if placement.is_within_share(places, [each.name for each in mobile]) else Prospect.NEVER
