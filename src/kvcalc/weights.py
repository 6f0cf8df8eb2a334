"""Parameter counts by part, and their bytes on one device.

Components are added up; nothing here knows a model by its name. Tied weights are stored once because the head that
ties has no tensor of its own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from kvcalc.architecture import Architecture, Tensor, stage_bounds
from kvcalc.dtypes import DType, parse_dtype
from kvcalc.units import ceil_div


@dataclass(frozen=True)
class Weights:
    """The weights of a model.

    Attributes:
        parameters: numbers in the whole model, tied ones once.
        active_parameters: those read for one token (fewer than all in a mixture of experts).
        bytes: bytes on one device.
        dtype: the storage format, or ``as stored`` where files were measured.
        exact: the count was proved against a published or instantiated figure, or measured in files.
        parts: parameters by part, zero parts left out.
        notes: what the figure holds.
    """

    parameters: int
    active_parameters: int
    bytes: int
    dtype: str
    exact: bool
    parts: dict[str, int]
    notes: tuple[str, ...] = ()


def weights(architecture: Architecture, dtype: str | None, tensor_parallel_size: int = 1, stages: int = 1) -> Weights:
    """Count the parameters of a model and their bytes on one device.

    With several pipeline ``stages`` the bytes are those of the largest stage: layers in equal runs, the embedding on
    the first, the head on the last.

    Args:
        dtype: storage format; None is the model's own (or what was measured in its files).

    Raises:
        InputError: an unknown format.
    """
    key = ("weights", dtype, tensor_parallel_size, stages)
    counted: Weights | None = architecture.derived.get(key)
    if counted is None:
        counted = architecture.derived[key] = _weights(architecture, dtype, tensor_parallel_size, stages)
    return counted


def _weights(architecture: Architecture, dtype: str | None, tp: int, stages: int) -> Weights:
    parts: dict[str, int] = {}
    active = 0
    for tensor, count in _all_tensors(architecture):
        parts[tensor.part] = parts.get(tensor.part, 0) + count * tensor.elements
        active += count * tensor.active_elements
    parameters = sum(parts.values())
    provenance = architecture.provenance
    own = parse_dtype(architecture.dtype)
    stored = own if dtype is None else parse_dtype(dtype)
    size = max(_stage_bytes(architecture, stored, own, tp, stages))
    name, exact, notes = stored.name, provenance.exact_weights, [stored.note] if stored.note else []
    if dtype is None and provenance.weight_bytes is not None:
        whole = sum(provenance.weight_bytes.values())
        unshared = max(_stage_bytes(architecture, stored, own, 1, 1))
        # A file says what the whole model takes; a device's part is that in proportion to the computed part, if known.
        size = ceil_div(whole * size, unshared) if unshared else whole
        name, exact = "as stored", True
        parameters = provenance.weight_elements or parameters
        listed = ", ".join(f"{kind} {count:,} B" for kind, count in sorted(provenance.weight_bytes.items()))
        notes.append(f"weights as stored in the files: {listed}")
    elif stored.linear_only:
        notes = [f"{stored.name} covers the linear layers; embeddings, norms and routers stay {own.name}", *notes]
    return Weights(parameters, active, size, name, exact, parts, tuple(notes))


def _all_tensors(architecture: Architecture) -> list[tuple[Tensor, int]]:
    tensors = [(tensor, 1) for tensor in architecture.tensors]
    for layer, count in zip(architecture.layers, architecture.layer_counts, strict=True):
        tensors += [(tensor, count) for tensor in (*layer.mixer, *layer.rest)]
    return tensors


def _stage_bytes(architecture: Architecture, stored: DType, own: DType, tp: int, stages: int) -> list[int]:
    return [
        sum(count * tensor_bytes(tensor, stored, own, tp) for tensor, count in tensors)
        for tensors in stage_tensors(architecture, stages)
    ]


def stage_tensors(architecture: Architecture, stages: int) -> list[list[tuple[Tensor, int]]]:
    """For each pipeline stage the tensors on it, and how many layers of the stage have each."""
    placed = []
    for stage, (first, last) in enumerate(stage_bounds(architecture.num_layers, stages)):
        counts = Counter(architecture.order[first:last])
        tensors = [
            (tensor, counts[index])
            for index, layer in enumerate(architecture.layers)
            if counts[index]
            for tensor in (*layer.mixer, *layer.rest)
        ]
        for tensor in architecture.tensors:
            home = stages - 1 if tensor.part in ("head", "norms") else 0
            # A tied head reads the embedding, so the last stage keeps a copy of it.
            copied = tensor.part == "embedding" and stage == stages - 1 and not _has_head(architecture)
            if stage == home or copied:
                tensors.append((tensor, 1))
        placed.append(tensors)
    return placed


def _has_head(architecture: Architecture) -> bool:
    return any(tensor.part == "head" for tensor in architecture.tensors)


def tensor_bytes(tensor: Tensor, stored: DType, own: DType, tp: int) -> int:
    """Bytes of a tensor on one of ``tp`` devices: as ``stored`` where that format covers it, else as ``own``."""
    dtype = stored if tensor.linear or not stored.linear_only else own
    rows, columns = tensor.rows, tensor.columns
    match tensor.split:
        case "rows":
            rows = ceil_div(rows, tp)
        case "columns":
            columns = ceil_div(columns, tp)
        case "by_kv_heads":
            rows = ceil_div(rows, tensor.kv_heads) * ceil_div(tensor.kv_heads, tp)
    return tensor.count * rows * dtype.bytes_for(columns)
