"""Tariffs: the prices of every model, and which of them are not written down yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kerneld.pricing.tariff import UNCALIBRATED, Tariff


class Tariffs:
    """The tariff of each model; a model that is not known has the one that stands in until it was measured."""

    def __init__(self) -> None:
        self._tariffs: dict[str, Tariff] = {}  # those that were measured
        self._changed: set[str] = set()

    def get(self, model: str) -> Tariff:
        """The tariff by which requests are charged that are admitted from now on."""
        return self._tariffs.get(model, UNCALIBRATED)

    def put(self, model: str, tariff: Tariff) -> None:
        """A model has another tariff."""
        if tariff != self.get(model):
            self._set(model, tariff)
            self._changed.add(model)

    def forget(self, model: str) -> None:
        """A model was removed: another one of its name has to be measured."""
        self.put(model, UNCALIBRATED)

    # ----------------------------------------------------------------------------------------------------------- keeping and restoring

    def snapshot(self) -> dict[str, Tariff]:
        """Every tariff that was measured, by model."""
        return dict(self._tariffs)

    def changes(self) -> dict[str, Tariff]:
        """The tariffs that changed since the last call; a forgotten one is the uncalibrated one."""
        changed = {model: self.get(model) for model in sorted(self._changed)}
        self._changed.clear()
        return changed

    def unkept(self, models: Iterable[str]) -> None:
        """Changes could not be written: they count as changed again."""
        self._changed.update(models)

    def restore(self, tariffs: Mapping[str, Tariff]) -> None:
        """Put tariffs back, as `snapshot` gave them or all `changes` one over the other."""
        for model, tariff in tariffs.items():
            self._set(model, tariff)

    def _set(self, model: str, tariff: Tariff) -> None:
        if tariff == UNCALIBRATED:
            self._tariffs.pop(model, None)
        else:
            self._tariffs[model] = tariff
