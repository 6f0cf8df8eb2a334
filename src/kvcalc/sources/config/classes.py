"""What the model's class changes: no head, a head of labels, and the draft models that read their target.

``architectures`` names the class. The drafts are those of EAGLE-3 (SafeAILab/EAGLE, as vLLM 0.33's llama_eagle3 reads
it) and of DFlash (z-lab/dflash).
"""

from __future__ import annotations

import re
from typing import Any

from kvcalc.sources.config.family import family_of
from kvcalc.sources.config.parts import Fields
from kvcalc.sources.config.reader import Config

_LABELS = re.compile(r"For(Sequence|Token)Classification$|RewardModel$|For\w*Reward\w*$")
#: Those of these heads that have a bias; OpenAssistant calls its reward models without a For.
_BIASED = re.compile(r"(TokenClassification|(?<!For)RewardModel)$")
_BARE = re.compile(r"^([A-Z]\w*?)(Text)?Model$")


def by_class(config: Config, fields: Fields) -> None:
    """Change the head, the embedding and what a draft has besides, by the class that the file names."""
    name = _class_of(config)
    if any(word in name for word in ("Eagle3", "EAGLE3", "PEagle")):
        _eagle3(config, fields)
    elif any(word in name for word in ("DFlash", "DSpark", "Domino")):
        _dflash(config, fields, name)
    elif _LABELS.search(name):
        fields |= {
            "head_rows": _labels(config, name),
            "head_bias": bool(_BIASED.search(name)),
        }
        config.notes.append(f"{name} has a head of {fields['head_rows']} labels in place of the vocabulary's")
    elif _is_bare(config, name):
        fields |= {"head_rows": 0, "head_bias": False}
        config.notes.append(f"{name} has no head: an embedding model, or a part of a larger one")


def _class_of(config: Config) -> str:
    for table in (config.outer, config.table):
        names = table.get("architectures")
        if isinstance(names, list | tuple) and names and isinstance(names[0], str):
            return names[0][:100]
    return ""


def _labels(config: Config, name: str) -> int:
    for table in (config.table, config.outer):
        if isinstance(table.get("id2label"), dict):
            return len(table["id2label"])
    return config.count("num_labels", most=2**20) or (1 if "Reward" in name else 2)


def _is_bare(config: Config, name: str) -> bool:
    """Whether a class is the base model of transformers (``Qwen2Model``); remote code calls whole models so too."""
    found = _BARE.match(name)
    remote = any("auto_map" in table for table in (config.table, config.outer))
    if found is None or remote:
        return False
    stem = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", found[1]).lower()
    families = [family_of(each) for each in (stem, stem.replace("_", ""))]
    return any(each is not None and not each[1].remote for each in families)


def _eagle3(config: Config, fields: Fields) -> None:
    """An embedding that is the target's; three of its hidden states enter through ``fc``; the first layer's Q, K and V
    read the embedding and that state side by side, each behind a norm of its own.
    """
    hidden, attention = fields["hidden_size"], fields.get("attention")
    target = config.count("target_hidden_size") or hidden
    _add(fields, "fc", rows=hidden, columns=3 * target, linear=True)
    if attention:
        rows = (attention["num_heads"] + 2 * attention["num_kv_heads"]) * attention["head_dim"]
        _add(fields, "layers.0.self_attn.qkv_proj", part="attention", rows=rows, columns=hidden, linear=True)
    _add(fields, "layers.0.hidden_norm", part="norms", rows=hidden)
    fields |= {"embedding": False, "tie_embeddings": False, "head_rows": config.count("draft_vocab_size")}
    config.notes.append("an EAGLE-3 draft: it reads the embedding of its target")


def _dflash(config: Config, fields: Fields, name: str) -> None:
    """Embedding and head are the target's; ``fc`` joins the hidden states of as many taps as the file lists, or as
    there are layers; a norm behind it.

    DSpark has besides two tables [V, r] from one drafted token to the next, and the weights of its confidence with
    their bias (vllm 0.33.0 models/qwen3_dspark.py).
    """
    taps = config.value("dflash_config.target_layer_ids")
    count = len(taps) if isinstance(taps, list | tuple) and taps else fields["num_layers"]
    hidden = fields["hidden_size"]
    _add(fields, "fc", rows=hidden, columns=count * hidden, linear=True)
    _add(fields, "hidden_norm", part="norms", rows=hidden)
    rank = config.count("markov_rank", "dflash_config.markov_rank", least=0) or 0
    if rank:
        _add(fields, "markov_head", rows=fields["vocab_size"], columns=rank, count=2)
    if config.flag("enable_confidence_head", "dflash_config.enable_confidence_head"):
        joined = config.flag("confidence_head_with_markov", "dflash_config.confidence_head_with_markov")
        _add(fields, "confidence_head", rows=1, columns=hidden + (rank if joined else 0))
        _add(fields, "confidence_head.bias", rows=1)
    if "Domino" in name:
        config.notes.append("the draft's own projector is not counted: weights estimated")
    fields |= {"embedding": False, "tie_embeddings": False, "head_rows": 0}
    config.notes.append(f"a DFlash draft of {count} taps: it reads the embedding and the head of its target")


def _add(fields: Fields, role: str, **sizes: Any) -> None:
    fields["extra"] = (*fields.get("extra", ()), {"role": role} | sizes)
