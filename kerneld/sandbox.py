"""The program that renders chat templates: a process of its own, because a template is code that came with a model.

Started as `python -I sandbox.py`, it knows nothing of the project, has an empty environment and no files but its pipes. It reads jobs from
standard input and answers on standard output, each a u32 length (little endian) and so many bytes of JSON:

    {"source": "{% for ... %}", "variables": {...}, "max_characters": 1000}   ->   {"text": "..."} or {"error": "..."}

Limits: memory of the process; CPU time of each job, which ends the process; characters of output. Whoever started it also watches the
clock. End of file on standard input ends it.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO, Final

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MEMORY_BYTES: Final = 512 << 20
JOB_CPU_S: Final = 1
LENGTH: Final = struct.Struct("<I")

# What a template can raise: its own errors, those of the expressions in it, and the limits.
_FAILURES: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _OutputTooLong(ValueError):
    """The template writes more than is allowed."""


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant said, for training; here its body is text like any other."""

    tags: set[str] = {"generation"}  # noqa: RUF012 (the base class has it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the body of the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: object, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    """JSON as templates expect it: unlike jinja's own filter, it escapes nothing for HTML."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys)


def make_environment() -> jinja2.Environment:
    """The names and tags that chat templates are written for, as `transformers` gives them."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def render(template: jinja2.Template, variables: dict[str, Any], max_characters: int) -> str:
    """Render a template. Raises: one of the errors that a template can raise, or that its output is too long."""
    pieces = []
    room = max_characters
    for piece in template.generate(**variables):
        room -= len(piece)
        if room < 0:
            raise _OutputTooLong(f"it writes more than {max_characters} characters")
        pieces.append(piece)
    return "".join(pieces)


def answer(job: dict[str, Any], compiled: Callable[[str], jinja2.Template]) -> dict[str, str]:
    """Do one job."""
    try:
        return {"text": render(compiled(job["source"]), job["variables"], job["max_characters"])}
    except _FAILURES as error:
        return {"error": str(error) or type(error).__name__}


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Do jobs until the other side closes the pipe."""
    environment = make_environment()
    compiled = lru_cache(maxsize=16)(environment.from_string)
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        job = json.loads(source.read(*LENGTH.unpack(head)))
        _allow_cpu(JOB_CPU_S)
        reply = json.dumps(answer(job, compiled)).encode()
        sink.write(LENGTH.pack(len(reply)) + reply)
        sink.flush()


def _allow_cpu(seconds: int) -> None:
    """Let the process use so many more seconds, rounded up to whole ones, before the system ends it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit()
    serve(sys.stdin.buffer, sys.stdout.buffer)
