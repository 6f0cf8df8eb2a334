"""What vLLM refuses of a setup before it plans, and what a reader must know of the setup.

Source: vllm 0.33.0 config/model.py, config/parallel.py; older versions as :mod:`kvcalc.engines.vllm.versions` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Compressed,
    Cross,
    Full,
    Latent,
    LayerKind,
    Parallel,
    Sliding,
    window_of,
)
from kvcalc.engines.releases import Release, note_on, release, text
from kvcalc.engines.vllm.options import VllmOptions
from kvcalc.engines.vllm.specs import model_dtype
from kvcalc.engines.vllm.versions import READ
from kvcalc.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from kvcalc.setup import Setup

_KV_DTYPES = frozenset(
    {
        "float32",
        "float16",
        "bfloat16",
        "fp8_e4m3",
        "fp8_e5m2",
        "fp8_per_token_head",
        "int8_per_token_head",
        "int4_per_token_head",
        "nvfp4",
        "fp8_ds_mla",
        "nvfp4_ds_mla",
        "turboquant_k8v4",
        "turboquant_4bit_nc",
        "turboquant_k3v4_nc",
        "turboquant_3bit_nc",
        "ultraquant_4bit",
    }
)

# The last version with a class for a model type (vllm 0.33.0 models/registry.py, _PREVIOUSLY_SUPPORTED_MODELS).
_LAST_VERSION: dict[str, Release] = {
    "phi4flash": (0, 10, 2),
    "motif": (0, 10, 2),
    "mllama": (0, 10, 2),
    "jais": (0, 22, 0),
    "bamba": (0, 23, 0),
    "baichuan": (0, 23, 0),
    "dots1": (0, 23, 0),
    "internlm": (0, 23, 0),
    "minimax": (0, 23, 0),
    "minimax_m1": (0, 23, 0),
    "minimax_text_01": (0, 23, 0),
    "qwen": (0, 23, 0),
    "xverse": (0, 23, 0),
    "grok-1": (0, 24, 0),
    "persimmon": (0, 25, 0),
    "fuyu": (0, 25, 0),
    "ouro": (0, 26, 0),
    "plamo2": (0, 26, 0),
    "arctic": (0, 28, 0),
    "chameleon": (0, 28, 0),
    "mpt": (0, 28, 0),
}


def refuse(engine: VllmOptions, setup: Setup) -> None:
    """Raise what vLLM, or this calculator, does not answer of a setup.

    Raises:
        UnsupportedError: vLLM has no such format or division over devices.
        InputError: a draft without the number of tokens that decides its states.
    """
    _refuse_dtypes(setup)
    _refuse_parallelism(engine, setup)
    _refuse_states(engine, setup)


def _refuse_dtypes(setup: Setup) -> None:
    if setup.k_dtype != setup.v_dtype:
        raise UnsupportedError(
            f"vllm has one format for K and V, not {setup.k_dtype.name}/{setup.v_dtype.name}",
            hint="name one format, or use llama.cpp for a pair",
        )
    if setup.k_dtype.name not in _KV_DTYPES:
        raise UnsupportedError(
            f"vllm has no KV cache in {setup.k_dtype.name}", hint=f"it has {', '.join(sorted(_KV_DTYPES))}"
        )


def _attention_kinds(architecture: Architecture) -> list[LayerKind]:
    return [kind.attention if isinstance(kind, Parallel) else kind for kind, _ in architecture.caches]


def _refuse_parallelism(engine: VllmOptions, setup: Setup) -> None:
    """What vLLM refuses of parallel sizes (vllm 0.33.0 config/model.py:1557, config/parallel.py:594)."""
    architecture, tp = setup.architecture, setup.tensor_parallel_size
    if engine.pipeline_parallel_size > architecture.num_layers:
        raise UnsupportedError(
            f"{architecture.name} has {architecture.num_layers} layers, "
            f"fewer than pipeline_parallel_size={engine.pipeline_parallel_size} stages"
        )
    counts = _head_counts(architecture)
    if not _divides(counts, tp):
        heads = ", ".join(f"{count} {what}" for what, count in counts)
        sizes = ", ".join(str(size) for size in range(1, 129) if _divides(counts, size))
        raise UnsupportedError(
            f"vllm does not divide the heads of {architecture.name} ({heads}) by tensor_parallel_size={tp}",
            hint=f"sizes that divide them: {sizes}",
        )
    _refuse_context_parallelism(engine, setup)


def _head_counts(architecture: Architecture) -> list[tuple[str, int]]:
    """The distinct head counts of the attention layers: KV heads, and query heads where the weights tell them."""
    counts: dict[tuple[str, int], None] = {}
    for layer in architecture.layers:
        kind = layer.cache.attention if isinstance(layer.cache, Parallel) else layer.cache
        if isinstance(kind, Latent):
            counts["heads", kind.num_heads] = None
        elif isinstance(kind, Full | Sliding | Chunked):
            counts["KV heads", kind.num_kv_heads] = None
            queries = next((each for each in layer.mixer if each.role == "self_attn.q_proj"), None)
            if queries is not None and queries.rows % kind.head_dim == 0:
                counts["query heads", queries.rows // kind.head_dim] = None
    return list(counts)


def _divides(counts: list[tuple[str, int]], tp: int) -> bool:
    """Whether each device gets as many heads as another; fewer KV heads than devices are replicated evenly."""
    return all(count % tp == 0 or (what == "KV heads" and count < tp and tp % count == 0) for what, count in counts)


def _refuse_context_parallelism(engine: VllmOptions, setup: Setup) -> None:
    dcp, pcp, tp = engine.decode_context_parallel_size, engine.prefill_context_parallel_size, setup.tensor_parallel_size
    model = setup.architecture.name
    if pcp == 1 and tp % dcp:
        raise UnsupportedError(
            f"vllm divides tensor_parallel_size={tp} by decode_context_parallel_size={dcp}, which does not divide it"
        )
    if pcp > 1 and dcp not in (1, pcp, tp * pcp):
        raise UnsupportedError(
            f"vllm has no decode_context_parallel_size={dcp} beside prefill_context_parallel_size={pcp} and "
            f"tensor_parallel_size={tp}",
            hint=f"sizes that it has: {', '.join(map(str, sorted({1, pcp, tp * pcp})))}",
        )
    if dcp == 1:
        return
    kinds = _attention_kinds(setup.served)
    if any(isinstance(kind, Sliding | Chunked | Compressed) or window_of(kind) for kind in kinds):
        raise UnsupportedError(f"vllm has no decode context parallelism for {model}'s windows")


def _refuse_states(engine: VllmOptions, setup: Setup) -> None:
    if not setup.architecture.has_states:
        return
    own = setup.architecture.mtp_layers and setup.draft is setup.architecture.mtp
    if setup.draft is not None and not own and "num_speculative_tokens" not in engine.model_fields_set:
        raise InputError(
            f"how many tokens the draft of {setup.architecture.name} proposes decides its states",
            hint="-E num_speculative_tokens=N",
        )


def notes_on(engine: VllmOptions, setup: Setup) -> list[str]:
    architecture, tp = setup.architecture, setup.tensor_parallel_size
    version = note_on(engine.name, engine.version, READ)
    notes = [version] if version else []
    last = _LAST_VERSION.get(architecture.model_type)
    if last is not None and release(engine.version) > last:
        notes.append(f"vllm has no class of its own for this model after {text(last)}: planned as that version did")
    kinds = _attention_kinds(architecture)
    heads = [kind.num_kv_heads for kind in kinds if isinstance(kind, Full | Sliding | Chunked | Cross)]
    if heads and tp > min(heads):
        notes.append(f"{min(heads)} KV heads on {tp} devices: they are replicated, not divided")
    dcp = engine.decode_context_parallel_size
    if dcp > 1 and heads and (tp <= max(heads) or dcp > tp // max(heads)):
        # vllm 0.33.0 config/model.py:1579; its planner divides the tokens all the same.
        notes.append(
            f"vllm starts decode context parallelism beside KV heads only where so many devices share a head: "
            f"{max(heads) * dcp} devices for {max(heads)} heads and {dcp} ranks"
        )
    if tp > 1 and architecture.has_latents:
        notes.append("every device keeps the whole latent: tensor parallelism does not divide it")
    if architecture.model_type == "cohere2" and any(isinstance(kind, Sliding) for kind in kinds):
        notes.append("vllm gives this model a window of one token more")
    if architecture.has_sparse_latents and setup.k_dtype.name.startswith("fp8_e"):
        notes.append(
            "sparse attention keeps fp8 latents as fp8_ds_mla, 656 bytes a token (Blackwell: one byte a number)"
        )
    if architecture.has_states and architecture.dtype not in (
        "bfloat16",
        "float16",
    ):
        notes.append(f"states are taken in {model_dtype(architecture)}, in which vllm runs {architecture.dtype} models")
    if engine.exports_delta_states(architecture, "flashinfer") and engine.gdn_prefill_backend == "triton":
        notes.append(
            "on Hopper and Blackwell vllm keeps one more state a sequence, and blocks in steps of 64 tokens: "
            "-E gdn_prefill_backend=flashinfer"
        )
    if chunk := engine.chunk_of_every_state(setup):
        notes.append(f"a state for every block, whose tokens are whole chunks of {chunk} (the class's own default)")
    if engine.leaves_prefixes_out(architecture):
        notes.append(
            "without prefix caching, which vllm turns on for models with states from 0.26.0 on: give the server "
            "--no-enable-prefix-caching, or ask with -E enable_prefix_caching=true"
        )
    if any(isinstance(kind, Cross) for kind in kinds):
        notes.append(
            f"cross-attention is planned for {engine.max_num_batched_tokens:,} encoder tokens "
            f"(max_num_batched_tokens); while decoding it holds {setup.encoder_tokens:,} (encoder_tokens)"
        )
    return notes


def hybrid_off_note(engine: VllmOptions) -> str:
    reason = "its hybrid KV cache manager is disabled"
    if not engine.disable_hybrid_kv_cache_manager:
        reason = "it turns its hybrid KV cache manager off for chunked attention"
    return f"vllm takes blocks for the whole context in every local layer too: {reason}"
