// Numbers as kvcalc writes and reads them (kvcalc.units); a size or a count is a BigInt. A test holds the two equal.

const MAX_TOKENS = 2n ** 40n, MAX_BYTES = 2n ** 70n;
// The units of --units, the largest first.
const UNITS = {
  binary: [["PiB", 2n ** 50n], ["TiB", 2n ** 40n], ["GiB", 2n ** 30n], ["MiB", 2n ** 20n], ["KiB", 2n ** 10n]],
  decimal: [["PB", 10n ** 15n], ["TB", 10n ** 12n], ["GB", 10n ** 9n], ["MB", 10n ** 6n], ["kB", 10n ** 3n]],
  bytes: [],
};

const grouped = (value) => value.toString().replace(/\B(?=(\d{3})+$)/g, ",");
const counted = (value, noun) => `${grouped(value)} ${noun}${value === 1n ? "" : "s"}`;
const tokens = (value) => counted(value, "token");
const sequencesOf = (value) => counted(value, "sequence");
const exactly = (size) => `${grouped(size)} B`;

// The largest unit in which a size is at least 1.
function unitFor(size, units = "binary") {
  const absolute = size < 0n ? -size : size;
  return UNITS[units].find(([, scale]) => absolute >= scale) ?? ["B", 1n];
}
// A quotient with some digits, rounded half up with integers.
function rounded(size, scale, digits) {
  const ten = 10n ** BigInt(digits), absolute = size < 0n ? -size : size;
  const parts = (2n * absolute * ten + scale) / (2n * scale);
  return `${size < 0n ? "-" : ""}${grouped(parts / ten)}${digits ? `.${String(parts % ten).padStart(digits, "0")}` : ""}`;
}
function inBytes(size, digits = 2, units = "binary") {
  const [unit, scale] = unitFor(size, units);
  return unit === "B" ? exactly(size) : `${rounded(size, scale, digits)} ${unit}`;
}
const percent = (part, whole) => `${rounded(100n * part, whole, 1)} %`;

// "24" or "24.5" of a unit as an integer; null where it is none.
function decimal(text, unit) {
  const match = /^(\d{1,9})(?:\.(\d{1,6}))?$/.exec(text.trim());
  return match && BigInt(match[1] + (match[2] ?? "")) * unit / 10n ** BigInt((match[2] ?? "").length);
}
// A count such as 32768, 32,768, 32k, 1.5k, 1M; null where it is none, or out of range.
function count(text) {
  const match = /^(\d{1,15}(?:[_,]\d{3})*)(?:\.(\d{1,6}))?\s?(?:([km])i?)?$/i.exec(text.trim());
  if (!match) return null;
  const [whole, part] = [match[1].replace(/[_,]/g, ""), match[2] ?? ""], ten = 10n ** BigInt(part.length);
  const value = BigInt(whole + part) * { undefined: 1n, k: 1024n, m: 1048576n }[match[3]?.toLowerCase()];
  return value % ten === 0n && value / ten >= 1n && value / ten <= MAX_TOKENS ? value / ten : null;
}
// The shortest spelling that is read as the same count.
function shortCount(value) {
  const [letter, scale] = [["M", 1048576n], ["k", 1024n]].find(([, each]) => value && value % each === 0n) ?? ["", 1n];
  return `${value / scale}${letter}`;
}
