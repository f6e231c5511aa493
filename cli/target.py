"""Where the daemon is, and what a command holds in its hands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.render import Format, Printer

if TYPE_CHECKING:
    from kerneld_client import Client, Tls


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a TLS connection; none of them means that the machine's own authorities are trusted."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """The way to a daemon: a socket on this machine (None: the client's default), or an address with a token and perhaps TLS."""

    socket: Path | None = None
    tcp: str = ""
    token_file: Path | None = None
    tls: TlsFiles | None = None

    def connect(self) -> Client:
        """Log in and return a client. Raises: kerneld_client.KerneldError."""
        import kerneld_client

        return kerneld_client.connect(self.tcp or self.socket, token_file=self.token_file, tls=self._tls())

    def socket_path(self) -> Path:
        """The socket that is meant."""
        from kerneld_client.target import default_socket

        return self.socket or Path(default_socket())

    def _tls(self) -> Tls | None:
        from kerneld_client import Tls

        return Tls(self.tls.ca, self.tls.cert, self.tls.key) if self.tls is not None else None


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
