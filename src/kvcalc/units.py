"""Bytes and tokens: read, write and search them, integers only.

"GiB" is 2^30 and "GB" is 10^9. A token count takes ``k``/``K`` = 1024 and ``M`` = 1024²; a byte size needs a unit.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import SupportsIndex

from kvcalc.errors import InputError, did_you_mean, quote

KiB = 2**10
MiB = 2**20
GiB = 2**30
TiB = 2**40

#: The largest context, batch or size that is taken for a real one: far above any model, far below what slows Python.
MAX_TOKENS = 2**40
MAX_BYTES = 2**70

BINARY_UNITS = {"B": 1, "KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": TiB, "PiB": 2**50}
DECIMAL_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_UNITS = {**BINARY_UNITS, **DECIMAL_UNITS}
_UNITS_FOLDED = {name.casefold(): size for name, size in _UNITS.items()}
_UNITS_FOLDED |= {name.removesuffix("b"): size for name, size in _UNITS_FOLDED.items() if len(name) > 1}  # 80G, 24Gi

_MOST_COUNTS = 2**20

_TOKENS = re.compile(r"([0-9]{1,15}(?:[_,][0-9]{3})*)(?:\.([0-9]{1,6}))?\s?(?:([kKmM])i?)?", re.ASCII)
_BYTES = re.compile(r"([0-9]{1,24}(?:\.[0-9]{1,9})?)\s?([A-Za-z]{1,5})", re.ASCII)
_TOKEN_SCALE = {"": 1, "k": 1024, "m": 1024**2}


def ceil_div(dividend: int, divisor: int) -> int:
    """Division of integers, rounded up.

    >>> ceil_div(33, 16)
    3
    """
    return -(-dividend // divisor)


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is not below ``value``.

    >>> round_up(1536, 256), round_up(1537, 256)
    (1536, 1792)
    """
    return -(-value // multiple) * multiple


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below ``value``.

    >>> power_of_two(132), power_of_two(128)
    (256, 128)
    """
    return 1 << (value - 1).bit_length()


def largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest n up to ``most`` for which ``holds(n)``, by doubling and halving; 0 if there is none.

    ``holds`` is true up to some number and false beyond it.

    >>> largest(lambda n: n * n <= 1000, 10**6)
    31
    """
    good, bad = 0, 1
    while bad <= most and holds(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good


def smallest_reaching(guess: int, reaches: Callable[[int], bool]) -> int:
    """The smallest integer >= 0 for which ``reaches`` (false, then true) is true.

    The search starts at ``guess``, usually the answer of exact arithmetic, and doubles its steps: a rounding of the
    engine's floats moves the answer by a byte or two, and a guess far off costs a few dozen calls, never a long loop.

    >>> smallest_reaching(40, lambda pool: int(pool * 0.9) >= 36)
    40
    """
    high, step = max(guess, 0), 1
    while not reaches(high):
        high += step
        step *= 2
    low, step = high - 1, 1
    while low >= 0 and reaches(low):
        high = low
        low -= step
        step *= 2
    low = max(low, -1)
    while high - low > 1:
        middle = (low + high) // 2
        if reaches(middle):
            high = middle
        else:
            low = middle
    return high


def integer(value: object) -> int | None:
    """An integer of Python's or of another library (``numpy.int64``) as Python's own; None for all else.

    A bool is no count, and a float is never one: 1e3 may be 999.9999.

    >>> integer(3), integer(True), integer(3.0)
    (3, None, None)
    """
    if type(value) is int:  # nearly always, and asking a protocol takes a microsecond
        return value
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # an array has the method, and often no index
        return None


def check_count(value: object, what: str, *, least: int = 1, most: int = MAX_TOKENS) -> int:
    """``value`` as an integer between ``least`` and ``most``.

    Integers of other libraries (``numpy.int64``) are taken.

    Raises:
        InputError: it is no integer, or out of the range.

    >>> check_count(32768, "context")
    32768
    """
    count = integer(value)
    if count is None:
        raise InputError(f"{what} must be a whole number, not {quote(value)}")
    if count < least:
        raise InputError(f"{what} must be at least {least:,}, not {quote(count)}")
    if count > most:
        raise InputError(f"{what} must be at most {most:,}, not {quote(count)}")
    return count


def parse_count(text: str, what: str = "tokens", *, least: int = 1, most: int = MAX_TOKENS) -> int:
    """A count such as ``32768``, ``131,072``, ``131_072``, ``32k``, ``1.5k`` or ``1M``.

    Raises:
        InputError: not a count, not a whole one, or outside ``least`` to ``most``.

    >>> parse_count("32k"), parse_count("1M"), parse_count("131,072"), parse_count("1.5k")
    (32768, 1048576, 131072, 1536)
    """
    stripped = text.strip()
    match = _TOKENS.fullmatch(stripped)
    whole, left = 0, 1
    if match is not None:
        digits, fraction = match[1].replace("_", "").replace(",", ""), match[2] or ""
        scale = _TOKEN_SCALE[(match[3] or "").lower()]
        whole, left = divmod(int(digits + fraction) * scale, 10 ** len(fraction))
    if match is None or left:
        raise InputError(
            f"{what} must be a whole number such as 8, 32768 or 32k, not {quote(stripped)}",
            hint="k is 1024 and M is 1024 x 1024; no signs or other units",
        )
    return check_count(whole, what, least=least, most=most)


def parse_counts(text: str, what: str = "tokens") -> Sequence[int]:
    """A list of counts with commas between them: ``1k,4k,32k``; ``1k..4k/1k`` counts from 1k to 4k in steps of 1k.

    A single range stays a range, however long it is.

    Raises:
        InputError: no count, a range that is empty, or a list of more than 2^20 counts.

    >>> parse_counts("1k,4k"), parse_counts("1k..4k/1k"), list(parse_counts("512,1k..2k/512"))
    ([1024, 4096], range(1024, 4097, 1024), [512, 1024, 1536, 2048])
    """
    parts = text.split(",")
    if any(re.fullmatch(r"0[0-9]+", part) for part in parts[1:]):
        hint = f"{''.join(parts)}, or {'_'.join(parts)}"
        raise InputError(
            f"{what} is a list with commas: {quote(text.strip())} reads as {len(parts)} numbers", hint=hint
        )
    ranges = [_parse_range(part, what) for part in parts]
    if len(ranges) == 1 and len(ranges[0]) > 1:
        return ranges[0]
    if sum(map(len, ranges)) > _MOST_COUNTS:
        raise InputError(f"{what} has more than {_MOST_COUNTS:,} values", hint="write one range, such as 1k..1M/1k")
    return [count for each in ranges for count in each]


def _parse_range(text: str, what: str) -> range:
    first, dots, rest = text.partition("..")
    if not dots and "-" in text.strip("-"):
        low, _, high = text.strip().partition("-")
        raise InputError(f"{what} has no range {quote(text.strip())}", hint=f"write it {low}..{high}")
    start = parse_count(first, what)
    if not dots:
        return range(start, start + 1)
    last, slash, step_text = rest.partition("/")
    stop, step = parse_count(last, what), parse_count(step_text, f"the step of {what}") if slash else 1
    if stop < start:
        raise InputError(f"{what} has an empty range: {quote(text.strip())}", hint="write the smaller end first")
    return range(start, stop + 1, step)


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "device"), counted(1024, "token")
    ('1 device', '1,024 tokens')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def format_count(count: int) -> str:
    """The shortest spelling that :func:`parse_count` reads as the same number.

    >>> format_count(32768), format_count(1048576), format_count(1000)
    ('32k', '1M', '1000')
    """
    for suffix, scale in (("M", 1024**2), ("k", 1024)):
        if count and count % scale == 0:
            return f"{count // scale}{suffix}"
    return str(count)


def parse_bytes(text: str, what: str = "size") -> int:
    """A byte size with its unit: ``24GiB``, ``79.6 GB``, ``512MiB``, ``1024B``.

    A fraction of a byte is dropped: ``0.1GiB`` is 107374182 bytes.

    Raises:
        InputError: no number, no unit, an unknown unit, or more than 2^70 bytes.

    >>> parse_bytes("24GiB"), parse_bytes("24GB")
    (25769803776, 24000000000)
    """
    stripped = text.strip()
    match = _BYTES.fullmatch(stripped)
    if match is None:
        hint = "write a unit: 24GiB is 24 x 2^30 bytes, 24GB is 24 x 10^9"
        raise InputError(f"{what} must be a number with a unit such as 24GiB, not {quote(stripped)}", hint=hint)
    scale = _UNITS_FOLDED.get(match[2].casefold())
    if scale is None:
        hint = did_you_mean(match[2], _UNITS) or f"known units: {', '.join(_UNITS)}"
        raise InputError(f"unknown unit {quote(match[2])} in {what} {quote(stripped)}", hint=hint)
    whole, _, fraction = match[1].partition(".")
    size = int(whole + fraction) * scale // 10 ** len(fraction)
    return check_count(size, what, least=0, most=MAX_BYTES)


def format_bytes(size: int, units: Mapping[str, int] | None = None, digits: int = 1) -> str:
    """A byte size for people, rounded half up, in the largest unit that keeps it at least 1.

    >>> format_bytes(11173625856), format_bytes(11173625856, DECIMAL_UNITS), format_bytes(7)
    ('10.4 GiB', '11.2 GB', '7 B')
    """
    unit = unit_for(size, units)
    return f"{format_in_unit(size, unit, digits)} {unit}"


def unit_for(largest: int, units: Mapping[str, int] | None = None) -> str:
    """The unit in which ``largest`` is at least 1: the one unit of a whole column.

    >>> unit_for(3489660928), unit_for(0)
    ('GiB', 'B')
    """
    fitting = [name for name, scale in (units or BINARY_UNITS).items() if abs(largest) >= scale]
    return fitting[-1] if fitting else "B"


def format_in_unit(size: int, unit: str, digits: int = 1) -> str:
    """The number alone, in the given unit, rounded half up with integers (no float in a byte count).

    >>> format_in_unit(1962934272, "MiB"), format_in_unit(1962934272, "GiB", 2)
    ('1,872.0', '1.83')
    """
    if unit == "B":
        return f"{size:,}"
    scaled = abs(size) * 10**digits
    rounded = (2 * scaled + _UNITS[unit]) // (2 * _UNITS[unit])
    whole, fraction = divmod(rounded, 10**digits)
    sign = "-" if size < 0 else ""
    return f"{sign}{whole:,}.{fraction:0{digits}d}" if digits else f"{sign}{whole:,}"


def exact_bytes(size: int) -> str:
    """The shortest exact spelling; :func:`parse_bytes` reads it back as the same number.

    >>> exact_bytes(25769803776), exact_bytes(24_000_000_000), exact_bytes(1025)
    ('24GiB', '24GB', '1025B')
    """
    spellings = [f"{size // scale}{name}" for name, scale in _UNITS.items() if size % scale == 0 and size >= scale]
    return min(spellings, key=len, default=f"{size}B")


def decimal_text(fraction: Fraction) -> str:
    """The decimal that a share was typed as: its denominator divides a power of ten.

    >>> from fractions import Fraction
    >>> decimal_text(Fraction(23, 25)), decimal_text(Fraction(1))
    ('0.92', '1')
    """
    return format((Decimal(fraction.numerator) / Decimal(fraction.denominator)).normalize(), "f")
