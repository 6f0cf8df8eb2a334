"""llama.cpp's choice of a storage type for each tensor of a file type (``Q4_K_M`` mixes Q4_K and Q6_K).

The rules are those of llama.cpp 007dbbf3 (``src/llama-quant.cpp``: tensor_get_category, tensor_allows_quantization,
llama_tensor_get_type_impl, tensor_type_fallback), with an importance matrix for the IQ types and without for others, as
files are published. A file holds its metadata besides (the tokenizer: 1 to 13 MB).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcalc.architecture import Full, Parallel, Sliding
from kvcalc.dtypes import GGML_BLOCKS
from kvcalc.quantization import PREDICTION, ROPE_FACTORS, Packer, Packing

if TYPE_CHECKING:
    from kvcalc.architecture import Architecture, LayerKind, Tensor

#: The base type of each file type, best quality first.
FILE_TYPES: dict[str, str] = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "Q8_0": "q8_0",
    "Q6_K": "q6_k",
    "Q5_K_M": "q5_k",
    "Q5_K_S": "q5_k",
    "Q5_1": "q5_1",
    "Q5_0": "q5_0",
    "Q4_K_M": "q4_k",
    "Q4_K_S": "q4_k",
    "IQ4_NL": "iq4_nl",
    "IQ4_XS": "iq4_xs",
    "Q4_1": "q4_1",
    "Q4_0": "q4_0",
    "MXFP4_MOE": "mxfp4",
    "Q3_K_L": "q3_k",
    "Q3_K_M": "q3_k",
    "IQ3_M": "iq3_s",
    "IQ3_S": "iq3_s",
    "Q3_K_S": "q3_k",
    "IQ3_XS": "iq3_s",
    "IQ3_XXS": "iq3_xxs",
    "Q2_K": "q2_k",
    "IQ2_M": "iq2_s",
    "Q2_K_S": "q2_k",
    "IQ2_S": "iq2_xs",
    "IQ2_XS": "iq2_xs",
    "IQ2_XXS": "iq2_xxs",
    "IQ1_M": "iq1_m",
    "IQ1_S": "iq1_s",
}

#: File types whose mix depends on an importance matrix, which their name does not tell.
_BY_IMATRIX = ("IQ4_NL", "IQ4_XS", "Q4_0", "Q5_0", "IQ3_XXS")
_TWO_BITS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M")

#: What a type becomes where a row is no whole number of its blocks.
_FALLBACK = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q2_k", "q3_k"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}

#: The category of a role, as the quantiser tells tensors apart by their names; others have none.
_CATEGORIES = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.qkv_proj": "qkv",
    "linear_attn.in_proj_qkv": "qkv",
    "self_attn.o_proj": "output",
    "embed_tokens": "embedding",
    "embed_tokens_per_layer": "embedding",
    "lm_head": "head",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_qkv": "qkv",
    "attn_kv_b": "kv_b",
    "attn_output": "output",
    "token_embd": "embedding",
    "per_layer_token_embd": "embedding",
    "output": "head",
}
_FEED_FORWARD = re.compile(r"(?:mlp\.(?:experts\.|shared_experts\.)?|ffn_)(gate|up|down)(?:_proj|_exps|_shexp)?")
#: Types whose Q, K and V are one tensor in a GGUF (llama.cpp counts it as a V).
_ONE_QKV = ("phi3", "phi4_multimodal", "falcon", "gpt_neox", "bloom", "mpt", "gpt2", "gpt_bigcode", "qwen", "dbrx")
_PARTS_OF_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
#: Roles that stay float32 although they are matrices; altup, laurel and the like stay as the model is.
_FLOAT32 = ("mlp.gate", "mlp.shared_expert_gate", "mamba.A_log", "ssm_a", "ffn_gate_inp", "ffn_gate_inp_shexp")
_AS_THE_MODEL = ("altup.", "laurel.", "per_layer_model_proj", "per_layer_model_projection", "embed_positions")


def more_bits(at: int, count: int) -> bool:
    """Whether the quantiser gives the tensor at that place more bits: the first and last eighth, every third between.

    >>> [at for at in range(16) if more_bits(at, 16)]
    [0, 1, 4, 7, 10, 13, 14, 15]
    """
    return at < count // 8 or at >= 7 * count // 8 or (at - count // 8) % 3 == 2


#: Model types whose prediction layers llama.cpp's converter keeps (``nextn.*``).
_KEEPS_PREDICTION = frozenset({"glm4_moe", "glm_moe_dsa", "qwen3_5", "qwen3_5_moe"})


def file_type(name: str, architecture: Architecture) -> FileType:
    """The file type of that name for one model.

    >>> import kvcalc
    >>> file_type("Q4_K_M", kvcalc.load("deepseek-v3")).estimated
    'the expansion of its latents is one tensor, two or both, by the version of llama.cpp'
    """
    why = ""
    if name in _BY_IMATRIX:
        why = "its mix depends on an importance matrix"
    elif architecture.has_latents:
        why = "the expansion of its latents is one tensor, two or both, by the version of llama.cpp"
    elif architecture.model_type == "deepseek_v4":
        why = "not proved: no file of its architecture was read"
    elif architecture.rope_factors is None:
        why = "whether a table of rope factors is in it follows from rope_scaling, which the file does not state"
    holds = {ROPE_FACTORS, *({PREDICTION} if architecture.model_type in _KEEPS_PREDICTION else ())}
    return FileType(name, frozenset(holds), why)


@dataclass(frozen=True)
class FileType:
    """A llama.cpp file type (``llama-quantize MODEL Q4_K_M``) as a weights format; see ``WeightsFormat``."""

    name: str
    holds: frozenset[str] = frozenset()
    estimated: str = ""
    buffers: bool = True
    method: str = "gguf"
    note: str = "llama.cpp's choice of tensor types, not unsloth's; the file's metadata (its tokenizer) is not in it"

    def packer(self, architecture: Architecture) -> Packer:
        """The packing of each tensor of a model."""
        mix = _Mix(self.name, architecture)

        def packings_of(tensor: Tensor, positions: Sequence[int | None]) -> list[tuple[Packing, int]]:
            types = Counter(mix.type_of(tensor, layer) for layer in positions)
            columns = tensor.columns if tensor.columns > 1 else tensor.rows
            return [(_packing(kind, columns), count) for kind, count in types.items()]

        return packings_of


def _packing(kind: str, columns: int) -> Packing:
    """A type, or what takes its place where rows of ``columns`` numbers are no whole blocks."""
    if columns % GGML_BLOCKS[kind][0]:
        kind = _FALLBACK.get(kind, "f16")
        if columns % GGML_BLOCKS[kind][0]:
            kind = "f16"
    return Packing(kind, groups=(GGML_BLOCKS[kind],))


class _Mix:
    """The choice for one file type and model."""

    def __init__(self, file_type: str, model: Architecture) -> None:
        self.file_type = file_type
        self.base = FILE_TYPES[file_type]
        self.layers = model.num_layers + len(model.mtp_layers)
        self.tied = not any(tensor.part == "head" and tensor.columns > 1 for tensor in model.tensors)
        self.falcon = model.model_type == "falcon"
        self.one_qkv = model.model_type in _ONE_QKV
        self.grouped = max((_queries_per_kv(layer.mixer, layer.cache) for layer in model.layers), default=1) >= 4
        counts = [
            tensor.count for layer in model.layers for tensor in layer.rest if tensor.role == "mlp.experts.up_proj"
        ]
        self.experts = max(counts, default=1)
        self.seventy = model.model_type == "llama" and model.num_layers == 80 and model.hidden_size == 8192
        #: The running index of each layer's V, which need not be in every layer.
        self.value_at: dict[int, int] = {}
        for at, index in enumerate(model.order):
            if any(self._category(tensor) in ("v", "qkv", "kv_b") for tensor in model.layers[index].mixer):
                self.value_at[at] = len(self.value_at)
        for at, layer in enumerate(model.mtp_layers, start=model.num_layers):
            if any(self._category(tensor) in ("v", "qkv", "kv_b") for tensor in layer.mixer):
                self.value_at[at] = len(self.value_at)

    def _category(self, tensor: Tensor) -> str:
        if self.one_qkv and tensor.role in _PARTS_OF_QKV:
            return "qkv"
        feed_forward = _FEED_FORWARD.fullmatch(tensor.role)
        return feed_forward[1] if feed_forward else _CATEGORIES.get(tensor.role, "")

    def type_of(self, tensor: Tensor, layer: int | None) -> str:
        """The type before a row's length is looked at."""
        if tensor.columns == 1 or tensor.role.endswith((".bias", "conv1d")) or tensor.role in _FLOAT32:
            return "f32"
        if tensor.buffer:  # a table of experts by token: whole numbers of as many bytes
            return "f32"
        if self.base in ("f32", "f16", "bf16"):
            return self.base
        if tensor.role.startswith(_AS_THE_MODEL):
            return "f32" if tensor.role == "embed_positions" else "f16"
        category = self._category(tensor)
        if category == "head" or (category == "embedding" and self.tied):
            return self._output(tensor)
        if self.file_type == "MXFP4_MOE":
            return "mxfp4" if tensor.role.startswith("mlp.experts.") or tensor.role.endswith("_exps") else "q8_0"
        if category == "embedding":
            return self._embedding()
        at = layer if layer is not None else 0
        if self.file_type in _TWO_BITS:
            return self._two_bits(category, at)
        match category:
            case "v" | "qkv" | "kv_b":
                return self._value(self.value_at.get(at, 0))
            case "k" if self.experts == 8:
                return "q8_0"
            case "q" | "k":
                return {"IQ3_XS": "iq3_xxs", "IQ3_XXS": "iq2_s"}.get(self.file_type, self.base)
            case "down":
                return self._down(at)
            case "output":
                return self._attention_output()
            case "gate" | "up" if self.file_type == "IQ3_XS" and self.layers // 8 <= at < 7 * self.layers // 8:
                return "iq3_xxs"
        return self.base

    def _output(self, tensor: Tensor) -> str:
        if self.file_type == "MXFP4_MOE" or self.falcon or tensor.columns % GGML_BLOCKS[self.base][0]:
            return "q8_0"
        if self.file_type in (*_TWO_BITS, "IQ3_XXS"):
            return "q5_k"
        return "q8_0" if self.base == "q8_0" else "q6_k"

    def _embedding(self) -> str:
        if self.file_type in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
            return "q2_k"
        return "iq3_s" if self.file_type in ("IQ2_S", "IQ2_M", "IQ3_XXS") else self.base

    def _two_bits(self, category: str, at: int) -> str:
        better = self.file_type in ("IQ2_S", "IQ2_M")
        match category:
            case "v" | "qkv" | "kv_b":
                return "q4_k" if self.grouped or self.experts >= 4 else "iq3_s" if better else "q2_k"
            case "k" if self.experts == 8:
                return "q4_k"
            case "down" if at < self.layers // 8:
                return "iq3_s" if better else "q2_k"
            case "output" if self.experts == 8:
                return "q5_k"
            case "output":
                return "iq2_xxs" if self.file_type in ("IQ1_S", "IQ1_M") else "iq3_s" if better else self.base
        return self.base

    def _value(self, at: int) -> str:
        chosen = self.base
        match self.file_type:
            case "Q2_K":
                chosen = "q4_k" if self.grouped else "q3_k"
            case "Q2_K_S" | "IQ3_XS" | "IQ3_S" if self.grouped:
                chosen = "q4_k"
            case "IQ3_XXS":
                chosen = "q4_k" if self.grouped else "iq3_xxs"
            case "IQ3_M":
                chosen = "q4_k"
            case "Q3_K_M":
                chosen = "q5_k" if at < 2 else "q4_k"
            case "Q3_K_L":
                chosen = "q5_k"
            case "IQ4_NL" | "IQ4_XS" if self.grouped:
                chosen = "q5_k"
            case "Q4_K_M" | "Q5_K_M" if more_bits(at, len(self.value_at)):
                chosen = "q6_k"
            case "Q4_K_S" if at < 4:
                chosen = "q5_k"
        if self.seventy and chosen in ("q3_k", "q4_k"):
            chosen = "q5_k"
        return "q8_0" if self.experts == 8 else chosen

    def _down(self, at: int) -> str:
        first_eighth, more = at < self.layers // 8, more_bits(at, self.layers)
        match self.file_type:
            case "Q2_K":
                return "q3_k"
            case "Q2_K_S" if first_eighth:
                return "q4_k"
            case "Q3_K_M":
                if at < self.layers // 16:
                    return "q5_k"
                return "q3_k" if self.falcon and not more else "q4_k"
            case "IQ3_M" if first_eighth or (self.experts == 8 and more):
                return "q4_k"
            case "Q3_K_L":
                return "q4_k" if self.falcon else "q5_k"
            case "Q4_K_M" if self.falcon:
                return "q6_k" if at < self.layers // 16 else "q5_k" if more else "q4_k"
            case "Q4_K_M" | "Q5_K_M" if more:
                return "q6_k"
            case "Q4_K_S" if first_eighth and not self.falcon:
                return "q5_k"
        return self.base

    def _attention_output(self) -> str:
        if self.falcon:
            return "q4_k" if self.file_type == "Q3_K_L" else self.base
        if self.experts == 8:
            plain = ("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M")
            return "q5_k" if self.file_type in (*plain, "IQ4_XS") else self.base
        better = {"Q2_K": "q3_k", "IQ3_XXS": "iq3_s", "Q3_K_M": "q4_k", "Q3_K_L": "q5_k", "IQ3_M": "q4_k"}
        return better.get(self.file_type, self.base)


def _queries_per_kv(mixer: tuple[Tensor, ...], kind: LayerKind) -> int:
    """Query heads for each KV head of a layer."""
    attention = kind.attention if isinstance(kind, Parallel) else kind
    if not isinstance(attention, Full | Sliding):
        return 1
    out = next((tensor for tensor in mixer if tensor.role == "self_attn.o_proj"), None)
    return out.columns // (attention.num_kv_heads * attention.v_head_dim) if out is not None else 1
