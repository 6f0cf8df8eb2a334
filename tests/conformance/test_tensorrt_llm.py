"""TensorRT-LLM's rule as its source states it, and against figures that one server printed."""

from ctypes import c_float
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvcalc
from kvcalc.architecture import (
    Architecture,
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
    Tensor,
)
from kvcalc.derivation import evaluate
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.engines import make_engine
from kvcalc.engines.tensorrt_llm.pools import PoolsPlan
from kvcalc.engines.tensorrt_llm.shares import SharesPlan
from kvcalc.errors import InputError, NotModelledError, UnsupportedError
from kvcalc.setup import Setup
from kvcalc.units import GiB, MiB

GEMMA_3_WINDOWS = "1024,1024,1024,1024,1024,131072"


def model(*kinds: tuple[LayerKind, int], dtype: str = "bfloat16", model_type: str = "custom") -> Architecture:
    order = tuple(index for index, (_, count) in enumerate(kinds) for _ in range(count))
    layers = tuple(Layer(cache=kind) for kind, _ in kinds)
    return Architecture(
        name="some", model_type=model_type, layers=layers, order=order, hidden_size=64, vocab_size=0, dtype=dtype
    )


def plan_of(architecture: Architecture, tp: int = 1, dtype: str = "bfloat16", **options: Any) -> SharesPlan:
    plan = setup_of(architecture, tp, dtype, **options).plan
    assert isinstance(plan, SharesPlan)
    return plan


def pools_of(architecture: Architecture | str, tp: int = 1, dtype: str = "bfloat16", **options: Any) -> PoolsPlan:
    found = kvcalc.load(architecture) if isinstance(architecture, str) else architecture
    plan = setup_of(found, tp, dtype, **options).plan
    assert isinstance(plan, PoolsPlan)
    return plan


def setup_of(architecture: Architecture, tp: int = 1, dtype: str = "bfloat16", **options: Any) -> Setup:
    engine = make_engine("tensorrt-llm", options)
    return Setup(architecture, engine, *parse_kv_dtypes(dtype), tensor_parallel_size=tp)


def test_the_blocks_tokens_and_gib_that_a_server_printed_for_kimi_k2_5() -> None:
    # its log: window size 262144, 32 tokens a block, 158,543 primary blocks, 166.02 GiB for 5,073,376 tokens, fp8
    latent = Latent(rank=512, rope_dim=64, num_heads=64, nope_dim=128, v_head_dim=128)
    plan = plan_of(model((latent, 61)), dtype="fp8")
    pool = plan.kv_bytes(5_073_376, 1)
    assert f"{pool / GiB:.2f}" == "166.02"
    report = plan.report(262144, 1, pool)
    assert report["blocks_per_window"] == {"max_seq_len": 158_543} and report["max_tokens"] == 5_073_376
    assert -(-262144 // plan.tokens_per_block) == 8192
    assert plan.report(262144, 19, pool)["fits"] and not plan.report(262144, 20, pool)["fits"]


def test_forty_gib_of_gemma_3_27b_give_half_to_the_sliding_layers() -> None:
    plan = plan_of(kvcalc.load("gemma-3-27b"), max_attention_window=GEMMA_3_WINDOWS)
    report = plan.report(131072, 1, 40 * GiB)
    assert report["blocks_per_window"] == {"1024": 1575, "131072": 8192}
    assert report["num_free_blocks"] == 1575
    assert plan.report(131072, 2, 40 * GiB)["fits"] and not plan.report(131072, 3, 40 * GiB)["fits"]
    cache = plan.allocate(131072, 2)
    assert cache.bytes == 40 * GiB and sum(row.bytes for row in cache.layers) < 22 * GiB
    assert [(row.count, row.tokens) for row in cache.layers] == [(52, 2048), (10, 262144)]


def test_without_windows_every_layer_is_full() -> None:
    plan = plan_of(kvcalc.load("gemma-3-27b"))
    cache = plan.allocate(1000, 1)
    assert cache.why == "all 62 layers full"
    assert cache.bytes == 62 * 1024 * 16 * 2 * 128 * 2
    assert [note for note in cache.notes if "full length" in note] == list(cache.notes)


@pytest.mark.parametrize(("tp", "heads"), [(1, 6), (2, 3), (4, 2), (5, 2), (8, 1)])
def test_kv_heads_are_divided_and_rounded_up(tp: int, heads: int) -> None:
    full = Full(num_kv_heads=6, head_dim=64, v_head_dim=64)
    assert plan_of(model((full, 2)), tp).kv_bytes(32, 1) == 2 * 32 * heads * 2 * 64 * 2


def test_windows_repeat_over_the_layers() -> None:
    full = Full(num_kv_heads=1, head_dim=64, v_head_dim=64)
    plan = plan_of(model((full, 5)), max_attention_window=[64, 128])
    assert [(each.window, each.token_bytes) for each in plan.windows] == [(64, 3 * 256), (128, 2 * 256)]


def test_an_nvfp4_cache_pays_one_scale_for_16_numbers() -> None:
    full = Full(num_kv_heads=2, head_dim=64, v_head_dim=64)
    assert plan_of(model((full, 1)), dtype="nvfp4").kv_bytes(32, 1) == 32 * 256 * 9 // 16
    windows = plan_of(model((full, 2)), dtype="nvfp4", max_attention_window="64,128").windows
    assert [each.token_bytes for each in windows] == [144, 144]
    odd = Full(num_kv_heads=1, head_dim=72, v_head_dim=72)
    with pytest.raises(UnsupportedError, match="not of 72"):
        plan_of(model((odd, 1)), dtype="nvfp4")


_FULL = Full(num_kv_heads=2, head_dim=64, v_head_dim=64)
_LOCAL = Sliding(window=512, num_kv_heads=3, head_dim=64, v_head_dim=64)


@given(
    windows=st.none() | st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    size=st.sampled_from([1, 16, 32, 64]),
    fraction=st.none() | st.sampled_from([0.9, 0.95]) | st.floats(0.05, 0.999),
    context=st.integers(1, 10**6),
    batch=st.integers(1, 100),
)
@settings(max_examples=150)
def test_the_pool_is_the_smallest_and_never_falls(
    windows: list[int] | None, size: int, fraction: float | None, context: int, batch: int
) -> None:
    plan = plan_of(
        model((_FULL, 3), (_LOCAL, 7)),
        tokens_per_block=size,
        max_attention_window=tuple(windows) if windows else None,
        free_gpu_memory_fraction=fraction,
    )
    budget = plan.required_kv_memory(context, batch)
    assert plan.report(context, batch, budget)["fits"]
    assert not plan.report(context, batch, budget - 1)["fits"]
    assert plan.kv_bytes(context, batch) <= budget
    assert plan.kv_bytes(context, batch) <= min(plan.kv_bytes(context + 1, batch), plan.kv_bytes(context, batch + 1))
    cache = plan.allocate(context, batch)
    assert sum(row.bytes for row in cache.layers) + cache.padding_bytes == cache.bytes and cache.padding_bytes >= 0
    steps = plan.explain(context, batch)
    values = evaluate(steps)
    assert all(values[step.symbol] == step.value for step in steps) and steps[-1].value == cache.bytes


@pytest.mark.parametrize(
    "options", [{"version": "0.13.0"}, {"backend": "tensorrt"}, {"version": "0.9", "backend": None}]
)
def test_an_engine_that_is_built_rounds_the_blocks_of_a_free_memory_up(options: dict[str, Any]) -> None:
    # 0.9 of 17.833 GiB are 262,956 tokens of 65,536 bytes: 8,217.4 blocks of 32
    llama = kvcalc.load("llama-3.1-8b")
    plan = plan_of(llama, dtype="fp8", free_gpu_memory_fraction=0.9, **options)
    assert plan.report(1, 1, int(17.833 * GiB))["max_tokens"] == 8218 * 32
    down = plan_of(llama, dtype="fp8", free_gpu_memory_fraction=0.9)
    assert down.report(1, 1, int(17.833 * GiB))["max_tokens"] == 8217 * 32
    # what is given is the pool itself where no fraction is: whole blocks of it
    assert plan_of(llama, dtype="fp8", **options).report(1, 1, 100 * 65_536)["max_tokens"] == 96
    for context in (1, 32, 33, 100_000):
        budget = plan.required_kv_memory(context, 3)
        assert plan.report(context, 3, budget)["fits"] and not plan.report(context, 3, budget - 1)["fits"]
        steps = plan.explain(context, 3)
        values = evaluate(steps)
        assert values["required_bytes"] == budget and steps[-1].value == plan.kv_bytes(context, 3)
    # 31 tokens of the last block come for nothing
    assert plan.required_kv_memory(64, 1) == -(-33 * 65_536 // Fraction(c_float(0.9).value))


def test_a_model_type_that_is_built_alone_rounds_up_whatever_the_version() -> None:
    options = {"free_gpu_memory_fraction": 0.5}
    built, other = (plan_of(model((_FULL, 1), model_type=name), **options) for name in ("gemma2", "llama"))
    assert [plan.report(1, 1, 100 * 512 * 2)["max_tokens"] for plan in (built, other)] == [128, 96]


def test_what_an_engine_that_is_built_has_not_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="builds no engine"):
        pools_of("qwen3.5-27b", version="0.20")
    with pytest.raises(NotModelledError, match="several windows"):
        plan_of(model((_FULL, 2)), backend="tensorrt", max_attention_window="64,128")
    with pytest.raises(InputError, match="no version"):
        make_engine("tensorrt-llm", {"version": "new"})


def test_a_sparse_attention_indexer_has_a_key_and_a_scale_a_token_in_the_layers_that_own_one() -> None:
    # DeepSeek V3.2: a latent of 576 numbers and a key of 128 bytes with 4 of scales, in each of 61 layers
    assert plan_of(kvcalc.load("deepseek-v3.2"), 8).kv_bytes(32, 1) == 32 * 61 * (576 * 2 + 132)
    assert plan_of(kvcalc.load("glm-5.2"), dtype="fp8").kv_bytes(32, 1) == 32 * (78 * 576 + 21 * 132)


def test_layers_that_do_not_attend_have_no_blocks_and_those_that_share_have_their_own() -> None:
    assert plan_of(kvcalc.load("nemotron-super-49b-v1")).kv_bytes(32, 1) == 32 * 49 * 2 * 8 * 128 * 2
    assert plan_of(model((_FULL, 2), (Shared(), 3))).kv_bytes(32, 1) == 32 * 5 * 512
    assert plan_of(model((_FULL, 2), (Shared("sliding"), 3))).kv_bytes(32, 1) == 32 * 2 * 512  # nobody's cache


def test_an_encoder_has_its_part_of_the_pool() -> None:
    cross = Cross(num_kv_heads=2, head_dim=64, v_head_dim=64)
    whisper = model((_FULL, 2), (NoCache(), 1), model_type="whisper")
    whisper = whisper.changed(layers=(Layer(cache=_FULL, cross=cross), Layer(cache=NoCache())))
    with pytest.raises(UnsupportedError, match="cross_kv_cache_fraction"):
        plan_of(whisper)
    engine = make_engine("tensorrt-llm", {"cross_kv_cache_fraction": 0.75})
    plan = Setup(whisper, engine, *parse_kv_dtypes("bfloat16"), encoder_tokens=1500).plan
    # the encoder's 1,500 tokens are 47 blocks of 32 tokens x 2 layers x 512 bytes, three quarters of the pool
    assert plan.kv_bytes(448, 1) == -(-47 * 32768 * 4 // 3)
    assert plan.kv_bytes(4096, 1) == 128 * 32768 * 4  # the decoder's own tokens are a quarter
    report = plan.report(448, 1, plan.kv_bytes(448, 1))
    assert report["blocks_per_window"] == {"max_seq_len": 15, "encoder": 47} and report["fits"]
    steps = plan.explain(448, 1)
    assert evaluate(steps)["kv_bytes"] == plan.kv_bytes(448, 1) and "its share" in steps[-1].meaning
    half = make_engine("tensorrt-llm", {"cross_kv_cache_fraction": 0.5})
    equal = Setup(whisper, half, *parse_kv_dtypes("bfloat16"), encoder_tokens=1500).plan
    assert equal.kv_bytes(448, 1) == 2 * 47 * 32768 and "1/2" in equal.explain(448, 1)[-1].meaning


def test_states_have_a_slot_a_sequence_and_one_more_in_pools_of_whole_two_mib() -> None:
    plan = pools_of("qwen3.5-27b")
    attention = 32 * 16 * 2 * 32 * 4 * 256 * 2  # 1,024 tokens are 32 blocks
    recurrent = 2 * 48 * 786_432 * 2  # bfloat16, whatever the configuration computes in
    columns = 2 * 48 * 10_240 * 3 * 2
    assert (attention // (2 * MiB), recurrent // (2 * MiB), columns) == (32, 72, 5_898_240)
    assert plan.kv_bytes(1024, 1) == attention + recurrent + 3 * 2 * MiB == 224_395_264
    assert pools_of("qwen3.5-27b", mamba_ssm_cache_dtype="float32").kv_bytes(1024, 1) == 224_395_264 + recurrent
    rows = plan.allocate(1024, 1).layers
    assert [(row.count, row.tokens, row.bytes) for row in rows] == [(48, 0, recurrent + columns), (16, 1024, attention)]
    # two devices: half the heads, half the states
    assert pools_of("qwen3.5-27b", 2).kv_bytes(1024, 1) == (attention + recurrent) // 2 + 2 * 2 * MiB


def test_states_keep_their_slots_whatever_is_asked_and_the_report_says_how_many_sequences_fit() -> None:
    plan = pools_of("nemotron-3-nano-30b-a3b", max_batch_size=16, free_gpu_memory_fraction=0.5)
    state = 23 * (524_288 * 4 + 6_144 * 3 * 2)  # its configuration asks for float32
    row = plan.allocate(4096, 2).layers[0]
    assert (row.kind, row.bytes) == ("state", 17 * state)
    memory = plan.required_kv_memory(4096, 2)
    assert memory == 2 * plan.kv_bytes(4096, 2)
    report = plan.report(4096, 2, memory)
    assert report["state_slots"] == 17 and report["fits"] and report["max_sequences"] >= 2
    assert not plan.report(4096, 2, memory - 2)["fits"]
    assert make_engine("tensorrt-llm", {"max_batch_size": 16}).batch_limit == 16


def test_kda_keeps_its_states_in_float32_beside_one_latent() -> None:
    plan = pools_of("kimi-linear-48b-a3b", dtype="fp8", mamba_ssm_cache_dtype="bfloat16")
    state, latent = plan.allocate(320, 1).layers[:2]
    assert state.bytes == 2 * 20 * (32 * 128 * 128 * 4 + 3 * 32 * 128 * 3 * 2)
    assert latent.bytes == 7 * 10 * 32 * 576


def test_several_head_widths_have_pools_of_their_own_and_sliding_layers_give_blocks_back() -> None:
    plan = pools_of("gemma-4-31b")
    # a window of 1,024 tokens touches 33 blocks at most; of 131,072 tokens there are 4,096 blocks
    sliding, full = 33 * 50 * 2 * 32 * 16 * 256 * 2, 4096 * 10 * 2 * 32 * 4 * 512 * 2
    cache = plan.allocate(131_072, 1)
    assert [(row.kind, row.window, row.bytes) for row in cache.layers] == [
        ("sliding", 1024, sliding),
        ("full", None, full),
    ]
    # between 8 and 16 GiB pools are multiples of 16 MiB
    assert cache.bytes == 52 * 16 * MiB + full == 11_609_833_472
    assert plan.report(131_072, 1, cache.bytes)["blocks_per_window"] == {"1024": 33, "max_seq_len": 4096}
    assert pools_of("gemma-4-31b", max_attention_window=131_072).allocate(131_072, 1).layers[0].tokens == 131_072
    # the layers that read another's cache have blocks all the same
    shared = [row for row in pools_of("gemma-4-e2b").allocate(131_072, 1).layers if row.kind == "shared"]
    assert [(row.count, row.window, row.bytes) for row in shared] == [
        (16, 512, 17 * 16 * 2 * 32 * 256 * 2),
        (4, None, 4096 * 4 * 2 * 32 * 512 * 2),
    ]


def test_one_window_of_all_layers_is_no_window_in_pools() -> None:
    narrow, wide = (Sliding(window=512, num_kv_heads=1, head_dim=width, v_head_dim=width) for width in (64, 128))
    row = pools_of(model((narrow, 1), (wide, 1))).allocate(4096, 1).layers[0]
    assert (row.window, row.tokens) == (None, 4096)


def test_index_keys_of_layers_with_k_and_v_are_sixteen_bits() -> None:
    plan = pools_of("minimax-m3", dtype="fp8")
    assert any("not run" in note for note in plan.notes)
    keys_and_values, index = 120 * 32 * 4 * 128, 57 * 32 * 128 * 2
    assert sum(row.bytes for row in plan.allocate(3200, 1).layers) == 100 * (keys_and_values + index)
    assert plan.pools[0][1] == keys_and_values and plan.pools[1][1] == index
    wide = Full(num_kv_heads=1, head_dim=64, v_head_dim=64, indexer_dim=128)
    assert pools_of(model((wide, 1)), dtype="float32").pools[-1][1] == 32 * 128 * 4


def test_deepseek_v4_keeps_a_window_entries_and_what_the_next_entry_is_made_of() -> None:
    layers = [Compressed(512, 128), Compressed(512, 128, ratio=4, indexer_dim=128), Compressed(512, 128, ratio=128)]
    v4 = model(*((kind, 1) for kind in layers), model_type="deepseek_v4")
    plan = pools_of(v4)
    # 1,000 tokens: 8 blocks of 128; a window of 128 touches 2, as does one of 2 x 4
    window, kv_and_score, entry = 128 * 512 * 2, 2 * 128 * 512 * 4, 32 * 512 * 2
    assert [row.bytes for row in plan.allocate(1000, 1).layers] == [
        2 * window,
        2 * window + 8 * (entry + 32 * 132) + 2 * (2 * kv_and_score + 2 * 2 * 128 * 128 * 4),
        2 * window + 8 * 512 * 2 + 2 * kv_and_score,
    ]
    assert plan.kv_bytes(1000, 1) == 7 * 2 * MiB  # seven pools, each a part of 2 MiB
    assert pools_of(v4, tokens_per_block=256).tokens_per_block == 256
    assert pools_of(v4, max_attention_window=64).cycles == plan.cycles
    with pytest.raises(UnsupportedError, match="128 or 256"):
        pools_of(v4, tokens_per_block=64)
    with pytest.raises(UnsupportedError, match="not float16"):
        pools_of(v4, dtype="float16")


def test_cycles_whose_pools_have_the_same_sizes_share_them() -> None:
    full, wide = (Full(num_kv_heads=1, head_dim=width, v_head_dim=width) for width in (64, 128))
    local = Sliding(window=64, num_kv_heads=1, head_dim=64, v_head_dim=64)
    apart = pools_of(model((full, 1), (local, 1), (wide, 1)))  # full blocks have wide buffers, too
    assert [len(cycles) for cycles, _ in apart.pools] == [1, 1, 1]
    together = pools_of(model((local, 2), (wide, 1)))  # 4 x 4,096 bytes a block, and 2 x 8,192
    assert [(len(cycles), size) for cycles, size in together.pools] == [(2, 16_384)]
    # 10,000 tokens are 313 blocks, a window of 64 touches 3 of them
    assert together.kv_bytes(10_000, 1) == 6 * MiB and 4 * MiB < (3 + 313) * 16_384 < 6 * MiB


def test_an_nvfp4_cache_has_its_scales_in_pools_of_their_own() -> None:
    plan = pools_of("gemma-4-31b", dtype="nvfp4")
    sizes = sorted(size for _, size in plan.pools)
    full, sliding = 20 * 32 * 4 * 512, 100 * 32 * 16 * 256
    assert sizes == sorted([full // 2, full // 16, sliding // 2, sliding // 16])


@pytest.mark.parametrize("options", [{}, {"free_gpu_memory_fraction": 0.9}, {"max_batch_size": 64}])
@pytest.mark.parametrize("name", ["qwen3.5-27b", "gemma-4-e4b", "deepseek-v4-flash", "minimax-m3", "kimi-k3"])
def test_the_work_of_the_pools_is_shown_and_the_memory_is_the_least(name: str, options: dict[str, Any]) -> None:
    plan = pools_of(name, **options)
    for context, batch in ((1, 1), (5000, 3), (200_000, 40)):
        cache, values = plan.allocate(context, batch), evaluate(plan.explain(context, batch))
        assert values["kv_bytes"] == cache.bytes == plan.kv_bytes(context, batch)
        assert sum(row.bytes for row in cache.layers) + cache.padding_bytes == cache.bytes and cache.padding_bytes >= 0
        assert [values[f"layers_{number}"] for number in range(1, len(cache.layers) + 1)] == [
            row.bytes for row in cache.layers
        ]
        memory = plan.required_kv_memory(context, batch)
        assert values.get("required_bytes", cache.bytes) == memory
        assert plan.report(context, batch, memory)["fits"] and not plan.report(context, batch, memory - 1)["fits"]
        assert cache.bytes <= min(plan.kv_bytes(context + 1, batch), plan.kv_bytes(context, batch + 1))


_DELTA = State(recurrent_elements=48, conv_channels=48, conv_kernel=4)


@pytest.mark.parametrize(
    ("refused", "tp", "match"),
    [
        (model((_FULL := Full(num_kv_heads=2, head_dim=64, v_head_dim=64), 1), model_type="jamba"), 1, "_arch_index"),
        (model((_FULL, 1), (_DELTA, 1)), 1, "is_hybrid_linear"),
        (model((_FULL, 1), (_DELTA, 1), model_type="qwen3_5"), 5, "does not divide the states"),
        (model((Full(num_kv_heads=2, head_dim=192, v_head_dim=128), 4)), 1, "K and V of one width"),
        (model((Full(num_kv_heads=2, head_dim=64, v_head_dim=64, extra_state_bytes=8), 4)), 1, "nothing beside"),
        (model((Parallel(_FULL, _DELTA), 1)), 1, "has no parallel"),
        (model((Compressed(512, 128, ratio=8), 1)), 1, "4 or 128 tokens"),
        (model((_FULL, 1), (Latent(512, 64, 4, 64, 64), 1)), 1, "latents of one shape"),
        (model((NoCache(), 1)), 1, "has not"),
    ],
)
def test_what_it_does_not_run_is_refused_with_the_place(refused: Architecture, tp: int, match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        _ = setup_of(refused, tp).plan


def test_what_was_not_read_is_said() -> None:
    with pytest.raises(NotModelledError, match="its own cache manager"):
        _ = setup_of(model((_FULL, 1), model_type="inkling")).plan
    hybrid = model((_FULL, 1), (_DELTA, 1), model_type="qwen3_5")
    with pytest.raises(NotModelledError, match="draft beside states"):
        _ = Setup(hybrid, make_engine("tensorrt-llm"), *parse_kv_dtypes("bfloat16"), draft=model((_FULL, 1))).plan


@pytest.mark.parametrize(
    ("model_type", "words"),
    [("olmo3", "AutoDeploy"), ("gemma2", "engines that are built")],
)
def test_what_runs_the_model_is_said(model_type: str, words: str) -> None:
    assert words in plan_of(model((_FULL, 1), model_type=model_type)).notes[-1]


def test_heads_that_the_devices_do_not_divide_are_refused_with_the_sizes_that_work() -> None:
    queries = Tensor("attention", 32 * 64, 64, role="self_attn.q_proj")
    layers = (Layer(cache=Full(num_kv_heads=8, head_dim=64, v_head_dim=64), mixer=(queries,)),)
    architecture = model((_FULL, 1)).changed(layers=layers)
    for engine in ("tensorrt-llm", "ideal", "lmdeploy"):
        setup = Setup(architecture, make_engine(engine), *parse_kv_dtypes("bfloat16"), tensor_parallel_size=5)
        with pytest.raises(UnsupportedError, match="32 query heads among 5 devices") as refusal:
            _ = setup.plan
        assert refusal.value.hint == "sizes that work for some: 1, 2, 4, 8, 16, 32"
    forty = architecture.changed(layers=(replace(layers[0], mixer=(replace(queries, rows=40 * 64),)),))
    with pytest.raises(UnsupportedError, match="8 KV heads among 5 devices") as refusal:
        _ = setup_of(forty, 5).plan
    assert refusal.value.hint == "sizes that work for some: 1, 2, 4, 8, 40"


@pytest.mark.parametrize("dtype", ["q8_0", "fp8/bf16"])
def test_formats_that_it_does_not_store_are_refused(dtype: str) -> None:
    with pytest.raises(UnsupportedError):
        plan_of(model((_FULL, 1)), dtype=dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"max_attention_window": "1024,x"},
        {"max_attention_window": "0"},
        {"max_attention_window": []},
        {"max_attention_window": 2**60},
        {"tokens_per_block": 0},
        {"free_gpu_memory_fraction": 1},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        make_engine("tensorrt-llm", options)


def test_one_window_may_be_written_as_a_number() -> None:
    assert make_engine("tensorrt-llm", {"max_attention_window": "4k"}).model_dump()["max_attention_window"] == (4096,)
    assert make_engine("tensorrt-llm", {"max_attention_window": 512}).model_dump()["max_attention_window"] == (512,)


def test_windows_given_as_a_list_are_the_same_option() -> None:
    architecture = model((_FULL, 6))
    answers = {
        kvcalc.kv_cache_bytes(
            architecture, context=4096, engine="tensorrt-llm", engine_options={"max_attention_window": windows}
        )
        for windows in ([64, 128], (64, 128), "64,128")
    }
    assert answers == {2 * 128 * 3 * 512}
    with pytest.raises(InputError, match="max_attention_window"):
        kvcalc.kv_cache_bytes(
            architecture, context=4096, engine="tensorrt-llm", engine_options={"max_attention_window": {"local": 64}}
        )


@pytest.mark.parametrize("context", [7, 4096, 2**39])
@pytest.mark.parametrize("count", [3, 5, 6, 7, 11, 49])
def test_shares_that_floats_round_down_cost_the_byte_that_the_engine_needs(count: int, context: int) -> None:
    windows = tuple(range(context, context + count))
    plan = plan_of(model((_FULL, count)), tokens_per_block=1, max_attention_window=windows)
    pool = plan.kv_bytes(context, 1)
    assert plan.report(context, 1, pool)["fits"] and not plan.report(context, 1, pool - 1)["fits"]
    steps = plan.explain(context, 1)
    assert evaluate(steps)["kv_bytes"] == pool
