"""Device presets: memory in bytes with its source, and counts of devices."""

import pytest

from kvcalc.errors import InputError
from kvcalc.sources.devices import device_names, load_device, parse_devices
from kvcalc.units import GiB

#: What a figure may come from: a program that printed it, or a data sheet or a rule.
PRINTED = (
    "torch",
    "CUDA",
    "vLLM",
    "llama.cpp",
    "Metal",
    "nvidia-smi of drivers before",
    "rocm-smi",
    "amd-smi",
    "hl-smi",
)
NOT_PRINTED = ("nvidia-smi, ", "taken as", "two thirds", "three quarters")


@pytest.mark.parametrize("name", device_names())
def test_every_device_states_its_memory_and_where_that_comes_from(name):
    device = load_device(name)
    assert device.name == name
    assert 5 * GiB < device.memory_bytes < 512 * GiB
    assert device.source.startswith(PRINTED) if device.measured else not device.source.startswith(PRINTED)
    assert device.measured or device.source.startswith(NOT_PRINTED) or "as marketed" in device.source
    assert device.unified == ("unified" in device.title)


@pytest.mark.parametrize(
    "name",
    ["h100-80gb", "h200", "b200", "a100-80gb", "rtx-3060-12gb", "rtx-4060-ti-16gb", "rtx-4080-super", "rtx-5070-ti",
     "rtx-5080", "rtx-5090", "rx-7900-xtx", "p40", "a2", "a16", "t4", "dgx-spark", "jetson-agx-orin-64gb",
     "strix-halo-128gb", "mi300x", "mi300a", "mi325x", "gaudi3", "tpu-v5e", "apple-m1-8gb", "apple-m3-max-96gb"],
)  # fmt: skip
def test_the_devices_that_people_own_are_there(name):
    assert name in device_names()


@pytest.mark.parametrize(
    ("name", "gibibytes"),
    [("h100-80gb", "79.19"), ("a100-80gb", "79.25"), ("h200", "139.81"), ("rtx-3090", "23.56"), ("rtx-5090", "31.36"),
     ("rtx-pro-6000", "94.97"), ("a10", "22.07"), ("apple-m4-max-128gb", "107.52"), ("apple-m4-16gb", "11.84")],
)  # fmt: skip
def test_memory_is_what_a_program_sees_not_what_the_board_has(name, gibibytes):
    assert f"{load_device(name).memory_bytes / GiB:.2f}" == gibibytes


@pytest.mark.parametrize(
    ("written", "name"),
    [("H100 SXM", "h100-80gb"), ("NVIDIA H100 80GB HBM3 (SXM)", "h100-80gb"), ("h100-80G", "h100-80gb"),
     ("A100-SXM4-80GB", "a100-80gb"), ("4090", "rtx-4090"), ("RTX 4090", "rtx-4090"), ("rtx4090", "rtx-4090"),
     ("NVIDIA GeForce RTX 4070", "rtx-4070"), ("4070", "rtx-4070"), ("4070 ti super", "rtx-4070-ti-super"),
     ("m4-max-128gb", "apple-m4-max-128gb"), ("M4 Max 128 GB", "apple-m4-max-128gb"), ("GB10", "dgx-spark"),
     ("Tesla T4", "t4"), ("h100_nvl", "h100-nvl-94gb"), ("7900 XTX", "rx-7900-xtx"), ("MI300X", "mi300x")],
)  # fmt: skip
def test_a_device_is_found_by_any_usual_spelling(written, name):
    assert load_device(written).name == name


@pytest.mark.parametrize("written", ["h100", "a100", "rtx 3060", "4060 ti", "v100", "m4 max", "80gb"])
def test_a_name_of_several_sizes_lists_them_all_and_picks_none(written):
    with pytest.raises(InputError, match="is ambiguous") as caught:
        load_device(written)
    assert len(caught.value.hint.split(", ")) > 1


def test_several_where_one_is_asked_for_are_told_their_option() -> None:
    with pytest.raises(InputError, match="is several") as caught:
        load_device("8x H200")
    assert caught.value.hint == "give --devices 8xh200"


@pytest.mark.parametrize("written", ["h300", "rtx-7090", "p41", "h100-60gb"])
def test_no_suggestion_has_another_number(written):
    with pytest.raises(InputError, match="unknown device") as caught:
        load_device(written)
    assert "did you mean" not in caught.value.hint


@pytest.mark.parametrize("text", ["8xh100-80gb", "8 x h100-80gb", "8Xh100-80GB", " 8×h100-80gb "])
def test_a_count_stands_before_the_name(text):
    count, device = parse_devices(text)
    assert (count, device.name) == (8, "h100-80gb")
    assert parse_devices("h100-80gb") == (1, device)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0xh200", "the number of devices must be at least 1"),
        ("9999999xh200", "at most"),
        ("h100-81gb", "unknown device"),
        ("8x", "unknown device"),
        ("8xx", "unknown device"),
        ("", "unknown device"),
        ("../devices/h200", "unknown device"),
        ("a" * 1000, "unknown device"),
    ],
)
def test_what_is_no_device_is_one_error(text, reason):
    with pytest.raises(InputError, match=reason):
        parse_devices(text)


def test_a_near_miss_by_letters_is_named():
    with pytest.raises(InputError) as caught:
        load_device("gaudy3")
    assert caught.value.hint.startswith("did you mean 'gaudi3'?")
