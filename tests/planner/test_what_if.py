"""What if? Each answer is checked against the plan itself: what is found fits, and the next does not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from autoft.errors import DoesNotFit, OptionError
from autoft.planner.plan.make import make_plan
from autoft.planner.request import Request
from autoft.planner.what_if.cards import fit_all_cards
from autoft.planner.what_if.context import make_frame
from autoft.planner.what_if.limits import find_limit
from autoft.planner.what_if.models import family_of, members, sweep_models
from autoft.profiles.architectures import architectures
from autoft.profiles.catalogue import forget, own_folder
from autoft.profiles.gpu_catalogue import gpu_profiles
from autoft.trainer.recipe import Recipe
from tests.support.machines import NO_GPU as CPU

GIB = 2**30
CONFIG = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 50_000,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a configuration alone, of a small model with a long context."""
    folder = tmp_path_factory.mktemp("shape")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return str(folder)


@pytest.fixture
def profiles_of_my_own():
    """What is in the catalogue folder of this test counts, and of no other."""
    forget()
    yield own_folder("models")
    forget()


def fits(request: Request, recipe: Recipe, **changed: int) -> bool:
    """Whether the plan takes that very recipe, with other values of some of its fields."""
    values = {**recipe.to_dict(), **changed}
    varied = ("method", "quant_type", "double_quant", "gradient_checkpointing", "micro_batch", "rank", "seq_len")
    settings = tuple(f"{name}={json.dumps(values[name])}" for name in varied if values.get(name) is not None)
    try:
        make_plan(replace(request, seq_len=None, settings=settings), CPU)
    except (DoesNotFit, OptionError):  # the latter where two of the pins exclude each other
        return False
    return True


def test_the_longest_sequence_fits_and_the_next_does_not(model) -> None:
    request = Request(model=model, gpu="rtx-3060", vram_gib=1.0)
    limit = find_limit(make_frame(request, CPU), "seq_len")
    best = limit.best
    assert best.value is not None
    assert best.value % 64 == 0
    assert best.next_value == best.value + 64 < limit.bound == 50_000
    assert best.estimate.device_bytes <= best.estimate.available_bytes
    assert best.next_estimate is not None
    assert best.next_estimate.device_bytes > best.estimate.available_bytes
    assert fits(request, best.recipe)
    assert not fits(request, best.recipe, seq_len=best.next_value)
    assert limit.ceilings[0] == best
    assert [c.value or 0 for c in limit.ceilings] == sorted((c.value or 0 for c in limit.ceilings), reverse=True)
    assert {c.recipe.method for c in limit.ceilings} == {"lora", "qlora"}


def test_it_ends_where_the_model_does(model) -> None:
    limit = find_limit(make_frame(Request(model=model, gpu="rtx-4090", settings=("method=lora",)), CPU), "seq_len")
    assert (limit.best.value, limit.best.next_value) == (50_000, None)
    assert "was made for no more" in limit.bound_by
    assert {c.recipe.method for c in limit.ceilings} == {"lora"}


@pytest.mark.parametrize(("quantity", "vram_gib"), [("rank", 0.72), ("micro_batch", 0.8)])
def test_the_highest_rank_and_the_largest_batch_too(model, quantity, vram_gib) -> None:
    request = Request(model=model, gpu="rtx-3060", vram_gib=vram_gib, seq_len=1024, settings=("method=lora",))
    best = find_limit(make_frame(request, CPU), quantity).best
    assert best.value is not None
    assert best.next_value is not None
    assert getattr(best.recipe, quantity) == best.value
    assert fits(request, best.recipe)
    assert not fits(request, best.recipe, **{quantity: best.next_value})


def test_pins_hold_and_nothing_is_an_answer_too(model) -> None:
    pinned = Request(model=model, gpu="rtx-3060", vram_gib=1.0, settings=("method=qlora", "micro_batch=3", "rank=4"))
    limit = find_limit(make_frame(pinned, CPU), "seq_len")
    assert {(c.recipe.micro_batch, c.recipe.rank) for c in limit.ceilings} == {(3, 4)}
    with pytest.raises(DoesNotFit) as error:
        find_limit(make_frame(replace(pinned, vram_gib=0.55), CPU), "seq_len")
    assert (
        "at any sequence length. Closest: QLoRA (NF4), micro-batch 3, gradient checkpointing, 64 tokens"
        in error.value.what
    )


def test_every_card_gets_the_plan_that_it_would_get_alone(tmp_path) -> None:
    wide = {**CONFIG, "vocab_size": 128_000, "hidden_size": 8192, "intermediate_size": 24_576}
    (tmp_path / "config.json").write_text(json.dumps(wide), encoding="utf-8")
    request = Request(model=str(tmp_path), seq_len=1024)
    found = fit_all_cards(make_frame(request, CPU))
    assert [fit.total_bytes for fit in found] == sorted(fit.total_bytes for fit in found)
    assert {fit.card for fit in found} == set(gpu_profiles())
    small = found[0]
    assert (small.fits, small.recipe.method, small.recipe.micro_batch) == ("no", "qlora", 1)
    assert small.device_bytes > small.available_bytes
    by_name = {fit.card: fit for fit in found}
    for card in ("t4", "a100-80gb"):
        plan, _ = make_plan(replace(request, gpu=card), CPU)
        fit = by_name[card]
        assert fit.fits == "yes"
        assert fit.recipe == plan.job.recipe
        assert fit.device_bytes == plan.estimate.device_bytes
        assert fit.step_time_s == plan.estimate.step_time_s
        assert fit.power_w is not None


SAME_KERNELS = [(each.capability, each.same_kernels) for each in architectures().values() if each.same_kernels]


@pytest.mark.parametrize(("one", "other"), SAME_KERNELS)
def test_capabilities_that_share_their_rehearsals_have_the_same_kernels(model, one, other) -> None:
    frame = make_frame(Request(model=model, gpu="rtx-3060", seq_len=2048), CPU)
    recipe = frame.recipes()[0]
    needs = []
    for capability in (one, other):
        assert frame.target.gpu is not None
        gpu = replace(frame.target.gpu, compute_capability=capability)
        estimator = frame.estimator.on(replace(frame.target, gpu=gpu))
        needs.append([estimator.estimate(recipe, backend=b).peak_reserved_bytes for b in ("flash", "efficient")])
    assert needs[0] == needs[1]


def test_a_family_is_what_comes_before_the_size() -> None:
    names = ("qwen2.5-3b-instruct", "Qwen/Qwen3-30B-A3B", "gemma-4-E2B-it", "olmo-2-0425-1b", "phi-4-mini")
    assert [family_of(name) for name in names] == ["qwen2.5", "qwen3", "gemma-4", "olmo-2", "phi"]


def test_a_family_is_planned_from_small_to_large(profiles_of_my_own) -> None:
    profiles_of_my_own.mkdir(parents=True)
    for name, hidden in (("toy-2b", 2048), ("toy-1b", 512), ("toy-1b-instruct", 512)):
        lines = [
            f'name = "{name}"',
            f'hub_id = "toys/{name}"',
            'licence = "mit"',
            "gated = false",
            'source = "made up"',
        ]
        config = {**CONFIG, "hidden_size": hidden, "intermediate_size": 3 * hidden}
        lines += ["[config]", *(f"{key} = {json.dumps(value)}" for key, value in config.items())]
        (profiles_of_my_own / f"{name}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    frame = make_frame(Request(model="toy-1b", gpu="rtx-3060", vram_gib=0.9, seq_len=2048), CPU)
    family, models = members("toy-1b")
    assert family == "toy"
    found = sweep_models(frame, models)
    assert [(fit.model, fit.fits) for fit in found] == [("toy-1b", "yes"), ("toy-1b-instruct", "yes"), ("toy-2b", "no")]
    plan, _ = make_plan(frame.request, CPU)
    assert found[0].recipe == found[1].recipe == plan.job.recipe
    assert found[2].over_bytes is not None
    assert found[2].over_bytes > 0
    with pytest.raises(OptionError, match=r"toi: no model family of the catalogue\. Did you mean toy"):
        members("toy-1b", "toi")
