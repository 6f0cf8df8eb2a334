"""What a start-up of SGLang states reaches the setup, in the words in which a server's line states it."""

import pytest

from kvcalc.engines.sglang import SGLang
from kvcalc.logs.base import Given
from kvcalc.logs.verdict import LOGS, audit, read
from kvcalc.serving import server_line
from kvcalc.setup import prepare

POOL = "KV Cache is allocated. #tokens: 4096, KV size: 1.00 GB"
#: Every option that a server takes, off its default.
OPTIONS = {
    "page_size": 64,
    "swa_full_tokens_ratio": 0.5,
    "disable_hybrid_swa_memory": True,
    "max_running_requests": 32,
    "disable_radix_cache": True,
    "chunked_prefill_size": 4096,
    "disable_overlap_schedule": True,
    "cuda_graph_max_bs_decode": 16,
    "disable_cuda_graph": True,
    "mamba_full_memory_ratio": 0.4,
    "mamba_ssm_dtype": "bfloat16",
    "speculative_algorithm": "EAGLE3",
    "speculative_num_steps": 5,
    "speculative_eagle_topk": 2,
    "speculative_num_draft_tokens": 8,
    "dp_size": 2,
    "enable_dp_attention": True,
    "enable_dp_lm_head": True,
    "attn_cp_size": 2,
    "dcp_size": 2,
    "dsa_prefill_backend": "flashmla_sparse",
    "dsa_decode_backend": "trtllm",
    "enable_deepseek_v4_fp4_indexer": True,
    "max_mamba_cache_size": 40,
    "mamba_radix_cache_strategy": "no_buffer",
}


def question(*lines, **given):
    (start,) = read([(line, False) for line in lines]).starts
    return LOGS["sglang"].question(start, Given(**given))


def test_a_server_line_and_server_args_say_every_option_and_are_read_back():
    assert OPTIONS.keys() == SGLang.model_fields.keys() - {"version"}
    setup = prepare(
        "qwen3-8b",
        engine="sglang",
        engine_options=OPTIONS,
        tensor_parallel_size=8,
        kv_cache_dtype="fp8_e4m3",
        draft="qwen3-0.6b",
    )
    line = server_line(setup, "Qwen/Qwen3-8B", 8192, 1)
    printed = {"tp_size": 8, "kv_cache_dtype": "fp8_e4m3", "speculative_draft_model_path": "Qwen/Qwen3-0.6B", **OPTIONS}
    for stated in (line, f"server_args={printed}"):
        found = question(stated, POOL)
        assert SGLang(**found.options) == SGLang(**OPTIONS)
        assert (found.tensor_parallel_size, found.kv_cache_dtype) == (8, "fp8_e4m3")
        assert found.draft.name == "qwen3-0.6b"
        assert found.context == 8192  # of 4,096 on each of two devices that share a sequence
        assert found.notes == ()


def test_a_server_line_leaves_out_what_is_off_and_names_the_algorithm_of_a_draft():
    setup = prepare("qwen3.5-9b", engine="sglang", engine_options={"disable_radix_cache": False}, draft="mtp")
    line = "python3 -m sglang.launch_server --model-path M --context-length 8 --speculative-algorithm EAGLE"
    assert server_line(setup, "M", 8, 1) == line


@pytest.mark.parametrize(
    ("stated", "groups"),
    [
        ("attn_dp_size=4, dp_size=1", 4),
        ("dp_size=4, enable_dp_attention=True", 4),
        ("dp_size=4, enable_dp_attention=False", None),
    ],
)
def test_groups_of_attention_in_old_and_new_words(stated, groups):
    mamba = "Mamba Cache is allocated. max_mamba_cache_size: 10, conv_state size: 1GB, ssm_state size: 1GB"
    found = question(f"server_args=ServerArgs(tp_size=8, {stated})", mamba, POOL).options
    assert found.get("dp_size") == groups
    assert found["max_mamba_cache_size"] == 10 * (groups or 1)  # a device prints those of its group


@pytest.mark.parametrize(
    ("stated", "draft", "note"),
    [
        ("speculative_algorithm='NEXTN', model_path='m'", "mtp", None),
        ("speculative_algorithm='EAGLE', model_path='m', speculative_draft_model_path='m'", "mtp", None),
        ("speculative_algorithm='EAGLE', model_path='m', speculative_draft_model_path='lmsys/M-NextN'", "mtp", None),
        (
            "speculative_algorithm='NEXTN', model_path='a/Qwen3.5-9B-FP8', speculative_draft_model_path='Qwen3.5-9B'",
            "mtp",
            None,
        ),
        ("speculative_algorithm=None", None, None),
        ("speculative_algorithm='NGRAM'", None, "a draft (NGRAM), which is not counted"),  # and no option's value
        ("speculative_algorithm='DFLASH', speculative_draft_model_path='z/x'", None, "a draft z/x (DFLASH)"),
    ],
)
def test_a_stated_draft(stated, draft, note):
    found = question(f"server_args=ServerArgs({stated})", POOL)
    assert found.draft == draft
    assert (not found.notes) if note is None else note in found.notes[-1]
    assert question(f"server_args=ServerArgs({stated})", POOL, draft="mtp").draft == "mtp"


def test_names_of_other_releases():
    stated = "server_args=ServerArgs(cuda_graph_max_bs=8, mamba_scheduler_strategy='no_buffer', pp_size=2)"
    found = question(stated, POOL)
    assert found.options == {"cuda_graph_max_bs_decode": "8", "mamba_radix_cache_strategy": "no_buffer"}
    assert found.notes == ("not modelled: pp_size=2",)


def rows(model, *lines, **given):
    (found,) = audit(read([(line, False) for line in lines]), reference="", model=prepare(model).architecture,
                     given=Given(**given)).audits  # fmt: skip
    return {row.figure: row.verdict for row in found.rows}, found.question.notes


def test_a_second_pool_is_that_of_the_draft():
    # Qwen3-8B: 36 layers of 8 x 128 x 2 x 2 bytes; its draft of 0.6B: 28 layers alike. 100,001 tokens of each.
    pools = [f"KV Cache is allocated. #tokens: 100000, K size: {size} GB, V size: {size} GB" for size in (6.87, 5.34)]
    found, notes = rows("qwen3-8b", *pools)
    assert found == {"pool: K size": "agrees", "pool: V size": "agrees"} | dict.fromkeys(
        ("another pool: tokens", "another pool: K", "another pool: V"), "not checked"
    )
    assert "of about 114,676 bytes each, is a draft's" in notes[0]
    found, notes = rows("qwen3-8b", *pools, draft=prepare("qwen3-0.6b").architecture)
    assert set(found.items()) == {
        (f"{pool}: {side} size", "agrees") for pool in ("pool", "draft pool") for side in "KV"
    }
    assert notes == ()


def test_deepseek_v4_prints_pools_of_its_own():
    # 1,048,576 tokens, and a tenth of them in windows of pages of 256; a ring of 8 states a page of a window.
    sizes = "DSV4 pool sizes: full=1048576, swa=104704, c4=262144, c128=8192, c4_state=3272, c128_state=0"
    cell = "bytes_per_full_token=7086.75, available_bytes=6.16 GB"
    lines = [f"[2026-10-01 09:47:28 ATTN_CP1 MOE_DP1 TP1] {line}" for line in (
        f"DSV4 memory calculation: unified=False, {cell}",
        sizes.replace("1048576", "2097152"),
        sizes,
        "max_total_num_tokens=1048576, chunked_prefill_size=8192",
    )]  # fmt: skip
    figures = ("windows", "entries of 4 tokens", "entries of 128 tokens", "states behind entries of 4")
    expected = dict.fromkeys((*figures, "budget of a token", "max_total_num_tokens"), "agrees")
    assert rows("deepseek-v4-flash", *lines)[0] == expected
    older = lines[0].replace("unified=False, ", "").replace("7086.75", "7033.45")
    del expected["budget of a token"]
    assert rows("deepseek-v4-flash", older, *lines[2:])[0] == expected
