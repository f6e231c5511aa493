"""Models: the group model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.render import Column, bytes_text, count_text, duration_text, word, write_note
from cli.target import Shell, output_option, pass_shell

if TYPE_CHECKING:
    from kerneld_client import Client
    from kerneld_client.values import LoadProgress, ModelInfo


def dtype_text(model: ModelInfo) -> str:
    """What its numbers are: a model whose weights or pages are quantized computes in floats all the same."""
    parts = [f"{quant} {what}" for quant, what in ((model.quant, "weights"), (model.kv_quant, "pages")) if quant]
    return ", ".join([*parts, f"{model.dtype} compute"]) if parts and model.dtype else model.dtype or "-"


COLUMNS = (
    Column("NAME", lambda m: m.name),
    Column("STATE", lambda m: word(m.state)),
    Column("TIER", lambda m: m.tier),
    Column("ARCHITECTURE", lambda m: m.architecture or "-"),
    Column("PARAMETERS", lambda m: count_text(m.num_parameters) if m.num_parameters else "-", is_number=True),
    Column("DTYPE", dtype_text),
    Column("SIZE", lambda m: bytes_text(m.bytes) if m.bytes else "-", is_number=True),
    Column("CONTEXTS", lambda m: str(m.num_contexts), is_number=True),
    Column("BASE", lambda m: m.base),
    Column("STREAMED", lambda m: bytes_text(m.streamed_bytes) if m.streamed_bytes else "", is_wide=True, is_number=True),
    Column("PINNED", lambda m: "yes" if m.is_pinned else "no", is_wide=True),
    Column("ON DEVICE", lambda m: bytes_text(m.device_bytes), is_wide=True, is_number=True),
    Column("ON HOST", lambda m: bytes_text(m.host_bytes), is_wide=True, is_number=True),
    Column("LOADS", lambda m: str(m.num_loads), is_wide=True, is_number=True),
    Column("LAST USED", lambda m: f"{duration_text(time.time() - m.last_used_at)} ago" if m.last_used_at else "", is_wide=True),
    Column("POSITIONS", lambda m: str(m.max_positions), is_wide=True, is_number=True),
    Column("VOCABULARY", lambda m: str(m.vocab_size), is_wide=True, is_number=True),
    Column("KV PER TOKEN", lambda m: bytes_text(m.kv_bytes_per_token), is_wide=True, is_number=True),
    Column("CHAT", lambda m: "yes" if m.has_chat_template else "no", is_wide=True),
    Column("DEVICE", lambda m: m.device or "-", is_wide=True),
    Column("QUANT", lambda m: m.quant, is_wide=True),
    Column("KV QUANT", lambda m: m.kv_quant, is_wide=True),
    Column("WEIGHTS", lambda m: m.weights_hash[:16], is_wide=True),
    Column("PATH", lambda m: m.path, is_wide=True),
    Column("FAILURE", lambda m: m.failure, is_wide=True),
)


def columns_for(models: Iterable[ModelInfo]) -> tuple[Column, ...]:
    """How models are shown; pins have a column of their own as soon as there is one, and devices where there are several."""
    shown = list(models)
    wanted = {"PINNED": any(model.is_pinned for model in shown), "DEVICE": any(model.copies for model in shown)}
    titles = {title for title, is_wanted in wanted.items() if is_wanted}
    return tuple(replace(column, is_wide=False) if column.title in titles else column for column in COLUMNS)


def name_of(model: ModelInfo) -> str:
    """What `-o name` shows of a model."""
    return model.name


@click.group(short_help="Load, unload and list models.")
def model() -> None:
    """Load, unload and list models."""


_SOURCE = (
    click.option("--name", help="Name to call it by.  [default: that of the folder or GGUF file]"),
    click.option("--max-positions", type=click.IntRange(1), help="Longest context.  [default: what the model's config says]"),
    click.option("--quant", help="Quantize weights while loading: int8, int4.  [default: as the checkpoint is]"),
    click.option("--kv-quant", help="Keep keys and values as int8 or fp8, where the driver can.  [default: as the model computes]"),
    click.option("--base", help="The folder holds a LoRA adapter (PEFT) of this registered model."),
)


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say how a model is read."""
    for option in reversed(_SOURCE):
        command = option(command)
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def name_for(path: Path) -> str:
    """The name of a model without one: its folder's, or its file's."""
    return path.stem if path.suffix == ".gguf" else path.name


def locate(client: Client, path: str, name: str | None) -> tuple[str, str, dict[str, str]]:
    """Folder, name and base of a model: a word without a slash, where no folder has that name here, is a model that the daemon knows."""
    if "/" in path or Path(path).is_dir() or path.endswith(".gguf"):
        folder = Path(path).absolute()
        return str(folder), name or name_for(folder), {}
    known = client.model(path)
    return known.path, path, {"base": known.base} if known.base else {}


def stream_note(loaded: ModelInfo) -> str:
    """What to expect of a model that does not fit the device."""
    part = f"{bytes_text(loaded.streamed_bytes)} of {bytes_text(loaded.bytes)}"
    if not loaded.stream_bytes_per_s:
        return f"{loaded.name}: larger than the device; every step reads {part} again"
    steps = loaded.stream_bytes_per_s / loaded.streamed_bytes
    speed = f"{bytes_text(loaded.stream_bytes_per_s)}/s: about {steps:.3g} steps per second, whatever the number of requests"
    return f"{loaded.name}: larger than the device; every step reads {part} again, at {speed}"


@model.command()
@click.argument("path")
@source_options
@click.option("--device", help="Device to load it on, also beside a copy on another one.  [default: the best one]")
@output_option
@pass_shell
def load(shell: Shell, /, path: str, name: str | None, **options: Any) -> None:
    """Load the model in the folder PATH (or GGUF file; under a model root of the daemon), or the known model of that name."""
    with shell.connect() as client:
        source, called, known = locate(client, path, name)
        with LoadBar(called) as bar:
            loaded = client.load(source, name=called, progress=bar.show, **{**known, **given(options)})
    if loaded.streamed_bytes:
        write_note(stream_note(loaded))
    shell.printer.row(loaded, columns_for([loaded]), name_of)


@model.command()
@click.argument("path")
@source_options
@output_option
@pass_shell
def register(shell: Shell, /, path: str, name: str | None, **options: Any) -> None:
    """Make the model in the folder PATH, or in a GGUF file, known without loading it."""
    folder = Path(path).absolute()
    with shell.connect() as client:
        shell.printer.row(client.register(folder, name=name or name_for(folder), **given(options)), COLUMNS, name_of)


@model.command()
@click.argument("name")
@click.option("--device", default="", help="Only from this device.  [default: from all]")
@output_option
@pass_shell
def unload(shell: Shell, name: str, device: str) -> None:
    """Take a model's weights from the device; its contexts stay and wait for the next load."""
    with shell.connect() as client:
        unloaded = client.unload(name, device=device)
    shell.printer.row(unloaded, columns_for([unloaded]), name_of)


@model.command()
@click.argument("name")
@output_option
@pass_shell
def pin(shell: Shell, name: str) -> None:
    """Keep a model on the device once it is there: it leaves for no other one."""
    with shell.connect() as client:
        pinned = client.pin(name)
        shell.printer.row(pinned, columns_for([pinned]), name_of)


@model.command()
@click.argument("name")
@output_option
@pass_shell
def unpin(shell: Shell, name: str) -> None:
    """Let a model leave the device for others again."""
    with shell.connect() as client:
        shell.printer.row(client.unpin(name), COLUMNS, name_of)


@model.command("ls")
@output_option
@pass_shell
def list_command(shell: Shell) -> None:
    """List models."""
    with shell.connect() as client:
        models = client.models()
        shell.printer.rows(models, columns_for(models), name_of)


@model.command()
@click.argument("name")
@output_option
@pass_shell
def show(shell: Shell, name: str) -> None:
    """Show everything about a model."""
    with shell.connect() as client:
        shell.printer.item(client.model(name), COLUMNS, name_of)


@model.command()
@click.argument("name")
@output_option
@pass_shell
def rm(shell: Shell, name: str) -> None:
    """Forget an unloaded model; its files stay."""
    with shell.connect() as client:
        client.remove_model(name)
    shell.printer.done(f"{name} removed", {"name": name, "removed": True})


def describe(progress: LoadProgress) -> str:
    """What a load does now: its stage, and where bytes come from how fast."""
    source = f" from {progress.source}" if progress.source else ""
    rate = f", {bytes_text(round(progress.bytes_per_s))}/s" if progress.bytes_per_s else ""
    return progress.stage + source + rate


class LoadBar:
    """Progress of a load on stderr: a bar on a terminal, a line per stage elsewhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stage = ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> LoadBar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._name, total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: LoadProgress) -> None:
        """Show how far the load is."""
        if self._bar is not None:
            text = f"{self._name}: {describe(progress)}"
            self._bar.update(self._task, description=text, completed=progress.bytes_done, total=progress.bytes_total or None)
        elif progress.stage != self._stage:
            write_note(f"{self._name}: {describe(progress)}")
        self._stage = progress.stage
