"""Measurements on the card: `compare --measure` and `probe --bench` run their real steps there."""

from __future__ import annotations


def test_a_comparison_runs_its_steps_on_the_card(on_card, tiny_model, data_file):
    card = on_card("rtx4090", truth=True)
    done = card("compare", tiny_model, "--data", data_file, "--measure", "--steps", "1", "--json")
    assert done.code == 0, done.err
    sides = {side["label"]: side["measured"] for side in done.json["sides"]}
    assert len(sides) == 3
    for label, measured in sides.items():
        assert measured["failed"] is None, (label, measured)
        assert measured["steps"]["peak_bytes"] > 0
        assert measured["predicted_bytes"] > 0
    contexts = {event.command for event in done.contexts}
    assert not any(" compare " in command for command in contexts), "only the measured steps use the card"


def test_a_bench_measures_rates_of_the_card_and_keeps_them(on_card):
    card = on_card("rtx3090")
    done = card("probe", "--bench", "--seconds", "60", "--json")
    assert done.code == 0, done.err
    (bench,) = done.json["bench"]
    assert {reading["what"] for reading in bench["readings"]} >= {"product", "copy", "to device", "from device"}
    assert card("probe", "--json").json["bench"] == [bench]
