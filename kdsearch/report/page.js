"use strict";
const root = document.documentElement;
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
const figures = [...document.querySelectorAll(".figure")];

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches;
}

// Plotly knows no CSS variables: resolve them on an element, in the theme that is on.
function colour(name) {
  themeButton.style.outlineColor = `var(--${name})`;
  const value = getComputedStyle(themeButton).outlineColor;
  themeButton.style.outlineColor = "";
  return value;
}

function template() {
  const [ink, muted, rule, raised] = ["ink", "muted", "rule", "raised"].map(colour);
  const axis = { gridcolor: rule, linecolor: rule, zerolinecolor: rule, tickcolor: rule, automargin: true };
  return { layout: {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: 13, family: getComputedStyle(document.body).fontFamily },
    xaxis: axis, yaxis: axis,
    hoverlabel: { bgcolor: raised, bordercolor: rule, font: { color: ink, size: 12 } },
    shapedefaults: { line: { color: ink }, label: { font: { color: muted } } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink },
  } };
}

function paint() {
  themeButton.textContent = isDark() ? "Light theme" : "Dark theme";
  for (const figure of figures) Plotly.relayout(figure, { template: template() });
}

function show(figure, view) {
  Plotly.update(figure, view.traces, view.layout);
  document.getElementById(`${figure.id}-note`).textContent = view.note;
}

for (const figure of figures) {
  const { data, layout, views } = JSON.parse(document.getElementById(`${figure.id}-data`).textContent);
  Plotly.newPlot(figure, data, { ...layout, template: template() }, {
    responsive: true, displaylogo: false,
    showSendToCloud: false, plotlyServerURL: "", // on by default since plotly.js 4
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  });
  const buttons = views ? [...document.querySelectorAll(".choice button")] : [];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      show(figure, views[button.dataset.axis]);
    });
  }
}

themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  paint();
});
systemDark.addEventListener("change", paint);
paint();

let screenTheme;
addEventListener("beforeprint", () => {
  screenTheme = root.dataset.theme;
  root.dataset.theme = "light";
  paint();
});
addEventListener("afterprint", () => {
  if (screenTheme) root.dataset.theme = screenTheme;
  else delete root.dataset.theme;
  paint();
});

function compare(a, b, isNumber) {
  if (a === "" || b === "") return (a === "") - (b === "");
  return isNumber ? Number(a.replaceAll(",", "")) - Number(b.replaceAll(",", "")) : a.localeCompare(b);
}

for (const table of document.querySelectorAll(".sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const header = event.target.closest("button")?.parentElement;
    if (!header) return;
    const order = header.ariaSort === "ascending" ? "descending" : "ascending";
    const sign = order === "ascending" ? 1 : -1;
    const text = (row) => row.cells[header.cellIndex].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [left, right] = [text(a), text(b)];
      const swapped = left !== "" && right !== "" ? sign : 1; // what is missing stays last
      return swapped * compare(left, right, header.classList.contains("n"));
    });
    table.tBodies[0].append(...rows);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
  });
}
