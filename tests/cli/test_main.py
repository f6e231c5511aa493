"""The group itself: help, target, completion."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.daemon import cli as daemon
from cli.main import COMMANDS, cli
from cli.target import Target, TlsFiles
from tests.cli.fake_client import Kernelctl


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_says_what_each_command_says_of_itself(name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")

    command: click.Command = getattr(import_module(module), attribute)

    assert (command.name, command.get_short_help_str(200)) == (name, COMMANDS[name][1])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(kernelctl: Kernelctl, name: str) -> None:
    shown = kernelctl(name, "--help")

    assert shown.exit_code == 0
    assert "Usage: kernelctl" in shown.output


def helps_of(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    """The help of a command and of those beneath it."""
    context = click.Context(command, info_name=path, terminal_width=80)
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            beneath = command.get_command(context, name)
            assert beneath is not None
            yield from helps_of(beneath, f"{path} {name}")


def test_every_help_fits_eighty_columns() -> None:
    helps = [*helps_of(cli, "kernelctl"), *helps_of(daemon, "kerneld")]

    assert [(path, line) for path, text in helps for line in text.splitlines() if len(line) > 80] == []
    assert len(helps) > 60


def test_help_lists_commands_exit_codes_and_completion(kernelctl: Kernelctl) -> None:
    shown = kernelctl("--help").output

    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert "130 interrupted" in shown
    assert "kernelctl completion bash" in shown


def test_a_wrong_command_is_a_usage_error(kernelctl: Kernelctl) -> None:
    assert kernelctl("fly").exit_code == 2
    assert "Did you mean 'run'?" in kernelctl("rnu").stderr


def test_an_address_without_a_port_is_a_usage_error(kernelctl: Kernelctl) -> None:
    assert "HOST:PORT" in kernelctl("--tcp", "gpu3", "ps").stderr


@pytest.mark.parametrize(("shell", "mark"), [("bash", "complete -o nosort"), ("zsh", "compdef"), ("fish", "complete --no-files")])
def test_completion_prints_a_script(kernelctl: Kernelctl, shell: str, mark: str) -> None:
    assert mark in kernelctl("completion", shell).output


def test_completion_knows_the_commands_of_a_group() -> None:
    environment = {"_KERNELCTL_COMPLETE": "bash_complete", "COMP_WORDS": "kernelctl ctx tr", "COMP_CWORD": "2"}

    completed = CliRunner().invoke(cli, [], prog_name="kernelctl", env=environment, complete_var="_KERNELCTL_COMPLETE")

    assert completed.output == "plain,truncate\n"


def test_a_socket_comes_from_the_option_then_the_environment_then_the_client(kernelctl: Kernelctl) -> None:
    kernelctl("--socket", "/a", "ps", KERNELD_SOCKET="/b")
    kernelctl("ps", KERNELD_SOCKET="/b")
    kernelctl("ps")

    assert [target.socket for target in kernelctl.targets] == [Path("/a"), Path("/b"), None]


def test_tcp_takes_a_token_file_and_tls_files(kernelctl: Kernelctl, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")

    kernelctl("--tcp", "host:1", "--token-file", str(file), "--tls-ca", str(file), "ps")

    assert kernelctl.targets == [Target(None, "host:1", file, TlsFiles(ca=file))]


def test_a_certificate_needs_its_key(kernelctl: Kernelctl, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")

    assert kernelctl("--tls-cert", str(file), "ps").exit_code == 2
