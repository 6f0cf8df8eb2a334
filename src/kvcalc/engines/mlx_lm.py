"""MLX-LM: caches that grow by 256 slots, and rotating buffers that a prefill chunk stretches beyond their window.

``generate_step`` feeds the prompt but its last token in chunks, then that token and the generated ones one at a time.
A KVCache that overflows takes ceil(arriving / 256) x 256 more slots; a RotatingKVCache of window W holds
min(past, W - 1) + arriving slots after a chunk, and W again after the first single token. MLX counts the array, so the
padding is in the bytes.

Source: mlx-lm 0.32.2 mlx_lm/models/cache.py (:251-300 quantised, :345-360 KVCache, :462-520 rotating).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, assert_never

from pydantic import Field, ValidationInfo, field_validator

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Compressed,
    Cross,
    Full,
    Latent,
    LayerKind,
    NoCache,
    Parallel,
    Shared,
    Sliding,
    State,
    kind_label,
)
from kvcalc.derivation import Derivation, Quantity
from kvcalc.dtypes import BFLOAT16, FLOAT16, FLOAT32
from kvcalc.engines.base import KVCache, LayerBytes, Loads, Server, refuse_tensor_parallel
from kvcalc.engines.options import EngineOptions
from kvcalc.engines.releases import note_on, release, text
from kvcalc.errors import UnsupportedError
from kvcalc.units import MAX_TOKENS, round_up

if TYPE_CHECKING:
    from kvcalc.setup import Setup

#: Releases whose source was read.
_READ = ((0, 32, 2),)
_NEWEST = text(_READ[-1])
_STEP = 256
_SOURCE = "mlx-lm 0.32.2 models/cache.py"

#: Model types whose mlx-lm class has no ``make_cache`` (0.32.2): every layer gets a KVCache, whatever
#: window the configuration declares, and ``max_kv_size`` turns every layer into a rotating buffer.
_WITHOUT_MAKE_CACHE = frozenset(
    {
        "apertus",
        "bailing_moe",
        "bitnet",
        "cohere",
        "dbrx",
        "deepseek",
        "deepseek_v2",
        "deepseek_v3",
        "dots1",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone",
        "gemma",
        "gemma2",
        "glm",
        "glm4",
        "glm4_moe",
        "glm4_moe_lite",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gptj",
        "granite",
        "granitemoe",
        "helium",
        "hunyuan",
        "hunyuan_v1_dense",
        "internlm2",
        "internlm3",
        "kimi_k2",
        "mimo",
        "minicpm",
        "minicpm3",
        "minimax_m2",
        "mistral4",
        "mixtral",
        "nanochat",
        "nemotron",
        "olmo",
        "olmo2",
        "olmoe",
        "openelm",
        "phi",
        "phi3",
        "phi3small",
        "phimoe",
        "phixtral",
        "plamo",
        "qwen",
        "qwen2",
        "qwen2_5_vl",
        "qwen2_moe",
        "qwen2_vl",
        "qwen3",
        "qwen3_moe",
        "qwen3_vl",
        "qwen3_vl_moe",
        "seed_oss",
        "smollm3",
        "solar_open",
        "stablelm",
        "starcoder2",
        "telechat3",
        "youtu",
    }
)
#: Model types that mlx-lm 0.32.2 has a class for (models/, and MODEL_REMAPPING in utils.py). Any other is priced at
#: what a class of its layers would usually do, and a note says so.
_WITH_CLASS = frozenset(
    {
        *("Klear", "afm7", "afmoe", "apertus", "baichuan_m1", "bailing_hybrid", "bailing_moe", "bailing_moe_linear"),
        *("bailing_moe_v3", "bitnet", "cohere", "cohere2", "dbrx", "deepseek", "deepseek_v2", "deepseek_v3"),
        *("deepseek_v32", "deepseek_v41", "deepseek_v41_text", "dots1", "ernie4_5", "ernie4_5_moe", "exaone"),
        *("exaone4", "exaone_moe", "falcon_h1", "falcon_mamba", "gear", "gemma", "gemma2", "gemma3", "gemma3_text"),
        *("gemma3n", "gemma4", "gemma4_text", "gemma4_unified", "glm", "glm4", "glm4_moe", "glm4_moe_lite"),
        *("glm_moe_dsa", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe"),
        *("granitemoehybrid", "helium", "hunyuan", "hunyuan_v1_dense", "internlm2", "internlm3", "iquestcoder"),
        *("iquestloopcoder", "jamba", "joyai_llm_flash", "kimi_k2", "kimi_k25", "kimi_k3", "kimi_linear", "kimi_vl"),
        *("laguna", "lfm2", "lfm2-vl", "lfm2_moe", "lille-130m", "llama", "llama4", "llama4_text", "llava"),
        *("longcat_flash", "longcat_flash_ngram", "mamba", "mamba2", "mellum", "mimo", "mimo_v2_flash", "minicpm"),
        *("minicpm3", "minimax", "minimax_m2", "minimax_m3_vl", "ministral3", "mistral", "mistral3", "mistral4"),
        *("mixtral", "muse_glimmer", "muse_spark", "nanbeige", "nanochat", "nemotron", "nemotron-nas", "nemotron_h"),
        *("olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openelm", "phi", "phi-msft", "phi3", "phi3small"),
        *("phimoe", "phixtral", "pixtral", "plamo", "plamo2", "plamo3", "prism_hadamard_qwen35", "qwen", "qwen2"),
        *("qwen2_5_vl", "qwen2_moe", "qwen2_vl", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_moe", "qwen3_next"),
        *("qwen3_vl", "qwen3_vl_moe", "recurrent_gemma", "rwkv7", "seed_oss", "smollm3", "solar_open", "spark2_5"),
        *("stablelm", "starcoder2", "step3p5", "talkie", "telechat3", "xverse", "youtu"),
    }
)
#: MLA in mlx-lm: these classes cache every decompressed head, these the latent, and of these some an indexer key, which
#: they keep as K and as V (deepseek_v32.py:102).
_DECOMPRESSED = frozenset({"deepseek_v2", "minicpm3", "youtu"})
_LATENT = frozenset(
    {
        "bailing_hybrid",
        *("deepseek_v3", "kimi_k2", "kimi_linear", "kimi_k3", "glm4_moe_lite", "longcat_flash", "mistral4"),
        *("deepseek_v32", "glm_moe_dsa"),
    }
)
_WITH_INDEXER = frozenset({"deepseek_v32", "glm_moe_dsa"})
#: MiniMax M3 keeps its index keys once, as K beside a V of no width (minimax_m3_vl.py:265).
_WITH_INDEX_KEYS = frozenset({"minimax_m3", "minimax_m3_vl"})
#: Their layers keep a CacheList, which has no to_quantized: kv_bits leaves it as it is.
_CACHE_LISTS = _WITH_INDEXER | _WITH_INDEX_KEYS | {"baichuan_m1", "falcon_h1", "longcat_flash"}
#: Their attention computes with the cached keys itself, which the quantised ones do not allow: the line that fails.
_NEVER_QUANTIZED = {"gemma2": 89, "olmo": 91, "phi3small": 131, "stablelm": 120}
#: Their recurrent state is float32: gated_delta.py allocates it so, and in ssm.py (Mamba-2) the step size is float32.
#: In every other class it has the model's format.
_FLOAT32_STATE = frozenset(
    {
        *("qwen3_next", "qwen3_5", "qwen3_5_moe", "kimi_linear", "kimi_k3", "olmo_hybrid"),
        *("mamba2", "falcon_h1", "nemotron_h", "granitemoehybrid", "bailing_hybrid"),
    }
)
#: Their classes slide by ``layer_types`` alone, and a model whose layers all slide declares none.
_SLIDES_BY_LAYER_TYPES = frozenset({"mistral", "ministral3"})


class Moment(NamedTuple):
    """A point in a generation: full prefill chunks, tokens of a shorter one after them, tokens fed one by one."""

    chunks: int
    rest: int
    decoded: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Slots of a KVCache after equal prefill chunks: where the buffer grew, until the pattern repeats.

    A buffer that overflows at offset p is cut to p unless p is a multiple of 256, then grows by the chunk rounded up
    to 256. With chunks of 192: 256 slots, cut to 192 and 448, 384 and 640, 576 and 832; then, at 768 = 3 x 256, the
    832 are not cut and become 1088. So the slots depend on the history, and the history repeats.
    """

    chunk: int
    offsets: tuple[int, ...]
    slots: tuple[int, ...]
    cycle_start: int
    cycle_tokens: int

    @classmethod
    def of(cls, chunk: int) -> Growth:
        """The pattern of one chunk size, found by walking from one growth to the next (at most a few hundred)."""
        offsets: list[int] = []
        slots: list[int] = []
        seen: dict[tuple[int, int], int] = {}
        offset = held = 0
        while True:
            held = grown(offset, held, chunk)
            state = (offset % _STEP, held - offset)
            if state in seen:
                start = offsets[seen[state]]
                return cls(chunk, tuple(offsets), tuple(slots), start, offset - start)
            seen[state] = len(offsets)
            offsets.append(offset)
            slots.append(held)
            offset = held // chunk * chunk  # the first chunk that does not fit any more

    def after(self, chunks: int) -> int:
        """Slots after that many chunks.

        >>> [Growth.of(192).after(chunks) for chunks in range(7)]
        [0, 256, 448, 640, 832, 1088, 1216]
        """
        if not chunks:
            return 0
        offset = (chunks - 1) * self.chunk
        laps = (offset - self.cycle_start) // self.cycle_tokens if offset >= self.cycle_start else 0
        skipped = laps * self.cycle_tokens
        return self.slots[bisect_right(self.offsets, offset - skipped) - 1] + skipped


def grown(offset: int, slots: int, arriving: int) -> int:
    """Slots of a KVCache of ``slots`` after ``arriving`` more tokens on the ``offset`` cached ones."""
    if offset + arriving <= slots:
        return slots
    return (offset if offset % _STEP else slots) + round_up(arriving, _STEP)


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What the layers of one kind keep of one sequence.

    Attributes:
        kind: the layer kind.
        count: layers of this kind.
        token_bytes: bytes of one slot in one layer.
        quantized_token_bytes: the same once quantised (``kv_bits``); equal where the layer stays as it is.
        window: size of a RotatingKVCache, or None.
        chunk: size of a ChunkedKVCache, or None.
        fixed_bytes: bytes of states, whatever the context.
    """

    kind: LayerKind
    count: int
    token_bytes: int = 0
    quantized_token_bytes: int = 0
    window: int | None = None
    chunk: int | None = None
    fixed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MlxLmPlan:
    """The costs of the distinct kinds, and the growth pattern of the prefill's chunks."""

    costs: tuple[LayerCost, ...]
    growth: Growth
    single_tokens: int
    quantized_start: int | None
    fixed_bytes: int
    full_token_bytes: int
    full_quantized_bytes: int
    bounded: tuple[LayerCost, ...]
    windows: tuple[tuple[int, int], ...]
    is_simple: bool
    notes: tuple[str, ...]

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """The largest after any prefill chunk or decode step."""
        if self.is_simple:
            return batch_size * self._simple_bytes(context)
        return batch_size * max([self._bytes_at(moment) for moment in self._moments(context)])

    def _simple_bytes(self, context: int) -> int:
        """The largest of `_moments` where layers are full or rotating and of one format: the same sums, faster."""
        chunk = self.growth.chunk
        fed = context - 1
        rest = fed % chunk
        past = fed - rest
        slots = past if chunk % _STEP == 0 else self.growth.after(past // chunk)
        full, windows = self.full_quantized_bytes if self.quantized_start == 0 else self.full_token_bytes, self.windows
        largest = 0
        if windows and past:
            largest = full * slots
            for window, token_bytes in windows:
                largest += token_bytes * ((past - chunk if past - chunk < window else window - 1) + chunk)
        if rest:
            slots = grown(past, slots, rest)
            if windows and rest > 1:
                total = full * slots
                for window, token_bytes in windows:
                    total += token_bytes * ((past if past < window else window - 1) + rest)
                largest = max(largest, total)
        missing = fed + self.single_tokens - slots
        total = full * (slots + round_up(missing, _STEP) if missing > 0 else slots)
        if windows:
            end = Moment(past // chunk, rest, self.single_tokens)
            for window, token_bytes in windows:
                total += token_bytes * (window if past > window else self.rotating_slots(window, end))
        return self.fixed_bytes + (total if total > largest else largest)

    def _end(self, context: int) -> Moment:
        chunks, rest = divmod(context - 1, self.growth.chunk)
        return Moment(chunks, rest, self.single_tokens)

    def _moments(self, context: int) -> list[Moment]:
        """The moments one of which is the largest.

        Full layers never shrink. A rotating buffer grows over the full chunks, may be smaller after the shorter last
        one, and drops to its window with the first decode step, after which nothing shrinks. So it is enough to look
        after the last full chunk, after the prefill and at the end; and, for what else shrinks once, just before.
        """
        chunk = self.growth.chunk
        end = self._end(context)
        chunks, rest, decoded = end
        moments = [end]
        if chunks:
            moments.append(Moment(chunks, 0, 0))
        if rest:
            moments.append(Moment(chunks, rest, 0))
        before = self.quantized_start
        if before and before <= context - 1 + decoded:
            moments += self._last_boundary_up_to(before - 1, context)
        for cost in self.bounded:
            if cost.chunk is not None:
                # A ChunkedKVCache is first trimmed by the call that finds more than `chunk` tokens in it.
                if chunk % _STEP and cost.chunk // chunk < chunks:  # else the buffer is no larger than chunk + n before
                    moments.append(Moment(cost.chunk // chunk + 1, 0, 0))
                steps = cost.chunk + 1 - (context - 1)
                if 0 < steps < decoded:
                    moments.append(Moment(chunks, rest, steps))
        return moments

    def _last_boundary_up_to(self, tokens: int, context: int) -> list[Moment]:
        """The last chunk or decode step that ends with at most ``tokens`` tokens in the cache."""
        end = self._end(context)
        if tokens >= context - 1:
            return [Moment(end.chunks, end.rest, tokens - (context - 1))]
        chunks = tokens // self.growth.chunk
        return [Moment(chunks, 0, 0)] if chunks else []

    def _bytes_at(self, moment: Moment) -> int:
        chunks, rest, decoded = moment
        quantized = self.quantized_start is not None
        if self.quantized_start:
            quantized = chunks * self.growth.chunk + rest + decoded >= self.quantized_start
        total = self.fixed_bytes
        full = self.full_quantized_bytes if quantized else self.full_token_bytes
        if full:
            total += full * self.full_slots(moment)
        for cost in self.bounded:
            total += cost.count * cost.token_bytes * self._slots(cost, moment)
        return total

    def _slots(self, cost: LayerCost, moment: Moment) -> int:
        if not cost.token_bytes:
            return 0
        if cost.window is not None:
            return self.rotating_slots(cost.window, moment)
        if cost.chunk is not None:
            return self.chunked_slots(cost.chunk, moment)
        return self.full_slots(moment)

    def full_slots(self, moment: Moment) -> int:
        """Slots of a KVCache."""
        chunks, rest, decoded = moment
        offset = chunks * self.growth.chunk
        slots = offset if self.growth.chunk % _STEP == 0 else self.growth.after(chunks)
        if rest:
            slots = grown(offset, slots, rest)
            offset += rest
        missing = offset + decoded - slots
        return slots + round_up(missing, _STEP) if missing > 0 else slots

    def rotating_slots(self, window: int, moment: Moment) -> int:
        """Slots of a RotatingKVCache: chunks are appended to at most window - 1 slots, single tokens rotate."""
        chunks, rest, decoded = moment
        chunk = self.growth.chunk
        past = chunks * chunk
        slots = 0
        if chunk == 1:  # a chunk of one token takes the decode path
            decoded += chunks
        elif chunks:
            slots = (past - chunk if past - chunk < window else window - 1) + chunk
        if rest == 1:
            decoded += 1
        elif rest:
            slots = (past if past < window else window - 1) + rest
        return min(window, slots + round_up(decoded, _STEP)) if decoded else slots

    def chunked_slots(self, chunk_size: int, moment: Moment) -> int:
        """Slots of a ChunkedKVCache: a KVCache that each call first trims to ``chunk_size``."""
        chunks, rest, decoded = moment
        chunk = self.growth.chunk
        if decoded:
            before, arriving = chunks * chunk + rest + decoded - 1, 1
        elif rest:
            before, arriving = chunks * chunk, rest
        else:
            before, arriving = (chunks - 1) * chunk, chunk
        return self.full_slots(moment) if before <= chunk_size else chunk_size + round_up(arriving, _STEP)

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """One row a layer kind, at the largest moment."""
        peak = max(self._moments(context), key=self._bytes_at)
        rows = []
        for cost in self.costs:
            slots = self._slots(cost, peak)
            layer_bytes = cost.fixed_bytes + self._slot_bytes(cost, peak) * slots
            window = cost.window if cost.chunk is None else cost.chunk
            rows.append(
                LayerBytes(
                    cost.kind.kind,
                    kind_label(cost.kind),
                    cost.count,
                    window,
                    batch_size * slots,
                    batch_size * cost.count * layer_bytes,
                )
            )
        total = sum(row.bytes for row in rows)
        steady = batch_size * self._bytes_at(self._end(context))
        return KVCache(total, steady, tuple(rows), why=self._why(peak), notes=self.notes)

    def _slot_bytes(self, cost: LayerCost, moment: Moment) -> int:
        tokens = moment.chunks * self.growth.chunk + moment.rest + moment.decoded
        quantized = self.quantized_start is not None and tokens >= self.quantized_start
        return cost.quantized_token_bytes if quantized else cost.token_bytes

    def _why(self, peak: Moment) -> str:
        generated = self.single_tokens - 1
        until = f"; counted up to {generated:,} generated token{'s' * (generated != 1)}"
        if not self.bounded:
            return "buffers grow by 256 slots" + until
        if peak.decoded:
            return "rotating buffers of the window, others grow by 256 slots" + until
        arriving = peak.rest or self.growth.chunk
        return f"a prefill chunk of {arriving:,} tokens stands behind window - 1 slots" + until

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """Exactly the bytes."""
        return self.kv_bytes(context, batch_size)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """MLX-LM names no figures of its own."""
        return {}

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """The slots of each kind at every moment that may be the largest, the bytes then, and the largest of them."""
        work = Derivation(context, batch_size)
        work.let("C", "tokens of a prefill chunk", str(self.growth.chunk), "tokens", "prefill_step_size")
        work.let("fed", "prompt tokens that are fed in chunks", "T - 1", "tokens")
        work.let("whole", "of them in whole chunks", "fed // C * C", "tokens")
        work.let("rest", "tokens of the shorter chunk after those", "fed - whole", "tokens")
        alone = "tokens fed alone: the last of the prompt and generated ones"
        work.let("D", alone, str(self.single_tokens), "tokens", "decode_tokens")
        moments = self._shown_moments(context)
        kept = [(number, cost) for number, cost in enumerate(self.costs, start=1) if cost.token_bytes]
        for moment in moments:
            for number, cost in kept:
                label = f"slots of {cost.count} {kind_label(cost.kind)}, {moment.when}"
                work.let(f"{moment.name}_{number}", label, self._slots_formula(cost, moment), "slots", _SOURCE)
            sizes = [f"{cost.count} * {self._slot_formula(cost, moment)} * {moment.name}_{at}" for at, cost in kept]
            formula = " + ".join(sizes) or "0"
            work.let(f"{moment.name}_bytes", f"one sequence, {moment.when}", formula, "bytes", _SOURCE)
        chosen = _chosen(moments)
        names = []
        for number, cost in enumerate(self.costs, start=1):
            terms = [str(cost.fixed_bytes)] if cost.fixed_bytes else []
            if cost.token_bytes:
                slots = chosen([f"{moment.name}_{number}" for moment in moments])
                work.let(f"slots_{number}", "slots at the largest of these moments", slots, "slots")
                terms.append(f"{chosen([self._slot_formula(cost, moment) for moment in moments])} * slots_{number}")
            if terms:
                names.append(f"layers_{number}")
                formula = f"{cost.count} * B * ({' + '.join(terms)})"
                work.let(names[-1], f"{cost.count} {kind_label(cost.kind)}", formula, "bytes", _SOURCE)
        work.let("kv_bytes", "KV cache", " + ".join(names) or "0", "bytes", _SOURCE)
        return tuple(work.quantities)

    def _shown_moments(self, context: int) -> list[_Shown]:
        """Every moment of any question, then those of this one alone (where quantising begins, where a chunk is cut).

        Full layers never shrink, so without others the end is the largest.
        """
        end = self._end(context)
        shown = [_Shown("end", "at the end", end, "whole", "rest", "D")]
        if not self.bounded and not self.quantized_start:
            return shown
        shown.append(_Shown("chunk", "after the last whole chunk", Moment(end.chunks, 0, 0), "whole", "0", "0"))
        shown.append(_Shown("prefill", "after the prefill", Moment(end.chunks, end.rest, 0), "whole", "rest", "0"))
        usual = {each.at for each in shown}
        for moment in self._moments(context):
            if moment not in usual:
                fed = (str(moment.chunks * self.growth.chunk), str(moment.rest), str(moment.decoded))
                shown.append(_Shown(f"then{len(shown)}", f"after {' + '.join(fed)} tokens", moment, *fed))
        return shown

    def _slot_formula(self, cost: LayerCost, moment: _Shown) -> str:
        """Bytes of one slot of one layer, quantised by then or not."""
        if self.quantized_start is None or cost.token_bytes == cost.quantized_token_bytes:
            return str(cost.token_bytes)
        if not self.quantized_start:
            return str(cost.quantized_token_bytes)
        cached = f"{moment.whole} + {moment.rest} + {moment.decoded} >= {self.quantized_start}"
        return f"({cost.quantized_token_bytes} if {cached} else {cost.token_bytes})"

    def _slots_formula(self, cost: LayerCost, moment: _Shown) -> str:
        if cost.window is not None:
            return self._rotating_formula(cost.window, moment)
        return self._full_formula(moment) if cost.chunk is None else self._chunked_formula(cost.chunk, moment)

    def _full_formula(self, moment: _Shown) -> str:
        """:meth:`full_slots`; chunks that are no multiple of 256 leave a number that only their history explains."""
        whole, rest, decoded = moment.whole, moment.rest, moment.decoded
        slots = f"{whole} + round_up({rest}, {_STEP})"
        if self.growth.chunk % _STEP:
            slots = str(self.full_slots(moment.at._replace(decoded=0)))
        if decoded == "0":
            return slots
        return f"{slots} + round_up(max(0, {whole} + {rest} + {decoded} - ({slots})), {_STEP})"

    def _rotating_formula(self, window: int, moment: _Shown) -> str:
        """:meth:`rotating_slots`."""
        whole, rest, decoded = moment.whole, moment.rest, moment.decoded
        if self.growth.chunk == 1:  # every token rotates
            return f"min({window}, round_up({whole} + {decoded}, {_STEP}))"
        chunks = f"(min({whole} - C, {window - 1}) + C if {whole} else 0)"
        if rest == "0" and decoded == "0":
            return chunks
        # One token left for the last chunk rotates as the decoded ones do.
        slots = f"(min({whole}, {window - 1}) + {rest} if {rest} > 1 else {chunks})"
        if decoded == "0":
            return f"(min({window}, {chunks} + {_STEP}) if {rest} == 1 else {slots})"
        return f"min({window}, {slots} + round_up({decoded} + (1 if {rest} == 1 else 0), {_STEP}))"

    def _chunked_formula(self, chunk_size: int, moment: _Shown) -> str:
        """:meth:`chunked_slots`."""
        whole, rest, decoded = moment.whole, moment.rest, moment.decoded
        full = self._full_formula(moment)
        after_chunk = f"({full} if {whole} - C <= {chunk_size} else {chunk_size} + round_up(C, {_STEP}))"
        after_rest = f"({full} if {whole} <= {chunk_size} else {chunk_size} + round_up({rest}, {_STEP}))"
        if decoded != "0":
            return f"({full} if {whole} + {rest} + {decoded} - 1 <= {chunk_size} else {chunk_size} + {_STEP})"
        return after_chunk if rest == "0" else f"({after_rest} if {rest} else {after_chunk})"


@dataclass(frozen=True, slots=True)
class _Shown:
    """A moment in formulas: its name, and the tokens in whole chunks, in the shorter one and fed one by one."""

    name: str
    when: str
    at: Moment
    whole: str
    rest: str
    decoded: str


def _chosen(moments: list[_Shown]) -> Callable[[list[str]], str]:
    """What picks, of one formula a moment, that of the largest moment; of equal ones the first."""
    sizes = [f"{moment.name}_bytes" for moment in moments]

    def pick(formulas: list[str]) -> str:
        if len(set(formulas)) == 1:
            return formulas[0]
        choices = [
            f"{formula} if {size} == max({', '.join(sizes)}) else "
            for formula, size in zip(formulas[:-1], sizes[:-1], strict=True)
        ]
        return f"({''.join(choices)}{formulas[-1]})"

    return pick


class MlxLm(EngineOptions):
    """MLX-LM on Apple silicon: KVCache, RotatingKVCache, QuantizedKVCache, ChunkedKVCache and ArraysCache."""

    name: ClassVar[str] = "mlx-lm"
    keeps_prefixes_apart: ClassVar[str] = "a cached prompt is copied to each request (mlx_lm/models/cache.py:1652)"
    summary: ClassVar[str] = "buffers grow by 256 slots; a prefill chunk stretches rotating buffers past the window"
    follows: ClassVar[str] = "0.32.2"
    formula: ClassVar[str] = (
        "context - 1 prompt tokens in chunks of prefill_step_size, then the last and decode_tokens more one by one\n"
        "full: on overflow slots = offset + ceil(n / 256) x 256 (uncut at multiples of 256)\n"
        "rotating: after a chunk min(past, W - 1) + n; after m single tokens min(W, slots + ceil(m / 256) x 256)\n"
        "bytes = B x sum of slots x KV heads x (K dim + V dim) x element bytes, at the largest moment\n"
        "kv_bits: an element takes bits / 8 + 2 x element bytes / kv_group_size"
    )
    loads: ClassVar[Loads | None] = Loads(
        "awq compressed-tensors gptq mlx modelopt mxfp4 mxfp8 nvfp4",
        "mlx_lm/utils.py load_model",
    )
    weight_formats: ClassVar[tuple[str, ...]] = ("8bit", "6bit", "5bit", "4bit", "3bit")
    holds_beside: ClassVar[frozenset[str]] = frozenset()
    sources: ClassVar[tuple[str, ...]] = (
        "mlx-lm 0.32.2 mlx_lm/models/cache.py:251-300, :345-360, :462-520, :553, :803 (lists of caches)",
        "mlx-lm 0.32.2 generate.py (chunks), make_cache of each model, ChunkedKVCache, gated_delta.py, ssm.py",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "tokens beyond decode_tokens: by default the figure is after one generated token",
        "the buffer cache of MLX itself, and the old buffer that lives while a larger one is filled",
        "prompts of several lengths in one batch (BatchKVCache pads them)",
        "speculative decoding with a draft model, and a prompt cache loaded from a file",
        "a RecurrentGemma whose lru_width is not its hidden_size (the class takes the hidden_size)",
    )
    evidence: ClassVar[str] = (
        "every recorded cache of mlx-lm 0.32.2 to the byte; its own models of the published configurations with random "
        "prompts, chunks and options (tests/oracles/mlx_lm.py): 0 bytes of difference"
    )
    server: ClassVar[Server | None] = Server(("mlx_lm.server", "--model", "{model}"), {})
    releases: ClassVar[tuple[tuple[str, ...], ...]] = tuple((text(each),) for each in reversed(_READ))
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {"prefill_step_size": (1024, 512)}

    version: str = Field(_NEWEST, description="release whose rule is followed")
    prefill_step_size: int = Field(2048, ge=1, le=MAX_TOKENS, description="tokens of a prefill chunk")
    decode_tokens: int = Field(
        1, ge=0, le=MAX_TOKENS, description="generated tokens that are fed back, after the last prompt token"
    )
    max_kv_size: int | None = Field(
        None, ge=5, le=MAX_TOKENS, description="rotating buffers of this size, for models without make_cache"
    )
    kv_bits: int | None = Field(None, description="quantise the cache to so many bits")
    kv_group_size: int = Field(64, description="elements that share a scale and a bias")
    quantized_kv_start: int = Field(
        0,
        ge=0,
        le=MAX_TOKENS,
        description="tokens from which kv_bits applies; mlx-lm's own default is 5000, here it is the whole cache",
    )

    @property
    def pads_to_longest(self) -> bool:
        """A batch is padded to its longest sequence."""
        return True

    @field_validator("version")
    @classmethod
    def _known_version(cls, version: str) -> str:
        release(version)  # raises ValueError where the text is no version
        return version

    @field_validator("kv_bits", "kv_group_size")
    @classmethod
    def _known_to_mlx(cls, value: int | None, info: ValidationInfo) -> int | None:
        known = (2, 3, 4, 5, 6, 8) if info.field_name == "kv_bits" else (32, 64, 128)
        if value is not None and value not in known:
            raise ValueError(f"mlx quantises with {', '.join(map(str, known))}")
        return value

    def prepare(self, setup: Setup) -> MlxLmPlan:
        """Compute the cost of each distinct kind, and the growth pattern of the chunks, once.

        Raises:
            UnsupportedError: tensor parallelism, a quantised format, kv_bits where MLX-LM cannot quantise, or a layer
                that no class of its keeps.
        """
        architecture = setup.served
        refuse_tensor_parallel(self.name, setup)
        for dtype in (setup.k_dtype, setup.v_dtype):
            if dtype not in (FLOAT32, FLOAT16, BFLOAT16):
                hint = "quantise the cache with kv_bits=8 or kv_bits=4"
                raise UnsupportedError(f"mlx-lm does not cache K and V as {dtype.name}", hint=hint)
        costs = tuple(self._cost(architecture, kind, count, setup) for kind, count in architecture.caches)
        full = [cost for cost in costs if cost.token_bytes and cost.window is None and cost.chunk is None]
        bounded = tuple(cost for cost in costs if cost.window is not None or cost.chunk is not None)
        windows: dict[int, int] = {}
        for cost in bounded:
            if cost.window is not None:
                windows[cost.window] = windows.get(cost.window, 0) + cost.count * cost.token_bytes
        has_chunked = any(cost.chunk is not None for cost in bounded)
        return MlxLmPlan(
            costs=costs,
            growth=Growth.of(self.prefill_step_size),
            single_tokens=1 + self.decode_tokens,  # the last prompt token is fed alone, too
            quantized_start=self.quantized_kv_start if self.kv_bits is not None else None,
            fixed_bytes=sum(cost.count * cost.fixed_bytes for cost in costs),
            full_token_bytes=sum(cost.count * cost.token_bytes for cost in full),
            full_quantized_bytes=sum(cost.count * cost.quantized_token_bytes for cost in full),
            bounded=bounded,
            windows=tuple(windows.items()),
            is_simple=not has_chunked and not (self.kv_bits is not None and self.quantized_kv_start),
            notes=self._notes(architecture, costs),
        )

    def _cost(self, model: Architecture, kind: LayerKind, count: int, setup: Setup) -> LayerCost:
        key = setup.k_dtype.block_bytes
        match kind:
            case Full() | Sliding() | Chunked():
                window = self._window(model, kind)
                cost = self._heads(model, kind, (kind.num_kv_heads, kind.head_dim, kind.v_head_dim), window, setup)
                index_key = key * kind.indexer_dim if isinstance(kind, Full) else 0
                if index_key and model.model_type not in _WITH_INDEX_KEYS:
                    raise _no_class(model, "index keys beside full attention")
                return replace(
                    cost,
                    count=count,
                    token_bytes=cost.token_bytes + index_key,
                    quantized_token_bytes=cost.quantized_token_bytes + index_key,
                    fixed_bytes=kind.extra_state_bytes * key // 2,  # stated for a format of two bytes
                )
            case Latent():
                return replace(self._latent(model, kind, setup), count=count)
            case State():
                return LayerCost(kind, count, fixed_bytes=_state_bytes(model, kind, key))
            case Parallel():
                inner = kind.attention
                dims = (inner.num_kv_heads, inner.head_dim, inner.v_head_dim)
                cost = self._heads(model, kind, dims, self._window(model, inner), setup)
                return replace(cost, count=count, fixed_bytes=_state_bytes(model, kind.state, key))
            case Cross():
                raise _no_class(model, "an encoder's K and V")
            case Compressed():
                raise _no_class(model, "DeepSeek V4's compressed layers")
            case Shared() | NoCache():
                return LayerCost(kind, count)
        assert_never(kind)

    def _window(self, model: Architecture, kind: Full | Sliding | Chunked) -> int | None:
        if model.model_type in _WITHOUT_MAKE_CACHE:
            return self.max_kv_size
        if not isinstance(kind, Sliding) or _ignores_window(model):
            return None
        return kind.window

    def _refuse_quantized(self, model: Architecture, window: int | None) -> None:
        reason = ""
        if window is not None:
            reason = (
                f"the rotating buffers of {model.name}: RotatingKVCache.to_quantized raises NotImplementedError once "
                f"{self.quantized_kv_start:,} tokens are cached"
            )
        elif model.model_type in _NEVER_QUANTIZED:
            line = _NEVER_QUANTIZED[model.model_type]
            reason = f"the cache of {model.name}: its class computes with it (models/{model.model_type}.py:{line})"
        if reason:
            hint = "leave kv_bits out" + (", or max_kv_size" if self.max_kv_size is not None else "")
            raise UnsupportedError(f"mlx-lm cannot quantise {reason}", hint=hint)

    def _quantized(self, elements: int, element_bytes: int) -> int:
        """Bytes of one head's K or V of one token: packed bits, and a scale and a bias a group."""
        assert self.kv_bits is not None
        if elements % self.kv_group_size:
            raise UnsupportedError(
                f"mlx quantises whole groups of {self.kv_group_size}, and a head of {elements} has none",
                hint="use a kv_group_size that divides the head dim",
            )
        return elements * self.kv_bits // 8 + 2 * element_bytes * (elements // self.kv_group_size)

    def _heads(
        self, model: Architecture, kind: LayerKind, dims: tuple[int, int, int], window: int | None, setup: Setup
    ) -> LayerCost:
        """A layer of K and V: ``dims`` are its heads and the widths of one head's K and V."""
        heads, k_dim, v_dim = dims
        key, value = setup.k_dtype.block_bytes, setup.v_dtype.block_bytes
        token_bytes = quantized = heads * (k_dim * key + v_dim * value)
        if self.kv_bits is not None and not _stays_unquantized(model, kind):
            self._refuse_quantized(model, window)
            quantized = heads * (self._quantized(k_dim, key) + self._quantized(v_dim, value))
        chunk = kind.chunk if isinstance(kind, Chunked) else None
        return LayerCost(kind, 1, token_bytes, quantized, None if chunk else window, chunk)

    def _latent(self, model: Architecture, kind: Latent, setup: Setup) -> LayerCost:
        if kind.window is not None or (kind.indexer_dim and model.model_type not in _WITH_INDEXER):
            raise _no_class(model, f"{kind_label(kind)} layers")
        window = self.max_kv_size if model.model_type in _WITHOUT_MAKE_CACHE else None
        if model.model_type in _DECOMPRESSED:
            dims = (kind.num_heads, kind.nope_dim + kind.rope_dim, kind.v_head_dim)
            return self._heads(model, kind, dims, window, setup)
        if model.model_type not in _LATENT:
            raise _no_class(model, "its MLA layers, and some classes keep every head")
        if self.kv_bits is not None and not _stays_unquantized(model, kind):
            raise UnsupportedError(
                f"mlx-lm cannot quantise latents: the class of {model.name} asks the cached array for its transpose, "
                "which the quantised form lacks (models/deepseek_v3.py:146)",
                hint="leave kv_bits out",
            )
        key, value = setup.k_dtype.block_bytes, setup.v_dtype.block_bytes
        # Every layer of these classes has an indexer, also one that the model lets read another layer's.
        indexer = max(each.indexer_dim for each, _ in model.caches if isinstance(each, Latent))
        token_bytes = kind.rank * key + kind.rope_dim * value + indexer * (key + value)
        return LayerCost(kind, 1, token_bytes, token_bytes, window)

    def _notes(self, model: Architecture, costs: tuple[LayerCost, ...]) -> tuple[str, ...]:
        note = note_on(self.name, self.version, _READ)
        notes = [note] if note else []
        kinds = [cost.kind for cost in costs]
        if any(isinstance(kind, Sliding) for kind in kinds) and _ignores_window(model):
            notes.append(f"mlx-lm gives {model.model_type} no sliding windows: every layer keeps all tokens")
        if self.max_kv_size is not None and model.model_type not in _WITHOUT_MAKE_CACHE:
            notes.append(f"max_kv_size is ignored: {model.model_type} makes its own cache")
        if model.model_type not in _WITH_CLASS:
            notes.append(
                f"mlx-lm {self.follows} has no class for {model.model_type}: these are the caches it would use"
            )
        if model.has_sparse_latents:
            notes.append("mlx-lm keeps an indexer key in every layer, as K and as V")
        if model.has_states:
            form = "float32" if model.model_type in _FLOAT32_STATE else "the model's format"
            notes.append(f"recurrent states are in {form}, with kernel - 1 convolution columns")
        if self.kv_bits is not None and any(_stays_unquantized(model, kind) for kind in kinds):
            notes.append("kv_bits leaves chunked layers, and lists of caches, as they are: they have no to_quantized")
        if self.kv_bits is not None and self.quantized_kv_start == 0:
            notes.append("quantised from the first token: mlx-lm itself begins at 5,000 (quantized_kv_start)")
        return tuple(notes)


def _ignores_window(model: Architecture) -> bool:
    """Whether mlx-lm's class knows no window, whatever the configuration declares.

    A Mistral 7B v0.1, whose layers all slide, declares no ``layer_types``, and gets no windows.
    """
    if model.model_type in _WITHOUT_MAKE_CACHE:
        return True
    all_slide = not any(isinstance(kind, Full) for kind, _ in model.caches)
    return model.model_type in _SLIDES_BY_LAYER_TYPES and all_slide


def _stays_unquantized(model: Architecture, kind: LayerKind) -> bool:
    """Whether the cache of a layer has no to_quantized: ChunkedKVCache, ArraysCache, CacheList."""
    return model.model_type in _CACHE_LISTS or isinstance(kind, Chunked | Parallel) or _keeps_columns(kind)


def _keeps_columns(kind: LayerKind) -> bool:
    """Baichuan-M1's attention layers, which keep a past token of K and V for a convolution."""
    return isinstance(kind, Full | Sliding) and bool(kind.extra_state_bytes)


def _state_bytes(model: Architecture, state: State, element_bytes: int) -> int:
    recurrent = 4 if model.model_type in _FLOAT32_STATE else element_bytes
    return state.recurrent_elements * recurrent + state.conv_channels * (state.conv_kernel - 1) * element_bytes


def _no_class(model: Architecture, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"no class of mlx-lm {_NEWEST} keeps {what} for model type {model.model_type} (mlx_lm/utils.py:224)",
        hint="use ideal for the report's accounting",
    )
