"""The chat format of the demo model: its special tokens and how turns become text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

BOS, EOS, IM_START, IM_END = "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (BOS, EOS, IM_START, IM_END)
"""Their ids are their positions here: the tokenizer is trained with them first."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True, slots=True)
class ChatTurn:
    """What one side of a chat says."""

    role: str
    content: str


def render(turns: Sequence[ChatTurn]) -> str:
    """Returns the text of a chat as `CHAT_TEMPLATE` writes it, without the first `BOS`."""
    return "".join(f"{IM_START}{turn.role}\n{turn.content}{IM_END}\n" for turn in turns)
