"""Device presets: accelerators and machines, with their memory in bytes as a program sees it."""

from __future__ import annotations

import re
from functools import cache

from pydantic import ValidationError

from kvcalc.device import Device
from kvcalc.errors import InputError, SeveralErrors, either, quote
from kvcalc.invalid import located_mistakes
from kvcalc.names import near, within, words
from kvcalc.sources import shipped
from kvcalc.sources.files import parse_toml
from kvcalc.units import MAX_BYTES, check_count

_MOST_DEVICES = 2**20
_MOST_LISTED = 12
_SEVERAL = re.compile(r"([0-9]{1,7})\s?[xX×]\s?(.+)", re.ASCII)
#: Words of a full name that tell no device from another.
_FILLERS = frozenset(
    ("nvidia", "geforce", "rtx", "tesla", "amd", "radeon", "instinct", "intel", "google", "gpu", "gpus")
)


def device_names() -> list[str]:
    """The names of all device presets, sorted."""
    return sorted(_by_name())


def devices() -> list[Device]:
    """All device presets, the smallest memory first.

    >>> devices()[0].memory_bytes < devices()[-1].memory_bytes
    True
    """
    return sorted(_by_name().values(), key=lambda device: (device.memory_bytes, device.name))


def load_device(name: str) -> Device:
    """The device of that name, in any usual spelling: ``H100 SXM``, ``4090``, ``NVIDIA L40S``, ``m4-max-128gb``.

    A name that leaves words out is taken where one device alone has the others.

    Raises:
        InputError: there is none, or there are several; or a device's file is wrong.

    >>> load_device("RTX 4090").name, load_device("h100 sxm").name
    ('rtx-4090', 'h100-80gb')
    """
    slug = name.strip().casefold()
    known = _by_name()
    if slug in known:
        return known[slug]
    asked = _words(name)
    exact = [each for each in known.values() if asked in _names(each)]
    matches = exact or [each for each in known.values() if asked and any(within(asked, all_) for all_ in _names(each))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = ", ".join(each.name for each in matches[:_MOST_LISTED]) + (", ..." * (len(matches) > _MOST_LISTED))
        raise InputError(f"device {quote(name)} is ambiguous", hint=f"{listed}; see 'kvcalc devices'")
    several = _SEVERAL.fullmatch(name.strip())
    if several is not None:
        one = load_device(several[2]).name
        raise InputError(f"device {quote(name)} is several", hint=f"give --devices {several[1]}x{one}")
    hint = either(near(slug, known))
    raise InputError(f"unknown device {quote(name)}", hint=f"{hint or 'no device has this name;'} see 'kvcalc devices'")


def find_device(device: str | Device | None, memory_bytes: int | None) -> Device | None:
    """The device of that name, or one of that many bytes that has no name; None for neither.

    Raises:
        InputError: both were given, no such device, or no sane size.
    """
    if device is not None and memory_bytes is not None:
        raise InputError("a device has its own memory", hint="give device or device_memory")
    if isinstance(device, str):
        return load_device(device)
    if not isinstance(device, Device | None):
        raise InputError(f"device is a name such as 'h100-80gb', not {quote(device)}")
    if memory_bytes is None:
        return device
    size = check_count(memory_bytes, "device_memory", least=1, most=MAX_BYTES)
    return Device(name="", title="a device", memory_bytes=size, measured=False, source="as given", platform="cuda")


def parse_devices(text: str) -> tuple[int, Device]:
    """Several devices of one kind: ``8xh100-80gb``; a name alone is one.

    Raises:
        InputError: no such count, or no such device.

    >>> count, device = parse_devices("8xh100-80gb")
    >>> count, device.name
    (8, 'h100-80gb')
    """
    if text.strip().isdecimal():
        raise InputError(f"{text.strip()} devices of which kind?", hint=f"write {text.strip()}xh100-80gb")
    several = _SEVERAL.fullmatch(text.strip())
    if several is None:
        return 1, load_device(text)
    return check_count(int(several[1]), "the number of devices", most=_MOST_DEVICES), load_device(several[2])


@cache
def _by_name() -> dict[str, Device]:
    """Every device of every file, in the order of the files."""
    found: dict[str, Device] = {}
    for maker in shipped.names("devices"):
        location = f"devices/{maker}.toml"
        for name, table in parse_toml(shipped.text("devices", maker) or "", location).items():
            try:
                found[name] = Device.model_validate({"name": name, **table})
            except ValidationError as error:
                raise SeveralErrors(located_mistakes(error, Device.model_fields, f"{location}, {name}")) from None
    return found


def _names(device: Device) -> list[tuple[str, ...]]:
    return [_words(each) for each in (device.name, device.title, *device.aliases)]


def _words(name: str) -> tuple[str, ...]:
    return tuple(word for word in words(name) if word not in _FILLERS)
