// A report: its tables sorted, its charts drawn from the document's data, and its boxes, which evaluate the engines' own
// formulas. Without this script the numbers stand in the tables.

const given = JSON.parse($("document").textContent), { units } = given;
const integers = (texts) => texts.map(BigInt);

for (const made of document.querySelectorAll("table.sortable")) {
  const heads = [...made.tHead.rows[0].cells], body = made.tBodies[0];
  heads.forEach((head, column) => {
    if (!head.textContent || body.rows[0].cells[column].dataset.bar) return;
    const button = element("button", { type: "button" }, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (a, b) => (head.classList.contains("number") ? Number(key(a) || -1) - Number(key(b) || -1)
        : key(a).localeCompare(key(b), "en", { numeric: true }));
      body.append(...[...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b))));
    });
  });
}

// --- Charts ----------------------------------------------------------------------------------------------------------

const FILLS = ["weights", "kv", "work"];
const fill = (number) => FILLS[number % FILLS.length];
const key = (words) => swatches(...words.map((word, number) => [element("i", { class: fill(number) }), word]));

for (const cell of document.querySelectorAll("[data-bar]")) {
  const sizes = integers(cell.dataset.bar.split(" "));
  cell.append(bar(sizes.map((size, number) => [fill(number), size]), BigInt(cell.dataset.whole), true));
}
for (const legend of document.querySelectorAll("[data-legend]")) legend.append(key(JSON.parse(legend.dataset.legend)));

function bars({ series, names, remarks, unit }) {
  const parts = names.map((_, at) => series.map(({ values }, number) => [fill(number), values[at]]));
  const totals = parts.map((each) => each.reduce((sum, [, size]) => sum + size, 0n)), whole = totals.reduce(larger, 1n);
  const scale = UNITS[units].find(([each]) => each === unit)?.[1];
  const rows = names.flatMap((name, at) => {
    const total = scale ? `${rounded(totals[at], scale, 0)} ${unit}` : inBytes(totals[at], 1, units);
    const words = [`${name}: ${total}`, remarks[at]].filter(Boolean).join(", ");
    return [element("p", { title: exactly(totals[at]) }, words), bar(parts[at], whole, true)];
  });
  return series.length > 1 ? [key(series.map(({ label }) => label)), ...rows] : rows;
}
function curves({ kind, title, series, x_title, y_title, logarithmic, unit, limit }, width) {
  const sizes = series.flatMap(({ values }) => values), positions = series.flatMap((each) => each.positions);
  const points = kind === "points";
  const vertical = byteAxis(y_title, limit ? [...sizes, limit[0]] : sizes,
    { units, unit, logarithmic: logarithmic.includes("y"), apart: points });
  const horizontal = points ? countAxis(x_title, positions) : tokenAxis(x_title, positions, logarithmic !== "");
  return lines({ title, horizontal, vertical, series, limit, stepped: points }, width);
}
// A bound was published and no points, so none are drawn.
function bounds({ title, series, names, x_title, y_title }, width) {
  const bound = Math.max(...series.flatMap(({ values }) => values));
  const signed = (value) => `${value > 0 ? "+" : ""}${value}`;
  const vertical = { title: y_title, ticks: [-bound, 0, bound].map((value) => [value, signed(value)]), place: (value) => (value / bound + 1.5) / 3 };
  const horizontal = { title: x_title, ticks: names.map((name, at) => [at, name]), place: (value) => (value + 0.5) / names.length };
  const { svg, y, left, right } = plane(title, horizontal, vertical, width);
  const words = `published bound: within \u00b1${bound}, ${series.map(({ label }) => label).join(", ")}`;
  svg.insertBefore(drawn("path", { class: "band", d: `M${left} ${y(bound)}H${right}V${y(-bound)}H${left}z` }), svg.firstChild);
  svg.append(drawn("text", { x: (left + right) / 2, y: Number(y(bound / 2)) + 4, "text-anchor": "middle" }, words));
  return [svg];
}

const DRAW = { bars, columns: bars, curves, points: curves, bounds };
const read = (chart) => ({
  ...chart, limit: chart.limit && [BigInt(chart.limit[0]), chart.limit[1]],
  series: chart.series.map((each) => ({ ...each, values: each.values.map(chart.kind === "bounds" ? Number : BigInt) })),
});
const charts = given.charts.map(read);
function drawCharts() {
  charts.forEach((chart, at) => show(`chart-${at}`, ...DRAW[chart.kind](chart, widthOf(`chart-${at}`))));
}
document.querySelectorAll(".drawn").forEach((each) => { each.hidden = false; });
drawCharts();
given.strips.forEach(({ kinds, order }, at) => show(`strip-${at}`, ...layers(kinds, order)));

// --- Boxes -----------------------------------------------------------------------------------------------------------

let redraw = drawCharts;
if (given.live) {
  const { context, batch_size, rows } = given.live, longest = BigInt(given.live.longest), asked = { context: BigInt(context), batch: BigInt(batch_size) };
  const inputs = [{ symbol: "T", formula: "" }, { symbol: "B", formula: "" }];
  const formulas = (texts) => (texts.length ? [...inputs, ...texts.map(([symbol, formula]) => ({ symbol, formula }))] : null);
  const configurations = rows.map(({ label, weights_bytes, one, several }) => (
    { label, weights: BigInt(weights_bytes), one: formulas(one), several: formulas(several) ?? formulas(one) }
  ));
  const kvOf = (each, tokens_) => {
    const lines_ = asked.batch === 1n ? each.one : each.several;
    return lines_ && evaluate(lines_, { T: tokens_, B: asked.batch }).kv_bytes;
  };
  const known = configurations.filter(({ one }) => one);

  function curve() {
    const contexts = Array.from({ length: 65 }, (_, at) => larger(1n, larger(longest, asked.context) * BigInt(at) / 64n));
    const series = known.map((each) => ({ label: each.label, positions: contexts, joined: true, values: contexts.map((at) => kvOf(each, at)) }));
    const title = `KV cache over the context, ${sequencesOf(asked.batch)}`;
    const vertical = byteAxis("KV cache", series.flatMap(({ values }) => values), { units });
    const now = series.length === 1 ? [asked.context, kvOf(known[0], asked.context)] : null;
    return lines({ title, series, vertical, horizontal: tokenAxis("context (tokens)", contexts.map(Number)), now }, widthOf("live-curve"));
  }
  function answer() {
    const sizes = configurations.map((each) => kvOf(each, asked.context));
    const whole = configurations.reduce((most, { weights }, at) => larger(most, weights + (sizes[at] ?? 0n)), 1n);
    const shown = configurations.map(({ label, weights }, at) => ({ cells: sizes[at] === null
      ? [label, "at the stated context alone", "", "", "", ""]
      : [label, inBytes(sizes[at], 2, units), grouped(sizes[at]), inBytes(sizes[at] + weights, 2, units),
        weights ? percent(sizes[at], weights) : "", bar([["weights", weights], ["kv", sizes[at]]], whole, true)] }));
    const heads = [["configuration", "wide"], ["KV cache", "number"], ["exactly (B)", "number exact"], ["total", "number"],
      ["overhead", "number"], ["weights and KV cache"]];
    show("live-table", table(heads, shown, { label: "At any context and batch size" }));
    // Curves of more configurations than there are colours tell nothing.
    if (known.length && known.length <= MARKS.length) show("live-curve", ...curve());
  }
  const field = (id, words) => {
    const box = numberBox(id, words, (value) => settle(value));
    function settle(value) {
      asked[id] = value;
      box.set(value);
      $(`${id}-said`).textContent = words(value);
      answer();
    }
    return { box, settle };
  };
  const beyond = (value) => (value > longest ? ", beyond what the model was made for" : "");
  const fields = [
    [field("context", (value) => tokens(value) + beyond(value)), longest, asked.context],
    [field("batch", sequencesOf), larger(256n, asked.batch), asked.batch],
  ];
  $("live").hidden = false;
  for (const [{ box, settle }, most, value] of fields) { box.upTo(most); settle(value); }
  redraw = () => { drawCharts(); answer(); };
}

let resized;
window.addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(redraw, 150); });
