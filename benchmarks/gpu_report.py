"""What gpu_evidence.py has measured, for people: a line for each piece, and the report of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu_validate

Json = dict[str, Any]
MIB, GIB = 2**20, 2**30
TITLES = {
    "a": "This machine",
    "b": "Recipes, predicted / measured",
    "c": "The CUDA context, MiB beside what PyTorch reserves",
    "d": "Plans on smaller cards",
    "e": "Whole runs",
    "f": "Beside other trainers",
}


def report(record: Json) -> str:
    """predicted beside measured, and what lived and died."""
    machine = record["machine"]
    where = ", ".join(machine["gpus"]) or machine["cpu"]
    driver = f", driver {machine['driver']}" if machine["driver"] else ""
    lines = [f"{where}{driver}, torch {record['versions']['torch']}, {record['date']}"]
    for part, title in TITLES.items():
        found = record["parts"].get(part)
        if found is None:
            continue
        state = "" if found["state"] == "done" else f" ({found['state']})"
        lines += ["", f"{part}  {title}{state}"]
        lines += [f"   {piece_line(part, name, piece)}" for name, piece in found["pieces"].items()]
        if part == "b":
            lines += [f"   {line}" for line in _summary(record, found)]
    return "\n".join(lines)


def piece_line(part: str, name: str, piece: Json) -> str:
    """One line on one piece."""
    if "error" in piece and part != "e":
        return f"{name}: failed: {' '.join(piece['error'].split())[-200:]}"
    return f"{name}: {LINES[part](piece)}"


def _check(piece: Json) -> str:
    if "findings" in piece:
        bad = [f"{each['name']} {each['status']} ({each['found']})" for each in piece["findings"] if _is_bad(each)]
        return "; ".join(bad) or "healthy"
    return f"{sum(len(bench['readings']) for bench in piece['bench'])} readings of {len(piece['bench'])} devices"


def _is_bad(finding: Json) -> bool:
    return finding["status"] in ("failed", "warning")


def _recipe(piece: Json) -> str:
    if "refused" in piece:
        return f"no estimate: {piece['refused']}"
    predicted, measured = piece["predicted"], piece["measured"]
    if "error" in measured:
        return f"failed: {measured['error']}"
    words = [f"fits {predicted['fits']}", f"died in {measured['died_in']}" if "died_in" in measured else "lived"]
    for key in ("peak_allocated_bytes", "peak_reserved_bytes", "device_bytes"):
        if key in measured:
            word = key.removeprefix("peak_").removesuffix("_bytes")
            words.append(f"{word} {measured[key] / GIB:.2f} GiB {predicted[key] / measured[key] - 1:+.2%}")
    if "step_time_s" in measured:
        ranges = {"": predicted["step_time_s"], " by data sheet": predicted.get("step_time_by_data_sheet_s")}
        told = ", ".join(f"{r['lower']:.3f}-{r['upper']:.3f} s{of}" for of, r in ranges.items() if r)
        words.append(f"step {measured['step_time_s']:.3f} s of {told}")
    return ", ".join([*words, *([f"ended by {measured['ended']}"] if "ended" in measured else [])])


def _context(piece: Json) -> str:
    stages = [
        f"{stage['after']} {stage['nvml_bytes'] / MIB:.0f}" + (f" ({stage['error']})" if stage["error"] else "")
        for stage in piece["stages"]
    ]
    return f"{', '.join(stages)}; assumed {piece['assumed_bytes'] / MIB:.0f}"


def _plan(piece: Json) -> str:
    return "; ".join(
        f"{run['candidate']}: fits {run['predicted']['fits']}, {_ended(run['measured'])}"
        + ("" if run["as_told"] else " (NOT AS PREDICTED)")
        for run in piece["runs"]
    )


def _ended(measured: Json) -> str:
    return f"died in {measured['died_in']}" if "died_in" in measured else measured.get("error", "lived")


def _whole_run(piece: Json) -> str:
    words = [f"killed after step {piece['killed_after_step']}"] if "killed_after_step" in piece else []
    if "measured" not in piece:
        return ", ".join([*words, f"exit {piece.get('code')}: {' '.join(piece.get('error', '').split())[-300:]}"])
    measured, predicted = piece["measured"], piece["predicted"]
    words.append(f"exit {piece['code']} after {piece['steps']} steps")
    recovered = [event for event in piece["events"] if event["event"] == "recovered"]
    words += [f"out of memory in step {e['step']}, went on with micro-batch {e['micro_batch']}" for e in recovered]
    if measured["peak_bytes"] and not recovered:
        words.append(f"peak {measured['peak_bytes'] / GIB:.2f} GiB, predicted {predicted['peak_bytes'] / GIB:.2f}")
    return ", ".join(words)


def _speed(piece: Json) -> str:
    pair = piece["pairs"][0]
    times = ", ".join(f"{who} {figures['step_time_s']:.3f} s" for who, figures in pair.items())
    return f"{times} a step, ours / theirs {piece['ratio']:.3f}"


LINES: dict[str, Callable[[Json], str]] = {
    "a": _check,
    "b": _recipe,
    "c": _context,
    "d": _plan,
    "e": _whole_run,
    "f": _speed,
}


def _summary(record: Json, found: Json) -> list[str]:
    """That of gpu_validate.py."""
    runs = [piece for piece in found["pieces"].values() if "measured" in piece]
    refused = {name: piece["refused"] for name, piece in found["pieces"].items() if "refused" in piece}
    return gpu_validate.report({**record, "runs": runs, "refused": refused}).splitlines()[1:]
