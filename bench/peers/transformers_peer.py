"""`generate` of transformers on one batch, in bfloat16. Arguments: model folder, threads."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import transformers
from worker import serve


def main(folder: str, threads: int) -> None:
    """Load the model and serve."""
    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def generate(prompts: list[list[int]], num_output: int) -> list[int]:
        batch = torch.tensor(prompts)
        with torch.inference_mode():
            output = model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=num_output,
                min_new_tokens=num_output,
                do_sample=False,
                pad_token_id=0,
            )
        return [output.shape[1] - len(prompt) for prompt in prompts]

    serve(generate)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
