"""Plain sampling, for the examples of the model card."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from examples.demo_model.chat import EOS, IM_END
from examples.demo_model.model import Llama
from examples.demo_model.tokenizer import token_id


@torch.no_grad()
def continue_text(model: Llama, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, temperature: float = 0.8) -> str:
    """Returns what the model writes after `BOS prompt`, up to its end token; the same call gives the same text."""
    generator = torch.Generator().manual_seed(0)
    ends = {token_id(tokenizer, EOS), token_id(tokenizer, IM_END)}
    prompt_ids: list[int] = tokenizer.encode(prompt).ids
    ids = list(prompt_ids)
    for _ in range(min(max_new_tokens, model.shape.max_position_embeddings - len(ids))):
        # The whole text is read again for each token: slow, but a sample is short and this needs no cache.
        logits = model(torch.tensor([ids]))[0, -1].float()
        probabilities = torch.softmax(logits / temperature, dim=-1)
        drawn = int(torch.multinomial(probabilities, 1, generator=generator))
        if drawn in ends:
            break
        ids.append(drawn)
    return str(tokenizer.decode(ids[len(prompt_ids) :]))
