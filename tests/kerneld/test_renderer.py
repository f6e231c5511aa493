"""Rendering in the sandbox: what templates may do, and what they may not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from kerneld.errors import InvalidArgument
from kerneld.renderer import TemplateRenderer
from kerneld.template import ChatTemplate

Answer = TypeVar("Answer")
MESSAGES = (("system", "be brief"), ("user", "hi <b>"))

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

# Ways out of a template that are known from other sandboxes.
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ raise_exception.__globals__['sys'].modules }}",
    "{{ strftime_now.__globals__.__builtins__.__import__('os').system('true') }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ (messages | attr('__class__')).__mro__ }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f')|attr('__mro__') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '%s' | format(messages.__class__) }}",
    "{{ ''.format_map({}).__class__.__bases__ }}",
    "{% set x = messages.append(1) %}{{ messages }}",
    "{{ messages.clear() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ lipsum.__globals__['os'].environ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ open('/etc/passwd').read() }}",
]


def with_renderer(use: Callable[[TemplateRenderer], Awaitable[Answer]], timeout_s: float = 30.0, max_characters: int = 100_000) -> Answer:
    async def scenario() -> Answer:
        renderer = TemplateRenderer(timeout_s, max_characters)
        try:
            return await use(renderer)
        finally:
            await renderer.close()

    return asyncio.run(scenario())


def render(source: str, **tokens: str) -> str:
    return with_renderer(lambda renderer: renderer.render(ChatTemplate(source, tokens), MESSAGES))


async def problem_of(renderer: TemplateRenderer, source: str) -> str:
    with pytest.raises(InvalidArgument) as caught:
        await renderer.render(ChatTemplate(source), MESSAGES)
    return caught.value.message


def test_a_usual_template_renders() -> None:
    expected = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi <b><|im_end|>\n<|im_start|>assistant\n"

    assert render(CHATML) == expected


def test_what_templates_are_written_for_is_there() -> None:
    source = """{{ bos_token }}{{ messages[1] | tojson }}{{ strftime_now('%Y') | length }}{% for m in messages %}{% break %}{% endfor %}
{%- generation %}said{% endgeneration %}{% set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}{{ missing is defined }}"""

    assert render(source, bos_token="<s>") == '<s>{"role": "user", "content": "hi <b>"}4said3False'


def test_a_prompt_that_goes_on_is_not_opened_again() -> None:
    template = ChatTemplate("{{ bos_token }}{{ messages[1].content }}", {"bos_token": "<s>"})

    assert with_renderer(lambda renderer: renderer.render(template, MESSAGES, opens=False)) == "hi <b>"


def test_the_template_may_refuse_messages() -> None:
    problem = with_renderer(lambda renderer: problem_of(renderer, "{{ raise_exception('roles must alternate') }}"))

    assert problem == "input.messages: the model's chat template cannot render them: roles must alternate."


def test_broken_templates_are_told_of_in_one_sentence() -> None:
    async def problems(renderer: TemplateRenderer) -> list[str]:
        return [await problem_of(renderer, source) for source in ("{% if %}", "{{ 1 / 0 }}", "{{ messages[9].role }}", "{{ x() }}")]

    for problem in with_renderer(problems):
        assert problem.startswith("input.messages: the model's chat template cannot render them: ")
        assert "\n" not in problem


def test_no_known_escape_leads_out_of_the_sandbox() -> None:
    async def outcomes(renderer: TemplateRenderer) -> list[str]:
        texts = []
        for source in ESCAPES:
            try:
                texts.append(await renderer.render(ChatTemplate(source), MESSAGES))
            except InvalidArgument:
                texts.append("")
        return texts

    for source, text in zip(ESCAPES, with_renderer(outcomes), strict=True):
        assert not any(sign in text for sign in ("<class", "<module", "<function", "root:", "uid=", "environ(")), source


def test_a_template_that_writes_without_end_is_stopped_and_the_next_one_renders() -> None:
    async def scenario(renderer: TemplateRenderer) -> tuple[str, str]:
        endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages }}{% endfor %}{% endfor %}"
        return await problem_of(renderer, endless), await renderer.render(ChatTemplate(CHATML), MESSAGES)

    problem, text = with_renderer(scenario)

    assert "more than 100000 characters" in problem
    assert text.startswith("<|im_start|>")


def test_a_template_that_takes_all_memory_is_stopped() -> None:
    problem = with_renderer(lambda renderer: problem_of(renderer, "{% set x = 'x' * (1024 ** 3) * 8 %}{{ x | length }}"))

    assert "cannot render them: MemoryError" in problem


def test_a_template_that_computes_without_end_is_stopped_and_the_next_one_renders() -> None:
    async def scenario(renderer: TemplateRenderer) -> tuple[str, str]:
        endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        return await problem_of(renderer, endless), await renderer.render(ChatTemplate("fine"), MESSAGES)

    problem, text = with_renderer(scenario)

    assert problem == "input.messages: the model's chat template did not finish within its limits of time and memory."
    assert text == "fine"


def test_a_caller_that_leaves_does_not_get_its_answer_to_the_next() -> None:
    async def scenario(renderer: TemplateRenderer) -> str:
        await renderer.render(ChatTemplate("warm"), MESSAGES)
        leaving = asyncio.create_task(renderer.render(ChatTemplate("first"), MESSAGES))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        return await renderer.render(ChatTemplate("second"), MESSAGES)

    assert with_renderer(scenario) == "second"


def test_renders_at_once_take_turns() -> None:
    async def scenario(renderer: TemplateRenderer) -> list[str]:
        return await asyncio.gather(*(renderer.render(ChatTemplate(f"t{i}"), MESSAGES) for i in range(8)))

    assert with_renderer(scenario) == [f"t{i}" for i in range(8)]
