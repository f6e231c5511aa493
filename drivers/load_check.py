"""Whether a load may have its ids, beside what a driver has loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from drivers.contract import LoadSpec
from drivers.errors import PlanRejected, UnknownModel


def check_ids(spec: LoadSpec, models: Mapping[int, Collection[int]], adapters: Collection[int] = ()) -> None:
    """Whether the ids of a load are free, and the base of an adapter is there. Raises: PlanRejected, UnknownModel.

    `models`: the spaces of each loaded model, by its id; `adapters`: their ids.
    """
    taken = {space_id for spaces in models.values() for space_id in spaces}
    if spec.model_id in models or spec.model_id in adapters or not taken.isdisjoint(spec.space_ids):
        raise PlanRejected(f"Model {spec.model_id} or one of its spaces {spec.space_ids} is in use already.")
    if bool(spec.base_id) != bool(spec.source.base):
        raise PlanRejected(f"Model {spec.model_id}: an adapter comes with the id and the path of its base, a model with neither.")
    if spec.base_id and spec.base_id not in models:
        raise UnknownModel(f"It has id {spec.base_id}, and is the base of adapter {spec.model_id}.")
