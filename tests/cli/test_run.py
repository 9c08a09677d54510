"""`autoft run` end to end on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path


def test_run_writes_a_whole_folder(autoft, tiny_model, data_file, tmp_path):
    out = tmp_path / "out"
    done = autoft("run", tiny_model, "--data", data_file, "-o", out, "--set", "max_steps=2", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["steps"] == 2
    assert {p.name for p in out.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "plan.toml",
        "result.json",
        "README.md",
    }
    assert not Path(f"{out}.unfinished").exists()
