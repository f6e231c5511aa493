"""What models that there are would launch, and the space of launches lacks: `python -m tests.drivers.triton.known`.

One line for each configuration or feature that is not in the space, and for each kernel that models with `batch_invariant` run in one step
as another binary than in another; none is as it should be.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch

from drivers.cuda.driver import DTYPES, kv_quants_of
from drivers.cuda.model import CudaModel
from drivers.models.storage import Kind, Storage
from tests.drivers.triton.ahead import ARCHITECTURES
from tests.drivers.triton.launch import recorded
from tests.drivers.triton.meta_runtime import MetaRuntime
from tests.drivers.triton.space import FAMILIES, MIXTURES, Model, launched, launches, of_kind, ready, run_step

MAX_ROWS = 33
STEPS = ((1,), (1,) * 30, (1, 70), (500,), (1, 9, 400, 3))  # tokens of their rows
GPTQ = Storage(Kind.INT4, 128, has_offsets=True)
SHAPES = (  # heads, KV heads, width of a head, hidden, inner, vocabulary
    (9, 3, 64, 576, 1536, 49152),
    (15, 5, 64, 960, 2560, 49152),
    (32, 8, 64, 2048, 8192, 128256),
    (24, 8, 128, 3072, 8192, 128256),
    (64, 8, 128, 8192, 28672, 128256),
    (32, 32, 80, 2560, 10240, 51200),
    (16, 1, 192, 2048, 5632, 32000),
    (48, 1, 128, 6144, 24576, 49152),
)


def models(kv_quants: tuple[str, ...]) -> Iterator[Model]:
    """Models of many sizes, each in some form."""
    forms = [(dtype, kv_quant) for dtype in DTYPES.values() for kv_quant in ("", *kv_quants)]
    for idx, (heads, kv_heads, head_dim, hidden, inner, vocabulary) in enumerate(SHAPES):
        config: dict[str, object] = {
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "hidden_size": hidden,
            "intermediate_size": inner, "vocab_size": vocabulary,
        }  # fmt: skip
        dtype, kv_quant = forms[idx % len(forms)]
        yield Model(config, dtype, kv_quant, quant=("", "int8", "int4")[idx % 3])
        yield Model(of_kind("Qwen3ForCausalLM", "qwen3", **config), dtype, form=GPTQ, page_tokens=32)
    for idx, family in enumerate((*FAMILIES, *MIXTURES)):
        dtype, kv_quant = forms[(2 * idx + 1) % len(forms)]
        yield Model(family, dtype, kv_quant, quant=("int4", "", "int8")[idx % 3])
        if family in FAMILIES:
            yield Model(family, dtype, kv_quant, quant=("", "int8", "int4")[idx % 3], batch_invariant=True)


def differing(model: Model, runtime: MetaRuntime) -> set[str]:
    """Kernels that are other binaries in some step of a model than in another."""
    box: list[CudaModel] = []
    with torch.inference_mode():
        recorded(lambda: box.append(ready(model, runtime, MAX_ROWS)))
        [made] = box
        steps = [recorded(partial(run_step, made, runtime, counts, MAX_ROWS)) for counts in STEPS]
    found = [{launch.key: launch.name for launch in step} for step in steps]
    return {found[idx][key] for idx in range(len(STEPS)) for key in found[idx] if any(key not in other for other in found)}


def lacking(architecture: int) -> list[str]:
    """What is not as it should be on one architecture."""
    runtime, found = MetaRuntime(architecture), list[str]()
    space = list(launches(architecture))
    known = {launch.configuration() for launch in space} | {feature for launch in space for feature in launch.features}
    for model in models(kv_quants_of(runtime)):
        for launch in launched(model, runtime, MAX_ROWS):
            for part in sorted({launch.configuration(), *launch.features} - known):
                known.add(part)
                found.append(f"{architecture}, {model.config.get('architectures', 'LlamaForCausalLM')}: {part}")
    for model in (model for model in models(kv_quants_of(runtime)) if model.batch_invariant):
        for name in sorted(differing(model, runtime)):
            found.append(f"{architecture}, {model.config['architectures']}, batch_invariant: {name} is not the same in every step")
    return found


if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for lines in pool.map(lacking, ARCHITECTURES):
            print(*lines, sep="\n", end="\n" if lines else "")  # noqa: T201
