"""When a call that failed is tried again, and when not. Decisions only: no clock but the one given, no sleep.

A call may be repeated because it reads, or because its request_id makes the daemon answer the second as it did the first.

    UNAVAILABLE                 again, with back-off (or as RetryInfo says), until the time is up
    made by the transport       again: a connection that breaks gives UNAVAILABLE, CANCELLED, UNKNOWN or INTERNAL without ErrorInfo
    UNAUTHENTICATED             again at once after a new login, once; the daemon's logins die with it
    DRAINING                    an answer, not an accident: a call gives up; a stream that has begun waits for the daemon to come back
    everything else             final
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import grpc

from kerneld_client.errors import Draining, KerneldError, Unauthenticated, Unavailable

FIRST_WAIT_S = 0.02
LONGEST_WAIT_S = 1.0
RECONNECT_S = 30.0
BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL})


class Retry:
    """The attempts of one call, or of one stream between two signs of life."""

    def __init__(self, timeout_s: float, can_log_in: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = timeout_s
        self._can_log_in = can_log_in
        self._clock = clock
        self.outlasts_drain = False
        self.renew()

    def renew(self) -> None:
        """A sign of life: time, back-off and the right to log in begin anew."""
        self._deadline = self._clock() + self._timeout_s
        self._wait_s = FIRST_WAIT_S
        self._may_log_in = self._can_log_in

    def remaining_s(self) -> float:
        """What is left of the time."""
        return max(self._deadline - self._clock(), 0.0)

    def wait_s(self, error: KerneldError) -> float:
        """How long to wait before the next attempt. Raises: the error, where it is final."""
        if isinstance(error, Unauthenticated):
            if not self._may_log_in:
                raise error
            self._may_log_in = False
            return 0.0
        if not self._is_passing(error):
            raise error
        wait_s = max(self._wait_s, error.retry_after_s or 0.0)
        if wait_s >= self.remaining_s():
            raise error
        self._wait_s = min(self._wait_s * 2, LONGEST_WAIT_S)
        self._may_log_in = self._can_log_in
        # A hundred streams of a daemon that restarts must not come back in one moment.
        return wait_s * random.uniform(0.75, 1.0)

    def _is_passing(self, error: KerneldError) -> bool:
        if isinstance(error, Draining):
            return self.outlasts_drain
        return isinstance(error, Unavailable) or (not error.reason and error.code in BROKEN)
