"""Chat templates: the text that transformers renders, and templates that do harm."""

from __future__ import annotations

import time
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from sparseflash.base.errors import InputError
from sparseflash.model import chat_template
from sparseflash.model.chat_template import holds, render

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " <b>Größe</b> & \u4f60 'x' "},
    {"role": "assistant", "content": "Yes", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]},
    {"role": "user", "content": "Why?"},
]
TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
TEMPLATES = {
    "turns": TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "trim": "  {% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content | trim }}\n"
    "  {% endif %}\n{% endfor %}",
    "json": "{{ messages | tojson }} {{ messages[2].tool_calls | tojson(indent=2) }}",
    "sorted json": "{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=True, separators=(',', ':')) }}",
    "date": "{{ strftime_now('%Y-%m') }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "tools": "{% if tools is defined and tools %}T{% endif %}{% if tools is none %}N{% endif %}"
    "{% if documents is defined %}D{% endif %}{% if xyz is defined %}X{% endif %}",
    "names": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token is defined }}",
    "loops": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}"
    "{{ m.content[:3] }}{% if m.role == 'assistant' %}{% break %}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}{{ messages[0]['content'].startswith('Be') }}",
    "macro": "{% macro turn(m) %}[{{ m.role|upper }}]{% endmacro %}{{ turn(messages[0]) }}",
}
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_those_of_transformers(name: str) -> None:
    template = TEMPLATES[name]
    (want,), _ = render_jinja_template(
        [MESSAGES], chat_template=template, add_generation_prompt=True, **NAMES
    )
    assert render(template, MESSAGES, NAMES) == want


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    template = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    messages = [{"role": "user", "content": parts}]
    text = render(template, messages)
    assert text == "one two"
    assert holds(text, messages[0])
    assert not holds("two", messages[0])


def test_tools_are_passed_on() -> None:
    tool = {"type": "function", "function": {"name": "now"}}
    assert render("{{ tools[0].function.name }}", MESSAGES, tools=[tool]) == "now"


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{{ raise_exception('only pairs') }}", "only pairs"),
        ("{% for %}", "fails"),
        ("{{ messages.missing.attribute }}", "has no attribute"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails"),
        ("{{ messages.append(1) }}", "fails"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages[0] + 1 }}", "unsupported operand"),
        ("{{ 'a' * 10**9 }}", "memory"),
        ("{{ '%1000000000d' % 1 }}", "memory"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "time"),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "longer than"),
        ("{{ (10 ** 10) ** (10 ** 9) }}", "time"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails"),
        ("{{ open('/etc/passwd').read() }}", "undefined"),
        ("{% include '/etc/passwd' %}", "fails"),
        ("{% set l = [1] %}{% for i in l %}{{ l.append(1) }}{% endfor %}", "fails"),
        ("{{ raise_exception('a\\nb\\x1b[31m') }}", "a b"),
    ],
)
def test_failures_are_one_sentence(template: str, word: str) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=word) as e:
        render(template, MESSAGES)
    assert "\n" not in str(e.value) and "\x1b" not in str(e.value) and "--raw" in str(e.value)
    assert time.monotonic() - start < chat_template.SECONDS + 5


def test_lone_surrogates_pass_to_the_tokenizer() -> None:
    assert render("{{ messages[0].content }}", [{"content": "a\ud800"}]) == "a\ud800"
