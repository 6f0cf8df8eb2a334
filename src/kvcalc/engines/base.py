"""What every engine is: its options, and a plan that answers three questions.

``Engine.prepare`` does once what depends on neither context nor batch; the :class:`Plan` that it returns answers for
any context and batch size in constant time. Adding an engine is one module and one line in the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from kvcalc.architecture import Architecture, Latent, Layer, LayerKind, Parallel, Part, Stage, kind_label, pipeline
from kvcalc.derivation import Derivation, Quantity
from kvcalc.dtypes import DType, parse_dtype
from kvcalc.errors import InputError, NotModelledError, UnsupportedError, quote
from kvcalc.quantization import TOWERS
from kvcalc.units import format_bytes

if TYPE_CHECKING:
    from kvcalc.device import Device, Platform
    from kvcalc.quantization import WeightsFormat
    from kvcalc.setup import Setup


@dataclass(frozen=True)
class LayerBytes:
    """One row of a cache: all layers of one kind.

    Attributes:
        kind: the layer kind (``sliding``, ``full`` ...).
        label: the kind with what distinguishes it (``sliding (1024)``).
        count: layers of this kind.
        window: tokens beyond which such a layer keeps no more, or None.
        tokens: token slots that each of these layers holds, all sequences together.
        bytes: bytes of all these layers together.
    """

    kind: str
    label: str
    count: int
    window: int | None
    tokens: int
    bytes: int


@dataclass(frozen=True)
class KVCache:
    """What an engine's cache takes on one device; ``sum(row.bytes) + padding_bytes + draft_bytes == bytes``.

    Attributes:
        bytes: the engine's reservation or its peak: the number to budget.
        steady_bytes: held while decoding at that context.
        layers: the rows, one a layer kind.
        padding_bytes: what the engine takes beside them (padding layers, rounding to blocks).
        why: the reason for the figure in a few words.
        notes: what a reader must know to use it.
        ideal_bytes: the report's own accounting of the same workload; filled in by the footprint.
        draft_bytes: the cache of a draft model that the engine keeps apart (llama.cpp's second context).
    """

    bytes: int
    steady_bytes: int
    layers: tuple[LayerBytes, ...]
    padding_bytes: int = 0
    why: str = ""
    notes: tuple[str, ...] = ()
    ideal_bytes: int = 0
    draft_bytes: int = 0

    def __repr__(self) -> str:
        rows = ", ".join(f"{row.count} {row.label} {format_bytes(row.bytes, digits=2)}" for row in self.layers)
        return f"<KV cache {format_bytes(self.bytes, digits=2)}: {rows}>"


@dataclass(frozen=True)
class WorkingMemory:
    """What an engine takes on one device besides weights and KV cache.

    Attributes:
        activation_bytes: the peak of one step beyond what stays (in llama.cpp the compute buffer).
        runtime_bytes: what the device's driver and libraries hold outside of the engine's own allocator.
        graph_bytes: captured graphs.
        band_bytes: how far the sum may be off on either side.
        share_bytes: the part of the sum that the engine takes out of its own share of the device; a vLLM before 0.21
            captures its graphs beside it.
        quantities: the formulas; those five are among them. They hold for every device of a platform: what they need
            of it is a quantity of its own (``hopper``, ``multiprocessors``).
        notes: what a reader must know to use the figures.
    """

    activation_bytes: int = 0
    runtime_bytes: int = 0
    graph_bytes: int = 0
    band_bytes: int = 0
    share_bytes: int = 0
    quantities: tuple[Quantity, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def ended(cls, work: Derivation, band: str, notes: tuple[str, ...] = ()) -> Self:
        """The figures of a derivation of activations and runtime alone: no graphs, and all of it counts.

        Args:
            band: the formula of how far it may be off.
        """
        work.let("graph_bytes", "captured graphs", "0", "bytes")
        work.let("share_bytes", "all of it", "activation_bytes + runtime_bytes", "bytes")
        work.let("band_bytes", "how far it may be off", band, "bytes")
        return cls.derived(work, notes)

    @classmethod
    def derived(cls, work: Derivation, notes: tuple[str, ...] = ()) -> Self:
        """The figures that a derivation ends with."""
        return cls(
            activation_bytes=work["activation_bytes"],
            runtime_bytes=work["runtime_bytes"],
            graph_bytes=work["graph_bytes"],
            band_bytes=work["band_bytes"],
            share_bytes=work["share_bytes"],
            quantities=tuple(work.quantities),
            notes=notes,
        )

    def __repr__(self) -> str:
        sizes = (self.activation_bytes, self.runtime_bytes, self.graph_bytes, self.total_bytes, self.band_bytes)
        activation, runtime, graphs, total, band = (format_bytes(size, digits=2) for size in sizes)
        return f"<{activation} activations + {runtime} runtime + {graphs} graphs = {total}, +- {band}>"

    @property
    def total_bytes(self) -> int:
        """Activations, runtime and graphs."""
        return self.activation_bytes + self.runtime_bytes + self.graph_bytes


class Plan(Protocol):
    """An engine's answers for one architecture and setup, at any context and batch size."""

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """``allocate(...).bytes`` alone, fast."""
        ...

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """What it takes to serve the workload."""
        ...

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """The smallest KV budget, in bytes, with which the engine serves the workload."""
        ...

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """The engine's own names and figures for that budget."""
        ...

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """The quantities behind ``allocate(...).bytes``, each with its formula; the last one is that number.

        ``layers_1``, ``layers_2`` ... are the bytes of the rows that hold any, ``draft_bytes`` those of a draft that
        is kept apart, ``required_bytes`` is ``required_kv_memory(...)`` where that is another number. The formulas
        are the same for every context and every batch size (one sequence may have its own): no number of the
        question stands in them.
        """
        ...


@dataclass(frozen=True)
class OptionHelp:
    """One option of an engine, for people."""

    name: str
    default: Any
    description: str


@dataclass(frozen=True)
class Server:
    """How an engine's server is started.

    Attributes:
        program: its words, with ``{model}`` where the model goes.
        flags: the flag of each part of a workload that has one (``context``, ``context_in_all``, ``batch_size``,
            ``tensor_parallel_size``, ``k_dtype``, ``v_dtype``, ``utilization``, ``draft``).
        option: how an option of the engine becomes a flag (``--{}``), or None where options are no flags.
        off: how one that is false does (``--no-{}``); empty: it is left out.
        no_flags: options that are no flags of the server.
        named: flags of options, or of one value of theirs (``flash_attn=False``), that are named otherwise.
        text_only: the flag that leaves the encoders of images and sound out, or nothing.
        loads: what the model is to the server: a name on the Hub, or a file, whose path nobody knows.
    """

    program: tuple[str, ...]
    flags: Mapping[str, str]
    option: str | None = None
    off: str = ""
    no_flags: frozenset[str] = frozenset()
    named: Mapping[str, str] = field(default_factory=dict)
    text_only: str = ""
    loads: Literal["name", "file"] = "name"


@dataclass(frozen=True)
class Loads:
    """The weights that an engine reads: a word for each method (see ``WeightsFormat``), and the file that says so."""

    methods: str
    source: str


class Engine:
    """What an engine is asked; each one adds :meth:`prepare`, and options in :mod:`kvcalc.engines.options`.

    Class attributes: ``name``; ``summary``, a sentence; ``follows``, the version whose rule it is; ``formula``, the
    rule in a few lines; ``sources``, files and versions; ``not_modelled``, what the figure leaves out; ``evidence``,
    how the rule was checked; ``frugal_options``, options that take less memory, the least harmful first, each with the
    values to try; ``releases``, those that a ``version`` may name and whose rule is known.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    follows: ClassVar[str]
    formula: ClassVar[str]
    sources: ClassVar[tuple[str, ...]]
    not_modelled: ClassVar[tuple[str, ...]] = ()
    #: Where it runs; the report's accounting runs nowhere.
    platforms: ClassVar[frozenset[Platform]] = frozenset()
    evidence: ClassVar[str] = ""
    #: Whose declared cache format is this engine's default (see ``DeclaredCache``).
    follows_cache_of: ClassVar[frozenset[str]] = frozenset()
    #: The weights that its newest version reads, or None where nobody looked.
    loads: ClassVar[Loads | None] = None
    #: Weights formats that it loads, best quality first: levers are tried in this order.
    weight_formats: ClassVar[tuple[str, ...]] = ("fp8", "int4")
    #: What it holds of a checkpoint beside the model's own layers; prediction layers come with a draft otherwise.
    holds_beside: ClassVar[frozenset[str]] = TOWERS
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    #: Whether its working memory is what it leaves of a device, needed or not: a stated utilization takes its place.
    sets_aside: ClassVar[bool] = False
    #: Why sequences that begin alike each keep their beginning, and where that is known from; empty: not known.
    keeps_prefixes_apart: ClassVar[str] = ""
    #: The releases that were read, the newest first, those together that follow one rule; empty: ``follows`` alone.
    releases: ClassVar[tuple[tuple[str, ...], ...]] = ()
    #: How its server is started, or None where it has none.
    server: ClassVar[Server | None] = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """The engine with options by its own names.

        Raises:
            InputError: it has no such option, or the value is out of range.
        """
        for option in options:
            raise InputError(
                f"{cls.name} has no option {quote(option)}", hint="it has none: options are those of another --engine"
            )
        return cls()

    @classmethod
    def option_help(cls) -> tuple[OptionHelp, ...]:
        """Every option with its default and its meaning."""
        return ()

    @property
    def set_options(self) -> dict[str, Any]:
        """The options that were given, the version among them."""
        return {}

    @property
    def given_options(self) -> dict[str, Any]:
        """The options that were given, but the version."""
        return {option: value for option, value in self.set_options.items() if option != "version"}

    def start_notes(self, setup: Setup, report: Mapping[str, Any]) -> tuple[str, ...]:
        """What its server needs besides memory to start with a pool, by what it reports of it."""
        return ()

    def stated_options(self, model: Architecture) -> dict[str, Any]:
        """The options that a server must be told to serve a model as the answer assumes."""
        return self.given_options

    @property
    def draft_options(self) -> dict[str, Any]:
        """The options that a server with a draft must be told to speculate at all."""
        return {}

    @property
    def followed_version(self) -> str:
        """The version whose rule answers; engines with a ``version`` option say that one."""
        version: str = getattr(self, "version", None) or self.follows
        return version

    @property
    def utilization_percent(self) -> int:
        """The memory fraction that the engine takes of a device by default, in percent (vLLM's depends on version)."""
        return 100

    @property
    def pipeline_stages(self) -> int:
        """Devices in a row, each with a part of the layers."""
        return 1

    def stages(self, model: Architecture) -> tuple[Stage, ...]:
        """What of a model lies on each device; what lies in host memory is on none of them."""
        return pipeline(model, self.pipeline_stages)

    def fewer_devices(self, model: Architecture, tensor_parallel_size: int) -> tuple[tuple[Part, int], ...]:
        """Parts of the weights that fewer devices share than ``tensor_parallel_size``, and how many do."""
        return ()

    @property
    def pads_to_longest(self) -> bool:
        """Whether every sequence gets the room of the longest one (slots of one size, batches with padding)."""
        return False

    @property
    def context_limit(self) -> int | None:
        """The longest context that the options themselves allow a sequence (llama.cpp: ``n_ctx // n_seq_max``)."""
        return None

    def context_limit_at(self, batch_size: int) -> int | None:
        """The same limit among so many sequences, where the options divide one length between them."""
        return self.context_limit

    @property
    def batch_limit(self) -> int | None:
        """The most sequences that the options themselves allow at a time (llama.cpp: ``n_seq_max``)."""
        return None

    @classmethod
    def device_options(cls, memory_bytes: int, device: str) -> dict[str, Any]:
        """The options that the engine chooses by the device it finds, where nobody names them.

        Args:
            memory_bytes: the memory of one device, as its driver reports it.
            device: the device's name.
        """
        return {}

    @classmethod
    def model_options(cls, model: Architecture, device: Device) -> dict[str, Any]:
        """The options that the engine chooses for a model on a device, where nobody names them."""
        return {}

    def default_kv_dtypes(self, architecture: Architecture) -> tuple[DType, DType]:
        """The formats of K and V where the user names none: what the checkpoint declares, or the model's own."""
        declared = architecture.declared_cache
        if declared is not None and declared.by in self.follows_cache_of:
            return parse_dtype(declared.dtype), parse_dtype(declared.dtype)
        key = parse_dtype(architecture.k_dtype or architecture.dtype)
        return key, parse_dtype(architecture.v_dtype) if architecture.v_dtype else key

    def reads(self, stored: WeightsFormat) -> bool:
        """Whether it reads weights of that format, as far as its newest version tells."""
        if self.loads is None or not stored.method or self.followed_version != self.follows:
            return True
        return stored.method in self.loads.methods.split()

    def prepare(self, setup: Setup) -> Plan:
        """All that depends on neither context nor batch size.

        Raises:
            UnsupportedError: the engine refuses the model or the setup, or nobody knows what it does with it.
        """
        raise NotImplementedError

    def loading(self, setup: Setup, device: Device) -> tuple[Quantity, ...]:
        """What loading adds to the weights of the files on a device, ending at ``loading_bytes``; empty for nothing.

        A preset's own figures are those of its text: its encoders of images and sound are added here.
        """
        work = Derivation()
        work.let("loading_bytes", "encoders of images and sound", str(setup.tower_bytes), "bytes")
        return tuple(work.quantities) if setup.tower_bytes else ()

    def required_with_prefix(self, setup: Setup, context: int, batch_size: int, prefix: int) -> int:
        """``required_kv_memory`` of sequences whose first ``prefix`` tokens are the same, and are held once.

        Raises:
            UnsupportedError: the engine holds them for each sequence.
            NotModelledError: nobody here knows how it shares them.
        """
        if self.keeps_prefixes_apart:
            reason = f"{self.name} does not share a prefix between sequences: {self.keeps_prefixes_apart}"
            raise UnsupportedError(reason, hint="leave --shared-prefix out")
        raise NotModelledError(
            f"what sequences share of a prefix is not modelled for {self.name}", hint="vllm and sglang share it"
        )

    def working_memory(self, setup: Setup, device: Device, context: int, batch_size: int) -> WorkingMemory:
        """What the engine takes on a device besides weights and KV cache, in a step of that workload.

        Args:
            setup: the model in this engine.
            device: what the memory of a step depends on (its platform, its multiprocessors).
            context: tokens of one sequence.
            batch_size: sequences.

        Raises:
            NotModelledError: no formula holds here; the message says what to do.
        """
        raise NotModelledError(
            f"the working memory of {self.name} is not modelled",
            hint="leave a tenth of the device free with --reserve, and read what the engine itself logs",
        )


def refuse_weights(engine: Engine, stored: WeightsFormat) -> None:
    """Refuse weights of a format that an engine does not read.

    Raises:
        UnsupportedError: with the place that says so, and formats that it reads.
    """
    if engine.loads is not None and not engine.reads(stored):
        raise UnsupportedError(
            f"{engine.name} {engine.followed_version} reads no {stored.name} weights ({engine.loads.source})",
            hint=f"formats that it reads: {', '.join(engine.weight_formats)}",
            location="weights_dtype",
        )


def refuse_tensor_parallel(engine: str, setup: Setup) -> None:
    """Refuse ``tp > 1`` for an engine that does not divide a layer's cache."""
    if setup.tensor_parallel_size > 1:
        raise UnsupportedError(
            f"{engine} is not modelled with tensor parallelism (tp {setup.tensor_parallel_size})",
            hint="leave --tensor-parallel-size out, or use vllm, sglang, tensorrt-llm or ideal",
        )


def refuse_uneven_heads(engine: str, setup: Setup) -> None:
    """Refuse a tensor-parallel size that does not divide the query heads, or KV heads that it does not multiply.

    SGLang's QKVParallelLinear, TensorRT-LLM's duplicate_kv_weight and LMDeploy's ModelConfig refuse both when they
    load a model's weights.
    """
    tp, layers = setup.tensor_parallel_size, setup.architecture.layers
    queries = {heads for layer in layers if (heads := _query_heads(layer))}
    keys = {heads for layer in layers if (heads := getattr(_attention(layer.cache), "num_kv_heads", 0))}

    def uneven(size: int) -> list[str]:
        found = [f"{heads} query heads" for heads in sorted(queries) if heads % size]
        return found + [f"{heads} KV heads" for heads in sorted(keys) if heads % size and size % heads]

    if queries and (refused := uneven(tp)):
        working = (str(size) for size in range(1, min(queries) + 1) if not uneven(size))
        raise UnsupportedError(
            f"{engine} does not divide {refused[0]} among {tp} devices",
            hint=f"sizes that work for {setup.architecture.name}: {', '.join(working)}",
        )


def _attention(kind: LayerKind) -> LayerKind:
    return kind.attention if isinstance(kind, Parallel) else kind


def _query_heads(layer: Layer) -> int:
    """Query heads of a layer's attention, by its projection; 0 where it has none, or none that says."""
    cache = _attention(layer.cache)
    if isinstance(cache, Latent):
        return cache.num_heads
    head_dim = getattr(cache, "head_dim", 0)
    rows = next((tensor.rows for tensor in layer.mixer if tensor.role == "self_attn.q_proj"), 0)
    return rows // head_dim if head_dim else 0


def refuse_formats(engine: str, setup: Setup, modelled: frozenset[str]) -> None:
    """Refuse a cache format that the engine is not modelled with, and one for K beside another for V."""
    if setup.k_dtype != setup.v_dtype:
        raise UnsupportedError(
            f"{engine} stores K and V in one format, not {setup.k_dtype.name} and {setup.v_dtype.name}",
            hint="give one --kv-cache-dtype",
        )
    if setup.k_dtype.name not in modelled:
        raise UnsupportedError(
            f"{engine} is not modelled with a {setup.k_dtype.name} KV cache",
            hint=f"modelled formats: {', '.join(sorted(modelled))}",
        )


def refuse_latent_formats(kind: LayerKind, *formats: DType) -> None:
    """Refuse a format that only latents have for a layer with K and V."""
    for dtype in formats:
        if dtype.latent_token_bytes:
            raise UnsupportedError(
                f"{dtype.name} is a format of latent (MLA) layers, and {kind_label(kind)} layers have K and V",
                hint="use fp8 or bfloat16",
            )


def refuse_kind(engine: str, architecture: Architecture, kind: LayerKind, reason: str) -> None:
    """Refuse a model because nobody here knows what the engine does with one of its layer kinds."""
    raise NotModelledError(
        f"{engine} is not modelled for the {kind_label(kind)} layers of {architecture.name}: {reason}",
        hint="use the ideal engine for the report's accounting, or vllm",
    )
