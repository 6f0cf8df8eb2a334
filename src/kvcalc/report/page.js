"use strict";
// No cost model here: the boxes evaluate the engines' own formulas, as integers of any size.

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const numeric = head.classList.contains("number");
      const order = (a, b) => (numeric ? Number(key(a) || -1) - Number(key(b) || -1)
        : key(a).localeCompare(key(b), "en", { numeric: true }));
      const rows = [...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b)));
      body.append(...rows);
    });
  });
}

const embedded = document.getElementById("live");
if (embedded) {
  const live = JSON.parse(embedded.textContent);
  const body = document.querySelector("#explore tbody");
  const grouped = (value) => value.toLocaleString("en-US");

  // The same rounding as in the tables: half up, with integers.
  const inUnit = (size) => {
    const [name, scale] = live.units.findLast(([, each]) => size >= BigInt(each)) ?? ["B", 1];
    if (name === "B") return `${grouped(size)} B`;
    const hundredths = (2n * size * 100n + BigInt(scale)) / (2n * BigInt(scale));
    return `${grouped(hundredths / 100n)}.${String(hundredths % 100n).padStart(2, "0")} ${name}`;
  };

  const lines = (texts) => texts.map(([symbol, formula]) => ({ symbol, formula }));
  const given = [{ symbol: "T", formula: "" }, { symbol: "B", formula: "" }];
  const rows = live.rows.map(({ label, weights_bytes, one, several }) => {
    const row = body.insertRow();
    const cells = ["wide", "number", "number exact", "number", "number", ""].map((name) => {
      const cell = row.insertCell();
      cell.className = name;
      return cell;
    });
    cells[0].textContent = label;
    const bar = document.createElement("div");
    bar.className = "bar";
    const parts = [0, 1].map(() => bar.appendChild(document.createElement("i")));
    parts.forEach((part, number) => { part.className = `fill${number}`; });
    cells[5].append(bar);
    const formulas = [one, several.length ? several : one].map((each) => [...given, ...lines(each)]);
    return { weights: BigInt(weights_bytes), formulas, known: one.length > 0, cells, parts };
  });

  const asked = { context: BigInt(live.context), batch: BigInt(live.batch_size) };
  const show = () => {
    const sizes = rows.map(({ known, formulas }) => (known
      ? evaluate(formulas[asked.batch === 1n ? 0 : 1], { T: asked.context, B: asked.batch }).kv_bytes : null));
    const largestTotal = rows.reduce((most, { weights }, at) => larger(most, weights + (sizes[at] ?? 0n)), 1n);
    rows.forEach(({ weights, cells, parts }, at) => {
      const kv = sizes[at];
      const tenths = kv === null || weights === 0n ? null : (2000n * kv + weights) / (2n * weights);
      cells[1].textContent = kv === null ? "at the stated context alone" : inUnit(kv);
      cells[2].textContent = kv === null ? "" : grouped(kv);
      cells[3].textContent = kv === null ? "" : inUnit(kv + weights);
      cells[4].textContent = tenths === null ? "" : `${grouped(tenths / 10n)}.${tenths % 10n} %`;
      const share = (size) => `${Number((size * 10000n) / largestTotal) / 100}%`;
      parts[0].style.width = kv === null ? "0" : share(weights);
      parts[1].style.width = kv === null ? "0" : share(kv);
    });
  };

  // A box takes any number, and its slider stands on round ones.
  const field = (name, most, words) => {
    const box = document.getElementById(name), range = document.getElementById(`${name}-range`);
    const shown = document.querySelector(`output[for=${name}]`), stops = [];
    for (let power = 1n; power < most; power *= 2n) stops.push(power, ...(power > 1n ? [power * 3n / 2n] : []));
    const round = [...stops.filter((stop) => stop < most), most];
    range.max = String(round.length - 1);
    const settle = (value) => {
      asked[name] = value;
      shown.textContent = words(value);
      range.setAttribute("aria-valuetext", words(value));
      show();
    };
    box.addEventListener("input", () => {
      const value = /^[0-9]{1,13}$/.test(box.value.replaceAll(",", "").trim()) ? BigInt(box.value.replaceAll(",", "").trim()) : 0n;
      const holds = value >= 1n && value <= MAX_TOKENS;
      box.setAttribute("aria-invalid", String(!holds));
      if (holds) { range.value = String(Math.max(0, round.findLastIndex((stop) => stop <= value))); settle(value); }
    });
    range.addEventListener("input", () => {
      box.value = String(round[Number(range.value)]);
      box.setAttribute("aria-invalid", "false");
      settle(round[Number(range.value)]);
    });
    box.value = String(asked[name]);
    range.value = String(Math.max(0, round.findLastIndex((stop) => stop <= asked[name])));
    settle(asked[name]);
  };
  const longest = BigInt(live.longest);
  const beyond = (value) => (value > longest ? ", beyond what the model was made for" : "");
  field("context", longest, (value) => `${grouped(value)} ${value === 1n ? "token" : "tokens"}${beyond(value)}`);
  field("batch", larger(256n, asked.batch), (value) => `${grouped(value)} ${value === 1n ? "sequence" : "sequences"}`);
  document.getElementById("explore").hidden = false;
}
