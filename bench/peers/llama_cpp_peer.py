"""llama.cpp through its Python binding, several sequences in one batch. Arguments: GGUF file, threads."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import llama_cpp
import numpy as np
from worker import serve

BATCH_TOKENS = 512
CONTEXT_TOKENS = 16384  # of all sequences together


class Peer:
    """A loaded model and a context of many sequences."""

    def __init__(self, path: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = CONTEXT_TOKENS, BATCH_TOKENS, BATCH_TOKENS, 64
        settings.kv_unified = True
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError(f"{path} could not be loaded")
        self._num_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)

    def generate(self, prompts: list[list[int]], num_output: int) -> list[int]:
        """Prefill in batches of 512 tokens, all sequences together; then one token of each per batch."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        flat = [(token, position, seq) for seq, prompt in enumerate(prompts) for position, token in enumerate(prompt)]
        ends = {(len(prompt) - 1, seq) for seq, prompt in enumerate(prompts)}
        last: dict[int, int] = {}
        for start in range(0, len(flat), BATCH_TOKENS):
            last |= self._decode(flat[start : start + BATCH_TOKENS], ends)
        counts = [1] * len(prompts)
        for step in range(num_output - 1):
            rows = [(last[seq], len(prompt) + step, seq) for seq, prompt in enumerate(prompts)]
            last = self._decode(rows, {(position, seq) for _token, position, seq in rows})
            counts = [count + 1 for count in counts]
        return counts

    def _decode(self, rows: list[tuple[int, int, int]], wanted: set[tuple[int, int]]) -> dict[int, int]:
        """Run one batch; the likeliest next token of each sequence whose position is wanted."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for idx, (token, position, seq) in enumerate(rows):
            batch.token[idx], batch.pos[idx], batch.n_seq_id[idx], batch.seq_id[idx][0] = token, position, 1, seq
            batch.logits[idx] = (position, seq) in wanted
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        found = {}
        for idx, (_token, position, seq) in enumerate(rows):
            if (position, seq) in wanted:
                logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, idx), shape=(self._num_vocab,))
                found[seq] = int(logits.argmax())
        return found


if __name__ == "__main__":
    serve(Peer(sys.argv[1], int(sys.argv[2])).generate)
