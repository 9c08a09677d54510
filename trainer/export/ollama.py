"""`--to ollama`: a GGUF file and the Modelfile that `ollama create` reads, with template, stop tokens, parameters."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from autoft.errors import AutoftError, ModelError, OptionError
from autoft.home import write_text
from autoft.trainer.export import gguf
from autoft.trainer.export.chat_template import go_template, render_go, turns_of, without_bos
from autoft.trainer.export.exporter import Answer, Exporter, Order, Question
from autoft.trainer.export.merge import write_record
from autoft.trainer.export.source import Source

MODEL_FILE = "model.gguf"
MODELFILE = "Modelfile"
# ollama/types/model/name.go: [namespace/]model[:tag], each of 1 to 80 characters
PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
NAME = re.compile(rf"(?:[A-Za-z0-9_][A-Za-z0-9_-]{{0,79}}/)?{PART}(?::{PART})?")
COMMAND = re.compile(r'([A-Z]+) (?:"""(.*?)"""|([^\n]*))\n', re.DOTALL)
NUM_CTX = 4096  # tokens: as much as Ollama takes by itself


def modelfile(source: Source) -> str:
    """The Modelfile of a run. Raises: ModelError where its chat template, or a text of it, has no form in one."""
    template = go_template(turns_of(source.tokenizer))
    stops = source.tokenizer.convert_ids_to_tokens(list(source.stops))
    system = source.result.system_prompt if source.result is not None else None
    if any('"""' in text for text in (template, system or "")):
        raise ModelError('a text with """ has no form in a Modelfile', fix="--to gguf")
    lines = [f"FROM ./{MODEL_FILE}", f'TEMPLATE """{template}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += ["PARAMETER temperature 0", f"PARAMETER num_ctx {max(NUM_CTX, source.recipe.seq_len)}"]
    return "\n".join(lines) + "\n"


def parse_modelfile(text: str) -> list[tuple[str, str]]:
    """(command, argument) of each line. Raises: ValueError for a line that is none."""
    commands, at = [], 0
    while at < len(text):
        match = COMMAND.match(text, at)
        if match is None:
            raise ValueError(f"not a command: {text[at : at + 40]!r}")
        commands.append((match[1], match[2] if match[2] is not None else match[3]))
        at = match.end()
    return commands


def _check(source: Source, order: Order) -> None:
    gguf.check_convertible(source)
    if not NAME.fullmatch(_name(order)):
        raise OptionError(
            f"--name {_name(order)}: not a name that Ollama takes",
            fix="--name with letters, digits and . _ - such as my-model",
        )
    modelfile(source)


def _name(order: Order) -> str:
    return order.name or order.out.name


def _write(source: Source, aside: Path, order: Order) -> Path:
    gguf.convert(source, aside, order, str(order.quant), MODEL_FILE)
    write_text(aside / MODELFILE, modelfile(source))
    write_record(source, aside)
    return aside


def _reopen(source: Source, written: Path, question: Question) -> Answer:
    """The file in llama.cpp, the Modelfile parsed and its template rendered beside Jinja's.

    Raises: AutoftError where one of them differs.
    """
    commands = parse_modelfile((written / MODELFILE).read_text(encoding="utf-8"))
    values = dict(commands)
    if not (written / values["FROM"]).is_file():
        raise AutoftError(f"{MODELFILE}: its FROM {values['FROM']} is missing", fix="report it")
    for chat in gguf.chats_of(source):
        ours, theirs = without_bos(source.tokenizer, chat), render_go(values["TEMPLATE"], chat)
        if ours != theirs:
            raise AutoftError(
                f"{MODELFILE}: its template renders {theirs[:60]!r}, the run's {ours[:60]!r}",
                fix="write a Modelfile by hand around --to gguf",
            )
    answer = gguf.open_gguf(source, written / MODEL_FILE, question)
    note = "the template was rendered as Ollama's language defines it; Ollama itself was not run"
    return Answer(logprobs=answer.logprobs, notes=(*answer.notes, note))


def _commands(order: Order) -> tuple[str, ...]:
    name = _name(order)
    return (f"ollama create {name} -f {shlex.quote(str(order.out / MODELFILE))}", f"ollama run {name}")


EXPORTER = Exporter(
    name="ollama",
    summary="a GGUF file and its Modelfile",
    is_folder=True,
    check=_check,
    disk_bytes=gguf.gguf_bytes,
    write=_write,
    reopen=lambda source, written, order, question: _reopen(source, written, question),
    bound=lambda order: gguf.bound_of(str(order.quant)),
    commands=lambda source, order: _commands(order),
    quants=gguf.EXPORTER.quants,
    modules=gguf.MODULES,
)
