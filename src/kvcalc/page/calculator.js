"use strict";
// The engines' own formulas, evaluated. No rule of an engine is written here: a formula is a text of the library's
// (kvcalc.derivation), and an integer is a BigInt, so that it is exact at any size. A Number is a float that the engine
// itself computes in.

const float = (value) => (typeof value === "bigint" ? Number(value) : value);
const smaller = (a, b) => (b < a ? b : a);
const larger = (a, b) => (b > a ? b : a);
const bits = (value) => BigInt(value.toString(2).length);

function floorDivide(a, b) {
  if (typeof a === "bigint" && typeof b === "bigint") {
    const quotient = a / b;
    return a % b !== 0n && (a < 0n) !== (b < 0n) ? quotient - 1n : quotient;
  }
  // Python's // of floats: by way of the remainder, which is exact.
  const x = float(a), y = float(b);
  let rest = x % y;
  let quotient = (x - rest) / y;
  if (rest !== 0 && rest < 0 !== y < 0) { rest += y; quotient -= 1; }
  const floor = Math.floor(quotient);
  return quotient - floor > 0.5 ? floor + 1 : floor;
}

function divide(a, b) {
  const most = 2n ** 53n;
  if (typeof a !== "bigint" || typeof b !== "bigint" || (a <= most && b <= most)) return float(a) / float(b);
  // The float nearest to the quotient: 64 bits of it, and one that says whether anything is left.
  const shift = larger(0n, 64n - bits(a) + bits(b));
  const quotient = (a << shift) / b;
  return Number(quotient * 2n + (quotient * b === a << shift ? 0n : 1n)) / 2 ** (Number(shift) + 1);
}

// The smallest integer from which on something holds, from a guess by steps that double, then by halves.
function smallestReaching(guess, reaches) {
  let high = larger(guess, 0n), step = 1n;
  while (!reaches(high)) { high += step; step *= 2n; }
  let low = high - 1n;
  step = 1n;
  while (low >= 0n && reaches(low)) { high = low; low -= step; step *= 2n; }
  low = larger(low, -1n);
  while (high - low > 1n) {
    const middle = (low + high) / 2n;
    if (reaches(middle)) high = middle; else low = middle;
  }
  return high;
}

// The largest n up to `most` for which something holds; 0 if there is none.
function largest(holds, most) {
  let good = 0n, bad = 1n;
  while (bad <= most && holds(bad)) { good = bad; bad *= 2n; }
  bad = smaller(bad, most + 1n);
  while (bad - good > 1n) {
    const middle = (good + bad) / 2n;
    if (holds(middle)) good = middle; else bad = middle;
  }
  return good;
}

const ceilDivide = (a, b) => -floorDivide(-a, b);
const FUNCTIONS = {
  min: (...values) => values.reduce(smaller),
  max: (...values) => values.reduce(larger),
  int: (value) => (typeof value === "bigint" ? value : BigInt(Math.trunc(value))),
  ceil_div: ceilDivide,
  round_up: (value, multiple) => ceilDivide(value, multiple) * multiple,
  power_of_two: (value) => (value < 2n ? 1n : 1n << bits(value - 1n)),
  smallest_reaching: smallestReaching,
};

const OPERATIONS = {
  "+": (a, b) => (typeof a === typeof b ? a + b : float(a) + float(b)),
  "-": (a, b) => (typeof a === typeof b ? a - b : float(a) - float(b)),
  "*": (a, b) => (typeof a === typeof b ? a * b : float(a) * float(b)),
  "/": divide,
  "//": floorDivide,
  ">=": (a, b) => a >= b,
  "<=": (a, b) => a <= b,
  "==": (a, b) => a == b, // eslint-disable-line eqeqeq -- an integer and a float may be the same number
  "!=": (a, b) => a != b, // eslint-disable-line eqeqeq
  ">": (a, b) => a > b,
  "<": (a, b) => a < b,
};
// What binds least comes first.
const LEVELS = [[">=", "<=", "==", "!=", ">", "<"], ["+", "-"], ["*", "/", "//"]];
const TOKEN = /\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?|[A-Za-z_]\w*|\/\/|[<>=!]=|[-+*/()<>,:])/y;

// A formula as a function of the values of its symbols.
function compile(formula) {
  const tokens = [];
  TOKEN.lastIndex = 0;
  for (let match; TOKEN.lastIndex < formula.length && (match = TOKEN.exec(formula));) tokens.push(match[1]);
  let at = 0;
  const take = (token) => tokens[at] === token && (at += 1) > 0;
  const need = (token) => { if (!take(token)) throw new Error(`${token} is missing in ${formula}`); };

  function whole() {
    if (take("lambda")) {
      const name = tokens[at++];
      need(":");
      const body = whole();
      return (values) => (value) => body({ __proto__: values, [name]: value });
    }
    const chosen = both();
    if (!take("if")) return chosen;
    const holds = both();
    need("else");
    const other = whole();
    return (values) => (holds(values) ? chosen(values) : other(values));
  }
  function both() {
    let left = level(0);
    while (take("and")) {
      const first = left, second = level(0);
      left = (values) => first(values) && second(values);
    }
    if (!take("or")) return left;
    const right = both();
    return (values) => left(values) || right(values);
  }
  function level(number) {
    if (number === LEVELS.length) return signed();
    let left = level(number + 1);
    while (LEVELS[number].includes(tokens[at])) {
      const operation = OPERATIONS[tokens[at++]], first = left, second = level(number + 1);
      left = (values) => operation(first(values), second(values));
    }
    return left;
  }
  function signed() {
    if (!take("-")) return called();
    const value = signed();
    return (values) => -value(values);
  }
  function called() {
    let value = atom();
    while (take("(")) {
      const parts = [], callee = value;
      while (!take(")")) { parts.push(whole()); take(","); }
      value = (values) => callee(values)(...parts.map((part) => part(values)));
    }
    return value;
  }
  function atom() {
    if (take("(")) {
      const inner = whole();
      need(")");
      return inner;
    }
    const token = tokens[at++];
    if (token === undefined) throw new Error(`${formula} ends early`);
    if (/^\d+$/.test(token)) { const integer = BigInt(token); return () => integer; }
    if (/^\d/.test(token)) { const number = Number(token); return () => number; }
    if (Object.hasOwn(FUNCTIONS, token)) return () => FUNCTIONS[token];
    return (values) => {
      if (values[token] === undefined) throw new Error(`${token} has no value in ${formula}`);
      return values[token];
    };
  }
  const compiled = whole();
  if (at !== tokens.length) throw new Error(`${formula} goes on after its end`);
  return compiled;
}

const COMPILED = new Map();
function compiled(formula) {
  if (!COMPILED.has(formula)) COMPILED.set(formula, compile(formula));
  return COMPILED.get(formula);
}

// Every symbol's value. A quantity is {symbol, formula, ...}; one without a formula is an input.
function evaluate(quantities, inputs) {
  const values = { __proto__: null };
  for (const { symbol, formula } of quantities) {
    values[symbol] = formula === "" ? BigInt(inputs[symbol]) : compiled(formula)(values);
  }
  return values;
}

// --- The data of a page ----------------------------------------------------------------------------------------------

const MAX_TOKENS = 2n ** 40n, MAX_BYTES = 2n ** 70n;

// The value at a place of a list that is written as values and how often each stands there.
function atRun(runs, place) {
  for (let at = 0; at < runs.length; at += 2) {
    if (place < runs[at + 1]) return runs[at];
    place -= runs[at + 1];
  }
  return null;
}

const FILLED = new WeakMap();
// A derivation with its numbers back in their places.
function filled(data, owner, shape, numbers) {
  const known = FILLED.get(owner) ?? FILLED.set(owner, new Map()).get(owner);
  if (known.has(shape)) return known.get(shape);
  let at = 0;
  const put = (text) => text.replace(/\u00b6/g, () => numbers[at++]);
  const quantities = data.shapes[shape].map(([symbol, formula, meaning, unit, source]) => (
    { symbol, formula: put(formula), meaning: put(meaning), unit, source }
  ));
  known.set(shape, quantities);
  return quantities;
}

// A question: {model, engine, version, device, kv, weights, size, context, sequences, utilization, reserve, memory}.
// `device` is a name or ""; then `memory` is the bytes of one. `kv` and `weights` are "" for the model's own.
function asked(data, question) {
  const engine = data.engines[question.engine], model = data.models[question.model];
  const own = model.engines[question.engine];
  const device = data.devices.find((each) => each.name === question.device) ?? {
    name: "", title: "a device", memory_bytes: question.memory ?? 0, platform: "cuda", unified: false, choices: {},
    inputs: data.unnamed,
  };
  const group = Math.max(0, engine.releases.findIndex((each) => each.includes(question.version)));
  const choice = device.choices[question.engine] ?? 0;
  // llama.cpp's attention reads K and V in f16, and copies what is in another format.
  const [key, value = key] = (question.kv || own.default).split("/");
  const copied = { k_copied: Number(key !== "float16"), v_copied: Number(value !== "float16") };
  const inputs = { ...engine.inputs, ...device.inputs, ...engine.choices[choice], ...copied };
  const size = data.sizes.indexOf(question.size ?? 1);
  return { data, question, engine, model, own, device, group, choice, inputs, size };
}

const refused = (text) => ({ refusal: text });

// The formulas of the cache: {one, several, notes}, or {refusal}.
function cacheOf({ data, question, engine, model, own, group, choice, size }) {
  const format = engine.kv_formats.indexOf(question.kv || own.default);
  if (format < 0) return refused(`${question.engine} has no KV cache in ${question.kv} on this page`);
  const table = own.kv[choice] ?? own.kv[0];
  const place = atRun(table, (group * engine.kv_formats.length + format) * data.sizes.length + size);
  if (place === null) return refused("this page has not this version with that format and size: the command line has");
  if (place < 0) return refused(model.texts[-1 - place]);
  const found = model.cases[place];
  const [one, numbers, several, others, notes] = found;
  return {
    one: filled(data, found, one, numbers),
    several: several < 0 ? filled(data, found, one, numbers) : filled(data, found, several, others),
    notes: notes.map((note) => model.texts[note]),
  };
}

function weightsOf({ data, question, engine, model, own, size }) {
  const format = engine.weight_formats.indexOf(question.weights ?? "");
  if (format < 0) return refused(`${question.engine} has no weights in ${question.weights} on this page`);
  const place = atRun(own.weights, size * engine.weight_formats.length + format);
  if (place === null || place < 0) return refused(place === null ? "" : model.texts[-1 - place]);
  const [bytes, parameters, dtype, exact, notes] = model.loads[place];
  return {
    bytes: BigInt(bytes), parameters: BigInt(parameters), dtype, exact, notes: notes.map((note) => model.texts[note]),
  };
}

// The formulas of the working memory on the device, and of what loading adds: {quantities, notes, reason}, the reason
// why working memory is not among them.
function workingOf({ data, question, engine, model, own, device, group, size }) {
  const formats = own.by_format ? engine.weight_formats.length : 1;
  const format = own.by_format ? Math.max(0, engine.weight_formats.indexOf(question.weights ?? "")) : 0;
  const platform = engine.platforms.indexOf(`${device.platform} ${device.unified ? "True" : "False"}`);
  const row = (group * data.sizes.length + size) * formats + format;
  const table = own.working[question.kv || own.default] ?? own.working[""] ?? [];
  const place = atRun(table, row * engine.platforms.length + platform);
  if (place === null || place < 0) {
    const absent = "the working memory of this version in this size is not on this page";
    return { quantities: [], notes: [], reason: place === null ? absent : model.texts[-1 - place] };
  }
  const found = model.steps[place], [shape, numbers, notes, reason] = found;
  return {
    quantities: filled(data, found, shape, numbers),
    notes: notes.map((note) => model.texts[note]),
    reason: reason === null ? "" : model.texts[reason].replaceAll("{device}", device.title),
  };
}

const WORKING = ["activation_bytes", "runtime_bytes", "graph_bytes", "band_bytes", "share_bytes", "loading_bytes"];

// A plan answers for any context and batch size, as kvcalc.fitting does.
function planOf(data, question) {
  const it = asked(data, question);
  const cache = cacheOf(it), weights = weightsOf(it), working = workingOf(it);
  if (cache.refusal !== undefined || weights.refusal !== undefined) return { it, refusal: cache.refusal ?? weights.refusal };
  const inputs = (context, sequences) => ({ ...it.inputs, T: context, B: sequences });

  function kv(context, sequences) {
    return evaluate(sequences === 1n ? cache.one : cache.several, inputs(context, sequences));
  }
  function pool(context, sequences) {
    const memory = BigInt(it.device.memory_bytes);
    const [part, whole] = question.utilization ?? [BigInt(it.engine.utilization[it.group]), 100n];
    const usable = memory * part / whole, reserve = question.reserve ?? 0n;
    const terms = { memory, usable, reserve, weights: weights.bytes, reason: working.reason };
    const values = evaluate(working.quantities, inputs(context, sequences));
    for (const name of WORKING) terms[name] = values[name] ?? 0n;
    terms.weights += terms.loading_bytes;
    return { ...terms, values, kv_memory: usable - terms.weights - terms.share_bytes - reserve };
  }
  const [mostSequences, longest] = it.engine.limits[it.choice].map((limit) => (limit === null ? null : BigInt(limit)));
  function required(context, sequences) {
    if ((longest !== null && context > longest) || (mostSequences !== null && sequences > mostSequences)) return null;
    const values = kv(context, sequences);
    const bytes = values.required_bytes ?? values.kv_bytes;
    return bytes > MAX_BYTES ? null : bytes;
  }
  function fits(context, sequences) {
    const bytes = required(context, sequences);
    return bytes !== null && bytes <= pool(context, sequences).kv_memory;
  }
  const unbounded = (most) => (most === MAX_TOKENS ? null : most);
  function maxContext(sequences) {
    return unbounded(largest((context) => fits(context, sequences), longest === null ? MAX_TOKENS : longest));
  }
  const maxSequences = (context) => unbounded(largest((sequences) => fits(context, sequences), MAX_TOKENS));
  return { it, cache, weights, working, kv, pool, required, fits, maxContext, maxSequences, inputs };
}
