"""A run that is killed, or whose card is lost, goes on to the same weights; then it is evaluated and asked."""

from __future__ import annotations

import signal

from tests.cuda.runs import run, weights_of

HURT = "tests.cuda.hurt:main"


def test_a_killed_run_is_resumed_evaluated_and_asked(on_card, tiny_model, data_file, tmp_path):
    card = on_card("rtx3060", truth=True)
    words = ("--method", "qlora")
    settings = {"optimizer": "paged_adamw_8bit", "rank": 64, "dropout": 0.1, "gradient_checkpointing": "true"}
    quiet = card.warm(*run(tiny_model, data_file, tmp_path / "quiet", *words, **settings))
    assert quiet.code == 0, quiet.err
    out = tmp_path / "out"
    killed = card.warm("kill", 3, "", *run(tiny_model, data_file, out, *words, **settings), call=HURT)
    assert killed.code == -signal.SIGKILL, killed.err
    resumed = card.warm("resume", out, "--json")
    assert resumed.code == 0, resumed.err
    assert weights_of(out) == weights_of(tmp_path / "quiet")
    evaluated = card.warm("eval", out, "--json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.contexts != []
    asked = card.warm("chat", out, "-p", "number 7", "--max-new-tokens", "4", "--json")
    assert asked.code == 0, asked.err


def test_a_killed_run_goes_on_with_adafactor_s_float32_state(on_card, tiny_model, data_file, tmp_path):
    card = on_card("a100", truth=True)
    settings = {"optimizer": "adafactor", "base_dtype": "bfloat16"}
    words = [
        run(tiny_model, data_file, tmp_path / name, "--method", "full", full=True, **settings)
        for name in ("quiet", "out")
    ]
    quiet = card.warm(*words[0])
    assert quiet.code == 0, quiet.err
    killed = card.warm("kill", 3, "", *words[1], call=HURT)
    assert killed.code == -signal.SIGKILL, killed.err
    resumed = card.warm("resume", tmp_path / "out", "--json")
    assert resumed.code == 0, resumed.err
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "quiet")


def test_a_lost_card_is_named_and_what_was_learnt_is_kept(on_card, tiny_model, data_file, tmp_path):
    gone, out = tmp_path / "gone", tmp_path / "out"
    card = on_card("rtx4090", truth=True, fault=f"lost:{gone}")
    done = card.warm("lose", 3, gone, *run(tiny_model, data_file, out), call=HURT)
    assert done.code == 4, done.err
    error = next(line for line in done.err.splitlines() if line.startswith("Error: "))
    assert error.startswith("Error: the GPU does not answer any more: CUDA error: unknown error")
    assert error.endswith("the state after step 2 is kept")
    assert card("probe", "--json").json["gpus"] == []
    gone.unlink()
    resumed = card.warm("resume", out, "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["steps"] == 4
