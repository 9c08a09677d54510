"""Regenerate what README.md and docs/ show: blocks after `<!-- output of: NAME -->`, tables after
`<!-- table of: NAME -->`, and the picture docs/plan.svg.

    python docs/readme_blocks.py            rewrites them
    python docs/readme_blocks.py --check    exits with 1 where one is not what the commands print

All of it is made from facts in the repository, so it is the same on every machine.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

os.environ.update({"COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"})

from autoft.cli.main import main as autoft

ROOT = Path(__file__).parent.parent
PAGES = tuple(
    ROOT / name for name in ("README.md", "docs/quickstart.md", "docs/machine.md", "docs/how-estimates-work.md")
)
PICTURE = ROOT / "docs" / "plan.svg"
PICTURED = "autoft plan qwen2.5-3b-instruct --gpu rtx-4060 --seq-len 2048"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- output of: (?P<name>.+?) -->\n```text\n)(?P<text>.*?)(```\n)", re.DOTALL)
TABLE = re.compile(r"(<!-- table of: (?P<name>.+?) -->\n)(?P<text>(?:\|.*\n)*)")
MODELS = ("qwen2.5-1.5b-instruct", "llama-3.2-3b-instruct", "llama-3.1-8b-instruct", "phi-4", "qwen2.5-32b-instruct")
EXPORTS = {
    "safetensors": "merged, 16 bits",
    "gguf:q8_0": "GGUF q8_0",
    "gguf:q4_k_m": "GGUF q4_k_m",
    "nf4": "bitsandbytes NF4",
}
CARDS = {
    "rtx-4060": "RTX 4060 8 GB",
    "rtx-3060": "RTX 3060 12 GB",
    "rtx-4080": "RTX 4080 16 GB",
    "rtx-4090": "RTX 4090 24 GB",
}
CSS_FONT = re.compile(r"\s*@font-face \{.*?\n    \}", re.DOTALL)


def command(line: str) -> str:
    """What `autoft ...` prints on stdout."""
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        autoft(line.split()[1:])
    return printed.getvalue()


def picture(line: str) -> str:
    """The command and what it prints, in color, as an SVG that fetches nothing."""
    from rich.console import Console
    from rich.text import Text

    colors = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color", "COLUMNS": "88"}
    before = dict(os.environ)
    os.environ.update(colors)
    os.environ.pop("NO_COLOR", None)
    try:
        printed = Text.from_ansi(command(line))
        console = Console(record=True, width=88, file=io.StringIO(), force_terminal=True)
    finally:
        os.environ.clear()
        os.environ.update(before)
    console.print(Text(f"$ {line}", style="bold"))
    for text in printed.split("\n"):
        text.rstrip()
        console.print(text)
    drawn = CSS_FONT.sub("", console.export_svg(title="autoft plan", unique_id="plan"))
    return "".join(f"{line.rstrip()}\n" for line in drawn.splitlines())


def starter_result() -> str:
    """The end of the starter's run, as benchmarks/starter.py measured it."""
    from rich.console import Console

    from autoft.cli.show import show_result
    from autoft.trainer.result import RunResult

    record = json.loads((ROOT / "benchmarks/results/starter.json").read_text(encoding="utf-8"))
    printed = io.StringIO()
    show_result(RunResult.from_dict(record["result"]), "runs/starter", Console(file=printed, width=100))
    machine, seconds = record["machine"], record["seconds"]
    return f"{printed.getvalue()}The whole command: {seconds:.0f} s on {machine['cores']} cores ({machine['cpu']})\n"


def probed(record: dict[str, Any]) -> str:
    """What `autoft probe --bench` showed where the record was made, with `--json`."""
    from rich.console import Console

    from autoft.cli.bench import show_bench
    from autoft.cli.show_machine import show_machine
    from autoft.profiles.bench_store import Bench
    from autoft.profiles.hardware import Hardware

    printed = io.StringIO()
    console = Console(file=printed, width=100)
    benches = [Bench.from_dict(bench) for bench in record.pop("bench")]
    show_machine(Hardware.from_dict(record), console)
    show_bench([(None, bench) for bench in benches], console)
    return printed.getvalue()


def errors_of(record: dict[str, Any]) -> str:
    """A record's summary: sizes of the errors of each figure, over all runs."""
    lines = [f"{'predicted / measured':<38}{'runs':>5}{'exact':>7}{'median':>10}{'worst':>10}"]
    for name, found in record["summary"].items():
        label = name.removesuffix("_bytes").replace("_", " ")
        exact = found.get("exact", "")
        lines.append(f"{label:<38}{found['runs']:>5}{exact:>7}{found['median']:>10.3%}{found['worst']:>10.3%}")
    return "\n".join(lines)


def errors_by_run(record: dict[str, Any]) -> str:
    """Predicted over measured, less one, of every run."""
    lines = [f"{'predicted / measured':<62}{'allocated':>10}{'reserved':>10}"]
    for run in record["runs"]:
        reserved = run["error"].get("peak_reserved_bytes")  # not every run was asked for it
        told = "" if reserved is None else f"{reserved:>+10.2%}"
        lines.append(f"{run['id']:<62}{run['error']['peak_allocated_bytes']:>+10.3%}{told}")
    return "\n".join(lines)


def step_times(record: dict[str, Any]) -> str:
    """How many steps took what was predicted, how wide the ranges are, and each step beside its range."""
    found, of_middle = record["step_time"], record["step_time"]["measured_over_middle"]
    lines = [
        f"{found['inside']} of {found['runs']} steps inside",
        f"upper / lower: median {found['median_width']:.2f}, at most {found['widest']:.2f}",
        f"measured / middle: {of_middle['least']:.2f} to {of_middle['most']:.2f}, median {of_middle['median']:.2f}",
        f"{'seconds of a step':<62}{'predicted':>15}{'measured':>10}",
    ]
    for run in record["runs"]:
        time = run.get("step_time_s")
        if time is None:  # no one timed it
            continue
        between = f"{time['lower']:.2f}-{time['upper']:.2f}"
        lines.append(f"{run['id']:<62}{between:>15}{time['measured']:>10.2f}")
    return "\n".join(lines)


def loading_orders(record: dict[str, Any]) -> str:
    """Reserved memory of the runs that were quantized while they loaded: predicted over measured, less one."""
    title = f"reserved: predicted / measured, {record['seeds']} races"
    lines = [f"{title:<62}{'ordered':>8}{'lowest':>8}{'median':>8}{'highest':>8}  within"]
    for run in record["runs"]:
        found = run["peak_reserved_bytes"]
        if "nf4" not in run["id"] and "qlora" not in run["id"]:
            continue
        errors = (found[key] / found["measured"] - 1 for key in ("ordered", "lowest", "median", "highest"))
        within = "yes" if found["inside"] else "no"
        lines.append(f"{run['id']:<62}{''.join(f'{error:>+8.1%}' for error in errors)}  {within}")
    return "\n".join(lines)


def predictable(record: dict[str, Any]) -> str:
    """Reserved memory of our own loop with each of its measures switched off, in MiB."""
    lines = []
    for model in record["predictable"]:
        title = f"{model['model'].split('/')[1]}, {model['recipe']['method']}, MiB"
        lines.append(f"{title:<48}{'allocated':>14}{'reserved':>14}{'highest':>14}")
        for name, found in model["reserved"].items():
            ranges = [sorted({round(bound / 2**20) for bound in found[key]}) for key in found]
            shown = "".join("-".join(map(str, bounds)).rjust(14) for bounds in ranges)
            lines.append(f"  {name:<46}{shown}")
    return "\n".join(lines)


def gpu_report(record: dict[str, Any]) -> str:
    """What benchmarks/gpu_evidence.py --report prints."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from gpu_report import report

    return str(report(record))


def on_described_cards(record: dict[str, Any]) -> str:
    """Recipes of our own trainer met to the byte, phase by phase, and why the others are not."""
    told = record["summary"]
    cards = ", ".join(sorted(card["name"].removeprefix("NVIDIA ") for card in record["cards"].values()))
    lines = [f"{told['lived']} recipes that lived, torch {record['versions']['torch']}, {record['date']}", cards]
    for measure in ("allocated", "reserved"):
        lines += ["", f"{f'{measure}: predicted / counted by PyTorch':<54}{'equal':>6}{'farthest':>12}"]
        lines.append(f"  {'all of a run':<52}{told[measure]['equal']:>6}{told[measure]['worst']:>+12.3%}")
        for phase, found in told[measure]["phases"].items():
            lines.append(f"  {phase.replace('_', ' '):<52}{found['equal']:>6}{found['worst']:>+12.3%}")
    causes: dict[str, list[float]] = {}
    for row in record["rows"]:
        for miss in sorted(row["misses"], key=lambda miss: abs(miss["error"]))[-1:]:
            causes.setdefault(miss["cause"], []).append(miss["error"])
    lines += ["", "runs that are not met, and why"]
    for cause, errors in sorted(causes.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(errors):>4}  to {max(errors, key=abs):+.3%}: {cause}")
    return "\n".join(lines)


def speed(record: dict[str, Any]) -> str:
    """Seconds that an estimate adds to bare imports, and memory of its process."""
    from autoft.units import size

    (imports, bare_s), *others = record["median_s"].items()
    lines = [f"{imports} {bare_s:.1f} s, {machine_of(record)}", f"{'':<32}{'adds':>8}{'bar':>8}{'peak RSS':>12}"]
    for what, _ in others:
        added, bar = record["over_imports_s"][what], record["bar_s"][what]
        lines.append(f"{what:<32}{added:>6.1f} s{bar:>6.1f} s{size(record['peak_bytes'][what]):>12}")
    return "\n".join(lines)


def machine_of(record: dict[str, Any]) -> str:
    machine = record["machine"]
    return f"{machine['cores']} cores ({machine['cpu']}), torch {record['versions']['torch']}, {record['date']}"


def of_results(script: str, shown: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """A block made from benchmarks/results/SCRIPT.json, which may not be there yet."""

    def made() -> str:
        path = RESULTS / f"{script}.json"
        if not path.exists():
            return f"not measured yet: python benchmarks/{script}.py"
        return shown(json.loads(path.read_text(encoding="utf-8")))

    return made


def errors_on_the_cpu(record: dict[str, Any]) -> str:
    """Predicted against counted, recipe by recipe."""
    lines = [f"{'predicted / counted':<40}{'peak':>16}{'off':>10}"]
    for name, row in record["rows"].items():
        lines.append(f"{name:<40}{row['measured_peak_bytes']:>16,}{row['error_percent']:>+9.4f}%")
    lines.append(f"{record['cases']} recipes, {record['families']} families: median {record['median_error_percent']}%")
    return "\n".join(lines)


OTHERS: dict[str, Callable[[], str]] = {
    "benchmarks/results/probe.json": of_results("probe", probed),
    "benchmarks/results/starter.json": starter_result,
    "benchmarks/results/measured_runs.json": of_results("measured_runs", errors_of),
    "benchmarks/results/measured_runs.json, run by run": of_results("measured_runs", errors_by_run),
    "benchmarks/results/measured_runs.json, step time": of_results("measured_runs", step_times),
    "benchmarks/results/loading_order.json": of_results("loading_order", loading_orders),
    "benchmarks/results/loading_order.json, our own loop": of_results("loading_order", predictable),
    "benchmarks/results/cpu_memory.json": of_results("cpu_memory", errors_on_the_cpu),
    "benchmarks/results/gpu_evidence.json": of_results("gpu_evidence", gpu_report),
    "benchmarks/results/described_cards.json": of_results("described_cards", on_described_cards),
    "benchmarks/results/planner_speed.json": of_results("planner_speed", speed),
}


def will_it_fit() -> str:
    """Some rows of docs/plans.md side by side: method and memory, or why nothing fits."""
    page = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")
    lines = [f"| | {' | '.join(CARDS.values())} |", "|---" * (len(CARDS) + 1) + "|"]
    for model in MODELS:
        section = page.split(f"## {model}\n")[1].split("\n## ")[0]
        plans = dict(re.findall(r"^\| (\S+) \| (.+) \|$", section, re.MULTILINE))
        cells = (plan_in_short(plans[card].split("|")) for card in CARDS)
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def plan_in_short(cells: list[str]) -> str:
    """A line of docs/plans.md as method and memory."""
    method, memory, streamed = (cells[place].strip() for place in (0, 5, 7))
    names = {"lora": "LoRA", "qlora": "QLoRA"}
    if method not in names:
        return "no"
    return f"{names[method]}, {memory}" + (" + RAM" if streamed else "")


def sizes_and_quality() -> str:
    """Some rows of docs/exports.md: size, and perplexity on held-out rows."""
    report = json.loads((RESULTS / "exports.json").read_text(encoding="utf-8"))
    rows = [("base and adapter", "", next(iter(report["exports"].values()))["reference"])]
    for kind, name in EXPORTS.items():
        row = report["exports"][kind]
        rows.append((name, f"{row['bytes'] / 2**20:,.0f} MiB", row["quality"]))
    lines = [f"| {name} | {num_bytes} | {quality['perplexity']:.3f} |" for name, num_bytes, quality in rows]
    return "\n".join(["| | size | perplexity on held-out rows |", "|---|---|---|", *lines])


TABLES: dict[str, Callable[[], str]] = {"docs/plans.md": will_it_fit, "docs/exports.md": sizes_and_quality}


def regenerated(text: str) -> str:
    """A page with every block and table made again."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        made = OTHERS[name]() if name in OTHERS else command(name)
        lines = "\n".join(line.rstrip() for line in made.rstrip().splitlines())
        return f"{match[1]}{lines}\n{match[4]}"

    return TABLE.sub(lambda match: f"{match[1]}{TABLES[match['name']]()}\n", BLOCK.sub(block, text))


def main() -> None:
    stale = []
    texts = [(page, regenerated(page.read_text(encoding="utf-8"))) for page in PAGES]
    for page, new in [*texts, (PICTURE, picture(PICTURED))]:
        if not page.exists() or new != page.read_text(encoding="utf-8"):
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"{', '.join(stale)}: not what the commands print: make readme")


if __name__ == "__main__":
    main()
