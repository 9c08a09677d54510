"""`autoft`: finds a command's module when it is asked for, and turns every error into one line and an exit code."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import click

from autoft import __version__
from autoft.cli.options import OFFLINE, takes_all_text
from autoft.errors import AutoftError, DoesNotFit, Interrupted, OptionError, Resumable, near

# Where a command's module is not named after it
MODULES = {"watch": "follow"}
# What people type for a command of ours
ELSEWHERE = {
    "check": ("data", "check"),
    "train": ("run",),
    "finetune": ("run",),
    "fine-tune": ("run",),
    "sft": ("run",),
    "info": ("probe",),
    "inference": ("chat",),
    "evaluate": ("eval",),
}
# By what one does first, next and later: name, and the line that `autoft --help` shows, so that help imports no command
SECTIONS = {
    "Start": {
        "doctor": "Check your setup: driver, PyTorch, CUDA kernels, versions, disk, hub.",
        "plan": "Find the best settings to fine-tune a model on this machine.",
        "run": "Plan, train, evaluate and save, in one step.",
        "chat": "Talk to a model that autoft trained, or to several adapters.",
    },
    "Look closer": {
        "data": "Check training data, and write a cleaned copy.",
        "probe": "Show this machine: GPUs, memory, disk, CPU.",
        "fit": "Find the longest sequence, largest batch, GPUs or models that fit.",
        "compare": "Compare LoRA on a 16-bit base, on an 8-bit base, and QLoRA.",
        "estimate": "Estimate memory and time of one exact recipe.",
        "eval": "Evaluate a model that autoft trained, beside its base.",
    },
    "Runs": {
        "watch": "Follow a run from another terminal.",
        "resume": "Resume an interrupted run from its latest valid checkpoint.",
        "runs": "List, show, compare, tag and clean runs.",
        "history": "Show predicted and measured memory and speed of past runs.",
    },
    "Use the result": {
        "adapters": "List, show and combine adapters.",
        "serve": "Serve a model to OpenAI-compatible clients.",
        "merge": "Merge the adapter of a run into its 16-bit base.",
        "export": "Export a model for llama.cpp, Ollama, vLLM, transformers or MLX.",
        "push": "Upload a run or an export to the Hugging Face hub.",
    },
    "More": {
        "profiles": "List the GPUs, models and presets that autoft knows by name.",
        "export-config": "Export a plan to axolotl, LLaMA-Factory, TRL or unsloth.",
    },
}
COMMANDS = {name: line for section in SECTIONS.values() for name, line in section.items()}


class LazyGroup(click.Group):
    """Imports `autoft.cli.NAME` only when NAME is run or asked for help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = MODULES.get(cmd_name, cmd_name.replace("-", "_"))
        command: click.Command = importlib.import_module(f"autoft.cli.{module}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            meant = ELSEWHERE.get(args[0])
            fix = "autoft --help lists the commands" if meant is None else shlex.join(["autoft", *meant, *args[1:]])
            raise OptionError(f"no command {args[0]!r}.{near(args[0], COMMANDS)}", fix=fix)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="autoft %(version)s")
@OFFLINE
def cli() -> None:
    """Fine-tune a language model on the hardware you have: autoft finds settings that fit, explains them, and trains.

    Start with `autoft run`: it trains a real 135M model on a bundled task, with or without a GPU.
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input, 3 nothing fits, 4 stopped but resumable, 130
    interrupted with nothing to resume."""
    args = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    _take_any_text()
    pressed = _remember_ctrl_c()
    try:
        sys.exit(_exit_code(cli.main(args=args, prog_name="autoft", standalone_mode=False)))
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(OptionError.exit_code)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place that catches all
        failure = _as_ours(error, args)
        if pressed() and not isinstance(failure, Interrupted | Resumable):
            failure = Interrupted("interrupted")  # a library interrupted in its import makes any kind of error of it
        if "--debug" in args:
            traceback.print_exception(error)
        _report(failure, as_json="--json" in args)
        # Interrupted in text compiled on the fly, as dataclasses do, `python -m` remembers to end itself by the
        # signal, exit code or not (unhandled_keyboard_interrupt in pythonrun.c); text that ends well makes it forget
        exec("")
        _leave(failure.exit_code)


def _leave(code: int) -> NoReturn:
    group = sys.modules.get("autoft.trainer.distributed.group")
    if group is not None and group.Group.any_stuck:  # Python would wait at its end for a host that is gone
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _remember_ctrl_c() -> Callable[[], bool]:
    """Whether Ctrl-C was pressed since, where it means what it always does: a run has its own meaning for it."""
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, handle)
    return lambda: bool(seen)


def _open_streams() -> None:
    """A stream that was closed before Python began is None. Without an output there is nothing to answer on."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open as long as the process
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    if sys.stdout is None:
        print("Error: standard output is closed\nTo fix: leave it open, or send it to a file", file=sys.stderr)
        sys.exit(OptionError.exit_code)


def _take_any_text() -> None:
    """Where the terminal cannot show a character, a question mark stands for it instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _exit_code(result: Any) -> int:
    return result if isinstance(result, int) else 0


def _as_ours(error: BaseException, args: Sequence[str]) -> AutoftError:
    if isinstance(error, AutoftError):
        return error
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return Interrupted("interrupted")
    if isinstance(error, click.ClickException):
        ctx = getattr(error, "ctx", None)
        path = ctx.command_path if ctx else "autoft"
        message = error.format_message().strip().rstrip(".")
        proposal = _proposal(error, args)
        if proposal is not None and isinstance(error, click.NoSuchOption):
            message = f"No such option '{error.option_name}'"  # click's own proposal would lead astray
        return OptionError(" ".join(message.split()), fix=proposal or f"{path} --help shows how it is used")
    if isinstance(error, MemoryError):
        return AutoftError("out of host memory", fix="end other programs, or raise the limit (ulimit -v)")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return AutoftError(
            f"{where}{error.strerror or error}", fix="check that path, its permissions and the room on its disk"
        )
    return AutoftError(
        f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}",
        fix="add --debug for the traceback, and report it with the output of `autoft probe --json`",
    )


def _proposal(error: click.ClickException, args: Sequence[str]) -> str | None:
    """What to type in place of another trainer's option, or of a second argument; None where that is not known."""
    ctx = getattr(error, "ctx", None)
    if ctx is None or not any("--set" in option.opts for option in ctx.command.params):
        return None
    from autoft.planner.search.synonyms import option_called

    if not isinstance(error, click.NoSuchOption):
        extra = re.search(r"extra argument \((.+)\)$", error.format_message())
        return f"--data {shlex.quote(extra[1])}" if extra and re.search(r"[./\\]", extra[1]) else None
    called = option_called(error.option_name, _value_after(error.option_name, args))
    known = {word for option in ctx.command.params for word in option.opts}
    return called if called is None or called.split()[0] in known or not called.startswith("--") else None


def _value_after(option: str, args: Sequence[str]) -> str | None:
    """What was typed for `option`: after "=", or as the next word."""
    for at, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name == option:
            following = args[at + 1] if at + 1 < len(args) else "-"
            return value if equals else None if following.startswith("-") else following
    return None


def _report(failure: AutoftError, *, as_json: bool) -> None:
    sys.stdout.flush()
    print(f"Error: {failure}", file=sys.stderr)
    if as_json:
        error = {"what": failure.what, "fix": failure.fix, "exit_code": failure.exit_code}
        if isinstance(failure, DoesNotFit):
            error |= failure.details
        print(json.dumps({"error": error}, ensure_ascii=not takes_all_text()))
