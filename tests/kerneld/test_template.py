"""Chat templates as files of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kerneld.errors import InvalidArgument
from kerneld.template import MAX_TEMPLATE_CHARACTERS, ChatTemplate


def write_config(directory: Path, **config: object) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_model_without_a_template_has_none(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    write_config(tmp_path, bos_token="<s>")
    assert ChatTemplate.load(tmp_path) is None


def test_the_template_comes_with_the_texts_of_special_tokens(tmp_path: Path) -> None:
    write_config(tmp_path, chat_template="T", bos_token="<s>", eos_token={"content": "</s>", "special": True}, pad_token=None)

    assert ChatTemplate.load(tmp_path) == ChatTemplate("T", {"bos_token": "<s>", "eos_token": "</s>"})


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    write_config(tmp_path, chat_template=[{"name": "tool_use", "template": "A"}, {"name": "default", "template": "B"}])

    assert ChatTemplate.load(tmp_path) == ChatTemplate("B")


def test_a_template_file_goes_before_the_config(tmp_path: Path) -> None:
    write_config(tmp_path, chat_template="config", bos_token="<s>")
    (tmp_path / "chat_template.jinja").write_text("file")

    assert ChatTemplate.load(tmp_path) == ChatTemplate("file", {"bos_token": "<s>"})


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(content)

    with pytest.raises(InvalidArgument):
        ChatTemplate.load(tmp_path)


def test_a_template_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("x" * (MAX_TEMPLATE_CHARACTERS + 1))

    with pytest.raises(InvalidArgument, match="longer"):
        ChatTemplate.load(tmp_path)


def test_messages_are_shown_as_roles_and_contents() -> None:
    variables = ChatTemplate("", {"bos_token": "<s>"}).variables((("user", "hi"),), opens=True)

    assert variables["messages"] == [{"role": "user", "content": "hi"}]
    assert (variables["bos_token"], variables["add_generation_prompt"]) == ("<s>", True)


def test_a_prompt_that_goes_on_has_no_opening_token() -> None:
    assert ChatTemplate("", {"bos_token": "<s>", "eos_token": "</s>"}).variables((), opens=False)["bos_token"] == ""
