"""Bytes and tokens are read and written exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcalc.errors import InputError
from kvcalc.units import (
    DECIMAL_UNITS,
    MAX_BYTES,
    MAX_TOKENS,
    check_count,
    exact_bytes,
    format_bytes,
    format_count,
    format_in_unit,
    parse_bytes,
    parse_count,
    parse_counts,
    unit_for,
)


@given(st.integers(1, MAX_TOKENS))
def test_a_count_reads_back_as_it_was_written(count):
    assert parse_count(format_count(count)) == count


@given(st.integers(0, MAX_BYTES))
def test_a_size_reads_back_as_it_was_written(size):
    assert parse_bytes(exact_bytes(size)) == size


@pytest.mark.parametrize(
    ("text", "count"), [("32k", 32768), ("32K", 32768), ("1M", 1048576), (" 7 ", 7), ("131_072", 131072)]
)
def test_k_is_1024_and_m_is_its_square(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "-1", "+1", "1.1k", "1.5", "1e3", "1,00", "1kk", "½", "١", "1_0", "9" * 500])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(InputError, match="must be a whole number"):
        parse_count(text)


def test_counts_out_of_range_are_refused():
    with pytest.raises(InputError, match="at least 1"):
        parse_count("0")
    with pytest.raises(InputError, match="at most"):
        parse_count("9" * 15)
    assert parse_count("0", least=0) == 0


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 10**4000, -(10**4000)])
def test_only_integers_of_sane_size_are_counts(value):
    with pytest.raises(InputError):
        check_count(value, "context")


def test_a_list_of_counts_keeps_its_order():
    assert parse_counts("4k,1k") == [4096, 1024]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("0.1GiB", 107374182),
        ("7b", 7),
        ("3kib", 3072),
    ],
)
def test_a_size_has_its_unit(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "24", "GiB", "-1GiB", "1e3GiB", "1,5GiB", "nanGiB", "1" * 30 + "B"])
def test_a_size_without_number_or_unit_is_refused(text):
    with pytest.raises(InputError, match="must be a number with a unit"):
        parse_bytes(text)


def test_an_unknown_unit_is_named_with_a_near_miss():
    with pytest.raises(InputError, match="unknown unit 'GIG'") as caught:
        parse_bytes("24GIG")
    assert caught.value.hint is not None
    with pytest.raises(InputError, match="at most"):
        parse_bytes("9999999PiB")


@given(st.integers(0, 2**60), st.integers(0, 4))
def test_rounding_is_half_up_and_never_a_float(size, digits):
    shown = format_in_unit(size, "GiB", digits).replace(",", "").replace(".", "")
    assert abs(int(shown) * 2**30 - size * 10**digits) * 2 <= 2**30


def test_sizes_are_shown_in_the_largest_unit_that_keeps_them_whole():
    assert format_bytes(1023) == "1,023 B"
    assert format_bytes(1024) == "1.0 KiB"
    assert format_bytes(10**9, DECIMAL_UNITS) == "1.0 GB"
    assert format_in_unit(-(3 * 2**29), "GiB") == "-1.5"
    assert unit_for(-(2**40)) == "TiB"
