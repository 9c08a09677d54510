"""`autoft chat`: talk to a model that autoft trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoft.cli import options
from autoft.errors import OptionError, harmless

if TYPE_CHECKING:
    from autoft.trainer.chat import Talker
    from autoft.trainer.data.shape import Message


@options.command(
    "Talk to the model in DIR, a folder written by `autoft run`.\n\n"
    "Answers once with -p or text on stdin; otherwise a conversation, ended by an empty line or Ctrl-D.",
    examples=("autoft chat my-adapter", 'autoft chat my-adapter -p "Hello!"', "autoft chat my-adapter < question.txt"),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", metavar="TEXT", help="Answer this once.")
@click.option("--system", metavar="TEXT", help="System prompt (default: that of the training data).")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=512,
    metavar="N",
    help="Longest answer in tokens (default: 512).",
)
@options.ACCEPT_CHANGES
def command(
    folder: Path,
    prompt: str | None,
    system: str | None,
    max_new_tokens: int,
    accept_changes: bool,
    as_json: bool,
) -> None:
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise OptionError("nothing to answer: stdin is empty", fix="-p TEXT, or pipe a text in")
    if as_json and prompt is None:
        raise OptionError("--json answers once", fix="give the text with -p or on stdin")
    from autoft.trainer import environment

    environment.prepare()
    from autoft.trainer.chat import open_run

    talker = open_run(folder, accept_changes=accept_changes, say=lambda text: click.echo(text, err=True))
    start = _start(system if system is not None else talker.system_prompt)
    if prompt is None:
        _converse(talker, start, max_new_tokens)
        return
    messages = [*start, {"role": "user", "content": prompt}]
    answer = talker.answer(messages, max_new_tokens=max_new_tokens, on_text=_silent if as_json else _write)
    if as_json:
        options.print_json({"prompt": prompt, "answer": answer})
    else:
        click.echo()


def _converse(talker: Talker, start: list[Message], max_new_tokens: int) -> None:
    messages = list(start)
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            text = ""
        if not text:
            return
        messages.append({"role": "user", "content": text})
        answer = talker.answer(messages, max_new_tokens=max_new_tokens, on_text=_write)
        messages.append({"role": "assistant", "content": answer})
        click.echo()


def _start(system: str | None) -> list[Message]:
    return [{"role": "system", "content": system}] if system else []


def _write(text: str) -> None:
    click.echo(harmless(text), nl=False)


def _silent(text: str) -> None:
    pass
