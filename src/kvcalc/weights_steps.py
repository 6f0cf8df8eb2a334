"""The weights as a derivation: parameters by part, then bytes, each a product that a reader can recompute."""

from __future__ import annotations

from collections import Counter

from kvcalc.architecture import Architecture, Part, Stage, pipeline
from kvcalc.derivation import Quantity
from kvcalc.quantization import EVERYTHING, Plain
from kvcalc.weights import Weights, format_of, stage_tensors, weights


def weights_steps(
    architecture: Architecture,
    dtype: str | None,
    tensor_parallel_size: int = 1,
    stages: tuple[Stage, ...] | None = None,
    loaded: frozenset[str] = EVERYTHING,
    fewer: tuple[tuple[Part, int], ...] = (),
) -> tuple[Quantity, ...]:
    """The steps behind ``weights(...).bytes``; the last one is that number.

    >>> import kvcalc
    >>> weights_steps(kvcalc.load("gemma-2-2b"), None)[-1].formula
    'parameters * 2'
    """
    counted = weights(architecture, dtype, tensor_parallel_size, stages, loaded, fewer)
    measured = architecture.provenance.weight_bytes
    if dtype is None and measured is not None:
        return _as_stored(measured, counted)
    stored = format_of(architecture, dtype)
    steps = _parameters(architecture)
    if isinstance(stored, Plain) and stored.stored.block_elements == 1:
        number = stored.stored.block_bytes
        if counted.bytes == counted.parameters * number:
            meaning = f"{stored.name}: {number} B each"
            return (*steps, Quantity("weights_bytes", meaning, f"parameters * {number}", counted.bytes, "bytes"))
    held = pipeline(architecture, 1) if stages is None else stages
    placed = [
        [(each.row, each.bytes(dict(fewer).get(each.tensor.part, tensor_parallel_size)), each.count) for each in stage]
        for stage in stage_tensors(architecture, stored, held, loaded)
    ]
    largest = max(placed, key=lambda stage: sum(count * size for _, size, count in stage), default=[])
    names = []
    for part in dict.fromkeys(part for part, _, _ in largest):
        sizes: Counter[int] = Counter()
        for each, size, count in largest:
            sizes[size] += count if each == part else 0
        terms = {size: count for size, count in sizes.items() if size and count}
        formula = " + ".join(f"{count} * {size}" for size, count in terms.items()) or "0"
        value = sum(size * count for size, count in terms.items())
        steps.append(Quantity(f"{part}_bytes", f"{part.replace('_', ' ')} on one device", formula, value, "bytes"))
        names.append(f"{part}_bytes")
    return (
        *steps,
        Quantity("weights_bytes", "weights on one device", " + ".join(names) or "0", counted.bytes, "bytes"),
    )


def _parameters(architecture: Architecture) -> list[Quantity]:
    """A product for each part of the model: layers times the numbers in each."""
    parts: dict[str, Counter[int]] = {}
    for tensor in architecture.tensors:
        parts.setdefault(tensor.part, Counter())[tensor.elements] += 1
    for layer, count in zip(architecture.layers, architecture.layer_counts, strict=True):
        of_layer: Counter[str] = Counter()
        for tensor in (*layer.mixer, *layer.rest):
            of_layer[tensor.part] += tensor.elements
        for part, elements in of_layer.items():
            parts.setdefault(part, Counter())[elements] += count
    steps = []
    for part, terms in parts.items():
        formula = " + ".join(f"{count} * {elements}" for elements, count in terms.items() if elements) or "0"
        value = sum(count * elements for elements, count in terms.items())
        steps.append(
            Quantity(part, f"{part.replace('_', ' ')}: layers times the numbers in each", formula, value, "parameters")
        )
    total = sum(step.value for step in steps)
    return [
        *steps,
        Quantity("parameters", "the whole model, tied weights once", " + ".join(parts) or "0", total, "parameters"),
    ]


def _as_stored(measured: dict[str, int], counted: Weights) -> tuple[Quantity, ...]:
    """Bytes that files hold by storage format; a device's part of them is stated, not derived."""
    steps = [
        Quantity(f"stored_{number}", f"{name} tensors in the files", str(size), size, "bytes", "measured in the files")
        for number, (name, size) in enumerate(sorted(measured.items()), start=1)
    ]
    whole = sum(measured.values())
    formula = " + ".join(step.symbol for step in steps) or "0"
    if counted.bytes == whole:
        return (*steps, Quantity("weights_bytes", "weights", formula, whole, "bytes"))
    part = Quantity(
        "device_bytes",
        "one device's part, in proportion to the computed weights",
        str(counted.bytes),
        counted.bytes,
        "bytes",
    )
    return (*steps, Quantity("whole_bytes", "the whole model", formula, whole, "bytes"), part)
