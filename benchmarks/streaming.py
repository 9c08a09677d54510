"""A base in the host's memory, two ways: autoft's places on the GPU, and PyTorch's FSDP2 with CPU offload.

    python benchmarks/streaming.py               on a card that the stand-in describes
    python benchmarks/streaming.py --here        on this machine's GPU

Both train the same adapter on the same base for some steps, each in a process of its own, beside a base that stays on
the GPU. FSDP2 is `fully_shard` on each layer over a mesh of one, with pinned memory, adapters left out. Compared are
PyTorch's own counts, and the processor's seconds of the step that took fewest; on a described card, whose kernels and
copies take no time, these are what issuing a step costs. Written to benchmarks/results/streaming.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from child import ask, tell, work_and_leave
from common import write_results
from shapes import write_weights

from autoft.trainer.recipe import Recipe
from autoft.trainer.runtime import environment

Json = dict[str, Any]
STEPS = 8
WAYS = ("resident", "autoft", "fsdp2")
VALUES = Path(__file__).parent.parent / "tests" / "standin" / "values.py"
LORA = Recipe(
    autocast=True, gradient_checkpointing=True, micro_batch=1, seq_len=1024, optimizer="adamw_torch_fused"
)  # fmt: skip
QLORA = replace(LORA, method="qlora", quant_type="nf4", double_quant=True)
CASES = (("llama-3.1-8b", 8, QLORA), ("llama-3.1-8b", 8, LORA), ("qwen2.5-1.5b", 12, LORA))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", action="store_true", help="use this machine's GPU, without the stand-in")
    parser.add_argument("--card", default="rtx4090", help="card to describe (%(default)s)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        import json

        work_and_leave(lambda: measure(json.load(sys.stdin)))
    launcher = [sys.executable]
    if not options.here:
        standin = os.environ.get("STANDIN_HOME") or Path(sys.prefix) / "standin"
        launcher = [sys.executable, f"{standin}/standin.py", "--card", options.card, "--", sys.executable, str(VALUES)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for shape, layers, recipe in CASES:
            weights = write_weights(shape, Path(folder) / f"{shape}-{layers}", layers, empty=not options.here)
            row: Json = {"model": f"{shape}, {layers} layers", "method": recipe.method}
            for way in WAYS:
                request = {"way": way, "recipe": recipe.to_dict(), "weights": str(weights), "layers": layers}
                row[way] = ask(
                    [*launcher, str(Path(__file__)), "--child"], request, timeout_s=900, environ=environment.of_child()
                )
                print(row["model"], recipe.method, way, row[way], flush=True)
            rows.append(row)
    write_results("streaming", {"card": "this machine's" if options.here else options.card, "rows": rows})


def measure(request: Json) -> None:
    """Steps; the peaks of one in bytes, and the least seconds but for the first."""
    environment.prepare()
    import torch

    from autoft.trainer.objectives import objective_of
    from autoft.trainer.optimizers.optim import build_optimizer

    recipe = Recipe.from_dict(request["recipe"])
    model = _model(request["way"], recipe, Path(request["weights"]), request["layers"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(trained, recipe, learning_rate=1e-4)
    ids_BS = torch.randint(1000, (recipe.micro_batch, recipe.seq_len))
    objective = objective_of(recipe)
    batch = {name: tensor.to("cuda") for name, tensor in objective.dummy_batch(recipe, ids_BS).items()}
    seconds, processor = [], []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        began, worked = time.perf_counter(), time.process_time()
        objective.loss(model, batch, recipe).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - worked)
    tell(
        {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            "step_s": min(seconds[1:]),
            "processor_s": min(processor[1:]),
        }
    )


def _model(way: str, recipe: Recipe, weights: Path, layers: int) -> Any:
    from transformers import AutoConfig

    from autoft.trainer.model.build import build_model

    config = AutoConfig.from_pretrained(weights)
    if way != "fsdp2":
        streamed = replace(recipe, streamed_layers=layers if way == "autoft" else 0)
        return build_model(streamed, config=config, weights=weights, device="cuda")
    return _sharded(build_model(recipe, config=config, weights=weights, device="cpu"), recipe)


def _sharded(model: Any, recipe: Recipe) -> Any:
    """Layers of a model on the CPU under FSDP2 with offload, the embedding as autoft has it, all else on the GPU."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    from autoft.trainer.model.stream import host_embedding, look_up_on_host

    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", "29555")
    dist.init_process_group("nccl", rank=0, world_size=1)
    mesh = init_device_mesh("cuda", (1,))
    layers = model.get_base_model().model.layers
    embedding = host_embedding(model.get_base_model(), recipe)
    if embedding is not None:
        look_up_on_host(embedding, torch.device("cuda"))
    frozen = {id(p) for layer in layers for p in layer.parameters() if not p.requires_grad}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is None:
                continue
            if id(parameter) not in frozen:
                parameter.data = parameter.data.to("cuda")
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                state.to("cuda")
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to("cuda")
    adapters = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for layer in layers:
        fully_shard(layer, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=True), ignored_params=adapters)
    outer = {parameter for parameter in model.parameters() if id(parameter) not in frozen}
    fully_shard(model, mesh=mesh, ignored_params=outer)
    torch.cuda.empty_cache()
    return model


if __name__ == "__main__":
    main()
