// The data of a page (kvcalc.page.data): which formulas answer a question, and what they give on a device.

// The value at a place of a list that is written as values and how often each stands there.
function atRun(runs, place) {
  for (let at = 0; at < runs.length; at += 2) {
    if (place < runs[at + 1]) return runs[at];
    place -= runs[at + 1];
  }
  return null;
}

// All the values of such a list.
function unrolled(runs) {
  const values = [];
  for (let at = 0; at < runs.length; at += 2) for (let n = 0; n < runs[at + 1]; n += 1) values.push(runs[at]);
  return values;
}

const FILLED = new WeakMap();
// A derivation with its numbers back in their places.
function filled(data, owner, shape, numbers) {
  const known = FILLED.get(owner) ?? FILLED.set(owner, new Map()).get(owner);
  if (known.has(shape)) return known.get(shape);
  let at = 0;
  const put = (text) => text.replace(/\u00b6/g, () => numbers[at++]);
  const quantities = data.shapes[shape].map((place) => {
    const [symbol, formula, meaning, unit, source] = data.quantities[place];
    return { symbol, formula: put(formula), meaning: put(meaning), unit, source };
  });
  known.set(shape, quantities);
  return quantities;
}

const refused = (text) => ({ refusal: text });

// Versions, options and drafts are rows, because each has formulas of its own: {row}, or {refusal}. An option that is an
// input of formulas takes any number beside them.
function rowOf(engine, model, { version, options = {}, draft = "" }) {
  const group = Math.max(0, engine.releases.findIndex((each) => each.includes(version)));
  const picked = Object.entries(options).filter(([name]) => !(name in engine.inputs));
  if (!picked.length && !draft) return { row: group };
  if (picked.length + (draft ? 1 : 0) > 1) return refused("this page has one option or a draft at a time: the command line has them together");
  if (group) return refused("this page has options and drafts in the newest version alone: the command line has them in each");
  const drafted = model.drafts.includes(draft) ? Number(draft !== "mtp") : -1;
  const found = draft ? drafted : engine.picks.findIndex((pick) => String(pick) === String(picked[0]));
  if (found < 0) return refused("this page has not this draft or option: the command line has");
  return { row: Math.max(1, engine.releases.length) + found + (draft ? engine.picks.length : 0) };
}

// A question: {model, engine, version, options, draft, device, kv, weights, size, context, sequences, utilization,
// reserve, memory}. `device` is a name or ""; then `memory` is the bytes of one. `kv` and `weights` are "" for the
// model's own; options are texts by name.
function asked(data, question) {
  const engine = data.engines[question.engine], model = data.models[question.model];
  const own = model.engines[question.engine];
  const device = data.devices.find((each) => each.name === question.device) ?? {
    name: "", title: "a device", memory_bytes: question.memory ?? 0, platform: "cuda", unified: false, choices: {},
    inputs: {
      ...data.unnamed,
      memory_bytes: String(question.memory ?? 0), memory_mib: String(larger(BigInt(question.memory ?? 0) >> 20n, 1n)),
    },
  };
  const { row, refusal } = own.elsewhere.includes(device.name)
    ? refused(`this page has not what ${question.engine} chooses for this model on ${device.name}: the command line has`)
    : rowOf(engine, model, question);
  const choice = device.choices[question.engine] ?? 0;
  // llama.cpp's attention reads K and V in f16, and copies what is in another format.
  const [key, value = key] = (question.kv || own.default).split("/");
  const copied = { k_copied: Number(key !== "float16"), v_copied: Number(value !== "float16") };
  const given = { ...engine.choices[choice], ...question.options };
  const inputs = { ...engine.inputs, ...device.inputs, ...given, ...copied };
  const size = data.sizes.indexOf(question.size ?? 1);
  const textAt = (place) => data.texts[model.texts[place]];
  return { data, question, engine, model, own, device, row, refusal, choice, given, inputs, size, textAt };
}

// The formulas of the cache: {one, several, notes}, or {refusal}.
function cacheOf({ data, question, model, own, row, refusal, choice, size, textAt }) {
  if (refusal !== undefined) return refused(refusal);
  const runs = (own.kv[choice] ?? own.kv[0])[question.kv || own.default];
  if (runs === undefined) return refused(`${question.engine} takes no ${question.kv || own.default} K and V of this model`);
  const place = atRun(runs, row * data.sizes.length + size);
  if (place === null) return refused("this page has not all these formats and sizes: the command line has");
  if (place < 0) return refused(textAt(-1 - place));
  const found = model.cases[place];
  const [one, numbers, several, others, notes] = found;
  return {
    one: filled(data, found, one, numbers),
    several: several < 0 ? filled(data, found, one, numbers) : filled(data, found, several, others),
    notes: notes.map((note) => textAt(note)),
  };
}

function weightsOf({ question, engine, model, own, row, size, textAt }) {
  const format = engine.weight_formats.indexOf(question.weights ?? "");
  if (format < 0) return refused(`${question.engine} has no weights in ${question.weights} on this page`);
  const place = atRun(own.weights[row] ?? own.weights[0], size * engine.weight_formats.length + format);
  if (place === null || place < 0) return refused(place === null ? "" : textAt(-1 - place));
  const [bytes, parameters, dtype, exact, notes] = model.loads[place];
  return {
    bytes: BigInt(bytes), parameters: BigInt(parameters), dtype, exact, notes: notes.map((note) => textAt(note)),
  };
}

// The formulas of the working memory on the device, and of what loading adds: {quantities, notes, reason}, the reason
// why working memory is not among them.
function workingOf({ data, question, engine, model, own, device, row, size, textAt }) {
  const formats = own.by_format ? engine.weight_formats.length : 1;
  const format = own.by_format ? Math.max(0, engine.weight_formats.indexOf(question.weights ?? "")) : 0;
  const table = own.working[question.kv || own.default] ?? own.working[""] ?? [];
  const place = atRun(table, (row * data.sizes.length + size) * formats + format);
  const absent = (reason) => ({ quantities: [], notes: [], reason });
  if (place === null || place < 0) return absent(place === null ? "its working memory is not on this page" : textAt(-1 - place));
  const platform = engine.platforms.indexOf(`${device.platform} ${device.unified ? "True" : "False"}`);
  const [step, loading] = model.held[place].slice(2 * platform);
  if (step < 0) return absent(textAt(-1 - step));
  const [shape, numbers, notes, reason] = model.steps[step], [added, others] = model.loadings[loading];
  return {
    quantities: [...filled(data, model.steps[step], shape, numbers), ...filled(data, model.loadings[loading], added, others)],
    notes: notes.map((note) => textAt(note)),
    reason: reason === null ? "" : textAt(reason).replaceAll("{device}", device.title),
  };
}

const WORKING = ["activation_bytes", "runtime_bytes", "graph_bytes", "band_bytes", "share_bytes", "loading_bytes"];

// A plan answers for any context and batch size, as kvcalc.fitting does.
function planOf(data, question) {
  const it = asked(data, question);
  const cache = cacheOf(it);
  if (cache.refusal !== undefined) return { it, refusal: cache.refusal };
  const weights = weightsOf(it), working = workingOf(it);
  if (weights.refusal !== undefined) return { it, refusal: weights.refusal };
  const inputs = (context, sequences) => ({ ...it.inputs, T: context, max_model_len: context, B: sequences });

  function kv(context, sequences) {
    return evaluate(sequences === 1n ? cache.one : cache.several, inputs(context, sequences));
  }
  function pool(context, sequences) {
    const memory = BigInt(it.device.memory_bytes);
    const [part, whole] = question.utilization ?? [BigInt(it.engine.utilization[it.row]), 100n];
    const usable = memory * part / whole, reserve = question.reserve ?? 0n;
    const terms = { memory, usable, reserve, weights: weights.bytes, reason: working.reason };
    const values = evaluate(working.quantities, inputs(context, sequences));
    for (const name of WORKING) terms[name] = values[name] ?? 0n;
    if (question.utilization && it.engine.sets_aside) {
      Object.assign(terms, { activation_bytes: 0n, graph_bytes: 0n, share_bytes: terms.runtime_bytes * part / whole });
    }
    terms.weights += terms.loading_bytes;
    return { ...terms, values, kv_memory: usable - terms.weights - terms.share_bytes - reserve };
  }
  // A limit is a number, or the input that is one where it is given.
  const [mostSequences, longest] = it.engine.limits[it.row][it.choice].map((limit) => {
    const value = limit in it.engine.inputs ? it.given[limit] ?? null : limit;
    return value === null ? null : BigInt(value);
  });
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

// The models of kvcalc.page.packing.in_columns as they were: by name, each with its engines.
function byName({ names, columns, engines }) {
  const row = (table, at) => Object.fromEntries(Object.entries(table).map(([key, values]) => [key, values[at]]));
  return Object.fromEntries(names.map((name, at) => [name, {
    ...row(columns, at),
    engines: Object.fromEntries(Object.entries(engines).map(([engine, table]) => [engine, row(table, at)])),
  }]));
}
