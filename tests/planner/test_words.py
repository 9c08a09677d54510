"""Sentences are for people: no code reads them, so that a new wording changes nothing else."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROSE = (
    r"(reasons?|assumptions?|notes?|pruned|text|sentences?|described|describe\w*\([^()]*\)|target\.name|plan\.target)"
)
# planner/plan/record.py and planner/history/past_runs.py read the words of older files, which have nothing else
CUT = re.compile(
    rf"{PROSE}(\[\w+\])?\.(startswith|endswith|partition|rpartition|split|removeprefix|removesuffix)\((?!\))"
)
MATCHED = re.compile(rf"re\.(match|search|fullmatch|findall|sub)\([^)]*\b{PROSE}\b")
SOUGHT = re.compile(r'"[a-z ]+" in (reason|assumption|note|sentence)\b')


def test_no_code_of_the_planner_or_of_the_face_parses_what_a_plan_says() -> None:
    files = [*(ROOT / "planner").rglob("*.py"), *(ROOT / "autoft" / "cli").glob("*.py")]
    files.remove(ROOT / "planner" / "rehearsal" / "step.py")  # reads what PyTorch says, which has no other form
    assert len(files) > 80
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            for parses in (CUT, MATCHED, SOUGHT):
                assert not parses.search(line), f"{file.name}: {line.strip()}"


def test_the_search_for_parsers_finds_those_that_there_were() -> None:
    assert CUT.search('told = [text for text in assumptions if text.startswith("time: ")]')
    assert CUT.search('return plan.target.rpartition(" (")[0] in (gpu.name, product)')
    assert CUT.search('", ".join(part for part in described.split(", "))')
    assert MATCHED.search("key = next((key for key, words in begins.items() if re.match(words, reason)), None)")
    assert SOUGHT.search('"; ".join(note for note in notes if "context" in note)')
