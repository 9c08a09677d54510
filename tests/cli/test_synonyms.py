"""What people type who come from another trainer: the error proposes our word for it, and Python's True is true."""

from __future__ import annotations

import pytest

from autoft.planner.search.set_option import parse_settings

MODEL = "smollm2-135m"


@pytest.mark.parametrize(
    ("typed", "fix"),
    [
        ("plan M --lora-r 16", "--set rank=16"),
        ("plan M --lora_r=16", "--set rank=16"),
        ("plan M --bits 4", "--method qlora"),
        ("plan M --bits=8", "--method qlora --set quant_type=int8"),
        ("plan M --qlora", "--method qlora"),
        ("plan M --load-in-4bit", "--method qlora"),
        ("plan M --load_in_4bit True", "--method qlora"),
        ("plan M --full", "--method full"),
        ("plan M --batch-size 4", "--set micro_batch=4"),
        ("plan M --max-seq-length 4096", "--seq-len 4096"),
        ("plan M --rank 8", "--set rank=8"),
        ("run M --data F --epochs 3", "--set epochs=3"),
        ("run M --data F --lr 1e-4", "--set learning_rate=1e-4"),
        ("run M --data F --learning-rate 1e-4", "--set learning_rate=1e-4"),
        ("run M --data F --packing", "--set packing=true"),
        ("run M --data F --output-dir out", "--output out"),
        ("run M --dataset F", "--data F"),
        ("run --model M --data F", f"{MODEL} as an argument, without an option"),
        ("run M rows.jsonl", "--data rows.jsonl"),
        ("run rows.jsonl", "autoft run MODEL --data rows.jsonl"),
        ("estimate M --set lora_r=16", "--set rank=16"),
        ("estimate M --set batch_size=4", "--set micro_batch=4"),
        ("estimate M --set lr=1e-4", "--set learning_rate=1e-4"),
        ("estimate M --set per_device_train_batch_size=4", "--set micro_batch=4"),
        ("estimate M --set load_in_4bit=true", "--method qlora"),
        ("estimate M --set max_length=512", "--set seq_len=512"),
        ("data rows.jsonl", "autoft data check rows.jsonl"),
        ("check rows.jsonl", "autoft data check rows.jsonl"),
        ("train M", f"autoft run {MODEL}"),
        ("probe --lr 1", "autoft probe --help shows how it is used"),
    ],
)
def test_another_trainer_s_word_gets_ours(autoft, tmp_path, monkeypatch, typed, fix) -> None:
    monkeypatch.chdir(tmp_path)
    done = autoft(*(MODEL if word == "M" else word for word in typed.split()))
    assert (done.code, done.err.splitlines()[-1]) == (2, f"To fix: {fix}")
    assert "Did you mean" not in done.err or fix.startswith("autoft ")


def test_values_as_other_trainers_write_them() -> None:
    recipe, _ = parse_settings(("packing=True", "gradient_checkpointing=False", "target_modules=q_proj,v_proj"))
    assert recipe == {"packing": True, "gradient_checkpointing": False, "target_modules": ("q_proj", "v_proj")}
    assert parse_settings(('target_modules=["q_proj"]',))[0] == {"target_modules": ("q_proj",)}
    assert parse_settings(("target_modules=all-linear",))[0] == {"target_modules": "all-linear"}


def test_a_method_is_known_whatever_its_case(autoft) -> None:
    assert autoft("estimate", MODEL, "--method", "QLoRA", "--gpu", "rtx-3060", "--seq-len", 128).code == 0
