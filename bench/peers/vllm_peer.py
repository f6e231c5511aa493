"""vLLM on the CPU, in bfloat16 and compiled as it is by default. Arguments: model folder, threads.

Its engine runs in this process, so that who stops this process stops all of it.
"""

from __future__ import annotations

import os
import sys
from ctypes.util import find_library
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from worker import serve

CACHE = Path(sys.prefix) / "cache"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # it binds threads of processes that it starts; what it would set for them is set below
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # answers go to the standard output
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CACHE_ROOT": str(CACHE),
    "TMPDIR": str(CACHE),
    "KMP_BLOCKTIME": "5",
    "KMP_TPAUSE": "0",
}


def recommended(threads: int) -> dict[str, str]:
    """The libraries that it asks for (OpenMP of its own wheels, TCMalloc where the system has it), and a processor for each thread."""
    libraries = [str(Path(sys.prefix) / "lib" / "libiomp5.so"), find_library("tcmalloc_minimal")]
    cpus = ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:threads])
    return {
        "LD_PRELOAD": ":".join(library for library in libraries if library),
        "OMP_NUM_THREADS": str(threads),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{cpus}]",
    }


def main(folder: str) -> None:
    """Load the model and serve."""
    from vllm import LLM, SamplingParams  # reads the environment

    engine = LLM(folder, skip_tokenizer_init=True, dtype="bfloat16", enable_prefix_caching=False)

    def generate(prompts: list[list[int]], num_output: int) -> list[int]:
        sampling = SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True, detokenize=False)
        outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    serve(generate)


if __name__ == "__main__":
    if "LD_PRELOAD" not in os.environ:  # libraries are preloaded when a process starts
        CACHE.mkdir(exist_ok=True)
        os.environ |= {**ENVIRONMENT, **recommended(int(sys.argv[2]))}
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main(sys.argv[1])
