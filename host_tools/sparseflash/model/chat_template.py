"""Chat templates rendered as transformers renders them, in a process of their own with limits.

A template comes with a model file from anywhere. Jinja's sandbox keeps it from the system, and the
process from time and memory without end. This file runs as that process too (``python
chat_template.py``), so it imports nothing of the package before it knows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

SECONDS = 10
"""Longest rendering, which takes milliseconds: also what a busy machine needs to start Python."""
CPU_SECONDS = 3
MEMORY = 512 << 20
MOST = 4_000_000
"""Longest rendered text, in characters."""


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    names: Mapping[str, Any] | None = None,
    **more: Any,
) -> str:
    """The prompt text of a conversation that asks for an answer.

    names: special tokens by name (``bos_token``, ...); what a model lacks stays undefined.
    more: other variables, ``tools`` and ``documents`` among them (None when not given, as
    transformers passes them).

    Raises:
        InputError: the template fails, or takes more time, memory or text than its limits.
    """
    from sparseflash.base.errors import InputError

    values: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": True}
    values |= {"messages": list(messages), **(names or {}), **more}
    job = json.dumps({"template": template, "values": values})
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__],
            input=job.encode("utf-8", "surrogatepass"),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(_fails(f"it takes more time than {SECONDS} s")) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise InputError(_fails("it takes more time or memory than it may")) from None
    if "error" in answer:
        raise InputError(_fails(str(answer["error"])))
    return str(answer["text"])


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message; of a list of parts, the texts one after the other."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(p.get("text", "")) for p in content if isinstance(p, dict))


def holds(prompt: str, message: Mapping[str, Any]) -> bool:
    """Whether a rendered prompt has the text of a message, which a template may trim."""
    return text_of(message).strip() in prompt


def _fails(why: str) -> str:
    why = " ".join("".join(c if c.isprintable() else " " for c in why).split())[:300]
    return f"the model's chat template fails: {why.rstrip('.')}; --raw sends the text without it"


def _environment() -> Any:
    """Jinja as transformers sets it up (its ``_compile_jinja_template``)."""
    import datetime

    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` marks what a model wrote; rendering keeps the text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_keep"), [], [], body).set_lineno(line)

        def _keep(self, caller: Any) -> Any:
            return caller()

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.now().strftime(f)
    return env


def _child() -> None:
    """Reads a job, answers ``{"text": ...}`` or ``{"error": ...}``."""
    job = json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"))
    env = _environment()  # before the limits, which are the template's
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    except (ImportError, ValueError, OSError):  # not every system has them; the parent's clock has
        pass
    try:
        parts, length = [], 0
        for part in env.from_string(job["template"]).generate(**job["values"]):
            length += len(part)
            if length > MOST:
                raise ValueError(f"its text is longer than {MOST:,} characters")
            parts.append(part)
        answer = {"text": "".join(parts)}
    except MemoryError:
        answer = {"error": "it takes more memory than it may"}
    except RecursionError:
        answer = {"error": "it calls itself without end"}
    except Exception as e:
        answer = {"error": str(e) or type(e).__name__}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _child()
