"""How long does `autoft data check` take for a million rows, and how much memory; and what of the planted does it find?

    python benchmarks/data_check.py [--rows 1000000] [--model starter --model-rows 20000]

A whole process of its own. Rows are drawn from 20,000 made-up words, as common as Zipf's law has it, and English ones:
about 45 words each. Planted: copies of earlier rows, exact but for case and with one or two words changed; lines that
are no JSON; rows with a key.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import write_results

ENGLISH = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "with", "as", "was", "on", "be", "by", "this")
SYLLABLES = [a + b + c for a in "bdfglmnprst" for b in "aeiou" for c in ("", "n", "r", "s")]
# One row in so many
EXACT, NEAR, BROKEN, SECRET = 100, 100, 5000, 10_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--model-rows", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures: dict[str, Any] = {}
        for what, rows, words in (
            ("without_model", options.rows, ()),
            ("with_model", options.model_rows, ("--model", options.model)),
        ):
            if rows:
                data = Path(name) / f"{what}.jsonl"
                planted = write_rows(data, rows)
                figures[what] = {**measured(data, *words), "planted": planted}
        write_results("data_check", {**figures, "load_average": os.getloadavg()})


def write_rows(path: Path, rows: int) -> dict[str, int]:
    """Write the rows; how many of each kind were planted."""
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    pool = [*rng.choices(words, weights, k=700_000), *rng.choices(ENGLISH, k=300_000)]
    rng.shuffle(pool)
    planted = {"exact": 0, "near": 0, "broken": 0, "secrets": 0}
    kept: list[list[str]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            begin = rng.randrange(len(pool) - 100)
            text = pool[begin : begin + rng.randint(30, 60)]
            # a stretch of the pool, in an order of its own: no two rows share more than chance has it
            rng.shuffle(text)
            if kept and number % EXACT == 1:
                planted["exact"] += 1
                text = [word.upper() for word in rng.choice(kept)]
            elif kept and number % NEAR == 2:
                planted["near"] += 1
                text = changed(rng.choice(kept), rng)
            elif number % BROKEN == 3:
                planted["broken"] += 1
                file.write('{"prompt": "cut off\n')
                continue
            elif number % SECRET == 4:
                planted["secrets"] += 1
                text = [*text, "AKIA" + "".join(rng.choices("ABCDEFGHIJKLMNOP234567", k=16))]
            elif len(kept) < 50_000:
                kept.append(text)
            half = len(text) // 2
            row = {"prompt": " ".join(text[:half]) + "?", "completion": " ".join(text[half:]) + "."}
            file.write(json.dumps(row) + "\n")
    return planted


def changed(words: list[str], rng: random.Random) -> list[str]:
    """One or two words replaced: the two rows share 0.8 to 0.94 of their pairs of neighbours."""
    copy = list(words)
    for at in rng.sample(range(len(copy)), k=rng.randint(1, 2)):
        copy[at] = "replaced"
    return copy


def measured(data: Path, *words: str) -> dict[str, Any]:
    """Seconds and peak resident bytes of the whole command, and what it found."""
    command = [sys.executable, "-m", "autoft", "data", "check", str(data), "--json", *words]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)  # of this child alone
        process.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - began
    found = {finding["kind"]: finding["rows"] for finding in report["findings"]}
    return {
        "rows": report["rows"],
        "file_bytes": data.stat().st_size,
        "seconds": round(took, 1),
        "rows_per_s": round(report["rows"] / took),
        "peak_bytes": usage.ru_maxrss * 1024,
        "found": found,
    }


if __name__ == "__main__":
    main()
