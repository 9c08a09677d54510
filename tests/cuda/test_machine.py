"""What a machine is like: its cards, MIG, CUDA_VISIBLE_DEVICES, and all that can be wrong with it."""

from __future__ import annotations

import json

import pytest

from tests.cuda.runs import run

UUID = "GPU-5a5a5a5a-0000-4000-8000-00000000000"
DEVICES = "tests.cuda.devices:main"
CARDS = {
    "t4": ("Tesla T4", [7, 5], "t4"),
    "rtx3060": ("NVIDIA GeForce RTX 3060", [8, 6], "rtx3060"),
    "rtx4090": ("NVIDIA GeForce RTX 4090", [8, 9], "rtx4090"),
    "a100": ("NVIDIA A100-SXM4-80GB", [8, 0], "a100"),
    "h100": ("NVIDIA H100 80GB HBM3", [9, 0], "h100"),
    "rtx5090": ("NVIDIA GeForce RTX 5090", [12, 0], "rtx5090"),
}


@pytest.mark.parametrize("name", CARDS)
def test_probe_knows_the_card(on_card, name):
    product, capability, _ = CARDS[name]
    (gpu,) = on_card(name)("probe", "--json").json["gpus"]
    assert (gpu["name"], gpu["compute_capability"]) == (product, capability)
    assert gpu["total_bytes"] > gpu["free_bytes"] > 0


def test_probe_watches_the_card(on_card):
    done = on_card("rtx3090", gpus=2)("probe", "--watch", "--interval", "0.2", "--count", "2", "--json")
    assert done.code == 0, done.err
    looks = [json.loads(line) for line in done.out.splitlines()]
    assert [[gpu["index"] for gpu in look["gpus"]] for look in looks] == [[0, 1], [0, 1]]


def test_probe_shows_who_holds_the_card(on_card):
    card = on_card("rtx3090", shared=True)
    with card.held(8 * 2**30) as pid:
        (gpu,) = card("probe", "--json").json["gpus"]
    (process,) = gpu["processes"]
    assert process["pid"] == pid
    assert process["used_bytes"] > 8 * 2**30


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        ("2,0", [2, 0]),
        (f"{UUID}2", [1]),
        (f"{UUID}3,{UUID}1", [2, 0]),
        ("", []),
        ("-1", []),
        ("1,7,0", [1]),
        ("nonsense", []),
        ("0,0", []),
    ],
)
def test_probe_and_pytorch_agree_on_what_cuda_visible_devices_shows(on_card, setting, shown):
    card = on_card("rtx3090", gpus=3, visible=setting, truth=True)
    assert [gpu["index"] for gpu in card("probe", "--json").json["gpus"]] == shown
    found = card.warm(call=DEVICES).json
    assert [f"GPU-{device['uuid']}" for device in found] == [f"{UUID}{index + 1}" for index in shown]


@pytest.mark.parametrize(
    ("setting", "shown"), [(None, [39, 9]), ("1", [9]), ("MIG-5a5a5a5a-0002", [9]), ("GPU-5a5a5a5a", [39])]
)
def test_mig_instances_stand_for_their_card(on_card, setting, shown):
    card = on_card("a100-mig", visible=setting, truth=True)
    gpus = card("probe", "--json").json["gpus"]
    assert [gpu["total_bytes"] >> 30 for gpu in gpus] == shown
    found = card.warm(call=DEVICES).json
    # torch.cuda.device_count compares an index with the number of cards, and finds none for "1"
    assert [device["gib"] for device in found][:1] == ([] if setting == "1" else shown[:1])


@pytest.mark.parametrize("setting", ["1", "MIG-5a5a5a5a-0002"])
def test_a_run_on_a_mig_instance_trains_there(on_card, tiny_model, data_file, tmp_path, setting):
    done = on_card("a100-mig", visible=setting, truth=True).warm(*run(tiny_model, data_file, tmp_path / "out"))
    assert done.code == 0, done.err
    assert done.json["hardware"].endswith("MIG 1g.10gb")


def test_a_plan_for_a_mig_instance_is_for_its_memory(on_card, tiny_model):
    plan = on_card("a100-mig", visible="1", truth=True).warm("plan", tiny_model, "--json").json
    assert plan["target"].endswith("MIG 1g.10gb (9.5 GiB)")


# What can be wrong


def error_of(done) -> list[str]:
    """The error, in its one line, and the line that says how to mend it."""
    lines = done.err.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("Error: "))
    assert "Traceback" not in done.err
    assert len(lines[at:]) == 2, lines
    return lines[at:]


def test_an_old_driver_is_named_and_so_is_the_way_out(on_card, tiny_model, data_file, tmp_path):
    card = on_card("t4", fault="old-driver", truth=True)
    done = card.warm(*run(tiny_model, data_file, tmp_path / "out"))
    assert done.code == 2
    error, fix = error_of(done)
    assert "The NVIDIA driver on your system is too old (found version 12020)" in error
    assert "autoft doctor" in fix


def test_without_permission_on_the_device_the_plan_is_for_the_cpu_and_says_why(on_card, tiny_model):
    done = on_card("t4", fault="no-permission", truth=True).warm("plan", tiny_model)
    assert done.code == 0, done.err
    text = " ".join((done.out + done.err).split())
    assert "Note: planned for the CPU: the NVIDIA driver did not answer: Insufficient Permissions" in text


def test_a_card_that_torch_has_no_kernels_for_is_refused_before_anything_is_loaded(
    on_card, tiny_model, data_file, tmp_path
):
    done = on_card("gtx1080")(*run(tiny_model, data_file, tmp_path / "out", base_dtype="float32"))
    assert done.code == 1
    error, fix = error_of(done)
    assert "none for NVIDIA GeForce GTX 1080 (compute capability 6.1)" in error
    assert "cu126" in fix


def test_a_card_that_is_full_at_the_start_fits_nothing_and_its_holder_is_named(
    on_card, tiny_model, data_file, tmp_path
):
    card = on_card("rtx3060", shared=True, truth=True)
    with card.held(11 * 2**30 + 400 * 2**20):
        done = card.warm(*run(tiny_model, data_file, tmp_path / "out"))
    assert done.code == 3
    error, _ = error_of(done)
    assert "NVIDIA GeForce RTX 3060" in error
    assert done.contexts == []


@pytest.mark.parametrize(("visible", "words"), [("", ()), (None, ("--gpu", "cpu"))], ids=["hidden", "--gpu cpu"])
def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_leaves_the_card_alone(
    on_card, tiny_model, data_file, tmp_path, visible, words
):
    card = on_card("t4", visible=visible)
    done = card(*run(tiny_model, data_file, tmp_path / "out", *words, max_steps=2, base_dtype="float32"))
    assert done.code == 0, done.err
    assert done.json["job"]["device"] == "cpu"
    assert done.contexts == []
    if visible == "":
        plan = (tmp_path / "out" / "plan.toml").read_text(encoding="utf-8")
        assert "planned for the CPU: CUDA_VISIBLE_DEVICES='' leaves none of the one GPU here visible" in plan


def test_an_option_that_is_refused_costs_no_context(on_card, tiny_model, data_file, tmp_path):
    done = on_card("t4")(*run(tiny_model, data_file, tmp_path / "out", attention="nothing"))
    assert done.code == 2
    error_of(done)
    assert done.contexts == []


# The doctor


def test_the_doctor_finds_two_good_cards_good(on_card):
    done = on_card("rtx4090", gpus=2, truth=True)("doctor", "--json")
    status = {finding["name"]: finding["status"] for finding in done.json["findings"]}
    for name in (
        "driver", "torch", "driver for this CUDA", "kernels for the card", "CUDA", "4-bit product", "NCCL",
    ):  # fmt: skip  # a training step needs Triton's kernels and the optimizer's, which do nothing here
        assert status[name] == "ok", (name, done.out)


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [
        ({"fault": "old-driver"}, "driver for this CUDA", "torch was built for 13.0"),
        ({"names": "gtx1080"}, "kernels for the card", "none for NVIDIA GeForce GTX 1080"),
    ],
    ids=["old driver", "old card"],
)
def test_the_doctor_says_what_is_wrong(on_card, options, name, words):
    done = on_card(**{"names": "t4", **options})("doctor", "--json")
    assert done.code == 1
    finding = next(finding for finding in done.json["findings"] if finding["name"] == name)
    assert finding["status"] == "failed"
    assert words in finding["found"]
