"""``kvcalc fit``: every term printed, the answer verified by show, exit 1 where a stated workload does not fit."""

import json
import re

import pytest
from answers import checked

from kvcalc.sources import resolve

GIB = 2**30
AT_128K = ("fit", "gemma-3-27b", "--device", "h100-80gb", "-c", "128k")


def fitted(kvcalc, *arguments):
    ran = kvcalc("fit", *arguments, "--format", "json")
    checked("fit", ran.out)
    return ran.code, json.loads(ran.out)


def test_every_term_from_the_device_to_the_pool_is_printed(kvcalc):
    out = kvcalc("fit", "gemma-3-27b", "--memory", "80GiB", "--reserve", "2GiB", "--engine", "vllm", "-c", "32k").out
    for term in ("85,899,345,920", "x utilization 0.92", "79,027,398,246", "-55,231,814,880", "-2,147,483,648"):
        assert term in out
    assert "= KV memory" in out
    for term in ("- activations of one step", "- runtime of the device", "- CUDA graphs"):
        assert term in out


@pytest.mark.parametrize("engine", ["ideal", "vllm", "llama.cpp", "sglang"])
def test_show_verifies_the_answer_and_one_step_beyond(kvcalc, engine):
    asked = ("gemma-3-27b", "--device", "h100-80gb", "--engine", engine)
    _, answer = fitted(kvcalc, *asked)
    longest = answer["capacity"]["max_context"]
    assert answer["frontier"]

    def pool(context):  # llama.cpp's compute buffer grows with the context, and leaves less for the cache
        size: int = fitted(kvcalc, *asked, "-c", str(context))[1]["pool"]["kv_memory"]
        return size

    def shown(context):
        options = ("--max-model-len", str(context), "--engine", engine, "--format", "json")
        return json.loads(kvcalc("show", "gemma-3-27b", *options).out)["rows"][0]["kv_cache"]["bytes"]

    # SGLang allocates a page more than its budget; vLLM needs a null block beside the request's bytes.
    beside = {"sglang": shown(2) - shown(1), "vllm": -1310720}.get(engine, 0)
    assert shown(longest) - beside <= pool(longest)
    assert shown(longest + 1) - beside > pool(longest + 1)


def test_four_engines_give_four_answers(kvcalc):
    engines = ("ideal", "vllm", "llama.cpp", "sglang")
    answers = [fitted(kvcalc, *AT_128K[1:], "--engine", engine)[1]["capacity"]["max_context"] for engine in engines]
    assert len(set(answers)) == 4


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("-c", "128k", "-b", "4"), 1),
        (("-c", "128k", "-b", "2"), 0),
        (("-c", "128k"), 0),
        (("-b", "4"), 0),
        (("-c", "4M", "-b", "1"), 1),
    ],
)
def test_exit_1_only_for_a_workload_stated_in_full_that_does_not_fit(kvcalc, arguments, code):
    assert kvcalc("fit", "gemma-3-27b", "--memory", "80GiB", "--engine", "ideal", *arguments).code == code


def test_a_workload_that_does_not_fit_says_what_is_missing_and_what_closes_it(kvcalc):
    code, answer = fitted(kvcalc, "gemma-3-27b", "--memory", "80GiB", "-c", "128k", "-b", "4")
    fit = answer["capacity"]
    assert (code, fit["fits"]) == (1, False)
    assert fit["missing_bytes"] == fit["required_kv_memory"] - answer["pool"]["kv_memory"] > 0
    assert {lever["lever"] for lever in answer["levers"]} >= {"context", "batch size", "KV format", "devices"}
    assert all(lever["required_kv_memory"] <= lever["kv_memory"] for lever in answer["levers"])
    for lever in answer["levers"]:
        if lever["flags"].startswith("-"):
            again = ("fit", "gemma-3-27b", "--memory", "80GiB", "-c", "128k", "-b", "4")
            option, value = lever["flags"].split()
            if option in again:
                again = (*again[: again.index(option)], *again[again.index(option) + 2 :])
            assert kvcalc(*again, option, value).code == 0, lever


def test_vllm_batches_as_it_would_on_the_device(kvcalc):
    def batched(device, *more):
        _, answer = fitted(kvcalc, "gemma-3-1b", "--device", device, "--engine", "vllm", "-c", "8k", *more)
        return answer["rows"][0]["engine"]["options"]["max_num_batched_tokens"]

    assert [batched(name) for name in ("rtx-4090", "a100-80gb", "h100-80gb", "b200")] == [2048, 2048, 8192, 16384]
    assert batched("h100-80gb", "-E", "max_num_batched_tokens=4096") == 4096


def test_every_split_of_several_devices_is_compared(kvcalc):
    _, answer = fitted(kvcalc, "gemma-3-27b", "--devices", "8xh100-80gb", "--engine", "vllm", "-c", "32k")
    rows = answer["splits"]
    assert [row["tensor_parallel_size"] for row in rows] == [1, 2, 4, 8]
    for row in rows:
        assert row["replicas"] * row["tensor_parallel_size"] == 8
        assert row["sequences"] == row["replicas"] * row["sequences_per_replica"]
    most = max(rows, key=lambda row: row["sequences"])
    assert answer["rows"][0]["workload"]["tensor_parallel_size"] == most["tensor_parallel_size"]


def test_a_number_of_sequences_is_answered_with_the_fewest_devices(kvcalc):
    arguments = ("gemma-3-27b", "--device", "h100-80gb", "--engine", "vllm", "-c", "32k", "--sequences", "50")
    code, answer = fitted(kvcalc, *arguments)
    fewest = min(row["devices_needed"] for row in answer["splits"] if row["devices_needed"] is not None)
    assert code == 0
    assert answer["rows"][0]["workload"]["tensor_parallel_size"] in {
        row["tensor_parallel_size"] for row in answer["splits"] if row["devices_needed"] == fewest
    }
    for row in answer["splits"]:
        if row["devices_needed"] is None:  # 64 devices do not divide 16 heads
            continue
        replicas = row["devices_needed"] // row["devices_per_replica"]
        assert replicas * row["sequences_per_replica"] >= 50 > (replicas - 1) * row["sequences_per_replica"]
    assert re.search(rf"{fewest} +the fewest devices for 50 sequences", kvcalc("fit", *arguments).out)


def test_too_few_devices_for_the_sequences_are_exit_1(kvcalc):
    arguments = ("gemma-3-27b", "--devices", "2xh100-80gb", "-c", "32k", "--engine", "vllm", "--sequences")
    assert [kvcalc("fit", *arguments, wanted).code for wanted in ("4", "900")] == [0, 1]


def test_an_engine_that_refuses_to_start_is_an_answer(kvcalc):
    ran = kvcalc("fit", "gpt-oss-20b", "--kv-memory", "1MiB", "--engine", "sglang", "-c", "1k", "-b", "1")
    assert ran.code == 1
    assert "sglang refuses to start" in ran.out


@pytest.mark.parametrize(
    "wrong",
    [
        ("--memory", "80GiB", "--device", "h200"),
        ("--memory", "80"),
        ("--device", "h1000"),
        ("--device", "h100-80gb", "--engine", "vllm", "-tp", "5"),
        ("--device", "h100-80gb", "-tp", "5"),
        ("--kv-memory", "1GiB", "-c", "8k", "--beside", "qwen3-0.6b"),
        ("--kv-memory", "1GiB", "--reserve", "1GiB"),
        ("--memory", "80GiB", "--gpu-memory-utilization", "1.5"),
        ("--memory", "80GiB", "--engine", "ideal,vllm"),
    ],
)
def test_a_question_without_one_memory_is_refused_with_a_hint(kvcalc, wrong):
    ran = kvcalc("fit", "gemma-3-27b", *wrong)
    assert (ran.code, ran.out) == (2, "")
    assert "hint:" in ran.err


def test_sweep_adds_the_rules_of_growth(kvcalc):
    arguments = ("sweep", "gemma-3-27b", "gemma-3-27b@global", "-c", "1k", "--growth")
    out = kvcalc(*arguments, "--format", "json").out
    checked("sweep", out)
    local, whole = json.loads(out)["growth"]
    assert (local["early_bytes_per_token"], local["late_bytes_per_token"]) == (507904, 81920)
    assert (local["saturation_context"], local["small_share_context"]) == (1024, 527156)
    assert (whole["late_bytes_per_token"], whole["saturation_context"]) == (507904, None)
    assert "Rules of growth" in kvcalc(*arguments).out


def test_the_first_line_is_the_answer(kvcalc):
    def first(*arguments):
        return kvcalc("fit", *arguments).out.partition("\n")[0]

    on_h100 = ("gemma-3-27b", "--device", "h100-80gb", "--engine", "vllm")
    assert first(*on_h100, "-c", "32k").startswith("Fits: 1 x 32,768 tokens. Longest context at batch 1: ")
    assert first(*on_h100).startswith("Fits. Longest context at batch 1: ")
    assert first(*on_h100, "-c", "32k", "-b", "400").startswith("Does not fit: 400 x 32,768 tokens is ")
    too_small = first("gemma-3-27b", "--device", "rtx-4090", "--engine", "vllm", "-c", "8k")
    assert "the weights alone are" in too_small
    fixed = ("-E", "n_ctx=4096", "-c", "32k", "--memory", "80GiB", "--engine", "llama.cpp")
    assert "the engine's options leave no room for it" in first("gemma-3-27b", *fixed)
    several = first("gemma-3-27b", "--devices", "8xh100-80gb", "--engine", "vllm", "-c", "32k", "--sequences", "9")
    assert several.startswith("Fits: 9 x 32,768 tokens; ")
    assert "(tensor parallel " in several


def test_without_an_engine_every_one_that_runs_there_is_compared(kvcalc):
    _, answer = fitted(kvcalc, "llama-3.1-8b", "--device", "h100-80gb", "-c", "32k")
    engines = [each["engine"] for each in answer["alternatives"]]
    assert engines[0] == "vllm" == answer["rows"][0]["engine"]["name"]
    assert {"sglang", "llama.cpp", "transformers"} <= set(engines)
    assert "mlx-lm" not in engines
    unknown = {each["engine"]: each["not_modelled"] for each in answer["alternatives"]}
    assert unknown["vllm"] is None
    assert unknown["tensorrt-llm"] == "the working memory of tensorrt-llm is not modelled"
    shown = kvcalc("fit", "llama-3.1-8b", "--device", "h100-80gb", "-c", "32k").out
    assert "why: before working memory: the working memory of tensorrt-llm is not modelled" in shown
    both = ("-e", "vllm,tensorrt-llm", "--format", "markdown")
    beside = kvcalc("compare", "llama-3.1-8b", "--device", "h100-80gb", "-c", "32k", *both).out
    assert beside.count("left before working memory") == 1
    _, on_a_mac = fitted(kvcalc, "llama-3.1-8b", "--device", "apple-m4-max-64gb", "-c", "32k")
    assert on_a_mac["rows"][0]["engine"]["name"] == "mlx-lm"
    assert "vllm" not in {each["engine"] for each in on_a_mac["alternatives"]}


def test_without_a_device_those_that_serve_it_are_listed_the_smallest_first(kvcalc):
    code, answer = fitted(kvcalc, "llama-3.1-8b", "-c", "8k", "--engine", "vllm")
    found = answer["alternatives"]
    assert code == 0
    assert all(each["fits"] for each in found)
    assert [each["devices"] for each in found] == sorted(each["devices"] for each in found)
    assert "apple-m4-max-64gb" not in {each["device"] for each in found}
    ran = kvcalc("fit", "llama-3.1-8b", "-c", "8k")
    assert "Devices that serve it, the fewest and smallest first (12 of " in ran.out
    none = kvcalc("fit", "llama-3.1-405b", "-c", "128k", "-b", "400")
    assert none.code == 1
    assert none.out.startswith("Does not fit: 400 x 131,072 tokens is ")
    assert ", the largest there is" in none.out


def test_a_size_that_is_typed_holds_on_any_device_and_a_format_that_none_has_is_refused(kvcalc):
    _, answer = fitted(kvcalc, "llama-3.1-8b", "-c", "8k", "--engine", "vllm", "-tp", "4")
    assert answer["rows"][0]["workload"]["tensor_parallel_size"] == 4
    refused = kvcalc("fit", "llama-3.1-8b", "-c", "8k", "--engine", "vllm", "--kv-cache-dtype", "q8_0/q4_0")
    assert (refused.code, refused.out) == (2, "")
    assert "one format for K and V" in refused.err


def test_the_line_that_starts_the_server_has_what_the_answer_assumes(kvcalc):
    ran = kvcalc(
        *("fit", "google/gemma-3-27b-it", "--device", "h100-80gb", "--engine", "vllm", "-c", "32k", "--command"),
        *("--kv-cache-dtype", "fp8", "-tp", "2", "--gpu-memory-utilization", "0.9"),
    )
    assert ran.out == (
        "vllm serve google/gemma-3-27b-it --max-model-len 32768 --tensor-parallel-size 2 "
        "--kv-cache-dtype fp8_e4m3 --gpu-memory-utilization 0.9 --max-num-batched-tokens 8192 --max-num-seqs 1024\n"
    )
    preset = kvcalc("fit", "gemma3:27b", "--memory", "80GiB", "-e", "vllm", "-c", "8k", "--command")
    assert preset.out == "vllm serve google/gemma-3-27b-pt --max-model-len 8192\n"  # what the Hub can give
    llama = kvcalc("fit", "llama-3.1-8b", "--memory", "80GiB", "-e", "llama.cpp", "-c", "8k", "-b", "4", "--command")
    assert llama.out == "llama-server -m llama-3.1-8b -c 32768 -np 4\n"
    assert kvcalc("fit", "llama-3.1-8b", "--memory", "80GiB", "-e", "transformers", "--command").out == "\n"


def test_the_frontier_and_the_engines_figures_are_shown_when_asked_for(kvcalc):
    arguments = ("fit", "llama-3.1-8b", "--device", "h100-80gb", "-e", "vllm", "-c", "8k")
    assert "frontier" not in kvcalc(*arguments).out
    shown = kvcalc(*arguments, "--frontier", "--explain").out
    assert "The frontier: the largest batch at each context" in shown
    assert "gpu_kv_cache_size_tokens" in shown
    assert "Working memory, step by step" in shown


def test_a_model_is_read_once_however_many_devices_are_tried(kvcalc, monkeypatch):
    read, load = [], resolve.load

    def counted(reference):
        read.append(reference)
        return load(reference)

    monkeypatch.setattr(resolve, "load", counted)
    assert kvcalc("fit", "gemma-2-2b", "-c", "4k").code == 0
    assert read == ["gemma-2-2b"]


# ---- users ----


def test_users_of_an_average_length_with_a_prefix_that_all_share(kvcalc):
    asked = ("llama-3.1-8b", "--kv-memory", "16GiB", "-e", "vllm", "-c", "32k")
    code, answer = fitted(kvcalc, *asked, "--average-context", "4k", "--shared-prefix", "2k", "-b", "60")
    # 8,191 blocks of 16 tokens; 4,096 tokens are 256 of them, of which 128 are shared.
    assert [(row["context"], row["shared_prefix"], row["sequences"]) for row in answer["users"]] == [
        (32768, 0, 3),
        (4096, 0, 31),
        (4096, 2048, 62),
        (32768, 0, 4.0),
    ]
    assert answer["users"][-1]["printed"] == "vllm prints maximum concurrency"
    assert (code, answer["verdict"]) == (
        0,
        "Fits: 60 users asked for, 62 fit at 4,096 tokens on average, 2,048 of them shared.",
    )
    code, more = fitted(kvcalc, *asked, "--average-context", "4k", "--shared-prefix", "2k", "-b", "63")
    assert (code, more["verdict"].partition(":")[0]) == (1, "Does not fit")
    shown = kvcalc("fit", *asked, "--average-context", "4k", "-b", "30").out
    assert "How many users" in shown
    assert "4,096 x 30" in shown  # the account is of what was asked


def test_an_engine_that_shares_no_prefix_says_why(kvcalc):
    asked = ("llama-3.1-8b", "--kv-memory", "16GiB", "-e", "llama.cpp", "-c", "8k")
    _, answer = fitted(kvcalc, *asked, "--average-context", "4k", "--shared-prefix", "2k")
    longest, average, shared = answer["users"]
    assert longest["sequences"] == 16
    assert "the room of the longest" in average["refusal"]
    assert "tools/server" in shared["refusal"]
    assert "not shared" in kvcalc("fit", *asked, "--shared-prefix", "2k").out
    for wrong in (("--average-context", "9k"), ("--shared-prefix", "8k")):
        assert kvcalc("fit", *asked, *wrong).code == 2


# ---- several models ----


def test_models_on_one_device_have_a_part_each(kvcalc):
    asked = ("llama-3.1-8b", "--device", "h100-80gb", "-e", "vllm", "-c", "32k")
    _, answer = fitted(kvcalc, *asked, "--beside", "qwen3-0.6b", "--beside", "qwen3-8b=40%")
    small, large = answer["beside"]
    assert (small["utilization"], small["max_batch_size"], large["utilization"]) == ("0.1", 1, "0.4")
    assert answer["pool"]["utilization"] == "0.5"
    assert "--gpu-memory-utilization 0.5" in answer["server_command"]
    assert "Other models on the device" in kvcalc("fit", *asked, "--beside", "qwen3-0.6b").out
    code, crowded = fitted(kvcalc, *asked, "--beside", "qwen3-8b=15%")
    assert (code, crowded["beside"][0]["fits"]) == (1, False)
    assert crowded["verdict"].startswith("Does not fit: qwen3-8b beside it")
    code, over = fitted(kvcalc, *asked, "--beside", "qwen3-8b=40%", "--gpu-memory-utilization", "0.9")
    assert over["pool"]["reserve_bytes"] == pytest.approx(0.3 * over["pool"]["device_memory"], rel=1e-9)
    code, full = fitted(kvcalc, *asked, "--beside", "qwen3-8b=60%", "--beside", "qwen3-0.6b=40%")
    assert (code, full["capacity"]["fits"]) == (1, False)


def test_an_engine_without_parts_leaves_what_its_neighbours_do_not_take(kvcalc):
    asked = ("llama-3.1-8b", "--device", "rtx-5090", "-e", "llama.cpp", "-c", "8k")
    alone, both = (fitted(kvcalc, *asked, *more)[1] for more in ((), ("--beside", "qwen3-0.6b")))
    taken = both["beside"][0]["taken_bytes"]
    assert alone["pool"]["kv_memory"] - both["pool"]["kv_memory"] == taken == both["pool"]["reserve_bytes"]
    assert kvcalc("fit", *asked, "--beside", "qwen3-0.6b=10%").code == 2
    too_large = kvcalc("fit", *asked[:3], "-e", "vllm", "-c", "8k", "--beside", "llama-3.1-405b")
    assert (too_large.code, too_large.out) == (2, "")


# ---- calibration ----

SERVER_LOG = """\
INFO 06-01 09:22:20 [utils.py:299] vLLM API server version 0.33.0
INFO 06-01 09:22:20 non-default args: {'model': 'meta-llama/Llama-3.1-8B-Instruct', 'max_num_batched_tokens': 2048}
(EngineCore pid=9) INFO 06-01 09:22:25 Model loading took 14.99 GiB and 3.2 seconds
(EngineCore pid=9) INFO 06-01 09:22:29 Estimated CUDA graph memory: 0.84 GiB total
(EngineCore pid=9) INFO 06-01 09:22:29 [gpu_worker.py:300] Available KV cache memory: 54.93 GiB
(EngineCore pid=9) INFO 06-01 09:22:39 Actual usage is 15.24 GiB for consumed memory (weights + non-torch), 2.68 GiB \
for peak activation, and 0.91 GiB for CUDAGraph memory.
"""


def test_a_log_gives_its_terms_in_place_of_the_formulas(kvcalc, tmp_path):
    log = tmp_path / "server.log"
    log.write_text(SERVER_LOG)
    asked = ("llama-3.1-8b", "--device", "h100-80gb", "-e", "vllm", "-c", "32k", "--calibrate", str(log))
    _, answer = fitted(kvcalc, *asked)
    pool = answer["pool"]
    assert pool["measured"] == ["activation_bytes", "graph_bytes", "runtime_bytes", "weights_bytes"]
    sizes = [round(pool[f"{name}_bytes"] / GIB, 2) for name in ("weights", "activation", "runtime", "graph")]
    assert sizes == [14.99, 1.84, 0.25, 0.84]
    assert round(pool["kv_memory"] / GIB, 2) == 54.93  # as the log prints it
    ran = kvcalc("fit", *asked, "--explain")
    assert "as server.log has it" in ran.out
    assert "the log states max_num_batched_tokens=2048, the answer assumes 8192" in ran.out
    # Another setup than the one that printed them has its formulas again.
    _, levered = fitted(kvcalc, *asked, "-b", "14")
    change = next(lever for lever in levered["levers"] if lever["lever"] == "weights format")
    assert change["kv_memory"] > levered["pool"]["kv_memory"]


def test_a_log_that_cannot_calibrate_is_refused(kvcalc, tmp_path):
    log = tmp_path / "server.log"
    log.write_text(SERVER_LOG)
    of_another = kvcalc("fit", "llama-3.1-8b", "--device", "h100-80gb", "-e", "llama.cpp", "--calibrate", str(log))
    assert of_another.code == 2
    assert "it has those of vllm" in of_another.err
    no_device = kvcalc("fit", "llama-3.1-8b", "--kv-memory", "8GiB", "-e", "vllm", "--calibrate", str(log))
    assert "name the --device" in no_device.err


def test_what_loading_adds_to_the_weights_has_a_row(kvcalc):
    asked = ("gpt-oss-20b", "--device", "h100-80gb", "-e", "vllm==0.19.0", "-c", "32k")
    _, answer = fitted(kvcalc, *asked)
    assert answer["pool"]["loading_bytes"] == 844922880 + 131072 * 64 * 4  # experts, and tables of positions
    shown = kvcalc("fit", *asked, "--explain").out
    assert "of them added by loading" in shown
    assert "What loading adds to the weights, step by step" in shown
    assert "weights: added by loading" in kvcalc("show", *asked).out
    tight = kvcalc("fit", "gpt-oss-120b", "--device", "h100-80gb", "-e", "vllm==0.14.0", "-c", "8k").out
    assert "; weights and working memory are " in tight.partition("\n")[0]
