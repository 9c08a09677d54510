"""Evidence from a GPU in a quarter of an hour: what autoft predicts beside what the card does.

    python benchmarks/gpu_evidence.py                  all parts for twelve minutes, those worth most first
    python benchmarks/gpu_evidence.py --minutes 5      the next call goes on where this one stopped
    python benchmarks/gpu_evidence.py --parts b,d      only these
    python benchmarks/gpu_evidence.py --report         what was measured so far
    python benchmarks/gpu_evidence.py --predict        new predictions of the recipes beside it; needs no GPU
    python benchmarks/gpu_evidence.py --smoke          tiny models, on this CPU where there is no GPU

    a   what doctor finds, and the bench of probe
    b   21 recipes: memory (allocated, reserved, of the device) and step time, predicted beside measured
    c   what the CUDA context takes of the card
    d   kept to 8, 12, 16 and 24 GiB: the chosen plan lives, and the nearest that is too large dies
    e   whole runs: one to its end, one that is killed, resumed, and short of memory in a step
    f   step time beside TRL's own trainer

No network: the models have real shapes and random weights. Each part is a process with a time limit, and each piece of
it is written to benchmarks/results/gpu_evidence.json as soon as it is there, so that whatever ends this leaves all that
was measured. What is done is not done again; what failed is tried again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from child import end_tree, records
from common import RESULTS, heading, write_record
from gpu_report import piece_line, report
from gpu_validate import predict_again, this_gpu

from autoft.trainer.runtime import environment

Json = dict[str, Any]
WORKER = Path(__file__).with_name("gpu_parts.py")
# Of the time of a call, in their first turn; what they leave, and the rest, goes to those that were not done
SHARES = {"a": 0.12, "b": 0.38, "c": 0.05, "d": 0.2, "e": 0.15, "f": 0.1}
LEAST_S = 15.0  # under which no part is begun
GRACE_S = 20.0  # beyond its time, for the piece that a part is at, in its first turn


def main() -> None:
    options = _options()
    out = Path(options.out) if options.out else RESULTS / f"{'smoke' if options.smoke else 'gpu_evidence'}.json"
    if options.report or options.predict:
        record = _read(out)
        if options.predict:
            _predict_again(record)
            write_record(out, record)
        print(report(record))
        return
    deadline = time.monotonic() + 60 * options.minutes
    record = _begin(out, smoke=options.smoke)
    out.parent.mkdir(parents=True, exist_ok=True)
    parts = [part for part in SHARES if part in options.parts.split(",")]
    with tempfile.TemporaryDirectory(prefix="gpu-evidence-") as temporary:
        scratch = Path(options.weights or temporary).absolute()
        for turn in ("first", "rest"):
            for part in parts:
                left_s = deadline - time.monotonic()
                share = SHARES[part] / sum(SHARES[each] for each in parts)
                share_s = 60 * options.minutes * share if turn == "first" else left_s
                if record["parts"].get(part, {}).get("state") == "done" or left_s < LEAST_S:
                    continue
                if turn == "rest" and record["parts"].get(part, {}).get("state", "").startswith("failed"):
                    continue
                _do(record, out, part, scratch, min(share_s, left_s), left_s)
    print(report(record))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="for all parts together (default: 12)")
    parser.add_argument("--parts", default=",".join(SHARES), help="letters with commas (default: all)")
    parser.add_argument("--out", help="result file (default: benchmarks/results/gpu_evidence.json)")
    parser.add_argument("--weights", help="folder that keeps the random weights for a later call (default: none)")
    parser.add_argument("--report", action="store_true", help="measure nothing, print what was measured")
    parser.add_argument("--predict", action="store_true", help="measure nothing, predict the recipes anew")
    parser.add_argument("--smoke", action="store_true", help="tiny models")
    options = parser.parse_args()
    unknown = set(options.parts.split(",")) - set(SHARES)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(SHARES)}")
    return options


def _begin(out: Path, *, smoke: bool) -> Json:
    """The record of earlier calls, or a new one.

    Exits where there is no GPU, and where the earlier calls were on another card or with other versions.
    """
    record: Json = heading("gpu_evidence") | {"smoke": smoke, "gpu": None, "parts": {}}
    if record["machine"]["gpus"]:
        record["gpu"] = this_gpu().to_dict() | {"uuid": None, "processes": []}
    elif not smoke:
        sys.exit("no NVIDIA GPU here: `autoft probe` tells why, and --smoke runs tiny models on the CPU")
    if not out.exists():
        return record
    before = _read(out)
    for name, now, then in (
        ("card", record["machine"]["gpus"], before["machine"]["gpus"]),
        ("versions", record["versions"], before["versions"]),
    ):
        if now != then:
            sys.exit(f"{out} was measured with other {name}: {then}, now {now}; give another file with --out")
    return before


def _predict_again(record: Json) -> None:
    pieces = record["parts"].get("b", {"pieces": {}})["pieces"]
    for piece in predict_again((piece for piece in pieces.values() if "measured" in piece), record["gpu"]):
        _say(f"b  {piece_line('b', piece['case']['id'], piece)}")


def _read(out: Path) -> Json:
    if not out.exists():
        sys.exit(f"{out}: nothing was measured yet")
    return dict(json.loads(out.read_text(encoding="utf-8")))


def _do(record: Json, out: Path, part: str, scratch: Path, share_s: float, left_s: float) -> None:
    """One part in a process of its own, its pieces added to the record as they come; none is begun after `share_s`."""
    scratch.mkdir(parents=True, exist_ok=True)
    mine = record["parts"].setdefault(part, {"state": "", "seconds": 0.0, "pieces": {}})
    began, limit_s = time.monotonic(), min(share_s + GRACE_S, left_s)
    request = {
        "part": part,
        "smoke": record["smoke"],
        "scratch": str(scratch),
        "done": [name for name, piece in mine["pieces"].items() if not _failed(piece)],
        "until": time.time() + share_s,
    }
    environ = {**os.environ, "AUTOFT_HOME": str(scratch / "home"), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(
            [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            encoding="utf-8", env=environ,
        )  # fmt: skip
        timer = threading.Timer(limit_s, end_tree, (child.pid,))
        timer.start()
        finished = None
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with child:
                child.stdin.write(json.dumps(request))
                child.stdin.close()
                for line in child.stdout:
                    for told in records([line]):
                        if "piece" in told:
                            mine["pieces"][told["piece"]] = told["record"]
                            write_record(out, record)
                            _say(f"{part}  {piece_line(part, told['piece'], told['record'])}")
                        finished = told.get("finished", finished)
            late = not timer.is_alive()
        finally:
            timer.cancel()
            end_tree(child.pid)
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["it said nothing"])[-1][:300]
    mine["seconds"] = round(mine["seconds"] + time.monotonic() - began, 1)
    failed = any(_failed(piece) for piece in mine["pieces"].values())
    if finished:
        mine["state"] = "failed in a piece" if failed else "done"
    elif late or finished is False:
        mine["state"] = "out of time"
    else:
        mine["state"] = f"failed: {last}"
    write_record(out, record)
    _say(f"{part}: {mine['state']}, {len(mine['pieces'])} measured, {mine['seconds']:.0f} s")


def _failed(piece: Json) -> bool:
    """Whether it is to be tried again."""
    return "error" in piece or "error" in piece.get("measured", {}) or any(map(_failed, piece.get("runs", ())))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    environment.prepare()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    main()
