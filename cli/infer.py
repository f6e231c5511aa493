"""Inference: run, chat, infer, attach, score."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from cli.context import PRIORITIES
from cli.failure import FINISH_CODES
from cli.handle import find_context, short
from cli.render import Column, Printer, plain, write_line, write_note, write_text
from cli.target import Shell, output_option, pass_shell

if TYPE_CHECKING:
    from kerneld_client import Context
    from kerneld_client.values import Result, Usage

Options = dict[str, Any]

SCORE_COLUMNS = (
    Column("TOKEN", lambda pair: str(pair["token"]), is_number=True),
    Column("LOGPROB", lambda pair: f"{pair['logprob']:.4f}", is_number=True),
)


def need_draft(ctx: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """A model guesses only where guesses are asked for. Raises: UsageError."""
    if value is not None and not ctx.params.get("draft_tokens"):
        raise click.UsageError("--draft-model says who guesses; say how many tokens with --draft, such as --draft 4.")
    return value


_SAMPLING = (
    click.option("-n", "--max-tokens", type=click.IntRange(1), help="Most tokens to write.  [default: 256, or the room that is left]"),
    click.option("-t", "--temperature", type=click.FloatRange(0), help="0 is greedy.  [default: 1]"),
    click.option("--top-p", type=click.FloatRange(0, 1), help="Draw from the likeliest tokens that hold this much probability."),
    click.option("--top-k", type=click.IntRange(0), help="Draw from this many likeliest tokens; 0 is all."),
    click.option("--min-p", type=click.FloatRange(0, 1), help="Leave out tokens less likely than this part of the likeliest."),
    click.option("--seed", type=click.IntRange(0), help="Number from which all draws follow.  [default: the context's]"),
    click.option("--stop", multiple=True, help="Stop where this text would appear; may be repeated."),
    click.option("--ignore-eos", is_flag=True, help="Go on past the model's end token."),
    click.option("--logprobs", type=click.IntRange(0, 20), help="Give log-probabilities, and those of this many likeliest tokens."),
    click.option(
        "--draft",
        "draft_tokens",
        is_eager=True,
        type=click.IntRange(0, 16),
        help="Guess so many tokens ahead; faster, the output is the same.",
    ),
    click.option(
        "--draft-model", callback=need_draft, help="A loaded, smaller model that guesses.  [default: look up the context's own tokens]"
    ),
    click.option("--deadline", "deadline_s", type=click.FloatRange(0, min_open=True), help="Seconds after which the request is cancelled."),
    click.option(
        "--max-queue", "max_queue_s", type=click.FloatRange(0, min_open=True), help="Seconds that it may wait for its first turn."
    ),
)


_PLACE = ("priority", "nice")
_PLACING = (
    click.option("--priority", type=PRIORITIES, help="Latency class.  [default: interactive]"),
    click.option("--nice", type=click.IntRange(-20, 19), help="Order among your own requests; less is sooner.  [default: 0]"),
)

stats_option = click.option("--stats", is_flag=True, help="Tell on stderr what the request used.")


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a request; they arrive as keyword arguments of `Context.infer`."""
    for option in reversed(_SAMPLING):
        command = option(command)
    return command


def placing_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that allocates the options of where its requests stand; they arrive as keyword arguments of `Client.alloc`."""
    for option in reversed(_PLACING):
        command = option(command)
    return command


def place_of(options: Options) -> Options:
    """Take the options of where requests stand out of the others; those that were given."""
    return given({name: options.pop(name) for name in _PLACE})


def given(options: Options) -> Options:
    """The options that were given; the daemon's defaults hold for the others."""
    return {name: list(value) if name == "stop" else value for name, value in options.items() if was_given(value)}


def was_given(value: object) -> bool:
    """Whether an option was given; 0 was, and is not the same as False."""
    return value is not None and value is not False and value != ()


def read_prompt(prompt: str | None) -> str | None:
    """The prompt itself, or standard input for "-"."""
    return sys.stdin.read() if prompt == "-" else prompt


def need_prompt(prompt: str | None) -> str:
    """The prompt of a command that cannot do without: what is piped in, where none is given. Raises: UsageError, where there is none."""
    if prompt is None and sys.stdin.isatty():
        raise click.UsageError("Give PROMPT, pipe it in, or talk with `kernelctl chat`.")
    text = read_prompt("-" if prompt is None else prompt)
    if not text:
        raise click.UsageError("PROMPT is empty.")
    return text


@click.command(short_help="Answer a prompt: allocate, infer, free.")
@click.argument("model")
@click.argument("prompt", required=False)
@sampling_options
@placing_options
@click.option("--chat/--plain", "is_chat", default=False, help="Send the prompt as a chat message, through the model's template.")
@click.option("--keep", is_flag=True, help="Keep the context and print its id on stderr.")
@click.option("--adapter", default="", help="Run with this adapter of MODEL.")
@stats_option
@output_option
@pass_shell
def run(shell: Shell, /, model: str, prompt: str | None, is_chat: bool, keep: bool, **options: Any) -> None:
    """Answer PROMPT with MODEL, in a context that is freed afterwards. Without PROMPT, or for "-", it is read from standard input."""
    text, stats, adapter = need_prompt(prompt), options.pop("stats"), options.pop("adapter")
    with shell.connect() as client:
        context = client.alloc(model, adapter=adapter, **place_of(options))
        try:
            source: Options = {"messages": [{"role": "user", "content": text}]} if is_chat else {"text": text}
            show_stream(
                shell.printer, context, context.infer(**source, **given(options)), stats=stats, drafts=bool(options["draft_tokens"])
            )
        finally:
            if keep:
                write_note(f"context {context.id}")
            else:
                context.free()


@click.command(short_help="Append input to a context and generate.")
@click.argument("context_id", metavar="CTX")
@click.argument("text", required=False)
@click.option("--message", metavar="TEXT", help="Send TEXT as a chat message instead, through the model's template.")
@sampling_options
@stats_option
@output_option
@pass_shell
def infer(shell: Shell, /, context_id: str, text: str | None, message: str | None, stats: bool, **options: Any) -> None:
    """Append TEXT to CTX and generate; without TEXT, go on. TEXT "-" is standard input."""
    if text is not None and message is not None:
        raise click.UsageError("Give TEXT or --message, not both.")
    with shell.connect() as client:
        context = find_context(client, context_id)
        source: Options = {}
        if message is not None:
            source["messages"] = [{"role": "user", "content": read_prompt(message)}]
        elif text is not None:
            source["text"] = read_prompt(text)
        show_stream(shell.printer, context, context.infer(**source, **given(options)), stats=stats, drafts=bool(options["draft_tokens"]))


@click.command(short_help="Follow a context's stream from an offset.")
@click.argument("context_id", metavar="CTX")
@click.option("--offset", type=click.IntRange(0), default=0, show_default=True, help="Position of the first token wanted.")
@output_option
@pass_shell
def attach(shell: Shell, context_id: str, offset: int) -> None:
    """Print CTX from OFFSET on, and follow the request that runs there to its end."""
    with shell.connect() as client:
        context = find_context(client, context_id)
        show_stream(shell.printer, context, context.attach(offset), cancels=False)


@click.command(short_help="Tell how likely a continuation is.")
@click.argument("context_id", metavar="CTX")
@click.argument("text")
@click.option("--top", type=click.IntRange(0, 20), default=0, help="Likeliest alternatives per position (in JSON and YAML).")
@output_option
@pass_shell
def score(shell: Shell, context_id: str, text: str, top: int) -> None:
    """Print the log-probability of each token of TEXT as the continuation of CTX, which is left as it was."""
    with shell.connect() as client:
        scored = find_context(client, context_id).score(text=read_prompt(text), top=top)
    if not shell.printer.is_for_people:
        shell.printer.document(plain(scored))
        return
    pairs = [{"token": token, "logprob": item.logprob} for token, item in zip(scored.tokens, scored.logprobs, strict=True)]
    shell.printer.rows(pairs, SCORE_COLUMNS, name=lambda pair: str(pair["token"]))
    write_line(f"total {scored.total:.4f}")


@click.command(short_help="Talk with a model.")
@click.argument("model")
@click.option("--system", help="What the model is told first.")
@sampling_options
@placing_options
@pass_shell
def chat(shell: Shell, /, model: str, system: str | None, **options: Any) -> None:
    """Talk with MODEL, line by line, in one context; only what is new is sent. /quit or the end of input ends it, Ctrl-C cuts an answer."""
    unsent = [{"role": "system", "content": system}] if system else []
    with shell.connect() as client:
        context = client.alloc(model, **place_of(options))
        try:
            while (line := ask_line()) is not None:
                answer(context, [*unsent, {"role": "user", "content": line}], given(options))
                unsent = []
        finally:
            context.free()


def ask_line() -> str | None:
    """The next line of a person, None at the end; the mark before it is for the person, on stderr."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line or line.strip() in ("/quit", "/exit"):
            return None
        if line.strip():
            return line.strip()


def answer(context: Context, messages: Sequence[dict[str, str]], options: Options) -> None:
    """Stream one answer; an interrupt cuts this answer only."""
    stream = context.infer(messages=list(messages), **options)
    try:
        for delta in stream:
            write_text(delta.text)
        write_text("\n")
        note_ending(stream.result())
    except KeyboardInterrupt:
        context.cancel()
        write_text("\n")


def show_stream(
    printer: Printer, context: Context, stream: Any, *, cancels: bool = True, stats: bool = False, drafts: bool = False
) -> None:
    """Print text as it comes, or the whole result for programs; an interrupt cancels the request.

    A request that did not come to its own end, or to its limit, ends the command with an exit code that says so.
    """
    try:
        if printer.is_for_people:
            for delta in stream:
                write_text(delta.text)
            write_text("\n")
        result: Result = stream.result()
    except KeyboardInterrupt:
        if cancels:
            context.cancel()
        raise
    if printer.is_for_people:
        note_ending(result)
        if stats:
            write_note(f"request {short(result.request)}: {usage_text(result.usage, drafts)}")
    else:
        printer.document({"context": context.id, **plain(result)})
    exit_code = FINISH_CODES.get(plain(result.finish_reason), 0)
    if exit_code:
        raise click.exceptions.Exit(exit_code)


def usage_text(usage: Usage, asked_drafts: bool) -> str:
    """What a request used, in a line; of guesses too, where there were some or they were asked for."""
    drafts = "; nothing was guessed" if asked_drafts else ""
    if usage.drafted_tokens:
        drafts = f"; {usage.accepted_tokens} of {usage.drafted_tokens} guesses were right"
    return (
        f"{usage.input_tokens} tokens in, {usage.output_tokens} out; {usage.cached_tokens} of the context needed no computing "
        f"({usage.shared_tokens} from other contexts); waited {usage.queue_s:.3f} s, computed {usage.compute_s:.3f} s{drafts}"
    )


def note_ending(result: Result) -> None:
    """Say why an output ended, where that is not what its reader would expect."""
    reason = plain(result.finish_reason)
    if reason in FINISH_CODES:
        write_note(f"ended: {reason}" + (f". {result.detail}" if result.detail else ""))
