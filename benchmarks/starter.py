"""The starter, whole: `autoft run` with no arguments, from a filled cache. Its bar: 6 minutes on 2 cores, valid JSON in
95 % and fields right in 90 % of the held-out rows.

    python benchmarks/starter.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write_results

from autoft.trainer.sources.starter import starter_folder

BAR = {"seconds": 360, "json_valid": 0.95, "fields_right": 0.90}


def main() -> None:
    starter_folder(print)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "starter"
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "autoft", "run", "-o", str(out)], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    # the base is a folder of this machine's cache: no one else's business
    result["base"] = os.path.basename(result["base"])  # noqa: PTH119
    after = result["after"]
    write_results(
        "starter",
        {
            "seconds": round(seconds, 1),
            "bar": BAR,
            "bar_met": seconds <= BAR["seconds"]
            and after["json_valid"] >= BAR["json_valid"]
            and after["fields_right"] >= BAR["fields_right"],
            "result": result,
        },
    )


if __name__ == "__main__":
    main()
