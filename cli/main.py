"""`kernelctl`: everything that kerneld does, from a terminal.

A subcommand's file is imported when it is used, so that help and completion stay quick; the table below has what they need to know.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.failure import failures_end_with
from cli.render import Format, Printer
from cli.target import Shell, Target, TlsFiles

if TYPE_CHECKING:
    from kerneld_client import Client

# name: (where it is, what it does); in the order of help
COMMANDS = {
    "run": ("cli.infer:run", "Answer a prompt: allocate, infer, free."),
    "chat": ("cli.infer:chat", "Talk with a model."),
    "ps": ("cli.context:ps", "List contexts."),
    "top": ("cli.machine:top", "Watch the machine."),
    "mem": ("cli.memory:mem", "Show who holds the memory."),
    "explain": ("cli.explain:explain", "Say why something waits, and what would help."),
    "why": ("cli.why:why", "Say when a request has its turn, and why not before."),
    "model": ("cli.model:model", "Load, unload and list models."),
    "device": ("cli.device:device", "List and show devices."),
    "ctx": ("cli.context:ctx", "Allocate, fork, change and free contexts."),
    "infer": ("cli.infer:infer", "Append input to a context and generate."),
    "attach": ("cli.infer:attach", "Follow a context's stream from an offset."),
    "score": ("cli.infer:score", "Tell how likely a continuation is."),
    "ckpt": ("cli.image:ckpt", "Checkpoint contexts to images and restore them."),
    "tenant": ("cli.tenant:tenant", "Add, change and remove tenants."),
    "usage": ("cli.usage:usage", "Show what tenants used."),
    "share": ("cli.share:share", "Show how the machine is shared."),
    "share-group": ("cli.sharegroup:share_group", "Let tenants share equal beginnings."),
    "token": ("cli.tenant:token", "Make and remove API tokens."),
    "events": ("cli.machine:events", "Show what happened."),
    "drain": ("cli.machine:drain", "Refuse new work, wait for the rest, stop the daemon."),
    "whoami": ("cli.machine:whoami", "Show who the daemon takes you for."),
    "fsck": ("cli.fsck:fsck", "Check that all memory and state hold."),
    "doctor": ("cli.checkup:doctor", "Check the way to the daemon."),
    "completion": ("cli.completion:completion", "Print the completion script of a shell."),
}

HELP = """Use kerneld, the kernel for language-model work on this machine.

\b
Examples:
  kernelctl model load /srv/models/small --name small
  kernelctl run small "Once upon a time"
  kernelctl chat small
  kernelctl ps -o json

\b
Results go to stdout, errors and progress to stderr. Exit codes:
  0 done   1 error   2 usage   3 not found   4 not allowed or not logged in
  5 daemon unavailable   6 limit reached, no room   7 wrong state, name taken
  8 deadline passed   130 interrupted

Completion: eval "$(kernelctl completion bash)", or zsh, or
kernelctl completion fish | source; put the line into the shell's start file.
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names of all commands, in the order of help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            likely = get_close_matches(cmd_name, COMMANDS, n=1)
            raise click.UsageError(f"There is no command {cmd_name!r}." + (f" Did you mean {likely[0]!r}?" if likely else ""))
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write the list of commands without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; its failures become sentences and exit codes."""
        with failures_end_with(ctx.exit):
            return super().invoke(ctx)


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FORMATS = click.Choice([item.value for item in Format])


@click.group(cls=LazyGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--socket", type=click.Path(path_type=Path), envvar="KERNELD_SOCKET", help="Socket of the daemon.  [env: KERNELD_SOCKET]")
@click.option("--tcp", metavar="HOST:PORT", default="", help="Address of a daemon elsewhere; needs --token-file.")
@click.option("--token-file", type=_FILE, help="File with an API token.")
@click.option("--tls", "is_tls", is_flag=True, help="Use TLS, trusting this machine's authorities.")
@click.option("--tls-ca", type=_FILE, help="Use TLS, trusting these authorities (PEM).")
@click.option("--tls-cert", type=_FILE, help="Certificate (PEM) that says who you are.")
@click.option("--tls-key", type=_FILE, help="Its private key (PEM).")
@click.option("-o", "--output", type=_FORMATS, default="table", show_default=True, help="How to print results.")
@click.version_option(package_name="kerneld", prog_name="kernelctl")
@click.pass_context
def cli(ctx: click.Context, /, socket: Path | None, tcp: str, token_file: Path | None, output: str, **tls: Any) -> None:
    """Find the target; a caller that put its own way to connect to one into `ctx.obj` keeps it."""
    if tcp and ":" not in tcp:
        raise click.UsageError(f"--tcp is {tcp!r}; it must be HOST:PORT.")
    target = Target(socket, tcp, token_file, tls_files(**tls))
    connect: Callable[[Target], Client] = ctx.obj or Target.connect
    ctx.obj = Shell(target, partial(connect, target), Printer(Format(output)))


def tls_files(is_tls: bool, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None) -> TlsFiles | None:
    """The files of a TLS connection, None where none is asked for."""
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key are given together or not at all.")
    return TlsFiles(tls_ca, tls_cert, tls_key) if is_tls or tls_ca or tls_cert else None


def main() -> None:
    """Entry point of `kernelctl`."""
    cli.main(prog_name="kernelctl")


if __name__ == "__main__":
    main()
