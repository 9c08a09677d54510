"""Do the kernels of a training step compute what they should? All but the findings runs in a worker."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.schema import Record
from autoft.trainer.checks.reference_loss import unpacked_4bit
from autoft.trainer.doctor.finding import Finding

if TYPE_CHECKING:
    import torch

# Relative error of a product against its reference: 16-bit products stay below 1 %, wrong scales give 50 % and more
TOLERANCE = 0.03
USUAL_WIDTH, ODD_WIDTH = 1024, 96  # of a row; the second is no multiple of 64
# Tiny, with rows of 64 weights and a multiple of it
TINY = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class FourBit(Record):
    """Worst relative errors of 4-bit products on `device`, at a usual and at an odd width. None: not a number."""

    device: str
    usual_error: float | None
    odd_error: float | None


def four_bit(device: str | None = None) -> dict[str, Any]:
    """FourBit of this machine, as a dict. device: None is its first GPU where torch sees one, else the CPU."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    errors = {name: _worst_error(width, device) for name, width in (("usual", USUAL_WIDTH), ("odd", ODD_WIDTH))}
    return {"device": device, "usual_error": errors["usual"], "odd_error": errors["odd"]}


def _worst_error(width: int, device: str) -> float | None:
    """Of the product of one row, of many, and of the gradient behind it, in each dtype that the device trains in."""
    import bitsandbytes as bnb
    import torch

    if device == "cpu":
        dtypes = [torch.float32, torch.bfloat16]
    else:
        dtypes = [torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16]
    errors = []
    for dtype in dtypes:
        torch.manual_seed(0)
        weight = torch.randn(256, width, dtype=dtype, device=device)
        packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4")
        reference = torch.cat(list(unpacked_4bit(packed, state)))
        one, many = (torch.randn(rows, width, dtype=dtype, device=device) for rows in (1, 64))
        many.requires_grad_()
        with torch.no_grad():
            errors.append(_error(bnb.matmul_4bit(one, packed.t(), quant_state=state), one.float() @ reference.t()))
        product = bnb.matmul_4bit(many, packed.t(), quant_state=state)
        errors.append(_error(product, many.float() @ reference.t()))
        gradient = torch.randn_like(product)
        product.backward(gradient)
        errors.append(_error(many.grad, gradient.float() @ reference))
    worst = max(errors, key=lambda error: math.inf if math.isnan(error) else error)
    return worst if math.isfinite(worst) else None


def _error(values: Any, reference: torch.Tensor) -> float:
    values, reference = values.detach().float(), reference.detach()
    return float((values - reference).norm() / reference.norm())


def usual_width(facts: FourBit) -> Finding:
    """bitsandbytes multiplies by 4-bit weights and is right."""
    name, place = "4-bit product", f"on {_name(facts.device)}"
    if facts.usual_error is None or facts.usual_error > TOLERANCE:
        error = "not a number" if facts.usual_error is None else f"{facts.usual_error:.0%} off"
        return Finding(
            name=name,
            status="failed",
            found=f"{place}: {error}, against weights that were unpacked by hand",
            fix="pip install --force-reinstall the tested bitsandbytes; until then --method lora",
        )
    return Finding(name=name, status="ok", found=f"{place}: {facts.usual_error:.2%} off its reference")


def odd_width(facts: FourBit) -> Finding:
    """So it is where a row is no multiple of 64 weights: wrong in bitsandbytes 0.50.2 on the CPU."""
    name, place = "4-bit, odd widths", f"rows of {ODD_WIDTH} weights on {_name(facts.device)}"
    if facts.odd_error is None or facts.odd_error > TOLERANCE:
        error = "not a number" if facts.odd_error is None else f"{facts.odd_error:.0%} off"
        return Finding(
            name=name,
            status="warning",
            found=f"{place}: {error}. bitsandbytes takes the scales of other blocks there",
            fix="for a model whose widths are no multiples of 64 take --method lora; hardly any is so",
        )
    return Finding(name=name, status="ok", found=f"{place}: {facts.odd_error:.2%} off their reference")


def _name(device: str) -> str:
    return "the CPU" if device == "cpu" else "the GPU"


def triton_kernel() -> str:
    """Compile and run a kernel on the first GPU; the version of Triton. Raises: RuntimeError when it is wrong."""
    import torch
    import triton

    from autoft.trainer.doctor.triton_kernel import double

    numbers = torch.arange(1000, dtype=torch.float32, device="cuda")
    doubled = torch.empty_like(numbers)
    double[(1,)](numbers, doubled, numbers.numel(), BLOCK=1024)
    if not torch.equal(doubled, 2 * numbers):
        raise RuntimeError("the kernel compiled and gave wrong numbers")
    return str(triton.__version__)


def triton_fix(reason: str) -> str:
    """What to do when Triton does not run. reason: its error."""
    if "No module named 'triton'" in reason:
        return "pip install triton (on Windows: triton-windows), or reinstall torch for CUDA, which brings it"
    return c_toolchain() or "delete the folder ~/.triton, then reinstall torch and its own version of triton"


def c_toolchain() -> str | None:
    """How to get what Triton builds with, a C compiler and Python's headers. None where both are there."""
    try:
        compiler = shlex.split(_compiler())
    except LookupError:
        return "install a C compiler (Debian, Ubuntu: sudo apt install build-essential), or set CC"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "launcher.c"
        include = f"-I{sysconfig.get_path('include')}"
        for text, fix in (
            ("int main(void) { return 0; }\n", f"repair the C compiler: {compiler[0]} does not compile"),
            ("#include <Python.h>\n", "install Python's headers (Debian, Ubuntu: sudo apt install python3-dev)"),
        ):
            source.write_text(text)
            words = [*compiler, include, "-c", str(source), "-o", str(source.with_suffix(".o"))]
            try:
                done = subprocess.run(words, capture_output=True, timeout=60, check=False)
            except (OSError, subprocess.TimeoutExpired):
                return fix
            if done.returncode != 0:
                return fix
    return None


def _compiler() -> str:
    """The C compiler that Triton takes. Raises: LookupError when there is none. Source: triton/runtime/build.py."""
    named = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not named:
        raise LookupError("no C compiler")
    return named


def nccl_sum() -> str:
    """A sum over all GPUs by NCCL; its version. Raises: RuntimeError when it is wrong or NCCL is not there."""
    import torch
    from torch.cuda import nccl

    if not torch.distributed.is_nccl_available():
        raise RuntimeError("this build of torch has no NCCL")
    gpus = torch.cuda.device_count()
    parts = [torch.full((1024,), float(gpu + 1), device=f"cuda:{gpu}") for gpu in range(gpus)]
    nccl.all_reduce(parts)  # type: ignore[no-untyped-call]
    if not all(bool((part == gpus * (gpus + 1) / 2).all()) for part in parts):
        raise RuntimeError("the sum over all GPUs is wrong")
    return ".".join(map(str, nccl.version()))  # type: ignore[no-untyped-call]


def training_step() -> str:
    """Load a tiny model in 4 bits, train one step of it with the trainer's own code, and say what was done.

    Raises: RuntimeError when the loss is no number or the adapter stays as it was.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    import autoft.trainer.loop.engine  # noqa: F401 - whether it can be imported
    from autoft.trainer.model.build import build_model
    from autoft.trainer.objectives import objective_of
    from autoft.trainer.optimizers.optim import build_optimizer
    from autoft.trainer.recipe import Recipe

    device, dtype = "cpu", "float32"
    if torch.cuda.is_available():
        half = torch.cuda.is_bf16_supported(including_emulation=False)
        device, dtype = "cuda", "bfloat16" if half else "float16"
    recipe = Recipe.from_dict(
        {"method": "qlora", "quant_type": "nf4", "base_dtype": dtype, "rank": 4, "optimizer": "adamw_8bit",
         "gradient_checkpointing": True, "micro_batch": 2, "seq_len": 64}
    )  # fmt: skip
    config = LlamaConfig(**TINY)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(folder)
        model = build_model(recipe, config=config, weights=Path(folder), device=device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        before = [parameter.detach().clone() for parameter in trained]
        ids = torch.randint(TINY["vocab_size"], (recipe.micro_batch, recipe.seq_len), device=device)
        objective = objective_of(recipe)
        loss = objective.loss(model, objective.dummy_batch(recipe, ids), recipe)
        torch.autograd.backward(loss)
        build_optimizer(trained, recipe, learning_rate=1e-3).step()
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss is {loss.item()}")
        if all(torch.equal(old, new) for old, new in zip(before, trained, strict=True)):
            raise RuntimeError("the optimizer left the adapter as it was")
    return f"qlora of a tiny model on {_name(device)}, loss {loss.item():.2f}"
