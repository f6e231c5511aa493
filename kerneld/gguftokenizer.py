"""Tokenizer and chat template of a GGUF file, made of its metadata.

    tokenizer.ggml.model   "gpt2": byte-level pairs with merges, cut into words as tokenizer.ggml.pre says; "llama": SentencePiece
    tokenizer.ggml.tokens, token_type, merges, scores, and the ids of tokens that begin, end and stand for the unknown

A SentencePiece model keeps no merges: of two neighbours those are joined first that make the piece of the best score, so every way to cut
a piece in two that are pieces too is a merge, the best pieces first.

Source: llama.cpp's llama-vocab.cpp for the patterns; transformers' integrations/ggml.py for merges from scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from drivers.gguf import GgufHeader, read_gguf
from kerneld.errors import InvalidArgument

CONTROL, USER_DEFINED = 3, 4  # token types
SPACE: Final = "\u2581"
_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = _WORDS % "{1,3}", _WORDS % ""
PATTERNS: Final = {"llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3, "smaug-bpe": LLAMA3, "qwen2": QWEN2}
GPT2: Final = ("gpt-2", "olmo", "phi-2", "mpt", "jais")
GPT2_WITH_DIGITS: Final = ("smollm", "starcoder", "refact", "command-r", "codeshell")
BEGINS: Final = ("llama-bpe", "llama3", "llama-v3")  # kinds of words whose models open a sequence where the file does not say
ROLES: Final = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
MAX_PIECE: Final = 256  # characters of a piece that is cut in two: more ways than that would be a trap


def template_of(path: Path) -> tuple[str, dict[str, str]]:
    """Source of the chat template and the texts of special tokens by their roles. Raises: ModelCorrupt, ModelUnsupported."""
    header = read_gguf(path)
    tokens = header.texts("tokenizer.ggml.tokens") if "tokenizer.ggml.tokens" in header.metadata else []
    special = {}
    for role, name in ROLES.items():
        token = header.integer(f"tokenizer.ggml.{name}_token_id", -1)
        if 0 <= token < len(tokens):
            special[role] = tokens[token]
    return header.text("tokenizer.chat_template", ""), special


def tokenizer_of(path: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer of a file; None, if it has none. Raises: InvalidArgument, ModelCorrupt, ModelUnsupported."""
    header = read_gguf(path)
    model = header.text("tokenizer.ggml.model", "none")
    if model == "none":
        return None
    tokens = header.texts("tokenizer.ggml.tokens")
    vocabulary = {token: idx for idx, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise InvalidArgument("path", f"{path.name} names a token twice; put the model's tokenizer.json beside it.")
    if model == "gpt2":
        made = _byte_level(header, vocabulary)
    elif model == "llama":
        made = _sentence_piece(header, vocabulary)
    else:
        raise _unknown(header, "tokenizer.ggml.model", "gpt2 and llama")
    _add_special(made, header, tokens)
    _add_opening(made, header, tokens)
    return made


def _unknown(header: GgufHeader, key: str, supported: str) -> InvalidArgument:
    found = f"{header.path.name}: {key} is {str(header.metadata.get(key))[:100]!r}; known are {supported}."
    return InvalidArgument("path", f"{found} Put the model's tokenizer.json beside it.")


def _byte_level(header: GgufHeader, vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in header.texts("tokenizer.ggml.merges"))]
    known = [pair for pair in merges if pair[0] in vocabulary and pair[1] in vocabulary and pair[0] + pair[1] in vocabulary]
    made = tokenizers.Tokenizer(models.BPE(vocabulary, known))
    kind = header.text("tokenizer.ggml.pre", "gpt-2")
    words: list[pre_tokenizers.PreTokenizer] = []
    if kind in GPT2_WITH_DIGITS:
        words.append(pre_tokenizers.Digits(individual_digits=True))
    elif kind in PATTERNS:
        words.append(pre_tokenizers.Split(Regex(PATTERNS[kind]), "isolated"))
    elif kind not in GPT2:
        raise _unknown(header, "tokenizer.ggml.pre", ", ".join((*GPT2, *GPT2_WITH_DIGITS, *PATTERNS)))
    if kind == "qwen2":
        made.normalizer = normalizers.NFC()
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind not in PATTERNS)
    made.pre_tokenizer = pre_tokenizers.Sequence([*words, bytes_of])
    made.decoder = decoders.ByteLevel()
    return made


def _sentence_piece(header: GgufHeader, vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    scores = header.numbers("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary):
        raise InvalidArgument("path", f"{header.path.name} has {len(vocabulary)} tokens and {len(scores)} scores of them.")
    unknown = header.integer("tokenizer.ggml.unknown_token_id", 0)
    names = list(vocabulary)
    made = tokenizers.Tokenizer(
        models.BPE(
            vocabulary,
            _merges(vocabulary, scores),
            unk_token=names[unknown] if 0 <= unknown < len(names) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    opens_with_space = header.flag("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces] if opens_with_space else [spaces])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if opens_with_space else steps)
    return made


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to cut a piece in two pieces, the best pieces first; of one piece, the cut of the best halves first."""
    found: list[tuple[float, float, float, str, str]] = []
    for piece, idx in vocabulary.items():
        if len(piece) > MAX_PIECE:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[idx], -scores[vocabulary[left]], -scores[vocabulary[right]], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add_special(made: tokenizers.Tokenizer, header: GgufHeader, tokens: list[str]) -> None:
    """Tokens that are taken whole wherever they stand in a text."""
    types = header.numbers("tokenizer.ggml.token_type")
    if types and len(types) != len(tokens):
        raise InvalidArgument("path", f"{header.path.name} has {len(tokens)} tokens and {len(types)} types of them.")
    control = [token for token, kind in zip(tokens, types, strict=False) if kind == CONTROL and token]
    given = [token for token, kind in zip(tokens, types, strict=False) if kind == USER_DEFINED and token]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in given])


def _add_opening(made: tokenizers.Tokenizer, header: GgufHeader, tokens: list[str]) -> None:
    """The token that opens a sequence, where the model wants one."""
    is_usual = header.text("tokenizer.ggml.model") == "llama" or header.text("tokenizer.ggml.pre", "") in BEGINS
    bos = header.integer("tokenizer.ggml.bos_token_id", -1)
    if header.flag("tokenizer.ggml.add_bos_token", is_usual and bos >= 0) and 0 <= bos < len(tokens):
        made.post_processor = processors.TemplateProcessing(
            single=[tokens[bos], "$A"], pair=[tokens[bos], "$A", tokens[bos], "$B"], special_tokens=[(tokens[bos], bos)]
        )
