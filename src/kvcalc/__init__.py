"""How much memory do the weights and the KV cache of this model take, at this context, in this engine, to the byte.

>>> import kvcalc
>>> model = kvcalc.load("gemma-3-27b")
>>> kvcalc.footprint(model, context=32768).kv_cache.bytes
3120562176
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvcalc.architecture import Architecture as Architecture
    from kvcalc.budgets.checking import check as check
    from kvcalc.device import Device as Device
    from kvcalc.engines.base import WorkingMemory as WorkingMemory
    from kvcalc.errors import KVCalcError as KVCalcError
    from kvcalc.errors import NotModelledError as NotModelledError
    from kvcalc.errors import UnsupportedError as UnsupportedError
    from kvcalc.fitting import Capacity as Capacity
    from kvcalc.fitting import capacity as capacity
    from kvcalc.fitting import working_memory as working_memory
    from kvcalc.footprint import Footprint as Footprint
    from kvcalc.footprint import footprint as footprint
    from kvcalc.footprint import kv_cache_bytes as kv_cache_bytes
    from kvcalc.sources.config import read_config as read_config
    from kvcalc.sources.resolve import load as load
    from kvcalc.units import GiB as GiB
    from kvcalc.units import MiB as MiB

__version__ = "0.1.0"

#: Public name -> where it lives; loaded at first use, so that importing kvcalc costs nothing.
_HOMES = {
    "Architecture": "kvcalc.architecture",
    "Capacity": "kvcalc.fitting",
    "Device": "kvcalc.device",
    "Footprint": "kvcalc.footprint",
    "GiB": "kvcalc.units",
    "KVCalcError": "kvcalc.errors",
    "MiB": "kvcalc.units",
    "NotModelledError": "kvcalc.errors",
    "UnsupportedError": "kvcalc.errors",
    "WorkingMemory": "kvcalc.engines.base",
    "check": "kvcalc.budgets.checking",
    "capacity": "kvcalc.fitting",
    "footprint": "kvcalc.footprint",
    "kv_cache_bytes": "kvcalc.footprint",
    "load": "kvcalc.sources.resolve",
    "read_config": "kvcalc.sources.config",
    "working_memory": "kvcalc.fitting",
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604 - the names are the keys of the table above


class _Package(ModuleType):
    """The package, with its public names loaded at first use.

    ``kvcalc.footprint`` is both a function and the module that it lives in. Importing the module sets it as an
    attribute of the package; the function takes that place at once, so that the public name never changes meaning.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'kvcalc' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
        super().__setattr__(name, value)  # the next access finds it without coming here
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(__all__)


sys.modules[__name__].__class__ = _Package
