"""Reading logs: exact line shapes of several versions, any size, and lines that want to do harm."""

import io
import json
from dataclasses import replace

import pytest
from bounded import calls_of
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcalc.engines import engine_class, make_engine
from kvcalc.errors import InputError
from kvcalc.logs.base import (
    LONGEST_LINE,
    MOST_CACHES,
    MOST_STARTS,
    UNIT_BYTES,
    Given,
    Question,
    Start,
    stated_number,
)
from kvcalc.logs.llama_cpp import parse_cache
from kvcalc.logs.models import preset_of
from kvcalc.logs.reading import bounded_lines
from kvcalc.logs.verdict import LOGS, MARKERS, audit, read
from kvcalc.sources.devices import load_device
from kvcalc.sources.resolve import load

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
    return read(lines_of(text)).starts[-1]


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
    report = read(lines_of(VLLM + VLLM.replace("620,944", "600,000").replace("0.26.0", "0.27.1")))
    assert [run.figures["pool_tokens"].printed for run in report.starts] == ["620944", "600000"]
    assert [run.stated["version"] for run in report.starts] == ["0.26.0", "0.27.1"]


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


def test_a_start_is_judged_by_the_engine_that_printed_it_or_by_one_that_is_named():
    report = read(lines_of(VLLM))
    assert audit(report).audits[0].rows
    for engine in ("llama.cpp", "sglang"):
        with pytest.raises(InputError, match=f"no figure of {engine}"):
            audit(report, given=Given(engine=engine))
    nobodys = read(lines_of("Model loading took 14.99 GiB\ntorch.OutOfMemoryError: CUDA out of memory\n"))
    with pytest.raises(InputError, match="no figure of vllm in 2 lines; the last start"):  # it may have been vLLM's
        audit(nobodys, given=Given(engine="vllm"))


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
    assert run.stated == {"n_seq_max": "1", "n_batch": "512", "n_ctx": "32768", "type_k": "q8_0"}
    assert [(cache.types, cache.get("size").printed) for cache in run.caches] == [
        (("CUDA0",), "1.9"),
        (("CPU",), "1.1"),
    ]


def test_a_log_without_figures_has_no_runs():
    report = read(lines_of("hello\n" * 1000))
    assert (report.starts, report.lines) == ((), 1000)


def test_a_long_line_is_cut_and_its_rest_is_skipped():
    figure = b"GPU KV cache size: 1,024 tokens\n"
    lines = list(bounded_lines(io.BytesIO(b"x" * (3 * LONGEST_LINE) + figure + figure)))
    assert [(len(line), cut) for line, cut in lines] == [(LONGEST_LINE, True), (len(figure), False)]


def test_an_empty_line_is_looked_at_once():
    steps = [calls_of(lambda count=count: read(bounded_lines(io.BytesIO(b" \r\n" * count)))) for count in (100, 1100)]
    assert steps[1] - steps[0] <= 5 * 1000  # its bytes, its text, whether it is empty


def test_any_number_of_lines_leaves_bounded_memory_behind():
    line = "llama_kv_cache: size = 1.00 MiB ( 256 cells, 1 layers, 1/1 seqs)"
    start = "llama_context: constructing llama_context"
    starts, caches = MOST_STARTS + 3, MOST_CACHES + 3
    report = read((text, False) for _ in range(starts) for text in (start, *[line] * caches))
    assert len(report.starts) == MOST_STARTS
    assert max(len(run.caches) for run in report.starts) == MOST_CACHES


hostile = st.text(st.characters(codec="utf-8"), max_size=200)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([marker for marker, _ in MARKERS]), hostile, hostile), max_size=8))
def test_no_line_is_too_strange(parts):
    text = "\n".join(f"{before}{marker}{after}" for marker, before, after in parts)
    report = read(lines_of(text))
    assert all(figure.printed for run in report.starts for figure in run.figures.values())


@pytest.mark.parametrize("marker", [marker for marker, _ in MARKERS])
def test_a_long_hostile_line_is_read_in_linear_steps(marker):
    # A pattern that backtracks over 4,096 characters needs hours; each of these takes a millisecond.
    for filler in ("9", "a", "'", "model=", " ", "9,999", "(", "K (f16): 1", "=", "tokens ", "["):
        fill = filler * (LONGEST_LINE // 16 // len(filler))
        assert read([(marker + fill, False), (fill + marker, False)]).lines == 2


# ---- logs as people have them ----

POOL = "INFO 06-01 09:22:30 [kv_cache_utils.py:1733] GPU KV cache size: 620,944 tokens"
LLAMA = "llama_kv_cache: size =   38.00 MiB (  4096 cells,   4 layers,  1/1 seqs), K (f16):   19.00 MiB"


def wrapped(line):
    return {
        "docker": json.dumps({"log": line + "\n", "stream": "stderr", "time": "2026-06-01T09:22:30Z"}),
        "docker of json": json.dumps({"log": json.dumps({"level": "info", "message": line}) + "\n"}),
        "journald": json.dumps({"MESSAGE": line, "_PID": "1"}),
        "journald with colours": json.dumps({"MESSAGE": list(f"\x1b[36m{line}\x1b[0m".encode())}),
        "elasticsearch": json.dumps({"@timestamp": "2026-06-01", "log": {"message": line, "level": "INFO"}}),
        "kubectl of several pods": "[pod/vllm-0/vllm] " + json.dumps({"message": line}),
        "cloud": json.dumps({"severity": "INFO", "textPayload": line}),
        "compose": f"vllm-1  | {line}",
        "cri": f"2026-06-01T09:22:30.123456789Z stderr F {line}",
        "journalctl": f"Jun 01 09:22:30 gpu01 docker[1234]: {line}",
        "quoted": f"> {line}",
        "carriage return": line + "\r",
    }


@pytest.mark.parametrize("kind", wrapped(""))
def test_a_line_is_read_in_any_wrapping(kind):
    assert printed(last_run(wrapped(POOL)[kind])) == {"pool_tokens": "620944"}
    assert last_run(wrapped(LLAMA)[kind]).caches[0].get("K").printed == "19.00"


@pytest.mark.parametrize(
    "line",
    [
        "\x1b[32mINFO\x1b[0m GPU KV cache size: \x1b[1;36m620,944\x1b[0m tokens",
        "GPU KV cache size: 620\x1b[1m,944\x1b[0m tokens",
        "[32mINFO[0m GPU KV cache size: [1;36m620,944[0m tokens",
        "^[[32mINFO^[[0m GPU KV cache size: ^[[1;36m620,944^[[0m tokens",
        "#033[32mGPU KV cache size: #033[1m620,944#033[0m tokens",
        "\x1b]0;title\x07GPU KV cache size: 620,944 tokens",
    ],
)
def test_colours_are_no_part_of_a_number(line):
    assert printed(last_run(line)) == {"pool_tokens": "620944"}


@pytest.mark.parametrize("mark", [b"", b"\xfe\xff"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_a_log_of_another_encoding(encoding, mark):
    text = f"loading 模型\r\n{POOL}\r\n" * 3
    data = text.encode(encoding)
    if encoding == "utf-16-be":
        data = mark + data
    report = read(bounded_lines(io.BytesIO(data)))
    assert report.lines == 6
    assert printed(report.starts[-1]) == {"pool_tokens": "620944"}


def test_a_long_line_of_utf_16_is_cut():
    data = ("x" * (3 * LONGEST_LINE) + "\n" + POOL + "\n").encode("utf-16")
    report = read(bounded_lines(io.BytesIO(data)))
    assert (report.lines, report.cut, printed(report.starts[-1])) == (2, 1, {"pool_tokens": "620944"})


@pytest.mark.parametrize("length", [3 * LONGEST_LINE // 2 - 1, 5 * LONGEST_LINE // 2 - 1])
def test_a_line_of_utf_16_that_ends_with_a_piece_that_was_read_is_cut_all_the_same(length):
    """With its mark it fills pieces of LONGEST_LINE bytes exactly: the next one begins with the end of the line."""
    data = ("x" * length + "\n" + POOL + "\n").encode("utf-16")
    report = read(bounded_lines(io.BytesIO(data)))
    assert (report.lines, report.cut, printed(report.starts[-1])) == (2, 1, {"pool_tokens": "620944"})


def test_data_parallel_engines_are_one_start():
    text = ""
    for rank, tokens in ((0, "600,000"), (1, "620,944")):
        text += (
            f"(EngineCore_DP{rank} pid={rank}) INFO [core.py:1] Initializing a V1 LLM engine (v0.26.0) with config: x\n"
        )
        text += f"(EngineCore_DP{rank} pid={rank}) INFO [gpu_worker.py:298] Available KV cache memory: 4{rank}.0 GiB\n"
        text += f"(EngineCore_DP{rank} pid={rank}) INFO [kv_cache_utils.py:9] GPU KV cache size: {tokens} tokens\n"
    report = read(lines_of(text))
    assert len(report.starts) == 1
    start = report.starts[0]
    assert printed(start) == {"available": "40.0", "pool_tokens": "600000"}
    assert printed(start.replicas[1]) == {"available": "41.0", "pool_tokens": "620944"}


def test_every_rank_says_its_memory_once_a_start():
    one = "(Worker_PP{pp}_TP{tp} pid=1) INFO Available KV cache memory: {memory} GiB\n"
    text = "".join(one.format(pp=pp, tp=tp, memory=40 + pp + tp / 10) for pp in (1, 0) for tp in (0, 1))
    start = last_run(text)
    assert printed(start) == {"available": "40.0"}
    assert sorted(start.memory) == ["Worker_PP0_TP0", "Worker_PP0_TP1", "Worker_PP1_TP0", "Worker_PP1_TP1"]
    assert len(read(lines_of(text * 3)).starts) == 3


def test_the_memory_in_use_stands_in_where_the_line_of_what_is_left_was_cut_off():
    usage = "(Worker_TP{} pid=9) INFO 1.78 GiB for peak activation. Current kv cache memory in use is {} GiB.\n"
    pool = "(EngineCore pid=7) INFO GPU KV cache size: 315,039 tokens\n"
    start = last_run(pool + usage.format(0, "8.64") + usage.format(1, "8.62"))
    assert printed(start) == {"pool_tokens": "315039", "available": "8.62"}
    known = "(Worker_TP0 pid=9) INFO Available KV cache memory: 8.70 GiB\n"
    assert printed(last_run(known + pool + usage.format(0, "8.64")))["available"] == "8.70"


def test_starts_without_figures_give_way_to_those_with():
    crash = "INFO vLLM API server version 0.26.0\n" * (3 * MOST_STARTS)
    report = read(lines_of(VLLM + crash))
    assert len(report.starts) == MOST_STARTS
    assert report.starts[0].figures["pool_tokens"].printed == "620944"
    assert report.starts[-1].number == 3 * MOST_STARTS + 1


def test_vllm_of_v0():
    text = """\
INFO 11-20 api_server.py:592] vLLM API server version 0.6.4.post1
INFO 11-20 api_server.py:593] args: Namespace(host=None, model='meta-llama/Llama-3.1-8B', max_model_len=20000)
INFO 11-20 worker.py:267] the current vLLM instance can use total_gpu_memory (23.58GiB) x gpu_memory_utilization (0.90)
INFO 11-20 worker.py:267] model weights take 14.99GiB; non_torch_memory takes 0.35GiB; PyTorch activation peak memory \
takes 1.20GiB; the rest of the memory reserved for KV Cache is 3.81GiB.
INFO 11-20 gpu_executor.py:122] # GPU blocks: 1952, # CPU blocks: 2048
INFO 11-20 gpu_executor.py:126] Maximum concurrency for 20000 tokens per request: 1.56x
"""
    start = last_run(text)
    assert printed(start) == {"available": "3.81", "blocks": "1952", "concurrency": "1.56"}
    assert {name: term.printed for name, term in start.terms.items()} == {
        "weights": "14.99",
        "non-torch": "0.35",
        "activation": "1.20",
    }
    assert start.stated["version"] == "0.6.4"


def test_llama_cpp_before_its_context_was_a_class():
    text = """\
llama_new_context_with_model: n_ctx      = 32768
llama_new_context_with_model: n_ubatch   = 1024
llama_kv_cache_init:      CUDA0 KV buffer size =  1166.65 MiB
llama_new_context_with_model: KV self size  = 1166.62 MiB, K (q8_0): 1166.62 MiB, V (f16):    0.00 MiB
llama_new_context_with_model: KV self size  = 1166.62 MiB, c^KV (q8_0): 1166.62 MiB, kv^T: not used
llama_new_context_with_model:      CUDA0 compute buffer size =  3444.00 MiB
"""
    start = last_run(text)
    assert start.stated.items() >= {"n_ctx": "32768", "n_ubatch": "1024"}.items()
    assert [[figure.name for figure in cache.figures] for cache in start.caches] == [["size", "c^KV"]]
    assert start.terms["CUDA0 compute buffer"].printed == "3444.00"


def test_ollama_environment_holds_for_every_model_that_it_loads():
    text = """\
level=INFO msg="server config" env="map[OLLAMA_CONTEXT_LENGTH:8192 OLLAMA_KV_CACHE_TYPE:q8_0 OLLAMA_NUM_PARALLEL:2]"
msg="kv cache" device=CUDA0 size="2.9 GiB"
msg="starting runner" cmd="/usr/bin/ollama runner --ollama-engine --port 41"
msg="kv cache" device=CUDA0 size="1.9 GiB"
"""
    report = read(lines_of(text))
    assert len(report.starts) == 2
    for start in report.starts:
        assert start.stated == {"context": "8192", "type_k": "q8_0", "n_seq_max": "2"}


def test_ollama_debug_lines_list_every_layer():
    line = 'msg=memory success=true required.CPU.Graph=1 required.CUDA2.Cache="[67108864 0 67108864]" '
    line += 'required.CUDA0.Cache="[67108864]"'
    earlier = (
        'msg=memory success=false required.CUDA0.Cache="[67108864 67108864 67108864U]"\n'  # a try that did not fit
    )
    caches = last_run(earlier + line).caches
    assert [(cache.types, cache.get("size").printed, cache.get("layers").printed) for cache in caches] == [
        (("CUDA2",), "134217728", "2"),
        (("CUDA0",), "67108864", "1"),
    ]


def test_tensorrt_llm_of_several_years():
    old = "[TensorRT-LLM][INFO] Allocate 69524783104 bytes for k/v cache. \n"
    old += "[TensorRT-LLM][INFO] Using 132608 tokens in paged KV cache."
    assert printed(last_run(old)) == {"allocated": "69524783104", "pool_tokens": "132608"}
    new = """\
[TensorRT-LLM][INFO] Number of blocks in KV cache primary pool: 8219
[TensorRT-LLM][INFO] Number of tokens per block: 32.
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 16.05 GiB for max tokens in paged KV cache (263008)
"""
    assert printed(last_run(new)) == {"blocks": "8219", "allocated": "16.05", "pool_tokens": "263008"}


@pytest.mark.parametrize(
    ("line", "stated"),
    [
        ("INFO [cuda.py:275] Forcing kv cache block size to 64 for FlashMLA backend.", {"block_size": "64"}),
        (
            "WARNING Turning off hybrid kv cache manager because `--kv-transfer-config` is set.",
            {"disable_hybrid_kv_cache_manager": "True"},
        ),
        ("INFO [vllm.py:790] Asynchronous scheduling is enabled.", {"async_scheduling": "True"}),
        ("WARNING Async scheduling will be disabled because it is not supported", {"async_scheduling": "False"}),
        ("INFO [cache.py:227] Using fp8 data type to store kv cache.", {"kv_cache_dtype": "fp8"}),
        ("INFO Using DeepSeek's fp8_ds_mla KV cache format.", {"kv_cache_dtype": "fp8_ds_mla"}),
        ("INFO Using max model len 131072", {"max_model_len": "131072"}),
        ("INFO Overriding num_gpu_blocks=9000 with num_gpu_blocks_override=512", {"num_gpu_blocks_override": "512"}),
        (
            "Multiplying the GPU KV cache size by the cp_world_size 8 (pcp_world_size 2 * dcp_world_size 4).",
            {"prefill_context_parallel_size": "2", "decode_context_parallel_size": "4"},
        ),
    ],
)
def test_vllm_says_in_sentences_what_it_settles(line, stated):
    assert last_run(line).stated == stated


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("google/gemma-3-27b-it", "gemma-3-27b"),
        (
            "/root/.cache/huggingface/hub/models--google--gemma-3-27b-it/snapshots/005ad3404e59d6023443",
            "gemma-3-27b",
        ),
        ("/models/models--unsloth--gemma-3-12b-it-GGUF/snapshots/005ad34/gemma-3-12b-it-Q4_K_M.gguf", "gemma-3-12b"),
        ("/mnt/llm/gemma-3-27b-it/model.gguf", "gemma-3-27b"),
        (r"C:\\Users\\me\\models\\gemma-3-4b-it-UD-Q5_K_XL-00001-of-00002.gguf", "gemma-3-4b"),
        ("unsloth/gemma-4-31B-it-GGUF:UD-Q5_K_XL", "gemma-4-31b"),
        ("gemma3:27b-it-qat", "gemma-3-27b"),
        ("Meta-Llama-3.1-8B-Instruct-Q8_0", "llama-3.1-8b"),
        ("Llama 3.1 8B Instruct", "llama-3.1-8b"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "llama-3.1-8b"),
        ("neuralmagic/Meta-Llama-3.1-70B-Instruct-FP8", "llama-3.1-70b-fp8"),
        ("nvidia/Llama-3.1-8B-Instruct-NVFP4", "llama-3.1-8b"),
        ("Qwen/Qwen3-32B-AWQ", "qwen3-32b-awq"),
        ("qwen3-30b-a3b-instruct-2507", "qwen3-30b-a3b-2507"),
        ("openai/gpt-oss-20b", "gpt-oss-20b"),
        ("ibm-granite/granite-4.0-h-tiny", "granite-4.0-h-tiny"),
        ("qwen3.5-27b-autoround-int4", "qwen3.5-27b"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-v3"),
        ("/data/llama/13b", None),
        ("DeepSeek-R1-Distill-Qwen-32B", "deepseek-r1-distill-qwen-32b"),
        ("DeepSeek-R1-Distill-Qwen-70B", None),
        ("gemma-3-28b", None),
        ("", None),
    ],
)
def test_a_model_is_known_by_its_usual_spellings(name, preset):
    assert preset_of(name) == preset


def test_ranks_that_print_a_pool_each_are_one_start_and_the_least_counts():
    rank = "INFO GPU KV cache size: {} tokens\nINFO Maximum concurrency for 4,096 tokens per request: {}x\n"
    near = rank.format("300,000", "73.24") + rank.format("299,984", "73.23") + rank.format("300,000", "73.24")
    assert printed(last_run(near)) == {"pool_tokens": "299984", "concurrency": "73.23"}
    far = rank.format("300,000", "73.24") + "INFO throughput\n" * 40 + rank.format("310,000", "75.68")
    assert [start.figures["pool_tokens"].printed for start in read(lines_of(far)).starts] == ["300000", "310000"]


# ---- kinds of lines that whole public logs had; the figures are Llama 3.1 8B's: blocks of 2 MiB ----

AVAILABLE = "(EngineCore pid=7) INFO 06-01 09:00:00 [gpu_worker.py:436] Available KV cache memory: 8.0 GiB"
POOL_8 = "GPU KV cache size: 65,536 tokens"
CONCURRENCY_8 = "(EngineCore pid=7) INFO 06-01 09:00:00 Maximum concurrency for 8,192 tokens per request: 8.00x"


def judged(*lines, model="llama-3.1-8b", **options):
    known = {} if model is None else {"model": load(model), "reference": model}
    return audit(read(lines_of("\n".join(lines))), **known, **options).audits[-1]


def test_the_blocks_that_vllm_profiles_its_graphs_with_are_no_flag():
    profiled = "(EngineCore pid=7) INFO Overriding num_gpu_blocks=0 with num_gpu_blocks_override=4"
    assert judged(profiled, AVAILABLE, POOL_8, CONCURRENCY_8).verdict == "agrees"
    asked = "(EngineCore pid=7) INFO Overriding num_gpu_blocks=5000 with num_gpu_blocks_override=4"
    assert judged(asked, AVAILABLE, POOL_8, CONCURRENCY_8).verdict == "disagrees"


@pytest.mark.parametrize(
    ("line", "pool", "version"),
    [
        (900, POOL_8, "0.11.0"),  # older than any that was read
        (1319, POOL_8, "0.19.0"),
        (1710, POOL_8, "0.20.1"),
        (1711, POOL_8, "0.20.0"),
        (2000, POOL_8, "0.23.0"),
        # One line with both figures is of 0.28 and later.
        (1879, f"{POOL_8}, Maximum concurrency for 8,192 tokens per request: 8.00x", "0.28.0"),
    ],
)
def test_a_log_without_a_version_has_the_one_whose_code_prints_at_that_line(line, pool, version):
    printed = f"(EngineCore pid=7) INFO 06-01 09:00:00 [kv_cache_utils.py:{line}] {pool}"
    found = judged(AVAILABLE, printed, CONCURRENCY_8)
    assert (found.verdict, found.question.options["version"]) == ("agrees", version)
    assert f"line {line} of kv_cache_utils.py" in " ".join(found.notes)
    stated = judged("(APIServer pid=1) INFO vLLM API server version 0.24.0", AVAILABLE, printed, CONCURRENCY_8)
    assert stated.question.options["version"] == "0.24.0"


def test_the_version_of_a_pasted_environment_counts_until_the_engine_says_its_own():
    environment = "vLLM Version                 : 0.17.1"
    assert judged(environment, AVAILABLE, POOL_8, CONCURRENCY_8).question.options["version"] == "0.17.1"
    frozen = "vllm==0.19.1rc1.dev329+gc0ba4f5ba"
    assert judged(frozen, AVAILABLE, POOL_8, CONCURRENCY_8).question.options["version"] == "0.19.1"
    engine = "(EngineCore pid=7) INFO Initializing a V1 LLM engine (v0.24.0) with config: max_seq_len=8192"
    assert judged(environment, engine, AVAILABLE, POOL_8, CONCURRENCY_8).question.options["version"] == "0.24.0"


def test_a_cpu_has_the_memory_that_it_says_it_takes():
    says = "WARNING VLLM_CPU_KVCACHE_SPACE (GiB) for CPU backend is not set, using 8 by default."
    assert judged(says, POOL_8, CONCURRENCY_8).verdict == "agrees"
    assert judged(says.replace("using 8", "using 4"), POOL_8, CONCURRENCY_8).verdict == "disagrees"


def test_ranks_and_the_folder_of_the_hub_stand_in_for_flags_that_are_not_in_the_log():
    folder = "(Worker_TP2 pid=9) cannot write /home/x/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/refs/main"
    loaded = [
        f"node-1 | (Worker pid={rank}) (Worker_TP{rank} pid={rank}) INFO Model loading took 3.78 GiB" for rank in (0, 3)
    ]
    pool = "GPU KV cache size: 262,144 tokens"
    found = judged(folder, *loaded, AVAILABLE, pool, CONCURRENCY_8.replace("8.00x", "32.00x"), model=None)
    assert (found.reference, found.question.tensor_parallel_size, found.verdict) == ("llama-3.1-8b", 4, "agrees")


def test_a_model_in_a_folder_without_a_name_is_the_one_that_it_is_served_as():
    engine = (
        "(EngineCore pid=7) INFO Initializing a V1 LLM engine (v0.24.0) with config: model='/models', max_seq_len=8192"
    )
    served = judged(f"{engine}, served_model_name=llama-3.1-8b", AVAILABLE, POOL_8, CONCURRENCY_8, model=None)
    assert (served.reference, served.verdict) == ("llama-3.1-8b", "agrees")


def test_a_device_gives_what_the_engine_chooses_there_and_weights_as_it_holds_them():
    loaded = "(EngineCore pid=7) INFO Model loading took 14.99 GiB memory and 2.0 seconds"
    found = judged(loaded, AVAILABLE, POOL_8, CONCURRENCY_8, device=load_device("rtx-4090"))
    assert found.question.options["max_num_batched_tokens"] == 2048
    [weights] = [term for term in found.terms if term.name == "weights_bytes"]
    assert abs(weights.difference) < 5 * 2**20  # the file alone: 14.96
    eager = "(APIServer pid=1) INFO non-default args: {'enforce_eager': True, 'max_model_len': 8192}"
    graphs = "(EngineCore pid=7) INFO Estimated CUDA graph memory: 0.0 GiB total"
    found = judged(eager, graphs, AVAILABLE, POOL_8, CONCURRENCY_8, device=load_device("rtx-4090"))
    assert [term.predicted_bytes for term in found.terms if term.name == "graph_bytes"] == [0]


# ---- LMDeploy; a block of Llama 3.1 8B is 32 x 64 x 2 x 8 x 128 x 2 B = 8 MiB ----

LMDEPLOY = """\
2026-06-01 - lmdeploy - INFO - async_engine.py:133 - input backend=pytorch, backend_config=PytorchEngineConfig(\
dtype='auto', tp=1, session_len=32768, max_batch_size=256, cache_max_entry_count=0.8, block_size=64, \
num_gpu_blocks=0, quant_policy=<QuantPolicy.NONE: 0>, max_prefill_token_num=8192)
2026-06-01 - lmdeploy - DEBUG - base.py:346 - minimal free gpu memory: 60000 mb
2026-06-01 - lmdeploy - DEBUG - base.py:388 - estimated max runtime memory: {reserve} mb
CacheConfig(max_batches=256, block_size=64, num_cpu_blocks=0, num_gpu_blocks={blocks}, kernel_block_size=64, \
cache_max_entry_count=0.8, max_prefill_token_num=8192, quant_policy=<QuantPolicy.NONE: 0>, num_state_caches=None).
"""


def test_lmdeploy_prints_its_blocks_and_what_it_reserves():
    # (8192 + 2 x 256) x 128,256 x 2 B of logits are 2,129 MiB; 0.8 of the rest are 5,787 blocks of 8 MiB.
    agrees = judged(LMDEPLOY.format(reserve=2129, blocks=5787))
    assert (agrees.question.engine, agrees.verdict, len(agrees.rows)) == ("lmdeploy", "agrees", 2)
    for figures in ({"reserve": 2130, "blocks": 5787}, {"reserve": 2129, "blocks": 5788}):
        assert judged(LMDEPLOY.format(**figures)).verdict == "disagrees"


def test_the_memory_that_lmdeploy_prints_is_cut_to_whole_mib():
    # 60,003.99 MiB give 5,788 blocks and 60,003 MiB 5,787: either may stand beside the 60003 that is printed.
    for blocks, verdict in ((5786, "disagrees"), (5787, "agrees"), (5788, "agrees"), (5789, "disagrees")):
        log = LMDEPLOY.replace("60000", "{free}").format(free=_free_before(5788), reserve=2129, blocks=blocks)
        assert judged(log).verdict == verdict


def _free_before(blocks):
    """The MiB within which the memory of so many blocks begins."""
    reserve = (8192 + 2 * 256) * 128_256 * 2
    return int((blocks * 2**23 / 0.8 + reserve) // 2**20)


TRT_FREE = "Memory usage when calculating max tokens in paged kv cache: total: 79.1 GiB, available: {} GiB"
TRT_BLOCKS = "[TensorRT-LLM][INFO] Number of blocks in KV cache primary pool: {}"


def test_blocks_of_tensorrt_llm_are_those_of_the_free_memory_rounded_up():
    # 0.9 of 39.995 to 40.005 GiB are 294,875 to 294,948 tokens of 131,072 bytes: 4,608 or 4,609 blocks of 64
    given = Given(options={"tokens_per_block": 64})
    for blocks, verdict in ((4608, "agrees"), (4609, "agrees"), (4607, "not checked"), (4610, "not checked")):
        audit = judged(TRT_FREE.format("40.00"), TRT_BLOCKS.format(blocks), given=given)
        assert [row.verdict for row in audit.rows] == [verdict]
    stated = Given(options={"tokens_per_block": 64, "free_gpu_memory_fraction": 0.9})
    assert judged(TRT_FREE.format("40.00"), TRT_BLOCKS.format(4607), given=stated).verdict == "disagrees"
    limit = "(aka max_tokens_in_paged_kv_cache) are set (to 0.900000 and 2560, respectively)."
    limited = judged(limit, TRT_FREE.format("40.00"), TRT_BLOCKS.format(40), given=stated)
    assert [row.verdict for row in limited.rows] == ["not checked"]
    two = replace(stated, tensor_parallel_size=2)  # 9,216 blocks of half the bytes, unless the other device has less
    for blocks, verdict in ((9216, "agrees"), (9000, "not checked"), (9300, "disagrees")):
        audit = judged(TRT_FREE.format("40.00"), TRT_BLOCKS.format(blocks), given=two)
        assert [row.verdict for row in audit.rows] == [verdict]
    with pytest.raises(InputError, match="tokens of a pool") as refusal:
        judged(TRT_BLOCKS.format(4607))
    assert "tokens_per_block" in refusal.value.hint
    with pytest.raises(InputError, match="tokens of a pool"):
        judged("[MemUsageChange] Allocated 1.00 GiB for max tokens in paged KV cache (0)")


def test_a_stage_of_tensorrt_llm_is_not_held_against_the_whole_model():
    args = "[TRT-LLM] [I] LLM Args: model='meta-llama/Llama-3.1-8B', tensor_parallel_size=1, pipeline_parallel_size={}"
    pool = "[TensorRT-LLM][INFO] [MemUsageChange] Allocated 8.00 GiB for max tokens in paged KV cache (131072)."
    staged = judged(args.format(2), pool, model=None)
    assert {row.verdict for row in staged.rows} == {"not checked"} and "pipeline" in staged.notes[0]
    assert judged(args.format(1), pool, model=None).verdict == "disagrees"


def test_the_bytes_of_a_token_that_tensorrt_llm_profiles_with_are_of_one_device():
    line = "max tokens: 41.11 GiB, fraction is set 0.9, kv size per token is {}. device total memory 80 GiB"
    half_a_head = Given(tensor_parallel_size=16)
    assert judged(line.format(8192), given=half_a_head).verdict == "agrees"
    assert judged(line.format(131_072)).verdict == "agrees" and judged(line.format(65_536)).verdict == "disagrees"


def test_turbomind_prints_a_block_and_a_session():
    block = "[TM][INFO] [BlockManager] block_size = {} MB"
    count = "[TM][INFO] [BlockManager] max_block_count = 6000"
    session = "`session_len` truncated to {} due to limited KV cache memory"
    agrees = judged(block.format("8.000"), count, session.format(384_000))
    assert [row.verdict for row in agrees.rows] == ["agrees", "not checked", "agrees"]
    assert judged(block.format("8"), count).verdict == "agrees"  # older versions print whole MiB
    assert judged(block.format("8.001"), count).verdict == "disagrees"
    assert judged(block.format("8.000"), count, session.format(400_000)).verdict == "disagrees"


def test_turbomind_gives_its_cache_a_part_of_the_free_memory():
    budget = "[TM][INFO] Object cache budget: {} MB from free 60000.00 MB and ratio 0.800"
    session = "lmdeploy serve api_server meta-llama/Llama-3.1-8B-Instruct --session-len 8192"
    assert judged(session, budget.format("48000.00"), model=None).verdict == "agrees"
    assert judged(session, budget.format("48100.00"), model=None).verdict == "disagrees"
    # where the arguments are not printed, the ratio is: to three places, and with another word in 0.18
    rounded = "Object cache budget: {} MB from cacheable 60000.00 MB and ratio 0.876"
    for size, verdict in (("52579.00", "agrees"), ("52540.00", "agrees"), ("52600.00", "disagrees")):
        assert judged(rounded.format(size), given=Given(context=8192)).verdict == verdict


def test_lmdeploy_keeps_a_state_slot_for_each_sequence_and_two_more():
    for slots, verdict in ((258, "agrees"), (256, "disagrees")):
        line = f"CacheConfig(max_batches=256, block_size=64, num_gpu_blocks=9, num_state_caches={slots})."
        assert judged(line, model="qwen3-next-80b-a3b").verdict == verdict


def test_a_log_of_lmdeploy_without_blocks_or_a_session_asks_for_a_context():
    with pytest.raises(InputError, match="states neither blocks nor a session"):
        judged("estimated max runtime memory: 2065 mb")
    # (8192 + 2 x 128) x 128,256 x 2 B, by the default of 128 sequences
    assert judged("estimated max runtime memory: 2066 mb", given=Given(context=8192)).verdict == "agrees"


@pytest.mark.parametrize("log", LOGS)
def test_an_audit_tries_what_the_engine_has_and_nothing_that_is_stated(log):
    engine = "llama.cpp" if log == "ollama" else log
    question, start = Question(engine, {}, 8192, 1, None, 1), Start(engine=log)
    tried = list(LOGS[log].changes(start, question))
    assert len(tried) > 1
    fields = {"kv_cache_dtype", "tensor_parallel_size"}
    for change in tried:
        assert change.option not in fields or getattr(question, change.option) != change.value
        if change.option not in fields:
            make_engine(engine, {change.option: change.value})
    options = {change.option for change in tried}
    assert options - fields <= {each.name for each in engine_class(engine).option_help()}
    stated = replace(question, stated=frozenset(options))
    assert list(LOGS[log].changes(start, stated)) == []


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,024", 1024), ("0", None), ("-1", None), ("auto", None), ("9" * 15, 10**15 - 1), ("9" * 16, None)],
)
def test_a_stated_number_is_whole_and_above_nought(text, number):
    assert stated_number({"tokens": text}, "context", "tokens") == number


def test_every_unit_that_a_log_prints_has_its_bytes():
    assert UNIT_BYTES == {
        "B": 1,
        "KiB": 1024,
        "MiB": 1024**2,
        "GiB": 1024**3,
        "TiB": 1024**4,
        "gigabytes": 1_000_000_000,
    }


def test_mlx_lm_says_the_tokens_of_the_latest_cache_or_leaves_them_out():
    said = last_run("Prompt Cache: 2 sequences, 0.26 GB, latest user cache 1000 tokens")
    assert (said.stated["tokens"], printed(said)) == ("1000", {"sequences": "2", "prompt_cache": "0.26"})
    asked = LOGS["mlx-lm"].question(said, Given())
    assert (asked.context, asked.batch_size) == (1000, 2)
    unsaid = last_run("KV Caches: 3 seq, 0.26 GB")
    assert "tokens" not in unsaid.stated
    assert LOGS["mlx-lm"].question(unsaid, Given(context=7)).batch_size == 3


def test_an_old_llama_cpp_names_the_formats_of_k_and_of_v_and_each_start_keeps_the_flags():
    launch = "$ llama-server -m gemma-3-27b.gguf -c 4096 --swa-full"
    cells = "llama_kv_cache_init: kv_size = {}, offload = 1, type_k = 'f16', type_v = 'q8_0', n_layer = 62"
    size = "llama_context: KV self size  = 1472.00 MiB, K (f16): 992.00 MiB, V (q8_0): 480.00 MiB"
    starts = read(lines_of("\n".join((launch, cells.format(4096), size, cells.format(8192), size)))).starts
    assert [start.stated["kv_size"] for start in starts] == ["4096", "8192"]
    assert {(start.stated["type_k"], start.stated["type_v"]) for start in starts} == {("f16", "q8_0")}
    assert starts[0].stated["swa_full"] == starts[1].stated["swa_full"]


def test_ollama_multiplies_the_context_by_what_runs_beside_one_another():
    for stated, n_ctx in (
        ({"context": "4096"}, 4096),
        ({"context": "4096", "n_seq_max": "2"}, 8192),
        ({"context": "4096", "n_ctx": "1000", "n_seq_max": "2"}, 1000),
    ):
        asked = LOGS["ollama"].question(Start(engine="ollama", stated=stated), Given())
        assert asked.context * asked.batch_size == n_ctx


def test_tensorrt_llm_without_the_tokens_of_a_pool_asks_for_nothing_else():
    for pool in ("", "Allocated 1.00 GiB for max tokens in paged KV cache (0)."):
        start = last_run(pool) if pool else Start(engine="tensorrt-llm")
        with pytest.raises(InputError, match="does not state the tokens of a pool"):
            LOGS["tensorrt-llm"].question(start, Given())


def test_what_a_log_of_lmdeploy_states_is_no_change_that_an_audit_proposes():
    for stated, settled in (({}, set()), ({"quant_policy": "8"}, {"quant_policy"})):
        start = Start(engine="lmdeploy", stated={"session_len": "8192", **stated})
        assert LOGS["lmdeploy"].question(start, Given()).stated == settled
