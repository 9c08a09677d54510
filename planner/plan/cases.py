"""`autoft estimate --cases`: many exact recipes, one JSON object a line, other people's set-ups among them."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from autoft.errors import FileFormatError, near
from autoft.planner.estimate import Estimate
from autoft.planner.estimator.estimate_recipe import Estimator
from autoft.planner.estimator.target import Target, target_of
from autoft.planner.kernels.rules import INSTALLED_TORCH, torch_release
from autoft.planner.rehearsal.loop import (
    OURS,
    Loop,
    LoopKind,
    OutputUntil,
    Version,
    hugging_face_loop,
    parse_version,
    versions_in,
)
from autoft.planner.search.candidates import exact
from autoft.planner.search.new_tokens import with_token_ids
from autoft.planner.search.parallel import spread
from autoft.planner.timing.allreduce import ALONE, Replicas
from autoft.planner.timing.roofline import measure_cpu_flops
from autoft.profiles.hardware import Hardware
from autoft.trainer.recipe import Recipe
from autoft.trainer.sources.resolve import load_config, resolve

BACKENDS = ("flash", "efficient", "math")
DEFAULT_SEQ_LEN = 2048
# Beside the Recipe's own fields; lora_dropout is what Hugging Face calls its dropout
LIBRARIES = ("transformers", "peft", "trl")  # whose version a case may name, beside that of torch
OTHER_KEYS = ("model", "gpu", "sdpa_backend", "lora_dropout", "output_until", "loop", "torch", *LIBRARIES)


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """where: file and line. backend: of attention, pinned. pins: fields of the Recipe.

    loop, versions, output_until (None: as its loop has it): of Hugging Face's own step, where that is to be estimated.
    torch: release of PyTorch that ran it, named by the case or by the stack of its line; the installed one otherwise.
    """

    where: str
    model: str
    gpu: str | None
    backend: Any
    pins: dict[str, Any]
    loop: LoopKind
    versions: Mapping[str, Version]
    output_until: OutputUntil | None
    torch: tuple[int, int] = INSTALLED_TORCH


def read_cases(path: Path) -> list[Case]:
    """Raises: FileFormatError naming file, line and field."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: {error}", fix="give a readable .jsonl file of cases") from error
    cases = [_case(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not cases:
        raise FileFormatError(f"{path}: no case in it", fix="one JSON object a line, with a model")
    return cases


def estimates(
    cases: list[Case], hardware: Hardware, gpu: str | None = None, vram_gib: float | None = None
) -> Iterator[tuple[Case, Recipe, Estimate]]:
    """Each case in turn. gpu, vram_gib: for cases that name no card.

    A case with `loss: logits` is Hugging Face's own loop: its loading, its allocator settings, logits kept.
    """
    flops = functools.cache(measure_cpu_flops)

    @functools.cache
    def target(name: str | None) -> Target:
        return target_of(hardware, gpu_name=name, vram_gib=vram_gib, cpu_flops_per_s=flops)

    @functools.cache
    def estimator(model: str, name: str | None, torch: tuple[int, int]) -> Estimator:
        return Estimator(model, load_config(resolve(model)), target(name), torch=torch)

    def answer(case: Case) -> tuple[Recipe, Estimate]:
        name = case.gpu or gpu
        own = estimator(case.model, name, case.torch)
        pins = with_token_ids({"attention": own.attention, **case.pins}, resolve(case.model))
        recipe = exact(
            target(name),
            seq_len=pins.pop("seq_len", None) or min(DEFAULT_SEQ_LEN, own.shape.max_position),
            attention=own.attention,
            pinned=pins,
        )
        loop = loop_of(case, own.config.model_type) if recipe.loss == "logits" else OURS
        replicas = ALONE if name is None else Replicas(target(name).num_gpus)
        return recipe, own.estimate(recipe, loop=loop, backend=case.backend, replicas=replicas)

    estimator(cases[0].model, cases[0].gpu or gpu, cases[0].torch)  # loads what all processes then share
    # PyTorch's threads, which a CPU's estimate times and counts, do not survive a fork
    alone = any(target(case.gpu or gpu).device == "cpu" for case in cases)
    for case, (recipe, estimate) in zip(cases, spread(answer, cases, alone=alone), strict=True):
        yield case, recipe, estimate


def loop_of(case: Case, model_type: str) -> Loop:
    """Hugging Face's own loop, as the case describes it."""
    loop = hugging_face_loop(case.loop, case.versions, model_type)
    return dataclasses.replace(loop, output_until=case.output_until) if case.output_until else loop


def _case(where: str, line: str) -> Case:
    try:
        case = json.loads(line)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"{where}: no JSON ({error.msg})", fix="one JSON object a line") from error
    stack = ""
    if isinstance(case, dict) and isinstance(case.get("case"), dict):
        stack, case = str(case.get("stack", "")), case["case"]  # a line of measurements
    if not isinstance(case, dict) or not isinstance(case.get("model"), str):
        raise FileFormatError(f"{where}: no model", fix='an object such as {"model": "...", "method": "qlora"}')
    known = {field.name for field in dataclasses.fields(Recipe)}
    for key in case:
        if key not in known and key not in OTHER_KEYS:
            raise FileFormatError(
                f"{where}: no setting {key!r}.{near(key, [*known, *OTHER_KEYS])}",
                fix=f"one of: {', '.join(sorted([*known, *OTHER_KEYS]))}",
            )
    backend = case.get("sdpa_backend")
    if backend is not None and backend not in BACKENDS:
        raise FileFormatError(f"{where}: sdpa_backend {backend!r}: not known", fix=f"one of: {', '.join(BACKENDS)}")
    for key, kinds in (("output_until", OutputUntil), ("loop", LoopKind)):
        if case.get(key) is not None and case[key] not in get_args(kinds):
            allowed = ", ".join(get_args(kinds))
            raise FileFormatError(f"{where}: {key} {case[key]!r}: not known", fix=f"one of: {allowed}")
    pins = {key: value for key, value in case.items() if key in known and value is not None}
    if case.get("lora_dropout") is not None:
        pins["dropout"] = case["lora_dropout"]
    alone = {key: value for key, value in pins.items() if key != "double_quant"}
    if alone.get("method") == "qlora":
        alone.setdefault("quant_type", "nf4")  # the planner's own default
    Recipe.from_dict(alone, where=where)
    versions = {**versions_in(stack), **_versions(where, case)}
    return Case(
        where,
        case["model"],
        case.get("gpu"),
        backend,
        pins,
        case.get("loop") or (_loop_in(stack) if stack else _likely_loop(case)),
        versions,
        case.get("output_until") or ("next_forward" if "plain loop" in stack else None),  # no function ends it there
        _torch(where, case.get("torch"), stack),
    )


def _loop_in(stack: str) -> LoopKind:
    """The loop that a description of a measured run names."""
    if "SFTTrainer" in stack:
        return "trl"
    return "trainer" if "Trainer" in stack else "plain"


def _likely_loop(case: dict[str, Any]) -> LoopKind:
    """Of a case that says nothing of its loop: autocast and the package flash-attn are taken for signs of a Trainer."""
    return "trainer" if case.get("autocast") or case.get("attention") == "flash_attention_2" else "plain"


def _versions(where: str, case: dict[str, Any]) -> dict[str, Version]:
    versions = {}
    for library in LIBRARIES:
        if case.get(library) is not None:
            try:
                versions[library] = parse_version(str(case[library]))
            except ValueError as error:
                raise FileFormatError(f"{where}: {library}: {error}", fix='a text such as "4.45.2"') from error
    return versions


def _torch(where: str, named: Any, stack: str) -> tuple[int, int]:
    """The case's own release of PyTorch. named: its `torch`. stack: of its line, as "torch 2.6.0, peft 0.19.1"."""
    if named is None:
        match = re.search(r"\btorch (\d+\.\d+)", stack)
        return torch_release(match[1]) if match else INSTALLED_TORCH
    try:
        return torch_release(str(named))
    except ValueError as error:
        raise FileFormatError(f"{where}: torch {named!r}: not a version", fix='a text such as "2.14.1"') from error
