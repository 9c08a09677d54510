"""Greedy answers to many prompts at once, as many as the memory takes that training has anyway.

B batch, S sequence. An answer's memory is its cache of keys and values, which grows by a token a step, and for a
moment the activations of the prompts that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoft.profiles.host import available_ram
from autoft.trainer.adapters.prompt import tokens_before
from autoft.trainer.evaluation.batches import Tell, in_batches, silent
from autoft.trainer.recipe import Recipe

if TYPE_CHECKING:
    import torch

Tick = Callable[[int, int], None]
Check = Callable[[], None]


def nothing() -> None:
    """Checks nothing."""


# A step costs a CPU much the same for few rows or many up to here; a GPU's answers come by the memory of weights
MOST_ROWS = {"cpu": 50, "cuda": 128}
# Of what is free, where no training step has shown what may be used; the rest is for what the estimate leaves out
FREE_SHARE = {"cpu": 0.5, "cuda": 0.8}
LEAST_CHUNK = 16  # tokens of each prompt that are read at once
PROBE_TOKENS = 16
# The chunks of a prompt need a cache of plain attention: a state that runs along the row starts anew with each
PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What answers may take, and what they need.

    budget_bytes: beside what is held already. cache_bytes: of a token. read_bytes: of a token of a prompt while it is
    read, an estimate. row_bytes: of a row's logits. read_tokens: that training reads at once, of all rows together.
    most_rows: more at once save no time. chunks: whether a prompt may be read in pieces. context: tokens that the
    model's positions reach, None where it does not say.
    """

    budget_bytes: float
    cache_bytes: float
    read_bytes: float
    row_bytes: float
    read_tokens: int
    most_rows: int
    chunks: bool
    context: int | None

    def rows(self, width: int, new_tokens: int) -> int:
        """How many prompts of `width` tokens are answered at once; at least one."""
        reading = self.read_bytes * self._read_at_once(width)
        rows = int((self.budget_bytes - reading) // (self.cache_bytes * (width + new_tokens) + self.row_bytes))
        if not self.chunks:
            rows = min(rows, self.read_tokens // width)
        return max(1, min(rows, self.most_rows))

    def chunk(self, rows: int, width: int) -> int | None:
        """Tokens of each prompt that are read at once; None reads them whole."""
        tokens = max(LEAST_CHUNK, self._read_at_once(width) // rows)
        return tokens if self.chunks and tokens < width else None

    def new_tokens(self, width: int, wanted: int) -> int:
        """What an answer may have of the tokens that are wanted, where the model's positions end before."""
        return wanted if self.context is None else max(0, min(wanted, self.context - width))

    def _read_at_once(self, width: int) -> int:
        """Of all rows together: what training reads, and of the memory no more than half."""
        return int(min(self.read_tokens, self.most_rows * width, self.budget_bytes / 2 // self.read_bytes))


def room_of(model: Any, recipe: Recipe, *, peak_bytes: int | None = None) -> Room:
    """The room for answers of `model` beside a training step of `recipe`.

    peak_bytes: on a GPU, what PyTorch may have allocated at most, such as a training step was seen to take; None: what
    is free. On a CPU it is what is free: a run's memory there is that of its training, and answers come and go.
    """
    text = model.config.get_text_config()
    device = model.device.type
    element = 2 if recipe.base_dtype != "float32" else 4
    hidden = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    inner = max(inner) if isinstance(inner, list | tuple) else inner  # Gemma 3n has one for each layer
    context, before = getattr(text, "max_position_embeddings", None), tokens_before(model)
    layers = set(getattr(text, "layer_types", None) or ("full_attention",))
    return Room(
        budget_bytes=_budget_bytes(device, peak_bytes),
        # while a layer's cache grows by a token, old and new are both there
        cache_bytes=_cache_bytes(model) * (1 + 1 / text.num_hidden_layers),
        read_bytes=element * (8 * hidden + 3 * inner) + 4 * 2 * hidden,  # a layer's activations, its norm in float32
        row_bytes=3 * 4 * text.vocab_size,  # logits, their float32 copy, and one that is compared
        read_tokens=recipe.micro_batch * recipe.seq_len,
        most_rows=MOST_ROWS[device],
        chunks=layers <= PLAIN_LAYERS and not getattr(model, "_is_stateful", False) and not before,
        context=None if context is None else context - before,
    )


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    batch: int | None = None,
    room: Room | None = None,
    tick: Tick = lambda done, total: None,
    tell: Tell = silent,
    check: Check = nothing,
) -> list[str]:
    """Greedy answers to token prompts, in their order; the longest prompts first, those of like length together.

    batch: at most so many at once. room: None takes as many as batch says, and reads prompts whole. A prompt that the
    model's positions leave no room behind is answered with nothing. check: called before every token; what it raises
    ends the work.
    """
    pad = pad_id(tokenizer)
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
    # PEFT counts positions without the padding that would stand between its vectors and a shorter prompt
    most = 1 if tokens_before(model) else batch or len(prompts)
    done = 0

    def fit(at: int) -> int:
        return most if room is None else min(most, room.rows(len(prompts[at]), max_new_tokens))

    def answer(chosen: Sequence[int]) -> None:
        nonlocal done
        tokens = _greedy(model, [prompts[at] for at in chosen], max_new_tokens, stop, pad, room, check)
        for at, text in zip(chosen, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            answers[at] = text.strip()
        done += len(chosen)
        tick(done, len(prompts))

    with evaluating(model), _contiguous_head(model):
        in_batches(order, fit, answer, tell=tell)
    return answers


def pad_id(tokenizer: Any) -> int:
    """The token that fills rows up."""
    pad = tokenizer.pad_token_id
    return int(pad if pad is not None else tokenizer.eos_token_id)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside the block, the former mode after it.

    Not inference_mode: what a module keeps from a forward, such as rotary frequencies of longer rows, could then not be
    trained through.
    """
    import torch

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    wanted: int,
    stop: Sequence[int],
    pad: int,
    room: Room | None,
    check: Check,
) -> list[list[int]]:
    """The new tokens of each, padded on the left."""
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    width = max(map(len, prompts))
    new_tokens = wanted if room is None else room.new_tokens(width, wanted)
    if not new_tokens:
        return [[] for _ in prompts]
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=list(stop),
        pad_token_id=pad,
        use_cache=True,
        prefill_chunk_size=None if room is None else room.chunk(len(prompts), width),
    )
    ids_BS = torch.tensor([[pad] * (width - len(p)) + [*p] for p in prompts], device=model.device)
    mask_BS = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)

    def goes_on(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        check()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    out_BS = model.generate(
        input_ids=ids_BS,
        attention_mask=mask_BS,
        generation_config=settings,
        stopping_criteria=StoppingCriteriaList([goes_on]),
    )
    new: list[list[int]] = out_BS[:, width:].tolist()
    return new


def _budget_bytes(device: str, peak_bytes: int | None) -> float:
    if device == "cpu":
        return FREE_SHARE["cpu"] * available_ram()[1]
    import torch

    held = torch.cuda.memory_allocated()
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - held
    budget = FREE_SHARE["cuda"] * free
    return budget if peak_bytes is None else min(budget, max(0, peak_bytes - held))


def _cache_bytes(model: Any) -> float:
    """Of a token, read off the cache that the model itself makes; a state that does not grow counts as if it did.

    0 for a model without such a cache: Mamba's state hardly takes memory.
    """
    import torch

    with evaluating(model):
        ids_BS = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device=model.device)
        cache = getattr(model(input_ids=ids_BS, use_cache=True), "past_key_values", None)
    layers = getattr(cache, "layers", ())
    tensors = [value for layer in layers for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors) / PROBE_TOKENS


@contextmanager
def _contiguous_head(model: Any) -> Iterator[None]:
    """Hand the head whole tensors inside the block.

    The last position of a prompt is a strided slice, and for such an input PyTorch 2.13 multiplies on the CPU with a
    copy of the head's weight for every sequence: gigabytes for a small model.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        yield
    finally:
        hook.remove()
