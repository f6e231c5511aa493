"""OpenVINO GenAI with continuous batching. Arguments: folder of the converted model, threads, "f32", "bf16" or "" for how it computes."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import openvino as ov
import openvino_genai as genai
from worker import serve


def main(folder: str, threads: int, precision: str) -> None:
    """Load the model and serve."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2  # GiB
    scheduler.max_num_batched_tokens = 512
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = False
    settings: dict[str, object] = {"INFERENCE_NUM_THREADS": threads}
    if precision:
        settings["INFERENCE_PRECISION_HINT"] = precision
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", settings)

    def generate(prompts: list[list[int]], num_output: int) -> list[int]:
        config = genai.GenerationConfig(max_new_tokens=num_output, min_new_tokens=num_output, ignore_eos=True, do_sample=False)
        inputs = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = pipeline.generate(inputs, [config] * len(inputs))
        return [len(result.m_generation_ids[0]) for result in results]

    serve(generate)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
