"""Where the daemon is, and what a command holds in its hands."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.render import Format, Printer

if TYPE_CHECKING:
    from kerneld_client import Client

SYSTEM_SOCKET = Path("/run/kerneld/kerneld.sock")


def default_socket(environment: Mapping[str, str] = os.environ) -> Path:
    """The socket of the user's own daemon where there is one, else that of the machine's."""
    folder = environment.get("XDG_RUNTIME_DIR")
    own = Path(folder) / "kerneld" / "kerneld.sock" if folder else SYSTEM_SOCKET
    return own if own.exists() else SYSTEM_SOCKET


@dataclass(frozen=True, slots=True)
class Target:
    """The way to a daemon: a socket on this machine, or an address with a token and perhaps TLS."""

    socket: Path
    tcp: str = ""
    token_file: Path | None = None
    tls_ca: Path | None = None

    def __str__(self) -> str:
        return self.tcp or str(self.socket)

    def token(self) -> str | None:
        """The API token, where one is given."""
        return self.token_file.read_text(encoding="utf-8").strip() if self.token_file else None

    def connect(self) -> Client:
        """Log in and return a client. Raises: kerneld_client.errors.KerneldError."""
        import kerneld_client

        if not self.tcp:
            return kerneld_client.connect(str(self.socket))
        return kerneld_client.connect(self.tcp, token=self.token(), tls=str(self.tls_ca) if self.tls_ca else None)


@dataclass(slots=True)
class Shell:
    """What every command gets: the target, a way to connect to it, and a printer for results."""

    target: Target
    connect: Callable[[], Client]
    printer: Printer = field(default_factory=Printer)


pass_shell = click.make_pass_decorator(Shell)


def _set_format(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    shell = context.find_object(Shell)
    if value is not None and shell is not None:
        shell.printer.format = Format(value)


output_option = click.option(
    "-o",
    "--output",
    type=click.Choice([item.value for item in Format]),
    expose_value=False,
    callback=_set_format,
    help="How to print results.  [default: table]",
)
