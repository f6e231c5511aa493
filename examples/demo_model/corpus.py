"""The text of the running Python's standard library, split by whole files into training and held-out documents."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from examples.demo_model.chat import ChatTurn

HELD_OUT_ONE_IN = 32
MAX_ANSWER_CHARS = 1500
"""Longer functions are left out of the chats, so that a chat fits well inside one context."""

TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
GENERATED_MARK = "gencodec.py"
"""65 character tables say in their head that this tool wrote them: 1.2 MB of numbers that teach nothing about Python."""


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One source file; `path` is relative to the library's folder."""

    path: str
    text: str

    @property
    def size_bytes(self) -> int:
        """Size in UTF-8, the bytes of "bits per byte"."""
        return len(self.text.encode())

    @property
    def is_test(self) -> bool:
        """Whether the file belongs to a test suite of the library."""
        return not TEST_FOLDERS.isdisjoint(self.path.split("/")[:-1])

    @property
    def is_held_out(self) -> bool:
        """Whether the file is kept from training: decided by its path alone, so every run draws the same split."""
        return int(hashlib.sha256(self.path.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def library_root() -> Path:
    """Returns the folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_documents(root: Path) -> list[Document]:
    """Returns every UTF-8 `.py` file below `root`, by path; installed packages, tables and empty files are left out."""
    documents = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        if "site-packages" in relative:
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:  # the library tests its own decoders with such files
            continue
        if text and GENERATED_MARK not in text[:400]:
            documents.append(Document(relative, text))
    return documents


def chats_of(document: Document) -> Iterator[list[ChatTurn]]:
    """Yields one chat per documented function of `document`: its docstring asked, its source answered."""
    try:
        tree = ast.parse(document.text)
    except SyntaxError:  # old-grammar fixtures of lib2to3
        return
    lines = document.text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        summary = (ast.get_docstring(node) or "").split("\n\n")[0]
        source = _source_of(node, lines)
        if summary and source.startswith("def ") and len(source) <= MAX_ANSWER_CHARS:
            question = f"Write the function `{node.name}`: {' '.join(summary.split())}"
            yield [ChatTurn("user", question), ChatTurn("assistant", source)]


def _source_of(node: ast.FunctionDef, lines: list[str]) -> str:
    """Returns the function's source, moved to the left margin unless a string inside it stands there already."""
    return textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno])).rstrip()
