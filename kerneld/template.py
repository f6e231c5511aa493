"""The chat template of a model: how messages become a prompt. It is rendered by `kerneld.renderer`, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.gguf import find_gguf
from kerneld.errors import InvalidArgument
from kerneld.gguftokenizer import template_of

MAX_FILE_BYTES: Final = 32 << 20
MAX_TEMPLATE_CHARACTERS: Final = 1 << 18

_CONFIG: Final = "tokenizer_config.json"
_TEMPLATE: Final = "chat_template.jinja"
_SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Source of the template, and the texts of the model's special tokens by their roles ("bos_token")."""

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path) -> ChatTemplate | None:
        """The template in a model's directory: `chat_template.jinja`, the one named in `tokenizer_config.json`, or that of a GGUF file.

        None if it has none. Raises: InvalidArgument, if the files cannot be used.
        """
        folder = directory.parent if directory.is_file() else directory
        config = _read_config(folder / _CONFIG)
        source = _read(folder / _TEMPLATE) or _default_of(config.get("chat_template"))
        special = {role: text for role in _SPECIAL if (text := _text_of(config.get(role)))}
        if not source:
            source, special = _of_gguf(directory)
        if not source:
            return None
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise InvalidArgument("path", f"the chat template in {directory} is longer than {MAX_TEMPLATE_CHARACTERS} characters.")
        return cls(source, special)

    def variables(self, messages: tuple[tuple[str, str], ...], opens: bool) -> dict[str, Any]:
        """What the template sees: messages as (role, content), and that the assistant is to speak next.

        Without `opens` the prompt goes on where a context stands, and has no token that opens a sequence (bos).
        """
        said = [{"role": role, "content": content} for role, content in messages]
        special = dict(self.special_tokens) if opens else {**self.special_tokens, "bos_token": ""}
        return {**special, "messages": said, "add_generation_prompt": True, "tools": None, "documents": None}


def _of_gguf(path: Path) -> tuple[str, dict[str, str]]:
    """Template and special tokens of a GGUF model; nothing, if it is none."""
    try:
        file = find_gguf(path)
        return template_of(file) if file is not None else ("", {})
    except (ModelCorrupt, ModelUnsupported) as error:
        raise InvalidArgument("path", str(error)) from error


def _read(path: Path) -> str:
    if not path.is_file():
        return ""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidArgument("path", f"{path} is larger than {MAX_FILE_BYTES} bytes.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument("path", f"{path} is not UTF-8 text.") from error


def _read_config(path: Path) -> Mapping[str, object]:
    text = _read(path)
    try:
        config = json.loads(text) if text else {}
    except ValueError as error:
        raise InvalidArgument("path", f"{path} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise InvalidArgument("path", f"{path} holds no JSON object.")
    return config


def _default_of(templates: object) -> str:
    """The template to use of what a config may hold: one text, or several with names."""
    if isinstance(templates, str):
        return templates
    if not isinstance(templates, list):
        return ""
    named = {item.get("name"): item.get("template") for item in templates if isinstance(item, dict)}
    default = named.get("default")
    return default if isinstance(default, str) else ""


def _text_of(token: object) -> str:
    """The text of a special token, which a config gives as it stands or in an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""
