"""The main road: a setup at a context and a batch size becomes weights + KV cache, in bytes on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from os import PathLike
from typing import TYPE_CHECKING, Unpack, cast

from kvcalc.architecture import Architecture
from kvcalc.derivation import DerivationError
from kvcalc.engines.base import Engine, KVCache
from kvcalc.engines.ideal import kind_cost
from kvcalc.setup import Setup, SetupOptions, prepare, spelled_out
from kvcalc.units import MAX_TOKENS, check_count, format_bytes
from kvcalc.weights import Weights

if TYPE_CHECKING:
    from kvcalc.report.shapes import FootprintRecord, WorkloadRecord


@dataclass(frozen=True, repr=False)
class Footprint:
    """What a model takes on one device.

    Attributes:
        setup: the model, the engine with its options, formats and parallelism.
        context: tokens in the cache of one sequence.
        batch_size: sequences.
        weights: parameters and their bytes.
        kv_cache: the engine's reservation, what it holds while decoding, and the report's accounting.
    """

    setup: Setup
    context: int
    batch_size: int
    weights: Weights
    kv_cache: KVCache

    @property
    def architecture(self) -> Architecture:
        """The model, with the layers of its draft."""
        return self.setup.served

    @property
    def engine(self) -> Engine:
        """The engine with its options."""
        return self.setup.engine

    @property
    def devices(self) -> int:
        """Devices that the model is spread over; every byte figure is for one of them."""
        return self.setup.devices

    @property
    def total_bytes(self) -> int:
        """Weights and KV cache on one device. Activations, CUDA graphs and fragmentation are not in it."""
        return self.weights.bytes + self.kv_cache.bytes

    @property
    def overhead(self) -> float | None:
        """KV cache over weights, as in figure 5 of the report; None for a model without weights."""
        return self.kv_cache.bytes / self.weights.bytes if self.weights.bytes else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know: about the model, its weights, and what the engine does with it."""
        seen = (
            *self.architecture.provenance.notes,
            *self.weights.notes,
            *self.setup.weights_notes,
            *self.setup.cache_notes,
            *self.kv_cache.notes,
        )
        return tuple(dict.fromkeys(seen))

    def __repr__(self) -> str:
        return f"<{self.title}: {self.sizes}>"

    def _repr_html_(self) -> str:
        """The same as a table, for notebooks."""
        rows = (("weights", self.weights.bytes), ("KV cache", self.kv_cache.bytes), ("total", self.total_bytes))
        cells = "".join(
            f"<tr><th>{name}</th><td>{format_bytes(size, digits=2)}</td><td>{size:,} B</td></tr>" for name, size in rows
        )
        return f"<table><caption>{escape(self.title)}</caption>{cells}</table>"

    @property
    def title(self) -> str:
        """What was asked, in a line."""
        engine = self.setup.engine
        version = "" if engine.name == "ideal" else f" {engine.followed_version}"
        return f"{self.setup.reference}, {self.context:,} tokens x {self.batch_size:,}, {engine.name}{version}"

    @property
    def sizes(self) -> str:
        """What it takes, in a line."""
        sizes = (self.weights.bytes, self.kv_cache.bytes, self.total_bytes)
        weights, cache, total = (format_bytes(size, digits=2) for size in sizes)
        each = " on each device" if self.devices > 1 else ""
        return f"{weights} weights + {cache} KV cache = {total}{each}"

    def to_dict(self) -> FootprintRecord:
        """The record of ``--format json``: integers in bytes, for one device."""
        architecture, cache, weights = self.architecture, self.kv_cache, self.weights
        setup = self.setup
        workload = {"context": self.context, "batch_size": self.batch_size, **setup.workload}
        return {
            "reference": setup.reference,
            "model": architecture.name,
            "layout": architecture.layout,
            "engine": {
                "name": self.engine.name,
                "version": self.engine.followed_version,
                "options": self.engine.given_options,
            },
            "workload": cast("WorkloadRecord", workload),
            "weights": {
                "parameters": weights.parameters,
                "active_parameters": weights.active_parameters,
                "bytes": weights.bytes,
                "dtype": weights.dtype,
                "exact_parameters": weights.exact_parameters,
                "exact": weights.exact,
                "parts": weights.parts,
                "beside": weights.beside,
                "shipped_bytes": weights.shipped_bytes,
            },
            "kv_cache": {
                "bytes": cache.bytes,
                "steady_bytes": cache.steady_bytes,
                "ideal_bytes": cache.ideal_bytes,
                "layers": [
                    {
                        "kind": row.kind,
                        "count": row.count,
                        "window": row.window,
                        "tokens": row.tokens,
                        "bytes": row.bytes,
                    }
                    for row in cache.layers
                ],
                "padding_bytes": cache.padding_bytes,
                "draft_bytes": cache.draft_bytes,
                "notes": list(cache.notes),
            },
            "total_bytes": self.total_bytes,
            "overhead": self.overhead,
            "devices": self.devices,
            "notes": list(self.notes),
        }


def footprint_of(setup: Setup, context: int, batch_size: int) -> Footprint:
    """The footprint of a setup at one context and batch size."""
    cache = setup.plan.allocate(context, batch_size)
    if cache.bytes != setup.plan.kv_bytes(context, batch_size):
        engine = setup.engine.name
        raise DerivationError(f"{engine}: the rows hold {cache.bytes}, not {setup.plan.kv_bytes(context, batch_size)}")
    if setup.plan is not setup.ideal_plan:
        cache = replace(cache, ideal_bytes=setup.ideal_plan.kv_bytes(context, batch_size))
    return Footprint(setup, context, batch_size, setup.weights, cache)


@spelled_out
def footprint(
    architecture: Architecture | str | PathLike[str],
    *,
    context: int,
    batch_size: int = 1,
    **options: Unpack[SetupOptions],
) -> Footprint:
    """Weights and KV cache of a model at one context, in one engine.

    Args:
        architecture: the model, from :func:`kvcalc.load` or :func:`kvcalc.read_config`; or its name or path.
        context: tokens in the cache of one sequence.
        batch_size: sequences.
        engine: the engine's name (``ideal`` is the report's accounting).
        engine_options: the engine's options by its own names.
        kv_cache_dtype: one format for K and V, or ``K/V`` (``"q8_0/q4_0"``); None is the engine's default.
        weights_dtype: storage format of the weights; None is the model's own.
        tensor_parallel_size: devices that share every layer; the byte figures are for one of them.
        encoder_tokens: length of the encoder's output, for cross-attention caches.
        draft: the model that proposes tokens, or ``"mtp"`` for the model's own prediction layers: its cache and its
            weights count too.
        text_only: the encoders of images and sound that the checkpoint carries are left out.

    Raises:
        KVCalcError: an argument out of range, or a combination that the engine refuses.

    >>> import kvcalc
    >>> f = kvcalc.footprint(kvcalc.load("gemma-3-27b"), context=131072)
    >>> f.kv_cache.bytes, f.weights.parameters
    (11173625856, 27009346304)
    >>> f
    <gemma-3-27b, 131,072 tokens x 1, ideal: 50.31 GiB weights + 10.41 GiB KV cache = 60.72 GiB>
    """
    context, batch_size = check_count(context, "context"), check_count(batch_size, "batch_size")
    return footprint_of(prepare(architecture, **options), context, batch_size)


@spelled_out
def kv_cache_bytes(
    architecture: Architecture | str | PathLike[str],
    *,
    context: int,
    batch_size: int = 1,
    **options: Unpack[SetupOptions],
) -> int:
    """The KV cache alone, as one integer: the same arguments and answer as ``footprint(...).kv_cache.bytes``, fast.

    Args:
        context: tokens in the cache of one sequence.
        batch_size: sequences.

    The other arguments are those of :func:`footprint`.

    Returns:
        Bytes on one device.

    Raises:
        KVCalcError: an argument out of range, or a combination that the engine refuses.

    >>> import kvcalc
    >>> kvcalc.kv_cache_bytes(kvcalc.load("gemma-3-27b"), context=32768)
    3120562176
    """
    setup: Setup | None = None
    if not (type(context) is type(batch_size) is int and 0 < context <= MAX_TOKENS and 0 < batch_size <= MAX_TOKENS):
        context, batch_size = check_count(context, "context"), check_count(batch_size, "batch_size")
    elif isinstance(architecture, Architecture):
        try:  # as prepare() finds it, which takes longer than the answer
            setup = architecture.derived.get(tuple(options.items()))
        except TypeError:  # options of an engine, or a mistake
            setup = None
    return (setup or prepare(architecture, **options)).plan.kv_bytes(context, batch_size)


@spelled_out
def sweep(
    architecture: Architecture | str | PathLike[str],
    *,
    contexts: Sequence[int],
    batch_size: int = 1,
    **options: Unpack[SetupOptions],
) -> list[int]:
    """The KV cache at many contexts: the integers of :func:`kv_cache_bytes` in the order of ``contexts``, faster.

    Args:
        contexts: tokens in the cache of one sequence.

    The other arguments, and the errors, are those of :func:`kv_cache_bytes`.

    >>> import kvcalc
    >>> kvcalc.sweep("gemma-2-2b@5:1/sw=1024", contexts=[4096, 8192, 32768])
    [159383552, 226492416, 629145600]
    """
    tokens = list(contexts)
    if set(map(type, tokens)) == {int}:  # the least and the largest speak for all
        check_count(min(tokens), "context")
        check_count(max(tokens), "context")
    else:
        tokens = [check_count(context, "context") for context in tokens]
    sequences = check_count(batch_size, "batch_size")
    kv_bytes = prepare(architecture, **options).plan.kv_bytes
    return [kv_bytes(context, sequences) for context in tokens]


def layer_bytes(
    architecture: Architecture | str | PathLike[str],
    *,
    context: int,
    batch_size: int = 1,
    kv_cache_dtype: str | None = None,
    tensor_parallel_size: int = 1,
    encoder_tokens: int = 0,
) -> list[int]:
    """What each layer keeps, in the model's order, by the report's accounting: a sliding layer min(context, window).

    Their sum is ``kv_cache_bytes`` of the engine ``ideal``. Other engines allocate layers together.

    >>> import kvcalc
    >>> kvcalc.layer_bytes("gemma-3-1b", context=32768)[:7]
    [524288, 524288, 524288, 524288, 524288, 33554432, 524288]
    """
    tokens, sequences = check_count(context, "context"), check_count(batch_size, "batch_size")
    setup = prepare(
        architecture,
        kv_cache_dtype=kv_cache_dtype,
        tensor_parallel_size=tensor_parallel_size,
        encoder_tokens=encoder_tokens,
    )
    model = setup.architecture
    sizes = [
        sequences
        * sum(kind_cost(kind, setup).bytes_at(tokens) for kind in (layer.cache, layer.cross) if kind is not None)
        for layer in model.layers
    ]
    return [sizes[index] for index in model.order]
