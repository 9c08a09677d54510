"""Evaluation: what it finds does not depend on its batches, memory or none, and training does not notice it."""

from __future__ import annotations

import random
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoft.trainer.data.shape import Row
from autoft.trainer.data.tokens import Example, prompt_ids, tokenize
from autoft.trainer.evaluation.batches import in_batches
from autoft.trainer.evaluation.evaluate import evaluate, evaluate_longest, longest_batch, mean_loss
from autoft.trainer.evaluation.generate import Room, generate, room_of
from autoft.trainer.evaluation.samples import samples
from autoft.trainer.objectives.loss import IGNORED, compute_loss
from autoft.trainer.optimizers.optim import build_optimizer
from autoft.trainer.runtime.signals import StopRequested
from tests.conftest import make_tokenizer
from tests.trainer.test_step import FP32, INT8, QLORA, build, make_batch

TOKENIZER = make_tokenizer()
STOP = [TOKENIZER.eos_token_id]
PROMPTS = [list(range(5, 5 + n)) for n in (3, 30, 11, 7)]
ROOM = Room(
    budget_bytes=1e9, cache_bytes=100, read_bytes=100, row_bytes=100, read_tokens=1000, most_rows=50, chunks=True,
    context=512,
)  # fmt: skip


def talk(question: str, answer: str) -> Row:
    return Row(where="row", messages=[{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


ROWS = [talk(f"number {n}" + "." * n, f"it is {n}") for n in range(6)]


def exhausted_above(model, rows, words="CUDA error: out of memory"):
    """Have every forward of more than `rows` rows run out of memory."""

    def refuse(shape):
        if shape[0] > rows:
            raise RuntimeError(words)

    return on_forward(model, refuse)


def on_forward(model, look):
    """Show `look` the shape of the tokens of every forward, of loss and answers; PEFT passes by the outer modules."""
    backbone = model.get_base_model().model
    return backbone.register_forward_pre_hook(
        lambda _module, _inputs, named: look(tuple(named["input_ids"].shape)), with_kwargs=True
    )


class Held(TorchDispatchMode):
    """Bytes of the tensors that are made inside the block, and the most that there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._note((args, kwargs), made=False)
        out = function(*args, **(kwargs or {}))
        self._note(out, made=True)
        self.peak = max(self.peak, self.now)
        return out

    def _note(self, tree, *, made: bool) -> None:
        for tensor in tree_leaves(tree):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self.known[storage._cdata] = storage.nbytes() if made else 0
                self.now += self.known[storage._cdata]
                weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.now -= self.known.pop(key)


def test_an_answer_does_not_depend_on_its_batch(tiny_model) -> None:
    _, model = build(tiny_model, **FP32)
    settings = {"max_new_tokens": 12, "stop": STOP}
    alone = [generate(model, TOKENIZER, [prompt], **settings)[0] for prompt in PROMPTS]
    assert len(set(alone)) > 1
    assert generate(model, TOKENIZER, PROMPTS, batch=3, **settings) == alone
    in_pieces = replace(ROOM, read_tokens=64)
    assert in_pieces.chunk(4, 30) == 16
    assert generate(model, TOKENIZER, PROMPTS, room=in_pieces, **settings) == alone
    assert model.training


def test_a_run_that_is_to_stop_waits_for_a_token_and_not_for_an_answer(tiny_model) -> None:
    _, model = build(tiny_model, **FP32)
    tokens = []

    def check() -> None:
        tokens.append(1)
        if len(tokens) == 3:
            raise StopRequested("SIGINT")

    with pytest.raises(StopRequested):
        generate(model, TOKENIZER, PROMPTS, max_new_tokens=100, stop=(), check=check)
    assert len(tokens) == 3
    assert model.training


def test_the_loss_counts_every_token_once_whatever_its_batch(tiny_model) -> None:
    recipe, model = build(tiny_model, **FP32)
    examples = [Example(list(range(3, 3 + n)), [IGNORED, *range(4, 3 + n)]) for n in (4, 9, 17)]
    one_by_one = 0.0
    for example in examples:
        batch = {"input_ids": torch.tensor([example.input_ids]), "labels": torch.tensor([example.labels])}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        one_by_one += compute_loss(model, batch, recipe).item() * (len(example.labels) - 1)
    expected = pytest.approx(one_by_one / (3 + 8 + 16), rel=1e-5)
    for micro_batch in (1, 2, 8):
        assert mean_loss(model, TOKENIZER, examples, replace(recipe, micro_batch=micro_batch)) == expected


def test_a_batch_of_the_loss_has_no_more_tokens_than_a_micro_batch(tiny_model) -> None:
    recipe, model = build(tiny_model, **{**FP32, "seq_len": 64})
    examples = [Example(list(range(3, 3 + n)), [IGNORED, *range(4, 3 + n)]) for n in (60, 50, 20, 14, 12, 10, 9, 8)]
    seen = []
    hook = on_forward(model, seen.append)
    mean_loss(model, TOKENIZER, examples, recipe)
    hook.remove()
    assert seen == [(2, 64), (4, 32), (2, 16)]
    assert [len(e.input_ids) for e in longest_batch(examples, recipe)] == [60, 50]
    assert len(longest_batch(examples[:1], replace(recipe, micro_batch=3))) == 3


def test_memory_that_runs_out_halves_the_batches_and_changes_nothing(tiny_model) -> None:
    recipe, model = build(tiny_model, **{**FP32, "micro_batch": 4, "seq_len": 128})
    examples = tokenize(ROWS, TOKENIZER).examples
    settings = {"max_new_tokens": 4, "stop": STOP}
    undisturbed, answers = evaluate(model, TOKENIZER, ROWS, examples, recipe, **settings)
    told = []
    hook = exhausted_above(model, 1)
    disturbed, answers_then = evaluate(model, TOKENIZER, ROWS, examples, recipe, **settings, tell=told.append)
    hook.remove()
    assert answers_then == answers
    assert disturbed.loss == pytest.approx(undisturbed.loss, rel=1e-6)
    assert replace(disturbed, loss=0, perplexity=0, seconds=0) == replace(undisturbed, loss=0, perplexity=0, seconds=0)
    assert told == [
        "out of memory in the evaluation with 4 rows at once: it goes on with 2",
        "out of memory in the evaluation with 2 rows at once: it goes on with 1",
        "out of memory in the evaluation with 6 rows at once: it goes on with 3",
        "out of memory in the evaluation with 3 rows at once: it goes on with 1",
    ]
    assert model.training
    exhausted_above(model, 0, "DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(RuntimeError, match="can't allocate"):
        mean_loss(model, TOKENIZER, examples, recipe)
    assert model.training


def test_other_errors_are_not_taken_for_the_end_of_memory() -> None:
    def work(_):
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        in_batches([1, 2], lambda _: 2, work)


def test_every_item_is_worked_on_once_and_a_smaller_batch_is_kept() -> None:
    batches = []

    def work(batch):
        if len(batch) > 3:
            raise MemoryError
        batches.append(list(batch))

    in_batches(range(11), lambda item: 7 if item < 9 else 2, work)
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]


def test_answers_fit_in_what_they_may_take() -> None:
    for budget in (1e4, 1e5, 1e6):
        room = replace(ROOM, budget_bytes=budget)
        for width in (1, 20, 400):
            rows = room.rows(width, 100)
            chunk = room.chunk(rows, width) or width
            assert 1 <= rows <= 50
            taken = rows * (100 * (width + 100) + 100) + 100 * min(rows * width, rows * chunk)
            assert taken <= budget or rows == 1 or chunk == 16
            assert rows * chunk <= 1000 or chunk == 16
    assert replace(ROOM, chunks=False, read_tokens=100).rows(40, 10) == 2
    assert replace(ROOM, budget_bytes=0).rows(40, 10) == 1
    assert [ROOM.new_tokens(width, 100) for width in (10, 450, 600)] == [100, 62, 0]


@pytest.mark.parametrize(("budget", "rows"), [(5e5, 2), (2e6, 8), (8e6, 50)])
def test_answers_take_no_more_than_they_may(tiny_model, budget, rows) -> None:
    recipe, model = build(tiny_model, **{**FP32, "seq_len": 256})
    room = replace(room_of(model, recipe), budget_bytes=budget)
    assert room.rows(120, 24) == rows
    prompts = [list(range(5, 125 - n % 3)) for n in range(rows)]
    with Held() as held:
        generate(model, TOKENIZER, prompts, max_new_tokens=24, stop=(), room=room)
    assert 0.25 * budget < held.peak <= budget


def test_the_room_is_read_off_the_model(tiny_model) -> None:
    recipe, model = build(tiny_model, **FP32)
    room = room_of(model, recipe)
    # two layers, two heads of 16 numbers of 4 bytes each for keys and for values; half of it twice while it grows
    assert room.cache_bytes == 2 * 2 * 2 * 16 * 4 * 1.5
    assert room.chunks
    assert room.read_tokens == 2 * 16
    assert room.context == 512


def test_rows_longer_than_those_that_are_trained_are_not_answered(tiny_model) -> None:
    recipe, model = build(tiny_model, **{**FP32, "seq_len": 64})
    rows = [ROWS[0], talk("." * 100, "long"), ROWS[1]]
    examples = tokenize(rows, TOKENIZER, max_tokens=64).examples
    found, answers = evaluate(model, TOKENIZER, rows, examples, recipe, max_new_tokens=4, stop=STOP)
    assert (found.rows, found.generated_rows) == (3, 2)
    assert answers[1] == ""
    answers = ["one", "", "two"]
    assert [sample.prompt for sample in samples(rows, answers, answers)] == ["number 0", "number 1."]


def test_the_longest_rows_are_tried_at_the_length_of_their_answers(tiny_model) -> None:
    recipe, model = build(tiny_model, **{**FP32, "micro_batch": 3, "seq_len": 128})
    examples = tokenize(ROWS, TOKENIZER).examples
    longest = max(len(e.input_ids) for e in examples)
    seen = []
    hook = on_forward(model, seen.append)
    evaluate_longest(model, TOKENIZER, ROWS, examples, recipe, max_new_tokens=20)
    hook.remove()
    prompt = len(prompt_ids(ROWS[5].messages[:-1], TOKENIZER))
    (loss_rows, loss_tokens), _probe, *answered = seen
    assert loss_rows == 3
    assert longest <= loss_tokens < longest + 16
    assert answered == [(3, prompt + 20 - 2), (3, 1)]


def trained(tiny_model, settings, meanwhile):
    """Weights after four steps with dropout, the second half after `meanwhile`, and all random numbers' state."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    recipe, model = build(tiny_model, **{**settings, "dropout": 0.1, "loss": "selected"})
    optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], recipe, learning_rate=1e-2)
    for step in range(4):
        compute_loss(model, make_batch(), recipe).backward()
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
        if step in (0, 1):  # in the middle of an accumulation, and after an update
            meanwhile(model, recipe)
    state = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    return state, torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), model.training


@pytest.mark.parametrize(
    "settings",
    [FP32, {**FP32, "gradient_checkpointing": True}, QLORA, INT8],
    ids=["lora", "checkpointed", "nf4", "int8"],
)
def test_training_does_not_notice_an_evaluation(tiny_model, settings) -> None:
    """Weights, quantized ones too, gradients, random numbers and mode are bit for bit what they were."""
    examples = tokenize(ROWS, TOKENIZER).examples

    def look(model, recipe):
        wide = replace(recipe, seq_len=128)
        evaluate(model, TOKENIZER, ROWS, examples, wide, max_new_tokens=3, stop=STOP)
        evaluate_longest(model, TOKENIZER, ROWS, examples, wide, max_new_tokens=3)

    (state, *rest), (alone, *rest_alone) = (
        trained(tiny_model, settings, meanwhile) for meanwhile in (look, lambda model, recipe: None)
    )
    assert state.keys() == alone.keys()
    assert [name for name in state if not torch.equal(state[name], alone[name])] == []
    assert torch.equal(rest[0], rest_alone[0])
    assert rest[1:] == rest_alone[1:]


def test_a_model_whose_frequencies_follow_the_length_trains_on_after_long_answers(tiny_model) -> None:
    """What it keeps of a longer row must not be of a kind that no gradient passes."""
    from transformers import AutoConfig

    from autoft.trainer.model.build import build_model
    from autoft.trainer.recipe import Recipe

    config = AutoConfig.from_pretrained(tiny_model)
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config.max_position_embeddings = 32
    recipe = Recipe(**FP32)
    model = build_model(recipe, config=config, weights=tiny_model, device="cpu")
    generate(model, TOKENIZER, [list(range(5, 65))], max_new_tokens=2, stop=STOP)
    compute_loss(model, make_batch(), recipe).backward()


def test_samples_are_what_was_mended_then_what_is_wrong_still() -> None:
    rows = [talk(f"q{n}", f"a{n}") for n in range(8)] + [Row(where="text", text="no conversation")]
    before = ["a0", "x", "x", "x", "x", "x", "x", "x"]
    after = ["a0", "a1", "y", "a3", "y", "a5", "a6", "a7"]
    assert [s.prompt for s in samples(rows, before, after)] == ["q1", "q3", "q5", "q6", "q2"]
    assert [s.prompt for s in samples(rows, before, before)] == ["q1", "q0", "q2", "q3", "q4"]
    assert samples(rows, [], []) == ()  # no answers were made
    first = samples(rows, before, after)[0]
    assert (first.prompt, first.expected, first.before, first.after) == ("q1", "a1", "x", "a1")
