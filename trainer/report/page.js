"use strict";
// Figures under the pointer, and details opened for print, but for the figures that a curve shows. Without it the page says the same.
for (const chart of document.querySelectorAll(".chart")) {
  const points = chart.dataset.points.split(";").map((point) => point.split(" ").map(Number));
  const last = Number(chart.dataset.last);
  const plot = chart.querySelector(".plot");
  const cursor = chart.querySelector(".cursor");
  const reading = chart.querySelector(".reading");
  const told = reading.textContent;
  let at = points.length - 1;

  const text = (value) => {
    if (chart.dataset.bytes !== "1") return value.toPrecision(4);
    const gib = value / 2 ** 30;
    return gib >= 1 ? gib.toFixed(2) + " GiB" : (value / 2 ** 20).toFixed(1) + " MiB";
  };
  const show = (place) => {
    at = Math.min(Math.max(place, 0), points.length - 1);
    const [step, value] = points[at];
    cursor.style.left = (100 * step) / last + "%";
    cursor.hidden = false;
    reading.textContent = "Step " + step.toLocaleString("en") + ": " + text(value);
  };
  const hide = () => {
    cursor.hidden = true;
    reading.textContent = told;
  };
  const follow = (event) => {
    const box = plot.getBoundingClientRect();
    const step = (last * (event.clientX - box.left)) / box.width;
    const apart = points.map((point) => Math.abs(point[0] - step));
    show(apart.indexOf(Math.min(...apart)));
  };
  plot.tabIndex = 0;
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", () => show(at));
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -points.length, End: points.length }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(at + move);
  });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("section > details")) details.open = true;
});
