"""Completion scripts for shells."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes kernelctl's commands and options in SHELL.

    \b
    bash  eval "$(kernelctl completion bash)"       in ~/.bashrc
    zsh   eval "$(kernelctl completion zsh)"        in ~/.zshrc
    fish  kernelctl completion fish | source        in ~/.config/fish/config.fish
    """
    complete = get_completion_class(shell)
    if complete is None:
        raise click.UsageError(f"There is no completion for {shell}.")
    click.echo(complete(ctx.find_root().command, {}, "kernelctl", "_KERNELCTL_COMPLETE").source())
