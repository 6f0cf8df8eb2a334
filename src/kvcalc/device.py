"""An accelerator, or a machine with unified memory, as far as an engine's memory depends on it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kvcalc.units import MAX_BYTES

Platform = Literal["cuda", "rocm", "metal", "gaudi", "tpu"]

#: Compute capabilities of the cards that NVLink joins.
_LINKED = frozenset({"7.0", "8.0", "9.0", "10.0", "10.3"})


class Device(BaseModel):
    """One accelerator, or one machine with unified memory; a table in a file of ``presets/devices``.

    >>> from kvcalc.sources.devices import load_device
    >>> load_device("h100-80gb").title
    'NVIDIA H100 80GB HBM3 (SXM)'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="its slug, the name of its table")
    title: str = Field(description="the maker's name for it")
    memory_bytes: int = Field(
        strict=True,
        ge=1,
        le=MAX_BYTES,
        description="the total that a program sees: CUDA's, ROCm's, Metal's working set; weights and cache get less",
    )
    measured: bool = Field(description="a program printed the figure; False for one from a data sheet or a rule")
    source: str = Field(description="where the figure comes from")
    platform: Platform = Field(description="what programs reach it through")
    nvidia_smi_mib: int | None = Field(
        None, strict=True, ge=1, description="the total that nvidia-smi prints, where it is another: more than CUDA's"
    )
    multiprocessors: int | None = Field(None, strict=True, ge=1, description="streaming multiprocessors, of CUDA")
    compute_capability: str | None = Field(None, description="of a CUDA device: 9.0 is Hopper")
    unified: bool = Field(False, description="the memory is shared with the processor")
    aliases: tuple[str, ...] = Field((), description="other names that people and programs have for it")

    @property
    def inputs(self) -> dict[str, int]:
        """What an engine's formulas need of a CUDA device; 132 multiprocessors where their number is unknown.

        >>> from kvcalc.sources.devices import load_device
        >>> inputs = load_device("a100-80gb").inputs
        >>> inputs["hopper"], inputs["nvlink"], inputs["multiprocessors"], inputs["memory_mib"]
        (0, 1, 108, 81920)
        """
        blackwell = (self.compute_capability or "").startswith("10.")  # of a data centre: B100 to GB300
        return {
            "hopper": int(self.is_hopper),
            "blackwell": int(blackwell),
            "nvlink": int(self.compute_capability in _LINKED),
            "multiprocessors": self.multiprocessors or 132,
            "memory_bytes": self.memory_bytes,
            "memory_mib": self.nvidia_smi_mib or max(1, self.memory_bytes // 2**20),
        }

    @property
    def is_hopper(self) -> bool:
        """Whether it is an H100, an H200 or an H20."""
        return (self.compute_capability or "").startswith("9.")
