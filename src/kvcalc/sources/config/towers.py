"""Parameters of the encoders of images that a checkpoint carries, by the type of its ``vision_config``.

D is the encoder's width, I its feed-forward width, T the width of the language model. Each count is that of the class
in transformers 5.24.0; what a file leaves out is the class's default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvcalc.errors import quote
from kvcalc.units import check_count

_MOST = 2**24


class _Table:
    """A ``vision_config`` with defaults: numbers and switches by their keys."""

    def __init__(self, stated: Mapping[str, Any], around: Mapping[str, Any], text_width: int) -> None:
        self.stated, self.around, self.text_width = stated, around, text_width

    def count(self, *keys: str, default: int, least: int = 0) -> int:
        """The first of the keys that the table states, or a default."""
        for key in keys:
            value = self.stated.get(key)
            if value is not None:
                return check_count(value, key, least=least, most=_MOST)
        return default

    def flag(self, key: str, default: bool) -> bool:
        value = self.stated.get(key)
        return value if isinstance(value, bool) else default

    def outer(self, key: str, default: Any) -> Any:
        """A value of the file around the table."""
        value = self.around.get(key)
        return default if value is None else value


def _block(D: int, I: int, *, biases: bool, gated: bool = False, norm: int = 2) -> int:  # noqa: N803, E741
    """A layer: attention 4 D D, feed-forward 2 or 3 D I, two norms of D (``norm`` numbers for each)."""
    ups = 2 if gated else 1
    matrices = 4 * D * D + (ups + 1) * D * I
    return matrices + (4 * D + ups * I + D if biases else 0) + 2 * norm * D


def _patches(t: _Table, width: int, *, bias: bool, patch: int, frames: int = 1) -> int:
    size = t.count("patch_size", default=patch)
    channels = t.count("num_channels", "in_channels", "in_chans", default=3)
    kernel = channels * frames * size * size
    return width * kernel + (width if bias else 0)


def _merger(width: int, out: int, merge: int, norm: int) -> int:
    """Patches of a square joined: a norm, D m m -> D m m -> out."""
    joined = width * merge * merge
    return norm + joined * joined + joined + joined * out + out


def _qwen3_vl(t: _Table) -> int:
    width, inner = t.count("hidden_size", default=1152), t.count("intermediate_size", default=4304)
    merge, out = t.count("spatial_merge_size", default=2), t.count("out_hidden_size", default=3584)
    depth, frames = t.count("depth", default=27), t.count("temporal_patch_size", default=2)
    size = _patches(t, width, bias=True, patch=16, frames=frames)
    size += t.count("num_position_embeddings", default=2304) * width + depth * _block(width, inner, biases=True)
    size += _merger(width, out, merge, 2 * width)
    deep = t.stated.get("deepstack_visual_indexes", [8, 16, 24])
    return size + (len(deep) if isinstance(deep, list) else 0) * _merger(width, out, merge, 2 * width * merge * merge)


def _qwen3_5(t: _Table) -> int:
    return _qwen3_vl(_Table({**t.stated, "deepstack_visual_indexes": []}, t.around, t.text_width))


def _qwen2_vl(t: _Table) -> int:
    width, ratio = t.count("embed_dim", default=1280), t.count("mlp_ratio", default=4)
    out, merge = t.count("hidden_size", default=3584), t.count("spatial_merge_size", default=2)
    size = _patches(t, width, bias=False, patch=14, frames=t.count("temporal_patch_size", default=2))
    size += t.count("depth", default=32) * (_block(width, ratio * width, biases=True, norm=2))
    return size + _merger(width, out, merge, 2 * width)


def _qwen2_5_vl(t: _Table) -> int:
    width, inner = t.count("hidden_size", default=3584), t.count("intermediate_size", default=3420)
    out, merge = t.count("out_hidden_size", default=3584), t.count("spatial_merge_size", default=2)
    size = _patches(t, width, bias=False, patch=14, frames=t.count("temporal_patch_size", default=2))
    size += t.count("depth", default=32) * _block(width, inner, biases=True, gated=True, norm=1)
    return size + _merger(width, out, merge, width)


def _siglip(t: _Table) -> int:
    """SigLIP without a projector: patches, positions, layers, a norm, and the pooling head where it has one."""
    width, inner = t.count("hidden_size", default=768), t.count("intermediate_size", default=3072)
    patches = (t.count("image_size", default=224) // max(1, t.count("patch_size", default=16))) ** 2
    size = _patches(t, width, bias=True, patch=16) + patches * width
    size += t.count("num_hidden_layers", default=12) * _block(width, inner, biases=True) + 2 * width
    if not t.flag("vision_use_head", True):
        return size
    # A probe, attention over the patches, a norm, a feed-forward block.
    return size + width + 4 * width * width + 4 * width + 2 * width + 2 * width * inner + inner + width


def _siglip2(t: _Table) -> int:
    """SigLIP 2 with patches as numbers and a table of positions, without its head (LFM2-VL)."""
    width, inner = t.count("hidden_size", default=768), t.count("intermediate_size", default=3072)
    size = _patches(t, width, bias=True, patch=16) + t.count("num_patches", default=256) * width
    size += t.count("num_hidden_layers", default=12) * _block(width, inner, biases=True) + 2 * width
    return size


def _gemma3(t: _Table) -> int:
    width = t.count("hidden_size", default=768)
    return _siglip(t) + width * t.text_width + width


def _paligemma(t: _Table) -> int:
    width = t.count("hidden_size", default=1152)
    return _siglip(t) + width * t.text_width + t.text_width


def _llava(t: _Table) -> int:
    """CLIP with its class token and norms before and behind; a projector of two layers."""
    width, inner = t.count("hidden_size", default=1024), t.count("intermediate_size", default=4096)
    patches = (t.count("image_size", default=336) // max(1, t.count("patch_size", default=14))) ** 2
    size = _patches(t, width, bias=False, patch=14) + width + (patches + 1) * width
    size += t.count("num_hidden_layers", default=24) * _block(width, inner, biases=True) + 4 * width
    return size + _two_layers(width, t.text_width, t.text_width)


def _two_layers(width: int, inner: int, out: int, bias: bool = True) -> int:
    return width * inner + inner * out + (inner + out if bias else 0)


def _pixtral(t: _Table) -> int:
    """Mistral's encoder: no biases, gated blocks."""
    width, inner = t.count("hidden_size", default=1024), t.count("intermediate_size", default=4096)
    size = _patches(t, width, bias=False, patch=16) + width
    return size + t.count("num_hidden_layers", default=24) * _block(width, inner, biases=False, gated=True, norm=1)


def _mistral3(t: _Table) -> int:
    width, merge = t.count("hidden_size", default=1024), int(t.outer("spatial_merge_size", 2))
    bias = t.outer("multimodal_projector_bias", False) is True
    return _pixtral(t) + width + width * width * merge * merge + _two_layers(width, t.text_width, t.text_width, bias)


def _pixtral_llava(t: _Table) -> int:
    width = t.count("hidden_size", default=1024)
    return _pixtral(t) + _two_layers(width, t.text_width, t.text_width)


def _llama4(t: _Table) -> int:
    width, inner = t.count("hidden_size", default=768), t.count("intermediate_size", default=5632)
    patches = (t.count("image_size", default=448) // max(1, t.count("patch_size", default=14))) ** 2 + 1
    size = _patches(t, width, bias=False, patch=14) + width + patches * width
    size += t.count("num_hidden_layers", default=34) * _block(width, inner, biases=True) + 4 * width
    into, out = t.count("projector_input_dim", default=4096), t.count("projector_output_dim", default=4096)
    return size + inner * into + out * out + t.count("vision_output_dim", default=7680) * t.text_width


def _mllama(t: _Table) -> int:
    width, inner = t.count("hidden_size", default=1280), t.count("intermediate_size", default=5120)
    tiles = t.count("max_num_tiles", default=4)
    ratios = t.stated.get("supported_aspect_ratios")
    ratio_rows = (len(ratios) if isinstance(ratios, list) else 8) + 1
    patches = (t.count("image_size", default=448) // max(1, t.count("patch_size", default=14))) ** 2 + 1
    block = _block(width, inner, biases=False) + inner + width
    size = _patches(t, width, bias=False, patch=14) + width + 4 * width
    size += patches * width + 1 + ratio_rows * tiles * patches * width + 2 * (ratio_rows * tiles * width + 1)
    size += t.count("num_hidden_layers", default=32) * block
    size += t.count("num_global_layers", default=8) * (block + 2)
    return size + t.count("vision_output_dim", default=7680) * t.text_width + t.text_width


def _internvl(t: _Table) -> int:
    width, inner = t.count("hidden_size", default=1024), t.count("intermediate_size", default=4096)
    image, patch = _pair(t.stated.get("image_size"), 448), _pair(t.stated.get("patch_size"), 14)
    patches = (image // max(1, patch)) ** 2 + 1
    qkv = 3 * width if t.flag("attention_bias", False) else 0
    norm = 1 if t.stated.get("norm_type") == "rms_norm" else 2
    block = 4 * width * width + qkv + width + 2 * width * inner + inner + width + 2 * norm * width + 2 * width
    block += 2 * width if t.flag("use_qk_norm", False) else 0
    size = width * 3 * patch * patch + width + width + patches * width
    size += t.count("num_hidden_layers", default=24) * block
    size += 0 if t.flag("use_mean_pooling", True) else 2 * width
    joined = width * int(1 / float(t.outer("downsample_ratio", 0.5))) ** 2
    return size + 2 * joined + _two_layers(joined, t.text_width, t.text_width)


def _pair(value: Any, default: int) -> int:
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return default if value is None else check_count(value, "size", least=1, most=_MOST)


def _glm4v(t: _Table) -> int:
    width, inner = t.count("hidden_size", default=1536), t.count("intermediate_size", default=13696)
    out, merge = t.count("out_hidden_size", default=4096), t.count("spatial_merge_size", default=2)
    patches = (t.count("image_size", default=336) // max(1, t.count("patch_size", default=14))) ** 2
    biases = t.flag("attention_bias", False)
    block = 4 * width * width + (4 * width if biases else 0) + 3 * width * out + 2 * width
    size = _patches(t, width, bias=True, patch=14, frames=t.count("temporal_patch_size", default=2))
    size += patches * width + t.count("depth", default=24) * block + 2 * width
    size += out * width * merge * merge + out  # the convolution that joins patches
    return size + out * out + 2 * out + 3 * out * inner


def _kimi(t: _Table) -> int:
    """MoonViT: a table of positions of a square, biases everywhere; a projector over 2 x 2 patches."""
    width, inner = (
        t.count("vt_hidden_size", "hidden_size", default=1152),
        t.count("vt_intermediate_size", "intermediate_size", default=4304),
    )
    rows = t.count("init_pos_emb_height", "pos_emb_height", default=64)
    columns = t.count("init_pos_emb_width", "pos_emb_width", default=64)
    merge = t.stated.get("merge_kernel_size", [2, 2])
    joined = width * (merge[0] * merge[1] if isinstance(merge, list) and len(merge) == 2 else 4)
    size = _patches(t, width, bias=True, patch=14) + rows * columns * width
    size += t.count("vt_num_hidden_layers", "num_hidden_layers", default=27) * _block(width, inner, biases=True)
    return size + 2 * width + 2 * width + joined * joined + joined + joined * t.text_width + t.text_width


def _kimi_k3(t: _Table) -> int:
    """Kimi K3's encoder: heads wider than it, no biases, a table of positions of a square; patches of 2 x 2 joined by
    two layers and a norm.
    """
    width, inner = t.count("vt_hidden_size", default=1024), t.count("vt_intermediate_size", default=4096)
    heads, out = t.count("qkv_hidden_size", default=1536), t.count("text_hidden_size", default=t.text_width)
    merge = t.stated.get("merge_kernel_size", [2, 2])
    joined = width * (merge[0] * merge[1] if isinstance(merge, list) and len(merge) == 2 else 4)
    size = _patches(t, width, bias=False, patch=14) + width
    size += t.count("init_pos_emb_height", default=64) * t.count("init_pos_emb_width", default=64) * width
    size += t.count("vt_num_hidden_layers", default=27) * (4 * width * heads + 2 * width * inner + 2 * width)
    return size + joined * joined + joined * out + out


def _idefics3(t: _Table) -> int:
    width, inner = t.count("hidden_size", default=1152), t.count("intermediate_size", default=3072)
    patches = (t.count("image_size", default=224) // max(1, t.count("patch_size", default=32))) ** 2
    size = _patches(t, width, bias=True, patch=32) + patches * width
    size += t.count("num_hidden_layers", default=12) * _block(width, inner, biases=True) + 2 * width
    return size + width * int(t.outer("scale_factor", 2)) ** 2 * t.text_width


def _qwen_vl(t: _Table) -> int:
    """Qwen-VL's encoder (its own code): a class-free ViT, norms before and behind, and a resampler of 256 queries."""
    width, out = t.count("width", default=1664), t.count("output_dim", default=4096)
    ratio = t.stated.get("mlp_ratio", 4.9231)
    inner = int(width * float(ratio)) if isinstance(ratio, int | float) else 4 * width
    patches = (t.count("image_size", default=448) // max(1, t.count("patch_size", default=14))) ** 2
    # Learned positions are kept for 16 x 16 of its 32 x 32 patches.
    size = _patches(t, width, bias=False, patch=14) + min(patches, 256) * width + 2 * width
    size += t.count("layers", default=48) * _block(width, inner, biases=True)
    queries = t.count("n_queries", default=256)
    # Queries and their fixed positions, a matrix from the encoder's width, attention, norms of queries and keys.
    resampler = 2 * queries * out + width * out + 4 * out * out + 4 * out + 4 * out
    return size + resampler + 2 * out + out * out


_TOWERS: dict[str, Callable[[_Table], int]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl,
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": _qwen3_5,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "llava": _llava,
    "mistral3": _mistral3,
    "llama4": _llama4,
    "mllama": _mllama,
    "internvl": _internvl,
    "glm4v": _glm4v,
    "glm4v_moe": _glm4v,
    "kimi_k25": _kimi,
    "kimi_k3": _kimi_k3,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "qwen": _qwen_vl,
}


def vision_parameters(config: Mapping[str, Any], text_width: int) -> tuple[int | None, str | None]:
    """Parameters of the encoder of images and its projector, and why they are not known where a file has one.

    >>> vision_parameters({"model_type": "gemma3", "vision_config": {"vision_use_head": False}}, 2304)
    (87567360, None)
    """
    stated = config.get("vision_config") or config.get("visual")
    if not isinstance(stated, Mapping) or not stated:
        return None, None
    model_type = config.get("model_type")
    kind = model_type if isinstance(model_type, str) else ""
    if kind in ("llava", "llava_next") and stated.get("model_type") == "pixtral":
        return _pixtral_llava(_Table(stated, config, text_width)), None
    counter = _TOWERS.get(kind)
    if counter is None:
        return None, f"not modelled: the image encoder of {quote(kind)}; its weights are not counted"
    return counter(_Table(stated, config, text_width)), None
