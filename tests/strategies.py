"""Random architectures of every layer kind, engine options and setups, for the laws."""

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Compressed,
    Cross,
    Full,
    Latent,
    Layer,
    LayerKind,
    NoCache,
    Parallel,
    Shared,
    Sliding,
    State,
    distinct_layers,
)
from kvcalc.engines import REGISTRY
from kvcalc.errors import RefusalError
from kvcalc.setup import Setup, prepare

heads = st.sampled_from([1, 2, 4, 5, 8, 16])
widths = st.sampled_from([32, 64, 80, 128, 192, 256])
windows = st.sampled_from([1, 128, 512, 1000, 1024, 4096])
geometry = {"num_kv_heads": heads, "head_dim": widths, "v_head_dim": widths}
full = st.builds(
    Full, **geometry, indexer_dim=st.sampled_from([0, 0, 0, 64]), extra_state_bytes=st.sampled_from([0, 0, 64])
)
sliding = st.builds(Sliding, window=windows, **geometry)
state = st.builds(
    State,
    recurrent_elements=st.integers(0, 10**6),
    conv_channels=st.integers(0, 10**4),
    conv_kernel=st.integers(1, 5),
)
EVERY_KIND: tuple[st.SearchStrategy[LayerKind], ...] = (
    full,
    sliding,
    st.builds(Chunked, chunk=windows, **geometry),
    st.builds(
        Latent,
        rank=widths,
        rope_dim=st.sampled_from([0, 32, 64]),
        num_heads=heads,
        nope_dim=widths,
        v_head_dim=widths,
        window=st.none() | windows,
        indexer_dim=st.sampled_from([0, 128]),
    ),
    state,
    st.builds(Parallel, attention=full | sliding, state=state),
    st.builds(Shared),
    st.builds(Cross, **geometry),
    st.builds(Compressed, width=widths, window=windows, ratio=st.none() | st.sampled_from([4, 128])),
    st.builds(NoCache),
)


@st.composite
def architectures(draw: st.DrawFn, kinds: tuple[st.SearchStrategy[LayerKind], ...] = EVERY_KIND) -> Architecture:
    """A model of one to four distinct layers of those kinds, in any order."""
    distinct = draw(st.lists(st.one_of(kinds), min_size=1, max_size=4))
    order = draw(st.lists(st.integers(0, len(distinct) - 1), min_size=1, max_size=40))
    layers, indices = distinct_layers([Layer(distinct[index]) for index in order])
    return Architecture("random", "random", layers, indices, hidden_size=256, vocab_size=1000)


#: Options that bend the curve, by engine; an engine that is not here is asked with its defaults.
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "llama.cpp": st.fixed_dictionaries(
        {"n_ubatch": st.sampled_from([0, 64, 512]), "kv_unified": st.booleans(), "swa_full": st.booleans()},
        optional={"n_ctx": st.integers(1, 10**6), "n_seq_max": st.integers(1, 8)},
    ),
    "ollama": st.fixed_dictionaries({}, optional={"num_parallel": st.integers(1, 8)}),
    "vllm": st.fixed_dictionaries(
        {
            "max_num_batched_tokens": st.sampled_from([1, 512, 2048, 8192]),
            "block_size": st.sampled_from([16, 32, 128]),
            "async_scheduling": st.booleans(),
            "version": st.sampled_from(["0.11.0", "0.14.0", "0.25.1", "0.33.0"]),
            "disable_hybrid_kv_cache_manager": st.booleans(),
            "enable_prefix_caching": st.booleans(),
            "num_speculative_tokens": st.sampled_from([0, 0, 3]),
            "gdn_prefill_backend": st.sampled_from(["triton", "flashinfer"]),
        },
        optional={"num_gpu_blocks_override": st.integers(1, 10**6)},
    ),
    "sglang": st.fixed_dictionaries(
        {
            "page_size": st.sampled_from([1, 16, 64]),
            "swa_full_tokens_ratio": st.sampled_from([0.1, 0.8, 1.0]),
            "mamba_full_memory_ratio": st.sampled_from([0.1, 0.9, 3.0]),
        },
        optional={"max_running_requests": st.integers(1, 8), "disable_radix_cache": st.booleans()},
    ),
    "lmdeploy": st.fixed_dictionaries(
        {"cache_block_seq_len": st.sampled_from([16, 64]), "quant_policy": st.sampled_from([0, 4, 8])},
        optional={"max_prefill_token_num": st.integers(1, 9000), "max_batch_size": st.integers(1, 2000)},
    ),
    "mlx-lm": st.fixed_dictionaries(
        {"prefill_step_size": st.sampled_from([1, 512, 2048])}, optional={"max_kv_size": st.integers(5, 8192)}
    ),
    "transformers": st.fixed_dictionaries(
        {"cache": st.sampled_from(["dynamic", "static"])}, optional={"prefill_chunk": st.integers(1, 4096)}
    ),
    "tensorrt-llm": st.fixed_dictionaries(
        {"tokens_per_block": st.sampled_from([32, 64])}, optional={"max_attention_window": st.just([1024, 4096])}
    ),
}


@st.composite
def uniform(draw: st.DrawFn) -> Architecture:
    """Local and global layers of one geometry each, in a family whose windows every engine knows."""
    window = draw(st.sampled_from([1, 128, 512, 1000, 4096]))
    heads, width = draw(st.sampled_from([(1, 64), (4, 128), (8, 256)]))
    kinds = (Sliding(window, heads, width, width), Full(heads, width, width))
    order = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=30))
    layers, indices = distinct_layers([Layer(kind) for kind in order])
    family = draw(st.sampled_from(["gemma3", "gpt_oss"]))  # SGLang gives a sliding pool to the second only
    return Architecture("random", family, layers, indices, hidden_size=256, vocab_size=1000)


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    """A model in an engine with options that runs it: every engine, its versions and its options."""
    engine = draw(st.sampled_from(sorted(REGISTRY)))
    model = draw(uniform() | architectures(EVERY_KIND if engine == "ideal" else (full, sliding, state)))
    try:
        return prepare(model, engine=engine, engine_options=draw(OPTIONS.get(engine, st.just({}))))
    except RefusalError:
        assume(False)
        raise
