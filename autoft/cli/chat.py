"""`autoft chat`: talk to a model that autoft trained."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from autoft.cli import options
from autoft.cli.chat_commands import Conversation
from autoft.errors import AutoftError, OptionError, harmless


@options.command(
    "Talk to the model in DIR, a folder written by `autoft run`.\n\n"
    "Answers once with -p or text on stdin; otherwise a conversation, in which /help lists commands.",
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
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, max=5),
    default=0.0,
    metavar="T",
    help="Sample with this temperature (default: 0, the likeliest token).",
)
@click.option("--base", is_flag=True, help="With -p: answer as the base does, without the adapter.")
@options.ACCEPT_CHANGES
def command(
    folder: Path,
    prompt: str | None,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    base: bool,
    accept_changes: bool,
    as_json: bool,
) -> None:
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise OptionError("nothing to answer: stdin is empty", fix="-p TEXT, or pipe a text in")
    if base and prompt is None:
        raise OptionError("--base answers once", fix="give the text with -p or on stdin; in a conversation type /base")
    if as_json and prompt is None:
        raise OptionError("--json answers once", fix="give the text with -p or on stdin")
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.trainer.evaluation.chat import open_run

    talker = open_run(folder, accept_changes=accept_changes, say=lambda text: click.echo(text, err=True))
    talk = Conversation(
        talker,
        system=system if system is not None else talker.system_prompt,
        max_new_tokens=max_new_tokens,
        show=_silent if as_json else _write,
        temperature=temperature,
    )
    if prompt is None:
        _converse(talk)
        return
    answer = talk.answer_base(prompt) if base else talk.say(prompt)
    if as_json:
        options.print_json({"prompt": prompt, "answer": answer})
    else:
        click.echo()


def _converse(talk: Conversation) -> None:
    click.echo("/help lists commands, an empty line ends", err=True)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            line = ""
        if not line:
            return
        try:
            reply = talk.run(line) if line.startswith("/") else talk.say(line)
        except AutoftError as error:  # the conversation goes on
            click.echo(f"Error: {error}", err=True)
            continue
        click.echo(harmless(reply) if line.startswith("/") else "")  # an answer is shown as it comes


def _write(text: str) -> None:
    click.echo(harmless(text), nl=False)


def _silent(text: str) -> None:
    pass
