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
  // What holds is 1, as in Python: 128 * (B > 1).
  ">=": (a, b) => BigInt(a >= b),
  "<=": (a, b) => BigInt(a <= b),
  "==": (a, b) => BigInt(a == b), // eslint-disable-line eqeqeq -- an integer and a float may be the same number
  "!=": (a, b) => BigInt(a != b), // eslint-disable-line eqeqeq
  ">": (a, b) => BigInt(a > b),
  "<": (a, b) => BigInt(a < b),
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
