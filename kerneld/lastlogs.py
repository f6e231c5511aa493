"""The output of the latest finished request of each context, for readers that come late.

What finished under this daemon is kept as it was shown. What finished before it began is written again from its tokens when somebody asks:
a function of tokens and stop strings, so that text and offsets are the same.
"""

from __future__ import annotations

from collections.abc import Callable

from kerneld.request import Request


class LastLogs:
    """Finished requests, by the id of their context."""

    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}
        self._writers: dict[str, Callable[[], Request]] = {}  # of requests that finished before this daemon began

    def keep(self, request: Request) -> None:
        """A request has finished; it is its context's latest."""
        self._requests[request.context.id] = request

    def keep_writer(self, context_id: str, write: Callable[[], Request]) -> None:
        """The latest request of a context finished before this daemon began; `write` writes its output again."""
        self._writers[context_id] = write

    def get(self, context_id: str) -> Request | None:
        """The latest finished request of a context, if its output is the end of the context."""
        write = self._writers.pop(context_id, None)
        if write is not None:
            self._requests[context_id] = write()
        return self._requests.get(context_id)

    def peek(self, context_id: str) -> Request | None:
        """The same, if its output is written already; of what is not, the disk had everything."""
        return self._requests.get(context_id)

    def forget(self, context_id: str) -> None:
        """A context has gone on, was rolled back or freed."""
        self._requests.pop(context_id, None)
        self._writers.pop(context_id, None)
