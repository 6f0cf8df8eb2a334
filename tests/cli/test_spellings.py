"""What people type, from the engines' flags or from memory, is the same command line as the help's."""

import json

import pytest

SAME = [
    ("gemma-3-27b", "show gemma-3-27b"),
    ("google/gemma-3-27b-it -c 8k", "show gemma-3-27b -c 8k"),
    ("show gemma-3-27b", "show gemma-3-27b -c 131072"),
    ("show gemma-3-27b -c max", "show gemma-3-27b -c 128k"),
    ("show gemma-3-27b -c 131,072", "show gemma-3-27b -c 128K"),
    ("show gemma-3-27b -c 1.5k", "show gemma-3-27b -c 1536"),
    ("show gemma-3-27b --max-model-len 8k", "show gemma-3-27b -c 8k"),
    ("show gemma-3-27b --ctx-size 8k --users 4", "show gemma-3-27b -c 8k -b 4"),
    ("show gemma-3-27b --tp 2 -b 4", "show gemma-3-27b --tensor-parallel-size 2 --batch 4"),
    ("show gemma-3-27b -tp 2", "show gemma-3-27b --tensor_parallel_size=2"),
    ("show gemma-3-27b -e vLLM", "show gemma-3-27b --engine vllm"),
    ("show gemma-3-27b -e llama_cpp", "show gemma-3-27b --engine llama.cpp"),
    ("show gemma-3-27b -e vllm==0.25.1", "show gemma-3-27b -e vllm -E version=0.25.1"),
    ("show gemma-3-27b -e vllm@0.25.1", "show gemma-3-27b -e vllm -E version=0.25.1"),
    ("show gemma-3-27b -e vllm -E block-size=32", "show gemma-3-27b -e vllm -E block_size=32"),
    ("show gemma-3-27b -e llama.cpp -ctk q8_0 -ctv q4_0", "show gemma-3-27b -e llama.cpp --kv-cache-dtype q8_0/q4_0"),
    ("show gemma-3-27b -e llama.cpp -ctk q8_0", "show gemma-3-27b -e llama.cpp --kv-cache-dtype q8_0/f16"),
    ("show gemma-3-27b --kv-dtype fp8 --quant int8", "show gemma-3-27b --kv-cache-dtype fp8 --weights-dtype int8"),
    ("show gemma-3-27b --units GB", "show gemma-3-27b --units decimal"),
    ("show gemma-3-27b --md", "show gemma-3-27b --format markdown"),
    ("show deepseek-v3 --mtp -c 8k", "show deepseek-v3 --draft mtp -c 8k"),
    ("fit gemma-3-27b --gpu h100-sxm -c 8k", "fit gemma-3-27b --device h100-80gb -c 8k"),
    ("fit gemma-3-27b --gpus 2xh100-sxm -c 8k", "fit gemma-3-27b --devices 2xh100-80gb -c 8k"),
    ("fit gemma-3-27b --vram 80G -c 8k", "fit gemma-3-27b --memory 80GB -c 8k"),
    (
        "fit gemma-3-27b --memory 80Gi --gpu-memory-utilization 90% -c 8k",
        "fit gemma-3-27b --memory 80GiB --gpu-memory-utilization 0.9 -c 8k",
    ),
    ("presets --kind latent", "models --kind latent"),
    ("presets show gemma-3-1b", "models gemma-3-1b"),
    ("engines show vllm", "engines vLLM"),
    ("gpus h100", "devices H100"),
    ("help show", "show -h"),
    ("help", "--help"),
    ("-V", "--version"),
]


@pytest.mark.parametrize(("typed", "usual"), SAME)
def test_what_people_type_is_what_the_help_says(kvcalc, typed, usual):
    found, wanted = kvcalc(*typed.split()), kvcalc(*usual.split())
    assert (found.code, found.err) == (wanted.code, "")
    # The title names the model as it was typed.
    assert found.out.splitlines()[1:] == wanted.out.splitlines()[1:]


def test_json_says_what_was_typed_and_which_model_answered(kvcalc):
    answer = json.loads(kvcalc("google/gemma-3-27b-it", "--json").out)
    assert answer["command"] == ["kvcalc", "google/gemma-3-27b-it", "--json"]
    assert (answer["rows"][0]["reference"], answer["rows"][0]["model"]) == ("google/gemma-3-27b-it", "gemma-3-27b")


def test_the_title_names_the_preset_that_answers_for_another_name(kvcalc):
    assert kvcalc("gemma3:27b", "-c", "8k").out.startswith("gemma3:27b (gemma-3-27b): ")
    assert kvcalc("gemma-3-27b@5:1", "-c", "8k").out.startswith("gemma-3-27b@5:1: ")


@pytest.mark.parametrize(("file", "first"), [("a.json", "{"), ("a.csv", "reference,"), ("a.md", "#"), ("a.html", "<!")])
def test_the_suffix_of_a_file_decides_the_format(kvcalc, tmp_path, file, first):
    target = tmp_path / file
    ran = kvcalc("show", "gemma-3-1b", "-c", "4k", "-o", str(target))
    assert (ran.code, ran.out, ran.err) == (0, "", f"wrote {target}\n")
    assert target.read_text().startswith(first)


def test_help_lists_commands_by_what_they_are_for_in_80_columns(kvcalc):
    out = kvcalc("-h").out
    assert max(map(len, out.splitlines())) <= 80
    assert "..." not in out.replace("[ARGS]...", "")
    assert [line for line in out.splitlines() if line in ("Ask:", "Design:", "Guard:", "Look up:")] == [
        "Ask:", "Design:", "Guard:", "Look up:",
    ]  # fmt: skip


def test_compare_varies_formats_sizes_batches_and_versions(kvcalc):
    def labels(*options):
        lines = kvcalc("compare", "gemma-3-27b", "-c", "8k", *options).out.splitlines()
        rule = next(at for at, line in enumerate(lines) if line.startswith("─"))
        return [line.split("  ")[0] for line in lines[rule + 1 : lines.index("█ weights   ▒ KV cache")]]

    assert labels("--weights-dtype", "bf16,int8") == ["weights bfloat16", "weights int8"]
    assert labels("-b", "1,8") == ["batch size 1", "batch size 8"]
    assert labels("-tp", "1,2") == ["one device", "one of 2 devices"]
    assert labels("-e", "vllm==0.25.1,vllm==0.33.0") == ["vllm 0.25.1", "vllm 0.33.0"]


def test_compare_says_what_fits_a_device(kvcalc):
    out = kvcalc("compare", "gemma-3-27b", "llama-3.1-8b", "-e", "vllm", "--device", "rtx-4090", "-c", "8k").out
    assert "does not fit" in out
    assert "fits, " in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("show gemma-3-1b -e tgi", "error: not modelled: how 'tgi' allocates its cache has not been read"),
        ("show gemma-3-1b -ngl 20", "ideal has no option 'n_gpu_layers'"),
        ("sweep gemma-3-1b -c 1k-8k", "hint: write it 1k..8k"),
        ("compare gemma-3-1b,gemma-3-4b", "hint: models stand apart: gemma-3-1b gemma-3-4b"),
        ("show gemma-3-1b -e vllm -E max_model_len=8k", "hint: --context 8k"),
        ("fit gemma-3-1b --memory 8GiB -E gpu_memory_utilization=0.9 -e vllm", "hint: --gpu-memory-utilization 0.9"),
        (
            "fit gemma-3-1b --memory 8GiB --gpu-memory-utilization 90",
            "hint: as in --gpu-memory-utilization 0.9, or 90%",
        ),
    ],
)
def test_what_an_engine_calls_otherwise_is_said(kvcalc, words, said):
    ran = kvcalc(*words.split())
    assert ran.code == 2
    assert said in ran.err


def test_an_option_of_an_engine_that_has_a_common_name_stays_the_engines(kvcalc):
    assert kvcalc("show", "gemma-3-1b", "-e", "llama.cpp", "-E", "n_ctx=8192").code == 0


def test_one_is_no_plural(kvcalc):
    assert "context 1 token " in kvcalc("show", "gemma-3-1b", "-c", "1").out
    assert kvcalc("devices", "a16").out.startswith("1 device with")


def test_q8_of_a_cache_is_q8_0(kvcalc):
    words = ("show", "gemma-3-1b", "-e", "llama.cpp", "-c", "8k", "--json", "--kv-cache-dtype")
    made = [
        json.loads(kvcalc(*words, name).out)["rows"][0]["kv_cache"]["bytes"] for name in ("q8", "q8_0", "q4", "q4_0")
    ]
    assert made[0] == made[1] > made[2] == made[3]
