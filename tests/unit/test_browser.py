"""Numbers and axes in a page are kvcalc's: one rounding, one spelling, every value on its axis."""

from __future__ import annotations

import json
import random

import pytest
from javascript import Run, javascript

from kvcalc.errors import InputError
from kvcalc.report.cells import UNIT_TABLES
from kvcalc.units import BINARY_UNITS, DECIMAL_UNITS, MAX_TOKENS, format_bytes, format_count, parse_count


@pytest.fixture(scope="module")
def run() -> Run:
    return javascript()


def sizes() -> list[int]:
    """All around each unit and each half of a digit, and at random up to far beyond 2^53."""
    random_ = random.Random(5)  # noqa: S311
    scales = {*BINARY_UNITS.values(), *DECIMAL_UNITS.values()}
    near = {
        scale * number // 200 + off for scale in scales for number in (1, 199, 200, 201, 20_001) for off in (-1, 0, 1)
    }
    return [*near, *(-each for each in near), *(int(2 ** random_.uniform(0, 80)) for _ in range(2_000))]


def test_a_page_rounds_bytes_as_the_command_line(run: Run) -> None:
    asked = json.dumps([str(size) for size in sizes()])
    for units, table in UNIT_TABLES.items():
        for digits in (0, 1, 2):
            written = run(f'{asked}.map((each) => inBytes(BigInt(each), {digits}, "{units}"))')
            assert written == [format_bytes(size, table, digits) for size in sizes()]


COUNTS = (
    *("32768", "32,768", "131_072", "32k", "1.5k", "1.5K", "1 M", "1Mi", "0.5k", "1.0000001", "1.3k", "0", "-1", "k"),
    *("1,23", "12,345,6", "1e3", "", " 8 ", "1099511627776", "1099511627777", "999999999999999M", "1.5", "2.0", "٣"),
)


@pytest.mark.parametrize("text", COUNTS)
def test_a_box_reads_counts_as_the_command_line(run: Run, text: str) -> None:
    try:
        expected = str(parse_count(text))
    except InputError:
        expected = None
    assert run(f"count({json.dumps(text)})") == expected


def test_a_page_spells_counts_as_the_command_line(run: Run) -> None:
    counts = [1, 1000, 1024, 1536, 32768, 2**20, 3 * 2**20 + 1024, MAX_TOKENS]
    assert run(f"{counts}.map((each) => shortCount(BigInt(each)))") == [format_count(each) for each in counts]


def placed(run: Run, axis: str, values: str) -> tuple[list[float], list[float]]:
    """Where values and ticks are on an axis."""
    places = f"[{values}.map((each) => axis.place(Number(each))), axis.ticks.map(([value]) => axis.place(value))]"
    found: tuple[list[float], list[float]] = run(f"(() => {{ const axis = {axis}; return {places}; }})()")
    return found


@pytest.mark.parametrize("sizes", [(1, 2), (0, 0), (1000, 10**12), (2**30, 2**31, 2**60), (7,), (2**70, 2**70)])
@pytest.mark.parametrize("apart", ["false", "true"])
@pytest.mark.parametrize("units", UNIT_TABLES)
def test_every_size_is_on_its_axis(run: Run, sizes: tuple[int, ...], apart: str, units: str) -> None:
    values = json.dumps([str(size) for size in sizes])
    for logarithmic in ("false", "true"):
        options = f'{{ units: "{units}", logarithmic: {logarithmic}, apart: {apart} }}'
        places, ticks = placed(run, f'byteAxis("KV", {values}.map(BigInt), {options})', values)
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in places + ticks)
        assert 2 <= len(ticks) <= 12


@pytest.mark.parametrize("positions", [[1], [1, 2], [1024, 131072], [1, 2**40], [5, 5]])
def test_every_context_is_on_its_axis(run: Run, positions: list[int]) -> None:
    for axis in (f'tokenAxis("", {positions})', f'tokenAxis("", {positions}, true)', f'countAxis("", {positions})'):
        places, ticks = placed(run, axis, str(positions))
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in places + ticks)
        assert 2 <= len(ticks) <= 12


def test_an_axis_names_its_unit_and_a_logarithmic_one_names_it_at_every_tick(run: Run) -> None:
    values = f"[{2**30}n, {2**33}n]"
    assert run(f'byteAxis("KV cache", {values}).title') == "KV cache (GiB)"
    assert run(f'byteAxis("KV cache", {values}).ticks.map(([, name]) => name)') == ["0", "2", "4", "6", "8"]
    assert run(f'byteAxis("KV cache", {values}, {{ logarithmic: true }}).ticks[0][1]') == "1 GiB"
    assert run('byteAxis("", [6980000000n], { units: "decimal", unit: "MB" }).ticks[1][1]') == "2,000"
    assert run('tokenAxis("", [131072]).ticks.map(([, name]) => name)') == ["0", "32k", "64k", "96k", "128k"]
