"""Is the rehearsal right? What real steps on this CPU take, told by PyTorch's own profiler, beside what was predicted.

    python benchmarks/cpu_memory.py [CASE ...]

Each case builds a model with random weights from a folder of safetensors, by the trainer's own builder, and makes
optimizer steps with the trainer's own loss and optimizer, in a process of its own. The truth is the profiler's record
of PyTorch's CPU allocator, every allocation and release in bytes; the rehearsal has no part in it.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packed_rows import packed_batch

STEPS = 3  # the first makes the optimizer's state, the last is the steady one
PHASES = ("forward", "backward", "optimizer")
NOTES = (
    "Counted is what PyTorch's CPU allocator holds, in the bytes that were asked for. Weights are counted by their "
    "storages when loading ends: those that stay mapped from the file of safetensors are not in the allocator.",
    "Not counted, as it does not come from that allocator: MKL's and OpenMP's own buffers, oneDNN's generated code, "
    "bitsandbytes' C++ side, malloc's rounding, Python.",
    "Every column of a batch is trained in some row, as in the longest batch that the rehearsal stands for; in cases "
    "with two rows the second is padded from two thirds on, its labels left out there.",
    "The rehearsal counts a block of the CPU allocator in multiples of 64 bytes, which its callers get aligned.",
    "Left out by the rehearsal: scratch memory of oneDNN's bfloat16 products (up to about 1 MiB a thread, chosen by a "
    "search over this processor's caches) and bitsandbytes' 32-bit update of weights below 4,096 elements.",
)


@dataclass(frozen=True, slots=True)
class Case:
    """family, shape: for transformers' AutoConfig. settings: of the Recipe. micro_batches: of one optimizer step."""

    family: str
    shape: dict[str, Any]
    settings: dict[str, Any]
    micro_batches: int = 1


TINY = {
    "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 6, "intermediate_size": 512, "vocab_size": 2048,
}  # fmt: skip
GROUPED = TINY | {"num_key_value_heads": 2}
SMOLLM2_135M = {
    "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30,
    "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
QWEN25_05B = {  # 6 of its 24 layers
    "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 6,
    "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
PYTHIA_160M = {
    "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072,
    "vocab_size": 50304,
}  # fmt: skip
BLOOM = {"hidden_size": 256, "n_head": 4, "n_layer": 6, "vocab_size": 2048}
OPT = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 6, "ffn_dim": 512, "vocab_size": 2048,
       "word_embed_proj_dim": 256}  # fmt: skip
GPT2 = {"n_embd": 256, "n_head": 4, "n_layer": 6, "vocab_size": 2048}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

SHORT = {"micro_batch": 2, "seq_len": 256, "rank": 8}
FLOAT32 = SHORT | {"base_dtype": "float32", "loss": "selected"}
AUTOCAST = SHORT | {"autocast": True, "loss": "logits"}
BFLOAT16 = SHORT | {"adapter_dtype": "bfloat16", "loss": "selected"}
NF4 = {"method": "qlora", "quant_type": "nf4", "autocast": True, "optimizer": "adamw_8bit"}
DOUBLE = NF4 | {"double_quant": True, "kbit_upcast": True, "gradient_checkpointing": True}
CHECKPOINTED = {"gradient_checkpointing": True}
EAGER = {"attention": "eager"}
PACKED = {"packing": True}
INT8 = {"method": "qlora", "quant_type": "int8"}

CASES = {
    "llama-lora-float32": Case("llama", GROUPED, FLOAT32),
    "llama-qlora-two-micro-batches": Case("llama", GROUPED, SHORT | NF4 | {"loss": "fused"}, micro_batches=2),
    "mistral-qlora-sliding-window": Case(
        "mistral", GROUPED | {"sliding_window": 64}, SHORT | DOUBLE | {"loss": "logits"}
    ),
    "qwen2-lora-checkpointed": Case("qwen2", GROUPED, AUTOCAST | CHECKPOINTED),
    "qwen3-qlora-selected": Case("qwen3", GROUPED | {"head_dim": 64}, SHORT | NF4 | {"loss": "selected"}),
    "gemma2-lora-eager": Case("gemma2", GROUPED | {"head_dim": 64}, BFLOAT16 | EAGER),
    "gemma3-lora-fused": Case(
        "gemma3_text", GROUPED | {"head_dim": 64, "sliding_window": 64}, AUTOCAST | CHECKPOINTED | {"loss": "fused"}
    ),
    "phi3-lora-two-micro-batches": Case("phi3", GROUPED | SPECIAL, AUTOCAST, micro_batches=2),
    "gpt2-lora-dropout": Case("gpt2", GPT2, FLOAT32),
    "opt-lora-bfloat16": Case("opt", OPT, BFLOAT16),
    "stablelm-qlora-paged": Case(
        "stablelm", GROUPED, SHORT | DOUBLE | {"loss": "fused", "optimizer": "paged_adamw_8bit"}
    ),
    "olmo2-lora-dropout": Case("olmo2", GROUPED, AUTOCAST | {"dropout": 0.1}),
    "starcoder2-lora-eager": Case("starcoder2", GROUPED, FLOAT32 | EAGER | CHECKPOINTED),
    "falcon-lora-one-key-head": Case("falcon", TINY | {"multi_query": True}, AUTOCAST),
    "bloom-lora-eager": Case("bloom", BLOOM, BFLOAT16 | EAGER),
    "mixtral-lora": Case("mixtral", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}, AUTOCAST),
    "qwen3-moe-lora-checkpointed": Case(
        "qwen3_moe",
        GROUPED | {"head_dim": 64, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128},
        FLOAT32 | CHECKPOINTED,
    ),
    "llama-lora-packed": Case("llama", GROUPED, AUTOCAST | PACKED),
    "mistral-lora-packed-sliding-window": Case(
        "mistral", GROUPED | {"sliding_window": 64}, FLOAT32 | PACKED | CHECKPOINTED
    ),
    "gemma2-lora-packed-eager": Case("gemma2", GROUPED | {"head_dim": 64}, BFLOAT16 | EAGER | PACKED),
    "llama-lora-dft-packed": Case("llama", GROUPED, FLOAT32 | PACKED | {"objective": "dft"}, micro_batches=2),
    "llama-int8-checkpointed": Case("llama", GROUPED, AUTOCAST | INT8 | CHECKPOINTED),
    "qwen2-int8-float32": Case("qwen2", GROUPED, FLOAT32 | INT8),
    "smollm2-135m-lora": Case(
        "llama", SMOLLM2_135M, {"autocast": True, "loss": "selected", "micro_batch": 2, "seq_len": 128}
    ),
    "smollm2-135m-lora-checkpointed": Case(
        "llama",
        SMOLLM2_135M,
        CHECKPOINTED | {"base_dtype": "float32", "loss": "fused", "micro_batch": 1, "seq_len": 256},
    ),
    "smollm2-135m-qlora": Case(
        "llama", SMOLLM2_135M, DOUBLE | {"loss": "selected", "micro_batch": 1, "seq_len": 256}, micro_batches=2
    ),
    "pythia-160m-lora": Case(
        "gpt_neox", PYTHIA_160M, {"autocast": True, "loss": "logits", "micro_batch": 1, "seq_len": 256}
    ),
    "qwen2.5-0.5b-6-layers-qlora": Case(
        "qwen2", QWEN25_05B, NF4 | CHECKPOINTED | {"loss": "fused", "micro_batch": 1, "seq_len": 256}
    ),
}


def main() -> None:
    from common import write_results

    rows = {}
    for name in CASES:
        done = subprocess.run([sys.executable, __file__, name], stdout=subprocess.PIPE, text=True, check=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {rows[name]['error_percent']:+.4f} %", flush=True)
    errors = [abs(row["error_percent"]) for row in rows.values()]
    write_results(
        "cpu_memory",
        {
            "cases": len(rows),
            "families": len({row["family"] for row in rows.values()}),
            "median_error_percent": round(statistics.median(errors), 4),
            "worst_error_percent": max(errors),
            "notes": NOTES,
            "rows": rows,
        },
    )


def compared(case: Case, steps: int = STEPS) -> dict[str, Any]:
    """One row of the results: predicted and measured bytes of each phase, and how far the steady peak is off."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        measured = measure(case, Path(folder), steps)
    predicted = predict(case)
    peak = max(measured[phase] for phase in PHASES)
    return {
        **asdict(case),
        "threads": torch.get_num_threads(),
        "predicted_peak_bytes": max(predicted[phase] for phase in PHASES),
        "measured_peak_bytes": peak,
        "error_percent": round(100 * (max(predicted[phase] for phase in PHASES) / peak - 1), 4),
        "phases": {
            phase: {
                "predicted_bytes": predicted[phase],
                "measured_bytes": measured[phase],
                "error_percent": round(100 * (predicted[phase] / measured[phase] - 1), 4),
            }
            for phase in measured
        },
    }


def predict(case: Case) -> dict[str, int]:
    """Bytes when loading ends, and the peaks of the first step and of each phase of the steady one, as rehearsed."""
    from transformers import AutoConfig

    from autoft.planner.kernels.rules import Device
    from autoft.planner.memory.allocator import ByteCounter
    from autoft.planner.memory.replay import replay
    from autoft.planner.rehearsal.rehearse import find_depth, rehearse
    from autoft.trainer.recipe import Recipe

    recipe, config = Recipe.from_dict(case.settings), AutoConfig.for_model(case.family, **case.shape)
    depth = find_depth(recipe, config)
    rehearsal = rehearse(recipe, config, Device(None), depth=depth, accumulate=case.micro_batches > 1)
    phases = replay(rehearsal, ByteCounter()).phases
    loaded = sum(size for phase in rehearsal.phases if phase.name == "load" for _, size in phase.events)
    return {"loaded": int(loaded), **{name: int(phases[name]) for name in ("first_step", *PHASES)}}


def measure(case: Case, folder: Path, steps: int = STEPS) -> dict[str, int]:
    """The same as `predict`, of real steps. folder: an empty one, for the weights."""
    import torch
    from torch.profiler import record_function
    from transformers import AutoConfig, AutoModelForCausalLM

    from autoft.trainer.model.build import build_model
    from autoft.trainer.objectives import objective_of
    from autoft.trainer.objectives.loss import IGNORED
    from autoft.trainer.optimizers.optim import build_optimizer, faster_weights
    from autoft.trainer.recipe import Recipe, torch_dtype

    recipe, config = Recipe.from_dict(case.settings), AutoConfig.for_model(case.family, **case.shape)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch_dtype(recipe.base_dtype)).save_pretrained(folder)
    with recorded() as record:
        model = build_model(recipe, config=config, weights=folder, device="cpu")
        loaded = stored_bytes(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = build_optimizer(trained, recipe, learning_rate=1e-4, faster=faster_weights(model, recipe))
        for step in range(steps):
            for _ in range(case.micro_batches):
                with record_function(f"phase {step} forward"):
                    batch = a_batch(recipe, config)
                    count = case.micro_batches * (batch["labels"][:, 1:] != IGNORED).sum()
                    loss = objective_of(recipe).loss(model, batch, recipe, num_trained_tokens=count)
                with record_function(f"phase {step} backward"):
                    loss.backward()
                    loss = loss.detach()  # as Trainer.training_step returns it
            with record_function(f"phase {step} optimizer"):
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                del batch, count, loss
    peaks = peaks_by_phase(record, loaded)
    first = max(bytes_ for name, bytes_ in peaks.items() if name.startswith("0 "))
    return {"loaded": loaded, "first_step": first, **{name: peaks[f"{steps - 1} {name}"] for name in PHASES}}


def a_batch(recipe: Any, config: Any) -> dict[str, Any]:
    """Random rows, every second one padded from two thirds on: each column is trained in some row."""
    import torch

    from autoft.trainer.objectives.loss import IGNORED

    if recipe.packing:
        return packed_batch(recipe, config.get_text_config().vocab_size)
    ids = torch.randint(3, config.get_text_config().vocab_size, (recipe.micro_batch, recipe.seq_len))
    labels, mask = ids.clone(), torch.ones_like(ids)
    for row in range(1, recipe.micro_batch, 2):
        labels[row, recipe.seq_len * 2 // 3 :] = IGNORED
        mask[row, recipe.seq_len * 2 // 3 :] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def stored_bytes(model: Any) -> int:
    """Of every distinct storage of weights, buffers and quantization states, whoever made it."""
    import bitsandbytes as bnb

    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            tensors.append(module.state.SCB if module.state.SCB is not None else module.weight.SCB)
    states = [getattr(tensor, "quant_state", None) for tensor in tensors]
    for state in (*states, *(getattr(state, "state2", None) for state in states)):
        held = (getattr(state, name, None) for name in ("absmax", "code", "offset"))
        tensors += [tensor for tensor in held if tensor is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@contextmanager
def recorded() -> Any:
    """A list that holds the profiler's events, in order, when the block is left."""
    from torch.profiler import ProfilerActivity, profile

    events: list[Any] = []
    gc.collect()  # what others have left in circles would count as given back
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield events
    events += sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())


def peaks_by_phase(events: list[Any], loaded: int) -> dict[str, int]:
    """Most bytes within each block marked "phase NAME", by NAME, on top of `loaded` where the first one begins."""
    marks = [
        (e.start_ns(), e.end_ns(), e.name().removeprefix("phase ")) for e in events if e.name().startswith("phase ")
    ]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held, peaks, number = loaded, {}, 0
    for begun, ended, name in marks:
        for time, size in changes[number:]:
            if time > ended:
                break
            number += 1
            if time >= marks[0][0]:
                held += size
                if time >= begun:
                    peaks[name] = max(peaks.get(name, 0), held)
    return peaks


if __name__ == "__main__":
    from autoft.trainer.runtime import environment

    environment.prepare()
    if len(sys.argv) == 1:
        main()
    for name in sys.argv[1:]:
        print(json.dumps(compared(CASES[name])))
