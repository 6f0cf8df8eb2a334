"""The layers of a GGUF, in llama.cpp: the bytes that llama.cpp itself printed for files with this metadata.

Recorded with llama.cpp 0c1e57098 (ggml 0.25.3) on metadata-only files: one sequence of 8192 tokens, f16, n_ubatch 512;
full layers, sliding layers and recurrent state.
"""

import pytest

from kvcalc.footprints import kv_cache_bytes
from kvcalc.sources.gguf import GGUFHeader
from kvcalc.sources.gguf_model import architecture_of


def gguf(arch, block_count, embedding_length, heads, kv_heads, head_dim, **keys):
    stated = {
        "block_count": block_count,
        "embedding_length": embedding_length,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }
    stated |= {key.replace("__", "."): value for key, value in keys.items()}
    named = {f"{arch}.{key}": value for key, value in stated.items()}
    return {"general.architecture": arch} | named


MLA = {"attention__value_length": 512, "attention__kv_lora_rank": 512, "rope__dimension_count": 64}
MLA |= {"attention__key_length_mla": 192, "attention__value_length_mla": 128}
STATE = {"ssm__conv_kernel": 4, "ssm__time_step_rank": 32}
NEXT = STATE | {"ssm__inner_size": 4096, "ssm__state_size": 128, "ssm__group_count": 16}
FALCON = STATE | {"ssm__inner_size": 3072, "ssm__state_size": 256, "ssm__group_count": 1}


@pytest.mark.parametrize(
    ("metadata", "full_bytes", "sliding_bytes", "state_bytes"),
    [
        (gguf("gemma3", 26, 1152, 4, 1, 256, attention__sliding_window=512), 33554432, 23068672, 0),
        (gguf("gemma3", 34, 2560, 8, 4, 256, attention__sliding_window=1024), 167772160, 182452224, 0),
        (gguf("llama", 32, 4096, 32, 8, 128, attention__sliding_window=4096), 1073741824, 0, 0),
        (gguf("phi3", 32, 3072, 32, 32, 96, attention__sliding_window=2047), 3221225472, 0, 0),
        (gguf("cohere2", 32, 4096, 32, 8, 128, attention__sliding_window=4096), 268435456, 452984832, 0),
        (gguf("exaone4", 30, 2048, 32, 8, 64, attention__sliding_window=4096), 503316480, 0, 0),
        (gguf("deepseek2", 27, 2048, 16, 1, 576, **MLA), 254803968, 0, 0),
        (gguf("qwen3next", 48, 2048, 16, 2, 256, **NEXT), 201326592, 0, 79036416),
        (gguf("falcon-h1", 44, 3072, 12, 2, 128, **FALCON), 369098752, 0, 140304384),
    ],
    ids=lambda value: value["general.architecture"] if isinstance(value, dict) else "",
)
def test_metadata_costs_what_llama_cpp_printed_for_it(metadata, full_bytes, sliding_bytes, state_bytes):
    model = architecture_of(GGUFHeader(metadata, ()), "recorded", "recorded")
    found = kv_cache_bytes(model, context=8192, engine="llama.cpp")
    assert found == full_bytes + sliding_bytes + state_bytes
