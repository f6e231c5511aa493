"""Catalog: the registered models, whatever device they are on.

    Registered "m" ----> Model "m" of cpu0   RESIDENT     the copies: what one device has of the model, or could have
                   '---> Model "m" of gpu0   REGISTERED

Every device has a table of copies of its own (`kerneld.models`), each registered model being in all of them; what people name is the
registered one.

Invariants
1. Every device's table has the same names.
2. `num_contexts` equals the contexts in the context table that are on the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from kerneld.calls import CopyInfo, ModelInfo, ModelState, RegisterArgs
from kerneld.errors import NotFound
from kerneld.models import Model, ModelTable

_RANK = {ModelState.RESIDENT: 0, ModelState.LOADING: 1, ModelState.FAILED: 2, ModelState.REGISTERED: 3}


class Registered:
    """A model that has a name here."""

    def __init__(self, copies: Iterable[Model]) -> None:
        """`copies`: one for each device, in the order of devices."""
        self.copies = tuple(copies)
        self.num_contexts = 0  # kept by the context table
        self._first = first = self.copies[0]
        self.name, self.path, self.base, self.weights_hash = first.name, first.path, first.base, first.weights_hash
        self.tokenizer, self.template = first.tokenizer, first.template
        self.max_positions, self.quant, self.kv_quant = first.max_positions, first.quant, first.kv_quant

    def on(self, device: str) -> Model:
        """Its copy on a device. Raises: NotFound."""
        for copy in self.copies:
            if copy.device == device:
                return copy
        raise NotFound("device", device)

    @property
    def main(self) -> Model:
        """The copy that is furthest: a resident one, else one that loads."""
        return min(self.copies, key=lambda copy: _RANK[copy.state])

    @property
    def known(self) -> Model:
        """A copy of which a driver has said something, if there is one: what follows from its files is the same for all."""
        return next((copy for copy in self.copies if copy.spec is not None), self._first)

    @property
    def is_pinned(self) -> bool:
        """Whether it leaves no device for others."""
        return self._first.is_pinned

    def pin(self, is_pinned: bool) -> None:
        """Let it leave for no other one, or let it again, wherever it is."""
        for copy in self.copies:
            copy.is_pinned = is_pinned

    def context_limit(self) -> int:
        """The longest context it can hold; 0 while that is not known."""
        return self.known.context_limit()

    def info(self, names: Mapping[str, str]) -> ModelInfo:
        """The model as callers see it; `names` are those of devices as they are shown."""
        main, there = self.main, [copy for copy in self.copies if copy.is_resident]
        base = main if main.spec is not None else self.known
        shown = base.info(names[base.device])
        return replace(
            shown,
            state=main.state,
            device=", ".join(names[copy.device] for copy in there),
            tier="device" if there else "host" if any(copy.image for copy in self.copies) else "disk",
            device_bytes=sum(copy.info("").device_bytes for copy in there),
            host_bytes=sum(copy.info("").host_bytes for copy in self.copies),
            failure=next((copy.failure for copy in self.copies if copy.failure and not there), ""),
            num_contexts=self.num_contexts,
            last_used_at=max(copy.last_used_at for copy in self.copies),
            num_loads=sum(copy.num_loads for copy in self.copies),
            copies=tuple(_copy_info(copy, names[copy.device]) for copy in self.copies) if len(self.copies) > 1 else (),
        )


def _copy_info(copy: Model, name: str) -> CopyInfo:
    info = copy.info(name)
    return CopyInfo(
        device=name,
        state=copy.state,
        tier=info.tier,
        dtype=info.dtype,
        device_bytes=info.device_bytes,
        host_bytes=info.host_bytes,
        streamed_bytes=info.streamed_bytes,
        failure=copy.failure,
        prefill_s=copy.prefill_s,
    )


class Catalog:
    """All registered models by name."""

    def __init__(self, tables: Mapping[str, ModelTable]) -> None:
        """`tables`: those of the devices, by name."""
        self._tables = dict(tables)
        self._first = next(iter(self._tables.values()))
        self._registered: dict[str, Registered] = {}

    def __iter__(self) -> Iterator[Registered]:
        return iter(sorted(self._registered.values(), key=lambda model: model.name))

    def __contains__(self, name: str) -> bool:
        return name in self._registered

    def get(self, name: str) -> Registered:
        """The model of that name. Raises: NotFound."""
        model = self._registered.get(name)
        if model is None:
            raise NotFound("model", name)
        return model

    def made(self, model: Model) -> Registered:
        """A model as it would be registered, with a copy for each device; nobody knows of it yet."""
        return Registered(replace(model, device=device) for device in self._tables)

    def add(self, model: Registered) -> None:
        """Make a model known under its name."""
        self._registered[model.name] = model
        for copy in model.copies:
            self._tables[copy.device].add(copy)

    def remove(self, name: str) -> None:
        """Forget a name."""
        del self._registered[name]
        for table in self._tables.values():
            table.remove(name)

    def pair(self, name: str, adapter: str) -> tuple[Registered, str]:
        """The model and the name of the adapter that a context is asked for. Raises: NotFound, InvalidArgument."""
        model, adapter = self._first.pair(name, adapter)
        return self.get(model.name), adapter

    def adapters_of(self, base: str) -> list[Registered]:
        """The registered adapters of a model, by name."""
        return [model for model in self if model.base == base]

    def weights_of(self, names: Iterable[str]) -> str:
        """The hashes of a context's model and adapter: what its fingerprint says of their files. Raises: NotFound."""
        return self._first.weights_of(names)

    def resolve(self, args: RegisterArgs) -> Path:
        """The directory that a registration names. Raises: InvalidArgument."""
        return self._first.resolve(args)
