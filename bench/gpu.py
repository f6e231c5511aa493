"""What one NVIDIA device does with kerneld's kernels, in less than twenty minutes: `python -m bench.gpu [--json FILE] [--parts ...]`.

    kernels        every kernel against its definition, on the device
    rates          bytes per second of decode attention, linears, sampling
    mixtures       experts and adapters: against their definitions, and how fast
    models         decode steps of the 1B and 8B shapes against the memory's floor, the host's share of them, prefill
    memory         copies up and down by size, virtual memory, replays of graphs
    transformers   the same 1B shape in transformers' generate: what users have today

A part that fails is told as such, and the others go on. Without a device the program says what is missing, and ends with 2.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bench.gpu_ground import ONE_B, ModelShape
from bench.gpu_kernels import KernelSizes, check_kernels, kernel_rates
from bench.gpu_memory import MemorySizes, copy_figures, replay_figures, virtual_memory_figures
from bench.gpu_mixtures import MixtureSizes, mixture_figures
from bench.gpu_model import ModelSizes, model_figures
from bench.report import Figure, publish
from drivers.cuda.runtime import Runtime
from drivers.errors import DriverUnavailable

Part = Callable[[Runtime], Iterator[Figure]]


def memory_figures(runtime: Runtime) -> Iterator[Figure]:
    """Copies, virtual memory and replays."""
    sizes = MemorySizes()
    yield from copy_figures(runtime, sizes)
    yield from replay_figures(runtime, sizes)
    from drivers.vmm import CudaDriver

    yield from virtual_memory_figures(CudaDriver(runtime.device.index or 0), sizes)


def transformers_figures(runtime: Runtime, shape: ModelShape = ONE_B, rows: Sequence[int] = (1, 32), tokens: int = 64) -> Iterator[Figure]:
    """Tokens per second of `generate`, as it comes, behind a prompt of 1,024 tokens."""
    import transformers

    known = {name: value for name, value in shape.config.items() if name not in ("architectures", "model_type")}
    config = transformers.LlamaConfig(**known)  # type: ignore[arg-type]
    with torch.device(runtime.device):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    for num in rows:
        prompt = torch.randint(3, shape.vocabulary, (num, min(1024, 8 * tokens)), device=runtime.device)
        took = {}
        for length in (1, tokens + 1):
            settings = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False}
            model.generate(prompt, **settings)  # type: ignore[operator]
            began = time.perf_counter()
            model.generate(prompt, **settings)[0, -1].item()  # type: ignore[operator]
            took[length] = time.perf_counter() - began
        step = max(took[tokens + 1] - took[1], 1e-9) / tokens
        yield Figure(f"transformers generate, {shape.name}, {num} rows", num / step, "tokens/s", note=f"{1e3 * step:.3g} ms a step")


PARTS: dict[str, Part] = {
    "kernels": lambda runtime: check_kernels(runtime, KernelSizes()),
    "rates": lambda runtime: kernel_rates(runtime, KernelSizes()),
    "mixtures": lambda runtime: mixture_figures(runtime, MixtureSizes()),
    "models": lambda runtime: model_figures(runtime, ModelSizes()),
    "memory": memory_figures,
    "transformers": transformers_figures,
}


def measured(runtime: Runtime, names: Sequence[str], parts: dict[str, Part]) -> Iterator[Figure]:
    """The figures of some parts; of one that fails, a figure that says so."""
    for name in names:
        began = time.perf_counter()
        try:
            for figure in parts[name](runtime):
                print(f"{figure.what}: {figure.value:.4g} {figure.unit} {figure.note}", flush=True)
                yield figure
        except Exception as error:  # noqa: BLE001  (what a first run on a device may raise is not known; the other parts are worth having)
            traceback.print_exc()
            yield Figure(f"{name} failed", math.nan, "", "no failure", False, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
        yield Figure(f"{name} took", time.perf_counter() - began, "s")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="bench.gpu", description="Measure the kernels of kerneld on one NVIDIA device.")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to measure; all of it by default")
    parser.add_argument("--device", type=int, default=0, help="which device, as CUDA counts them")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the figures; the exit code is 1 if a part failed, 2 without a device."""
    wanted = parsed(arguments)
    from drivers.cuda.device import CudaRuntime

    try:
        runtime = CudaRuntime(wanted.device)
    except DriverUnavailable as error:
        sys.stderr.write(f"{error}\n")
        return 2
    torch.cuda.set_stream(runtime.compute.stream)  # what is made beside measured work is made before it
    with torch.inference_mode():
        figures = list(measured(runtime, wanted.parts, PARTS))
    publish("gpu", f"Kernels and steps on {runtime.facts().name}", figures, wanted.json)
    return int(any(math.isnan(figure.value) for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
