"""How much memory do the weights and the KV cache of this model take, at this context, in this engine, to the byte.

>>> import kvcalc
>>> model = kvcalc.load("gemma-3-27b")
>>> kvcalc.footprint(model, context=32768).kv_cache.bytes
3120562176
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing has the same, and takes longer to load than all that is needed before the first command
if TYPE_CHECKING:
    from kvcalc.architecture import Architecture as Architecture
    from kvcalc.budgets.checking import check as check
    from kvcalc.device import Device as Device
    from kvcalc.engines import engine_names as engine_names
    from kvcalc.engines.base import KVCache as KVCache
    from kvcalc.engines.base import WorkingMemory as WorkingMemory
    from kvcalc.errors import InputError as InputError
    from kvcalc.errors import KVCalcError as KVCalcError
    from kvcalc.errors import NotModelledError as NotModelledError
    from kvcalc.errors import UnsupportedError as UnsupportedError
    from kvcalc.fitting import Capacity as Capacity
    from kvcalc.fitting import Pool as Pool
    from kvcalc.fitting import capacity as capacity
    from kvcalc.fitting import working_memory as working_memory
    from kvcalc.footprints import Footprint as Footprint
    from kvcalc.footprints import footprint as footprint
    from kvcalc.footprints import kv_cache_bytes as kv_cache_bytes
    from kvcalc.footprints import layer_bytes as layer_bytes
    from kvcalc.footprints import sweep as sweep
    from kvcalc.setup import Setup as Setup
    from kvcalc.sources.config import read_config as read_config
    from kvcalc.sources.devices import devices as devices
    from kvcalc.sources.preset import presets as presets
    from kvcalc.sources.resolve import load as load
    from kvcalc.units import GiB as GiB
    from kvcalc.units import MiB as MiB
    from kvcalc.weights import Weights as Weights

__version__ = "0.2.0"

#: Public name -> the module that it lives in. They are loaded at first use, because ``kvcalc --version`` and a shell's
#: completion import this package too. No module has the name of something public: importing it would hide that.
_HOMES = {
    "Architecture": "kvcalc.architecture",
    "Capacity": "kvcalc.fitting",
    "Device": "kvcalc.device",
    "Footprint": "kvcalc.footprints",
    "GiB": "kvcalc.units",
    "InputError": "kvcalc.errors",
    "KVCache": "kvcalc.engines.base",
    "KVCalcError": "kvcalc.errors",
    "MiB": "kvcalc.units",
    "NotModelledError": "kvcalc.errors",
    "Pool": "kvcalc.fitting",
    "Setup": "kvcalc.setup",
    "UnsupportedError": "kvcalc.errors",
    "Weights": "kvcalc.weights",
    "WorkingMemory": "kvcalc.engines.base",
    "capacity": "kvcalc.fitting",
    "check": "kvcalc.budgets.checking",
    "devices": "kvcalc.sources.devices",
    "engine_names": "kvcalc.engines",
    "footprint": "kvcalc.footprints",
    "kv_cache_bytes": "kvcalc.footprints",
    "layer_bytes": "kvcalc.footprints",
    "load": "kvcalc.sources.resolve",
    "presets": "kvcalc.sources.preset",
    "read_config": "kvcalc.sources.config",
    "sweep": "kvcalc.footprints",
    "working_memory": "kvcalc.fitting",
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604 - the names are the keys of the table above


def __getattr__(name: str) -> object:
    """A public name from its module, at its first use; the next one finds it without coming here."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kvcalc' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
