"""Other people's loops: which one a case means, and what older versions hold at once, in numbers worked by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from autoft.errors import FileFormatError
from autoft.planner.kernels.rules import Device
from autoft.planner.plan.cases import estimates, loop_of, read_cases
from autoft.planner.rehearsal.loop import PLAIN, TRAINER, hugging_face_loop, logits_form, parse_version, repeats_heads
from autoft.planner.rehearsal.rehearse import rehearse
from autoft.profiles.hardware import Hardware
from autoft.trainer.recipe import Recipe
from tests.planner.families import family_config
from tests.planner.test_rehearsal import HERE as VALIDATION
from tests.planner.test_rehearsal import HOST

CARD = Device((8, 0), 108)
BATCH, LENGTH, HIDDEN, VOCAB = 2, 16, 64, 8000
HALVES = 2 * BATCH * LENGTH * VOCAB  # logits in 16 bits
FLOATS = 2 * HALVES  # and in float32
SHIFTED = 4 * BATCH * (LENGTH - 1) * VOCAB  # without the last of each row
RECIPE = Recipe(
    base_dtype="bfloat16",
    micro_batch=BATCH,
    seq_len=LENGTH,
    loss="logits",
    optimizer="adamw_torch",
    target_modules=("q_proj", "v_proj"),
)


def rehearsed(loop, vocab=VOCAB, **changes):
    config = family_config("llama3", num_hidden_layers=2, hidden_size=HIDDEN, vocab_size=vocab)
    return rehearse(replace(RECIPE, **changes), config, CARD, depth=None, loop=loop)


def most_held(rehearsal, phase, sizes):
    """The most bytes of storages of these sizes that live at once, of what the steady step's phase makes."""
    held = most = 0
    made = set()
    events = next(p.events for p in rehearsal.phases[rehearsal.steady :] if p.name == phase)
    for key, size in events.tolist():
        if size in sizes:
            made.add(key)
            held += size
        elif key in made and -size in sizes:
            held += size
        most = max(most, held)
    return most


# --- logits


@pytest.mark.parametrize(
    ("form", "held"),
    [
        ("whole", HALVES + FLOATS + FLOATS),  # 16 bits, widened, and their logarithms of probabilities
        ("shifted", HALVES + FLOATS + SHIFTED + SHIFTED),
        ("widened", FLOATS + SHIFTED + SHIFTED),  # those in 16 bits are gone before the copy is made
    ],
)
def test_a_forward_holds_the_logits_as_the_version_does(form, held):
    rehearsal = rehearsed(replace(TRAINER, logits_form=form))
    assert most_held(rehearsal, "forward", {HALVES, FLOATS, SHIFTED}) == held


@pytest.mark.parametrize(("loop", "left"), [(TRAINER, 0), (PLAIN, 1)])
def test_a_trainer_lets_go_of_the_logits_before_the_backward_and_a_plain_loop_does_not(loop, left):
    rehearsal = rehearsed(loop)
    sizes = [size for _, size in rehearsal.phases[rehearsal.steady].events.tolist()]
    assert sizes.count(HALVES) - sizes.count(-HALVES) == left


def test_other_peoples_loops_do_not_evaluate():
    assert rehearsed(PLAIN).evaluation == rehearsed(TRAINER).evaluation == {}


def test_accelerate_copies_the_output_into_float32():
    plain, wide = (rehearsed(replace(TRAINER, wide_output=wide), autocast=True) for wide in (False, True))
    counts = [sum(size == FLOATS for _, size in r.phases[r.steady].events.tolist()) for r in (plain, wide)]
    assert counts[1] - counts[0] == 1


# --- checkpoints, casts, heads


def test_a_reentrant_layer_keeps_its_second_output_while_its_backward_runs():
    """(2, 16, 64) in 16 bits: 4,096 bytes; in the peak of a layer that has no large head after it."""
    peaks = []
    for reentrant in (False, True):
        rehearsal = rehearsed(
            replace(TRAINER, reentrant=reentrant), vocab=64, gradient_checkpointing=True, micro_batch=2, seq_len=256
        )
        events = next(p.events for p in rehearsal.phases[rehearsal.steady :] if p.name == "backward")
        peaks.append(int(events[:, 1].cumsum().max()))
    assert peaks[1] - peaks[0] == 2 * 2 * 256 * HIDDEN


def test_trl_puts_embeddings_and_head_back_to_16_bits():
    for half_ends, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        rehearsal = rehearsed(
            replace(TRAINER, half_ends=half_ends), method="qlora", quant_type="nf4", kbit_upcast=True, autocast=True
        )
        dtypes = {w.name.split(".")[-2]: w.dtype for w in rehearsal.weights if not w.adapter}
        assert (dtypes["embed_tokens"], dtypes["lm_head"], dtypes["norm"]) == (dtype, dtype, torch.float32)


@pytest.mark.parametrize("attention", ["flash_attention_2", "sdpa"])
def test_keys_and_values_are_repeated_before_attention_where_the_version_does_it(attention):
    """4 heads to 2 keys: of those 16 bits a value, two tensors of (2, 16, 4, 16) a layer more are kept."""
    kept = []
    for kinds in ((), (attention,)):
        rehearsal = rehearsed(replace(TRAINER, repeats_heads=kinds), attention=attention, gradient_checkpointing=False)
        events = rehearsal.phases[rehearsal.steady].events
        kept.append(int(events[:, 1].sum()))
    heads = family_config("llama3", num_hidden_layers=2, hidden_size=HIDDEN, vocab_size=VOCAB)
    dim = HIDDEN // heads.num_attention_heads
    more = heads.num_attention_heads - heads.num_key_value_heads
    assert kept[1] - kept[0] == 2 * 2 * (2 * BATCH * LENGTH * more * dim)


# --- which version, which loop


@pytest.mark.parametrize(
    ("version", "model", "form", "repeated"),
    [
        ("4.45.2", "llama", "widened", ("sdpa",)),
        ("4.46.0", "llama", "shifted", ("sdpa",)),
        ("4.47.1", "mistral", "widened", ("flash_attention_2", "sdpa")),
        ("4.48.1", "mistral", "shifted", ("sdpa",)),
        ("4.49.0", "mistral", "whole", ("sdpa",)),
        ("4.54.1", "qwen2", "whole", ()),
        ("5.23.0", "qwen2", "whole", ()),
    ],
)
def test_the_version_of_transformers_decides(version, model, form, repeated):
    assert logits_form(parse_version(version), model) == form
    assert repeats_heads(parse_version(version), model) == repeated


def test_loops_of_known_stacks():
    assert hugging_face_loop("plain", {}, "llama") == PLAIN
    old = hugging_face_loop("trl", {"transformers": (4, 45, 2), "peft": (0, 13, 2), "trl": (0, 11, 3)}, "mistral")
    assert (old.reentrant, old.half_ends, old.kbit_empties_cache, old.output_until) == (True, True, False, "loss")
    new = hugging_face_loop("trl", {"transformers": (5, 23), "peft": (0, 21), "trl": (1, 16)}, "mistral")
    assert new == TRAINER


def case_of(tmp_path, line):
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    return read_cases(path)[0]


LOGITS = {"model": "m", "method": "lora", "loss": "logits"}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (LOGITS, "plain"),
        ({**LOGITS, "autocast": True}, "trainer"),
        ({**LOGITS, "attention": "flash_attention_2"}, "trainer"),
        ({**LOGITS, "autocast": True, "loop": "plain"}, "plain"),
        ({"case": {**LOGITS, "autocast": True}, "stack": "plain loop: model(**batch), loss.backward()"}, "plain"),
        ({"case": LOGITS, "stack": "trl 0.11.3; TRL SFTTrainer via fms-hf-tuning"}, "trl"),
        ({"case": LOGITS, "stack": "transformers 4.57.6, Trainer"}, "trainer"),
    ],
)
def test_a_case_means_the_loop_that_it_or_its_line_names(tmp_path, line, kind):
    assert case_of(tmp_path, line).loop == kind


def test_a_case_names_versions_and_they_win_over_those_of_its_line(tmp_path):
    stack = "torch 2.4.1, transformers 4.45.2, peft 0.13.2, SFTTrainer"
    line = {"case": {**LOGITS, "transformers": "4.49.0"}, "stack": stack}
    case = case_of(tmp_path, line)
    assert case.versions == {"transformers": (4, 49, 0), "peft": (0, 13, 2)}
    assert case.torch == (2, 4)
    assert loop_of(case, "llama").logits_form == "whole"


@pytest.mark.parametrize(
    ("stack", "until"),
    [("plain loop: model(**batch)", "next_forward"), ("measure.py: one step", "step"), ("Trainer", "loss")],
)
def test_how_long_an_output_lives_is_read_off_the_description(tmp_path, stack, until):
    assert loop_of(case_of(tmp_path, {"case": LOGITS, "stack": stack}), "llama").output_until == until


def test_a_trainer_of_an_unknown_version_is_the_one_that_takes_most(tmp_path):
    loop = loop_of(case_of(tmp_path, {**LOGITS, "autocast": True}), "llama")
    assert (loop.logits_form, loop.reentrant) == ("shifted", True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loop": "lightning"}, "loop 'lightning': not known"),
        ({"transformers": "new"}, "transformers: 'new' is not a version"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(FileFormatError, match=message):
        case_of(tmp_path, {**LOGITS, **changes})


# --- measured


@pytest.fixture(scope="module")
def older_stacks():
    """(predicted, measured) of TRL's trainer of 2024 on an A100; the vocabulary has one token more than its own."""
    folder = VALIDATION / "models" / "mistralai--Mistral-7B-v0.1"
    rows = [json.loads(line) for line in (VALIDATION / "a100-older-stacks.jsonl").read_text().splitlines()]
    cases = [replace(case, model=str(folder)) for case in read_cases(VALIDATION / "a100-older-stacks.jsonl")]
    predicted = estimates(cases, Hardware(host=HOST, no_gpu_reason="none"))
    return [(estimate, row["measured"]) for row, (_, _, estimate) in zip(rows, predicted, strict=True)]


def test_older_stacks_are_met_within_a_thousandth(older_stacks):
    off = [abs(e.peak_allocated_bytes / m["peak_allocated_bytes"] - 1) for e, m in older_stacks]
    assert len(off) == 3
    assert max(off) < 0.001


def test_older_stacks_that_lived_are_not_called_too_large(older_stacks):
    assert all(estimate.fits == "yes" for estimate, _ in older_stacks)
