"""`kerneld`: starts the daemon, shows and checks its configuration, looks at the machine, simulates a workload."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from cli.findings import Level, show_findings
from cli.render import Format, Printer
from kerneld.config import Config, ConfigError
from kerneld.configcheck import check_drivers
from kerneld.settings import load_config, quoted, render_config

EXIT_ERROR = 1

_CONFIG = (
    click.option("--config", "path", type=click.Path(path_type=Path), envvar="KERNELD_CONFIG", help="TOML file.  [env: KERNELD_CONFIG]"),
    click.option("--state", "state", metavar="DIR", help="The same as --set kerneld.state_dir=DIR."),
    click.option("--socket", "socket", metavar="PATH", help="The same as --set syscalls.socket=PATH."),
    click.option("--model-root", "roots", multiple=True, metavar="DIR", help="Folder with models; may be repeated (kerneld.model_roots)."),
    click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="Set one key; may be repeated, wins over all."),
)


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that make a configuration; `read_config` takes them."""
    for option in reversed(_CONFIG):
        command = option(command)
    return command


def read_config(options: dict[str, Any]) -> Config:
    """The configuration of file, environment and options. Raises: click.UsageError, with the reason."""
    try:
        return load_config(options["path"], os.environ, list(assignments_of(options)))
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def read_runnable(options: dict[str, Any]) -> Config:
    """The same, of which the drivers are there. Raises: click.UsageError."""
    found = read_config(options)
    try:
        check_drivers(found)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    return found


def assignments_of(options: dict[str, Any]) -> Iterator[str]:
    """All options as `section.key=value`, those of --set last."""
    for option, name in (("state", "kerneld.state_dir"), ("socket", "syscalls.socket")):
        if options[option] is not None:
            yield f"{name}={options[option]}"
    if options["roots"]:
        yield f"kerneld.model_roots=[{', '.join(quoted(root) for root in options['roots'])}]"
    yield from options["assignments"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="kerneld", prog_name="kerneld")
def cli() -> None:
    """The daemon of kerneld, the kernel for language-model work on this machine.

    \b
    Configuration: the file, then KERNELD_SECTION__KEY variables, then options;
    the later wins. `kerneld config show` prints every key with its meaning.
    """


@cli.command()
@config_options
def serve(**options: Any) -> None:
    """Serve until SIGTERM. Exit codes: 0 stopped in order, 1 error, 2 the configuration is wrong."""
    config = read_runnable(options)
    from cli.serve import serve as serve_until_stopped

    sys.exit(serve_until_stopped(config))


@cli.group()
def config() -> None:
    """Show and check the configuration."""


@config.command()
@config_options
def show(**options: Any) -> None:
    """Print the configuration as TOML, with a comment for every key; what is printed can be used as --config."""
    click.echo(render_config(read_config(options)), nl=False)


@config.command()
@config_options
def check(**options: Any) -> None:
    """Say whether the configuration can be used; exit code 2 if not."""
    read_runnable(options)
    click.echo("The configuration is good.")


@cli.command(short_help="Check whether this machine can run the daemon.")
@config_options
@click.option(
    "-o", "--output", type=click.Choice([item.value for item in Format]), default="table", show_default=True, help="How to print."
)
@click.pass_context
def doctor(ctx: click.Context, /, output: str, **options: Any) -> None:
    """Check devices, compiler, permissions, disk and versions, and say what to do; exit code 1 if something fails."""
    config = read_config(options)
    from cli.doctor import examine

    findings = list(examine(config))
    show_findings(Printer(Format(output)), findings)
    if any(finding.level is Level.FAIL for finding in findings):
        ctx.exit(EXIT_ERROR)


@cli.command(short_help="Check the state of a daemon that is stopped.")
@config_options
@click.option(
    "-o", "--output", type=click.Choice([item.value for item in Format]), default="table", show_default=True, help="How to print."
)
@click.pass_context
def fsck(ctx: click.Context, /, output: str, **options: Any) -> None:
    """Read database, journal, images, page file and audit log to their ends, and say what does not hold; exit code 1 if something does not.

    Nothing is changed. `kernelctl fsck` does the same, and more, with a daemon that runs.
    """
    config = read_config(options)
    from cli.fsck import show_parts
    from cli.state import StateInUse, check_state

    try:
        num_problems = show_parts(Printer(Format(output)), ((part, part.bytes_read) for part in check_state(config)))
    except StateInUse as error:
        raise click.ClickException(str(error)) from error
    if num_problems:
        ctx.exit(EXIT_ERROR)


@cli.command(short_help="Simulate a workload under virtual time.")
@click.argument("workload")
@click.option(
    "--plots", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Folder of the plots.  [default: ./sim-NAME]"
)
@click.option("--no-plots", is_flag=True, help="Write no plots.")
@click.option("--records", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write one line of JSON a request.")
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True, help="How to print.")
def sim(workload: str, plots: Path | None, no_plots: bool, records: Path | None, output: str) -> None:
    """Run WORKLOAD under virtual time with the daemon's own scheduler, first come first served and by fair shares (hvtc), and compare.

    \b
    WORKLOAD is one of
      a TOML file          see examples/workloads
      an event log         what `kernelctl events -o json` writes, in a file
                           whose name ends in .jsonl
      a preset             fig3 to fig8, fig10, zipf (the paper's), tenants64

    \b
    SERVICE counts 1 per input token, at the first token, and 2 per output
    token, evenly from first token to finish.
    MAX GAP    largest difference of accumulated service between two tenants
               at any instant; where weights differ, service is divided by the
               claim: a tenant's part of the machine, over that of the least
               entitled one
    MAX DIFF   worst window of 60 s, one every 10 s: sum over tenants of the
               lesser of what each had less than the best served, and what it
               had arrived but not served; per second
    TTFT       seconds from arrival to first token, of requests that had one
    WORST LAG  the most service that a tenant was behind the best served one,
               counting no more than what it had asked for by then

    \b
    Of --records, max_gap needs tenant, scheduler, first_token_s, finish_s,
    input_tokens and output_tokens (and the weights, where they differ);
    mean_ttft_s arrival_s; tokens_per_s the duration; rejected needs outcome;
    max_diff needs wanted_tokens (output that a request asks the device for)
    and outcome as well (rejected ones want nothing). finish_s of a request
    that runs when time is up is that time: it counts as served so far.

    A tenant's max_queued and max_running do not hold under fcfs, where all wait in one queue.

    With -o json or yaml, plots are written only where --plots says.
    """
    from cli.sim import load_workload, run_and_show

    loaded = load_workload(workload)
    printer = Printer(Format(output))
    folder = plots or (Path(f"sim-{loaded.name}") if printer.is_for_people else None)
    run_and_show(loaded, printer, records, None if no_plots else folder)


def main() -> None:
    """Entry point of `kerneld`."""
    cli.main(prog_name="kerneld")


if __name__ == "__main__":
    main()
