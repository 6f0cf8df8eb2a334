// The page itself: what is asked, and what the calculator answers. Every text from the data or from the address goes
// into the page as text.

// --- Pickers ---------------------------------------------------------------------------------------------------------

// A box with a list that its words search. `choices()` are [value, title, detail, words]; `pick` is told a value.
function picker(id, choices, pick) {
  const input = element("input", { id, type: "text", spellcheck: false });
  const list = element("ul", { id: `${id}-list`, class: "list", hidden: true, role: "listbox" });
  list.setAttribute("aria-label", document.querySelector(`label[for=${id}]`).textContent);
  for (const [name, value] of [["role", "combobox"], ["aria-controls", list.id], ["aria-expanded", "false"],
    ["aria-autocomplete", "list"]]) input.setAttribute(name, value);
  $(`${id}-picker`).append(input, list);
  let found = [], at = 0, chosen = "";

  const titleOf = (value) => choices().find(([each]) => each === value)?.[1] ?? value;
  function close() {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    input.value = titleOf(chosen);
  }
  function mark(place) {
    at = Math.max(0, Math.min(place, found.length - 1));
    [...list.children].forEach((item, number) => item.setAttribute("aria-selected", String(number === at)));
    const item = list.children[at];
    if (!item) return;
    input.setAttribute("aria-activedescendant", item.id);
    item.scrollIntoView({ block: "nearest" });
  }
  function open(text) {
    const words = text.toLowerCase().split(/[\s_:/-]+/).filter(Boolean);
    found = choices().filter(([value, title, detail, other]) => {
      const all = `${value} ${title} ${detail ?? ""} ${other ?? ""}`.toLowerCase();
      return words.every((word) => all.includes(word));
    });
    list.replaceChildren(...found.map(([value, title, detail], number) => {
      const item = element("li", { id: `${id}-${number}`, role: "option" }, title, detail ? element("small", {}, detail) : null);
      item.addEventListener("mousedown", (event) => { event.preventDefault(); take(value); });
      return item;
    }));
    if (!found.length) list.append(element("li", { role: "option", "aria-disabled": "true" }, "nothing has these words"));
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    mark(Math.max(0, text ? 0 : found.findIndex(([value]) => value === chosen)));
  }
  function take(value) { chosen = value; close(); pick(value); }
  input.addEventListener("focus", () => input.select());
  input.addEventListener("click", () => { if (list.hidden) open(""); });
  input.addEventListener("input", () => open(input.value));
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 };
    if (event.key in moves) {
      event.preventDefault();
      if (list.hidden) open(""); else mark(at + moves[event.key]);
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (list.hidden) open(""); else if (found[at]) take(found[at][0]);
    } else if (event.key === "Escape") close();
  });
  return { set(value) { chosen = value; if (list.hidden) input.value = titleOf(value); } };
}

function options(id, pairs, value) {
  show(id, ...pairs.map(([each, title]) => element("option", { value: each }, title)));
  $(id).value = value;
}

// --- The question, and the address that holds it ---------------------------------------------------------------------

const KEYS = ["model", "engine", "version", "draft", "device", "memory", "weights", "kv", "tp", "c", "b", "u", "reserve"];
let data, state;

const first = (object) => Object.keys(object)[0];
function usual() {
  const named = (wanted, known) => (known.includes(wanted) ? wanted : known[0] ?? "");
  const model = named("gemma-3-27b", Object.keys(data.models));
  const device = named("h100-80gb", data.devices.map((each) => each.name));
  return {
    model, device, engine: named("vllm", Object.keys(data.engines)), version: "", memory: 80n << 30n, weights: "", kv: "",
    draft: "", options: {}, tp: 1, c: smaller(32768n, BigInt(data.models[model].max_context ?? 32768)), b: 1n, u: "", reserve: 0n,
  };
}

// Only what the data know, and numbers in range, come out of an address.
function fromAddress(hash) {
  const asked = new URLSearchParams(hash.replace(/^#/, "")), found = usual();
  const known = (key, values) => { if (asked.has(key) && values.includes(asked.get(key))) found[key] = asked.get(key); };
  known("model", Object.keys(data.models));
  known("engine", Object.keys(data.engines));
  known("device", ["", ...data.devices.map((each) => each.name)]);
  const engine = data.engines[found.engine];
  known("version", engine.releases.flat());
  known("weights", engine.weight_formats);
  known("kv", engine.kv_formats);
  known("draft", data.models[found.model].drafts);
  for (const [name, value] of asked.getAll("E").map((each) => each.split("="))) {
    const isPick = engine.picks.some((pick) => pick[0] === name && pick[1] === value);
    if (isPick || (Object.hasOwn(engine.inputs, name) && count(value ?? ""))) found.options[name] = isPick ? value : String(count(value));
  }
  if (data.sizes.includes(Number(asked.get("tp")))) found.tp = Number(asked.get("tp"));
  const longest = BigInt(data.models[found.model].max_context ?? 32768);
  found.c = count(asked.get("c") ?? "") ?? smaller(32768n, longest);
  found.b = count(asked.get("b") ?? "") ?? 1n;
  if (utilizationOf(asked.get("u") ?? "")) found.u = asked.get("u");
  const bytes = (key) => (/^\d{1,18}$/.test(asked.get(key) ?? "") ? BigInt(asked.get(key)) : found[key]);
  found.memory = bytes("memory");
  found.reserve = bytes("reserve");
  return found;
}
function address() {
  const written = new URLSearchParams();
  for (const key of KEYS) {
    const value = state[key];
    const left = value === "" || (key === "tp" && value === 1) || (key === "reserve" && value === 0n);
    if ((key === "device" || !left) && !(key === "memory" && state.device)) written.set(key, String(value));
  }
  for (const option of optionWords()) written.append("E", option);
  return `#${written}`;
}
const optionWords = () => Object.entries(state.options).map(([name, value]) => `${name}=${value}`);
function utilizationOf(text) {
  const part = decimal(text, 10n ** 6n);
  return part !== null && part > 0n && part <= 10n ** 8n ? [part, 10n ** 8n] : null;
}
const questionOf = (asked) => ({
  model: asked.model, engine: asked.engine, version: asked.version, device: asked.device, memory: asked.memory,
  kv: asked.kv, weights: asked.weights, size: asked.tp, utilization: utilizationOf(asked.u), reserve: asked.reserve,
  options: asked.options, draft: asked.draft,
});

// --- The answer ------------------------------------------------------------------------------------------------------

// The verdict of kvcalc fit.
function verdict(plan, context, sequences) {
  const required = plan.required(context, sequences), pool = plan.pool(context, sequences);
  const longest = plan.maxContext(sequences), most = plan.maxSequences(context);
  const fits = required !== null && required <= pool.kv_memory;
  const asked = `${grouped(sequences)} x ${grouped(context)} tokens`;
  const atBatch = `Longest context at batch ${grouped(sequences)}: ${longest === null ? "nothing bounds it" : grouped(longest)}`;
  let said = `Fits: ${asked}`, more = `${atBatch}; most sequences: ${most === null ? "any number" : grouped(most)}.`;
  if (!fits && required === null) {
    said = `Does not fit: ${asked}`;
    more = "Whatever the memory: the engine's options leave no room for it.";
  } else if (!fits) {
    said = `Does not fit: ${asked} is ${inBytes(required - pool.kv_memory, 1)} short`;
    more = pool.kv_memory < 0n ? `The weights alone are ${inBytes(-pool.kv_memory, 1)} too large.` : `${atBatch}.`;
  }
  return { fits, said, more, required, pool, longest, most };
}

function account({ pool, required, fits }) {
  const working = pool.activation_bytes + pool.runtime_bytes + (pool.share_bytes > pool.activation_bytes + pool.runtime_bytes ? pool.graph_bytes : 0n);
  const kv = required ?? 0n, free = pool.kv_memory - kv;
  const rows = [
    ["weights", pool.loading_bytes ? "weights, with what loading adds" : "weights", pool.weights],
    ["work", pool.reason ? "working memory: not modelled" : `working memory, within ${inBytes(pool.band_bytes, 1)}`, working],
    ["kv", "KV cache", kv],
    ["apart", "kept free by you", pool.reserve],
    free >= 0n ? ["free", "free", free] : ["over", "short", -free],
    ["apart", "not the engine's to take", pool.memory - pool.usable],
  ].filter(([name, , size]) => size > 0n || name === "kv" || name === "free");
  // What does not fit is drawn whole, with a line where the engine's part of the device ends.
  const outside = ["free", "over", "not the engine's to take"];
  const drawn = fits ? rows : rows.filter(([name, title]) => !outside.includes(name) && !outside.includes(title));
  const taken = larger(drawn.reduce((sum, [, , size]) => sum + size, 0n), 1n);
  const filled = bar(drawn.map(([name, , size]) => [name, size]), taken);
  if (!fits && pool.usable < taken) {
    const end = element("b", { class: "end" });
    end.style.left = share(pool.usable, taken);
    filled.append(end);
  }
  const legend = rows.flatMap(([name, title, size]) => [
    element("i", { class: name }), element("span", {}, title), element("span", { class: "size" }, inBytes(size)),
    element("span", { class: "exact" }, exactly(size)),
  ]);
  return [filled, element("div", { class: "legend" }, ...legend)];
}

function figures(plan, answer, values) {
  const entry = (title, main, detail) => element("div", {}, element("dt", {}, title),
    element("dd", {}, main, detail ? element("small", {}, detail) : null));
  const some = (value, unit) => (value === null ? "no bound" : value === 0n ? "none" : unit(value));
  const perDevice = state.tp > 1 ? `on each of ${state.tp} devices` : "on the device";
  return [
    entry("KV cache", inBytes(values.kv_bytes), exactly(values.kv_bytes)),
    entry("Weights", inBytes(plan.weights.bytes), `${grouped(plan.weights.parameters)} parameters, ${plan.weights.dtype}`),
    entry("Longest context", some(answer.longest, tokens), `with ${sequencesOf(state.b)}`),
    entry("Most sequences", some(answer.most, grouped), `of ${tokens(state.c)}`),
    entry("Memory for the cache", inBytes(answer.pool.kv_memory), `${exactly(answer.pool.kv_memory)} ${perDevice}`),
  ];
}

function kinds(plan, context, sequences, values) {
  const lines = sequences === 1n ? plan.cache.one : plan.cache.several;
  const rows = lines.filter(({ symbol }) => /^layers_\d+$/.test(symbol) || symbol === "draft_bytes")
    .map(({ symbol, meaning }) => [meaning.replace(/, without .*/, ""), values[symbol]]);
  const rest = values.kv_bytes - rows.reduce((sum, [, size]) => sum + size, 0n);
  if (rest !== 0n) rows.push(["padding of blocks and pages", rest]);
  const total = larger(values.kv_bytes, 1n);
  const shown = rows.map(([label, size]) => ({ cells: [label, inBytes(size), exactly(size), bar([["kv", size]], total, true)] }));
  shown.push({ kind: "total", cells: ["KV cache", inBytes(values.kv_bytes), exactly(values.kv_bytes), ""] });
  return table([["layers"], ["memory", "number"], ["exactly", "number exact"], ["part"]], shown,
    { class: "stack", label: "KV cache by layer kind" });
}

function curve(plan, ideal, answer) {
  const made = BigInt(plan.it.model.max_context ?? 131072), longest = larger(made, state.c), memory = answer.pool.kv_memory;
  const contexts = Array.from({ length: 65 }, (_, at) => larger(1n, longest * BigInt(at) / 64n));
  const series = [[plan, `${state.engine}, ${sequencesOf(state.b)}`], [ideal, "every token that layers need (the report's accounting)"]]
    .filter(([each]) => each && each.refusal === undefined)
    .map(([each, label]) => ({ label, positions: contexts, joined: true, values: contexts.map((at) => each.kv(at, state.b).kv_bytes) }));
  const sizes = series.flatMap(({ values }) => values), most = sizes.reduce(larger), now = plan.kv(state.c, state.b).kv_bytes;
  // A device whose memory is far above the curve would press it to the ground.
  const limit = memory > 0n && memory < most * 3n ? [memory, `memory for the cache: ${inBytes(memory)}`] : null;
  const title = `KV cache over the context, up to ${tokens(longest)}: ${inBytes(most)} at most; ${inBytes(now)} at ${tokens(state.c)}`;
  const vertical = byteAxis("KV cache", limit ? [...sizes, memory] : sizes), horizontal = tokenAxis("context (tokens)", contexts.map(Number));
  // As wide as it is shown, so that its words are as large as all others.
  return lines({ title, horizontal, vertical, series, limit, now: [state.c, now] }, widthOf("curve"));
}

function sideBySide() {
  const device = data.devices.find((each) => each.name === state.device);
  const names = Object.keys(data.engines).filter((name) => name !== "ideal" && (!device || device.runs.includes(name)));
  const plans = names.map((name) => {
    const engine = data.engines[name], chosen = name === state.engine;
    const asked = { ...state, engine: name, version: chosen ? state.version : "", options: chosen ? state.options : {},
      kv: chosen || engine.kv_formats.includes(state.kv) ? state.kv : "",
      weights: chosen || engine.weight_formats.includes(state.weights) ? state.weights : "" };
    return [name, planOf(data, questionOf(asked)), asked];
  });
  const answers = plans.map(([name, plan, asked]) => (plan.refusal === undefined
    ? { name, plan, asked, ...verdict(plan, state.c, state.b) } : { name, plan, asked }));
  const totals = answers.map(({ pool, required }) => (pool ? pool.weights + pool.share_bytes + (required ?? 0n) : 0n));
  const most = totals.reduce(larger, answers.find(({ pool }) => pool)?.pool.memory ?? 1n);
  const rows = answers.map(({ name, plan, asked, pool, required, fits, longest, most: sequences }) => {
    const version = asked.version || data.engines[name].releases[0]?.[0] || data.engines[name].follows;
    const title = [element("button", { type: "button", "data-engine": name }, name), element("small", {}, version)];
    if (plan.refusal !== undefined) return { kind: "", cells: [title, "not known", "", "", "", element("small", {}, plan.refusal)] };
    const formats = [asked.kv || plan.it.own.default, plan.weights.dtype].join(", ");
    return { kind: name === state.engine ? "chosen" : "", cells: [
      title,
      element("span", { class: fits ? "good" : "bad" }, fits ? "fits" : "does not fit"),
      inBytes(plan.kv(state.c, state.b).kv_bytes),
      longest === null ? "no bound" : grouped(longest),
      sequences === null ? "no bound" : grouped(sequences),
      [bar([["weights", pool.weights], ["work", pool.share_bytes], ["kv", required ?? 0n]], most, true),
        element("small", {}, formats + (pool.reason ? "; without working memory" : ""))],
    ] };
  });
  const heads = [["engine"], ["verdict"], ["KV cache", "number"], ["longest context", "number"], ["sequences", "number"], ["weights, working memory, KV"]];
  const made = table(heads, rows, { class: "stack", label: "Engines side by side" });
  made.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => change({ engine: button.dataset.engine })));
  return made;
}

// --- Lines to copy ---------------------------------------------------------------------------------------------------

function commandLine() {
  const engine = data.engines[state.engine], words = ["kvcalc", "fit", state.model];
  words.push(...(state.device ? ["--device", state.device] : ["--memory", `${state.memory}B`]), "-e", state.engine);
  if (state.version && state.version !== engine.releases[0]?.[0]) words.push("-E", `version=${state.version}`);
  for (const option of optionWords()) words.push("-E", option);
  if (state.draft) words.push("--draft", state.draft);
  words.push("-c", String(state.c), "-b", String(state.b));
  if (state.weights) words.push("--weights-dtype", state.weights);
  if (state.kv) words.push("--kv-cache-dtype", state.kv);
  if (state.tp > 1) words.push("--tp", String(state.tp));
  const part = utilizationOf(state.u);
  if (part) words.push("--gpu-memory-utilization", fraction(part));
  if (state.reserve) words.push("--reserve", `${state.reserve}B`);
  return words.join(" ");
}
function fraction([part]) {
  return part === 10n ** 8n ? "1" : `0.${String(part).padStart(8, "0")}`.replace(/0+$/, "");
}
// The line of kvcalc.serving.
function serverLine(plan) {
  const { engine, model, own, choice, row, given } = plan.it, server = engine.server;
  if (!server) return null;
  const [key, value = key] = (state.kv || own.default).split("/"), part = utilizationOf(state.u);
  const changed = Boolean(state.kv) && state.kv !== own.default;
  const values = {
    context: state.c, context_in_all: state.c * state.b, batch_size: state.b,
    tensor_parallel_size: state.tp > 1 ? state.tp : null, k_dtype: changed ? key : null, v_dtype: changed ? value : null,
    utilization: part && String(Number(part[0]) / 1e8),
    draft: state.draft && state.draft !== "mtp" ? data.models[state.draft].engines[state.engine].served : null,
  };
  const words = server.program.map((word) => word.replace("{model}", own.served));
  for (const [name, flag] of server.flags) if (values[name] != null) words.push(flag, String(values[name]));
  const lines = data.lines[model.lines[own.flags]];
  const flags = (lines[choice] ?? lines[0])[row].split(/ (?=--)/).filter(Boolean)
    .map((flag) => flag.replace(/\{(\w+)\}/, (_, name) => given[name] ?? "")).filter((flag) => !flag.endsWith(" "));
  return [...words, ...flags].join(" ");
}
function copyable(title, text) {
  const button = element("button", { type: "button", "aria-label": `Copy: ${title}` }, "Copy");
  button.addEventListener("click", () => copy(text, button));
  return element("div", { class: "line" }, element("h3", {}, title), element("pre", {}, text), button);
}
async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it by hand";
  }
  setTimeout(() => { button.textContent = before; }, 1500);
}

// --- The shown work --------------------------------------------------------------------------------------------------

function withNumbers(formula, values) {
  return formula.replace(/[A-Za-z_]\w*/g, (name) => (typeof values[name] === "bigint" ? grouped(values[name]) : values[name] === undefined ? name : String(values[name])));
}
function derivation(title, lines, values) {
  const rows = lines.map(({ symbol, formula, meaning, unit, source }) => {
    const value = values[symbol], isNumber = formula === "" || /^\d+$/.test(formula);
    const shown = `${typeof value === "bigint" ? grouped(value) : value}${unit ? ` ${unit}` : ""}`;
    const work = isNumber ? "" : [element("code", {}, formula), element("small", {}, element("code", {}, withNumbers(formula, values)))];
    return { cells: [element("code", {}, symbol), [meaning, element("small", {}, source)], work, shown] };
  });
  return table([["symbol"], ["meaning"], ["formula, and with the numbers", "wide"], ["value", "number"]], rows, { class: "stack", label: title });
}
function work(plan, values, pool) {
  const lines = state.b === 1n ? plan.cache.one : plan.cache.several;
  const parts = [derivation("KV cache, step by step", lines, values)];
  if (!pool.reason && plan.working.quantities.length) {
    const inner = derivation("Working memory, step by step", plan.working.quantities, pool.values);
    parts.push(element("details", {}, element("summary", {}, "Working memory, step by step"), inner));
  }
  const list = (words) => element("ul", { class: "notes" }, ...words.map((word) => element("li", {}, word)));
  const { sources, excluded } = plan.it.engine;
  if (sources.length) parts.push(element("details", {}, element("summary", {}, "Sources of the rule"), list(sources)));
  if (excluded.length) parts.push(element("details", {}, element("summary", {}, "What is not included"), list(excluded)));
  return parts;
}

// --- All together ----------------------------------------------------------------------------------------------------

let boxes, later;
function change(changed) {
  Object.assign(state, changed);
  if ("engine" in changed) {
    const engine = data.engines[state.engine];
    if (!("version" in changed)) state.version = "";
    state.options = {};
    if (!engine.kv_formats.includes(state.kv)) state.kv = "";
    if (!engine.weight_formats.includes(state.weights)) state.weights = "";
  }
  history.replaceState(null, "", address());
  render();
}

function ask() {
  const engine = data.engines[state.engine], model = data.models[state.model];
  boxes.model.set(state.model);
  boxes.device.set(state.device);
  boxes.weights.set(state.weights);
  boxes.kv.set(state.kv);
  options("engine", Object.keys(data.engines).map((name) => [name, name]), state.engine);
  const releases = engine.releases.flat();
  options("version", releases.length ? releases.map((each) => [each, each]) : [["", engine.follows]], state.version || (releases[0] ?? ""));
  const drafts = model.drafts.map((each) => [each, each === "mtp" ? "its own prediction layers (mtp)" : each]);
  options("draft", [["", "none"], ...drafts], state.draft);
  $("draft-field").hidden = !drafts.length;
  askOptions(engine);
  options("size", data.sizes.map((size) => [String(size), size === 1 ? "1 device" : `${size} devices`]), String(state.tp));
  $("memory-field").hidden = state.device !== "";
  for (const [id, text] of [["memory", plain(state.memory)], ["reserve", state.reserve ? plain(state.reserve) : ""], ["utilization", state.u]]) {
    if (document.activeElement !== $(id)) $(id).value = text;
  }
  $("utilization").placeholder = String(engine.utilization[Math.max(0, engine.releases.findIndex((each) => each.includes(state.version)))]);
  $("reserve").placeholder = "0";
  const longest = model.max_context === null ? 1048576n : BigInt(model.max_context);
  boxes.context.upTo(longest);
  boxes.context.set(state.c);
  boxes.sequences.upTo(larger(256n, state.b));
  boxes.sequences.set(state.b);
  const beyond = model.max_context !== null && state.c > longest;
  $("context-said").textContent = `${tokens(state.c)}; ${model.max_context === null ? "the model states no longest context" : `made for ${grouped(longest)}`}${beyond ? ": this is beyond it" : ""}`;
  $("context-said").className = beyond ? "said warn" : "said";
  $("sequences-said").textContent = sequencesOf(state.b);
}
// The engine's own options: a box for a number that formulas take, a list where each value has formulas of its own.
let optionsOf = "";
function askOptions(engine) {
  if (optionsOf !== state.engine) {
    optionsOf = state.engine;
    $("options-field").hidden = !engine.options.length;
    show("options", ...engine.options.map(({ name, default: usual, description, is_input }) => {
      const id = `option-${name}`, values = engine.picks.filter(([each]) => each === name).map(([, value]) => value);
      const field = is_input ? element("input", { id, inputMode: "numeric", placeholder: usual })
        : element("select", { id }, ...["", ...values].map((value) => element("option", { value }, value || (usual || "not given"))));
      field.addEventListener(is_input ? "input" : "change", () => {
        const text = field.value.trim(), value = is_input && text ? count(text) : text;
        field.setAttribute("aria-invalid", String(value === null));
        if (value === null) return;
        const { [name]: _, ...others } = state.options;
        change({ options: value === "" ? others : { ...others, [name]: String(value) } });
      });
      field.setAttribute("aria-describedby", `${id}-said`);
      return element("div", { class: "field" }, element("label", { htmlFor: id }, name), field, element("p", { class: "said", id: `${id}-said` }, description));
    }));
  }
  for (const { name } of engine.options) {
    const field = $(`option-${name}`);
    if (document.activeElement !== field) field.value = state.options[name] ?? "";
  }
}
// Bytes as a number of GiB that reads back as the same bytes, where one of six digits does.
function plain(bytes) {
  const millionths = bytes * 10n ** 6n / (1n << 30n);
  return `${millionths / 10n ** 6n}.${String(millionths % 10n ** 6n).padStart(6, "0")}`.replace(/\.?0+$/, "");
}

function render() {
  ask();
  const plan = planOf(data, questionOf(state));
  document.title = `${state.model} in ${state.engine} - kvcalc`;
  $("verdict").className = "unknown";
  clearTimeout(later);
  for (const id of ["account", "figures", "kinds", "curve", "work", "notes", "warnings", "verdict-more"]) if (plan.refusal !== undefined) show(id);
  for (const id of ["curve", "work", "notes"]) $(id).closest("section").hidden = plan.refusal !== undefined;
  const { kinds: looks, order } = data.models[state.model];
  show("strip", ...layers(looks, unrolled(order)));
  if (plan.refusal !== undefined) {
    show("verdict", "No answer");
    show("mini", "No answer");
    $("mini").className = "mini";
    show("verdict-more", plan.refusal);
    show("lines", copyable("On the command line", commandLine()));
  } else {
    const answer = verdict(plan, state.c, state.b), values = plan.kv(state.c, state.b), { pool } = answer;
    $("verdict").className = answer.fits ? "yes" : "no";
    show("verdict", pool.reason ? answer.said.replace(":", " before working memory:") : answer.said);
    show("verdict-more", answer.more);
    show("mini", answer.said);
    $("mini").className = `mini ${answer.fits ? "yes" : "no"}`;
    show("account", ...account(answer));
    show("figures", ...figures(plan, answer, values));
    show("warnings", ...(pool.reason ? [element("li", {}, `${pool.reason}: it is not in the figures`)] : []));
    show("kinds", kinds(plan, state.c, state.b, values));
    const server = serverLine(plan);
    show("lines", copyable("On the command line", commandLine()), server && copyable("The server", server), copyable("This page with this question", location.href));
    show("work", ...work(plan, values, pool));
    const notes = [...plan.weights.notes, ...plan.cache.notes, ...plan.working.notes];
    $("notes").closest("section").hidden = !notes.length;
    show("notes", ...[...new Set(notes)].map((note) => element("li", {}, note)));
    const ideal = state.engine !== "ideal" && data.engines.ideal && data.models[state.model].engines.ideal
      ? planOf(data, questionOf({ ...state, engine: "ideal", version: "", options: {}, kv: state.kv && data.engines.ideal.kv_formats.includes(state.kv) ? state.kv : "", weights: "" })) : null;
    later = setTimeout(() => { show("curve", ...curve(plan, ideal, answer)); show("engines", sideBySide()); }, 40);
    return;
  }
  later = setTimeout(() => show("engines", sideBySide()), 40);
}

function start() {
  boxes = {
    model: picker("model", () => Object.entries(data.models).map(([name, each]) => [name, name, each.layout, each.names.join(" ")]), (model) => {
      const longest = data.models[model].max_context;
      change({ model, draft: data.models[model].drafts.includes(state.draft) ? state.draft : "", c: longest === null ? state.c : smaller(state.c, BigInt(longest)) });
    }),
    device: picker("device", () => [...data.devices.map((each) => [each.name, each.title, `${each.name}, ${inBytes(BigInt(each.memory_bytes), 1)}`]),
      ["", "another device", "of a memory that you name"]], (device) => change({ device })),
    weights: picker("weights", () => data.engines[state.engine].weight_formats.map((each) => [each, each || "as shipped"]), (weights) => change({ weights })),
    kv: picker("kv", () => [["", data.models[state.model].engines[state.engine].default, "the default"],
      ...data.engines[state.engine].kv_formats.map((each) => [each, each])], (kv) => change({ kv })),
    context: numberBox("context", tokens, (c) => change({ c })),
    sequences: numberBox("sequences", sequencesOf, (b) => change({ b })),
  };
  $("engine").addEventListener("change", () => change({ engine: $("engine").value }));
  $("version").addEventListener("change", () => change({ version: $("version").value }));
  $("draft").addEventListener("change", () => change({ draft: $("draft").value }));
  $("size").addEventListener("change", () => change({ tp: Number($("size").value) }));
  const box = (id, read, key) => $(id).addEventListener("input", () => {
    const value = read($(id).value);
    $(id).setAttribute("aria-invalid", String(value === null));
    if (value !== null) change({ [key]: value });
  });
  box("memory", (text) => decimal(text, 1n << 30n), "memory");
  box("reserve", (text) => (text.trim() === "" ? 0n : decimal(text, 1n << 30n)), "reserve");
  box("utilization", (text) => (text.trim() === "" || utilizationOf(text) ? text.trim() : null), "u");
  $("ask").addEventListener("submit", (event) => event.preventDefault());
  $("share").addEventListener("click", () => copy(location.href, $("share")));
  window.addEventListener("hashchange", () => { state = fromAddress(location.hash); render(); });
  $("about").textContent = `${Object.keys(data.models).length} models, ${Object.keys(data.engines).length} engines, ${data.devices.length} devices`;
  $("foot").textContent = `Computed in this page from the formulas of kvcalc ${data.tool}. Byte figures are for one device; nothing is loaded or sent.`;
  state = fromAddress(location.hash);
  $("main").hidden = $("mini").hidden = false;
  change({});
  let resized;
  window.addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(render, 150); });
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const found = JSON.parse(await new Response(stream).text());
  return { ...found, models: byName(found.models) };
}

unpack($("data").textContent).then((found) => { data = found; start(); }, (error) => {
  document.body.prepend(element("p", { class: "card" }, `This browser cannot read the page's data: ${error.message}`));
});
