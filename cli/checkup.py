"""`kernelctl doctor`: whether this machine's programs can reach the daemon, and what to do if not."""

from __future__ import annotations

import socket
import stat
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click

from cli.device import problems_of
from cli.failure import EXIT_ERROR, client_errors
from cli.findings import Finding, Level, show_findings
from cli.target import Shell, Target, output_option

CONNECT_TIMEOUT_S = 2.0


@click.command(short_help="Check the way to the daemon.")
@output_option
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Check Python, the client, the socket and the login; exit code 1 if something fails."""
    shell = ctx.ensure_object(Shell)
    findings = [*check_versions(), *check_way(shell.target)]
    if all(finding.level is not Level.FAIL for finding in findings):
        findings += check_login(shell)
    show_findings(shell.printer, findings)
    if any(finding.level is Level.FAIL for finding in findings):
        ctx.exit(EXIT_ERROR)


def check_versions() -> Iterator[Finding]:
    """Python and the client's own packages."""
    yield Finding("python", Level.OK, ".".join(map(str, sys.version_info[:3])))
    for name in ("kerneld-client", "grpcio", "protobuf"):
        try:
            yield Finding(name, Level.OK, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, Level.WARN, "not installed as a distribution", f"pip install {name}")


def check_way(target: Target) -> Iterator[Finding]:
    """The socket, or the address and its token."""
    if target.tcp:
        yield check_address(target.tcp)
        if target.token_file is None and target.tls is not None and target.tls.cert is not None:
            yield Finding("certificate", Level.OK, str(target.tls.cert))
        elif target.token_file is None:
            yield Finding("token", Level.FAIL, "no token file", "Give --token-file; `kernelctl token add` makes tokens.")
        elif target.token_file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            yield Finding("token", Level.WARN, f"{target.token_file} can be read by others", f"chmod 600 {target.token_file}")
        else:
            yield Finding("token", Level.OK, str(target.token_file))
        return
    path = target.socket_path()
    yield check_socket("socket", path)
    yield check_socket("login", path.with_name(f"{path.name}.login"))


def check_address(address: str) -> Finding:
    """Whether something answers at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return Finding("address", Level.FAIL, f"{address!r} is not HOST:PORT", "Give --tcp HOST:PORT.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return Finding("address", Level.FAIL, f"{address}: {error.strerror or error}", "Set syscalls.tcp for the daemon, or mend --tcp.")
    return Finding("address", Level.OK, address)


def check_socket(name: str, path: Path) -> Finding:
    """Whether something listens on a unix socket."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(CONNECT_TIMEOUT_S)
            probe.connect(str(path))
    except PermissionError:
        return Finding(name, Level.FAIL, f"{path}: not allowed", "Ask the administrator to let you into the socket's folder.")
    except FileNotFoundError:
        return Finding(name, Level.FAIL, f"{path}: there is none", "Start the daemon (`systemctl start kerneld`), or give --socket.")
    except OSError as error:
        return Finding(name, Level.FAIL, f"{path}: {error.strerror or error}", "The daemon is not running: `systemctl start kerneld`.")
    return Finding(name, Level.OK, str(path))


def check_login(shell: Shell) -> Iterator[Finding]:
    """Who the daemon takes the caller for, and whether it has a worker and a model."""
    try:
        with shell.connect() as client:
            principal, frame = client.whoami(), client.top()
            is_running = all(worker.state == "running" for worker in frame.workers)
            troubles = [] if is_running else problems_of(client.devices(""))
    except client_errors() as error:
        yield Finding("login", Level.FAIL, str(error), "Run `kerneld doctor` on the daemon's machine, and look into its log.")
        return
    yield Finding("principal", Level.OK, f"{principal.name} of tenant {principal.tenant}")
    states = [f"{worker.device} {worker.state}" for worker in frame.workers]
    if states and not is_running:
        yield Finding("workers", Level.WARN, "; ".join([", ".join(states), *troubles]), "Look into the daemon's log; run `kerneld doctor`.")
    elif states:
        yield Finding("workers", Level.OK, ", ".join(states))
    else:
        yield Finding("workers", Level.WARN, "none is connected", "Wait a moment; then look into the daemon's log.")
    if not frame.models:
        yield Finding("models", Level.WARN, "none is loaded", "kernelctl model load PATH --name NAME")
