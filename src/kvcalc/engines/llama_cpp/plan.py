"""llama.cpp's answers for one model: the cells of each cache, their bytes, and the lines that it prints.

The rule of commit 0c1e57098, unchanged in b11739: src/llama-context.cpp:246-306 (cells), src/llama-kv-cache-iswa.cpp
:69-80 (cells of the sliding layers), src/llama-kv-cache.cpp:166-234 (bytes), src/llama-memory-recurrent.cpp:101-103
(states). Ollama launches llama.cpp and is a :class:`Launch` of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from kvcalc.architecture import kind_label
from kvcalc.derivation import Derivation, Quantity
from kvcalc.engines.base import KVCache, LayerBytes
from kvcalc.engines.llama_cpp.models import Cells, LayerCost, ModelCache
from kvcalc.units import MiB

MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ, src/llama-cparams.h

_CONTEXT = "llama.cpp src/llama-context.cpp"
_CACHE = "llama.cpp src/llama-kv-cache.cpp"
_WINDOW = "llama.cpp src/llama-kv-cache-iswa.cpp"
_STATES = "llama.cpp src/llama-memory-recurrent.cpp"
_ENTRIES = "llama.cpp src/llama-kv-cache-dsv4.cpp"
_DRAFT = "llama.cpp common/speculative.cpp"

_COUNTS: tuple[Cells, ...] = ("cells", "cells_swa", "cells_4", "cells_128")


class ContextParams(NamedTuple):
    """The fields of ``llama_context_params`` that decide the size of the cache, all resolved.

    ``n_ctx`` is the requested one, before padding; ``n_ubatch`` is already cut to it and to ``n_batch``.
    """

    n_ctx: int
    n_ubatch: int
    n_seq_max: int
    kv_unified: bool = False
    swa_full: bool = False
    n_rs_seq: int = 0


class Launch(Protocol):
    """From a workload to what llama.cpp is started with."""

    def params(self, context: int, batch_size: int) -> ContextParams:
        """The parameters, fast."""
        ...

    def derive(self, work: Derivation) -> None:
        """The same as quantities: ``n_ctx``, ``n_seq_max`` and ``n_ubatch``."""
        ...


def cells(params: ContextParams, window: int, per_sequence: bool = False) -> tuple[int, int, int]:
    """Cells per stream of the full layers, of the sliding layers, and the number of streams.

    >>> cells(ContextParams(n_ctx=32768, n_ubatch=512, n_seq_max=4), 1024)
    (8192, 1536, 4)
    >>> cells(ContextParams(n_ctx=32768, n_ubatch=512, n_seq_max=4, kv_unified=True), 1024)
    (32768, 4608, 1)
    """
    n_ctx, n_ubatch, n_seq_max, kv_unified, swa_full, _ = params
    # (x + 255) & -256 is round_up(x, 256), without a call: a search asks millions of times.
    padded = (n_ctx + 255) & -256
    if not kv_unified:
        full, needed, streams = (padded // n_seq_max + 255) & -256, window + n_ubatch, n_seq_max
    elif per_sequence:
        full, needed, streams = padded, window + n_ubatch, n_seq_max
    else:
        full, needed, streams = padded, window * n_seq_max + n_ubatch, 1
    if swa_full or needed >= full:
        return full, full, streams
    return full, (needed + 255) & -256, streams


def entries(full: int, ratio: int) -> int:
    """Cells of a cache with one entry for each ``ratio`` tokens: padded to 256.

    >>> entries(32768, 4), entries(4096, 128)
    (8192, 256)
    """
    return (-(-full // ratio) + 255) & -256


class _Totals(NamedTuple):
    """Bytes of one cell of each count, and of one row of state, in all layers of one model."""

    full: int
    sliding: int
    fourths: int
    parts: int
    state: int


@dataclass(frozen=True, slots=True)
class LlamaCppPlan:
    """llama.cpp's answers for one model, however it is launched, and for the context of its draft.

    The rows of a cache hold whole cells, padding cells too, because llama.cpp reserves and fills them alike:
    ``tokens`` is cells x streams, the rows add up to ``bytes``, and ``padding_bytes`` is 0. ``estimate`` is what the
    launching program expects the cache to take, where it prints that (Ollama's ``memory.required.kv``).
    """

    model: ModelCache
    launch: Launch
    totals: _Totals
    draft: ModelCache | None = None
    draft_totals: _Totals | None = None
    estimate: Callable[[int, int], int] | None = None

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """Bytes of all caches: cells x streams, the states, and the same for a draft's context."""
        params = self.launch.params(context, batch_size)
        total = _bytes(self.model, self.totals, params)
        if self.draft is not None and self.draft_totals is not None:
            full, _, _ = cells(params, self.model.window)
            # The draft's context holds as many tokens as the model's own, padding included, and rolls nothing back.
            size = full if params.kv_unified else full * params.n_seq_max
            total += _bytes(self.draft, self.draft_totals, params._replace(n_ctx=size, n_rs_seq=0))
        return total

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """The cache, with one row per layer kind."""
        params, work = self.launch.params(context, batch_size), self._derivation(context, batch_size)
        rows = tuple(self._row(layer, number, params, work) for number, layer in enumerate(self.model.layers, start=1))
        total, drafted = work["kv_bytes"], work["draft_bytes"] if self.draft is not None else 0
        notes = (*self.model.notes, *_workload_notes(params, work["cells"], context, batch_size))
        if self.draft is not None:
            notes = (*notes, *(note for note in self.draft.notes if note not in notes))
        why = self._why(params, work)
        return KVCache(total, total, rows, draft_bytes=drafted, why=why, notes=notes)

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """Exactly the bytes."""
        return self.kv_bytes(context, batch_size)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """llama.cpp's own figures, and the lines that it prints for them."""
        params, work = self.launch.params(context, batch_size), self._derivation(context, batch_size)
        full, streams = work["cells"], work["streams"]
        caches = _caches(self.model, work, "")
        slots = {name: sums.cells for name, sums in caches.items()}
        held = {name: sums.k_bytes + sums.v_bytes for name, sums in caches.items()}
        printed = _printed(self.model, params, streams, caches)
        if self.draft is not None:
            printed += _printed(self.draft, params._replace(n_rs_seq=0), streams, _caches(self.draft, work, "draft_"))
        estimated = {} if self.estimate is None else {"memory_required_kv": self.estimate(context, batch_size)}
        return {
            "n_ctx": full * (1 if params.kv_unified else params.n_seq_max),
            "n_ctx_per_seq": full,
            "cells_swa": slots.get("swa", 0),
            "streams": streams,
            "kv_base_bytes": held.get("base", 0),
            "kv_swa_bytes": held.get("swa", 0),
            "recurrent_bytes": work["state_rows"] * self.totals.state if self.totals.state else 0,
            "printed": printed,
            "fits": work["kv_bytes"] <= kv_memory,
            **estimated,
        }

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """The launch parameters, the cells, one product per layer kind, and their sum."""
        return tuple(self._derivation(context, batch_size).quantities)

    def _derivation(self, context: int, batch_size: int) -> Derivation:
        params, work = self.launch.params(context, batch_size), Derivation(context, batch_size)
        self.launch.derive(work)
        names = _derive_context(work, params, self.model, "n_ctx", "")
        if self.draft is not None:
            size = "cells" if params.kv_unified else "cells * n_seq_max"
            work.let("draft_n_ctx", "tokens of the draft's context", size, "tokens", _DRAFT)
            drafted = _derive_context(work, params._replace(n_rs_seq=0), self.draft, "draft_n_ctx", "draft_")
            work.let("draft_bytes", "KV cache of the draft", " + ".join(drafted) or "0", "bytes", _DRAFT)
            names.append("draft_bytes")
        work.let("kv_bytes", "KV cache", " + ".join(names) or "0", "bytes", _CONTEXT)
        return work

    def _row(self, layer: LayerCost, number: int, params: ContextParams, work: Derivation) -> LayerBytes:
        own = layer.stores[0] if layer.stores else None
        slides = own is not None and own.cells == "cells_swa"
        return LayerBytes(
            layer.kind.kind,
            kind_label(layer.kind),
            layer.count,
            self.model.window if slides and not params.swa_full else None,
            work[own.cells] * work["streams"] if own else 0,
            work[f"layers_{number}"] if layer.stores or layer.state_bytes else 0,
        )

    def _why(self, params: ContextParams, work: Derivation) -> str:
        if not self.model.window:
            return "cells padded to 256" if self.totals.full else "one state per sequence"
        if params.swa_full:
            return "swa_full: sliding layers hold every cell"
        if work["cells_swa"] == work["cells"]:
            return "window and micro-batch exceed the context"
        shared = params.kv_unified and not self.model.per_sequence
        window = f"window x {params.n_seq_max}" if shared else "window"
        return f"sliding layers: {window} + {params.n_ubatch}, padded to 256"


def make_plan(model: ModelCache, launch: Launch, draft: ModelCache | None = None) -> LlamaCppPlan:
    """A plan for a model and a way to launch llama.cpp, with the sums that every answer needs."""
    return LlamaCppPlan(model, launch, _totals(model), draft, _totals(draft) if draft else None)


def _totals(model: ModelCache) -> _Totals:
    full, sliding, fourths, parts = map(model.cell_bytes, _COUNTS)
    return _Totals(full, sliding, fourths, parts, model.state_bytes)


def _bytes(model: ModelCache, totals: _Totals, params: ContextParams) -> int:
    full, sliding, streams = cells(params, model.window, model.per_sequence)
    rows = params.n_seq_max * (1 + params.n_rs_seq) if model.rolls_back else params.n_seq_max
    size = streams * (full * totals.full + sliding * totals.sliding) + rows * totals.state
    if totals.fourths or totals.parts:
        size += streams * (entries(full, 4) * totals.fourths + entries(full, 128) * totals.parts)
    return size


def derive_cells(
    work: Derivation, params: ContextParams, model: ModelCache, n_ctx: str = "n_ctx", side: str = ""
) -> None:
    """The streams of a context and the cells of each, for full and for sliding layers."""
    padded = f"round_up({n_ctx}, 256)"
    one_stream = params.kv_unified and not model.per_sequence
    shape = padded if params.kv_unified else f"round_up({padded} // n_seq_max, 256)"
    work.let(f"{side}streams", "streams", "1" if one_stream else "n_seq_max", "streams", _CONTEXT)
    work.let(f"{side}cells", "cells per stream", shape, "cells", _CONTEXT)
    if model.window:
        window = f"{model.window} * n_seq_max" if one_stream else str(model.window)
        local = f"{side}cells" if params.swa_full else f"round_up(min({side}cells, {window} + n_ubatch), 256)"
        work.let(f"{side}cells_swa", "cells per stream of sliding layers", local, "cells", _WINDOW)


def _derive_context(work: Derivation, params: ContextParams, model: ModelCache, n_ctx: str, side: str) -> list[str]:
    """The cells of one context and the bytes of its layers; the names of those bytes.

    ``side`` stands before every symbol of a draft's context.
    """
    derive_cells(work, params, model, n_ctx, side)
    for ratio in (4, 128):
        if any(store.cells == f"cells_{ratio}" for layer in model.layers for store in layer.stores):
            meaning = f"entries per stream, one for each {ratio} tokens"
            formula = f"round_up(ceil_div({side}cells, {ratio}), 256)"
            work.let(f"{side}cells_{ratio}", meaning, formula, "cells", _ENTRIES)
    if model.state_bytes:
        kept = f"n_seq_max * (1 + {params.n_rs_seq})" if params.n_rs_seq and model.rolls_back else "n_seq_max"
        work.let(f"{side}state_rows", "rows of state", kept, "rows", _STATES)
    names = []
    for number, layer in enumerate(model.layers, start=1):
        formula, source = _layer_formula(layer, side)
        if formula:
            names.append(f"{side}layers_{number}")
            meaning = f"{layer.count} {'draft ' if side else ''}{kind_label(layer.kind)}"
            work.let(names[-1], meaning, f"{layer.count} * ({formula})", "bytes", source)
    return names


def _layer_formula(layer: LayerCost, side: str) -> tuple[str, str]:
    terms = [f"({store.formula}) * {side}{store.cells} * {side}streams" for store in layer.stores]
    if layer.state_bytes:
        terms.append(f"{layer.state_formula} * {side}state_rows")
    return " + ".join(terms), _CACHE if layer.stores else _STATES


class _Sums(NamedTuple):
    """One cache of all layers: its cells per stream, and what they hold."""

    layers: int
    cells: int
    k_bytes: int
    v_bytes: int


def _caches(model: ModelCache, work: Derivation, side: str) -> dict[str, _Sums]:
    """The caches of one context in the order in which llama.cpp creates them."""
    found: dict[str, _Sums] = {}
    for name in ("base", "swa", "csa", "hca", "lid", "indexer"):
        kept = [(layer.count, store) for layer in model.layers for store in layer.stores if store.name == name]
        if kept:
            each = work[f"{side}{kept[0][1].cells}"]
            slots = each * work[f"{side}streams"]
            found[name] = _Sums(
                sum(count for count, _ in kept),
                each,
                slots * sum(count * store.k_bytes for count, store in kept),
                slots * sum(count * store.v_bytes for count, store in kept),
            )
    return found


def _printed(model: ModelCache, params: ContextParams, streams: int, caches: dict[str, _Sums]) -> list[str]:
    sequences = params.n_seq_max
    lines = [
        f"llama_kv_cache: size = {_mib(sums.k_bytes + sums.v_bytes)} ({sums.cells:6d} cells, {sums.layers:3d} layers, "
        f"{sequences:2d}/{streams} seqs), K ({model.k_type}): {_mib(sums.k_bytes)}, "
        f"V ({model.v_type}): {_mib(sums.v_bytes)}"
        for sums in caches.values()
    ]
    if model.state_bytes and not model.per_sequence:
        kept = params.n_rs_seq if model.rolls_back else 0
        rows = sequences * (1 + kept)
        conv = rows * sum(layer.count * layer.conv_bytes for layer in model.layers)
        recurrent = rows * sum(layer.count * layer.recurrent_bytes for layer in model.layers)
        lines.append(
            f"llama_memory_recurrent: size = {_mib(conv + recurrent)} ({sequences:6d} cells, "
            f"{len(model.order):3d} layers, {sequences:2d} seqs {kept:2d} rs_seq), R (f32): {_mib(conv)}, "
            f"S (f32): {_mib(recurrent)}, P (f32):    0.00 MiB"
        )
    return lines


def _mib(size: int) -> str:
    # llama.cpp prints a float with "%7.2f": 5.625 MiB is "5.62", where rounding half up would say "5.63".
    return f"{size / MiB:7.2f} MiB"


def _workload_notes(params: ContextParams, full: int, context: int, batch_size: int) -> list[str]:
    notes = []
    held = full // batch_size if params.kv_unified else full
    if held < context:
        notes.append(f"n_ctx leaves {held:,} cells to a sequence: a context of {context:,} tokens does not fit in it")
    if batch_size > params.n_seq_max:
        notes.append(f"{params.n_seq_max} of {batch_size} sequences run at a time, the others wait")
    if params.n_seq_max > MOST_SEQUENCES:
        notes.append(
            f"llama.cpp starts with at most {MOST_SEQUENCES} sequences: {params.n_seq_max} need several contexts"
        )
    return notes
