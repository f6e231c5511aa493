"""Claims: weights that a living worker holds from an earlier front are taken over by the models that still want them.

They are known again by hash, so they are not read again. Nothing else is placed on the device before their room is claimed.
"""

from __future__ import annotations

import logging
from collections import defaultdict

from drivers.client import Device
from drivers.errors import DriverError
from drivers.wire import HeldModel
from kerneld.calls import ModelState
from kerneld.models import Model, ModelTable
from kerneld.weights.identities import Identities
from kerneld.weights.placement import Placement
from memory.costs import Costs
from memory.errors import PagingError

logger = logging.getLogger(__name__)


class Claims:
    """Takes over what a worker holds."""

    def __init__(self, models: ModelTable, placement: Placement, identities: Identities, costs: Costs) -> None:
        self._models = models
        self._placement = placement
        self._identities = identities
        self._costs = costs

    async def take(self, device: Device, held: tuple[HeldModel, ...]) -> set[str]:
        """Claim the room of weights that are wanted, and let the worker forget the others; answers the models that have theirs."""
        claimed: set[str] = set()
        wanted: dict[str, list[Model]] = defaultdict(list)
        for model in self._models:
            if model.state is ModelState.LOADING:
                wanted[model.weights_key].append(model)
        try:
            for kept in sorted(held, key=lambda kept: bool(kept.spec.base_id)):  # an adapter stays only with its base
                candidates = wanted[kept.weights_key]
                if candidates and await self._claim(device, candidates[0], kept):
                    claimed.add(candidates.pop(0).name)
                else:
                    await device.unload(kept.spec.model_id)
        except DriverError as error:
            logger.warning("weights of an earlier run could not be adopted", extra={"error": str(error)})
        return claimed

    async def _claim(self, device: Device, model: Model, kept: HeldModel) -> bool:
        """Take over the weights of one model. Returns whether they lie where they can stay. Raises: DriverError."""
        model.spec = spec = model.spec or await device.inspect(model.source)
        has_other_base = bool(model.base) and self._models.get(model.base).model_id != kept.spec.base_id
        if has_other_base or (model.model_id and model.model_id != kept.spec.model_id):
            return False
        try:
            self._placement.claim(model, kept.spec)
        except PagingError as error:
            logger.warning("weights of an earlier run are in the way", extra={"model": model.name, "error": str(error)})
            return False
        self._identities.give(model, spec, kept.spec)
        model.note_loaded(kept.loaded)
        self._costs.know_model(model.name, model.space_ids, kept.loaded.prefill_s)
        return True
