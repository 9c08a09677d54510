"""`autoft chat`: talk to a model that autoft trained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoft.cli import options
from autoft.cli.chat_commands import Conversation
from autoft.errors import AutoftError, OptionError, harmless

if TYPE_CHECKING:
    from autoft.trainer.evaluation.chat import Voice


@options.command(
    "Talk to the model in DIR, a folder written by `autoft run` or an adapter of PEFT.\n\n"
    "Answers once with -p or text on stdin; otherwise a conversation, in which /help lists commands. Several adapters "
    "share one base: /adapter NAME switches, and -p is answered by each.",
    examples=("autoft chat my-adapter", 'autoft chat my-adapter -p "Hello!"', "autoft chat one-adapter another"),
)
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
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
    folders: tuple[Path, ...],
    prompt: str | None,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    base: bool,
    accept_changes: bool,
    as_json: bool,
) -> None:
    prompt = _prompt(prompt, base=base, as_json=as_json)
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.trainer.evaluation.chat import open_run

    def say(text: str) -> None:
        click.echo(text, err=True)

    talker = open_run(folders[0], accept_changes=accept_changes, say=say)
    for folder in folders[1:]:
        talker.take_adapter(folder, accept_changes=accept_changes, say=say)

    def talk_as(voice: Voice) -> Conversation:
        talker.use(voice)
        return Conversation(
            talker,
            system=system if system is not None else voice.system_prompt,
            max_new_tokens=max_new_tokens,
            show=_silent if as_json else _write,
            temperature=temperature,
        )

    if prompt is None:
        _converse(talk_as(talker.voices[0]))
        return
    voices = talker.voices[:1] if base else talker.voices
    answers = _answers(talk_as, voices, prompt, base=base, as_json=as_json)
    if as_json:
        several = {"answers": answers} if len(answers) > 1 else {"answer": next(iter(answers.values()))}
        options.print_json({"prompt": prompt, **several})


def _prompt(prompt: str | None, *, base: bool, as_json: bool) -> str | None:
    """What is to be answered once; None for a conversation. Raises: OptionError for options that need a text."""
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise OptionError("nothing to answer: stdin is empty", fix="-p TEXT, or pipe a text in")
    if base and prompt is None:
        raise OptionError("--base answers once", fix="give the text with -p or on stdin; in a conversation type /base")
    if as_json and prompt is None:
        raise OptionError("--json answers once", fix="give the text with -p or on stdin")
    return prompt


def _answers(
    talk_as: Callable[[Voice], Conversation], voices: Sequence[Voice], prompt: str, *, base: bool, as_json: bool
) -> dict[str, str]:
    """The answer of each voice, or of the base, by the voice's name; shown as it comes unless as_json."""
    answers = {}
    for voice in voices:
        if len(voices) > 1 and not as_json:
            click.echo(f"{harmless(voice.name, one_line=True)}: ", nl=False)
        talk = talk_as(voice)
        answers[voice.name] = talk.answer_base(prompt) if base else talk.say(prompt)
        if not as_json:
            click.echo()
    return answers


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
