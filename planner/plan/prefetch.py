"""The data read and tokenized in a process of its own, beside the imports that a plan begins with.

They take about as long as ten thousand rows do, and neither needs the other.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from autoft.errors import AutoftError, InputError
from autoft.planner.estimator.model_shape import max_position
from autoft.planner.request import Request
from autoft.planner.search.parallel import cores, end_with_parent
from autoft.planner.search.preset import preset_of
from autoft.planner.search.set_option import parse_settings
from autoft.trainer.data.files import PACKED, find
from autoft.trainer.data.prepare import Prepared, prepare, ready_tokenizer
from autoft.trainer.data.read import COLUMNAR
from autoft.trainer.data.tokens import Example
from autoft.trainer.job import Job
from autoft.trainer.sources.resolve import load_config, resolve

LEAST_BYTES = 2**18  # of data: less is read within a tenth of a second, for which no process pays
# More takes so long that the imports no longer matter, and is held twice until it is handed over: 8 bytes a token,
# of which there are fewer than bytes of text; a packed file may be ten times as long as it looks
MOST_BYTES, MOST_PACKED_BYTES = 2**25, 2**22
PART = 1000  # examples handed over at once


@dataclass(frozen=True, slots=True)
class Reading:
    """A `prepare` that has begun. asked: its arguments. options: those by name."""

    asked: tuple[Any, ...]
    options: dict[str, Any]
    pipe: Connection
    tokenizer: Any
    template: str | None

    @property
    def done(self) -> bool:
        """Whether it is handed over without a wait."""
        return self.pipe.poll()

    def __call__(self, *asked: Any, **options: Any) -> Prepared:
        """As `prepare`. Raises: as that does, whichever process it was that met with the mistake."""
        if (asked, options) == (self.asked, self.options):
            # Ended without an answer, whatever it ended of will be met here again
            with suppress(EOFError, ConnectionError):
                return self._received()
        return prepare(*asked, **options)

    def _received(self) -> Prepared:
        answer: Prepared | AutoftError = self.pipe.recv()
        if isinstance(answer, AutoftError):
            raise answer
        self.tokenizer.chat_template = self.pipe.recv()  # as the data needs it
        examples: list[Example] = []
        while part := self.pipe.recv():
            examples += part
        return replace(
            answer, tokenizer=self.tokenizer, template=self.template, train=replace(answer.train, examples=examples)
        )


@contextmanager
def begin(request: Request) -> Iterator[Reading | None]:
    """Read the request's data beside what goes on within; None where that does not pay or cannot be.

    A mistake in the request is left to whoever answers it. The process ends with the block, and with this process.
    """
    call = _call(request)
    if call is None:
        yield None
        return
    words, options = call
    try:
        tokenizer, template = ready_tokenizer(words[0], options["new_tokens"])
    except InputError:  # its turn comes after what may be wrong with the rows
        yield None
        return
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    ready = {"ready": (tokenizer, template)}
    process = context.Process(target=_read, args=(ours, theirs, os.getpid(), words, options | ready))
    process.start()
    theirs.close()
    try:
        yield Reading(words, options, ours, tokenizer, template)
    finally:
        process.kill()  # before the pipe is closed, of which it would complain
        process.join()
        process.close()
        ours.close()


def prepare_options(
    request: Request, job_pins: Mapping[str, Any], max_tokens: int, new_tokens: tuple[str, ...]
) -> dict[str, Any]:
    """Of `prepare`, by name. job_pins: fields of the Job, the preset's with them."""
    taken = {name: job_pins.get(name, Job.__dataclass_fields__[name].default) for name in ("eval_rows", "thinking")}
    return {**taken, "max_tokens": max_tokens, "mapping": request.mapping, "new_tokens": new_tokens}


def _call(request: Request) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """What `prepare` will be called with for this request; None where it is to be called in line, or never is."""
    if request.data is None or cores() < 2 or multiprocessing.parent_process() is not None:
        return None
    if not _pays([request.data, request.eval_data] if request.eval_data else [request.data]):
        return None
    try:
        recipe_pins, job_pins = parse_settings(request.settings)
        seq_len = request.seq_len or recipe_pins.pop("seq_len", None)
        preset = preset_of(request, {*recipe_pins, *job_pins}, seq_len)
        ref = resolve(request.model)
        if ref.kind == "gguf":  # whose header takes long to read, and would be read twice
            return None
        if "rope_scaling" in recipe_pins:  # how long a row may then be, the planner tells
            return None
        max_tokens = seq_len or max_position(load_config(ref))
    except InputError:
        return None
    new_tokens = recipe_pins.get("new_tokens", ())
    options = prepare_options(request, {**preset.job, **job_pins}, max_tokens, new_tokens)
    return (ref, request.data, request.eval_data), options


def _pays(paths: Sequence[str]) -> bool:
    """Whether all is in files, so much of it that a process pays, and so little that it can be handed over."""
    try:
        sources = [find(path) for path in paths]
        files = [file for data in sources if data is not None for file in (*data.train, *data.heldout)]
        size = sum(file.stat().st_size for file in files)
    except (InputError, OSError):
        return False
    if None in sources:
        return False
    packed = any(file.suffix.lower() in (*PACKED, *COLUMNAR) for file in files)
    return LEAST_BYTES <= size <= (MOST_PACKED_BYTES if packed else MOST_BYTES)


def _read(ours: Connection, theirs: Connection, parent: int, asked: tuple[Any, ...], options: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever waits for this says that it was interrupted
    end_with_parent(parent)
    gc.freeze()  # what is shared stays so
    ours.close()
    try:
        prepared = prepare(*asked, **options)
    except AutoftError as error:
        theirs.send(error)
        return
    except Exception:  # noqa: BLE001 - met again in line, where it can be told whole
        return
    examples = prepared.train.examples
    theirs.send(replace(prepared, tokenizer=None, train=replace(prepared.train, examples=[])))
    theirs.send(prepared.tokenizer.chat_template)
    for at in range(0, len(examples), PART):
        theirs.send(examples[at : at + PART])
    theirs.send([])
