"""run, chat, infer, attach, score."""

from __future__ import annotations

import json

import pytest

from kerneld_client.values import FinishReason
from tests.cli.fake_client import Kernelctl


def test_run_allocates_streams_and_frees(kernelctl: Kernelctl) -> None:
    ran = kernelctl("run", "small", "Hello", "-n", "3", "-t", "0", "--stop", "END", "--stop", "\n")

    assert (ran.exit_code, ran.stdout) == (0, "Once upon\n")
    assert kernelctl.client.verbs() == ["alloc", "infer", "free", "close"]
    expected = {"text": "Hello", "max_tokens": 3, "temperature": 0.0, "stop": ["END", "\n"]}
    assert kernelctl.client.arguments_of("infer") == (("c1",), expected)


def test_run_may_name_an_adapter(kernelctl: Kernelctl) -> None:
    kernelctl("run", "small", "Hello", "--adapter", "tone")
    assert kernelctl.client.arguments_of("alloc") == (("small",), {"adapter": "tone"})


def test_run_reads_standard_input_for_a_dash(kernelctl: Kernelctl) -> None:
    kernelctl("run", "small", "-", stdin="from a pipe")

    assert kernelctl.client.arguments_of("infer")[1] == {"text": "from a pipe"}


def test_run_without_a_prompt_reads_what_is_piped_in(kernelctl: Kernelctl) -> None:
    kernelctl("run", "small", stdin="from a pipe")

    assert kernelctl.client.arguments_of("infer")[1] == {"text": "from a pipe"}
    assert kernelctl("run", "small", stdin="").exit_code == 2


@pytest.mark.parametrize(
    ("finish", "exit_code", "note"),
    [
        (FinishReason.STOP, 0, ""),
        (FinishReason.ERROR, 1, "ended: error. The model could not be loaded.\n"),
        (FinishReason.DEADLINE, 8, "ended: deadline\n"),
        (FinishReason.CANCELLED, 130, "ended: cancelled\n"),
    ],
)
def test_a_request_that_did_not_come_to_its_end_fails_the_command(
    kernelctl: Kernelctl, finish: FinishReason, exit_code: int, note: str
) -> None:
    kernelctl.client.finish = finish

    ran = kernelctl("run", "small", "Hello")

    assert (ran.exit_code, ran.stderr) == (exit_code, note)
    assert kernelctl("infer", "c1", "-o", "json").exit_code == exit_code
    assert "free" in kernelctl.client.verbs()


def test_a_chat_says_why_an_answer_failed(kernelctl: Kernelctl) -> None:
    kernelctl.client.finish = FinishReason.ERROR

    assert "ended: error. The model could not be loaded." in kernelctl("chat", "small", stdin="Hello\n").stderr


def test_how_long_a_request_may_wait_and_take_can_be_said(kernelctl: Kernelctl) -> None:
    kernelctl("infer", "c1", "Hello", "--max-queue", "2.5", "--deadline", "60")

    assert kernelctl.client.arguments_of("infer")[1] == {"text": "Hello", "max_queue_s": 2.5, "deadline_s": 60.0}
    assert kernelctl("infer", "c1", "Hello", "--max-queue", "0").exit_code == 2


def test_where_requests_stand_can_be_said_without_a_context_of_ones_own(kernelctl: Kernelctl) -> None:
    kernelctl("run", "small", "Hello", "--priority", "batch", "--nice", "5")
    kernelctl("chat", "small", "--nice", "-3", stdin="")

    asked = [(verb, named) for verb, _, named in kernelctl.client.asked if verb in ("alloc", "infer")]
    assert asked == [("alloc", {"adapter": "", "priority": "batch", "nice": 5}), ("infer", {"text": "Hello"}), ("alloc", {"nice": -3})]
    assert kernelctl("run", "small", "Hello", "--nice", "20").exit_code == 2


def test_run_as_chat_sends_a_message(kernelctl: Kernelctl) -> None:
    kernelctl("run", "small", "Hello", "--chat")

    assert kernelctl.client.arguments_of("infer")[1] == {"messages": [{"role": "user", "content": "Hello"}]}


def test_run_prints_the_whole_result_as_json(kernelctl: Kernelctl) -> None:
    result = json.loads(kernelctl("run", "small", "Hello", "-o", "json").stdout)

    assert (result["context"], result["text"], result["tokens"], result["finish_reason"]) == ("c1", "Once upon", [1, 2, 3], "length")
    assert result["usage"]["output_tokens"] == 3


def test_run_keeps_the_context_when_asked(kernelctl: Kernelctl) -> None:
    ran = kernelctl("run", "small", "Hello", "--keep")

    assert "free" not in kernelctl.client.verbs()
    assert ran.stderr == "context c1\n"


def test_an_interrupt_cancels_frees_and_ends_with_130(kernelctl: Kernelctl) -> None:
    kernelctl.client.interrupted = True

    ran = kernelctl("run", "small", "Hello")

    assert (ran.exit_code, ran.stdout) == (130, "Once ")
    assert kernelctl.client.verbs() == ["alloc", "infer", "cancel", "free", "close"]


def test_infer_without_text_goes_on(kernelctl: Kernelctl) -> None:
    assert kernelctl("infer", "c1", "--seed", "0").stdout == "Once upon\n"
    assert kernelctl.client.arguments_of("infer") == (("c1",), {"seed": 0})


def test_infer_takes_text_or_a_message_not_both(kernelctl: Kernelctl) -> None:
    assert kernelctl("infer", "c1", "a", "--message", "b").exit_code == 2


def test_attach_follows_from_an_offset(kernelctl: Kernelctl) -> None:
    assert kernelctl("attach", "c1", "--offset", "4").stdout == "Once upon\n"
    assert kernelctl.client.arguments_of("attach") == (("c1", 4), {})


def test_chat_sends_only_what_is_new(kernelctl: Kernelctl) -> None:
    said = kernelctl("chat", "small", "--system", "Be brief.", stdin="Hello\n\nAnd you?\n/quit\nnever sent\n")

    assert said.stdout == "Once upon\nOnce upon\n"
    sent = [named["messages"] for verb, _, named in kernelctl.client.asked if verb == "infer"]
    assert sent == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        [{"role": "user", "content": "And you?"}],
    ]
    assert kernelctl.client.verbs()[-2:] == ["free", "close"]


def test_an_interrupt_cuts_one_answer_of_a_chat(kernelctl: Kernelctl) -> None:
    kernelctl.client.interrupted = True

    said = kernelctl("chat", "small", stdin="Hello\n")

    assert (said.exit_code, said.stdout) == (0, "Once \n")
    assert "cancel" in kernelctl.client.verbs()


def test_score_prints_each_token_and_the_sum(kernelctl: Kernelctl) -> None:
    assert kernelctl("score", "c1", "upon").stdout == "TOKEN  LOGPROB\n    1  -0.5000\n    2  -1.2500\ntotal -1.7500\n"
    assert json.loads(kernelctl("score", "c1", "upon", "-o", "json").stdout)["total"] == -1.75


def test_guesses_are_told_when_none_were_made_and_a_guesser_needs_a_number(kernelctl: Kernelctl) -> None:
    assert "nothing was guessed" in kernelctl("run", "small", "Hello", "--draft", "4", "--stats").stderr
    assert "guess" not in kernelctl("infer", "c1", "Hello", "--stats").stderr
    refused = kernelctl("infer", "c1", "Hello", "--draft-model", "tiny")
    assert (refused.exit_code, "--draft 4" in refused.stderr) == (2, True)
    assert kernelctl("infer", "c1", "Hello", "--draft-model", "tiny", "--draft", "2").exit_code == 0
