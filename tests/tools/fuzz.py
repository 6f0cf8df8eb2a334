"""A mutation fuzzer: damaged inputs of every kind through the whole command line, each ending as the contract says.

python tests/tools/fuzz.py [--seed N] [--count N] [--workers N] [--target NAME] [--replay TARGET:NUMBER]

Real configs, presets, budgets, baselines, logs, headers, references and command lines are mutated and put to
``kvcalc.cli.app.run`` in this process. Every input must end in an answer (exit code 0; 1 where ``check``, ``audit``,
``fit``, ``search`` say no) or in an error of the one shape (exit code 2, nothing on standard output, except that ``check``
judges the other budgets and says which it could not judge), in less than one CPU second and 200 MB, and print nothing
that a terminal would obey. An input is made from (seed, target, number) alone: it is the same with any count and any
number of workers. Needs Linux or macOS; reaches no network. Exits 1 where an input fails.
"""

# ruff: noqa: E402, E501, T201, S311 - a script that prints its table; its randomness must repeat; paths come first
from __future__ import annotations

import argparse
import gc
import io
import json
import multiprocessing
import os
import platform
import re
import resource
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "unit")]
# An input may say hf:, and must not be answered; what escapes must be seen, and no screen's width may matter.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent", "KVCALC_DEBUG": "1", "COLUMNS": "100"}
os.environ.pop("HF_TOKEN", None)

import configs
from field_logs import LOGS
from gguf_writer import gguf_header, model_metadata

from kvcalc import __version__
from kvcalc.cli.app import COMMANDS, run
from kvcalc.dtypes import DTYPES
from kvcalc.engines import REGISTRY, engine_class
from kvcalc.sources import shipped
from kvcalc.sources.preset import preset_text

CPU_SECONDS = 1.0
MEMORY_BYTES = 200_000_000
HANGS_AFTER = 60
MAY_SAY_NO = ("check", "audit", "fit", "search")
_CHUNK = 500

# ---- mutations ----

NUMBERS = [0, 1, -1, 2, 3, 7, 8, 63, 255, 1024, 4095, 2**15, 2**31 - 1, 2**32, 2**53, 2**63 - 1, 2**64, 10**30]
ODD = [
    None,
    True,
    False,
    0.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "0",
    "auto",
    "9" * 5000,
    "\x1b[31m",
    "\0",
    "é",
    "\ud800",
]
ODD += [[], {}, [[]], [0], [None], ["full_attention"], {"a": 1}, *NUMBERS]
PIECES = [
    "0",
    "-1",
    "1e400",
    "9" * 30,
    "9" * 5000,
    "[",
    "{",
    '"',
    "'",
    "\\",
    "\n",
    "\r",
    "\0",
    "\x1b[31m",
    "=",
    "@",
    ":",
]
PIECES += [",", "/", "..", "%", "é", "😀", "\u202e", "k", "M", "GiB", "inf", "nan", "true", "[" * 500, " " * 300, "{}"]


def mutated_value(random: Random, value: Any) -> Any:
    """Another value in place of one: near it, of another type, or absurd."""
    near: list[Any] = [random.choice(ODD)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        near += [
            value + 1,
            value - 1,
            value * 2,
            -value,
            float(str(value)[:300]) / 3,
            str(value)[:4000],
            random.choice(NUMBERS),
        ]
    elif isinstance(value, str):
        near += [mutated_text(random, value), [value], value.upper()]
    elif isinstance(value, list):
        near += [
            value[:-1],
            value[::-1],
            value * 2,
            [*value, random.choice(ODD)],
            value * (500 if len(value) < 200 else 1),
        ]
    return deepcopy(random.choice(near))  # the next mutation may change it in place


def mutated_tree(random: Random, tree: Any, others: list[Any]) -> Any:
    """A JSON tree with a value replaced, removed, moved, or taken from another tree."""
    tree = deepcopy(tree)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        places = list(_places(tree))
        if not places:
            return deepcopy(random.choice(ODD))
        holder, key = random.choice(places)
        match random.randrange(6):
            case 0:
                del holder[key]
            case 1:
                other, at = random.choice(places)
                holder[key], other[at] = deepcopy(other[at]), deepcopy(holder[key])
            case 2 if isinstance(holder, dict):
                holder.update(deepcopy(random.sample(list(random.choice(others).items()), 1)))
            case _:
                holder[key] = mutated_value(random, holder[key])
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a tree, as its holder and its key; of a long list the first few."""
    items = (
        list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree))[:20] if isinstance(tree, list) else []
    )
    for key, value in items:
        yield tree, key
        yield from _places(value)


def mutated_text(random: Random, text: str) -> str:
    """A text with a span removed, doubled, replaced, or with a number changed."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        start = random.randint(0, len(text))
        stop = min(len(text), start + random.choice((0, 1, 1, 2, 5, 40)))
        numbers = list(re.finditer(r"\d+", text))
        match random.randrange(7):
            case 0:
                text = text[:start] + text[stop:]
            case 1:
                text = text[:stop] + text[start:]
            case 2:
                text = text[:start]
            case 3:
                lines = text.splitlines(keepends=True)
                random.shuffle(lines)
                text = "".join(lines)
            case 4 | 5 if numbers:
                found = random.choice(numbers)
                text = text[: found.start()] + str(mutated_value(random, int(found[0][:4000]))) + text[found.end() :]
            case _:
                text = text[:start] + random.choice(PIECES) + text[stop:]
    return text


def mutated_bytes(random: Random, data: bytes) -> bytes:
    """Bytes with some flipped, cut, doubled, or replaced by the limits of integers."""
    for _ in range(random.choice((1, 1, 2, 4))):
        start = random.randint(0, len(data))
        width = random.choice((1, 1, 2, 4, 8))
        stop = min(len(data), start + width)
        match random.randrange(6):
            case 0:
                data = data[:start]
            case 1:
                data = data[:start] + data[stop:]
            case 2:
                data = data[:stop] + data[start:]
            case 3:
                data = data[:start] + random.randbytes(width) + data[stop:]
            case _:
                limit = random.choice((0, 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1, 2 ** (8 * width) - 1))
                data = data[:start] + limit.to_bytes(width, random.choice(("little", "big"))) + data[stop:]
    return data


# ---- targets: what an input is, and the command line that reads it ----


@dataclass(frozen=True)
class Input:
    """A command line, and the files that it finds."""

    words: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


Target = Callable[[Random], Input]
CONFIGS: list[dict[str, Any]] = [
    *configs.read("configs.json").values(),
    *(each["config"] for each in configs.read("other_configs.json").values()),
]
PRESETS = shipped.names("models")
CONTEXTS = ["1", "513", "1k", "32k", "128k", "1M", "10M", "1000000007", "999999999999"]
BUDGETS = """\
[defaults]
context = "128k"
engine = "vllm"
engine_options = {max_num_batched_tokens = 8192}

[[budget]]
name = "small"
model = "gemma-3-1b"
context = "32k"
batch_size = 4
kv_cache_dtype = "fp8"
limit = "3GiB"
warn_at = "90%"
max_increase = "2.5%"
message = "ask the platform team"

[[budget]]
name = "prod"
model = "gemma-3-27b@5:1/sw=1024"
engine = "llama.cpp"
engine_options = {n_ubatch = 256}
device = "h100-80gb"
utilization = "90%"
reserve = "1GiB"
overhead = "60%"
min_context = "64k"
min_batch = 2

[[budget]]
name = "shared"
model = "llama-3.1-8b"
engine = "ideal"
tensor_parallel_size = 2
weights_dtype = "int4"
limit = "24GB"
on = "kv_cache"
"""
SAFETENSORS = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": {"dtype": "BF16", "shape": [64, 8], "data_offsets": [0, 1024]},
    "model.layers.0.mlp.weight": {"dtype": "F8_E4M3", "shape": [16, 8], "data_offsets": [1024, 1152]},
    "model.layers.0.mlp.scale": {"dtype": "F32", "shape": [], "data_offsets": [1152, 1156]},
    "model.layers.0.packed": {"dtype": "I32", "shape": [2, 3], "data_offsets": [1156, 1180]},
}
GGUF_TENSORS = [
    ("token_embd.weight", (64, 4), "f16"),
    ("blk.0.attn_q.weight", (64, 64), "q8_0"),
    ("blk.1.x", (32,), "f32"),
]
GGUFS = [
    gguf_header(model_metadata(arch, **keys) | {"tokenizer.ggml.tokens": ["a", "b", "c", "d"]}, tensors, version)
    for arch, version, tensors, keys in (
        ("llama", 3, GGUF_TENSORS, {"block_count": 2, "embedding_length": 64, "attention__head_count": 4}),
        (
            *("gemma3", 3, GGUF_TENSORS),
            {
                "block_count": 12,
                "embedding_length": 64,
                "context_length": 4096,
                "attention__head_count": 4,
                "attention__head_count_kv": 2,
                "attention__key_length": 16,
                "attention__value_length": 16,
                "attention__sliding_window": 512,
                "attention__layer_norm_rms_epsilon": 1e-6,
            },
        ),
        (
            *("deepseek2", 3, []),
            {
                "block_count": 4,
                "embedding_length": 64,
                "attention__head_count": 4,
                "attention__head_count_kv": 1,
                "attention__kv_lora_rank": 32,
                "rope__dimension_count": 8,
                "attention__key_length": 40,
                "attention__value_length": 32,
                "attention__key_length_mla": 24,
                "attention__value_length_mla": 16,
                "expert_count": 8,
                "expert_used_count": 2,
                "vocab_size": 100,
            },
        ),
        (
            *("jamba", 2, []),
            {
                "block_count": 4,
                "embedding_length": 64,
                "attention__head_count": 4,
                "attention__head_count_kv": [0, 2, 0, 2],
                "ssm__conv_kernel": 4,
                "ssm__inner_size": 128,
                "ssm__state_size": 16,
                "ssm__time_step_rank": 4,
                "ssm__group_count": 0,
            },
        ),
    )
]
VLLM_LOG = """\
INFO 06-01 09:20:12 [api_server.py:1288] vLLM API server version 0.26.0
INFO non-default args: {'model': 'google/gemma-3-27b-it', 'max_model_len': 131072, 'max_num_batched_tokens': 8192}
INFO Available KV cache memory: 40.0 GiB
INFO GPU KV cache size: 291,658 tokens
INFO Maximum concurrency for 131,072 tokens per request: 2.23x
"""
SGLANG_LOG = """\
server_args=ServerArgs(model_path='google/gemma-3-27b-it', kv_cache_dtype='auto', tp_size=1, page_size=1)
KV Cache is allocated. #tokens: 84562, K size: 20.00 GB, V size: 20.00 GB
max_total_num_tokens=84562, chunked_prefill_size=8192, context_len=131072, available_gpu_mem=6.56 GB
"""
LOG_TEXTS = [
    ("gemma-3-27b", VLLM_LOG),
    ("gemma-3-27b", SGLANG_LOG),
    *((each["model"], "\n".join(each["log"]) + "\n") for each in LOGS.values() if each["model"] in PRESETS),
]
LAYOUTS = ["global", "5:1", "5:1/sw=1024", "sw=512", "1:1", "0:1", "7:1/sw=4k", "1:0/sw=1"]


def shown(random: Random, reference: str) -> list[str]:
    """A command that prices a model, in any engine."""
    words = ["show", reference, "-c", random.choice(CONTEXTS), "--engine", random.choice(list(REGISTRY))]
    words += ["-b", random.choice(("1", "3", "1000"))] if random.random() < 0.3 else []
    words += ["--explain"] if random.random() < 0.1 else []
    return [*words, "--format", random.choice(("json", "json", "csv", "table", "markdown"))]


def config_tree(random: Random) -> Input:
    tree = mutated_tree(random, random.choice(CONFIGS), CONFIGS)
    return Input(shown(random, "config.json"), {"config.json": json.dumps(tree).encode()})


def config_text(random: Random) -> Input:
    data = mutated_text(random, json.dumps(random.choice(CONFIGS))).encode("utf-8", "replace")
    return Input(
        shown(random, "config.json"), {"config.json": mutated_bytes(random, data) if random.random() < 0.3 else data}
    )


def preset(random: Random) -> Input:
    text = mutated_text(random, preset_text(random.choice(PRESETS)))
    return Input(shown(random, "model.toml"), {"model.toml": text.encode("utf-8", "replace")})


def budgets(random: Random) -> Input:
    words = [
        "check",
        "budgets.toml",
        "--format",
        random.choice(("table", "json", "csv", "markdown", "junit", "github")),
    ]
    return Input(words, {"budgets.toml": mutated_text(random, BUDGETS).encode("utf-8", "replace")})


def baseline(random: Random) -> Input:
    data = json.dumps(mutated_tree(random, _BASELINE, [_BASELINE])).encode()
    if random.random() < 0.3:
        data = mutated_bytes(random, data)
    words = ["check", "budgets.toml", "--baseline", "baseline.json", "--format", random.choice(("table", "json"))]
    return Input(words, {"budgets.toml": BUDGETS.encode(), "baseline.json": data})


def log(random: Random) -> Input:
    model, text = random.choice(LOG_TEXTS)
    data = mutated_text(random, text).encode("utf-8", "replace")
    if random.random() < 0.2:
        data = mutated_bytes(random, data)
    words = ["audit", "server.log", "--model", model, "--format", random.choice(("table", "json"))]
    return Input(words, {"server.log": data})


def safetensors(random: Random) -> Input:
    header = json.dumps(mutated_tree(random, SAFETENSORS, [SAFETENSORS])).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(1180)
    if random.random() < 0.5:
        header = json.dumps(SAFETENSORS).encode()
        whole = len(header).to_bytes(8, "little") + header
        data = mutated_bytes(random, whole) + bytes(1180)
    config = json.dumps(CONFIGS[random.randrange(len(CONFIGS))]).encode()
    return Input(shown(random, "model.safetensors"), {"config.json": config, "model.safetensors": data})


def gguf(random: Random) -> Input:
    header = mutated_bytes(random, random.choice(GGUFS))
    data = header if random.random() < 0.5 else header + bytes(-len(header) % 32 + 64 * 4 * 2 + 64 * 68 + 128)
    return Input(shown(random, "model.gguf"), {"model.gguf": data})


def reference(random: Random) -> Input:
    model = f"{random.choice([*PRESETS, 'hf:org/name', 'hf:org/name#main', 'folder/config.json', 'x.gguf'])}"
    text = mutated_text(random, f"{model}@{random.choice(LAYOUTS)}" if random.random() < 0.8 else model)
    return Input(shown(random, text))


def command_line(random: Random) -> Input:
    words = _mutated_words(random, list(random.choice(_COMMAND_LINES)))
    return Input([word.replace("\0", "") for word in words])  # no system passes a NUL on


_BASELINE: dict[str, Any] = {}
_COMMAND_LINES = [
    shlex.split(line)
    for line in (
        "show gemma-3-27b -c 128k --engine vllm -E max_num_batched_tokens=8192 --explain",
        "show llama-3.1-8b -c 32k -b 4 --kv-cache-dtype q8_0/q4_0 --engine llama.cpp -E n_ubatch=256 -E n_seq_max=4",
        "show deepseek-v3 -c 1M -tp 8 --weights-dtype fp8 --draft mtp --format json --units decimal",
        "show t5gemma-2b-2b -c 4k --encoder-tokens 2k --engine mlx-lm -E kv_bits=4 -E max_kv_size=1024",
        "compare gemma-2-2b@global gemma-2-2b@1:1/sw=4096 gemma-2-2b@5:1/sw=1024 -c 32k --format markdown",
        "compare gemma-3-27b --engine ideal,llama.cpp,vllm,sglang -c 32k -E vllm.block_size=32 -E sglang.page_size=64",
        "compare llama-3.1-8b jamba-v0.1 --kv-cache-dtype bf16,fp8 -c 128k --format csv",
        "sweep gemma-2-2b@global gemma-2-2b@5:1/sw=1024 -c 1k,4k,32k --growth --explain",
        "sweep gemma-3-27b --engine tensorrt-llm,transformers -c 8k,32k -E transformers.cache=static --units bytes",
        "fit gemma-3-27b --device h100-80gb --engine vllm -c 128k -b 2 --gpu-memory-utilization 0.9",
        "fit llama-3.1-8b --memory 24GiB --reserve 2GiB -c 32k -b 4 --engine sglang -E chunked_prefill_size=4096",
        "fit gemma-3-27b --devices 8xh100-80gb --engine vllm -c 32k --sequences 50 --format json",
        "fit qwen3-next-80b-a3b --kv-memory 40GiB --engine ollama -E num_parallel=4",
        "search gemma-2-2b --ratios 1:1,5:1 --windows 512,1024 -c 32k,128k --memory 8GiB --pareto --top 5",
        "search gemma-3-27b --kv-cache-dtype bf16,fp8 --weights-dtype bf16,int4 -c 8k,64k --memory 24GiB --format json",
        "search gemma-2-2b --ratios 5:1,global --windows 256,4k -c 32k --all --format csv",
        "check budgets.toml --baseline baseline.json --units bytes --exit-zero",
        "check budgets.toml --format junit",
        "audit server.log --engine vllm -c 128k -b 2 -E block_size=16",
        "audit - --model gemma-3-12b -E n_ubatch=1024 --kv-cache-dtype f16 -tp 2",
        "show config.json -c 8k",
        "show model.gguf -c 8k --engine ollama",
        "show . -c 8k --weights-dtype int4",
        "paper --explain",
        "models --search gemma --family gemma --kind sliding",
        "models gemma-3-27b --format spec",
        "devices h100-80gb --format json",
        "schema show",
        "gemma3:27b",
        "compare llama-3.1-8b --weights-dtype Q4_K_M,awq,int4 -c 8k --batch 1,8",
        "engines vllm",
        "engines --format json",
        "show --help",
    )
]
_VOCABULARY = sorted(
    {word for line in _COMMAND_LINES for word in line}
    | {*COMMANDS, *REGISTRY, *PRESETS[::8], *CONTEXTS, *LAYOUTS, *list(DTYPES)[::3]}
    | {
        f"{option.name}={value}"
        for name in REGISTRY
        for option in engine_class(name).option_help()
        for value in ("1", "-1")
    }
)


def _mutated_words(random: Random, words: list[str]) -> list[str]:
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(words)) if words else 0
        match random.randrange(6):
            case 0 if words:
                del words[at]
            case 1:
                words.insert(at, random.choice(_VOCABULARY))
            case 2 if words:
                words[at] = random.choice(_VOCABULARY)
            case 3 if words:
                other = random.randrange(len(words))
                words[at], words[other] = words[other], words[at]
            case _ if words:
                words[at] = mutated_text(random, words[at])
    return words


#: Each target with its share of the inputs, in percent.
TARGETS: dict[str, tuple[Target, int]] = {
    "configs": (config_tree, 22),
    "config text": (config_text, 8),
    "presets": (preset, 14),
    "budgets": (budgets, 8),
    "baselines": (baseline, 4),
    "logs": (log, 10),
    "safetensors": (safetensors, 8),
    "gguf": (gguf, 10),
    "references": (reference, 6),
    "command lines": (command_line, 10),
}

# ---- running ----


class Hang(BaseException):
    """An input that does not end; no handler of ours may take it for an error."""


@dataclass
class Tally:
    """What became of a target's inputs; a failure is named by what went wrong and keeps its first input."""

    inputs: int = 0
    answers: int = 0
    refusals: int = 0
    slowest: float = 0.0
    memory_bytes: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.inputs += other.inputs
        self.answers += other.answers
        self.refusals += other.refusals
        self.slowest = max(self.slowest, other.slowest)
        self.memory_bytes = max(self.memory_bytes, other.memory_bytes)
        self.failures += other.failures
        self.first = other.first | self.first


def _fail_hanging(*_: object) -> None:
    raise Hang


def _made(seed: int, target: str, number: int) -> Input:
    return TARGETS[target][0](Random(f"{seed}/{target}/{number}"))


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _put_files(files: dict[str, bytes]) -> None:
    """The folder as an input finds it: its own files and no trace of another's."""
    for entry in os.scandir():
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry)
    for name, data in files.items():
        with open(name, "wb") as file:
            file.write(data)


_AROUND = {
    "config.json": json.dumps(CONFIGS[0]).encode(),
    "model.gguf": GGUFS[1],
    "budgets.toml": BUDGETS.encode(),
    "server.log": VLLM_LOG.encode(),
}


def _ended(given: Input) -> tuple[int, str, str]:
    """Run an input: its exit code, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(b""))
    signal.alarm(HANGS_AFTER)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            return run(given.words), out.getvalue(), err.getvalue()
    finally:
        signal.alarm(0)


#: How `check` says, in each of its formats, that it judged the other budgets and could not judge this one.
_NOT_JUDGED = re.compile(r'not judged|"verdict": "error"|,error,')


def _mistake(given: Input, code: int, out: str, err: str) -> str | None:
    """What an outcome does that none may, or None."""
    if "Traceback" in out + err or "internal error" in err:
        return "a traceback or an internal error is shown"
    if any(not (letter.isprintable() or letter == "\n") for letter in err):
        return "a control character reaches standard error"
    if "\x1b" in out:
        return "an escape sequence reaches standard output"
    lines = err.splitlines()
    if code == 2:
        if out and not (given.words[:1] == ["check"] and _NOT_JUDGED.search(out)):
            return "a refusal writes to standard output"
        if not any(line.startswith("error: ") for line in lines):
            return "a refusal without an error"
    if any(not line.startswith(("error: ", "hint: ", "warning: ", "  --> ", "reading", "wrote ")) for line in lines):
        return "a line of no known shape on standard error"
    if code == 1 and not (given.words and given.words[0] in MAY_SAY_NO):
        return "exit code 1 of a command that cannot say no"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if code < 2 and out.startswith("{"):
        try:
            json.loads(out, parse_constant=_no_constant)
        except ValueError:
            return "JSON that is none"
    return None


def _no_constant(word: str) -> Any:
    raise ValueError(word)


def _judge(given: Input, tally: Tally) -> str | None:
    """Run one input and count it; the name of its failure, or None."""
    _put_files(given.files or _AROUND)
    before, started = _peak_bytes(), time.process_time()
    try:
        code, out, err = _ended(given)
    except Hang:
        return f"no end after {HANGS_AFTER} seconds"
    except BaseException as error:  # what the program lets through is what is looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} in {last.name}"
    finally:
        seconds, grown = time.process_time() - started, _peak_bytes() - before
        tally.inputs += 1
        tally.slowest = max(tally.slowest, seconds)
        tally.memory_bytes = max(tally.memory_bytes, grown)
    if code == 2:
        tally.refusals += 1
    else:
        tally.answers += 1
    mistake = _mistake(given, code, out, err)
    if mistake is None and seconds > CPU_SECONDS:
        mistake = "more than one CPU second"
    if mistake is None and grown > MEMORY_BYTES:
        mistake = "more than 200 MB"
    return mistake


def _start_worker(folder: str) -> None:
    """A folder of its own, every command loaded, and a bound on memory so that a mistake ends itself alone."""
    home = Path(tempfile.mkdtemp(dir=folder))
    os.chdir(home)
    signal.signal(signal.SIGALRM, _fail_hanging)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for words in _COMMAND_LINES:
        _put_files(_AROUND)
        _ended(Input(words))
    if sys.platform == "linux":
        limit = _peak_bytes() + 4 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    gc.collect()
    gc.freeze()


def _work(job: tuple[int, str, range]) -> tuple[str, Tally]:
    seed, target, numbers = job
    tally = Tally()
    for number in numbers:
        failure = _judge(_made(seed, target, number), tally)
        if failure is not None:
            tally.failures[failure] += 1
            tally.first.setdefault(failure, f"{target}:{number}")
    return target, tally


def _make_baseline() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "budgets.toml").write_text(BUDGETS)
        saved = path / "baseline.json"
        code, _, err = _ended(Input(["check", str(path / "budgets.toml"), "--save-baseline", str(saved)]))
        assert code < 2, err
        _BASELINE.update(json.loads(saved.read_text()))
        _AROUND["baseline.json"] = saved.read_bytes()


def campaign(seed: int, count: int, workers: int, targets: list[str]) -> dict[str, Tally]:
    """Run the inputs, spread over processes; the tally of each target."""
    whole = sum(TARGETS[name][1] for name in targets)
    jobs = []
    for name in targets:
        share = -(-count * TARGETS[name][1] // whole)
        jobs += [(seed, name, range(at, min(at + _CHUNK, share))) for at in range(0, share, _CHUNK)]
    tallies = {name: Tally() for name in targets}
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        with context.Pool(workers, _start_worker, (folder,)) as pool:
            for done, (name, tally) in enumerate(pool.imap(_work, jobs), 1):
                tallies[name].add(tally)
                if sys.stderr.isatty():
                    sys.stderr.write(f"\r{done} of {len(jobs)} parts")
    return tallies


def replay(seed: int, place: str) -> int:
    """Show one input, and how it ends."""
    target, _, number = place.rpartition(":")
    given = _made(seed, target, int(number))
    print("kvcalc", shlex.join(given.words))
    for name, data in given.files.items():
        print(f"{name} ({len(data):,} bytes): {data[:3000]!r}")
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        _start_worker(folder)
        failure = _judge(given, tally)
        _put_files(given.files or _AROUND)
        print(f"{tally.slowest:.3f} CPU seconds, {failure or 'as it should be'}")
        code, out, err = _ended(given)  # a failure shows itself here
        print(f"exit code {code}\n{out[:3000]}{err[:3000]}")
        os.chdir("/")
    return failure is not None


def main() -> int:
    """Run the campaign that the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--replay", metavar="TARGET:NUMBER")
    asked = parser.parse_args()
    _make_baseline()
    if asked.replay:
        return replay(asked.seed, asked.replay)
    began = time.monotonic()
    tallies = campaign(asked.seed, asked.count, asked.workers, [asked.target] if asked.target else list(TARGETS))
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    versions = ", ".join(f"{name} {version(name)}" for name in ("typer", "pydantic", "rich"))
    print(f"seed {asked.seed}, {total.inputs:,} inputs, {time.monotonic() - began:.0f} s, {asked.workers} workers")
    print(f"kvcalc {__version__}, Python {platform.python_version()}, {versions}\n")
    print(f"{'target':16}{'inputs':>9}{'answers':>9}{'refusals':>10}{'slowest':>10}{'memory':>10}{'failures':>10}")
    for name, tally in [*tallies.items(), ("all", total)]:
        speed, memory = f"{tally.slowest:.3f} s", f"{tally.memory_bytes / 1e6:.0f} MB"
        print(
            f"{name:16}{tally.inputs:9,}{tally.answers:9,}{tally.refusals:10,}"
            f"{speed:>10}{memory:>10}{tally.failures.total():10,}"
        )
    for failure, times in total.failures.most_common():
        print(f"\n{times:,} x {failure}\n    --seed {asked.seed} --replay {shlex.quote(total.first[failure])}")
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main())
