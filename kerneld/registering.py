"""A model as it is registered: from its files, or from what was written down of it."""

from __future__ import annotations

from pathlib import Path

from kerneld.calls import ModelState, RegisterArgs
from kerneld.catalog import Registered
from kerneld.models import Model, file_stamp, hash_files
from kerneld.state.tables import ModelRow
from kerneld.template import ChatTemplate
from kerneld.tokenizer import Tokenizer


def model_from(row: ModelRow, weights_hash: str, base: Registered | None = None) -> Model:
    """A registered model, or adapter of `base`; reads its tokenizer and template (run it off the loop). Raises: InvalidArgument."""
    path = Path(row.path)
    return Model(
        name=row.name,
        is_pinned=row.is_pinned,
        path=row.path,
        max_positions=row.max_positions if base is None else base.max_positions,
        quant=row.quant,
        kv_quant=row.kv_quant,
        weights_hash=weights_hash,
        registered_by=row.registered_by,
        tokenizer=Tokenizer.load(path) if base is None else None,  # contexts on an adapter speak as its base does
        template=ChatTemplate.load(path) if base is None else None,
        base="" if base is None else base.name,
        base_path="" if base is None else base.path,
        state=ModelState.REGISTERED,
    )


def read_model(args: RegisterArgs, path: Path, registered_by: str, base: Registered | None) -> tuple[ModelRow, Model]:
    """What is written down of a model, and the model; reads all of its files (run it off the loop). Raises: InvalidArgument."""
    stamp, weights_hash = file_stamp(path), hash_files(path)
    row = ModelRow(
        args.name,
        str(path),
        args.max_positions,
        args.quant,
        weights_hash,
        fingerprint="",
        file_stamp=stamp,
        want_loaded=False,
        registered_by=registered_by,
        base=args.base,
        kv_quant=args.kv_quant,
    )
    return row, model_from(row, weights_hash, base)
