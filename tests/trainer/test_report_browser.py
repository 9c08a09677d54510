"""The report in a real browser: plots drawn, nothing logged, nothing wider than a phone, light and dark."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoft.trainer.report import report_html
from tests.trainer.results import HOSTILE, LESS, result_of

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
# The pages stand in frames as wide as a phone and as a desk; what is asked of each comes out as the page's only text.
PROBE = """<!DOCTYPE html><title>probe</title><body><script>
const pages = PAGES;
const seen = [];
const look = (frame, name, width) => {
  const page = frame.contentDocument, all = (what) => [...page.querySelectorAll(what)];
  const draws = (path) => frame.contentWindow.getComputedStyle(path).stroke !== "none" && path.getBoundingClientRect();
  const plots = all(".plot").map((plot) => {
    const box = plot.getBoundingClientRect();
    const lines = [...plot.querySelectorAll(".line")].map((line) => draws(line) && line.getPointAtLength(0));
    const reading = plot.closest(".chart").querySelector(".reading"), before = reading.textContent;
    const where = { clientX: box.left + box.width, clientY: box.top + 5 };
    plot.dispatchEvent(new frame.contentWindow.PointerEvent("pointermove", where));
    return { height: box.height, width: box.width, lines: lines.length,
             inside: lines.every((p) => p && p.x >= 0 && p.x <= 1000 && p.y >= 0 && p.y <= 1000),
             lengths: [...plot.querySelectorAll(".line:not(.dots)")].map((line) => line.getTotalLength()),
             hovered: reading.textContent !== before && reading.textContent };
  });
  seen.push({ name, width, plots, scrolls: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    ground: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    clipped: all("td, th, dd, dt, h1, h2, .legend").filter((e) => e.scrollWidth > e.clientWidth + 1).length });
};
let waiting = 2 * pages.length;
for (const name of pages) for (const width of [360, 1280]) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 800; frame.src = name;
  frame.onload = () => {
    look(frame, name, width);
    if (--waiting > 0) return;
    const told = document.createElement("pre");
    told.textContent = JSON.stringify(seen);
    document.body.replaceChildren(told);
  };
  document.body.append(frame);
}
</script></body>"""


def browser() -> str:
    """The browser of the environment variable CHROME, or the first that is found."""
    for name in (os.environ.get("CHROME", ""), *BROWSERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    pytest.skip("no Chromium here: install one, or name it in CHROME")


def opened(folder: Path, *words: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What the probe saw of each page at each width, and what the browser's console logged."""
    command = [
        browser(),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--enable-logging=stderr", "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"),
        *("--virtual-time-budget=20000", "--host-resolver-rules=MAP * ~NOTFOUND", *words),
        *("--dump-dom", (folder / "probe.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    told = re.search(r"<pre>(.*)</pre>", done.stdout, re.DOTALL)
    assert told is not None, done.stderr
    logged = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(told.group(1))), logged


def test_the_plots_are_drawn_and_nothing_is_logged_on_a_phone_and_on_a_desk_in_light_and_dark(tmp_path) -> None:
    rich, long, short = result_of(300), result_of(20_000), result_of(1)
    sample = replace(rich.samples[0], prompt=HOSTILE, after="w" * 3000)
    pages = {
        "rich.html": report_html(replace(rich, samples=(sample,), base="o/" + "m" * 90), HOSTILE),
        "long.html": report_html(long, "long"),
        "short.html": report_html(replace(short, **LESS["no prediction"]), "short"),
    }
    for name, text in pages.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "probe.html").write_text(PROBE.replace("PAGES", json.dumps(list(pages))), encoding="utf-8")
    for scheme, ground in (("0", "rgb(20, 23, 27)"), ("1", "rgb(255, 255, 255)")):
        seen, logged = opened(tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
        assert logged == []
        assert sorted((page["name"], page["width"]) for page in seen) == sorted(
            (name, width) for name in pages for width in (360, 1280)
        )
        for page in seen:
            assert page["ground"] == ground
            assert page["scrolls"] == 0, page
            assert page["clipped"] == 0, page
            assert len(page["plots"]) == 2
            for plot in page["plots"]:
                assert plot["height"] > 150
                assert plot["width"] > 0.6 * page["width"] - 50
                assert plot["inside"], plot
                assert plot["lines"] >= 2
                assert all(length > 500 for length in plot["lengths"]), plot
            steps = {"rich.html": "300", "long.html": "20,000", "short.html": "1"}[page["name"]]
            loss, memory = (plot["hovered"] for plot in page["plots"])
            assert re.fullmatch(rf"Step {steps}: \d\.\d+", loss)
            assert re.fullmatch(rf"Step {steps}: \d\.00 GiB", memory)
