"""The renderer: chat messages to prompts, by a sandboxed process that is started when first needed and replaced when it dies.

It does one job at a time. A job that takes too long, uses too much CPU or memory, or whose caller gives up ends the process, and nothing
else; the next job gets a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kerneld import sandbox
from kerneld.errors import InvalidArgument
from kerneld.template import ChatTemplate

MAX_PROMPT_CHARACTERS: Final = 4 << 20
_MAX_PROBLEM_CHARACTERS: Final = 200
_FIELD: Final = "input.messages"


class TemplateRenderer:
    """Renders the templates of all models."""

    def __init__(self, timeout_s: float = 10.0, max_characters: int = MAX_PROMPT_CHARACTERS) -> None:
        self._timeout_s = timeout_s
        self._max_characters = max_characters
        self._process: _Sandbox | None = None
        self._turn = asyncio.Lock()

    async def render(self, template: ChatTemplate, messages: tuple[tuple[str, str], ...], opens: bool = True) -> str:
        """The prompt that the template makes of (role, content) pairs; `opens`: nothing stands before it.

        Raises: InvalidArgument, if the template refuses the messages, fails, or goes past a limit.
        """
        job = {"source": template.source, "variables": template.variables(messages, opens), "max_characters": self._max_characters}
        async with self._turn:
            try:
                async with asyncio.timeout(self._timeout_s):
                    reply = await self._exchange(job)
            except (TimeoutError, EOFError, ConnectionError) as error:
                await self._stop()
                raise InvalidArgument(_FIELD, "the model's chat template did not finish within its limits of time and memory.") from error
            except BaseException:  # the caller left in the middle of a job: its answer must not become that of the next one
                await self._stop()
                raise
        if "error" in reply:
            problem = " ".join(reply["error"].split())[:_MAX_PROBLEM_CHARACTERS].rstrip(".")
            raise InvalidArgument(_FIELD, f"the model's chat template cannot render them: {problem}.")
        return str(reply["text"])

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await self._stop()

    async def _exchange(self, job: dict[str, Any]) -> dict[str, Any]:
        process = self._process if self._process is not None and self._process.is_usable() else await self._start()
        message = json.dumps(job).encode()
        process.writer.write(sandbox.LENGTH.pack(len(message)) + message)
        await process.writer.drain()
        (length,) = sandbox.LENGTH.unpack(await process.reader.readexactly(sandbox.LENGTH.size))
        reply: dict[str, Any] = json.loads(await process.reader.readexactly(length))
        return reply

    async def _start(self) -> _Sandbox:
        await self._stop()
        self._process = await _Sandbox.start()
        return self._process

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.stop()


@dataclass(frozen=True, slots=True)
class _Sandbox:
    """A sandbox process and the stream to it.

    It is started with `subprocess`, not by the event loop: uvloop forks, and a fork beside gRPC's threads was seen to fail.
    """

    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def start(cls) -> _Sandbox:
        """Run the sandbox by its path, isolated: no variable of ours, no folder of ours on its path."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", str(Path(sandbox.__file__))],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    def is_usable(self) -> bool:
        """Whether it can be given a job."""
        return self.process.poll() is None and not self.writer.is_closing() and not self.reader.at_eof()

    async def stop(self) -> None:
        """End the process and the stream."""
        self.process.kill()
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
        await asyncio.to_thread(self.process.wait)
