"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function themed(layout) {
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true };
  return {
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
    margin: { l: 55, r: 20, t: 45, b: 85, ...layout.margin },
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 },
    paper_bgcolor: colour("--card"),
    plot_bgcolor: colour("--card"),
    hoverlabel: { bgcolor: colour("--back"), font: { color: colour("--ink") } },
    legend: { orientation: "h", yref: "container", y: 0.01, yanchor: "bottom" },
  };
}

function draw() {
  for (const [name, { data, layout }] of Object.entries(figures)) {
    Plotly.react(name, data, themed(layout), { responsive: true, displayModeBar: false });
  }
}
draw();
dark.addEventListener("change", draw);
function print(printed) {
  document.documentElement.classList.toggle("printed", printed);
  if (printed) document.querySelectorAll("details").forEach(item => { item.open = true; });
  draw();
}
addEventListener("beforeprint", () => print(true));
addEventListener("afterprint", () => print(false));

// Keep a tooltip inside the window; Escape closes it until it is looked at again.
for (const check of document.querySelectorAll(".check")) {
  const shift = () => {
    check.classList.remove("closed");
    const tip = check.querySelector(".tip");
    tip.style.marginLeft = 0;
    tip.style.marginLeft = Math.min(0, innerWidth - 16 - tip.getBoundingClientRect().right) + "px";
  };
  check.addEventListener("mouseenter", shift);
  check.addEventListener("focusin", shift);
}
addEventListener("keydown", ({ key }) => {
  if (key === "Escape") document.querySelectorAll(".check").forEach(check => check.classList.add("closed"));
});

document.getElementById("search")?.on("plotly_click", ({ points }) => {
  const row = document.getElementById("trial-" + points[0].customdata);
  document.querySelectorAll("tr.chosen").forEach(other => other.classList.remove("chosen"));
  row.classList.add("chosen");
  row.scrollIntoView({ block: "center" });
  row.focus({ preventScroll: true });
});

for (const button of document.querySelectorAll(".sortable th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const value = row => row.cells[head.cellIndex].dataset.value;
    const compare = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
      : (ascending ? 1 : -1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
  });
}
