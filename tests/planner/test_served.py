"""`--for vllm`: what vLLM does not load is refused before it is trained."""

from __future__ import annotations

import json

import pytest

from autoft.errors import OptionError
from autoft.planner.search.served import serving_notes
from autoft.trainer.export.vllm import MAX_RANKS


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"adapter": "oft"}, "--for vllm: vLLM takes LoRA adapters alone, not OFT"),
        ({"adapter": "ia3"}, "--for vllm: vLLM takes LoRA adapters alone, not IA3"),
        ({"use_dora": True}, "--for vllm: vLLM takes no DoRA"),
        ({"rope_scaling": "yarn"}, "--for vllm: vLLM would serve the base without the run's rope_scaling"),
        ({"rank": 513}, "--for vllm: vLLM takes a rank of 512 at most, and 513 is saved"),
        ({"rank": 320, "init": "pissa"}, "--for vllm: vLLM takes a rank of 512 at most, and 640 is saved"),
    ],
)
def test_what_vllm_does_not_load_is_refused(pins, message) -> None:
    with pytest.raises(OptionError) as refused:
        serving_notes("vllm", pins)
    assert refused.value.what == message
    assert "autoft merge" in refused.value.fix
    assert serving_notes(None, pins) == ()


def test_the_rank_that_is_saved_is_told() -> None:
    assert serving_notes("vllm", {}) == ()
    assert serving_notes("vllm", {"rank": 24}) == ("vLLM serves rank 24 with --max-lora-rank 32",)
    assert serving_notes("vllm", {"init": "olora"}) == ("vLLM serves rank 32 with --max-lora-rank 32",)
    assert serving_notes("vllm", {"method": "full"}) == ()
    for rank in MAX_RANKS[3:]:
        assert serving_notes("vllm", {"rank": rank}) == (f"vLLM serves rank {rank} with --max-lora-rank {rank}",)


def test_plan_and_run_say_so_before_a_model_is_loaded(autoft, tiny_model, data_file, tmp_path) -> None:
    given = (tiny_model, "--data", data_file, "--gpu", "cpu", "--set", "seq_len=64", "--for", "vllm")
    planned = autoft("plan", *given, "--set", "rank=32", "--json")
    assert planned.code == 0, planned.err
    assert "vLLM serves rank 32 with --max-lora-rank 32" in json.loads(planned.out)["notes"]
    shown = autoft("plan", *given)
    assert "--for vllm" in shown.out.replace("\n", " ")
    refused = autoft("run", *given, "--set", "use_dora=true", "-o", tmp_path / "out")
    assert refused.code == 2
    assert "vLLM takes no DoRA" in refused.err
    assert not list(tmp_path.glob("out*"))
    near = autoft("plan", *given[:-1], "vlm")
    assert near.code == 2
    assert "vllm" in near.err
