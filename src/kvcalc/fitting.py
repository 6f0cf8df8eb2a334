"""The one inverse: what fits into this memory.

``required_kv_memory`` of an engine's plan grows with the context and with the batch size, so the largest of either
that fits is found by doubling and halving: exact, and in as many steps as the answer has digits. No straight line is
drawn through a curve that bends at windows, pads and blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from numbers import Real
from os import PathLike
from typing import TYPE_CHECKING, Any, Unpack

from kvcalc.architecture import Architecture
from kvcalc.derivation import Derivation, Quantity
from kvcalc.device import Device
from kvcalc.engines.base import WorkingMemory
from kvcalc.errors import InputError, NotModelledError, RefusalError, quote
from kvcalc.setup import Setup, SetupOptions, prepare_on, spelled_out
from kvcalc.sources.devices import find_device
from kvcalc.units import MAX_BYTES, MAX_TOKENS, check_count, decimal_text, exact_bytes, format_bytes, largest

if TYPE_CHECKING:
    from kvcalc.report.shapes import CapacityRecord, PoolRecord

_UTILIZATION = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})\s?(%?)", re.ASCII)


@dataclass(frozen=True)
class Measured:
    """Terms of one device's memory that a start of an engine printed, in place of a formula's.

    They hold for the setup that printed them, at any context, batch size and cache format; another engine, another
    option or other weights have formulas again.

    Attributes:
        source: the log.
        weights_bytes, activation_bytes, runtime_bytes, graph_bytes: the terms; None is not printed.
    """

    source: str
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    runtime_bytes: int | None = None
    graph_bytes: int | None = None

    @property
    def printed(self) -> dict[str, int]:
        """The terms that were printed, by their names."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "source"}
        return {name: size for name, size in found.items() if size is not None}

    def over(self, working: WorkingMemory) -> WorkingMemory:
        """A working memory with these terms, and with the formulas of the others.

        >>> formula = WorkingMemory(activation_bytes=2000, runtime_bytes=300, share_bytes=2300)
        >>> Measured("server.log", activation_bytes=1900).over(formula).share_bytes
        2200
        """
        return _with_terms(working, {name: (str(size), self.source) for name, size in self.printed.items()})


def _with_terms(working: WorkingMemory, terms: Mapping[str, tuple[str, str]]) -> WorkingMemory:
    """A working memory with other formulas, each with its source, in place of some of its own."""
    work = Derivation()
    for each in working.quantities or _as_numbers(working):
        formula, source = terms.get(each.symbol, (each.formula, each.source))
        let = work.let_float if isinstance(each.value, float) else work.let
        let(each.symbol, each.meaning, formula, each.unit, source)
    return WorkingMemory.derived(work, working.notes)


def _without_aside(working: WorkingMemory, utilization: Fraction) -> WorkingMemory:
    """The same where the part of the device is stated: the rest of it is what is set aside."""
    source, nothing = "the stated part of the device", "0"
    share = f"runtime_bytes * {utilization.numerator} // {utilization.denominator}"
    terms = {"activation_bytes": nothing, "graph_bytes": nothing, "share_bytes": share}
    return _with_terms(replace(working, notes=()), {name: (formula, source) for name, formula in terms.items()})


def _as_numbers(working: WorkingMemory) -> Iterator[Quantity]:
    """The five figures of a working memory that has no formulas."""
    beside = working.total_bytes - working.share_bytes
    for name in ("activation_bytes", "runtime_bytes", "graph_bytes"):
        yield Quantity(name, "as given", str(getattr(working, name)), getattr(working, name), "bytes")
    share = f"activation_bytes + runtime_bytes + graph_bytes - {beside}"
    yield Quantity("share_bytes", "the part that counts", share, working.share_bytes, "bytes")
    yield Quantity("band_bytes", "how far it may be off", str(working.band_bytes), working.band_bytes, "bytes")


@dataclass(frozen=True)
class Memory:
    """The memory of one device, or of the KV cache alone.

    Attributes:
        kv_memory: bytes for the KV cache, where that is known already.
        device: the device, otherwise.
        utilization: the part of the device that the engine takes; None is the engine's default for its version.
        reserve: bytes of it that are kept free.
        measured: terms that a log printed, and the setup that they hold for.
    """

    kv_memory: int | None = None
    device: Device | None = None
    utilization: Fraction | None = None
    reserve: int = 0
    measured: tuple[Measured, Setup] | None = None

    def __post_init__(self) -> None:
        if (self.kv_memory is None) == (self.device is None):
            raise InputError("a capacity needs one memory", hint="give kv_memory, device_memory or device, one of them")
        if self.kv_memory is not None and (self.utilization is not None or self.reserve):
            reason = "kv_memory is the pool itself: a reserve or a utilization has nothing to be taken from"
            raise InputError(reason, hint="give the device's memory instead")
        if self.kv_memory is not None:
            check_count(self.kv_memory, "kv_memory", least=0, most=MAX_BYTES)
        check_count(self.reserve, "reserve", least=0, most=MAX_BYTES)

    @property
    def label(self) -> str:
        """The device, or its size, or that of the cache, in a word."""
        if self.device is None:
            return f"a KV cache of {exact_bytes(self.kv_memory or 0)}"
        return self.device.name or exact_bytes(self.device.memory_bytes)

    def pool(self, setup: Setup, context: int, batch_size: int) -> Pool:
        """What weights and working memory leave of one device for the KV cache at a workload, by term."""
        if self.device is None:
            assert self.kv_memory is not None
            return Pool(self.kv_memory)
        utilization = self.utilization
        if utilization is None:
            utilization = Fraction(setup.engine.utilization_percent, 100)
        usable = self.device.memory_bytes * utilization.numerator // utilization.denominator
        working, reason, advice = WorkingMemory(), "", ""
        try:
            working = setup.engine.working_memory(setup, self.device, context, batch_size)
        except NotModelledError as error:
            reason, advice = error.message, error.hint or ""
        if self.utilization is not None and setup.engine.sets_aside:
            working = _without_aside(working, self.utilization)
        measured, loading = self._measured_of(setup), setup.engine.loading(setup, self.device)
        weights_bytes = setup.weights.bytes + (int(loading[-1].value) if loading else 0)
        if measured is not None:
            working, printed = measured.over(working), measured.printed
            weights_bytes = printed.get("weights_bytes", weights_bytes)
            loading = () if "weights_bytes" in printed else loading
            reason = "" if {"activation_bytes", "runtime_bytes"} <= printed.keys() else reason
        left = usable - weights_bytes - working.share_bytes - self.reserve
        return Pool(
            left,
            self.device.memory_bytes,
            utilization,
            usable,
            weights_bytes,
            working,
            self.reserve,
            reason,
            advice,
            measured,
            loading,
        )

    def _measured_of(self, setup: Setup) -> Measured | None:
        """The printed terms, if it was this setup that printed them, whatever the format of its cache."""
        if self.measured is None:
            return None
        measured, printer = self.measured
        same = replace(printer, k_dtype=setup.k_dtype, v_dtype=setup.v_dtype) == setup
        return measured if same else None


@dataclass(frozen=True)
class Term:
    """What an engine takes out of its share of a device besides the weights.

    Attributes:
        name: the figure of the working memory.
        words: what it is.
        size: bytes.
        source: the log that printed it, or empty where it is a formula's.
    """

    name: str
    words: str
    size: int
    source: str = ""


@dataclass(frozen=True)
class Pool:
    """The KV cache's share of one device: floor(device memory x utilization) - weights - working memory - reserve.

    Attributes:
        kv_memory: bytes for the KV cache; negative where the weights alone do not fit.
        device_memory, utilization, usable_bytes, weights_bytes, working_memory, reserve_bytes: the terms, or None where
            the pool was given as such.
        not_modelled: why the working memory is not among the terms, or empty.
        advice: what to do about that, or empty.
        measured: the terms that are a log's and not a formula's, or None.
        loading: what the engine adds to the weights of the files, step by step; it is part of ``weights_bytes``.
    """

    kv_memory: int
    device_memory: int | None = None
    utilization: Fraction | None = None
    usable_bytes: int | None = None
    weights_bytes: int | None = None
    working_memory: WorkingMemory | None = None
    reserve_bytes: int | None = None
    not_modelled: str = ""
    advice: str = ""
    measured: Measured | None = None
    loading: tuple[Quantity, ...] = ()

    @property
    def loading_bytes(self) -> int:
        """What the engine adds to the weights of the files."""
        return int(self.loading[-1].value) if self.loading else 0

    @property
    def terms(self) -> tuple[Term, ...]:
        """The parts of the working memory that are taken out of the share, in words; graphs may be captured beside."""
        working = self.working_memory or WorkingMemory()
        named = {"activation_bytes": "activations of one step", "runtime_bytes": "runtime of the device"}
        if working.share_bytes == working.total_bytes:
            named["graph_bytes"] = "CUDA graphs"
        printed = {} if self.measured is None else dict.fromkeys(self.measured.printed, self.measured.source)
        found = (Term(name, words, getattr(working, name), printed.get(name, "")) for name, words in named.items())
        return tuple(term for term in found if term.size)

    def to_dict(self) -> PoolRecord:
        """The key ``pool`` of ``fit``, ``show`` and ``check`` in JSON."""
        working = self.working_memory
        return {
            "device_memory": self.device_memory,
            "utilization": None if self.utilization is None else decimal_text(self.utilization),
            "usable_bytes": self.usable_bytes,
            "weights_bytes": self.weights_bytes,
            "loading_bytes": None if self.device_memory is None else self.loading_bytes,
            "activation_bytes": None if working is None else working.activation_bytes,
            "runtime_bytes": None if working is None else working.runtime_bytes,
            "graph_bytes": None if working is None else working.graph_bytes,
            "band_bytes": None if working is None else working.band_bytes,
            "reserve_bytes": self.reserve_bytes,
            "kv_memory": self.kv_memory,
            "not_modelled": self.not_modelled or None,
            "measured": None if self.measured is None else sorted(self.measured.printed),
        }


@dataclass(frozen=True)
class Capacity:
    """What fits into a pool; every figure is for one device.

    Attributes:
        fits: the workload fits; without a context, whether one token does.
        max_context: the most tokens a sequence may have at ``batch_size``: 0 where not one fits, None where nothing
            bounds it (not even 2^40 tokens are too many).
        max_batch_size: the most sequences of ``context`` tokens: 0 and None likewise; None without a context.
        required_kv_memory: the smallest pool that serves the workload; None without a context, or where the options
            leave no room for it in any pool (llama.cpp with a fixed ``n_ctx``).
        missing_bytes: what the pool lacks of that; None likewise.
        pool: the pool, by term.
        context: the context that was asked about, or None.
        batch_size: the batch size that was asked about.
        reported_context: the context of the engine's figures: ``context``; without one, the longest that fits, at most
            the model's own.
        engine_report: the engine's own names and figures for this pool; empty where there is no pool at all.
        refusal: why the engine refuses to start with this pool, or None; the function raises it.
    """

    fits: bool
    max_context: int | None
    max_batch_size: int | None
    required_kv_memory: int | None
    missing_bytes: int | None
    pool: Pool
    context: int | None
    batch_size: int
    reported_context: int
    engine_report: dict[str, Any] = field(default_factory=dict, hash=False)
    refusal: RefusalError | None = field(default=None, hash=False)

    @property
    def kv_memory(self) -> int:
        """Bytes of the pool."""
        return self.pool.kv_memory

    def __repr__(self) -> str:
        asked = "" if self.context is None else f"{self.context:,} tokens x {self.batch_size:,}: "
        verdict = "fits" if self.fits else "does not fit"
        longest = "any context" if self.max_context is None else f"longest context {self.max_context:,}"
        most = "" if self.max_batch_size is None else f", largest batch {self.max_batch_size:,}"
        pool = format_bytes(self.kv_memory, digits=2)
        return f"<{asked}{verdict} in {pool}; {longest} at batch size {self.batch_size:,}{most}>"

    def to_dict(self) -> CapacityRecord:
        """The key ``capacity`` of ``kvcalc fit --format json``."""
        return {
            "fits": self.fits,
            "context": self.context,
            "batch_size": self.batch_size,
            "max_context": self.max_context,
            "max_batch_size": self.max_batch_size,
            "required_kv_memory": self.required_kv_memory,
            "missing_bytes": self.missing_bytes,
            "engine_report": self.engine_report,
            "reported_context": self.reported_context,
            "refusal": None if self.refusal is None else self.refusal.message,
        }


@spelled_out
def capacity(
    architecture: Architecture | str | PathLike[str],
    *,
    kv_memory: int | None = None,
    device_memory: int | None = None,
    device: str | Device | None = None,
    gpu_memory_utilization: str | float | Fraction | None = None,
    reserve: int = 0,
    context: int | None = None,
    batch_size: int = 1,
    **options: Unpack[SetupOptions],
) -> Capacity:
    """What fits: the longest context at a batch size, and the largest batch at a context.

    Args:
        kv_memory: bytes of the KV cache on one device; or
        device_memory: bytes of one device, of which weights, working memory and ``reserve`` are taken; or
        device: the device, by name (``"h100-80gb"``); the engine's options are then what it chooses there.
        gpu_memory_utilization: the part of the device that the engine takes, as a decimal (``0.9`` or ``"0.9"``); None
            is the engine's own.
        reserve: bytes of the device to keep free.
        context: tokens in the cache of one sequence, if they are given.

    The other arguments are those of :func:`kvcalc.footprint`.

    Raises:
        KVCalcError: an argument out of range, or an engine that refuses to start. A context that is too long is no
            error: it does not fit.

    >>> import kvcalc
    >>> c = kvcalc.capacity(kvcalc.load("gemma-3-27b"), kv_memory=4 * kvcalc.GiB, context=32768)
    >>> c.max_context, c.max_batch_size
    (47104, 1)
    """
    utilization = None if gpu_memory_utilization is None else parse_utilization(gpu_memory_utilization)
    place = find_device(device, device_memory)
    memory = Memory(kv_memory, place, utilization, reserve)
    setup = prepare_on(place, architecture, **options)
    answer = capacity_of(setup, memory, context, batch_size)
    if answer.refusal is not None:
        raise answer.refusal
    return answer


@partial(spelled_out, engine="vllm")
def working_memory(
    architecture: Architecture | str | PathLike[str],
    *,
    device: str | Device,
    context: int | None = None,
    batch_size: int = 1,
    **options: Unpack[SetupOptions],
) -> WorkingMemory:
    """What an engine takes on a device besides weights and KV cache: activations, runtime and graphs.

    Args:
        device: the device, by name.
        context: tokens of one sequence; None is the model's own.
        batch_size: sequences.

    The other arguments are those of :func:`kvcalc.footprint`; ``engine`` is vLLM where it is left out.

    Raises:
        NotModelledError: no formula holds for this engine, model or device, with the reason.

    >>> import kvcalc
    >>> w = kvcalc.working_memory(kvcalc.load("llama-3.1-8b"), device="h100-80gb", engine="vllm")
    >>> round(w.activation_bytes / kvcalc.GiB, 2)
    1.89
    """
    place = find_device(device, None)
    if place is None:
        raise InputError("working memory is that of a device", hint='as in device="h100-80gb"')
    options.setdefault("engine", "vllm")
    setup = prepare_on(place, architecture, **options)
    tokens = check_count(context if context is not None else setup.architecture.max_context or MAX_TOKENS, "context")
    return setup.engine.working_memory(setup, place, tokens, check_count(batch_size, "batch_size"))


def capacity_of(setup: Setup, memory: Memory, context: int | None, batch_size: int = 1) -> Capacity:
    """What fits, as :func:`capacity` answers it; an engine that refuses to start is a refusal, not raised."""
    if context is not None:
        context = check_count(context, "context")
    batch_size = check_count(batch_size, "batch_size")
    longest = max_context(setup, memory, batch_size)
    made_for = setup.architecture.max_context or MAX_TOKENS
    reported = context or min(made_for, made_for if longest is None else max(1, longest))
    pool = memory.pool(setup, reported, batch_size)
    required = None if context is None else required_memory(setup, context, batch_size)
    report, refusal = _report(setup, reported, batch_size, pool.kv_memory)
    return Capacity(
        fits=longest != 0 if context is None else required is not None and required <= pool.kv_memory,
        max_context=longest,
        max_batch_size=None if context is None else max_batch_size(setup, memory, context),
        required_kv_memory=required,
        missing_bytes=None if required is None else max(0, required - pool.kv_memory),
        pool=pool,
        context=context,
        batch_size=batch_size,
        reported_context=reported,
        engine_report=report,
        refusal=refusal,
    )


def _report(setup: Setup, context: int, batch_size: int, kv_memory: int) -> tuple[dict[str, Any], RefusalError | None]:
    if kv_memory <= 0:
        return {}, None
    try:
        return setup.plan.report(context, batch_size, kv_memory), None
    except RefusalError as error:
        return {}, error


def max_context(setup: Setup, memory: Memory, batch_size: int) -> int | None:
    """The longest context that so many sequences may have at a time: 0 if none, None if nothing bounds it."""
    limit = setup.engine.context_limit_at(batch_size)
    most = MAX_TOKENS if limit is None else min(limit, MAX_TOKENS)
    longest = largest(lambda context: fits(setup, memory, context, batch_size), most)
    return None if longest == MAX_TOKENS else longest


def max_batch_size(setup: Setup, memory: Memory, context: int) -> int | None:
    """The most sequences of that context at a time: 0 if none, None if nothing bounds them."""
    most = largest(lambda batch_size: fits(setup, memory, context, batch_size), MAX_TOKENS)
    return None if most == MAX_TOKENS else most


def fits(setup: Setup, memory: Memory, context: int, batch_size: int) -> bool:
    """Whether the engine serves the workload from that memory."""
    required = required_memory(setup, context, batch_size)
    return required is not None and required <= memory.pool(setup, context, batch_size).kv_memory


def required_memory(setup: Setup, context: int, batch_size: int) -> int | None:
    """The smallest pool that serves the workload, or None where the engine's options serve it from no pool."""
    longest, most = setup.engine.context_limit_at(batch_size), setup.engine.batch_limit
    if (longest is not None and context > longest) or (most is not None and batch_size > most):
        return None
    required = setup.plan.required_kv_memory(context, batch_size)
    return None if required > MAX_BYTES else required  # beyond every memory: no pool serves it


def parse_utilization(value: str | float | Fraction) -> Fraction:
    """A part of a device as an exact fraction: ``0.92`` and ``92%`` are 23/25.

    Raises:
        InputError: no decimal above 0 and at most 1.

    >>> parse_utilization("0.92"), parse_utilization("92%"), parse_utilization(0.92)
    (Fraction(23, 25), Fraction(23, 25), Fraction(23, 25))
    """
    if isinstance(value, Fraction):
        part = value
    else:  # a float is the decimal that it prints as, and not the binary fraction beside it
        text = str(value).strip() if isinstance(value, str | Real | Decimal) else ""
        match = _UTILIZATION.fullmatch(text)
        part = Fraction(0) if match is None else Fraction(match[1]) / (100 if match[2] else 1)
    if not 0 < part <= 1 or isinstance(value, bool):
        reason = f"the memory utilization must be a decimal above 0, at most 1, not {quote(value)}"
        raise InputError(reason, hint="as in --gpu-memory-utilization 0.9, or 90%")
    return part


@dataclass(frozen=True)
class Replica:
    """One way to use several devices: groups of them, each with the whole model and sequences of its own.

    Attributes:
        tensor_parallel_size: devices that share every layer.
        devices: those, times the pipeline stages.
        capacity: what one replica serves on each of its devices, or None where the engine refuses the size.
        refusal: the reason, in that case.
    """

    tensor_parallel_size: int
    devices: int
    capacity: Capacity | None
    refusal: str = ""

    def sequences(self, devices: int) -> int | None:
        """Sequences that all replicas on so many devices serve at a time; None if nothing bounds them."""
        if self.capacity is None:
            return 0
        each, replicas = self.capacity.max_batch_size, devices // self.devices
        return None if each is None and replicas else replicas * (each or 0)

    def devices_for(self, sequences: int) -> int | None:
        """The fewest devices that serve so many sequences at a time, or None where none do."""
        if self.capacity is None or self.capacity.max_batch_size == 0:
            return None
        count = -(-sequences // (self.capacity.max_batch_size or sequences))
        return count * self.devices


def replicas(setup: Setup, memory: Memory, context: int, sizes: Iterable[int]) -> list[Replica]:
    """What one replica of each tensor-parallel size serves at a context, in the order of ``sizes``."""
    answers = []
    for size in sizes:
        candidate = replace(setup, tensor_parallel_size=size)
        try:
            answers.append(Replica(size, candidate.devices, capacity_of(candidate, memory, context)))
        except RefusalError as error:
            answers.append(Replica(size, size, None, error.message))
    return answers


#: The most devices that one replica is tried on, where their number is not given.
_LARGEST_GROUP = 64


def group_sizes(devices: int | None) -> list[int]:
    """The tensor-parallel sizes worth comparing: those that use all the devices, or powers of two up to 64.

    >>> group_sizes(6), group_sizes(None)
    ([1, 2, 3, 6], [1, 2, 4, 8, 16, 32, 64])
    """
    if devices is None:
        return [2**power for power in range(_LARGEST_GROUP.bit_length())]
    return [size for size in range(1, devices + 1) if devices % size == 0]


def best_replica(compared: Sequence[Replica], devices: int | None, sequences: int) -> Replica:
    """The replica whose copies serve the most on so many devices; without a number, ``sequences`` on the fewest."""
    if devices is not None:
        served = [replica.sequences(devices) for replica in compared]
        return compared[max(range(len(compared)), key=lambda at: MAX_TOKENS if served[at] is None else served[at] or 0)]
    needed = [(count, at) for at, each in enumerate(compared) if (count := each.devices_for(sequences)) is not None]
    return compared[min(needed, default=(0, 0))[1]]


def serves(compared: Sequence[Replica], devices: int | None, sequences: int) -> bool:
    """Whether some way to use the devices serves so many sequences at a time."""
    needed = [replica.devices_for(sequences) for replica in compared]
    return any(count is not None and (devices is None or count <= devices) for count in needed)


@dataclass(frozen=True)
class Point:
    """A workload on the frontier: it fits, and one token or one sequence more does not."""

    context: int
    batch_size: int
    required_kv_memory: int


def frontier(setup: Setup, memory: Memory) -> tuple[list[Point], list[Point]]:
    """The largest batch at round contexts up to the model's own, and the longest context at round batch sizes."""

    def point(context: int, batch_size: int) -> Point:
        return Point(context, batch_size, setup.plan.required_kv_memory(context, batch_size))

    made_for = setup.served.max_context or 2**20
    contexts = dict.fromkeys([*(2**power for power in range(10, made_for.bit_length())), made_for])
    at_contexts = [point(context, batch) for context in contexts if (batch := max_batch_size(setup, memory, context))]
    at_batches: list[Point] = []
    for batch_size in (2**power for power in range(20)):
        longest = max_context(setup, memory, batch_size)
        if longest is not None and longest < 1024:
            break
        if longest is not None:
            at_batches.append(point(longest, batch_size))
    return at_contexts, at_batches
