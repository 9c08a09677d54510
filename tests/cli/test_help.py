"""`--help`: short lines, options in sections, and examples that the command takes as they stand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from autoft.cli.main import COMMANDS, cli
from autoft.cli.options import SECTIONS, Command

# Of language.md's rule 11: words of sentences that read as if translated
BANNED = re.compile(r"so many|times the time|\banew\b|of which|[Tt]ake up|\btells\b|Default:|What if\?")


def commands() -> Iterator[tuple[str, Command]]:
    ctx = click.Context(cli, **cli.context_settings)
    for name in COMMANDS:
        command = cli.get_command(ctx, name)
        found = command.commands if isinstance(command, click.Group) else {"": command}
        for action, each in found.items():
            assert isinstance(each, Command)
            yield f"{name} {action}".strip(), each


ALL = dict(commands())


@pytest.mark.parametrize("name", ALL)
def test_help_is_short_and_in_the_field_s_words(name: str) -> None:
    command = ALL[name]
    lines = [option.help or "" for option in command.params if isinstance(option, click.Option)]
    for line in lines:
        assert len(line.split()) <= 13, line
        assert line[0].isupper() or line.startswith("lora"), line
        assert line.endswith("."), line
    for text in (command.help or "", COMMANDS[name.split()[0]], *lines):
        assert not BANNED.search(text), text


@pytest.mark.parametrize("name", ALL)
def test_there_are_three_examples_and_the_command_takes_them(name: str) -> None:
    command = ALL[name]
    assert len(command.examples) == 3
    for example in command.examples:
        words = shlex.split(example.partition(" <")[0])
        assert words[: 1 + len(name.split())] == ["autoft", *name.split()]
        ctx = click.Context(command, **command.context_settings)  # click keeps the first context's help option
        command.make_parser(ctx).parse_args(words[1 + len(name.split()) :])  # refuses an option that is not there


def test_each_option_stands_in_one_section(autoft) -> None:
    named = [name for names in SECTIONS.values() for name in names]
    assert len(named) == len(set(named))
    known = {param.name for command in ALL.values() for param in command.params}
    assert set(named) <= known
    out = autoft("plan", "--help").out
    heads = re.findall(r"^(\w[\w ]*):$", out, re.MULTILINE)
    assert heads == ["Data", "Model and method", "Device", "Limits", "Output", "Other", "Examples"]
    assert "--max-seq" not in out  # of before `autoft fit`, and still taken


def test_fit_asks_what_plan_asked(autoft, tiny_model) -> None:
    words = (tiny_model, "--gpu", "rtx-3060", "--json")
    fit, plan = autoft("fit", *words, "--longest"), autoft("plan", *words, "--max-seq")
    assert (fit.code, fit.out) == (plan.code, plan.out) == (0, plan.out)
    none = autoft("fit", *words[:3])
    assert none.code == 2
    assert "no question given" in none.err
    two = autoft("fit", *words[:3], "--longest", "--cards")
    assert "--longest and --cards: two questions" in two.err
    pinned = autoft("fit", *words[:3], "--longest", "--seq-len", "64")
    assert "--seq-len and --longest" in pinned.err
