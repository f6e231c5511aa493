"""What the CUDA driver has loaded: models, and adapters that change them. One value, so that a step sees a load wholly or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from drivers.contract import LoadSpec
from drivers.cuda.adapters import CudaAdapter
from drivers.cuda.model import CudaModel, FrameForm
from drivers.cuda.steps import Flight, StepQueue
from drivers.errors import PlanRejected, UnknownModel
from drivers.load_check import check_ids
from drivers.rows import ModelLimit
from drivers.rows import StepRows as Share


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that loads and unloads change."""

    models: Mapping[int, CudaModel] = field(default_factory=dict)
    queues: Mapping[int, StepQueue] = field(default_factory=dict)
    spaces: Mapping[int, FrameForm] = field(default_factory=dict)  # those of unloaded models stay: their pages may still be moved
    adapters: Mapping[int, CudaAdapter] = field(default_factory=dict)  # those of unloaded models stay, too

    def check_free(self, spec: LoadSpec) -> None:
        """Whether the ids of a load are free, and the base of an adapter is there. Raises: PlanRejected, UnknownModel."""
        check_ids(spec, {model_id: model.space_ids for model_id, model in self.models.items()}, self.adapters)

    def with_model(self, model_id: int, model: CudaModel, queue: StepQueue) -> Loaded:
        """The same with one model more."""
        spaces = dict(zip(model.space_ids, model.frames, strict=True))
        models, queues = {**self.models, model_id: model}, {**self.queues, model_id: queue}
        return replace(self, models=models, queues=queues, spaces={**self.spaces, **spaces})

    def with_adapter(self, adapter_id: int, adapter: CudaAdapter) -> Loaded:
        """The same with one adapter more."""
        return replace(self, adapters={**self.adapters, adapter_id: adapter})

    def without(self, model_id: int) -> Loaded:
        """The same without a model or an adapter. Raises: UnknownModel."""
        self.places(model_id)
        models = {other: model for other, model in self.models.items() if other != model_id}
        queues = {other: queue for other, queue in self.queues.items() if other != model_id}
        adapters = {other: adapter for other, adapter in self.adapters.items() if other != model_id}
        return replace(self, models=models, queues=queues, adapters=adapters)

    def places(self, model_id: int) -> tuple[tuple[int, int], ...]:
        """Offset and size of each segment of a model or an adapter. Raises: UnknownModel."""
        held = self.models.get(model_id) or self.adapters.get(model_id)
        if held is None:
            raise UnknownModel(f"It has id {model_id}.")
        return held.places

    def adapters_of(self, model_id: int) -> list[CudaAdapter]:
        """Those that change a model."""
        return [adapter for adapter in self.adapters.values() if adapter.base_id == model_id]

    def limits(self) -> dict[int, ModelLimit]:
        """What rows of each model may hold, and the adapters that they may name."""
        ids = {model_id: {idx for idx, each in self.adapters.items() if each.base_id == model_id} for model_id in self.models}
        return {model_id: replace(model.limit, adapter_ids=frozenset(ids[model_id])) for model_id, model in self.models.items()}

    def take(self, share: Share, step_idx: int, num_steps: int) -> Flight:
        """One model's share of a step, on its way. Raises: PlanRejected, if what it needs was unloaded."""
        queue = self.queues.get(share.model_id)
        if queue is None:
            raise PlanRejected(f"Model {share.model_id} was unloaded under a plan that runs it.")
        gone = {row.adapter_id for row in share.rows if row.adapter_id} - self.adapters.keys()
        if gone:
            raise PlanRejected(f"Adapter {min(gone)} was unloaded under a plan that runs it.")
        return queue.take(share, step_idx, num_steps, self.adapters)
