"""A chat template that is broken, never ends, takes all memory or reaches for more is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.hostile.answers import assert_refused

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
TEMPLATES = {
    "broken": ("{% for", "broken"),
    "unknown tag": ("{% run %}", "broken"),
    "unknown filter": ("{{ messages | no_such }}", "broken"),
    "deep": ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "chat template"),
    "loops": (LOOP, "does not come to an end"),
    "allocates": ("{% set x = ('a' * 100000) * 100000 %}{{ x | length }}", "MiB"),
    "doubles": (
        "{% set n = namespace(x='aaaaaaaa') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "MiB",
    ),
    "reaches for code": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "chat template"),
    "divides by zero": ("{{ 1 / 0 }}", "chat template"),
    "raises": ("{{ raise_exception('no') }}", "no"),
}


@pytest.mark.parametrize("command", ["plan", "data check"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_cannot_be_used_is_named(
    autoft, tiny_model: Path, data_file: Path, tmp_path: Path, monkeypatch, name: str, command: str
) -> None:
    monkeypatch.setattr("autoft.trainer.data.template_gate.LONGEST_S", 3.0)
    source, word = TEMPLATES[name]
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text(source)
    if command == "plan":
        assert_refused(autoft("plan", model, "--data", data_file, "--gpu", "cpu"), word)
    else:
        done = autoft("data", "check", data_file, "--model", model)
        assert done.code == 2
        assert word in done.out + done.err
        assert "unexpected" not in done.out + done.err
