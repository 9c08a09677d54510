"""`autoft serve`: a run's model behind an OpenAI-compatible API."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from autoft import render
from autoft.cli import options
from autoft.errors import Interrupted

if TYPE_CHECKING:
    from autoft.trainer.serving.models import Served

LOOK_EVERY_S = 0.1  # for a signal
HEADER = "Content-Type: application/json"


@options.command(
    "Serve the models in DIR... behind an OpenAI-compatible API, for one user.\n\n"
    "DIR is a folder written by `autoft run`; several must share a base. A request's `model` is a folder's name, or "
    "the base. One answer is generated at a time. Ctrl-C ends it after the current request.",
    examples=(
        "autoft serve my-adapter",
        "autoft serve runs/formal runs/casual --port 8080",
        "autoft serve my-adapter --host 0.0.0.0",
    ),
)
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", metavar="HOST", help="Address to listen on (default: 127.0.0.1).")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    metavar="N",
    help="Port to listen on; 0 picks a free one (default: 8000).",
)
@options.ACCEPT_CHANGES
def command(folders: tuple[Path, ...], host: str, port: int, accept_changes: bool, as_json: bool) -> None:
    from autoft.trainer.runtime import environment

    environment.prepare()
    from autoft.trainer.serving.models import open_models
    from autoft.trainer.serving.server import Server

    notes = render.console(stderr=True)
    with Server(host, port) as server:
        if not server.is_local:
            notes.print(
                f"Warning: --host {host}: anyone who reaches it can use the model, without authentication",
                markup=False,
            )
        models = open_models(folders, accept_changes=accept_changes, say=lambda text: notes.print(text, markup=False))
        with _stop_signals() as received:
            server.start(models, lambda line: notes.print(line, markup=False, soft_wrap=True))
            _show(server.url, models, as_json=as_json)
            while not received:
                time.sleep(LOOK_EVERY_S)
            notes.print("Stopping after the current request", markup=False)
            server.stop()


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The Ctrl-C or SIGTERM that came while the block runs; a second one ends the process at once.

    A list, as a handler may not wait for the lock of an Event that the main thread holds.
    """
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def receive(number: int, _: FrameType | None) -> None:
        if received:
            os._exit(Interrupted.exit_code)  # an exit of Python's aborts where a thread is within PyTorch
        received.append(number)

    for number in numbers:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def _show(url: str, models: dict[str, Served], *, as_json: bool) -> None:
    first = next(iter(models))
    body = {"model": first, "messages": [{"role": "user", "content": "Hello!"}]}
    curl = shlex.join(["curl", f"{url}/chat/completions", "-H", HEADER, "-d", json.dumps(body, ensure_ascii=False)])
    production = production_commands(list(models.values()))
    if as_json:
        options.print_json({"url": url, "models": list(models), "curl": curl, "production": list(production)})
    else:
        console = render.console()
        console.print(f"Serving at {url}", style="bold", markup=False, soft_wrap=True)
        console.print(f"Models: {', '.join(models)}", markup=False, soft_wrap=True)
        console.print(f"Try it: {curl}", markup=False, soft_wrap=True)
        for line in production:
            console.print(f"For many users: {line}", markup=False, soft_wrap=True)
    sys.stdout.flush()


def production_commands(models: Sequence[Served]) -> tuple[str, ...]:
    """What serves the same folders with vLLM; a merge first where vLLM does not take an adapter as it is."""
    from autoft.trainer.adapters import kind_of
    from autoft.trainer.evaluation.open_run import base_name
    from autoft.trainer.export.vllm import serve_command

    adapters = [model for model in models if model.has_adapter]
    if not adapters:
        return (shlex.join(["vllm", "serve", str(models[0].voice.folder.absolute())]),)
    recipes = [model.voice.recipe for model in adapters]
    if any(recipe.adapter != "lora" or recipe.use_dora or recipe.rope_scaling is not None for recipe in recipes):
        merged = (f"{model.name}-merged" for model in adapters)
        return tuple(
            f"{shlex.join(['autoft', 'merge', str(model.voice.folder), '-o', name])} && vllm serve {shlex.quote(name)}"
            for model, name in zip(adapters, merged, strict=True)
        )
    first = adapters[0].voice
    base = first.base if "/" in first.base or first.result is None else base_name(first.folder, first.result)
    folders = {model.name: model.voice.folder for model in adapters}
    return (serve_command(base, folders, max(kind_of(recipe).saved(recipe).rank for recipe in recipes)),)
