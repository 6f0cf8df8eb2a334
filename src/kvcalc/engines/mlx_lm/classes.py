"""What mlx-lm's class of each model type caches: its ``make_cache``, MLA, indexers, states.

Source: mlx-lm 0.32.2 mlx_lm/models/*.py, and MODEL_REMAPPING in mlx_lm/utils.py.
"""

from __future__ import annotations

#: Their class has no ``make_cache``: every layer gets a KVCache, whatever window the configuration declares, and
#: ``max_kv_size`` turns every layer into a rotating buffer.
WITHOUT_MAKE_CACHE = frozenset(
    """
    apertus bailing_moe bitnet cohere dbrx deepseek deepseek_v2 deepseek_v3 dots1 ernie4_5 ernie4_5_moe exaone gemma
    gemma2 glm glm4 glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neox gptj granite granitemoe helium hunyuan
    hunyuan_v1_dense internlm2 internlm3 kimi_k2 mimo minicpm minicpm3 minimax_m2 mistral4 mixtral nanochat nemotron
    olmo olmo2 olmoe openelm phi phi3 phi3small phimoe phixtral plamo qwen qwen2 qwen2_5_vl qwen2_moe qwen2_vl qwen3
    qwen3_moe qwen3_vl qwen3_vl_moe seed_oss smollm3 solar_open stablelm starcoder2 telechat3 youtu
    """.split()
)

#: Their class makes the caches of its layers.
WITH_MAKE_CACHE = frozenset(
    """
    Klear afm7 afmoe baichuan_m1 bailing_hybrid bailing_moe_linear bailing_moe_v3 cohere2 deepseek_v32 deepseek_v41
    deepseek_v41_text exaone4 exaone_moe falcon_h1 falcon_mamba gear gemma3 gemma3_text gemma3n gemma4 gemma4_text
    gemma4_unified glm_moe_dsa gpt_oss granitemoehybrid iquestcoder iquestloopcoder jamba joyai_llm_flash kimi_k25
    kimi_k3 kimi_linear kimi_vl laguna lfm2 lfm2-vl lfm2_moe lille-130m llama llama4 llama4_text llava longcat_flash
    longcat_flash_ngram mamba mamba2 mellum mimo_v2_flash minimax minimax_m3_vl ministral3 mistral mistral3
    muse_glimmer muse_spark nanbeige nemotron-nas nemotron_h olmo3 olmo_hybrid phi-msft pixtral plamo2 plamo3
    prism_hadamard_qwen35 qwen3_5 qwen3_5_moe qwen3_next recurrent_gemma rwkv7 spark2_5 step3p5 talkie xverse
    """.split()
)

#: What it runs; a design of one's own, which names no model type, has a cache as its layers usually have.
WITH_CLASS = WITHOUT_MAKE_CACHE | WITH_MAKE_CACHE | {"custom"}

#: MLA where the class caches every decompressed head.
DECOMPRESSED = frozenset({"deepseek_v2", "minicpm3", "youtu"})

#: MLA where the class caches the latent.
LATENT = frozenset(
    """
    bailing_hybrid deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa kimi_k2 kimi_k3 kimi_linear longcat_flash
    mistral4
    """.split()
)

#: Of these, some keep an indexer key in every layer, as K and as V (deepseek_v32.py:102).
WITH_INDEXER = frozenset({"deepseek_v32", "glm_moe_dsa"})

#: MiniMax M3 keeps its index keys once, as K beside a V of no width (minimax_m3_vl.py:265).
WITH_INDEX_KEYS = frozenset({"minimax_m3", "minimax_m3_vl"})

#: Their layers keep a CacheList, which has no to_quantized: kv_bits leaves it as it is.
CACHE_LISTS = WITH_INDEXER | WITH_INDEX_KEYS | {"baichuan_m1", "falcon_h1", "longcat_flash"}

#: Their attention computes with the cached keys itself, which the quantised ones do not allow: the line that fails.
NEVER_QUANTIZED = {"gemma2": 89, "olmo": 91, "phi3small": 131, "stablelm": 120}

#: Their recurrent state is float32: gated_delta.py allocates it so, and in ssm.py (Mamba-2) the step size is float32.
#: In every other class it has the model's format.
FLOAT32_STATE = frozenset(
    """
    bailing_hybrid falcon_h1 granitemoehybrid kimi_k3 kimi_linear mamba2 nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe
    qwen3_next
    """.split()
)

#: Their K and V are projected to one head, whatever the configuration says (recurrent_gemma.py:236).
ONE_KV_HEAD = frozenset({"recurrent_gemma"})

#: Their classes slide by ``layer_types`` alone, and a model whose layers all slide declares none.
SLIDES_BY_LAYER_TYPES = frozenset({"ministral3", "mistral"})
