"""The composition root of the daemon: kernel below, system calls above, signals and logs around them.

start   logs -> kernel (kerneld.daemon) -> system calls -> metrics -> READY=1
stop    SIGTERM, SIGINT or the verb drain -> STOPPING=1 -> running requests end -> system calls -> kernel; exit 0, and nothing is left
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import sys

import uvloop

from kerneld.config import Config
from kerneld.daemon import Daemon
from kerneld.errors import KernelError
from kerneld.logs import configure_logging
from kerneld.notify import Notifier
from kerneld.state.audit import AuditLog
from kerneld.verbs.admin import drain_requests
from syscalls.metrics_http import MetricsServer
from syscalls.server import Security, SyscallServer
from syscalls.sockets import ListenError

logger = logging.getLogger(__name__)

EXIT_OK, EXIT_ERROR = 0, 1
STREAMS_GRACE_S = 2.0


def serve(config: Config) -> int:
    """Run a daemon until it is told to stop. Returns the exit code of the process."""
    configure_logging(config.kerneld.log_level, config.kerneld.log_json)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config))
    except (KernelError, ListenError, OSError) as error:
        logger.error("the daemon cannot run", extra={"reason": str(error)})
        print(f"kerneld: {error}", file=sys.stderr)
        return EXIT_ERROR
    return EXIT_OK


async def _serve(config: Config) -> None:
    daemon = Daemon(config)
    notifier = Notifier()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop_wanted.set)
    await daemon.start()
    try:
        await _serve_calls(config, daemon, notifier)
    finally:
        await daemon.stop()


async def _serve_calls(config: Config, daemon: Daemon, notifier: Notifier) -> None:
    audit = await asyncio.to_thread(AuditLog, daemon.audit_folder)
    authenticator = daemon.machine.authenticator
    security = Security(authenticator, authenticator.login, audit, secrets.token_hex(8))
    config.syscalls.socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    server = SyscallServer(config.syscalls, daemon.kernel, security, daemon.metrics.registry)
    metrics = MetricsServer(config.syscalls.metrics, daemon.metrics.registry, daemon.kernel) if config.syscalls.metrics else None
    try:
        await server.start()
        if metrics is not None:
            await metrics.start()
        notifier.ready(f"generation {daemon.machine.boot_generation}, {len(daemon.machine.contexts)} contexts")
        await daemon.stop_wanted.wait()
        notifier.stopping("draining")
        if not daemon.machine.is_draining:
            await drain_requests(daemon.machine, config.kerneld.drain_timeout_s)
    finally:
        if metrics is not None:
            await metrics.stop()
        await server.stop(STREAMS_GRACE_S)
        await asyncio.to_thread(audit.close)
