"""TensorRT-LLM's second manager (KVCacheManagerV2): pools of buffers of one size that are kept equally long.

Each pool is a whole number of 2 to 32 MiB. A sliding layer gives blocks back that lie wholly before its window, and a
sequence has one slot of states, whatever its length. How the memory is divided among the pools follows the requests
that ``avg_seq_len`` describes: here those that are asked about.

Source: TensorRT-LLM ``tensorrt_llm/runtime/kv_cache_manager_v2``: ``_storage/_config.py`` at 1148a82f66d3 (pools),
``_storage_manager.py`` at 00f6bd61f297 (their sizes), ``_life_cycle_registry.py`` at 1548780d8b82 (blocks that are
given back); ``_torch/pyexecutor/kv_cache/mamba_cache_manager`` at 28295084972c (slots).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from kvcalc.architecture import LayerKind, kind_label
from kvcalc.derivation import Derivation, Quantity
from kvcalc.engines.base import KVCache, LayerBytes
from kvcalc.engines.tensorrt_llm.models import Part
from kvcalc.units import GiB, MiB, largest, round_up, smallest_reaching

_SOURCE = "TensorRT-LLM runtime/kv_cache_manager_v2/_storage_manager.py at 00f6bd61f297"
_REGISTRY = "TensorRT-LLM runtime/kv_cache_manager_v2/_life_cycle_registry.py at 1548780d8b82"
#: Pools are whole multiples of the first where all of them stay below the second (cache_tier_granularity).
_GRANULARITIES = ((2 * MiB, 2 * GiB), (4 * MiB, 4 * GiB), (8 * MiB, 8 * GiB), (16 * MiB, 16 * GiB), (32 * MiB, None))


@dataclass(frozen=True, slots=True)
class Cycle:
    """Layers whose blocks come and go together: of one window, of all tokens (None), or of states (``slots``)."""

    window: int | None = None
    slots: bool = False


@dataclass(frozen=True, slots=True)
class PoolsPlan:
    """The layers, the pools that their buffers lie in, and the words.

    Attributes:
        layers: (kind, layers of it, the parts that one of them keeps, each with its cycle).
        tokens_per_block: tokens of a block.
        max_batch_size: sequences that states have slots for, or None for those that are asked about.
        fraction: the part of the free memory that the pools are cut from, or None where the budget is the pools.
        why: the reason for the figure.
        notes: what a reader must know.
    """

    layers: tuple[tuple[LayerKind, int, tuple[tuple[Cycle, Part], ...]], ...]
    pools: tuple[tuple[tuple[Cycle, ...], int], ...]
    tokens_per_block: int
    max_batch_size: int | None
    fraction: float | None
    why: str
    notes: tuple[str, ...]

    @property
    def cycles(self) -> tuple[Cycle, ...]:
        """The distinct cycles of the pools."""
        return tuple(dict.fromkeys(cycle for cycles, _ in self.pools for cycle in cycles))

    def _held(self, cycle: Cycle, context: int, batch_size: int) -> int:
        """Blocks that the sequences hold at their most, or slots: one more is for the padding of CUDA graphs."""
        if cycle.slots:
            return (self.max_batch_size or batch_size) + 1
        size = self.tokens_per_block
        tokens = context if cycle.window is None else min(context, cycle.window + size - 1)
        return batch_size * -(-tokens // size)

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """Bytes of the pools, each rounded up to the multiple that a pool of that size has."""
        held = {cycle: self._held(cycle, context, batch_size) for cycle in self.cycles}
        sizes = [sum(held[cycle] for cycle in cycles) * size for cycles, size in self.pools]
        rounded = ((sum(round_up(size, multiple) for size in sizes), below) for multiple, below in _GRANULARITIES)
        return next(total for total, below in rounded if below is None or total < below)

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """A row a layer kind; what the rounding adds is padding."""
        total, rows = self.kv_bytes(context, batch_size), []
        for kind, count, parts in self.layers:
            blocks = {cycle: self._held(cycle, context, batch_size) for cycle, _ in parts}
            taken = sum(blocks[cycle] * sum(part.block_sizes(self.tokens_per_block)) for cycle, part in parts)
            first = parts[0][0]
            tokens = 0 if first.slots else blocks[first] * self.tokens_per_block
            rows.append(LayerBytes(kind.kind, kind_label(kind), count, first.window, tokens, count * taken))
        padding = total - sum(row.bytes for row in rows)
        return KVCache(total, total, tuple(rows), padding, self.why, self.notes)

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """The pools, or with ``free_gpu_memory_fraction`` the free memory that they are cut from."""
        pools, fraction = self.kv_bytes(context, batch_size), self.fraction
        if fraction is None:
            return pools
        return smallest_reaching(-(-pools // Fraction(fraction)), lambda memory: int(memory * fraction) >= pools)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """How many sequences of that length the memory serves, and the blocks and slots that they hold."""
        quota = kv_memory if self.fraction is None else int(kv_memory * self.fraction)
        sequences = largest(lambda count: self.kv_bytes(context, count) <= quota, 2**40)
        held = {cycle: self._held(cycle, context, sequences) for cycle in self.cycles}
        return {
            "blocks_per_window": {str(each.window or "max_seq_len"): n for each, n in held.items() if not each.slots},
            "state_slots": next((number for cycle, number in held.items() if cycle.slots), None),
            "max_sequences": sequences,
            "allocated_bytes": self.kv_bytes(context, sequences),
            "fits": sequences >= batch_size,
        }

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """Blocks and slots, the layers, the pools, and the pools rounded up."""
        work, names = Derivation(context, batch_size), {}
        work.let("P", "tokens per block", str(self.tokens_per_block), "tokens", "tokens_per_block")
        for number, cycle in enumerate(self.cycles, start=1):
            names[cycle] = f"held_{number}"
            meaning, formula = self._held_formula(cycle)
            work.let(names[cycle], meaning, formula, "slots" if cycle.slots else "blocks", _REGISTRY)
        for number, (kind, count, parts) in enumerate(self.layers, start=1):
            taken = [
                f"{names[cycle]} * ({' + '.join(map(str, part.block_sizes(self.tokens_per_block)))})"
                for cycle, part in parts
            ]
            formula = f"{count} * ({' + '.join(taken)})"
            work.let(f"layers_{number}", f"{count} {kind_label(kind)}", formula, "bytes", _SOURCE)
        pools = []
        for number, (cycles, size) in enumerate(self.pools, start=1):
            formula = f"({' + '.join(names[cycle] for cycle in cycles)}) * {size}"
            work.let(f"pool_{number}", "pool of buffers of one size", formula, "bytes", _SOURCE)
            pools.append(f"pool_{number}")
        formula = ""
        for multiple, below in reversed(_GRANULARITIES):
            rounded = " + ".join(f"round_up({pool}, {multiple})" for pool in pools)
            formula = rounded if below is None else f"({rounded} if {rounded} < {below} else {formula})"
        work.let("pool_bytes", "pools, each a multiple of 2 to 32 MiB by their sum", formula, "bytes", _SOURCE)
        if self.fraction is not None:
            fraction = repr(self.fraction)
            search = f"smallest_reaching(int(pool_bytes / {fraction}), lambda m: int(m * {fraction}) >= pool_bytes)"
            work.let("required_bytes", "free memory that they are cut from", search, "bytes", _SOURCE)
        work.let("kv_bytes", "KV cache", "pool_bytes", "bytes", _SOURCE)
        return tuple(work.quantities)

    def _held_formula(self, cycle: Cycle) -> tuple[str, str]:
        if cycle.slots:
            return "states: a slot a sequence, one for padding", f"{self.max_batch_size or 'B'} + 1"
        if cycle.window is None:
            return "blocks, all tokens", "B * ceil_div(T, P)"
        return f"blocks, window {cycle.window}", f"B * ceil_div(min(T, {cycle.window} + P - 1), P)"


def pools_of(
    layers: tuple[tuple[LayerKind, int, tuple[tuple[Cycle, Part], ...]], ...], tokens_per_block: int
) -> tuple[tuple[tuple[Cycle, ...], int], ...]:
    """The pools: buffers of one size and cycle lie together, cycles whose pools have the same sizes share them.

    32 layers of Llama 3.1 8B have one pool; its blocks hold 32 x 2 buffers of 32 x 8 x 128 x 2 bytes.
    """
    buffers: dict[Cycle, dict[int, int]] = {}
    for _, count, parts in layers:
        for cycle, part in parts:
            of_size = buffers.setdefault(cycle, {})
            for size in part.block_sizes(tokens_per_block):
                of_size[size] = of_size.get(size, 0) + count
    groups: dict[tuple[int, ...], list[Cycle]] = {}
    for cycle, of_size in buffers.items():
        together = tuple(sorted((size * count for size, count in of_size.items()), reverse=True))
        groups.setdefault(together, []).append(cycle)
    return tuple((tuple(cycles), size) for sizes, cycles in groups.items() for size in sizes)
