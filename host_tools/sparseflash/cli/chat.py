"""The verb chat: a conversation at a terminal, or one line each through a pipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from sparseflash.base.errors import LinkError, SparseflashError, UsageError
from sparseflash.cli import console
from sparseflash.cli.options import (
    DEFAULT_MODEL,
    BoardOption,
    ModelOption,
    PortOption,
    ThreadsOption,
    examples,
    verbs,
)

if TYPE_CHECKING:
    from sparseflash.device.chat import Chat
    from sparseflash.device.session import Session

app = verbs()

HELP = """\
/help         this list
/reset        a new conversation
/stats        tokens and times of the last answer and of all
/save FILE    the conversation as a text file
/exit, /quit  the end; Ctrl-D too
Ctrl-C stops an answer; the conversation goes on. An empty line does nothing."""
COMMANDS = ("/help", "/reset", "/stats", "/save", "/exit", "/quit")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    most: int
    temperature: float
    top_p: float
    seed: int


@app.command(
    epilog=examples(
        "chat --model story",
        'chat "What is the capital of France?"',
        "chat --temperature 0.7 --top-p 0.9 --seed 7",
        'chat --system "You answer in one word." --state word.state',
        "echo Hello | sparseflash chat",
    )
)
def chat(
    message: Annotated[str, typer.Argument(help="one question; else a conversation")] = "",
    model: ModelOption = DEFAULT_MODEL,
    board: BoardOption = "host",
    port: PortOption = None,
    threads: ThreadsOption = 0,
    most: Annotated[int, typer.Option(min=1, help="tokens of an answer")] = 120,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="of the probability kept")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="of the draws")] = 1,
    raw: Annotated[bool, typer.Option("--raw", help="without the model's chat template")] = False,
    system: Annotated[str, typer.Option(help="what the model is told first")] = "",
    full: Annotated[
        str, typer.Option(help="when the KV cache is full: slide forgets, stop says so")
    ] = "slide",
    state: Annotated[
        Path | None,
        typer.Option(help="file that keeps the first prompt's KV cache for the next conversation"),
    ] = None,
) -> None:
    """Talks to the device.

    With a message: one question and its answer.

    At a terminal the arrow keys edit and recall lines. Lines from a pipe are a question each. A
    line with a slash at its start is a command: /help lists them.
    """
    from sparseflash.device.chat import Chat
    from sparseflash.pipeline import device
    from sparseflash.pipeline.places import Places

    if full not in ("slide", "stop"):
        raise UsageError(f"--full {full!r} is neither slide nor stop")
    places = Places(model, board)
    device.check_chats(places)
    with ExitStack() as open_until_the_end:
        with console.waiting(f"starting {model} on {board}"):
            session = open_until_the_end.enter_context(
                device.session(model, board, port, console.warn, threads)
            )
        words = device.open_tokenizer(places)
        assert words is not None
        ends, slide = session.plan["model"]["eos_ids"], full == "slide"
        talk = Chat(session.device, words, ends, raw, console.warn, system, slide, note, state)
        sampling = Sampling(most, temperature, top_p, seed)
        if not message and sys.stdin.isatty():
            converse(talk, session, sampling)
            return
        turns = []
        for line in [message] if message else sys.stdin:
            if not message and line.startswith("/"):
                if not command(talk, line.strip()):
                    break
            elif line.strip():
                answer(talk, session, line.rstrip("\r\n"), sampling)
                turns.append({"question": line.strip(), **talk.figures()})
        console.result(turns)


def note(sentence: str) -> None:
    """A remark beside the answers, which a pipe does not carry on."""
    print(f"({sentence})", file=sys.stderr, flush=True)


def answer(talk: Chat, session: Session, text: str, sampling: Sampling) -> None:
    """Streams an answer; once more when the device restarted meanwhile."""
    s = sampling
    for again in (False, True):
        try:
            with _stoppable() as stopped:
                pieces = iter(talk.ask(text, s.most, s.temperature, s.top_p, s.seed))
                with console.waiting("reading the prompt"):
                    first = next(pieces, b"")
                for piece in chain([first], pieces):
                    if not console.asked.json:
                        console.write(piece)
                    if stopped():
                        pieces.close()  # type: ignore[attr-defined]
                        break
            break
        except LinkError as e:
            if again:
                raise
            note(f"the link broke: {e}")
            talk.reconnected(session.reconnect())
            note("connected again; the answer begins anew")
    if not console.asked.json:
        console.write(b"\n")
    if talk.last.ended:
        note(talk.last.ended)


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noticed between tokens, so that no request is cut; the second one interrupts."""
    count = 0

    def notice(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, notice)
    try:
        yield lambda: count > 0
    finally:
        signal.signal(signal.SIGINT, before)


def converse(talk: Chat, session: Session, sampling: Sampling) -> None:
    """Until the end of the input."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory

    from sparseflash.base.files import work

    file = work() / "build" / "chat_history"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines: PromptSession[str] = PromptSession(
        history=FileHistory(str(file)),
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
    )
    while True:
        try:
            text = lines.prompt("> ").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if text.startswith("/"):
            if not command(talk, text):
                return
        elif text:
            try:
                answer(talk, session, text, sampling)
                note(str(talk.last))
            except LinkError:
                raise
            except SparseflashError as e:  # a message that does not fit, say
                console.fail(str(e))


def command(talk: Chat, text: str) -> bool:
    """Does what a line with a slash asks for; False ends the conversation."""
    word, _, rest = text.partition(" ")
    if word in ("/exit", "/quit"):
        return False
    if word == "/reset":
        talk.reset()
        note("a new conversation")
    elif word == "/stats":
        note(f"the last answer: {talk.last}; {talk.last.position} positions are taken")
        note(f"all: {talk.total.tokens} tokens, {talk.total.prompt_tokens} of prompts")
    elif word == "/save":
        _save(talk, rest.strip())
    else:
        if word != "/help":
            note(f"{word} is no command")
        print(HELP)
    return True


def _save(talk: Chat, name: str) -> None:
    from sparseflash.base.files import write_text

    if not name:
        note("/save wants the name of a file: /save talk.txt")
        return
    text = "".join(f"{m['role']}: {m['content']}\n\n" for m in talk.history)
    path = Path(name).expanduser()
    if path.exists():
        note(f"{path} is there already; give another name")
        return
    try:
        write_text(path, text)
    except OSError as e:
        note(f"{path} cannot be written: {e.strerror}")
        return
    note(f"saved {len(talk.history)} messages in {path}")
