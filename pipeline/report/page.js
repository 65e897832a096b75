// The script of the report's page: charts, a filter by curve, tables that sort and copy, and the cells of every number.
// Without it, the page shows pictures, tables, and links to the rows of the curves. It is one file of more than 400
// lines because its parts share the filter and the data, and the page's policy names each script by its hash.
(() => {
"use strict";

const behind = JSON.parse(document.getElementById("behind").textContent);
const curves = new Map(behind.curves), models = new Map(behind.models), metrics = new Map(behind.metrics);
const meanings = {curves: new Map(behind.series), models: curvesByModel()};
const hidden = new Set();  // curves that the filter hides
const figures = [];  // {element, specs, muted, views, drawn} for each chart

function curvesByModel() {
  const found = new Map();
  for (const [name, own] of curves) {
    if (own.model) found.set(own.model, [...(found.get(own.model) ?? []), name]);
  }
  return found;
}

// An element with attributes and children. Text never becomes markup.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function button(text, action, attributes = {}) {
  const element = make("button", {type: "button", ...attributes}, text);
  element.addEventListener("click", () => action(element));
  return element;
}

const digits = (value) => value === null ? "" : String(Number(value.toPrecision(6)));

// ---- charts

const SHAPES = {
  "circle": "M-0.9,0A0.9,0.9 0 1,1 0.9,0A0.9,0.9 0 1,1 -0.9,0Z",
  "square": "M-0.8,-0.8H0.8V0.8H-0.8Z",
  "diamond": "M0,-1L0.85,0L0,1L-0.85,0Z",
  "cross": "M-0.35,-0.9H0.35V-0.35H0.9V0.35H0.35V0.9H-0.35V0.35H-0.9V-0.35H-0.35Z",
  "triangle-up": "M0,-0.9L0.9,0.8H-0.9Z",
  "triangle-down": "M0,0.9L0.9,-0.8H-0.9Z",
  "triangle-left": "M-0.9,0L0.8,-0.9V0.9Z",
  "triangle-right": "M0.9,0L-0.8,-0.9V0.9Z",
};
// Log levels of the charts' library. A chart that the filter has emptied logs no warnings.
const ERRORS = 1, WARNINGS = 2;
const darkness = matchMedia("(prefers-color-scheme: dark)");
const tip = make("div", {id: "tip", role: "status"});
let library;

// The charts' library runs when the first chart comes near, so that the page is readable at once.
function charts() {
  if (library === undefined) {
    document.head.append(make("script", {}, document.getElementById("charts").textContent));
    library = window.vegaEmbed ?? null;
  }
  return library;
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = ["--text", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = {labelColor: text, titleColor: text, gridColor: line, domainColor: line, tickColor: line};
  return {
    background: null,
    font: "system-ui, sans-serif",
    axis: {...axis, labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal", titleLimit: 330, titlePadding: 8},
    title: {color: text, fontSize: 13, fontWeight: 600},
    view: {stroke: null},
  };
}

function prepare(element) {
  const spec = JSON.parse(element.querySelector("script.chart").textContent);
  const shared = {...spec};
  delete shared.hconcat;
  const specs = (spec.hconcat ?? [spec]).map((part) => ({...shared, ...part}));
  for (const {encoding} of specs) encoding.color.legend = null;  // the page has its own legend below
  const figure = {element, specs, muted: new Set(), views: [], drawn: null, done: Promise.resolve(), meaning: spec.usermeta ?? {}};
  figure.ratio = specs.length > 1 ? 0.72 : 0.56;
  if (figure.meaning.series === "curves" || figure.meaning.note) element.classList.add("opens");
  figures.push(figure);
  return figure;
}

function visible(figure, point) {
  if (figure.muted.has(point.series)) return false;
  const own = meant(figure, point);
  return !own.length || own.some((name) => !hidden.has(name));
}

// The curves of a point in a chart.
function meant(figure, point) {
  const named = figure.meaning.note && /^([A-Za-z0-9_]{1,60}) \(\d+\)$/.exec(point.note ?? "");
  if (named) return curves.has(named[1]) ? [named[1]] : [];
  return meanings[figure.meaning.series]?.get(point.series) ?? [];
}

async function draw(figure) {
  const embed = charts();
  if (!embed) return;
  figure.views.forEach((view) => view.finalize());
  const panels = figure.specs.map(() => make("div", {class: "plot"}));
  const drawn = make("div", {class: "drawn"}, make("div", {class: "plots"}, ...panels), legend(figure));
  figure.drawn?.remove();
  figure.element.prepend(drawn);
  figure.drawn = drawn;
  figure.element.classList.add("live");
  figure.panels = panels;
  const results = await Promise.all(figure.specs.map((spec, i) => {
    const width = panels[i].clientWidth || 600, values = left(figure, i);
    const shown = {
      ...spec, width: "container", height: Math.round(Math.min(380, Math.max(230, width * figure.ratio))),
      autosize: {type: "fit-x", contains: "padding"},
      data: {...spec.data, values},
    };
    return embed(panels[i], shown, {
      ast: true, actions: false, defaultStyle: false, renderer: "svg", mode: "vega-lite", config: theme(), tooltip: hover,
      logLevel: values.length < spec.data.values.length ? ERRORS : WARNINGS,
    });
  }));
  figure.views = results.map((result) => result.view);
  for (const view of figure.views) {
    view.addEventListener("click", (event, item) => item?.datum && openPoint(figure, item.datum));
  }
  figure.element.dataset.ready = "";
}

// Actions on a chart run one after the other. If the charts' library fails, the picture stays.
function show(figure) {
  figure.done = figure.done.then(() => draw(figure)).catch((error) => {
    figure.element.classList.remove("live");
    figure.drawn?.remove();
    console.error(error);
  });
}

function refresh(figure) {
  figure.done = figure.done.then(() => figure.views.forEach((view, i) => {
    view.logLevel(ERRORS).data("points", left(figure, i)).runAsync();
  }));
}

// The visible points of a panel; a panel with nothing but levels is marked as empty.
function left(figure, i) {
  const points = figure.specs[i].data.values.filter((point) => visible(figure, point));
  figure.panels[i].classList.toggle("empty", points.every((point) => point.level));
  return points;
}

// The series of a chart with their styles; a click hides one in this chart.
function legend(figure) {
  const box = make("div", {class: "legend"});
  const seen = new Set();
  for (const spec of figure.specs) {
    const {domain, range} = spec.encoding.color.scale;
    const shape = spec.layer.map((layer) => layer.mark.opacity !== 0 && layer.encoding.shape?.scale).find(Boolean);
    domain.forEach((label, i) => {
      if (seen.has(label)) return;
      seen.add(label);
      const points = spec.data.values.filter((point) => point.series === label);
      const item = button("", () => {
        figure.muted.has(label) ? figure.muted.delete(label) : figure.muted.add(label);
        item.setAttribute("aria-pressed", String(!figure.muted.has(label)));
        refresh(figure);
      }, {"aria-pressed": String(!figure.muted.has(label))});
      item.append(swatch(range[i], shape?.range[shape.domain.indexOf(label)], points), make("span", {}, label));
      box.append(item);
    });
  }
  return box;
}

function swatch(colour, shape, points) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  picture.setAttribute("viewBox", "-2 -1 4 2");
  picture.setAttribute("aria-hidden", "true");
  const add = (tag, attributes) => {
    const part = document.createElementNS(space, tag);
    for (const [key, value] of Object.entries(attributes)) part.setAttribute(key, value);
    picture.append(part);
  };
  const level = points.every((point) => point.level), dashed = level || points.every((point) => point.dashed);
  if (!points.every((point) => point.alone)) {
    add("path", {d: "M-2,0H2", stroke: colour, "stroke-width": 0.3, ...(dashed ? {"stroke-dasharray": "0.7 0.4"} : {})});
  }
  if (!level && shape) add("path", {d: SHAPES[shape] ?? shape, fill: colour, transform: "scale(0.85)"});
  return picture;
}

// The tooltip, as literal text.
function hover(handler, event, item, value) {
  tip.replaceChildren();
  if (value === null || value === undefined || value === "") {
    tip.classList.remove("shown");
    return;
  }
  const {series, ...rest} = value;
  tip.append(make("strong", {}, series ?? ""));
  const list = make("dl");
  for (const [key, text] of Object.entries(rest)) {
    if (text !== "null" && text !== "undefined" && text !== "NaN") list.append(make("dt", {}, key), make("dd", {}, String(text)));
  }
  tip.append(list);
  tip.classList.add("shown");
  const {width, height} = tip.getBoundingClientRect();
  const left = event.clientX + 14 + width > innerWidth ? Math.max(4, event.clientX - 14 - width) : event.clientX + 14;
  const top = event.clientY + 14 + height > innerHeight ? Math.max(4, event.clientY - 14 - height) : event.clientY + 14;
  tip.style.left = `${left}px`;
  tip.style.top = `${top}px`;
}

function openPoint(figure, point) {
  const own = meant(figure, point);
  if (own.length !== 1 || point.level) return;
  const noted = figure.meaning.note && /\((\d+)\)$/.exec(point.note ?? "");
  const nfe = noted ? noted[1] : figure.meaning.series === "curves" ? point.x : null;
  if (nfe !== null) openCell(`${own[0]}/${nfe}/${behind.headline}`);
}

function startCharts() {
  const elements = [...document.querySelectorAll("figure:has(script.chart)")];
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      show(prepare(entry.target));
    }
  }, {rootMargin: "400px"});
  elements.forEach((element) => watcher.observe(element));
  darkness.addEventListener("change", () => figures.forEach(show));
}

// ---- the filter

function startFilter() {
  if (curves.size < 2) return;
  const boxes = new Map();
  const count = make("summary");
  const list = make("div", {class: "names"});
  for (const [name, own] of curves) {
    const box = make("input", {type: "checkbox"});
    box.checked = true;
    box.addEventListener("change", apply);
    boxes.set(name, box);
    const called = own.label === name ? [] : [make("small", {}, own.label)];
    list.append(make("label", {"data-name": name}, box, make("span", {}, name), ...called));
  }
  const search = make("input", {type: "search", placeholder: "find a curve", "aria-label": "Find a curve"});
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const label of list.children) label.hidden = !label.textContent.toLowerCase().includes(wanted);
  });
  const set = (which) => {
    for (const [name, box] of boxes) box.checked = which(name);
    apply();
  };
  const found = (name) => !list.querySelector(`[data-name="${name}"]`).hidden;
  const choices = make("div", {class: "choices"},
    button("all", () => set(() => true)),
    button("none", () => set(() => false)),
    button("methods", () => set((name) => curves.get(name).method)),
    button("only these", () => set(found), {title: "Show only the curves that match the search"}),
    search);
  const control = make("details", {class: "filter", id: "filter"}, count, choices, list);
  const heading = document.querySelector("main h1");
  heading ? heading.after(control) : document.querySelector("main").prepend(control);
  const rows = [...document.querySelectorAll("tr[data-curves]")].map((row) => [row, row.dataset.curves.split(" ")]);

  function apply() {
    hidden.clear();
    for (const [name, box] of boxes) if (!box.checked) hidden.add(name);
    count.textContent = `Curves shown: ${hidden.size ? `${boxes.size - hidden.size} of` : "all"} ${boxes.size}`;
    for (const [row, own] of rows) row.hidden = own.every((name) => hidden.has(name));
    figures.forEach(refresh);
  }
  apply();
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") control.open = false;
  });
  document.addEventListener("click", (event) => {
    if (!control.contains(event.target)) control.open = false;
  });
}

// ---- tables

// The number of a cell: the mean of "0.389 ± 0.02", the ratio of "35: ×0.9 (0.8 to 1), undecided", 1 for "equal";
// otherwise NaN.
function number(text) {
  const own = text.replace(/^[^:]*: /, "").replace(/^×/, "");
  if (own === "equal") return 1;
  const found = /^[+\-−]?(\d[\d,]*\.?\d*|\.\d+)(e[+\-−]?\d+)?/i.exec(own);
  return found ? Number(found[0].replaceAll(",", "").replaceAll("−", "-")) : NaN;
}

function sort(table, place, direction) {
  const body = table.tBodies[0], rows = [...body.rows];
  rows.forEach((row, i) => row.dataset.place ??= i);
  const texts = new Map(rows.map((row) => [row, (row.cells[place]?.textContent ?? "").trim()]));
  const numbers = new Map(rows.map((row) => [row, number(texts.get(row))]));
  const counted = [...numbers.values()].filter((value) => !Number.isNaN(value)).length;
  const filled = [...texts.values()].filter((text) => text !== "").length;
  const order = counted * 2 >= filled ? "number" : "text";
  rows.sort((a, b) => {
    if (!direction) return a.dataset.place - b.dataset.place;
    const without = (row) => order === "number" ? Number.isNaN(numbers.get(row)) : texts.get(row) === "";
    if (without(a) || without(b)) return without(a) - without(b) || a.dataset.place - b.dataset.place;
    const apart = order === "number"
      ? numbers.get(a) - numbers.get(b) : texts.get(a).localeCompare(texts.get(b), "en", {numeric: true});
    return direction * apart || a.dataset.place - b.dataset.place;
  });
  body.append(...rows);
}

const LATEX = {
  "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "#": "\\#", "%": "\\%", "_": "\\_",
  "^": "\\textasciicircum{}", "~": "\\textasciitilde{}", "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}",
  "±": "$\\pm$", "−": "$-$", "×": "$\\times$",
};
const FORMATS = {
  CSV: (rows) => rows.map((row) => row.map(({text}) => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)
    .join(",")).join("\n") + "\n",
  Markdown: (rows) => {
    const lines = rows.map((row) => `| ${row.map(({text, bold}) => {
      const safe = text.replace(/[\\|*`<>[\]&~$]/g, "\\$&");
      return bold && safe ? `**${safe}**` : safe;
    }).join(" | ")} |`);
    return [lines[0], `| ${rows[0].map(() => "---").join(" | ")} |`, ...lines.slice(1)].join("\n") + "\n";
  },
  LaTeX: (rows) => {
    const lines = rows.map((row) => row.map(({text, bold}) => {
      const safe = text.replace(/[\\{}$&#%_^~<>|±−]/g, (letter) => LATEX[letter]);
      return bold && safe ? `\\textbf{${safe}}` : safe;
    }).join(" & ") + " \\\\");
    const columns = `l${"r".repeat(rows[0].length - 1)}`;
    return ["% \\usepackage{booktabs}", `\\begin{tabular}{${columns}}`, "\\toprule", lines[0], "\\midrule",
      ...lines.slice(1), "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
  },
};

// The visible rows of a table in their current order.
function content(table) {
  return [...table.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map((cell) => ({
    text: cell.textContent.replace(/\s+/g, " ").trim(), bold: cell.querySelector("strong") !== null,
  })));
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", {class: "copied"});
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function startTables() {
  let place = "";
  for (const element of document.querySelectorAll("main h2, main h3, main .wide")) {
    if (!element.classList.contains("wide")) {
      place = element.textContent;
      continue;
    }
    const table = element.querySelector("table");
    element.setAttribute("aria-label", `Table: ${place}`);
    element.before(make("div", {class: "tools"}, "copy", ...Object.entries(FORMATS).map(([name, format]) =>
      button(name, async (self) => {
        await copy(format(content(table)));
        self.textContent = "copied";
        setTimeout(() => { self.textContent = name; }, 1200);
      }, {"data-format": name}))));
    for (const cell of table.tHead.rows[0].cells) {
      cell.setAttribute("tabindex", "0");
      cell.setAttribute("title", "sort by this column");
    }
  }
  // One listener for all headers: a click or Enter sorts ascending, then descending, then restores the order.
  const act = (event) => {
    const cell = event.target.closest?.("main .wide th");
    if (!cell || (event.type === "keydown" && event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    const next = {none: "ascending", ascending: "descending", descending: "none"}[cell.getAttribute("aria-sort") ?? "none"];
    for (const other of cell.parentElement.cells) other.removeAttribute("aria-sort");
    if (next !== "none") cell.setAttribute("aria-sort", next);
    sort(cell.closest("table"), cell.cellIndex, {ascending: 1, descending: -1, none: 0}[next]);
  };
  document.addEventListener("click", act);
  document.addEventListener("keydown", act);
}

// ---- the cells of a number

const dialog = make("dialog", {id: "cell"});

function repetitions(name, nfe, metric) {
  const own = curves.get(name), place = 5 + 2 * behind.metrics.findIndex(([key]) => key === metric);
  const steps = new Set(own.cells.filter((cell) => cell[1] === nfe).map((cell) => cell[0]));
  // A point is a number of steps: the repetitions of an adaptive solver may differ in NFE.
  return own.cells.filter((cell) => steps.has(cell[0])).map(([taken, counted, training, sampling, weights, ...values]) => ({
    taken, counted, training, sampling, weights: own.weights[weights], value: values[place - 5], se: values[place - 4],
  }));
}

function grid(header, rows) {
  const cells = (tag, row) => make("tr", {}, ...row.map((text) => make(tag, {}, String(text))));
  return make("div", {class: "rows"}, make("table", {}, make("thead", {}, cells("th", header)),
    make("tbody", {}, ...rows.map((row) => cells("td", row)))));
}

function about(name, nfe, metric) {
  const own = curves.get(name);
  const cells = repetitions(name, nfe, metric);
  const header = ["training seed", "sampling seed", "steps", "NFE", metrics.get(metric), "standard error", "weights"];
  const rows = cells.map((cell) => [cell.training, cell.sampling, cell.taken, cell.counted, digits(cell.value),
    digits(cell.se), cell.weights]);
  const facts = make("dl", {class: "facts"});
  const fact = (key, ...texts) => facts.append(make("dt", {}, key), make("dd", {}, ...texts));
  fact("samples", `${own.samples} per repetition`);
  fact("extractor", make("code", {}, own.extractor));
  fact("reference", make("code", {}, own.reference));
  const failed = own.failed.filter(([cost]) => cost === nfe);
  if (failed.length) fact("failed", failed.map(([, seeds, reason]) => `seeds ${seeds.join(", ")}: ${reason}`).join("; "));
  const full = (title, text) => make("details", {}, make("summary", {}, title), make("pre", {}, text));
  const [short, model] = models.get(own.model) ?? ["", ""];
  const yaml = make("pre", {}, `${model ? `models:\n${indented(short)}` : ""}curves:\n${indented(own.short)}`);
  return make("section", {}, make("h3", {}, own.label === name ? name : `${own.label}, curve ${name}`),
    grid(header, rows), facts, make("p", {}, "Changes from its base, as in params.yaml:"), yaml,
    full("The curve with all defaults", own.row), ...(model ? [full("Its model with all defaults", model)] : []));
}

const indented = (text) => text.replace(/^(?=.)/gm, "  ");

// The cells of "curve/NFE/metric", and with "/curve/NFE" after it those of the curve that it is compared with.
function openCell(key) {
  const [name, nfe, metric, base, baseNfe] = key.split("/");
  if (!curves.has(name) || !metrics.has(metric) || (base && !curves.has(base))) return;
  const title = base
    ? `${metrics.get(metric)}: ${name} at NFE ${nfe} minus ${base} at NFE ${baseNfe}`
    : `${metrics.get(metric)} of ${name} at NFE ${nfe === "0" ? "unknown" : nfe}`;
  const heading = make("h2", {id: "cell-title"}, title);
  const close = button("close", () => dialog.close(), {class: "close", autofocus: ""});
  dialog.replaceChildren(make("header", {}, heading, close), about(name, Number(nfe), metric));
  if (base) {
    const other = repetitions(base, Number(baseNfe), metric);
    const pairs = repetitions(name, Number(nfe), metric).flatMap((own) => {
      const [match] = other.filter((cell) => cell.training === own.training && cell.sampling === own.sampling);
      if (!match) return [];
      const ratio = own.value > 0 && match.value > 0 ? digits(own.value / match.value) : "";
      return [[own.training, own.sampling, digits(own.value - match.value), ratio]];
    });
    dialog.append(about(base, Number(baseNfe), metric), make("h3", {}, "By seeds"),
      grid(["training seed", "sampling seed", "difference", "ratio"], pairs));
  }
  dialog.setAttribute("aria-labelledby", "cell-title");
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  history.replaceState(null, "", `#cell/${key}`);
}

function startCells() {
  document.body.append(dialog, tip);
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a.cell");
    if (link) {
      event.preventDefault();
      openCell(link.dataset.cell);
    } else if (event.target === dialog) {
      dialog.close();
    }
  });
  dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
  const linked = () => location.hash.startsWith("#cell/") && openCell(location.hash.slice(6));
  addEventListener("hashchange", linked);
  linked();
}

// On narrow screens, the contents are above the text and start closed.
const contents = document.querySelector("nav details");
if (contents && !matchMedia("(min-width: 1180px)").matches) contents.open = false;
startFilter();
startTables();
startCells();
startCharts();
document.documentElement.classList.add("interactive");
performance.mark("interactive");
})();
