"""The lines of vLLM's log: v1/worker/gpu_worker.py, v1/core/kv_cache_utils.py and their older homes, from 0.6 to 0.33.

What they say is kept in a start as text; :mod:`kvcalc.logs.vllm` holds it against the rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from kvcalc.logs.base import COUNT, NUMBER, Figure, Line, LogReader, Marker, Start
from kvcalc.units import GiB

_AVAILABLE = re.compile(
    rf"(?:Available KV cache memory: |reserved for KV Cache is |kv_cache_size=|reserved (?=[\d.]+ ?GiB memory for KV))"
    rf"{NUMBER} ?Gi?B"
)
_POOL = re.compile(rf"KV cache size: {COUNT} tokens(?!, KV pool)")
_CONCURRENCY = re.compile(rf"Maximum concurrency for {COUNT} tokens per request: {NUMBER}x")
_SERVE = re.compile(rf"(?:To serve at least one request with the models?'s|The model's) max seq len \({COUNT}\)")
_NEEDED = re.compile(rf"(?:\({COUNT}\), )?\(?{NUMBER} Gi?B KV cache is needed")  # the length, where a line was broken
_LESS = re.compile(rf"available KV cache memory \({NUMBER} Gi?B\)")
_ESTIMATE = re.compile(rf"estimated maximum model length is {COUNT}")
_STORED = re.compile(rf"that can be stored in KV cache \({COUNT}\)")
_BLOCKS = re.compile(rf"num_gpu_blocks is: {COUNT}|# (?:GPU|CUDA|cuda) blocks: {COUNT}")
_PADDING_LAYERS = re.compile(r"Add (\d{1,4}) padding layers")
_OVERRIDE = re.compile(rf"with num_gpu_blocks_override={COUNT}")
_ATTENTION_BLOCK = re.compile(rf"Setting attention block size to {COUNT} tokens")
_PAGE_PADDING = re.compile(rf"Padding mamba page size by {NUMBER}%")
#: A release, or the build of a commit between two.
_RELEASE = r"(\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)((?:rc\d{1,3})?\.dev\d)?"
_VERSION = re.compile(rf"(?:vLLM API server version|LLM engine \(v|version):? ?v?{_RELEASE}")
_BATCHED = re.compile(rf"max_num_batched_tokens={COUNT}")
_STORED_FORMAT = re.compile(r"Using (\w{1,30}) data type to store kv cache|Using DeepSeek's (\w{1,30}) KV cache format")
_KERNEL_BLOCK = re.compile(r"kv cache block size to (\d{1,6}) for")
_ASYNC = re.compile(r"[Aa]sync(?:hronous)? scheduling (?:is|will be) (enabled|disabled)")
_LENGTH = re.compile(r"Using max model len (\d{1,10})")
_PARALLEL = re.compile(
    rf"(?:dcp_world_size|cp_world_size) {COUNT}(?: \(pcp_world_size {COUNT} \* dcp_world_size {COUNT})?"
)

_WEIGHTS = re.compile(rf"[Ll]oading (?:model weights )?took {NUMBER} Gi?B")
_PROFILE = re.compile(
    rf"model weights take {NUMBER} ?GiB; non_torch_memory takes {NUMBER} ?GiB; "
    rf"PyTorch activation peak memory takes {NUMBER} ?GiB"
)
_USAGE = re.compile(rf"{NUMBER} GiB for (weight|consumed memory|peak activation|non-torch memory|CUDAGraph memory)")
_IN_USE = re.compile(rf"Current kv cache memory in use is {NUMBER} GiB")
_USAGE_WORDS = {
    "weight": "weights",
    "consumed memory": "weights_and_non-torch",
    "peak activation": "activation",
    "non-torch memory": "non-torch",
    "CUDAGraph memory": "CUDA_graphs",
}
_GRAPHS = re.compile(rf"(?:Graph capturing finished in {NUMBER} secs?, took |CUDA graph pool memory: ){NUMBER} GiB")
_GRAPHS_ESTIMATED = re.compile(rf"Estimated CUDA graph memory: {NUMBER} GiB|{NUMBER} GiB \(estimated\)")
_OLD_PROFILE = re.compile(rf"peak_torch_memory={NUMBER} ?GiB.{{1,120}}?non_torch_memory={NUMBER} ?GiB")


def _states(name: str, pattern: re.Pattern[str], *, weak: bool = False) -> Callable[[LogReader, Line], None]:
    """A reader of lines that state one flag; ``weak``: where nothing else stated it."""

    def read(reader: LogReader, line: Line) -> None:
        if match := pattern.search(line.text):
            stated, value = reader.stated("vllm", line), next(filter(None, match.groups())).replace(",", "")
            stated[name] = stated.get(name, value) if weak else value

    return read


_TP_RANK = re.compile(r"TP(\d{1,4})")


def _rank(start: Start, line: Line) -> None:
    """The ranks of tensor parallelism that speak, where no line says how many there are."""
    if match := _TP_RANK.search(line.process):
        start.stated["ranks"] = str(max(int(start.stated.get("ranks", 0)), int(match[1]) + 1))


def _available(reader: LogReader, line: Line) -> None:
    match = _AVAILABLE.search(line.text)
    _terms(reader, line)
    if match is None:
        return
    start = reader.of("vllm", line)
    # A process says once what it has. Said again, or after a pool that had its own, it is another start's.
    printed = "pool_tokens" in start.figures or "concurrency" in start.figures
    if (printed and start.memory) or (line.process and line.process in start.memory):
        reader.open(line, keep_flags=True)
        start = reader.of("vllm", line)
    if line.process or "" not in start.memory or Decimal(match[1]) < Decimal(start.memory[""].printed):
        _left(start, line, match[1])


def _left(start: Start, line: Line, printed: str) -> None:
    """What is left for the cache: every worker says what it has, and the one with the least decides."""
    start.memory[line.process] = Figure("available", printed, "GiB", line.number)
    start.figures["available"] = min(start.memory.values(), key=lambda each: Decimal(each.printed))


#: Where vLLM's versions print the pool (kv_cache_utils.py), in two lines until 0.27 and then in one.
_VERSION_OF_LINE = {
    "tokens": {
        1087: "0.11.0",
        1229: "0.11.2",
        1286: "0.12.0",
        1305: "0.14.0",
        1307: "0.16.0",
        1314: "0.17.1",
        1316: "0.18.0",
        1319: "0.19.0",
        1708: "0.20.1",
        1711: "0.20.0",
        1733: "0.22.0",
        1744: "0.23.0",
        2146: "0.24.0",
        2177: "0.26.0",
        2235: "0.27.1",
    },
    "tokens and concurrency": {1870: "0.28.0", 2033: "0.29.0"},
}
_POOL_LINE = re.compile(r"\[kv_cache_utils\.py:(\d{3,5})\]")


def _dated(start: Start, line: Line, kind: str) -> None:
    """The version whose code prints the pool at this line, or the last one before it, for a log that states none."""
    if match := _POOL_LINE.search(line.text):
        known = _VERSION_OF_LINE[kind]
        start.stated["printed_at"] = match[1]
        start.stated["printed_by"] = known[max((at for at in known if at <= int(match[1])), default=min(known))]


def _pool(reader: LogReader, line: Line) -> None:
    pool, concurrency = _POOL.search(line.text), _CONCURRENCY.search(line.text)
    if pool:
        _tokens(reader, line, pool[1])
        _dated(reader.start, line, "tokens and concurrency" if concurrency else "tokens")
    if concurrency:
        start = reader.of("vllm", line)
        start.stated["max_model_len"] = concurrency[1].replace(",", "")
        known = start.figures.get("concurrency")
        if known is None or Decimal(concurrency[2]) < Decimal(known.printed):  # of several ranks, as the tokens
            start.put(line, "x", concurrency=concurrency[2])


#: Lines within which the ranks of one start print their pools, where each prints its own (0.8 to 0.10).
_NEAR = 32


def _tokens(reader: LogReader, line: Line, printed: str) -> None:
    start, tokens = reader.of("vllm", line), int(printed.replace(",", ""))
    known = start.figures.get("pool_tokens")
    if known is not None:
        alike = abs(tokens - int(known.printed)) * 100 <= tokens
        if line.number - known.line > _NEAR or not alike:
            reader.open(line, keep_flags=True)
            start = reader.of("vllm", line)
        elif tokens > int(known.printed):  # another rank's: the one with the least memory decides
            return
    start.put(line, "tokens", pool_tokens=printed)


def _refusal(reader: LogReader, line: Line) -> None:
    serve, needed = _SERVE.search(line.text), _NEEDED.search(line.text)
    less, estimate = _LESS.search(line.text), _ESTIMATE.search(line.text)
    stored = _STORED.search(line.text)
    if not (serve or needed or less or estimate or stored):
        return
    start = reader.of("vllm", line)
    length = (serve and serve[1]) or (needed and needed[1])
    if length:
        start.stated["max_model_len"] = length.replace(",", "")
    start.put(line, "GiB", needed=needed and needed[2], available=less and less[1])
    start.put(line, "tokens", estimated_max_model_len=estimate and estimate[1], pool_tokens=stored and stored[1])
    if start.stopped is None and (needed or stored):
        start.stopped = ("vLLM refused the context", line.number)


def _blocks(reader: LogReader, line: Line) -> None:
    match = _BLOCKS.search(line.text)
    if match:
        start = reader.of("vllm", line)
        start.put(line, "blocks", blocks=match[1] or match[2])
        start.stated["old_concurrency"] = str(match[1] is None)


def _padding(reader: LogReader, line: Line) -> None:
    match = _PADDING_LAYERS.search(line.text)
    if match:
        start = reader.of("vllm", line)
        known = start.figures.get("padding_layers")
        total = int(match[1]) + (int(known.printed) if known is not None else 0)  # 0.29 says it bucket by bucket
        start.put(line, "layers", padding_layers=str(total))


def _override(reader: LogReader, line: Line) -> None:
    match = _OVERRIDE.search(line.text)
    if match and "num_gpu_blocks=0 with" not in line.text:  # vLLM's own, for a cache to profile its graphs with
        reader.stated("vllm", line)["num_gpu_blocks_override"] = match[1].replace(",", "")


def _attention_block(reader: LogReader, line: Line) -> None:
    block, padding = _ATTENTION_BLOCK.search(line.text), _PAGE_PADDING.search(line.text)
    if block:
        reader.of("vllm", line).put(line, "tokens", attention_block_size=block[1])
    if padding:
        reader.of("vllm", line).put(line, "%", page_padding=padding[1])


def _terms(reader: LogReader, line: Line) -> None:
    start, text = reader.start, line.text
    _rank(start, line)
    if match := _WEIGHTS.search(text):
        start.term(line, "GiB", weights=match[1])
    if match := _PROFILE.search(text):
        start.term(line, "GiB", **{"weights": match[1], "non-torch": match[2], "activation": match[3]})
    if match := _OLD_PROFILE.search(text):
        start.term(line, "GiB", **{"peak_of_weights_and_activation": match[1], "non-torch": match[2]})
    if (match := _IN_USE.search(text)) and line.process not in (own := reader.of("vllm", line)).memory:
        _left(own, line, match[1])
    for match in _USAGE.finditer(text):
        start.term(line, "GiB", **{_USAGE_WORDS[match[2]]: match[1]})
    if match := _GRAPHS.search(text):
        start.term(line, "GiB", CUDA_graphs=match[2])
    if match := _GRAPHS_ESTIMATED.search(text):
        start.term(line, "GiB", CUDA_graphs_as_estimated=match[1] or match[2])


def _context_parallel(reader: LogReader, line: Line) -> None:
    match = _PARALLEL.search(line.text)
    if match:
        stated = reader.stated("vllm", line)
        stated["decode_context_parallel_size"] = match[3] or match[1]
        if match[2]:
            stated["prefill_context_parallel_size"] = match[2]


def _version(reader: LogReader, line: Line) -> None:
    match = _VERSION.search(line.text)
    if match:
        stated = reader.stated("vllm", line)
        stated["version"], stated["build"] = match[1], match[2] or ""


_INSTALLED = re.compile(rf"(?:vLLM(?: Version)?(?: *:|:?\*\*:?) *`?v?|(?<![\w-])vllm(?:==|-))v?{_RELEASE}")


def _installed(reader: LogReader, line: Line) -> None:
    """The version among the packages that people paste before the log; what the engine itself says goes before it."""
    if (match := _INSTALLED.search(line.text)) and "version" not in reader.stated("vllm", line):
        stated = {"version": match[1], "build": match[2] or ""}
        reader.start.stated.update(stated)
        reader.standing.update(stated)


_HUB_PATH = re.compile(r"/models--([\w.-]{1,100}?)--([\w.-]{1,200})")


def _hub_path(reader: LogReader, line: Line) -> None:
    """The model by the folder that the Hub's files lie in, where nothing else names it."""
    if match := _HUB_PATH.search(line.text):
        reader.start.stated.setdefault("file", f"{match[1]}/{match[2]}")


_CPU_MEMORY = re.compile(r"for CPU backend is not set, using (\d{1,4}) by default")


def _cpu_memory(reader: LogReader, line: Line) -> None:
    """A CPU has no memory line: it has this much."""
    if match := _CPU_MEMORY.search(line.text):
        reader.stated("vllm", line).setdefault("kv_cache_memory_bytes", str(int(match[1]) * GiB))


def _server(reader: LogReader, line: Line) -> None:
    reader.banner("vllm", line, "server")
    _version(reader, line)


#: The banner of 0.18 and later: "[utils.py:299]  █ ... █  version 0.19.0", then the model in a line of its own.
_BANNER = re.compile(r"(?:^|\]|[█▀▄]) *version (\d{1,3}\.\d{1,3}\.\d)|[█▀▄] *model +(\S{1,300})")


def _logo(reader: LogReader, line: Line) -> None:
    match = _BANNER.search(line.text)
    if match and match[1]:
        _server(reader, line)
    elif match:
        reader.stated("vllm", line).setdefault("model", match[2])


# Only these names are looked for, so that a long line costs one pass whatever stands in it.
_FLAGS = re.compile(
    r"(?<![\w.])['\"]?(model|served_model_name|max_model_len|max_seq_len|max_num_batched_tokens|tensor_parallel_size"
    r"|pipeline_parallel_size|data_parallel_size|kv_cache_dtype|kv_cache_memory_bytes|dtype|block_size"
    r"|async_scheduling|disable_hybrid_kv_cache_manager|enable_prefix_caching|num_gpu_blocks_override"
    r"|num_speculative_tokens|num_spec_tokens|method|max_num_seqs|enforce_eager|gpu_memory_utilization|mamba_cache_dtype"
    r"|mamba_ssm_cache_dtype|decode_context_parallel_size|prefill_context_parallel_size|indexer_kv_dtype)"
    r"['\"]?[=:] ?['\"]?"
    r"([^'\",(){}\[\]\s]{1,300})"
)
#: The flags of its command line, and their names here.
FLAGS = {
    "--model": "model",
    "--max-model-len": "max_model_len",
    "--max-num-batched-tokens": "max_num_batched_tokens",
    "--max-num-seqs": "max_num_seqs",
    "--tensor-parallel-size": "tensor_parallel_size",
    "-tp": "tensor_parallel_size",
    "--pipeline-parallel-size": "pipeline_parallel_size",
    "-pp": "pipeline_parallel_size",
    "--decode-context-parallel-size": "decode_context_parallel_size",
    "-dcp": "decode_context_parallel_size",
    "--prefill-context-parallel-size": "prefill_context_parallel_size",
    "-pcp": "prefill_context_parallel_size",
    "--kv-cache-dtype": "kv_cache_dtype",
    "--kv-cache-memory-bytes": "kv_cache_memory_bytes",
    "--kv-cache-memory": "kv_cache_memory_bytes",
    "--dtype": "dtype",
    "--enforce-eager": "enforce_eager",
    "--block-size": "block_size",
    "--num-gpu-blocks-override": "num_gpu_blocks_override",
    "--disable-hybrid-kv-cache-manager": "disable_hybrid_kv_cache_manager",
    "--enable-prefix-caching": "enable_prefix_caching",
    "--no-enable-prefix-caching": "no_prefix_caching",
    "--async-scheduling": "async_scheduling",
    "--indexer-kv-dtype": "indexer_kv_dtype",
    "--mamba-cache-dtype": "mamba_cache_dtype",
    "--mamba-ssm-cache-dtype": "mamba_ssm_cache_dtype",
}
_SERVE_MODEL = re.compile(r"vllm serve +['\"]?([^-\s'\"][^\s'\"]{0,300})")
_DRAFTED = re.compile(r"(num_speculative_tokens|method)['\"]?[=: ] ?['\"]?(\d{1,3}|[a-z]\w{1,40})")
#: The image of a docker command, with the model that may stand behind it.
_IMAGE = re.compile(rf"vllm-openai(?::v?{_RELEASE})?")
_IMAGE_MODEL = re.compile(r"vllm-openai(?::[\w.-]{1,80})? +['\"]?([^-\s'\"\\][^\s'\"]{0,300})")


def _arguments(reader: LogReader, line: Line) -> None:
    reader.banner("vllm", line, "arguments")
    reader.flags(line, _FLAGS)


def _engine_line(reader: LogReader, line: Line) -> None:
    reader.banner("vllm", line, "engine")
    _version(reader, line)
    reader.flags(line, _FLAGS)


def _command(reader: LogReader, line: Line) -> None:
    reader.command("vllm", line, _SERVE_MODEL)
    _speculation(reader, line)


def _image(reader: LogReader, line: Line) -> None:
    """A docker command; the image alone says no more than its version."""
    match = _IMAGE.search(line.text)
    if " --" in line.text or _IMAGE_MODEL.search(line.text):
        reader.command("vllm", line, _IMAGE_MODEL)
        _speculation(reader, line)
    if match and match[1]:
        reader.stated("vllm", line).setdefault("version", match[1])


def _further(reader: LogReader, line: Line) -> None:
    """A further line of a command, with what it says of a draft."""
    reader.continued(line)
    _speculation(reader, line)


def _speculation(reader: LogReader, line: Line) -> None:
    for match in _DRAFTED.finditer(line.text):
        reader.stated("vllm", line).setdefault(match[1], match[2])


def _settled(reader: LogReader, line: Line) -> None:
    """What the engine decides by itself and says in a sentence."""
    text, stated = line.text, reader.stated("vllm", line)
    _rank(reader.start, line)
    if match := _KERNEL_BLOCK.search(text):
        stated["block_size"] = match[1]
    elif "ybrid KV cache manager is disabled" in text or "urning off hybrid kv cache manager" in text:
        stated["disable_hybrid_kv_cache_manager"] = "True"
    elif match := _ASYNC.search(text):
        stated["async_scheduling"] = str(match[1] == "enabled")


def _no_memory(reader: LogReader, line: Line) -> None:
    start = reader.of("vllm", line)
    start.stopped = start.stopped or ("no memory was left for the cache", line.number)


#: What a line must hold to be looked at, and who reads it.
MARKERS: tuple[Marker, ...] = (
    ("Available KV cache memory:", _available),
    ("reserved for KV Cache is", _available),
    ("GiB memory for KV", _available),
    ("kv_cache_size=", _available),
    ("KV cache size:", _pool),
    ("Maximum concurrency for", _pool),
    ("To serve at least one request", _refusal),
    ("KV cache is needed", _refusal),
    ("available KV cache memory (", _refusal),
    ("estimated maximum model length", _refusal),
    ("that can be stored in KV cache (", _refusal),
    ("num_gpu_blocks is:", _blocks),
    ("# GPU blocks:", _blocks),
    ("# CUDA blocks:", _blocks),
    ("# cuda blocks:", _blocks),
    ("padding layers, may waste", _padding),
    ("with num_gpu_blocks_override=", _override),
    ("Setting attention block size", _attention_block),
    ("Padding mamba page size by", _attention_block),
    ("cp_world_size ", _context_parallel),
    ("non-default args:", _arguments),
    ("args: Namespace(", _arguments),
    ("LLM engine (v", _engine_line),
    ("V1 LLM engine with config", _engine_line),
    ("vLLM API server version", _server),
    ("vLLM Version ", _installed),
    ("vLLM:", _installed),
    ("vllm==", _installed),
    ("vllm-0.", _installed),
    ("for CPU backend is not set, using", _cpu_memory),
    (" version 0.", _logo),
    ("version 0.", _logo),
    ("█  model ", _logo),
    ("data type to store kv cache", _states("kv_cache_dtype", _STORED_FORMAT)),
    ("KV cache format", _states("kv_cache_dtype", _STORED_FORMAT)),
    ("Using max model len", _states("max_model_len", _LENGTH, weak=True)),
    ("kv cache block size to ", _settled),
    ("ybrid KV cache manager is disabled", _settled),
    ("urning off hybrid kv cache manager", _settled),
    (" scheduling is ", _settled),
    (" scheduling will be ", _settled),
    ("Chunked prefill is enabled", _states("max_num_batched_tokens", _BATCHED)),
    ("oading took ", _terms),
    ("model weights took", _terms),
    ("model weights take", _terms),
    ("for peak activation", _terms),
    ("Graph capturing finished", _terms),
    ("CUDA graph pool memory:", _terms),
    ("Estimated CUDA graph memory:", _terms),
    ("No available memory for the cache blocks", _no_memory),
    ("vllm serve ", _command),
    ("vllm.entrypoints", _command),
    ("vllm-openai", _image),
    ("speculative", _further),
    ("/models--", _hub_path),
)
