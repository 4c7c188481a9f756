"use strict";
const root = document.documentElement;
const isNarrow = matchMedia("(max-width: 40rem)");
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
const figures = [...document.querySelectorAll(".figure")];

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches;
}

// Plotly does not read CSS variables: resolve them on an element, in the current theme.
function colour(name) {
  themeButton.style.outlineColor = `var(--${name})`;
  const value = getComputedStyle(themeButton).outlineColor;
  themeButton.style.outlineColor = "";
  return value;
}

function template() {
  const [ink, muted, rule, raised, paper] = ["ink", "muted", "rule", "raised", "paper"].map(colour);
  const axis = { gridcolor: rule, linecolor: rule, zerolinecolor: rule, tickcolor: rule, automargin: true };
  return { layout: {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: 13, family: getComputedStyle(document.body).fontFamily },
    xaxis: axis, yaxis: axis,
    hoverlabel: { bgcolor: raised, bordercolor: rule, font: { color: ink, size: 12 } },
    annotationdefaults: { bgcolor: paper },
    shapedefaults: { line: { color: ink }, label: { font: { color: muted } } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink },
  } };
}

function paint() {
  themeButton.textContent = isDark() ? "Light theme" : "Dark theme";
  for (const figure of figures) {
    if (figure.layout) Plotly.relayout(figure, { template: template() });
  }
}

function show(figure, view) {
  Plotly.update(figure, view.traces, view.layout);
  document.getElementById(`${figure.id}-note`).textContent = view.note;
}

function read(name) {
  return JSON.parse(document.getElementById(`${name}-data`).textContent);
}

// On a phone the axes of parallel coordinates are rows: x and y change places.
function turned(payload) {
  if (!payload.narrow || !isNarrow.matches) return payload;
  const data = payload.data.map((trace) => ({ ...trace, x: trace.y, y: trace.x }));
  return { ...payload, data, layout: payload.narrow };
}

function draw(figure) {
  const { data, layout, views, ranges } = turned(read(figure.id));
  Plotly.newPlot(figure, data, { ...layout, template: template() }, {
    responsive: true, displaylogo: false,
    showSendToCloud: false, plotlyServerURL: "", // on by default since plotly.js 4
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  });
  figure.on("plotly_click", ({ points }) => detail(points[0].customdata));
  const buttons = views ? [...document.querySelectorAll("[data-axis]")] : [];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      show(figure, views[button.dataset.axis]);
    });
  }
  const whole = views && document.getElementById("whole");
  whole?.addEventListener("click", () => {
    const isOn = whole.getAttribute("aria-pressed") !== "true";
    whole.setAttribute("aria-pressed", String(isOn));
    Plotly.relayout(figure, { "yaxis.range": isOn ? ranges.whole : ranges.close });
  });
}

// Draw a figure when it comes near the screen, so that the first one appears sooner.
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    if (!target.layout) draw(target);
  }
}, { rootMargin: "600px" });
for (const figure of figures) near.observe(figure);

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch { // no clipboard here: select the command instead
      getSelection().selectAllChildren(code);
    }
  });
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
  for (const figure of figures) if (!figure.layout) draw(figure);
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

const STEP = 200; // rows made at a time; scrolling makes more
const table = document.querySelector(".sortable");
const dialog = document.getElementById("detail");
const trials = table ? read("trials") : { columns: [], trials: [] };
const heads = table ? [...table.tHead.rows[0].cells] : [];
const choices = trials.columns.length; // the cell after the columns holds the configuration of the trial
const shown = document.getElementById("shown");
const counted = shown?.textContent; // the text for all rows
let order = trials.trials;

function detail(number) {
  const trial = trials.trials.find((cells) => cells[0] === String(number));
  if (!trial) return;
  dialog.querySelector("h2").textContent = `Trial ${number}`;
  const cells = trials.columns.map((title, i) => [title, trial[i]]).slice(1);
  const items = [...cells, ...Object.entries(trial[choices])].filter(([, value]) => value !== "");
  dialog.querySelector("dl").replaceChildren(...items.flatMap(([name, value]) => {
    const pair = [document.createElement("dt"), document.createElement("dd")];
    pair.forEach((element, i) => { element.textContent = [name, value][i]; });
    return pair;
  }));
  if (!dialog.open) dialog.showModal();
}

function row(cells) {
  const made = document.createElement("tr");
  if (cells[0] === String(trials.best)) made.className = "best";
  heads.forEach((head, i) => {
    const cell = made.insertCell();
    if (head.classList.contains("n")) cell.className = "n";
    if (i > 0) { cell.textContent = cells[i]; return; }
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cells[i];
    button.setAttribute("aria-label", `configuration of trial ${cells[i]}`);
    cell.append(button);
  });
  return made;
}

function more(count) {
  const body = table.tBodies[0];
  body.append(...order.slice(body.rows.length, body.rows.length + count).map(row));
}

function restart() {
  table.tBodies[0].replaceChildren();
  more(STEP);
  table.parentElement.scrollTop = 0;
  const all = trials.trials.length;
  shown.textContent = order.length === all ? counted : `${order.length} of ${all} rows`;
}

function sort(index, direction) {
  const sign = direction === "ascending" ? 1 : -1;
  const isNumber = heads[index].classList.contains("n");
  order = [...order].sort((a, b) => {
    const [left, right] = [a[index], b[index]];
    const swapped = left !== "" && right !== "" ? sign : 1; // missing values stay last
    return swapped * compare(left, right, isNumber);
  });
}

function filter() {
  const wanted = document.getElementById("filter").value.toLowerCase().split(/\s+/);
  order = trials.trials.filter((cells) => {
    const chosen = Object.entries(cells[choices]).map((pair) => pair.join("="));
    const text = [...cells.slice(0, choices), ...chosen].join(" ").toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
  const sorted = heads.findIndex((head) => head.ariaSort);
  if (sorted >= 0) sort(sorted, heads[sorted].ariaSort);
  restart();
}

if (table) {
  table.tHead.addEventListener("click", (event) => {
    const header = event.target.closest("button")?.parentElement;
    if (!header) return;
    const direction = header.ariaSort === "ascending" ? "descending" : "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    sort(header.cellIndex, direction);
    restart();
  });
  table.tBodies[0].addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) detail(button.textContent);
  });
  table.parentElement.addEventListener("scroll", ({ target }) => {
    if (target.scrollTop + 2 * target.clientHeight > target.scrollHeight) more(STEP);
  });
  document.getElementById("filter").addEventListener("input", filter);
  dialog.querySelector("button").addEventListener("click", () => dialog.close());
  restart();
}
