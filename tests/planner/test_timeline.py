"""The memory timeline and the explanation: nothing but what the estimate was read from, to the byte."""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoft.errors import OutputError
from autoft.planner.explain.figures import explain
from autoft.planner.explain.timeline import BANDS, COLUMNS, Timeline, timeline, to_html, to_svg, write
from autoft.planner.memory.allocator import Allocator
from autoft.planner.memory.recording import Recording, record
from autoft.planner.plan.exact import Answer, make_estimate
from autoft.planner.rehearsal.loop import Phase
from autoft.planner.request import Request
from autoft.planner.tracing.trace import KINDS
from tests.support.machines import NO_GPU as HARDWARE

GIB = 2**30
MODEL = "smollm2-135m"
QUESTIONS = {
    "lora": Request(model=MODEL, gpu="rtx-4090", seq_len=256),
    "qlora, checkpointing, paged": Request(
        model=MODEL,
        gpu="rtx-3060",
        seq_len=256,
        settings=(
            "method=qlora", "gradient_checkpointing=true", "kbit_upcast=true", "optimizer=paged_adamw_8bit",
            "attention=eager", "loss=logits", "rank=256",
        ),
    ),
    "qlora, streamed": Request(
        model=MODEL,
        gpu="rtx-3060",
        seq_len=256,
        settings=(
            "method=qlora", "quant_type=nf4", "double_quant=true", "gradient_checkpointing=true", "streamed_layers=7",
        ),
    ),
    "8-bit optimizer": Request(model=MODEL, gpu="t4", seq_len=256, settings=("optimizer=adamw_8bit", "micro_batch=2")),
    "math attention": Request(
        model=MODEL, gpu="t4", seq_len=1024, settings=("gradient_checkpointing=true",)
    ),
    "cpu": Request(model=MODEL, gpu="cpu", seq_len=128),
}  # fmt: skip


@functools.cache
def look(question: str) -> tuple[Answer, Recording]:
    answer = make_estimate(QUESTIONS[question], HARDWARE)
    return answer, record(answer.rehearsal, answer.estimator.allocator())


@functools.cache
def explained(question: str) -> list:
    answer, recording = look(question)
    return explain(recording, answer)


@pytest.fixture(scope="module", params=QUESTIONS)
def question(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def looked_at(question) -> tuple[Answer, Recording]:
    return look(question)


@pytest.fixture(scope="module")
def drawn() -> Timeline:
    answer, recording = look("lora")
    return timeline(recording, answer, MODEL)


def page_data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_peak_of_the_page_is_the_estimate_s(looked_at) -> None:
    answer, recording = looked_at
    estimate = answer.estimate
    page = to_html(timeline(recording, answer, MODEL))
    data = page_data(page)
    x, where, reserved, *living = data["points"][data["peak"]]
    assert {name: num for name, num in zip(data["bands"], living, strict=True) if num} == {
        name: num for name, num in estimate.components.items() if num
    }
    assert sum(living) == estimate.peak_allocated_bytes
    assert data["peak_reserved_bytes"] == estimate.peak_reserved_bytes >= reserved
    assert data["where"][where].startswith("steady step")
    assert 0 <= x <= 2000
    for name, num in estimate.components.items():
        if num:
            assert f"{name.replace('_', ' ')}</th>" in page
            assert f"<td>{num:,}</td>" in page


def test_a_recording_has_the_peaks_of_the_estimate(looked_at) -> None:
    answer, recording = looked_at
    estimate = answer.estimate
    assert recording.components(recording.steady_peak()) == estimate.components
    steady = slice(recording.starts[recording.rehearsal.steady], recording.starts[recording.end])
    assert int(recording.reserved[steady].max()) == estimate.peak_reserved_bytes
    assert int(recording.reserved.max()) + answer.target.device_bytes(0) == estimate.device_bytes
    load = recording.peak([n for n in range(recording.rehearsal.steady) if recording.group(n) == "load"])
    assert int(recording.allocated[load]) == estimate.phases["load"]


def test_the_figures_of_an_explanation_are_the_estimate_s_and_its_parts_add_up(looked_at, question) -> None:
    answer, _ = looked_at
    estimate = answer.estimate
    figures = {figure.figure: figure for figure in explained(question)}
    expected = {
        "peak_allocated_bytes": estimate.peak_allocated_bytes,
        "peak_reserved_bytes": estimate.peak_reserved_bytes,
        "device_bytes": estimate.device_bytes,
        **{f"components.{name}": num for name, num in estimate.components.items()},
        **{f"phases.{name}": num for name, num in estimate.phases.items()},
        **{f"host_bytes.{name}": num for name, num in estimate.host_bytes.items()},
        **{f"disk_bytes.{name}": num for name, num in estimate.disk_bytes.items()},
    }
    assert {name: figure.bytes for name, figure in figures.items()} == expected
    for figure in figures.values():
        assert sum(part.bytes for part in figure.parts) == figure.bytes, figure
        assert all(part.bytes >= 0 for part in figure.parts), figure
        assert "not told apart" not in {part.what for part in figure.parts}


def test_an_explanation_names_parameters_rank_states_and_rules() -> None:
    answer, _ = look("lora")
    figures = explained("lora")
    said = {f.figure: " ".join(f"{p.what} {p.source}" for p in f.parts) for f in figures}
    # 30 layers, 7 linear layers each; SmolLM2-135M has 134,515,008 weights; AdamW keeps two states a weight
    assert "134,515,008 elements x 2 bytes (bfloat16)" in said["components.weights"]
    assert "rank 16 on 210 layers" in said["components.adapter"]
    assert f"2 for each of {answer.estimate.trainable_params:,} trained weights" in said["components.optimizer"]
    assert "2 x 8.125 MiB" in said["components.workspaces"]
    assert "CublasHandlePool.cpp" in said["components.workspaces"]
    assert "layers 0-29" in said["components.activations"]
    assert "assumed" in said["device_bytes"]
    assert (
        "by flash attention, forward of layers 0-29 aten .../transformers/cuda/flash_attn/flash_api.cpp"
        in (said["components.activations"])
    )
    assert said["phases.evaluation"].startswith("weights")


def test_what_a_kernel_takes_beside_its_result_names_its_rule() -> None:
    figures = explained("math attention")
    scratch = {p.source for f in figures for p in f.parts if "inside the kernel" in p.what}
    assert scratch == {"aten/native/cuda/SoftMax.cu, softmax_backward_cuda_out: `Tensor tmp = grad * output`"}
    answer, _ = look("qlora, checkpointing, paged")
    figures = explained("qlora, checkpointing, paged")
    paged = next(p for f in figures if f.figure == "components.optimizer" for p in f.parts if "paged" in p.what)
    assert f"{answer.rehearsal.managed_bytes:,} bytes" in paged.what


def test_no_local_peak_is_lost(drawn) -> None:
    recording = drawn.recording
    for phase in range(len(recording.starts) - 1):
        start, end = recording.starts[phase], recording.starts[phase + 1]
        mine = np.array([event for event in drawn.events if start <= event < end])
        width = -(-(end - start) // 30)  # no phase has fewer columns than this
        for event in range(start, end):
            near = mine[np.abs(mine - event) <= width]
            assert recording.allocated[near].max() >= recording.allocated[event]


def test_a_million_events_make_a_small_page() -> None:
    rng = np.random.default_rng(0)
    sizes = (rng.integers(1, 2**24, 125_000) * 4).tolist()
    phases, key = [], 0
    for name in ("load", "forward", "backward", "optimizer"):
        made = [(key + n, size) for n, size in enumerate(sizes)]
        key += len(made)
        # half of them are freed at once, half at the end
        events = [e for (k, s) in made[::2] for e in ((k, s), (k, -s))] + made[1::2] + [(k, -s) for k, s in made[1::2]]
        phases.append(Phase(name, np.array(events), marks=[(n, "forward", n) for n in range(0, len(events), 100)]))
    kinds = np.arange(key) % len(KINDS)
    answer, _ = look("lora")
    many = replace(answer.rehearsal, phases=phases, kinds=kinds, steady=1, makers=[], weights=[], evaluation={})
    recording = record(many, Allocator(expandable_segments=True))
    assert len(recording.keys) == 1_000_000
    page = to_html(timeline(recording, replace(answer, rehearsal=many), MODEL))
    assert len(page.encode()) < 500_000
    assert len(page_data(page)["points"]) <= 4 * COLUMNS


def test_a_page_fetches_nothing_and_a_name_cannot_break_it(drawn) -> None:
    evil = '</title></script><script>alert("x")</script>&'
    page = to_html(replace(drawn, title=evil, subtitle=evil))
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?://", page)
    assert page.count("<script") == 2
    assert html.escape(evil) in page
    assert ET.fromstring(to_svg(replace(drawn, title=evil, subtitle=evil))).tag.endswith("svg")


def test_a_drawing_holds_the_bytes_at_the_peak(drawn) -> None:
    words = {element.text for element in ET.fromstring(to_svg(drawn)).iter() if element.tag.endswith("}text")}
    for name, num in drawn.at_peak().items():
        assert {name.replace("_", " "), f"{num:,} bytes"} <= words


def test_what_cannot_be_written_is_an_error_of_the_output(drawn, tmp_path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OutputError, match="Not a directory"):
        write(file / "trace.html", drawn)
    write(tmp_path / "trace.HTML", drawn)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "trace.HTML"]


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Boxes of all words, in each frame: none may cut another, none may leave the page. Then the pointer asks for a moment.
LOOK = """<script>
onload = () => setTimeout(() => {
  const said = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, wide = frame.clientWidth;
    const boxes = [...page.querySelectorAll("text, h1, p, td, th, figcaption")].filter(e => e.textContent.trim())
      .map(e => [e.textContent.trim(), (() => { const r = page.createRange(); r.selectNodeContents(e);
        return e.tagName == "text" ? e.getBoundingClientRect() : r.getBoundingClientRect() })()])
      .filter(([_, b]) => b.width);
    for (const [i, [a, x]] of boxes.entries()) {
      if (x.left < 0 || x.right > wide) said.push(`${wide}: "${a}" leaves the page`);
      for (const [b, y] of boxes.slice(i + 1))
        if (x.left < y.right && y.left < x.right && x.top + 1 < y.bottom && y.top + 1 < x.bottom)
          said.push(`${wide}: "${a}" on "${b}"`);
    }
    if (page.documentElement.scrollWidth > wide) said.push(`${wide}: wider than the page`);
    const plot = page.getElementById("plot"), box = plot.getBoundingClientRect();
    plot.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width - 2, clientY: box.top + 9}));
    said.push(`${wide}: ${boxes.length > 30} ${page.getElementById("at").textContent.split(", ").slice(0, 2)}`);
  }
  document.body.innerHTML = "<pre>" + said.join("\\n") + "</pre>";
}, 200);
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_in_a_browser_no_words_overlap_and_the_pointer_is_answered(drawn, tmp_path: Path) -> None:
    widths = (400, 600, 761, 1000, 1281, 1600)
    frames = "".join(
        f'<iframe srcdoc="{html.escape(to_html(drawn))}" style="width:{wide}px;height:900px;border:0"></iframe>'
        for wide in widths
    )
    (tmp_path / "look.html").write_text(f"<!doctype html><body>{frames}{LOOK}</body>")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
    done = subprocess.run(
        [
            str(BROWSER), *options, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
            "--dump-dom", (tmp_path / "look.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    assert html.unescape(found[1]).splitlines() == [f"{wide}: true Here: evaluation,prompt" for wide in widths]


def test_bands_are_the_components() -> None:
    assert (*KINDS, "rounding") == BANDS
