"""Parameter counts by part, and their bytes on one device in the format that they are stored in.

Components are added up; nothing here knows a model by its name. Tied weights are stored once because the head that
ties has no tensor of its own. Without a format the weights are those that ship: see :mod:`kvcalc.quantization`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvcalc.architecture import Architecture, Part, Stage, Tensor, pipeline
from kvcalc.quantization import EVERYTHING, PREDICTION, TIED_HEAD, TOWERS, Packing, WeightsFormat
from kvcalc.units import ceil_div, format_bytes
from kvcalc.weight_formats import parse_weights_format, shipped_format


@dataclass(frozen=True)
class Weights:
    """The weights of a model.

    Attributes:
        parameters: numbers in the whole model, tied ones once; without prediction layers and encoders of images.
        active_parameters: those read for one token (fewer than all in a mixture of experts).
        bytes: bytes on one device.
        dtype: the storage format, or ``as stored`` where files were measured.
        exact_parameters: the count was proved against a published or instantiated figure.
        exact: the bytes are those of the files: an exact count in a format that says to the byte what it stores, or
            measured in the files themselves.
        parts: parameters by part, zero parts left out.
        notes: what the figure holds.
        beside: bytes of one device that are not the model's own layers, by row (``vision``, ``prediction_layers``).
        shipped_bytes: the whole checkpoint, whatever an engine loads of it.
    """

    parameters: int
    active_parameters: int
    bytes: int
    dtype: str
    exact_parameters: bool
    exact: bool
    parts: dict[str, int] = field(hash=False)
    notes: tuple[str, ...] = ()
    beside: dict[str, int] = field(default_factory=dict, hash=False)
    shipped_bytes: int = 0

    def __repr__(self) -> str:
        return f"<{self.parameters:,} parameters in {self.dtype}: {format_bytes(self.bytes, digits=2)}>"


@dataclass(frozen=True, slots=True)
class Stored:
    """Tensors alike on one stage: their packing, how often the stage has them, and the row that they count under.

    ``layer`` numbers the distinct layer that they belong to; None is the model itself.
    """

    tensor: Tensor
    packing: Packing
    count: int
    row: str
    layer: int | None = None

    def bytes(self, tp: int) -> int:
        """Bytes of one of them on one of ``tp`` devices."""
        return tensor_bytes(self.tensor, self.packing, tp)


def count_parameters(architecture: Architecture) -> int:
    """Numbers in the whole model, tied ones once.

    >>> import kvcalc
    >>> count_parameters(kvcalc.load("gemma-3-27b"))
    27009346304
    """
    return sum(count * tensor.elements for tensor, count in _parameters(architecture))


def format_of(architecture: Architecture, dtype: str | None) -> WeightsFormat:
    """What a weights format's name means for a model; None is what ships.

    Raises:
        InputError: an unknown format.
    """
    return shipped_format(architecture) if dtype is None else parse_weights_format(dtype, architecture)


def weights(
    architecture: Architecture,
    dtype: str | None,
    tensor_parallel_size: int = 1,
    stages: tuple[Stage, ...] | None = None,
    loaded: frozenset[str] = EVERYTHING,
    fewer: tuple[tuple[Part, int], ...] = (),
) -> Weights:
    """Count the parameters of a model and their bytes on one device.

    With several ``stages`` the bytes are those of the largest; None is one device that holds everything.

    Args:
        dtype: storage format; None is the one that ships (or what was measured in the model's files).
        loaded: what is held beside the model's own layers, where the checkpoint has it.
        fewer: parts that fewer devices share than ``tensor_parallel_size``, and how many do.

    Raises:
        InputError: an unknown format.
    """
    held = pipeline(architecture, 1) if stages is None else stages
    key = ("weights", dtype, tensor_parallel_size, held, loaded, fewer)
    return architecture.memo(key, lambda: _weights(architecture, dtype, tensor_parallel_size, held, loaded, fewer))


def _weights(
    architecture: Architecture,
    dtype: str | None,
    tp: int,
    stages: tuple[Stage, ...],
    loaded: frozenset[str],
    fewer: tuple[tuple[Part, int], ...],
) -> Weights:
    parts: dict[str, int] = {}
    active = 0
    for tensor, count in _parameters(architecture):
        parts[tensor.part] = parts.get(tensor.part, 0) + count * tensor.elements
        active += count * tensor.active_elements
    parameters = sum(parts.values())
    provenance = architecture.provenance
    stored = format_of(architecture, dtype)
    rows = _largest(placed(architecture, dtype, stages, loaded), tp, dict(fewer))
    size = sum(rows.values())
    everything = loaded if loaded >= _beside(architecture) else EVERYTHING
    shipped = architecture.memo(
        ("shipped", dtype, everything),
        lambda: sum(_largest(placed(architecture, dtype, pipeline(architecture, 1), everything), 1, {}).values()),
    )
    name, exact_parameters = stored.name, provenance.exact_parameters
    exact = exact_parameters and not stored.estimated
    own = architecture.quantization
    notes = []
    if own is not None and own.method:  # plain numbers are no format of their own
        notes.append(f"as shipped: {stored.name}" if stored is own else f"the checkpoint ships in {own.name}")
    notes += [stored.note] if stored.note else []
    if rows.get(PREDICTION) and stored.holds & {PREDICTION}:
        notes.append("the bytes hold the multi-token-prediction layers; the parameters do not count them")
    if stored.estimated:
        notes.append(f"weights are estimated: {stored.estimated}")
    if dtype is None and provenance.weight_bytes is not None:
        measured = sum(provenance.weight_bytes.values())
        # A file says what the whole model takes; a device's part is that in proportion to the computed part, if known.
        size = ceil_div(measured * size, shipped) if shipped else measured
        name, exact, shipped = "as stored", True, measured
        parameters = provenance.weight_elements or parameters
        listed = ", ".join(f"{kind} {count:,} B" for kind, count in sorted(provenance.weight_bytes.items()))
        notes = [f"weights as stored in the files: {listed}"]
    left = architecture.mtp_layers and architecture.mtp_shipped and PREDICTION in stored.holds - loaded
    if left:
        notes.append("the checkpoint's multi-token-prediction layers are not loaded without speculation")
    if architecture.towers and not architecture.text_preset and stored.holds & TOWERS and not loaded & TOWERS:
        notes.append("the checkpoint's encoders of images and sound are not loaded")
    if TIED_HEAD in stored.holds - loaded:
        notes.append("the head that the checkpoint stores beside the embedding is not loaded: they are tied")
    beside = {row: held for row, held in rows.items() if row in EVERYTHING and held}
    return Weights(parameters, active, size, name, exact_parameters, exact, parts, tuple(notes), beside, shipped)


def _parameters(architecture: Architecture) -> list[tuple[Tensor, int]]:
    """The tensors that are parameters of the model, and how often it has them."""
    tensors = [(tensor, 1) for tensor in architecture.tensors]
    for layer, count in zip(architecture.layers, architecture.layer_counts, strict=True):
        tensors += [(tensor, count) for tensor in (*layer.mixer, *layer.rest)]
    return tensors


def _beside(architecture: Architecture) -> set[str]:
    """What the checkpoint may hold beside the model's own layers."""
    return {tensor.part for tensor in _outside(architecture)} | ({PREDICTION} if architecture.mtp_layers else set())


def _outside(architecture: Architecture) -> list[Tensor]:
    """What files hold besides layers: encoders, a table of rope factors (GGUF), a tied head for the second time."""
    tensors = list(architecture.towers)
    if architecture.rope_factors:
        tensors.append(Tensor("rope_factors", architecture.rope_factors, role="rope_freqs"))
    if not _has_head(architecture):
        tensors.append(Tensor("tied_head", architecture.vocab_size, architecture.hidden_size, role="lm_head"))
    return tensors


def _largest(stages: list[list[Stored]], tp: int, fewer: Mapping[Part, int]) -> Mapping[str, int]:
    """Bytes by row of the stage that holds most."""
    by_stage = [Counter[str]() for _ in stages]
    for rows, stage in zip(by_stage, stages, strict=True):
        for each in stage:
            rows[each.row] += each.count * each.bytes(fewer.get(each.tensor.part, tp))
    return max(by_stage, key=Counter.total, default=Counter())


def largest_stage(stages: list[list[Stored]], tp: int) -> list[Stored]:
    """The tensors of the stage that holds most."""
    return max(stages, key=lambda stage: sum(each.count * each.bytes(tp) for each in stage))


def placed(
    architecture: Architecture, dtype: str | None, stages: tuple[Stage, ...], loaded: frozenset[str]
) -> list[list[Stored]]:
    """The tensors on each stage in a format, counted once: the same on every number of devices."""
    key = ("placed", dtype, stages, loaded)
    return architecture.memo(key, lambda: stage_tensors(architecture, format_of(architecture, dtype), stages, loaded))


def stage_tensors(
    architecture: Architecture, stored: WeightsFormat, stages: tuple[Stage, ...], loaded: frozenset[str] = EVERYTHING
) -> list[list[Stored]]:
    """The tensors on each stage; prediction layers follow the last layer, encoders stand before the first.

    A checkpoint's buffers and prediction layers are part of what ships and of nothing else.
    """
    packer, held = stored.packer(architecture), loaded & stored.holds
    predicted = architecture.mtp_layers if PREDICTION in held and architecture.mtp_shipped else ()
    found, own = [], architecture.num_layers
    for stage in stages:
        positions_of: dict[int, list[int | None]] = {}
        for at in range(stage.first, min(stage.end, own)):
            positions_of.setdefault(architecture.order[at], []).append(at)
        layers = [(architecture.layers[index], positions) for index, positions in positions_of.items()]
        here = [(layer, positions, PREDICTION if layer.predicts else "") for layer, positions in layers]
        here += [
            (layer, [at], PREDICTION) for at, layer in enumerate(predicted, start=own) if stage.first <= at < stage.end
        ]
        tensors: list[tuple[Tensor, list[int | None], str, int | None]] = [
            (tensor, positions, row or tensor.part, number)
            for number, (layer, positions, row) in enumerate(here)
            for tensor in (*layer.mixer, *layer.rest)
            if stored.buffers or not tensor.buffer
        ]
        for tensor in architecture.tensors:
            is_output = tensor.part in ("head", "norms")
            # A tied head reads the embedding, so the stage of the output keeps a copy of it.
            copied = tensor.part == "embedding" and stage.has_output and not _has_head(architecture)
            if (stage.has_output if is_output else stage.has_embedding) or copied:
                tensors.append((tensor, [None], tensor.part, None))
        if stage.has_embedding:
            tensors += [(tensor, [None], tensor.part, None) for tensor in _outside(architecture) if tensor.part in held]
        found.append(
            [
                Stored(tensor, packing, count, row, layer)
                for tensor, positions, row, layer in tensors
                for packing, count in packer(tensor, positions)
            ]
        )
    return found


def _has_head(architecture: Architecture) -> bool:
    return any(tensor.part == "head" for tensor in architecture.tensors)


def tensor_bytes(tensor: Tensor, packing: Packing, tp: int) -> int:
    """Bytes of a tensor, and all those alike, on one of ``tp`` devices."""
    return tensor.count * packing.bytes(*device_shape(tensor, tp))


def device_shape(tensor: Tensor, tp: int) -> tuple[int, int]:
    """Rows and columns of a tensor on one of ``tp`` devices."""
    rows, columns = tensor.rows, tensor.columns
    match tensor.split:
        case "rows":
            rows = ceil_div(rows, tp)
        case "columns":
            columns = ceil_div(columns, tp)
        case "by_kv_heads":
            rows = ceil_div(rows, tensor.kv_heads) * ceil_div(tensor.kv_heads, tp)
    return rows, columns
