"""Planning leaves the card alone: a context takes 300 to 500 MiB of it, and a process that forks afterwards is lost."""

from __future__ import annotations

import pytest

COMMANDS = {
    "plan": ("plan", "{model}", "--no-cache"),
    "plan with data": ("plan", "{model}", "--data", "{data}", "--no-cache"),
    "plan for another card": ("plan", "{model}", "--gpu", "rtx-4090", "--no-cache"),
    "plan for the CPU": ("plan", "{model}", "--gpu", "cpu", "--no-cache"),
    "estimate": ("estimate", "{model}", "--method", "qlora"),
    "compare": ("compare", "{model}", "--data", "{data}"),
    "probe": ("probe",),
    "what fits": ("plan", "{model}", "--max-seq"),
    "bad option": ("plan", "{model}", "--method", "nothing"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_planning_makes_no_context_on_the_card(on_card, tiny_model, data_file, command):
    words = [word.format(model=tiny_model, data=data_file) for word in COMMANDS[command]]
    done = on_card("t4")(*words)
    assert done.code == (2 if command == "bad option" else 0), done.err
    assert done.contexts == []


def test_the_log_shows_a_context_where_one_is_made(on_card):
    done = on_card("t4", gpus=2).python("-c", "import torch; torch.ones(1, device='cuda:1')")
    assert [(event.what, event.device) for event in done.events][:1] == [("start", -1)]
    assert {event.device for event in done.contexts} >= {1}
