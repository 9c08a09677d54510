"""Write docs/catalogue.md: the built-in GPUs, models and presets with their figures, and the documents these come from.

python docs/catalogue.py            writes it
python docs/catalogue.py --check    exits with 1 where it is not what the files in profiles/ say
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from autoft.cli.profiles import scaled
from autoft.profiles.catalogue import built_in
from autoft.profiles.gpu_catalogue import GpuProfile
from autoft.profiles.model_catalogue import ModelProfile
from autoft.profiles.preset_catalogue import Preset

PAGE = Path(__file__).parent / "catalogue.md"
HEAD = """# The catalogue

Made by `python docs/catalogue.py` (`make readme`) from the files in `profiles/`: do not edit.
`autoft profiles show NAME` tells the basis and the source of each figure; `autoft profiles gpus add FILE` keeps one of
your own in `AUTOFT_HOME/profiles`, which adds to these or overrides them.
"""
GPUS = """Throughput is dense, in TFLOP/s (INT8: TOP/s): 16-bit products with 32-bit accumulation, on GeForce cards half
of what is often printed; FP32 without tensor cores. A figure that no document gives is left out. Memory is what
the card is sold with and, where it was found, what the driver reports. Power of a laptop is the most its maker may set.
"""


PRESETS = """Defaults for a purpose: `autoft plan MODEL --preset NAME`. Options and `--set` win over them.
"""


def page() -> str:
    """The whole text of the page."""
    gpus, models = built_in("gpus", GpuProfile), built_in("models", ModelProfile)
    parts = [HEAD, f"## {len(gpus)} GPUs\n{GPUS}"]
    for family, found in families(gpus.values()).items():
        parts.append(f"### {family}\n{table(GPU_COLUMNS, map(gpu_row, found))}")
    parts.append(f"### Where the figures come from\n{sources(gpus.values())}")
    parts.append(f"## {len(models)} models\n{table(MODEL_COLUMNS, map(model_row, models.values()))}")
    presets = built_in("presets", Preset)
    parts.append(f"## {len(presets)} presets\n{PRESETS}")
    for preset in presets.values():
        parts.append(f"### `{preset.name}`: {preset.summary}\n{table(PRESET_COLUMNS, preset_rows(preset))}")
    return "\n".join(parts)


GPU_COLUMNS = (
    *("GPU", "Memory GiB", "driver GiB", "16-bit", "FP32", "TF32", "FP8", "INT8", "GB/s", "PCIe", "NVLink GB/s"),
    *("Power W", "Capability"),
)


def gpu_row(gpu: GpuProfile) -> list[str]:
    return [
        f"`{gpu.name}`",
        f"{gpu.memory_gib.value:g}",
        f"{gpu.total_bytes.value / 2**30:.2f}" if gpu.total_bytes else "",
        *(
            scaled(figure, 1e12)
            for figure in (
                gpu.half_flops_per_s,
                gpu.float32_flops_per_s,
                gpu.tf32_flops_per_s,
                gpu.fp8_flops_per_s,
                gpu.int8_ops_per_s,
            )
        ),
        scaled(gpu.memory_bytes_per_s, 1e9),
        f"{gpu.pcie.generation}.0 x{gpu.pcie.lanes}" if gpu.pcie else "",
        scaled(gpu.nvlink_bytes_per_s, 1e9),
        scaled(gpu.tdp_w, 1),
        ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else "",
    ]


MODEL_COLUMNS = ("Model", "Hub id", "Licence", "Parameters", "Chat template", "Base in", "Revision")


def model_row(model: ModelProfile) -> list[str]:
    return [
        f"`{model.name}`",
        model.hub_id,
        model.licence + (", gated" if model.gated else ""),
        f"{model.parameters:,}" if model.parameters else "",
        model.chat_template or "",
        model.base_dtype or "",
        (model.revision or "")[:7],
    ]


PRESET_COLUMNS = ("Setting", "Value", "Why", "Source")


def preset_rows(preset: Preset) -> list[list[str]]:
    settings = {**preset.settings, **preset.advice}
    return [[name.replace("_", " "), str(s.value), s.reason, s.source] for name, s in settings.items()]


def families(gpus: Iterable[GpuProfile]) -> dict[str, list[GpuProfile]]:
    """Cards by what they are sold as."""
    found: dict[str, list[GpuProfile]] = {
        name: [] for name in ("GeForce", "Laptops", "Professional", "Data center", "AMD", "Memory shared with the CPU")
    }
    for gpu in gpus:
        found[family(gpu)].append(gpu)
    return found


def family(gpu: GpuProfile) -> str:
    if gpu.vendor == "amd":
        return "AMD"
    if gpu.unified_memory:
        return "Memory shared with the CPU"
    if "Laptop" in gpu.product:
        return "Laptops"
    if "GeForce" in gpu.product or "TITAN" in gpu.product:
        return "GeForce"
    return "Professional" if "RTX" in gpu.product else "Data center"


def sources(gpus: Iterable[GpuProfile]) -> str:
    """Every document with the number of figures that it stands behind."""
    figures = [figure for gpu in gpus for figure in (*gpu.figures().values(), gpu.pcie) if figure is not None]
    counted = Counter(figure.source for figure in figures)
    rows = [(str(count), source) for source, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]
    return table(("Figures", "Source"), rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    new = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == new:
        return
    if "--check" in sys.argv:
        sys.exit("docs/catalogue.md is not what the files in profiles/ say: make readme")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
