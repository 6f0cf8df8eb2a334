"""Reading logs: exact line shapes of several versions, any size, and lines that want to do harm."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcalc.logs.base import LONGEST_LINE, bounded_lines
from kvcalc.logs.llama_cpp import parse_cache
from kvcalc.logs.verdict import MARKERS, read_log

VLLM = """\
(APIServer pid=1) INFO 06-01 09:20:12 [api_server.py:1288] vLLM API server version 0.26.0
(APIServer pid=1) INFO 06-01 09:20:16 [utils.py:278] non-default args: {'model_tag': 'google/gemma-3-27b-it', \
'model': 'google/gemma-3-27b-it', 'max_model_len': 131072, 'tensor_parallel_size': 2, 'kv_cache_dtype': 'fp8', \
'max_num_batched_tokens': 8192, 'speculative_config': {'method': 'mtp', 'num_speculative_tokens': 3}}
(EngineCore pid=120) INFO 06-01 09:20:52 [core.py:112] Initializing a V1 LLM engine (v0.26.0) with config: \
model='google/gemma-3-27b-it', speculative_config=None, dtype=torch.bfloat16, max_seq_len=131072, \
pipeline_parallel_size=1, kv_cache_dtype=fp8
(Worker_TP0 pid=121) INFO 06-01 09:22:29 [gpu_worker.py:300] Available KV cache memory: 40.02 GiB
(Worker_TP1 pid=122) INFO 06-01 09:22:29 [gpu_worker.py:300] Available KV cache memory: 40.0 GiB
(EngineCore pid=120) INFO 06-01 09:22:30 [kv_cache_utils.py:1733] GPU KV cache size: 620,944 tokens
(EngineCore pid=120) INFO 06-01 [kv_cache_utils.py:1734] Maximum concurrency for 131,072 tokens per request: 4.74x
"""


def lines_of(text):
    return bounded_lines(io.BytesIO(text.encode()))


def last_run(text):
    return read_log(lines_of(text)).runs[-1]


def printed(run):
    return {name: figure.printed for name, figure in run.figures.items()}


def test_vllm_states_its_model_its_flags_and_its_figures():
    run = last_run(VLLM)
    assert run.engine == "vllm"
    assert printed(run) == {"available": "40.0", "pool_tokens": "620944", "concurrency": "4.74"}
    stated = {
        "model": "google/gemma-3-27b-it",
        "version": "0.26.0",
        "max_model_len": "131072",
        "dtype": "torch.bfloat16",
    }
    stated |= {"kv_cache_dtype": "fp8", "tensor_parallel_size": "2", "num_speculative_tokens": "3"}
    assert run.stated.items() >= stated.items()


def test_the_worker_with_the_least_memory_counts():
    assert last_run(VLLM).figures["available"].line == 5


def test_a_restart_is_a_run_of_its_own():
    report = read_log(lines_of(VLLM + VLLM.replace("620,944", "600,000").replace("0.26.0", "0.27.1")))
    assert [run.figures["pool_tokens"].printed for run in report.runs] == ["620944", "600000"]
    assert [run.stated["version"] for run in report.runs] == ["0.26.0", "0.27.1"]


@pytest.mark.parametrize("words", ["the models's max seq len", "the model's max seq len"])
def test_vllm_refusal_in_one_line_or_several(words):
    text = (
        f"ValueError: To serve at least one request with {words} (202752), (13.6 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (4.51 GiB). Based on the available memory, the estimated maximum "
        "model length is 67200. Try increasing `gpu_memory_utilization`"
    )
    wanted = {"needed": "13.6", "available": "4.51", "estimated_max_model_len": "67200"}
    assert printed(last_run(text)) == wanted
    broken = text.replace(", (", ",\n(").replace(" which is", "\nwhich is").replace(" the estimated", "\nthe estimated")
    assert printed(last_run(broken)) == wanted
    assert last_run(text).stated["max_model_len"] == "202752"


def test_llama_cpp_of_several_years():
    new = "llama_kv_cache: size = 4320.00 MiB (2048 cells,  27 layers, 8/8 seqs), K (f16): 2592.00 MiB, V (f16): 9 MiB"
    old = "llama_kv_cache_unified: size = 1536.00 MiB (  4096 cells,  32 layers,  1 seqs), K (f16):  768.00 MiB"
    oldest = "llama_new_context_with_model: KV self size  =  512.00 MiB, K (f16):  256.00 MiB, V (f16):  256.00 MiB"
    shapes = [[figure.printed for figure in parse_cache(line).figures] for line in (new, old, oldest)]
    assert shapes == [
        ["4320.00", "2048", "27", "8", "8", "2592.00", "9"],
        ["1536.00", "4096", "32", "1", "768.00"],
        ["512.00", "256.00", "256.00"],
    ]


def test_llama_cpp_states_its_parameters_and_leaves_out_the_buffers():
    text = """\
print_info: arch                  = gemma3
print_info: n_layer               = 26
print_info: general.name          = Gemma 3 1b It
llama_context: constructing llama_context
llama_context: n_seq_max     = 2
llama_context: n_ctx         = 8192
llama_context: n_ubatch      = 256
llama_context: kv_unified    = false
llama_kv_cache_iswa: using full-size SWA cache (ref: https://github.com/ggml-org/llama.cpp/pull/13194)
llama_kv_cache:      CUDA0 KV buffer size =   493.00 MiB
llama_kv_cache: size =   32.00 MiB (  4096 cells,   4 layers,  2/2 seqs), K (f16):   16.00 MiB, V (f16):   16.00 MiB
llama_memory_recurrent: size =  149.62 MiB (     1 cells,  64 layers,  1 seqs), R (f32):    5.62 MiB
"""
    run = last_run(text)
    assert [cache.kind for cache in run.caches] == ["kv", "recurrent"]
    assert run.stated == {
        "model": "Gemma 3 1b It",
        "n_layer": "26",
        "n_seq_max": "2",
        "n_ctx": "8192",
        "n_ubatch": "256",
        "kv_unified": "false",
        "swa_full": "true",
    }  # fmt: skip


def test_sglang_pools_of_equal_ranks_count_once():
    text = """\
server_args=ServerArgs(model_path='qwen/qwen2-7b', dtype='auto', kv_cache_dtype='auto', tp_size=2, page_size=1)
[2025-03-08 12:29:21 TP0] KV Cache is allocated. #tokens: 46611, K size: 1.42 GB, V size: 1.42 GB
[2025-03-08 12:29:21 TP1] KV Cache is allocated. #tokens: 46611, K size: 1.42 GB, V size: 1.42 GB
max_total_num_tokens=46611, chunked_prefill_size=8192, context_len=131072, available_gpu_mem=6.56 GB
"""
    run = last_run(text)
    assert [[figure.printed for figure in cache.figures] for cache in run.caches] == [["46611", "1.42", "1.42"]]
    assert printed(run) == {"max_total_num_tokens": "46611"}
    assert run.stated.items() >= {"tp_size": "2", "page_size": "1", "model_path": "qwen/qwen2-7b"}.items()


def test_sglang_newer_lines():
    text = """\
KV Cache is allocated. dtype: torch.bfloat16, #tokens: 175135, KV size: 3.76 GB
SWAKVPool mem usage: 1.53 GB, swa size: 16384, full size: 81920
"""
    run = last_run(text)
    assert run.caches[0].types == ("bfloat16",)
    assert printed(run) == {"pools": "1.53", "swa_tokens": "16384", "full_tokens": "81920"}


def test_ollama_adds_its_devices_and_keeps_their_last_figures():
    text = """\
source=runner.go:1284 msg=load request="{Operation:fit Parallel:1 BatchSize:512 KvSize:32768 KvCacheType:q8_0}"
msg="kv cache" device=CUDA0 size="2.9 GiB"
msg="kv cache" device=CUDA0 size="1.9 GiB"
msg="kv cache" device=CPU size="1.1 GiB"
"""
    run = last_run(text)
    assert run.stated == {"Parallel": "1", "BatchSize": "512", "KvSize": "32768", "KvCacheType": "q8_0"}
    assert [(cache.types, cache.get("size").printed) for cache in run.caches] == [
        (("CUDA0",), "1.9"),
        (("CPU",), "1.1"),
    ]


def test_a_log_without_figures_has_no_runs():
    report = read_log(lines_of("hello\n" * 1000))
    assert (report.runs, report.lines) == ((), 1000)


def test_a_long_line_is_cut_and_its_rest_is_skipped():
    figure = b"GPU KV cache size: 1,024 tokens\n"
    lines = list(bounded_lines(io.BytesIO(b"x" * (3 * LONGEST_LINE) + figure + figure)))
    assert [(len(line), cut) for line, cut in lines] == [(LONGEST_LINE, True), (len(figure), False)]


def test_any_number_of_lines_leaves_bounded_memory_behind():
    line = "llama_kv_cache: size = 1.00 MiB ( 256 cells, 1 layers, 1/1 seqs)"
    start = "llama_context: constructing llama_context"
    report = read_log((text, False) for _ in range(300) for text in (start, *[line] * 70))
    assert len(report.runs) <= 8
    assert max(len(run.caches) for run in report.runs) <= 64


hostile = st.text(st.characters(codec="utf-8"), max_size=200)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([marker for marker, _ in MARKERS]), hostile, hostile), max_size=8))
def test_no_line_is_too_strange(parts):
    text = "\n".join(f"{before}{marker}{after}" for marker, before, after in parts)
    report = read_log(lines_of(text))
    assert all(figure.printed for run in report.runs for figure in run.figures.values())


@pytest.mark.parametrize("marker", [marker for marker, _ in MARKERS])
@pytest.mark.parametrize("filler", ["9", "a", "'", "model=", " ", "9,999", "(", "K (f16): 1", "=", "tokens "])
def test_a_long_hostile_line_is_read_in_linear_steps(marker, filler):
    # A pattern that backtracks over such a line needs hours for it; each of these takes milliseconds.
    line = (marker + filler * LONGEST_LINE)[:LONGEST_LINE]
    assert read_log([(line, False), (filler * 20_000 + marker, False)]).lines == 2
