"""``kvcalc audit``: a log in, reported beside predicted out."""

import io
import json
import re
import sys
from xml.etree import ElementTree

import pytest
from answers import checked
from field_logs import LOGS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvcalc.logs.models import preset_of
from kvcalc.sources import shipped
from kvcalc.sources.preset import preset_tables

#: vLLM's own planner, gemma-3-27b in 40 GiB at 131,072 tokens and 8,192 batched tokens: 0.33.0 and 0.14.0.
VLLM = """\
INFO non-default args: {{'model': 'google/gemma-3-27b-it', 'max_model_len': 131072, 'max_num_batched_tokens': 8192}}
INFO Available KV cache memory: 40.0 GiB
INFO GPU KV cache size: {tokens} tokens
INFO Maximum concurrency for 131,072 tokens per request: {concurrency}x
"""
NEW = VLLM.format(tokens="291,658", concurrency="2.23")
OLD = VLLM.format(tokens="74,896", concurrency="2.81")
LLAMA = """\
print_info: general.name          = Gemma 3 1b It
llama_context: n_seq_max     = 1
llama_context: n_ctx         = 4096
llama_context: n_ubatch      = 512
llama_kv_cache: size =   16.00 MiB (  4096 cells,   4 layers,  1/1 seqs), K (f16):    8.00 MiB, V (f16):    8.00 MiB
llama_kv_cache: size =   22.00 MiB (  1024 cells,  22 layers,  1/1 seqs), K (f16):   11.00 MiB, V (f16):   11.00 MiB
"""
#: (84,562 tokens + 1) x 62 layers x 16 KV heads x 128 numbers x 2 bytes, for K and for V
SGLANG = """\
server_args=ServerArgs(model_path='google/gemma-3-27b-it', kv_cache_dtype='auto', tp_size=1, page_size=1)
KV Cache is allocated. #tokens: 84562, K size: 20.00 GB, V size: 20.00 GB
max_total_num_tokens=84562, chunked_prefill_size=8192, context_len=131072, available_gpu_mem=6.56 GB
"""


@pytest.fixture
def log(tmp_path):
    def written(text):
        path = tmp_path / "server.log"
        path.write_text(text)
        return str(path)

    return written


@pytest.mark.parametrize("text", [NEW, LLAMA, SGLANG], ids=["vllm", "llama.cpp", "sglang"])
def test_a_log_that_states_everything_needs_no_options(kvcalc, log, text):
    ran = kvcalc("audit", log(text))
    assert (ran.code, ran.err) == (0, "")
    assert "figures agree to the printed digit" in ran.out


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (NEW, "291,658", "291,659"),
        (NEW, "2.23", "2.24"),
        (NEW, "40.0", "41.0"),
        (NEW, "131,072", "131,073"),
        (LLAMA, "16.00 MiB", "16.01 MiB"),
        (LLAMA, "11.00 MiB, V", "11.10 MiB, V"),
        (LLAMA, "1024 cells", "1025 cells"),
        (LLAMA, "22 layers", "23 layers"),
        (LLAMA, "n_ubatch      = 512", "n_ubatch      = 768"),
        (SGLANG, "K size: 20.00", "K size: 20.01"),
        (SGLANG, "max_total_num_tokens=84562", "max_total_num_tokens=84563"),
    ],
)
def test_one_digit_changed_ends_as_1(kvcalc, log, text, old, new):
    assert old in text
    assert kvcalc("audit", log(text.replace(old, new))).code == 1


def test_another_version_is_the_likeliest_reason(kvcalc, log):
    ran = kvcalc("audit", log(OLD))
    assert ran.code == 1
    assert "likeliest reason: all figures agree with version=0.20.0" in ran.out
    assert kvcalc("audit", log(OLD), "-E", "version=0.14.0").code == 0


def test_what_the_user_says_goes_before_the_log(kvcalc, log):
    assert kvcalc("audit", log(LLAMA), "-E", "n_ubatch=1024").code == 1
    assert kvcalc("audit", log(LLAMA), "-c", "8k").code == 1
    assert kvcalc("audit", log(LLAMA), "--model", "gemma-3-4b").code == 1


def test_a_flag_is_the_likeliest_reason(kvcalc, log):
    hidden = "\n".join(line for line in LLAMA.splitlines() if "n_ubatch" not in line)
    wider = hidden.replace(" 22.00", " 33.00").replace(" 11.00", " 16.50").replace("1024 cells", "1536 cells")
    ran = kvcalc("audit", log(wider))
    assert ran.code == 1
    assert "all figures agree with n_ubatch=1024" in ran.out


def test_another_model_is_the_likeliest_reason(kvcalc, log):
    out = kvcalc("audit", log(LLAMA), "--model", "gemma-3-1b@global").out
    assert "likeliest reason: another model, or a draft model: the log has a cache of 4 and one of 22 layers" in out


def test_ollama_runs_llama_cpp(kvcalc, log):
    assert kvcalc("audit", log(LLAMA), "--engine", "ollama").code == 0
    assert kvcalc("audit", log(LLAMA), "--engine", "ollama", "-E", "num_batch=1024").code == 1


def test_json_follows_its_schema(kvcalc, log):
    for text in (NEW, OLD, SGLANG):
        checked("audit", kvcalc("audit", log(text), "--format", "json").out)
    answer = json.loads(kvcalc("audit", log(OLD), "--format", "json").out)
    assert answer["agrees"] is False
    assert answer["rows"][0]["difference"] == "-216753"


def test_a_dash_is_standard_input(kvcalc, monkeypatch):
    class Input:
        buffer = io.BytesIO(NEW.encode())

    monkeypatch.setattr(sys, "stdin", Input)
    assert kvcalc("audit", "-").code == 0


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("nothing here\n", [], "no figure of a known engine in 1 lines"),
        ("", [], "no figure of a known engine in 0 lines"),
        (NEW.replace("google/gemma-3-27b-it", "/models/x"), [], "names a model that is no preset: '/models/x'"),
        ("GPU KV cache size: 1 tokens\n", ["--model", "gemma-3-1b"], "the log does not state the context"),
        (NEW, ["--model", "gema-3-1b"], "unknown preset"),
        (NEW, ["-E", "blok_size=16"], "vllm has no option 'blok_size'"),
        (NEW, ["--engine", "sglang"], "no figure of sglang in 4 lines"),
        (NEW, ["--engine", "ideal"], "no figure of ideal in 4 lines"),
    ],
)
def test_what_cannot_be_audited_ends_as_2(kvcalc, log, text, options, message):
    ran = kvcalc("audit", log(text), *options)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_a_lost_log_ends_as_2(kvcalc):
    ran = kvcalc("audit", "lost.log")
    assert ran.code == 2
    assert "cannot read the log: no such file or directory" in ran.err


def test_a_newer_version_takes_the_newest_rule(kvcalc, log):
    ran = kvcalc("audit", log("INFO vLLM API server version 0.34.1\n" + NEW))
    assert ran.code == 0
    assert "2 of 2 figures agree" in ran.out
    assert "note: vllm 0.34.1 is newer than the releases read: the rule of 0.33.0 is followed" in ran.out


def test_a_later_start_that_agrees_is_the_one_that_counts(kvcalc, log):
    start = "llama_context: constructing llama_context\n"
    draft = start + "llama_kv_cache: size =    7.00 MiB (  4096 cells,   3 layers,  1/1 seqs), K (f16):    3.50 MiB\n"
    ran = kvcalc("audit", log(start + LLAMA.replace("print_info", "x") + draft), "--model", "gemma-3-1b")
    assert ran.code == 0
    assert "note: start 2, line 8: a cache of 3 layers is none of gemma-3-1b's" in ran.out


# ---- several starts ----

LATER = NEW.replace("291,658", "280,000").replace("2.23", "2.14")
BANNER = "(APIServer pid=1) INFO 06-01 [api_server.py:1288] vLLM API server version 0.33.0\n"
LLAMA_8B = """\
(APIServer pid=7) INFO [utils.py:278] non-default args: {'model': 'meta-llama/Llama-3.1-8B-Instruct', \
'max_model_len': 32768}
(EngineCore pid=9) INFO [gpu_worker.py:300] Available KV cache memory: 40.0 GiB
(EngineCore pid=9) INFO [kv_cache_utils.py:1733] GPU KV cache size: 327,664 tokens
(EngineCore pid=9) INFO [kv_cache_utils.py:1734] Maximum concurrency for 32,768 tokens per request: 10.00x
"""
CRASH = """\
INFO non-default args: {'model': 'google/gemma-3-27b-it', 'max_model_len': 131072, 'max_num_batched_tokens': 8192}
INFO Model loading took 51.11 GiB memory and 20.0 seconds
INFO Available KV cache memory: 12.0 GiB
ERROR torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
"""


def starts(ran):
    return [(each["number"], each["verdict"], each["counts"]) for each in json.loads(ran.out)["starts"]]


def test_the_last_start_of_a_model_decides(kvcalc, log):
    ran = kvcalc("audit", log(NEW + LATER), "--format", "json")
    assert (ran.code, starts(ran)) == (1, [(1, "agrees", False), (2, "disagrees", True)])
    ran = kvcalc("audit", log(LATER + NEW), "--format", "json")
    assert (ran.code, starts(ran)) == (0, [(1, "disagrees", False), (2, "agrees", True)])
    assert "before the last one of gemma-3-27b, disagrees" in kvcalc("audit", log(LATER + NEW)).out


def test_every_model_and_every_engine_of_a_log_is_judged(kvcalc, log):
    ran = kvcalc("audit", log(LATER + LLAMA_8B), "--format", "json")
    assert (ran.code, starts(ran)) == (1, [(1, "disagrees", True), (2, "agrees", True)])
    assert kvcalc("audit", log(NEW + LLAMA_8B)).code == 0
    ran = kvcalc("audit", log(LATER + LLAMA), "--format", "json")
    assert (ran.code, starts(ran)) == (1, [(1, "disagrees", True), (2, "agrees", True)])
    assert json.loads(ran.out)["rows"][0]["start"] == 1


def test_a_start_is_chosen(kvcalc, log):
    text = log(NEW + LATER)
    assert [kvcalc("audit", text, "--start", which).code for which in ("1", "2", "all", "last")] == [0, 1, 1, 1]
    ran = kvcalc("audit", text, "--start", "3")
    assert ran.code == 2
    assert "the log has no start 3" in ran.err


@pytest.mark.parametrize("tail", [CRASH, CRASH.replace("ERROR torch", "INFO x"), BANNER, CRASH * 3])
def test_a_crash_loop_is_judged_by_the_last_start_with_figures(kvcalc, log, tail):
    assert kvcalc("audit", log(NEW + tail)).code == 0
    assert kvcalc("audit", log(LATER + tail)).code == 1


def test_a_crash_loop_says_how_far_it_came(kvcalc, log):
    out = kvcalc("audit", log(NEW + CRASH)).out
    assert "start 2, line 5: measured the memory left for the cache, and no more: CUDA out of memory (line 8)" in out
    ran = kvcalc("audit", log(CRASH))
    assert ran.code == 2
    assert "measured the memory left for the cache, and no more: CUDA out of memory (line 4)" in ran.err


def test_a_test_report_has_a_case_for_every_start_that_counts(kvcalc, log):
    path = log(LATER + LLAMA)
    ran = kvcalc("audit", path, "--format", "junit")
    suite = ElementTree.fromstring(ran.out)[0]  # noqa: S314 - our own text
    assert (ran.code, suite.attrib["name"], suite.attrib["tests"], suite.attrib["failures"]) == (
        1, "kvcalc audit", "2", "1",
    )  # fmt: skip
    assert [case.attrib["name"] for case in suite.iter("testcase")] == [
        "start 1: gemma-3-27b in vllm",
        "start 2: gemma-3-1b in llama.cpp",
    ]
    assert suite[0][0].text.endswith(f"{path}:3")
    assert "KV cache size: 280,000 tokens for 291,649 tokens" in suite[0][0].text
    out = kvcalc("audit", path, "--format", "github").out
    assert out.startswith(f"::error file={path},line=3,title=kvcalc%3A start 1%3A gemma-3-27b in vllm::gemma-3-27b: ")
    assert out.endswith("kvcalc audit: 2 starts, 1 failed, 0 with a warning\n")


# ---- flags, wherever they stand ----


def test_flags_behind_the_figures_count_as_those_before(kvcalc, log):
    lines = NEW.splitlines(keepends=True)
    assert kvcalc("audit", log("".join(lines[1:] + lines[:1]))).code == 0


def test_no_reason_contradicts_the_log(kvcalc, log):
    whole = (
        "INFO non-default args: {'model': 'google/gemma-3-27b-it', 'max_model_len': 131072, 'kv_cache_dtype': 'fp8', "
    )
    whole += "'max_num_batched_tokens': 8192, 'async_scheduling': True, 'enable_prefix_caching': True}\n"
    text = BANNER + whole + "".join(NEW.splitlines(keepends=True)[1:])
    ran = kvcalc("audit", log(text))
    assert ran.code == 1
    for option in ("kv_cache_dtype", "tensor_parallel_size", "version", "max_num_batched_tokens", "async_scheduling"):
        assert f"{option}=" not in ran.out.partition("likeliest reason")[2]


@pytest.mark.parametrize(
    "command",
    [
        "$ vllm serve google/gemma-3-27b-it --max-model-len 131072 --max-num-batched-tokens 8192",
        "vllm serve google/gemma-3-27b-it \\\n  --max-model-len=131072 \\\n  --max-num-batched-tokens 8192",
        "+ python -m vllm.entrypoints.openai.api_server --model google/gemma-3-27b-it --max-num-batched-tokens 8192",
        "INFO args: Namespace(host=None, model='google/gemma-3-27b-it', max_model_len=131072, block_size=16, "
        "max_num_batched_tokens=8192, tensor_parallel_size=1, kv_cache_dtype='auto')",
    ],
)
def test_a_command_states_flags(kvcalc, log, command):
    figures = "".join(NEW.splitlines(keepends=True)[1:])
    assert kvcalc("audit", log(f"{command}\n{figures}")).code == 0
    assert kvcalc("audit", log(f"{figures}{command}\n")).code == 0
    less = command.replace("8192", "2048")
    assert kvcalc("audit", log(f"{less}\n{figures}")).code == 1


#: A context with states to roll back to, then that of the model's own prediction layer, as llama.cpp prints them.
DRAFTED = """\
I build: 11000 (0123abcd) with GNU 13.3.0 for Linux x86_64
I llama_context: constructing llama_context
I llama_context: n_seq_max     = 1
I llama_context: n_ctx         = 65536
I llama_context: n_ubatch      = 512
I llama_context: n_rs_seq      = 2
I llama_kv_cache: size = 4096.00 MiB ( 65536 cells, 16 layers, 1/1 seqs), K (f16): 2048.00 MiB, V (f16): 2048.00 MiB
I llama_memory_recurrent: size =  448.88 MiB (     1 cells,  65 layers,  1 seqs  2 rs_seq), R (f32):   16.88 MiB
I llama_context: constructing llama_context
I llama_context: n_ctx         = 65536
I llama_kv_cache: size =  136.00 MiB ( 65536 cells,  1 layers,  1/1 seqs), K (q8_0):  68.00 MiB, V (q8_0):  68.00 MiB
"""


def test_the_context_of_a_draft_is_judged_beside_the_models(kvcalc, log):
    ran = kvcalc("audit", log(DRAFTED), "--model", "qwen3.5-27b", "--format", "json")
    assert (ran.code, starts(ran)) == (0, [(1, "agrees", True), (2, "agrees", True)])
    assert json.loads(ran.out)["starts"][0]["version"] == "b11000"
    assert kvcalc("audit", log(DRAFTED.replace("448.88", "448.89")), "--model", "qwen3.5-27b").code == 1
    assert kvcalc("audit", log(DRAFTED.replace("136.00", "137.00")), "--model", "qwen3.5-27b").code == 1


#: 4,096 tokens and one more in steps of 256: 4,352 x 131,072 bytes.
MLX = """\
$ mlx_lm.server --model mlx-community/Llama-3.1-8B-Instruct-4bit
2026-03-01 10:00:10,000 - INFO - Prompt Cache: 1 sequences, 0.57 GB
"""


def test_mlx_lm_says_what_it_keeps_of_prompts(kvcalc, log):
    assert kvcalc("audit", log(MLX), "-c", "4k").code == 0
    assert kvcalc("audit", log(MLX.replace("0.57", "0.54")), "-c", "4k").code == 1
    several = MLX.replace("1 sequences, 0.57", "2 sequences, 1.14")
    assert "nothing could be checked" in kvcalc("audit", log(several), "-c", "4k").out
    assert kvcalc("audit", log(several), "-c", "4k", "-b", "2").code == 0


def test_prediction_layers_that_a_model_has_not_are_said(kvcalc, log):
    drafted = NEW.replace(
        "'max_model_len'", "'speculative_config': {'method': 'mtp', 'num_speculative_tokens': 1}, 'max_model_len'"
    )
    assert "which gemma-3-27b has not: they are not counted" in kvcalc("audit", log(drafted)).out
    eagle = drafted.replace("'mtp'", "'eagle3'")
    assert "the log states a draft model (eagle3), which is not counted" in kvcalc("audit", log(eagle)).out


#: A compose file, whose list of arguments has a flag and its value in two lines, and what follows it in the log.
COMPOSE = """\
    image: vllm/vllm-openai:v0.24.0
    command:
      - "--model"
      - "Qwen/Qwen3.6-27B"
      - --tensor-parallel-size
      - "2"
      - --kv-cache-dtype=fp8
      - "--speculative-config"
      - '{"method":"mtp","num_speculative_tokens":3}'
      - "--enable-prefix-caching"
(EngineCore pid=80) INFO [kv_cache_utils.py:2147] Maximum concurrency for 262,144 tokens per request: 1.15x
(EngineCore pid=80) INFO [kv_cache_utils.py:2146] GPU KV cache size: 300,220 tokens
(Worker_TP0 pid=89) INFO [gpu_worker.py:508] Available KV cache memory: 5.33 GiB
"""


def test_a_list_of_arguments_counts_and_the_memory_may_stand_behind_the_pool(kvcalc, log):
    ran = kvcalc("audit", log(COMPOSE), "--format", "json")
    assert (ran.code, starts(ran)) == (0, [(1, "agrees", True)])
    dotted = (
        COMPOSE.replace("""'{"method":"mtp","num_speculative_tokens":3}'""", "{}") + "--speculative-config.method mtp "
    )
    assert kvcalc("audit", log(dotted)).code == 1
    assert kvcalc("audit", log(dotted + "--speculative-config.num_speculative_tokens 3")).code == 0


# ---- what was not checked ----


def test_a_figure_held_against_itself_is_not_checked(kvcalc, log):
    without = "".join(line for line in NEW.splitlines(keepends=True) if "Available" not in line)
    ran = kvcalc("audit", log(without), "--format", "json")
    assert (ran.code, starts(ran)) == (0, [(1, "not checked", True)])
    assert [row["predicted"] for row in json.loads(ran.out)["rows"]] == [None, None]
    assert "nothing could be checked, 2 figures were read" in kvcalc("audit", log(without)).out
    wrong = without.replace("2.23", "2.25")
    assert kvcalc("audit", log(wrong)).code == 1


def test_other_memory_is_named(kvcalc, log):
    more = """\
INFO Model loading took 51.11 GiB memory and 20.1 seconds
INFO Free memory on device (78.6/79.19 GiB) on startup. Actual usage is 51.11 GiB for weight, 1.89 GiB for peak \
activation, 0.25 GiB for non-torch memory, and 0.84 GiB for CUDAGraph memory.
INFO Graph capturing finished in 20 secs, took 0.89 GiB
"""
    answer = json.loads(kvcalc("audit", log(NEW + more), "--format", "json").out)
    terms = {term["name"]: term["reported"] for term in answer["starts"][0]["terms"]}
    assert terms == {"weights": "51.11", "activation": "1.89", "non-torch": "0.25", "CUDA graphs": "0.89"}


def test_another_rank_had_less_memory(kvcalc, log):
    text = LLAMA_8B.replace("'max_model_len': 32768", "'max_model_len': 32768, 'tensor_parallel_size': 2")
    text = text.replace("(EngineCore pid=9) INFO [gpu", "(Worker_TP0 pid=9) INFO [gpu")
    ran = kvcalc("audit", log(text))
    assert ran.code == 1
    assert "another rank had about 20.00 GiB" in ran.out
    assert "the memory of 1 of 2 ranks" in ran.out
    both = text.replace("(EngineCore", "(Worker_TP1 pid=10) INFO Available KV cache memory: 20.0 GiB\n(EngineCore", 1)
    assert kvcalc("audit", log(both)).code == 0


def test_the_pipeline_stage_that_holds_the_fewest_blocks_decides(kvcalc, log):
    # Stages of 15, 16, 16 and 15 layers: 40.1 GiB over 16 layers are 41,062 blocks, 38 GiB over 15 are 41,506.
    text = "INFO non-default args: {'model': 'MiniMaxAI/MiniMax-M2', 'pipeline_parallel_size': 4}\n"
    for stage, memory in enumerate(("40.0", "40.1", "40.2", "38.0")):
        text += f"(Worker_PP{stage} pid=8{stage}) INFO Available KV cache memory: {memory} GiB\n"
    text += "INFO GPU KV cache size: 656,992 tokens\n"
    text += "INFO Maximum concurrency for 32,768 tokens per request: 20.05x\n"
    assert kvcalc("audit", log(text)).code == 0
    assert kvcalc("audit", log(text.replace("40.1", "39.1"))).code == 1
    assert kvcalc("audit", log(text.replace("38.0", "37.0"))).code == 1


def test_a_pool_of_other_tokens_is_shown_and_not_judged(kvcalc, log):
    other = "KV Cache is allocated. #tokens: 1000, K size: 0.01 GB, V size: 0.01 GB\n"
    text = SGLANG.replace("max_total", other + "max_total")
    rows = json.loads(kvcalc("audit", log(text), "--format", "json").out)["rows"]
    aside = [(row["reported"], row["verdict"]) for row in rows if row["figure"].startswith("another pool: ")]
    assert aside == [("1000", "not checked"), ("0.01", "not checked"), ("0.01", "not checked")]


def test_the_slots_of_llama_cpp_share_its_context(kvcalc, log):
    """Two of 2,048 cells each: 4 layers x 2 x 2,048 x 256 x 2 B, and 22 layers of 512 + 512 cells."""
    text = LLAMA.replace("n_seq_max     = 1", "n_seq_max     = 2").replace("1/1 seqs", "2/2 seqs")
    text = text.replace("  4096 cells", "  2048 cells").replace("22.00 MiB", "44.00 MiB").replace("11.00", "22.00")
    ran = kvcalc("audit", log(text))
    assert ran.code == 0, ran.out
    assert "context 2,048 tokens" in ran.out


def test_the_difference_is_told_in_tokens_and_requests(kvcalc, log):
    out = kvcalc("audit", log(LATER)).out
    assert "the difference is 11,649 tokens, 0.09 requests of 131,072 tokens, less than predicted" in out


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([NEW, LLAMA, SGLANG]), st.lists(st.integers(0, 10**20), min_size=30, max_size=60))
def test_no_number_is_too_strange(kvcalc, tmp_path, text, numbers):
    drawn = map(str, numbers)
    path = tmp_path / "strange.log"
    path.write_text(re.sub(r"(?<![\w.-])\d+", lambda match: next(drawn, match[0]), text))
    ran = kvcalc("audit", str(path), "--model", "gemma-3-1b")
    assert "internal error" not in ran.err
    assert (ran.code == 2) == ran.err.startswith("error: ") == (not ran.out)


def test_published_logs_audit_on_the_command_line(kvcalc, log):
    row = LOGS["ollama gemma3:1b, 4k"]
    assert kvcalc("audit", log("\n".join(row["log"])), "--model", "gemma-3-1b", "-c", "4k").code == 0
    row = LOGS["gemma-3-270m"]
    assert kvcalc("audit", log("\n".join(row["log"])), "--model", "gemma-3-270m").code == 0


def test_a_repository_is_known_by_its_own_name():
    for name in ("llama-4-scout", "mixtral-8x7b", "olmo-2-7b", "gemma-3-27b"):
        assert preset_of(preset_tables(name)["hf_ids"][0]) == name


def test_a_presets_own_name_is_known():
    assert {preset_of(name) for name in shipped.names("models")} == set(shipped.names("models"))


def test_the_number_of_batched_tokens_is_said_to_be_assumed_where_nobody_states_it(kvcalc, log):
    text = NEW.replace(", 'max_num_batched_tokens': 8192", "")
    note = "does not state max_num_batched_tokens"
    assert note in kvcalc("audit", log(text)).out
    assert note not in kvcalc("audit", log(text), "-E", "max_num_batched_tokens=8192").out


def test_an_option_for_a_log_of_no_engine_is_no_reason_to_fall_over(kvcalc, log):
    ran = kvcalc("audit", log("nothing here"), "-E", "block_size=32")
    assert ran.code == 2
    assert "no figure of a known engine" in ran.err


SERVED = """\
INFO 06-01 09:22:20 [utils.py:299] vLLM API server version 0.33.0
INFO 06-01 09:22:20 non-default args: {'model': 'meta-llama/Llama-3.1-8B-Instruct', 'max_model_len': 32768}
(EngineCore pid=9) INFO 06-01 09:22:25 Model loading took 14.99 GiB and 3.2 seconds
(EngineCore pid=9) INFO 06-01 09:22:29 Estimated CUDA graph memory: 0.24 GiB total
(EngineCore pid=9) INFO 06-01 09:22:29 Available KV cache memory: 55.54 GiB
(EngineCore pid=9) INFO 06-01 09:22:39 Actual usage is 15.24 GiB for consumed memory (weights + non-torch), 2.11 GiB \
for peak activation, and 0.91 GiB for CUDAGraph memory.
"""


def test_the_term_of_a_device_that_differs_is_named(tmp_path, kvcalc):
    log = tmp_path / "server.log"
    log.write_text(SERVED + "(EngineCore pid=9) INFO GPU KV cache size: 454,976 tokens\n")
    ran = kvcalc("audit", str(log), "--device", "h100-80gb")
    assert ran.code == 0
    assert "The device's other terms, beside their formulas" in ran.out
    assert "the term that differs most is CUDA graphs: 0.24 GiB printed, 0.92 predicted" in ran.out
    terms = json.loads(kvcalc("audit", str(log), "--device", "h100-80gb", "-f", "json").out)["starts"][0][
        "device_terms"
    ]
    assert [term["name"] for term in terms] == ["weights_bytes", "activation_bytes", "runtime_bytes", "graph_bytes"]
    assert terms[1]["reported_bytes"] == int(2.11 * 2**30) - int(0.24 * 2**30)
    assert "also printed" in kvcalc("audit", str(log)).out
    spark = kvcalc("audit", str(log), "--device", "dgx-spark").out
    assert "the term that differs most is weights: 14.99 GiB printed" in spark
    assert "is not modelled" in spark
