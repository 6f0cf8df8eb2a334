"""llama.cpp's compute buffer: the peak of its graph allocator over one micro-batch, and what a device holds beside it.

The buffer is linear in ``n_ubatch`` and does not depend on the number of layers: it is the widest moment of one layer,
or of the logits, beside the inputs of the graph. In b11739 no input is ever overwritten; in 0c1e57098 the masks hid
under the logits. On a device the embeddings of the tokens are made on the host, so that one row of the residual
stream fewer is alive. Source: src/llama-context.cpp:615-770, src/llama-graph.cpp, and the allocator itself, run without
memory over 40 architectures: with flash attention every buffer of b11739 is met within 0.1 %, and on an H100
(0c1e57098), with an f16 cache, that of every dense model, of wide experts and of MLA.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvcalc.architecture import Chunked, Full, Latent, Parallel, Sliding, State, Tensor
from kvcalc.derivation import Derivation
from kvcalc.device import Device
from kvcalc.engines.base import WorkingMemory
from kvcalc.engines.llama_cpp.models import ModelCache
from kvcalc.engines.llama_cpp.plan import ContextParams, derive_cells
from kvcalc.errors import NotModelledError
from kvcalc.units import GiB, MiB
from kvcalc.widths import Widths

#: One more row of the residual stream is alive beside the feed-forward: a parallel residual or state, or scaled inputs
#: of experts.
_ONE_ROW_MORE = frozenset({"afmoe", "cohere2", "cohere2_moe", "falcon_h1", "llama4", "nemotron_h", "phi", "phi2"})
#: Attention reads the residual stream itself, whose norm comes after it.
_NORM_AFTER = frozenset({"exaone4", "olmo2", "olmo3"})
#: The CUDA context and cuBLAS, outside of every buffer: 0.3 GiB (A40), 0.45 (RTX 4090), 0.70 to 0.75 (RTX PRO 6000).
_CONTEXT, _CONTEXT_BAND = 45 * GiB // 100, 30 * GiB // 100
#: How far a device's part is from the formula, in percent, by 1,700 contexts (0c1e57098 on an H100, b11739 through its
#: RPC back end): with flash attention and an f16 cache, with another cache or without it, beside recurrent states, and
#: on CUDA of experts narrower than half the residual stream, whose outputs lie where room happens to be (and phi-3's
#: logits, where all are kept).
_FLASH_BAND, _PLAIN_BAND, _STATES_BAND, _EXPERTS_BAND = 1, 9, 18, 25
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
        on_device: the layers are on a device, the embedding of each token is made on the host.
        on_cuda: that device is ggml's CUDA back end, whose kernels keep more alive than the graph alone.
    """

    params: ContextParams
    flash_attn: bool
    n_outputs: int | None
    keeps_inputs: bool
    on_device: bool = False
    on_cuda: bool = False


def compute_buffer(work: Derivation, model: ModelCache, widths: Widths, graph: Graph) -> None:
    """The compute buffer of a context on one device; its last quantity is ``activation_bytes``.

    Args:
        work: has ``n_ctx``, ``n_seq_max`` and ``n_ubatch`` already.

    Raises:
        NotModelledError: an indexer, compressed layers, Kimi K3, or no tensors; before b11352 also states beside
            attention in one layer, Kimi's delta attention and per-layer embeddings.
    """
    _check(model, widths, graph)
    derive_cells(work, graph.params, model)
    work.let("ub", "tokens of a micro-batch", "min(n_ubatch, cells * streams)", "tokens")
    work.let("outputs", "rows of logits", f"min(ub, {graph.n_outputs or 'n_seq_max'})", "rows")
    work.let("E", "width of the residual stream", str(widths.hidden))
    work.let("V", "vocabulary", str(widths.vocab))
    work.let("n_kv", "cells of all masks", "cells + cells_swa" if model.window else "cells", "cells")
    _derive_inputs(work, model, graph)
    moments = [_derive_feed_forward(work, widths, graph), *_derive_attention(work, widths, graph)]
    moments += _derive_recurrent(work, widths, graph)
    widest = f"max({', '.join(moments)})" if len(moments) > 1 else moments[0]
    work.let("layers", "the widest moment of a layer", f"ub * ({widest} + inputs + mask)", "bytes", _GRAPH)
    # Rows of the last hidden state, its norm and their copies beside the logits.
    kept = f"4 * outputs * (V + {2 - graph.on_device} * E)"
    if graph.keeps_inputs:
        kept = "4 * outputs * (V + 4 * E) + ub * (inputs + mask)"
    work.let("logits", "the logits", kept, "bytes", _GRAPH)
    source = "llama.cpp src/llama-context.cpp:615-770"
    moments = ["layers", "logits", *_derive_f16_copies(work, model, widths, graph)]
    work.let("activation_bytes", "compute buffer", f"max({', '.join(moments)})", "bytes", source)


def llama_cpp_working_memory(
    work: Derivation, model: ModelCache, widths: Widths, graph: Graph, device: Device
) -> WorkingMemory:
    """The compute buffer on one device that holds the whole model, and the context of its driver.

    Raises:
        NotModelledError: as :func:`compute_buffer`.
    """
    compute_buffer(work, model, widths, graph)
    runtime, band = (_CONTEXT, _CONTEXT_BAND) if device.platform in ("cuda", "rocm") else (0, 256 * MiB)
    held = "context of the driver and BLAS, outside of every buffer"
    work.let("runtime_bytes", held, str(runtime), "bytes", "recorded logs: 0.3 to 0.75 GiB on CUDA")
    percent = _percent_off(widths, model, graph)
    return WorkingMemory.ended(work, f"{band} + activation_bytes * {percent} // 100")


def _percent_off(widths: Widths, model: ModelCache, graph: Graph) -> int:
    converts = graph.on_cuda and {model.k_type, model.v_type} != {"f16"}
    if graph.n_outputs is not None or _has_parallel(widths) or (graph.on_cuda and _has_narrow_experts(widths)):
        return _EXPERTS_BAND
    if _per_layer(widths):
        return _PLAIN_BAND
    if _states(widths):
        return _STATES_BAND
    return _FLASH_BAND if graph.flash_attn and not converts else _PLAIN_BAND


def _check(model: ModelCache, widths: Widths, graph: Graph) -> None:
    stores = {store.name for layer in model.layers for store in layer.stores}
    reason, kind = "", widths.architecture.model_type
    unmeasured = _has_parallel(widths) or _has_delta_attention(widths) or _per_layer(widths)
    if unmeasured and not graph.keeps_inputs:
        reason = f"of {kind} in builds before b11352"
    elif _has_delta_attention(widths) and kind != "kimi_linear":
        reason = "of delta attention beside what else a layer has"
    elif stores - {"base", "swa"}:
        reason = "of sparse or compressed attention"
    elif not widths.intermediate and not widths.expert_intermediate:
        reason = "of a model whose feed-forward widths no file tells"
    if reason:
        raise NotModelledError(f"llama.cpp's compute buffer {reason} is not modelled", hint=FIT_PARAMS)


def _derive_inputs(work: Derivation, model: ModelCache, graph: Graph) -> None:
    """Bytes per token of what the graph is given: ids, positions, cells to write, and the masks."""
    caches = 2 if model.window else 1
    given = ("12" if graph.on_device else "4 * E + 16") if graph.keeps_inputs else "4" if graph.on_device else "8"
    # Where V is stored transposed, each of its numbers has an index of 8 bytes in each cache.
    to_write = f"{16 * caches}" if graph.flash_attn else f"{8 * caches} + {8 * caches} * {model.value_width}"
    work.let("inputs", "inputs of one token", f"{given} + {to_write}", "bytes", _GRAPH)
    element = 2 if graph.flash_attn else 4
    work.let("mask", "masks of one token", f"{element} * n_kv", "bytes", _GRAPH)


def _derive_feed_forward(work: Derivation, widths: Widths, graph: Graph) -> str:
    """Gate, up and their product, of all experts that a token reads, beside rows of the residual stream."""
    kind = widths.architecture.model_type
    rows = 4 + (kind in _ONE_ROW_MORE)
    beside = f"{9 if kind == 'gemma3n' else rows} * E"  # four residual streams
    if _per_layer(widths):
        beside += f" + {1 if kind == 'gemma3n' else 2} * {_per_layer(widths)}"
    if not graph.keeps_inputs:  # the result of attention lies where a row would: as wide as all heads are
        gates_shared = bool(_roles(widths, "mlp.shared_expert_gate"))
        rows -= 1 + graph.on_device - gates_shared
        beside = f"{rows} * E" + ("" if _states(widths) else f" + {_attention_width(widths)}")
    inner = _dense(widths)
    if widths.experts_per_token:
        outputs = f" + {_copies_of_outputs(widths, graph) * widths.experts_per_token} * E"
        inner = f"max({inner}, {_experts(widths)}{outputs})"
    work.let("ffn", "feed-forward of one token", f"4 * ({inner} + {beside})", "bytes", _GRAPH)
    return "ffn"


def _dense(widths: Widths) -> str:
    return f"3 * {widths.intermediate}" if widths.is_gated else str(widths.intermediate)


def _experts(widths: Widths) -> str:
    return f"{3 if widths.is_gated else 1} * {widths.experts_per_token} * {widths.expert_intermediate}"


def _copies_of_outputs(widths: Widths, graph: Graph) -> int:
    """How many times the outputs of a token's experts lie beyond their gate and up projections.

    They fit where those were, unless the experts are narrow. CUDA weighs and adds them up in one kernel, so that they
    stay beside the weighted ones (ggml-cuda.cu:4543); these fit where gate, up and their product were, or do not.
    """
    if not _has_narrow_experts(widths):
        return 0
    inner = (3 if widths.is_gated else 1) * widths.expert_intermediate
    return 1 + (graph.on_cuda and widths.hidden > inner)


def _has_narrow_experts(widths: Widths) -> bool:
    return widths.hidden > (1 + widths.is_gated) * widths.expert_intermediate > 0


def _derive_attention(work: Derivation, widths: Widths, graph: Graph) -> list[str]:
    """Queries, and without flash attention the scores of all heads; with it only MLA's are the widest moment."""
    latent = _latent(widths)
    if latent is None and graph.flash_attn:
        return []
    rows = 4
    if latent is not None:
        key = latent.rank + latent.rope_dim
        heads = f"{widths.query_heads} * ({latent.nope_dim + latent.rope_dim} + 2 * {key})"
        if not graph.keeps_inputs:  # on a device the rope keys of all heads lie where three rows would
            rows = 2 if graph.on_device else 5
            heads += f" + {widths.query_heads} * {latent.rope_dim}" if graph.on_device else ""
    else:
        wide = _query_width(widths) > widths.hidden
        rows -= 0 if graph.keeps_inputs else wide + graph.on_device
        rows -= widths.architecture.model_type in _NORM_AFTER
        rows += 2 * bool(_per_layer(widths))
        heads = f"{_per_layer(widths)} + {1 + wide + _gates_attention(widths)} * {_query_width(widths)}"
    scores = "" if graph.flash_attn else f" + {widths.query_heads} * cells"
    work.let("attn", "attention of one token", f"4 * ({rows} * E + {heads}{scores})", "bytes", _GRAPH)
    return ["attn"]


def _derive_recurrent(work: Derivation, widths: Widths, graph: Graph) -> list[str]:
    """A delta net or Mamba-2's scan: projections, the convolution before and after it, and copies of the states.

    Others (a short convolution, Mamba-1) are never the widest moment. Where attention stands beside a scan, its result
    waits for that of the scan.
    """
    named = {t.role: t for layer in widths.architecture.layers for t in layer.mixer if t.linear}
    out = named.get("linear_attn.out_proj") or named.get("mamba.out_proj")
    states = [each for each in _states(widths) if each.recurrent_elements]
    scans, delta = any(state.groups for state in states), _has_delta_attention(widths)
    if not (scans or delta or "linear_attn.out_proj" in named):
        return []
    state, width = states[0], 0 if out is None or delta else out.columns
    projected = f"{named['mamba.in_proj'].rows + (width if graph.on_cuda else 0)} + " if scans else ""
    beside = f" + {_query_width(widths)}" if _has_parallel(widths) else ""
    rows, copies = (4, 2) if graph.keeps_inputs else (2, 2 - scans)
    held = f"{copies} * {state.recurrent_elements} + {_conv_elements(state)}"
    work.let("state", "numbers of one sequence's states, and of the copy", held)
    of_token = f"{rows} * E + {projected}2 * {state.conv_channels} + {width}{beside}"
    formula = f"4 * ({of_token}) + ceil_div(4 * n_seq_max * state, ub)"
    source = "llama.cpp src/models/delta-net-base.cpp, mamba-base.cpp"
    work.let("recurrent", "states of one token's layer", formula, "bytes", source)
    return ["recurrent"]


def _latent(widths: Widths) -> Latent | None:
    return next((layer.cache for layer in widths.architecture.layers if isinstance(layer.cache, Latent)), None)


def _states(widths: Widths) -> list[State]:
    kinds = [layer.cache for layer in widths.architecture.layers]
    inner = [kind.state if isinstance(kind, Parallel) else kind for kind in kinds]
    return [kind for kind in inner if isinstance(kind, State)]


def _has_parallel(widths: Widths) -> bool:
    return any(isinstance(layer.cache, Parallel) for layer in widths.architecture.layers)


def _has_delta_attention(widths: Widths) -> bool:
    """Kimi's delta attention, beside latents."""
    return bool(_states(widths)) and widths.architecture.has_latents


def _per_layer(widths: Widths) -> int:
    """Numbers of a token's embeddings for all layers (Gemma 3n, the small Gemma 4), or 0."""
    return max((t.columns for t in widths.architecture.tensors if t.role == "embed_tokens_per_layer"), default=0)


def _conv_elements(state: State) -> int:
    return (state.conv_kernel - 1) * state.conv_channels


def _derive_f16_copies(work: Derivation, model: ModelCache, widths: Widths, graph: Graph) -> list[str]:
    """The moment of attention in which K and V of all cells of one layer stand in f16 beside its result.

    Llama 3.1 8B, 131,072 cells in q8_0: 2 x 2 x 131,072 x 1,024 = 512 MiB of the 672 MiB that a CUDA build plans.
    Source: llama.cpp 0c1e57098 ggml/src/ggml-cuda/fattn.cu:722 (ggml_cuda_flash_attn_ext_get_alloc_size).
    """
    if not (graph.on_cuda and graph.flash_attn):
        return []
    latent = _latent(widths)
    work.let("k_copied", "1 where K is not f16, else 0", str(int(model.k_type != "f16")))
    work.let("v_copied", "1 where V is not f16, else 0", str(int(model.v_type != "f16")))
    copies = []
    for layer in model.layers:
        kind = layer.kind.attention if isinstance(layer.kind, Parallel) else layer.kind
        if isinstance(kind, Full | Sliding | Chunked):
            numbers = f"({kind.head_dim} * k_copied + {kind.v_head_dim} * v_copied)"
            copies.append(f"{layer.stores[0].cells} * {kind.num_kv_heads} * {numbers}")
        elif isinstance(kind, Latent):  # V is a part of K, and of its copy
            copies.append(f"{layer.stores[0].cells} * {kind.rank + kind.rope_dim} * k_copied")
    copied = f"2 * streams * max({', '.join(copies)})" if len(copies) > 1 else f"2 * streams * {copies[0]}"
    work.let("copies", "K and V of one layer in f16", copied, "bytes", "llama.cpp ggml/src/ggml-cuda/fattn.cu:722")
    if latent is not None:
        # Where attention's result and the copies find no room that queries left, they lie beyond the widest moment.
        heads = widths.query_heads
        beyond = f"copies > 4 * ub * {heads} * {latent.nope_dim + 2 * latent.rope_dim}"
        moment = f"(ub * (attn + inputs + mask + 4 * {heads * latent.rank}) + copies if {beyond} else 0)"
        work.let("converted", "attention over them", moment, "bytes", _GRAPH)
        return ["converted"]
    wide = _query_width(widths) > widths.hidden
    more = 2 * graph.keeps_inputs if wide else graph.keeps_inputs
    rows = f"{2 + more} * E + {5 if _gates_attention(widths) else 2} * {_query_width(widths)}"
    if widths.architecture.model_type in _ONE_ROW_MORE:  # the feed-forward beside attention is alive too
        rows += f" + E + {_dense(widths)}"
    elif _has_narrow_experts(widths):
        rows += f" + {_experts(widths)}"
    moment = f"max(k_copied, v_copied) * (ub * (4 * ({rows}) + inputs + mask) + copies)"
    work.let("converted", "attention over them", moment, "bytes", _GRAPH)
    return ["converted"]


def _query_width(widths: Widths) -> int:
    """Numbers of all queries of one token in the widest layer."""
    return max((tensor.rows for tensor in _roles(widths, "self_attn.q_proj")), default=0)


def _gates_attention(widths: Widths) -> bool:
    return bool(_roles(widths, "self_attn.gate_proj"))


def _attention_width(widths: Widths) -> int:
    """Numbers of attention's result for one token, of all heads, in the widest layer."""
    return max((tensor.columns for tensor in _roles(widths, "self_attn.o_proj")), default=widths.hidden)


def _roles(widths: Widths, role: str) -> list[Tensor]:
    layers = widths.architecture.layers
    return [each for layer in layers for each in (*layer.mixer, *layer.rest) if each.role == role]
