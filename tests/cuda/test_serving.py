"""What serving takes of a card, predicted, beside runs that are opened and answer on a described one."""

from __future__ import annotations

import json

import pytest

from tests.cuda.runs import run

CONTEXT = 512


@pytest.mark.parametrize(
    ("card", "settings"),
    [("rtx3060", {"base_dtype": "float32"}), ("rtx4090", {"method": "qlora", "quant_type": "nf4"})],
    ids=["float32", "nf4"],
)
def test_bytes_of_base_and_adapters_are_met_and_no_answer_takes_more(
    on_card, tiny_model, data_file, tmp_path, card, settings
):
    there = on_card(card, truth=True)
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        done = there.warm(*run(tiny_model, data_file, folder, **settings))
        assert done.code == 0, done.err
    recipe = done.json["job"]["recipe"]
    spec = {
        "folders": [str(folder) for folder in folders],
        "context": CONTEXT,
        "model": str(tiny_model),
        "recipe": recipe,
    }
    done = there.warm(json.dumps(spec), call="tests.cuda.served:main")
    assert done.code == 0, done.err
    figures = json.loads(done.out.splitlines()[-1])
    assert figures["loaded"] == figures["predicted_loaded"]
    assert figures["reserved_loaded"] == figures["predicted_reserved_loaded"]
    assert figures["peak"] <= figures["predicted_peak"]
    assert figures["peak"] == pytest.approx(figures["predicted_peak"], rel=0.02)
    assert figures["reserved"] <= figures["predicted_reserved"]
