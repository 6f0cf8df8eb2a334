// What pages are made of: elements, tables, bars, charts, layers in order, and boxes for numbers. Every text from data
// or from an address goes into the page as text.

const $ = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value; else if (key in made) made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
// As wide as it is shown, so that the words of a chart are as large as all others.
const widthOf = (id) => Math.min(820, Math.max(300, $(id).clientWidth));
const show = (id, ...children) => $(id).replaceChildren(...children.filter((child) => child !== null));

// Heads are [title, class]; a row is {cells, kind}, and a cell a text, an element, or a list of them.
function table(heads, rows, properties = {}) {
  const head = element("tr", {}, ...heads.map(([title, kind]) => element("th", { scope: "col", class: kind ?? "" }, title)));
  const body = rows.map((row) => {
    const made = element("tr", { class: row.kind ?? "" });
    row.cells.forEach((cell, at) => made.append(element("td", { class: heads[at][1] ?? "", "data-head": heads[at][0] },
      ...(Array.isArray(cell) ? cell : [cell]))));
    return made;
  });
  const made = element("table", properties, element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": `${properties.label}: table` }, made);
}

// --- Bars ------------------------------------------------------------------------------------------------------------

function share(part, whole) { return `${whole > 0n ? Number(part * 100000n / whole) / 1000 : 0}%`; }
// Parts are [class, size]; the number of a size stands in the text beside the bar.
function bar(parts, whole, small) {
  const pieces = parts.filter(([, size]) => size > 0n).map(([name, size]) => {
    const piece = element("i", { class: name });
    piece.style.width = share(size, whole);
    return piece;
  });
  return element("div", { class: small ? "bar small" : "bar", "aria-hidden": "true" }, ...pieces);
}
const swatches = (...items) => element("ul", { class: "swatches" }, ...items.map(([sample, words]) => element("li", {}, sample, words)));

// --- Layers in order -------------------------------------------------------------------------------------------------

// Kinds are [words, whether such a layer sees a part of the context only]; the order has a kind's place for each layer.
function layers(kinds, order) {
  const look = (kind) => `kind${kind % 7}${kinds[kind][1] ? " local" : ""}`;
  const words = kinds.map(([name], kind) => `${order.filter((each) => each === kind).length} ${name}`);
  const row = element("div", { class: "layers", role: "img", "aria-label": `${order.length} layers: ${words.join(", ")}` },
    ...order.map((kind, number) => element("i", { class: look(kind), title: `layer ${number}: ${kinds[kind][0]}` })));
  return [row, swatches(...words.map((word, kind) => [element("i", { class: `kind${kind % 7}` }), word]))];
}

// --- Axes: {title, ticks: [[value, name]], place}, whose place(value) is from 0 to 1 ------------------------------------

// The next of 1, 2, 5, 10 ... that is not below a step.
function roundStep(step) {
  const scale = 10 ** Math.floor(Math.log10(step));
  return scale * [1, 2, 5, 10].find((factor) => factor * scale >= step * 0.999);
}
function linear(title, low, high, step, name) {
  const first = Math.floor(low / step), last = Math.max(Math.ceil(high / step), first + 1);
  const ticks = Array.from({ length: last - first + 1 }, (_, at) => [(first + at) * step, name((first + at) * step)]);
  return { title, ticks, place: (value) => (value / step - first) / (last - first) };
}
function powers(title, low, high, base, name) {
  const exponent = (value) => Math.log2(value) / Math.log2(base);
  const first = Math.floor(exponent(low) + 1e-9), last = Math.max(Math.ceil(exponent(high) - 1e-9), first + 1);
  const ticks = [];
  for (let power = first; power <= last; power += Math.ceil((last - first) / 7)) ticks.push([base ** power, name(base ** power)]);
  return { title, ticks, place: (value) => (exponent(value) - first) / (last - first) };
}
// Bytes in one unit from 0, or from about the least of them; each tick with its own unit where it is logarithmic.
function byteAxis(title, sizes, { units = "binary", unit = "", logarithmic = false, apart = false } = {}) {
  const least = sizes.reduce(smaller), most = sizes.reduce(larger);
  if (logarithmic && least > 0n) {
    const name = (value) => inBytes(BigInt(value), 0, units);
    return powers(`${title} (logarithmic)`, Number(least), Number(most), units === "decimal" ? 10 : 2, name);
  }
  const [named, scale] = UNITS[units].find(([each]) => each === unit) ?? unitFor(most, units);
  const low = apart && least < most ? Number(least) : 0;
  const step = roundStep(Math.max(Number(most) - low, 1) / Number(scale) / 5), digits = Math.max(0, -Math.floor(Math.log10(step)));
  const name = (value) => (value / Number(scale)).toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return linear(`${title} (${named})`, low, Number(most), step * Number(scale), name);
}
function tokenAxis(title, positions, logarithmic = false) {
  const low = Math.min(...positions), high = Math.max(...positions, 1), name = (value) => shortCount(BigInt(value));
  if (logarithmic && low < high) return powers(title, low, high, 2, name);
  return linear(title, 0, high, 2 ** Math.max(0, Math.ceil(Math.log2(high / 5))), name);
}
function countAxis(title, positions) {
  const low = Math.min(...positions), high = Math.max(...positions);
  return linear(title, low, high, Math.max(1, roundStep(Math.max(high - low, 1) / 5)), String);
}

// --- Charts ----------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.append(text);
  return made;
}
// Points of a few series are told apart without colour.
const MARKS = ["M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M-3.6-3.6h7.2v7.2h-7.2z", "M0-4.6L4.4 3.4h-8.8z", "M0-5L4.2 0L0 5L-4.2 0z",
  "M0 4.6L4.4-3.4h-8.8z", "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z", "M-4-2L-2-4L0-2L2-4L4-2L2 0L4 2L2 4L0 2L-2 4L-4 2L-2 0z"];
const MOST_MARKS = 24;

// A plane with its axes, `width` wide; `at` gives the point of two values.
function plane(title, horizontal, vertical, width) {
  const height = Math.round(200 + width / 7), top = 30, bottom = height - 40, right = width - 14;
  const left = 16 + 7 * Math.max(...vertical.ticks.map(([, name]) => name.length));
  const x = (value) => left + (right - left) * horizontal.place(Number(value));
  const y = (value) => bottom - (bottom - top) * vertical.place(Number(value));
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  svg.append(drawn("text", { x: 2, y: 14 }, vertical.title),
    drawn("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, horizontal.title));
  for (const [value, name] of vertical.ticks) {
    svg.append(drawn("path", { class: "rule", d: `M${left} ${y(value)}H${right}` }),
      drawn("text", { class: "tick", x: left - 7, y: y(value) + 4, "text-anchor": "end" }, name));
  }
  for (const [value, name] of horizontal.ticks) {
    svg.append(drawn("path", { class: "rule", d: `M${x(value)} ${top}V${bottom}` }),
      drawn("text", { class: "tick", x: x(value), y: bottom + 17, "text-anchor": "middle" }, name));
  }
  svg.append(drawn("path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}` }));
  return { svg, x: (value) => x(value).toFixed(1), y: (value) => y(value).toFixed(1), left, right, top, bottom };
}

// Curves and points. Series are {label, positions, values, joined}; a limit is [bytes, words]; `now` is [position, bytes].
function lines({ title, horizontal, vertical, series, limit = null, now = null, stepped = false }, width) {
  const { svg, x, y, left, right } = plane(title, horizontal, vertical, width);
  const shapes = [];
  const key = series.map(({ label, positions, values, joined }, number) => {
    const look = `line${number % 7} dash${number % 4}`, marked = !joined || positions.length <= MOST_MARKS;
    const points = positions.map((position, at) => [x(position), y(values[at])]);
    // Between two points of a front there is no candidate: the memory of the one holds up to the next.
    const path = points.map(([px, py], at) => (at === 0 ? `M${px} ${py}` : stepped ? `H${px}V${py}` : `L${px} ${py}`)).join("");
    const shape = drawn("g", {});
    shapes.unshift(shape); // the first series stands above the others
    if (joined) shape.append(drawn("path", { class: look, d: path }));
    const mark = (px, py) => drawn("path", { class: `mark line${number % 7}`, d: MARKS[number % 7], transform: `translate(${px} ${py})` });
    if (marked) {
      points.forEach(([px, py], at) => {
        const made = mark(px, py);
        made.append(drawn("title", {}, `${label}, ${grouped(positions[at])}: ${exactly(values[at])}`));
        shape.append(made);
      });
    }
    const sample = drawn("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" });
    if (joined) sample.append(drawn("path", { class: look, d: "M0 6H28" }));
    if (marked) sample.append(mark(14, 6));
    return [sample, label];
  });
  svg.append(...shapes);
  if (limit !== null) {
    const sample = drawn("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" });
    sample.append(drawn("path", { class: "limit", d: "M0 6H28" }));
    svg.append(drawn("path", { class: "limit", d: `M${left} ${y(limit[0])}H${right}` }));
    key.push([sample, limit[1]]);
  }
  if (now !== null) svg.append(drawn("circle", { class: "now", cx: x(now[0]), cy: y(now[1]), r: 5 }));
  return [svg, swatches(...key)];
}

// --- A number box with a slider beside it: the slider stands on round numbers, the box takes any -----------------------

function numberBox(id, spoken, changed) {
  const box = $(id), range = $(`${id}-range`);
  let stops = [1n];
  box.addEventListener("input", () => {
    const value = count(box.value);
    box.setAttribute("aria-invalid", String(value === null));
    if (value !== null) changed(value);
  });
  range.addEventListener("input", () => {
    const value = stops[Number(range.value)];
    box.value = value.toString();
    box.setAttribute("aria-invalid", "false");
    changed(value);
  });
  return {
    upTo(most) {
      const found = new Set([1n, most]);
      for (let power = 1n; power < most; power *= 2n) {
        for (const quarter of [4n, 5n, 6n, 7n]) {
          const value = power * quarter / 4n;
          if (value < most && (power >= 1024n || quarter % 2n === 0n || power >= 4n)) found.add(value);
        }
      }
      stops = [...found].sort((a, b) => (a < b ? -1 : 1));
      range.max = String(stops.length - 1);
    },
    set(value) {
      if (document.activeElement !== box) box.value = value.toString();
      const place = stops.findLastIndex((stop) => stop <= value);
      range.value = String(Math.max(0, place));
      range.setAttribute("aria-valuetext", spoken(value));
    },
  };
}
