"""What a model stores, and the events of loading it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from autoft.planner.rehearsal.assembly import Assembly
from autoft.planner.rehearsal.layers import Depth, as_events
from autoft.planner.rehearsal.loop import Loop, Phase
from autoft.planner.tracing.trace import KIND, Event
from autoft.trainer.adapters import kind_of
from autoft.trainer.adapters.initial import INITIAL, decomposed
from autoft.trainer.adapters.kind import TRAINED_TOKENS
from autoft.trainer.model.build import without_adapter
from autoft.trainer.model.stream import host_embedding, places, room, streamed_numbers
from autoft.trainer.recipe import Recipe

Take = Callable[[int, str], int]  # (bytes, kind) -> key
Drop = Callable[[int, int], None]  # (key, bytes)


@dataclass(frozen=True, slots=True)
class Weight:
    """One stored tensor of the model. size: in bytes. state: sizes of its quantization state, if it is packed.

    adapter: an adapter's own, buffers that it makes again when it is loaded aside. trained: adapters, or with method
    full all weights. parameter: of its module, and no buffer. on_host: never on the device where layers are
    streamed, and in none of them.
    stored: in the checkpoint; other buffers are made with the model. params: how many weights it holds, packed or not.
    grown: those of them in rows that were added for new tokens.
    first: what the checkpoint calls it, or the first of its pieces. assembly: how it is made, unless it is only read;
    result: the key of its storage there.
    """

    name: str
    layer: int | None
    size: int
    state: tuple[int, ...]
    adapter: bool
    trained: bool
    parameter: bool
    on_host: bool
    stored: bool
    params: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    first: str
    assembly: Assembly | None
    result: int
    grown: int = 0

    @property
    def loaded_params(self) -> int:
        """What of it the checkpoint has."""
        return self.params - self.grown


def stored_tensors(model: Any) -> Iterator[torch.Tensor]:
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor
                yield from _state_tensors(module, tensor)


def _state_tensors(module: Any, weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """absmax, code and, of scales that are quantized too, offset, absmax and code; the scales of an 8-bit weight."""
    import bitsandbytes as bnb

    if isinstance(module, bnb.nn.Linear8bitLt) and weight is module.weight:
        yield module.state.SCB
    state: Any = getattr(weight, "quant_state", None)
    if state is None:
        return
    for part in filter(None, (state, state.state2)):
        for tensor in (part.absmax, part.code, part.offset):
            if tensor is not None:
                yield tensor


def weights_of(
    model: Any, recipe: Recipe, depth: Depth | None, made: dict[str, Assembly], vocab_size: int
) -> list[Weight]:
    """Every tensor once, in the order of the modules.

    made: how the checkpoint's become the base's. vocab_size: rows of the checkpoint's embedding.
    """
    kind, base = kind_of(recipe), without_adapter(model)
    looked_up = host_embedding(base, recipe)
    inside = next(f"{path}." for path, module in model.named_modules() if module is base)
    by_tensor: dict[int, Weight] = {}
    of_vocabulary = _grown_tensors(model, recipe, vocab_size)
    pattern = re.compile(rf"{re.escape(depth.path)}\.(\d+)\." if depth else r"$^(\d)")
    tensors = [
        (f"{path}.{name}", tensor, name in module._parameters, name not in module._non_persistent_buffers_set, module)
        for path, module in model.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    ]
    for name, tensor, parameter, stored, module in tensors:
        if id(tensor) in by_tensor:
            continue
        state = getattr(tensor, "quant_state", None)
        match = pattern.search(name)
        own = _in_base(name.removeprefix(inside))
        assembly = made.get(own)
        by_tensor[id(tensor)] = Weight(
            name=name,
            layer=int(match[1]) if match else None,
            size=tensor.numel() * tensor.element_size(),
            state=tuple(t.numel() * t.element_size() for t in _state_tensors(module, tensor)),
            adapter=stored and kind.owns(name),
            trained=tensor.requires_grad,
            parameter=parameter,
            on_host=parameter and module is looked_up,
            stored=stored,
            params=state.shape.numel() if state is not None else tensor.numel(),
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            first=assembly.first if assembly else own,
            assembly=assembly if assembly and len(assembly.events) > 1 else None,
            result=assembly.results[own] if assembly else 0,
            grown=(tensor.shape[0] - vocab_size) * tensor.shape[1] if id(tensor) in of_vocabulary else 0,
        )
    return list(by_tensor.values())


def _grown_tensors(model: Any, recipe: Recipe, vocab_size: int) -> frozenset[int]:
    """Ids of the tensors to which rows were added for new tokens: of the embedding, and of a head of its own."""
    if recipe.vocabulary(vocab_size) == vocab_size:
        return frozenset()
    base = without_adapter(model)
    wrapped = (base.get_input_embeddings(), base.get_output_embeddings())
    return frozenset(id(getattr(module, "original_module", module).weight) for module in wrapped)


def full_depth(weights: list[Weight], depth: Depth | None) -> list[Weight]:
    """The tensors of the full depth, each layer's own in the place of the layer that stands for it."""
    if depth is None:
        return weights
    by_layer: dict[int, list[Weight]] = {}
    for weight in weights:
        if weight.layer is not None:
            by_layer.setdefault(weight.layer, []).append(weight)
    full: list[Weight] = []
    done = False
    for weight in weights:
        if weight.layer is None:
            full.append(weight)
        elif not done:
            done = True
            for layer in range(depth.layers):
                for like in by_layer[depth.stands_for[layer]]:
                    name = like.name.replace(f"{depth.path}.{like.layer}.", f"{depth.path}.{layer}.")
                    first = re.sub(rf"(^|\.){like.layer}\.", rf"\g<1>{layer}.", like.first, count=1)
                    full.append(replace(like, name=name, layer=layer, first=first))
    return full


def load_phases(recipe: Recipe, weights: list[Weight], loop: Loop, kinds: list[int], workspace: int = 0) -> list[Phase]:
    """Loading: transformers' from_pretrained with a device map, k-bit preparation, the adapter. Adds to `kinds`.

    workspace: in bytes, of cuBLAS, where the device has one. Follows
    convert_and_load_state_dict_in_model of transformers/core_model_loading.py: one weight after another in the natural
    order of the checkpoint's names, read in 16 bits, packed, and dropped; prepare_model_for_kbit_training of
    peft/utils/other.py: float32 copies in the order of the modules, then the cache is emptied.
    """
    events: list[Event] = []

    def take(size: int, kind: str) -> int:
        kinds.append(KIND[kind])
        events.append((len(kinds) - 1, size))
        return len(kinds) - 1

    def drop(key: int, size: int) -> None:
        events.append((key, -size))

    parameters = [w for w in weights if not w.adapter and w.stored]
    if recipe.streamed_layers:
        _pack_in_passing(parameters, take, drop)
        packed = Phase("load", as_events(events), empty_cache=True)
        events = []
        _place(recipe, weights, take)
        _add_adapters(recipe, [w for w in weights if w.adapter], parameters, take, drop, workspace)
        return [packed, Phase("load", as_events(events), loop.empty_cache)]
    by_file = loop.device_map or recipe.quant_type is not None
    if by_file:  # transformers' caching_allocator_warmup
        whole = _warmup_bytes(recipe, parameters)
        drop(take(whole, "temporaries"), whole)
    held = _load(recipe, parameters, take, drop, by_file=by_file)
    _grow(recipe, [weight for weight in parameters if weight.grown], held, take, drop)
    for weight in parameters:
        if _upcast(weight, recipe):
            take(4 * weight.params, "weights")
            drop(held[weight.name], 2 * weight.params)
    phases = []
    if recipe.kbit_upcast and loop.kbit_empties_cache:
        phases.append(Phase("load", as_events(events), empty_cache=True))
        events = []
    for weight in weights:
        if not weight.stored:
            take(weight.size, "weights")
    _add_adapters(recipe, [w for w in weights if w.adapter], parameters, take, drop, workspace)
    phases.append(Phase("load", as_events(events), loop.empty_cache))
    return phases


def off_device(recipe: Recipe, weights: list[Weight]) -> frozenset[str]:
    """Names of the weights that have no storage of their own on the device, as layers are streamed."""
    if not recipe.streamed_layers:
        return frozenset()
    streamed = (weight.name for layer in _waiting(recipe, weights) for weight in layer)
    return frozenset((*streamed, *(weight.name for weight in weights if weight.on_host)))


def _waiting(recipe: Recipe, weights: list[Weight]) -> list[list[Weight]]:
    """Of each layer that waits on the host, in their order, the weights that do."""
    total = len({weight.layer for weight in weights if weight.layer is not None})
    layers: dict[int, list[Weight]] = {number: [] for number in streamed_numbers(recipe.streamed_layers, total)}
    for weight in weights:
        if weight.layer in layers and weight.parameter and not weight.adapter:
            layers[weight.layer].append(weight)
    return list(layers.values())


def streamed_bytes(recipe: Recipe, weights: list[Weight]) -> tuple[int, ...]:
    """Of each layer that waits on the host: what its place on the device has room for, of its state the scales."""
    sizes = (
        [size for weight in layer for size in (weight.size, *weight.state[:1])] for layer in _waiting(recipe, weights)
    )
    return tuple(room(layer) for layer in sizes)


def _pack_in_passing(parameters: list[Weight], take: Take, drop: Drop) -> None:
    """trainer/model/quantizer.py: each weight that is packed comes to the device, and goes packed to the host."""
    living: dict[int, int] = {}
    maps: list[int] = []

    def hold(size: int, kind: str) -> int:
        key = take(size, kind)
        living[key] = size
        return key

    def let_go(key: int, size: int) -> None:
        del living[key]
        drop(key, size)

    for weight in sorted(parameters, key=lambda w: _natural(w.first)):
        if not weight.state:
            continue
        hold(2 * weight.params, "temporaries")
        _pack(weight, hold, let_go, maps)
        for key in [key for key in living if key not in maps]:
            let_go(key, living[key])


def _place(recipe: Recipe, weights: list[Weight], take: Take) -> None:
    """stream of trainer/model/stream.py: a base that was loaded on the host comes to the device."""
    for size in places(streamed_bytes(recipe, weights)):
        take(size, "weights")
    away = off_device(recipe, weights)
    for weight in weights:
        if weight.adapter:
            continue
        if weight.name not in away:
            take(weight.size, "weights")
        for size in weight.state[1:] if weight.name in away else weight.state:
            take(size, "quantization_state")


def _warmup_bytes(recipe: Recipe, parameters: list[Weight]) -> int:
    """What transformers takes at once and gives back, so that the allocator has one large segment."""
    bits, width = 8 if recipe.quant_type == "int8" else 4, 4 if recipe.weights_dtype == "float32" else 2
    return sum(w.params * bits // 8 if w.state else width * w.loaded_params for w in parameters)


def _upcast(weight: Weight, recipe: Recipe) -> bool:
    """Whether k-bit preparation copies it into float32."""
    return recipe.kbit_upcast and weight.dtype == torch.float32 and not weight.state


def _loaded_bytes(weight: Weight, recipe: Recipe) -> int:
    """What it takes as it is read."""
    in_halves = bool(weight.state) or _upcast(weight, recipe)
    return 2 * weight.loaded_params if in_halves else weight.size - weight.grown * weight.dtype.itemsize


def _grow(recipe: Recipe, weights: list[Weight], held: dict[str, int], take: Take, drop: Drop) -> None:
    """transformers' resize_token_embeddings: each made anew before the old one is dropped.

    weights: of embedding and head; one where they share it. held: keys by name, of which these are replaced.
    """
    for weight in weights:
        former = held[weight.name]
        held[weight.name] = take(2 * weight.params if _upcast(weight, recipe) else weight.size, "weights")
        drop(former, _loaded_bytes(weight, recipe))


def _load(recipe: Recipe, parameters: list[Weight], take: Take, drop: Drop, *, by_file: bool) -> dict[str, int]:
    """Load each weight, by_file: in the order of the checkpoint. Returns keys of those that are not packed, by name."""
    held: dict[str, int] = {}
    maps: list[int] = []  # that bitsandbytes keeps for all weights
    assembled: dict[str, dict[int, tuple[int, int]]] = {}
    waiting: Counter[int] = Counter()  # weights that are still to be packed from one storage
    for weight in sorted(parameters, key=lambda w: _natural(w.first)) if by_file else parameters:
        kind = "temporaries" if weight.state else "weights"
        if weight.assembly is None or not by_file:
            size = _loaded_bytes(weight, recipe)
            key = take(size, kind)
        else:
            if weight.first not in assembled:
                made = assembled[weight.first] = _assemble(weight.assembly, kind, take, drop)
                waiting.update(made[result][0] for result in weight.assembly.results.values())
            key, size = assembled[weight.first][weight.result]
            waiting[key] -= 1
        if weight.state:
            _pack(weight, take, drop, maps)
            if not waiting[key]:
                drop(key, size)
        else:
            held[weight.name] = key
    return held


def _assemble(assembly: Assembly, kind: str, take: Take, drop: Drop) -> dict[int, tuple[int, int]]:
    """Its events. Returns key and size of what each of its own keys made; `kind` is that of its results."""
    made: dict[int, tuple[int, int]] = {}
    results = set(assembly.results.values())
    for own, size in assembly.events:
        if size > 0:
            made[own] = take(size, kind if own in results else "temporaries"), size
        else:
            drop(*made[own])
    return made


def _pack(weight: Weight, take: Take, drop: Drop, maps: list[int]) -> None:
    """bitsandbytes.functional.quantize_4bit and, for its scales, quantize_blockwise, in their order; or in 8 bits.

    maps: what the first scales that are packed leave for good, name2qmap["dynamic"] of the same file.
    """
    kind = "quantization_state"
    state = weight.state
    if weight.dtype == torch.int8:  # Int8Params._quantize of nn/modules.py, by way of float16
        halves = take(2 * weight.params, "temporaries")
        take(state[0], kind)
        take(weight.size, "weights")
        drop(halves, 2 * weight.params)
        return
    if len(state) == 2:  # absmax, code
        take(state[0], kind)
    else:
        scales = 4 * state[0]  # before they are 8 bits wide themselves
        plain = take(scales, "temporaries")
    take(weight.size, "weights")
    take(state[1], kind)
    absolute, largest = take(state[1], "temporaries"), take(4, "temporaries")  # get_4bit_type: data.abs().max()
    drop(absolute, state[1])
    drop(largest, 4)
    if len(state) > 2:
        _, _, offset, outer_absmax, outer_code = state
        take(offset, kind)
        centred = take(scales, "temporaries")
        if not maps:
            maps.append(take(outer_code, kind))
        take(outer_absmax, kind)
        take(state[0], kind)
        take(outer_code, kind)
        drop(centred, scales)
        drop(plain, scales)


def _add_adapters(
    recipe: Recipe, adapters: list[Weight], base: list[Weight], take: Take, drop: Drop, workspace: int
) -> None:
    """PEFT's get_peft_model, then the dtype of trainer/model/build.py: add_adapter.

    update_layer of peft/tuners/lora/layer.py: matrices in float32, in the dtype in which their layer computes (which is
    no float in 8 bits), rows measured for DoRA; cast_adapter_dtype of tuners_utils.py, at the end: float32 again.
    workspace: of cuBLAS, which DoRA's first product asks for; 0 on the CPU.
    """
    named = {_in_base(w.name): w for w in base}
    if not kind_of(recipe).on_layers:
        _copy_prompt(adapters, recipe, take, drop)
        return
    tokens = [w for w in adapters if TRAINED_TOKENS in w.name]
    first = [w for w in adapters if f".{INITIAL}." not in w.name and w not in tokens]
    subtracted = [w for w in adapters if f".{INITIAL}." in w.name]
    for weight in tokens:
        _copy_rows(weight, recipe, take, drop)
    made = _make(recipe, first, named, take, drop, workspace)
    made += _make(recipe, subtracted, named, take, drop, workspace)
    for sizes in () if workspace else _decompositions(recipe, [*base, *adapters]):
        passing = [(take(size, "temporaries"), size) for size in sizes]
        for key, size in passing:
            drop(key, size)
    for (key, size), weight in zip(made, [*first, *subtracted], strict=True):
        if weight.size < size:
            take(weight.size, "adapter")
            drop(key, size)


def _copy_prompt(adapters: list[Weight], recipe: Recipe, take: Take, drop: Drop) -> None:
    """PromptEmbedding of peft/tuners/prompt_tuning/model.py: random vectors, then embeddings in their place.

    The vectors' numbers stay on the device beside them.
    """
    width = 4 if recipe.base_dtype == "float32" or recipe.kbit_upcast else 2
    for weight in adapters:
        whole, numbers, drawn = 4 * weight.params, 8 * weight.shape[0], width * weight.params
        random, ids = take(whole, "temporaries"), take(numbers, "temporaries")
        looked_up, copied = take(drawn, "temporaries"), take(drawn, "temporaries")
        drop(looked_up, drawn)
        begun = take(whole, "adapter" if weight.size == whole else "temporaries") if width == 2 else copied
        for key, size in [(random, whole), (ids, numbers), *([(copied, drawn)] if width == 2 else [])]:
            drop(key, size)
        take(numbers, "adapter")
        if weight.size < whole:
            take(weight.size, "adapter")
            drop(begun, whole)


def _copy_rows(weight: Weight, recipe: Recipe, take: Take, drop: Drop) -> None:
    """update_layer of peft/tuners/trainable_tokens/layer.py, then dtypes as of other adapters.

    Ids, the rows of the embedding and a copy of them. PEFT keeps another, a buffer that is counted with the others.
    They come after other adapters and are widened before these; here they are there when others are widened.
    """
    width = 4 if recipe.base_dtype == "float32" or recipe.kbit_upcast else 2
    ids, rows = 8 * weight.shape[0], width * weight.params
    passing = [(take(ids, "temporaries"), ids), (take(rows, "temporaries"), rows)]
    whole = 4 * weight.params
    made = [rows, *([whole] if rows < whole else []), *([weight.size] if weight.size < whole else [])]
    for size in made[:-1]:
        passing.append((take(size, "temporaries"), size))
    take(made[-1], "adapter")
    for key, size in passing:
        drop(key, size)


def _make(
    recipe: Recipe,
    adapters: list[Weight],
    named: dict[str, Weight],
    take: Take,
    drop: Drop,
    workspace: int,
) -> list[tuple[int, int]]:
    """Make one adapter, in float32 at the end. named: weights of the base. Returns key and size of each weight."""
    halved = recipe.quant_type != "int8" and recipe.base_dtype != "float32"
    kind = kind_of(recipe)
    layers: dict[str, list[Weight]] = {}
    for weight in adapters:
        layers.setdefault(kind.layer_of(weight.name), []).append(weight)
    made: list[tuple[int, int]] = []
    for layer in layers.values():
        rows = [w for w in layer if "lora_magnitude_vector" in w.name]
        matrices = [w for w in layer if w not in rows]
        keys = [(take(4 * w.params, "temporaries" if halved else "adapter"), 4 * w.params) for w in matrices]
        if halved:
            for number, (key, size) in enumerate(keys):
                keys[number] = take(size // 2, "temporaries"), size // 2
                drop(key, size)
        for weight in rows:
            name = re.sub(r"lora_magnitude_vector\.\w+", "base_layer", weight.name)
            keys.append(_measure_rows(weight, matrices, named[_in_base(name)], recipe, take, drop, workspace))
            workspace = 0
        made += keys
    for number, ((key, size), weight) in enumerate(zip(made, adapters, strict=True)):
        if size < 4 * weight.params:
            made[number] = take(4 * weight.params, "adapter"), 4 * weight.params
            drop(key, size)
    return made


def _decompositions(recipe: Recipe, weights: list[Weight]) -> Iterator[list[int]]:
    """Bytes that begin_with_weights of trainer/adapters/initial.py holds at once on the CPU, layer by layer.

    The weight in float32, where it is not that already, and what is found of it.
    """
    named = {_in_base(w.name): w for w in weights if not w.adapter}
    matrices = (w for w in weights if f".lora_A.{INITIAL}." in w.name)
    for matrix in matrices:
        weight = named[_in_base(re.sub(r"lora_A\.\w+", "base_layer", matrix.name))]
        widened = [4 * weight.params] if recipe.base_dtype != "float32" else []
        yield widened + [4 * part for part in decomposed(recipe, weight.shape)]


def largest_decomposition(recipe: Recipe, weights: list[Weight]) -> int:
    """Bytes in the host's memory that the first values of the largest layer take; 0 where they are random."""
    return max(map(sum, _decompositions(recipe, weights)), default=0)


def _measure_rows(
    magnitudes: Weight, matrices: list[Weight], base: Weight, recipe: Recipe, take: Take, drop: Drop, workspace: int
) -> tuple[int, int]:
    """DoraLinearLayer.update_layer of peft/tuners/lora/dora.py. Returns key and size of what stays.

    A copy of a packed layer and its weight unpacked; the update, in float32 for float16; that scaled; their sum.
    """
    width = 4 if recipe.base_dtype == "float32" else 2
    through_float32 = recipe.base_dtype == "float16"
    passing: list[tuple[int, int]] = []

    def hold(size: int) -> None:
        passing.append((take(size, "temporaries"), size))

    if through_float32:
        for matrix in matrices:
            hold(4 * matrix.params)
    if base.state:
        for size in (*base.state, base.size, *base.state):  # the layer and its weight each hold the state
            hold(size)
        scales = (take(4 * base.state[0], "temporaries"), 4 * base.state[0]) if len(base.state) > 2 else None
        hold(width * base.params)
        if scales:
            drop(*scales)
    product = take((4 if through_float32 else width) * base.params, "temporaries")
    if workspace:
        take(workspace, "workspaces")
    if through_float32:
        hold(width * base.params)
        drop(product, 4 * base.params)
    else:
        passing.append((product, width * base.params))
    scaled = take(width * base.params, "temporaries")
    hold(width * base.params)
    drop(scaled, width * base.params)
    kept = take(width * magnitudes.params, "temporaries" if width == 2 else "adapter")
    for key, size in passing:
        drop(key, size)
    return kept, width * magnitudes.params


def _in_base(name: str) -> str:
    """A weight's name in the base, before adapters and packed experts."""
    return re.sub(r"^base_model\.model\.|\.base_layer\b|\.token_adapter\b|\.parametrizations\b|\.original$", "", name)


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
