"""Tokenizers and templates made of GGUF metadata, against the tokenizers that the metadata was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from kerneld.errors import InvalidArgument
from kerneld.gguftokenizer import PATTERNS
from kerneld.template import ChatTemplate
from kerneld.tokenizer import Tokenizer

TEXTS = [
    "def keep(self, value: int) -> None:\n    return self.values[value]\n",
    "Grüße, 東京! It's 12345 o'clock; don't\u00a0stop...   \t\n\n  \r\nnow",
    "<|im_start|>user\nhi<|im_end|>",
    " leading and trailing ",
    "",
]
CORPUS = [Path(__file__).read_text(encoding="utf-8"), *TEXTS] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write(path: Path, keys: Mapping[str, object]) -> Path:
    """A GGUF file that has nothing but metadata."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind, gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level(kind: str) -> tokenizers.Tokenizer:
    """A trained byte-level tokenizer whose words are of that kind."""
    made = tokenizers.Tokenizer(models.BPE())
    first: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
    if kind in PATTERNS:
        first = pre_tokenizers.Split(Regex(PATTERNS[kind]), "isolated")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind not in PATTERNS)
    made.pre_tokenizer = words if kind == "gpt-2" else pre_tokenizers.Sequence([first, words])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def keys_of(made: tokenizers.Tokenizer, kind: str) -> dict[str, object]:
    """The metadata that the converter writes of a byte-level tokenizer."""
    state = json.loads(made.to_str())["model"]
    tokens = [token for token, _ in sorted(state["vocab"].items(), key=lambda item: item[1])]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_byte_level_tokenizer_speaks_as_the_one_that_it_was_made_of(kind: str, tmp_path: Path) -> None:
    truth = byte_level(kind)
    found = Tokenizer.load(write(tmp_path / "m.gguf", keys_of(truth, kind)))
    assert found is not None
    for text in TEXTS:
        ids = truth.encode(text, add_special_tokens=False).ids
        assert found.encode(text) == ids
        assert found.decode(ids) == truth.decode(ids, skip_special_tokens=True)
    assert found.special_tokens == {0, 1, 2}
    assert found.encode("a", add_special_tokens=True)[:-1] == ([1] if kind == "llama-bpe" else [])


def sentence_piece(directory: Path, opens_with_space: bool) -> tuple[tokenizers.Tokenizer, dict[str, object]]:
    """A tokenizer as SentencePiece's BPE makes them, and its metadata: the score of a piece is its place among the merges."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "\u2581")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces] if opens_with_space else [spaces])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if opens_with_space else steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    corpus = [word for text in CORPUS[:-5] for word in text.split() if word.isascii()]
    made.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False))
    state = json.loads(made.to_str())
    tokens = [token for token, _ in sorted(state["model"]["vocab"].items(), key=lambda item: item[1])]
    plain = tokenizers.Tokenizer.from_str(json.dumps({**state, "added_tokens": []}))  # of bytes only the three are special
    plain.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special[:3]])
    keys: dict[str, object] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(idx) for idx in range(len(tokens))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": opens_with_space,
    }
    return plain, keys


@pytest.mark.parametrize("opens_with_space", [True, False])
def test_a_sentence_piece_model_joins_the_best_pieces_first(opens_with_space: bool, tmp_path: Path) -> None:
    truth, keys = sentence_piece(tmp_path, opens_with_space)
    found = Tokenizer.load(write(tmp_path / "m.gguf", keys))
    assert found is not None
    for text in TEXTS[:2] + TEXTS[3:]:
        ids = truth.encode(text, add_special_tokens=False).ids
        assert found.encode(text) == ids
        assert found.decode(ids) == truth.decode(ids)
    assert found.encode("a", add_special_tokens=True)[0] == 1


def test_scores_decide_and_not_the_order_of_tokens(tmp_path: Path) -> None:
    truth, keys = sentence_piece(tmp_path, True)
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    assert isinstance(tokens, list)
    assert isinstance(scores, list)
    keys |= {"tokenizer.ggml.tokens": tokens[:259] + tokens[:258:-1], "tokenizer.ggml.scores": scores[:259] + scores[:258:-1]}
    found = Tokenizer.load(write(tmp_path / "m.gguf", keys))
    assert found is not None
    turned = keys["tokenizer.ggml.tokens"]
    assert isinstance(turned, list)
    for text in TEXTS:
        assert [turned[token] for token in found.encode(text)] == truth.encode(text, add_special_tokens=False).tokens


def test_a_tokenizer_file_beside_it_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", keys_of(byte_level("gpt-2"), "gpt-2"))
    byte_level("smollm").save(str(tmp_path / "tokenizer.json"))
    for place in (path, tmp_path):
        found = Tokenizer.load(place)
        assert found is not None
        assert found.encode("12345") == byte_level("smollm").encode("12345").ids


def test_the_template_comes_from_the_metadata_with_its_special_tokens(tmp_path: Path) -> None:
    keys = {**keys_of(byte_level("gpt-2"), "gpt-2"), "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    found = ChatTemplate.load(write(tmp_path / "m.gguf", keys))
    assert found == ChatTemplate("{{ bos_token }}{{ messages[0].content }}", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})


def test_a_model_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"general.name": "bare"})
    assert Tokenizer.load(path) is None
    assert ChatTemplate.load(path) is None


BAD: dict[str, tuple[dict[str, object], str]] = {
    "words": ({"tokenizer.ggml.pre": "mystery"}, "tokenizer.ggml.pre is 'mystery'.*tokenizer.json beside"),
    "model": ({"tokenizer.ggml.model": "rwkv"}, "tokenizer.ggml.model is 'rwkv'.*tokenizer.json beside"),
    "types": ({"tokenizer.ggml.token_type": [1, 2]}, "2 types of them"),
    "twice": ({"tokenizer.ggml.tokens": ["a", "a"]}, "names a token twice"),
    "not texts": ({"tokenizer.ggml.tokens": [1, 2]}, "list of strings"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_made_says_what_to_do(case: str, tmp_path: Path) -> None:
    changes, message = BAD[case]
    path = write(tmp_path / "m.gguf", {**keys_of(byte_level("gpt-2"), "gpt-2"), **changes})
    with pytest.raises(InvalidArgument, match=message):
        Tokenizer.load(path)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", keys_of(byte_level("gpt-2"), "gpt-2"))
    path.write_bytes(path.read_bytes()[:500])
    for load in (Tokenizer.load, ChatTemplate.load):
        with pytest.raises(InvalidArgument, match="the file has 500 bytes"):
            load(path)
