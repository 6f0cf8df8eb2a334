"""llama.cpp's compute buffer: the peak of its graph allocator over one micro-batch, and what a device holds beside it.

The buffer is linear in ``n_ubatch`` and does not depend on the number of layers: it is the widest moment of one layer,
or of the logits, beside the inputs of the graph. In b11739 no input is ever overwritten; in 0c1e57098 the masks hid
under the logits. Source: src/llama-context.cpp:615-770, src/llama-graph.cpp, and the allocator itself, run without
memory over 40 architectures: in b11739 with flash attention every recorded buffer is met within 0.1 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvcalc.architecture import Chunked, Full, Latent, Sliding
from kvcalc.derivation import Derivation
from kvcalc.device import Device
from kvcalc.engines.base import WorkingMemory
from kvcalc.engines.llama_cpp.models import ModelCache
from kvcalc.engines.llama_cpp.plan import ContextParams, derive_cells
from kvcalc.errors import NotModelledError
from kvcalc.units import GiB, MiB
from kvcalc.widths import Widths

#: One more row of the residual stream is alive beside the feed-forward: a parallel residual, or scaled expert inputs.
_ONE_ROW_MORE = frozenset({"afmoe", "cohere2", "cohere2_moe", "llama4", "phi", "phi2"})
#: The CUDA context and cuBLAS, outside of every buffer: 0.3 GiB (A40), 0.45 (RTX 4090), 0.70 to 0.75 (RTX PRO 6000).
_CONTEXT, _CONTEXT_BAND = 45 * GiB // 100, 30 * GiB // 100
#: How far a device's part is from the formula, in percent, by 840 contexts on an H100 (0c1e57098): 3 to 13 less with
#: flash attention, where the embeddings lie on the host, up to 18 less without. The CPU's is met within 0.1 (b11739).
_FLASH_BAND, _PLAIN_BAND = 13, 18
#: What to do where no formula holds.
FIT_PARAMS = "run llama-fit-params: it asks llama.cpp's own allocator"
_GRAPH = "llama.cpp src/llama-graph.cpp"


@dataclass(frozen=True, slots=True)
class Graph:
    """What the buffer of one context depends on beside the model's widths.

    Attributes:
        params: what llama.cpp is started with.
        flash_attn: flash attention is on.
        n_outputs: the most rows of logits that a micro-batch has; None is one a sequence.
        keeps_inputs: inputs are never overwritten, and each token has room for an embedding (b11739).
        copies_to_f16: attention's kernels read K and V in f16, so others are converted first (CUDA, flash attention).
    """

    params: ContextParams
    flash_attn: bool
    n_outputs: int | None
    keeps_inputs: bool
    copies_to_f16: bool = False


def compute_buffer(work: Derivation, model: ModelCache, widths: Widths, graph: Graph) -> None:
    """The compute buffer of a context on one device; its last quantity is ``activation_bytes``.

    Args:
        work: has ``n_ctx``, ``n_seq_max`` and ``n_ubatch`` already.

    Raises:
        NotModelledError: recurrent states, an indexer, compressed layers, per-layer embeddings, or no tensors.
    """
    _check(model, widths)
    derive_cells(work, graph.params, model)
    work.let("ub", "tokens of a micro-batch", "min(n_ubatch, cells * streams)", "tokens")
    work.let("outputs", "rows of logits", f"min(ub, {graph.n_outputs or 'n_seq_max'})", "rows")
    work.let("E", "width of the residual stream", str(widths.hidden))
    work.let("V", "vocabulary", str(widths.vocab))
    work.let("n_kv", "cells of all masks", "cells + cells_swa" if model.window else "cells", "cells")
    _derive_inputs(work, model, graph)
    moments = [_derive_feed_forward(work, widths, graph)]
    latent = next((layer.cache for layer in widths.architecture.layers if isinstance(layer.cache, Latent)), None)
    if latent is not None or not graph.flash_attn:
        moments.append(_derive_attention(work, widths, graph, latent))
    widest = f"max({', '.join(moments)})" if len(moments) > 1 else moments[0]
    work.let("layers", "the widest moment of a layer", f"ub * ({widest} + inputs + mask)", "bytes", _GRAPH)
    # Rows of the last hidden state, its norm and their copies beside the logits.
    kept = "4 * outputs * (V + 4 * E) + ub * (inputs + mask)" if graph.keeps_inputs else "4 * outputs * (V + 2 * E)"
    work.let("logits", "the logits", kept, "bytes", _GRAPH)
    source = "llama.cpp src/llama-context.cpp:615-770"
    moments = ["layers", "logits", *_derive_f16_copies(work, model, widths, graph)]
    work.let("activation_bytes", "compute buffer", f"max({', '.join(moments)})", "bytes", source)


def llama_cpp_working_memory(
    work: Derivation, model: ModelCache, widths: Widths, graph: Graph, device: Device
) -> WorkingMemory:
    """The compute buffer on one device that holds the whole model, and the context of its driver.

    Raises:
        NotModelledError: as :func:`compute_buffer`, and for MLA, whose buffers differ from device to device.
    """
    if widths.architecture.has_latents:
        raise NotModelledError("llama.cpp's compute buffer for MLA on a device is not modelled", hint=FIT_PARAMS)
    compute_buffer(work, model, widths, graph)
    runtime, band = (_CONTEXT, _CONTEXT_BAND) if device.platform in ("cuda", "rocm") else (0, 256 * MiB)
    held = "context of the driver and BLAS, outside of every buffer"
    work.let("runtime_bytes", held, str(runtime), "bytes", "recorded logs: 0.3 to 0.75 GiB on CUDA")
    work.let("graph_bytes", "captured graphs", "0", "bytes")
    work.let("share_bytes", "all of it", "activation_bytes + runtime_bytes", "bytes")
    percent = _FLASH_BAND if graph.flash_attn else _PLAIN_BAND
    work.let("band_bytes", "how far it may be off", f"{band} + activation_bytes * {percent} // 100", "bytes")
    return WorkingMemory.derived(work)


def _check(model: ModelCache, widths: Widths) -> None:
    stores = {store.name for layer in model.layers for store in layer.stores}
    reason = ""
    if model.state_bytes:
        reason = "beside recurrent states"
    elif stores - {"base", "swa"}:
        reason = "of sparse or compressed attention"
    elif any("per_layer" in tensor.role for tensor in widths.architecture.tensors):
        reason = "of a model with per-layer embeddings"
    elif not widths.intermediate and not widths.expert_intermediate:
        reason = "of a model whose feed-forward widths no file tells"
    if reason:
        raise NotModelledError(f"llama.cpp's compute buffer {reason} is not modelled", hint=FIT_PARAMS)


def _derive_inputs(work: Derivation, model: ModelCache, graph: Graph) -> None:
    """Bytes per token of what the graph is given: ids, positions, cells to write, and the masks."""
    caches = 2 if model.window else 1
    given = "4 * E + 16" if graph.keeps_inputs else "8"
    # Where V is stored transposed, each of its numbers has an index of 8 bytes in each cache.
    to_write = f"{16 * caches}" if graph.flash_attn else f"{8 * caches} + {8 * caches} * {model.value_width}"
    work.let("inputs", "inputs of one token", f"{given} + {to_write}", "bytes", _GRAPH)
    element = 2 if graph.flash_attn else 4
    work.let("mask", "masks of one token", f"{element} * n_kv", "bytes", _GRAPH)


def _derive_feed_forward(work: Derivation, widths: Widths, graph: Graph) -> str:
    """Gate, up and their product, of all experts that a token reads, beside four rows of the residual stream."""
    rows = 4 + (widths.architecture.model_type in _ONE_ROW_MORE)
    rows += not graph.keeps_inputs and _query_width(widths) > widths.hidden
    inner = _dense(widths)
    if widths.experts_per_token:
        # Their outputs fit where gate and up were, unless the experts are narrow.
        outputs = f" + {widths.experts_per_token} * E" if _has_narrow_experts(widths) else ""
        inner = f"max({inner}, {_experts(widths)}{outputs})"
    work.let("ffn", "feed-forward of one token", f"4 * ({inner} + {rows} * E)", "bytes", _GRAPH)
    return "ffn"


def _dense(widths: Widths) -> str:
    return f"3 * {widths.intermediate}" if widths.is_gated else str(widths.intermediate)


def _experts(widths: Widths) -> str:
    return f"3 * {widths.experts_per_token} * {widths.expert_intermediate}"


def _has_narrow_experts(widths: Widths) -> bool:
    return widths.hidden > 2 * widths.expert_intermediate > 0


def _derive_attention(work: Derivation, widths: Widths, graph: Graph, latent: Latent | None) -> str:
    """Queries, and without flash attention the scores of all heads."""
    rows = 4
    if latent is not None:
        key = latent.rank + latent.rope_dim
        rows += not graph.keeps_inputs
        heads = f"{widths.query_heads} * ({latent.nope_dim + latent.rope_dim} + 2 * {key})"
    elif _query_width(widths) > widths.hidden:
        rows -= not graph.keeps_inputs
        heads = f"2 * {_query_width(widths)}"
    else:
        heads = str(_query_width(widths))
    scores = "" if graph.flash_attn else f" + {widths.query_heads} * cells"
    work.let("attn", "attention of one token", f"4 * ({rows} * E + {heads}{scores})", "bytes", _GRAPH)
    return "attn"


def _derive_f16_copies(work: Derivation, model: ModelCache, widths: Widths, graph: Graph) -> list[str]:
    """The moment of attention in which K and V of all cells of one layer stand in f16 beside its result.

    Llama 3.1 8B, 131,072 cells in q8_0: 2 x 2 x 131,072 x 1,024 = 512 MiB of the 672 MiB that a CUDA build plans.
    Source: llama.cpp 0c1e57098 ggml/src/ggml-cuda/fattn.cu:722 (ggml_cuda_flash_attn_ext_get_alloc_size).
    """
    if not graph.copies_to_f16:
        return []
    work.let("k_copied", "1 where K is not f16, else 0", str(int(model.k_type != "f16")))
    work.let("v_copied", "1 where V is not f16, else 0", str(int(model.v_type != "f16")))
    copies = []
    for layer in model.layers:
        kind = layer.kind
        if isinstance(kind, Full | Sliding | Chunked):
            numbers = f"({kind.head_dim} * k_copied + {kind.v_head_dim} * v_copied)"
            copies.append(f"{layer.stores[0].cells} * {kind.num_kv_heads} * {numbers}")
    copied = f"2 * streams * max({', '.join(copies)})" if len(copies) > 1 else f"2 * streams * {copies[0]}"
    work.let("copies", "K and V of one layer in f16", copied, "bytes", "llama.cpp ggml/src/ggml-cuda/fattn.cu:722")
    rows = f"2 * (E + {_query_width(widths)})"
    if widths.architecture.model_type in _ONE_ROW_MORE:  # the feed-forward beside attention is alive too
        rows += f" + E + {_dense(widths)}"
    elif _has_narrow_experts(widths):
        rows += f" + {_experts(widths)}"
    moment = f"max(k_copied, v_copied) * (ub * (4 * ({rows}) + inputs + mask) + copies)"
    work.let("converted", "attention over them", moment, "bytes", _GRAPH)
    return ["converted"]


def _query_width(widths: Widths) -> int:
    """Numbers of all queries of one token in the widest layer."""
    rows = [
        tensor.rows
        for layer in widths.architecture.layers
        for tensor in layer.mixer
        if tensor.role.endswith("self_attn.q_proj")
    ]
    return max(rows, default=0)
