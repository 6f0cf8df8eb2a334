"""The widths of a model that the memory of one step depends on: what its layers compute beside what they keep."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from kvcalc.architecture import Architecture, Full, Latent, LayerKind, Parallel, Sliding, Tensor


@dataclass(frozen=True)
class Widths:
    """The widest of each kind over all layers; 0 where the model has none, or where no file told the tensors.

    >>> from kvcalc.sources.resolve import load
    >>> of = Widths(load("llama-3.1-8b"))
    >>> of.hidden, of.intermediate, of.is_gated, of.vocab, of.query_heads
    (4096, 14336, True, 128256, 32)
    """

    architecture: Architecture

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.architecture.hidden_size

    @property
    def vocab(self) -> int:
        """Logits of one token."""
        return self.architecture.vocab_size

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for layer in self.architecture.layers for tensor in (*layer.mixer, *layer.rest))

    def _named(self, *endings: str) -> list[Tensor]:
        return [tensor for tensor in self._tensors if tensor.linear and tensor.role.endswith(endings)]

    @property
    def intermediate(self) -> int:
        """Width of the widest dense feed-forward (a shared expert is one), or 0 where all layers have routed ones."""
        return max(
            (
                each.columns
                for each in self._named(
                    "mlp.down_proj", "mlp.fc2", "shared_experts.down_proj", "shared_expert.down_proj"
                )
            ),
            default=0,
        )

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward has a gate beside its up projection."""
        return bool(self._named("gate_proj", "gate_up_proj"))

    @property
    def expert_intermediate(self) -> int:
        """Width of one routed expert, or 0."""
        return max((each.columns for each in self._named("mlp.experts.down_proj")), default=0)

    @property
    def experts_per_token(self) -> int:
        """Routed experts that one token reads, or 0."""
        return max((each.active or 0 for each in self._named("mlp.experts.down_proj")), default=0)

    @property
    def num_experts(self) -> int:
        """Routed experts of one layer, or 0."""
        return max((each.count for each in self._named("mlp.experts.down_proj")), default=0)

    @property
    def query_heads(self) -> int:
        """Query heads of the widest attention layer, or 0."""
        heads = [
            tensor.rows // _head_dim(layer.cache)
            for layer in self.architecture.layers
            for tensor in layer.mixer
            if tensor.role.endswith("self_attn.q_proj") and _head_dim(layer.cache)
        ]
        latent = [layer.cache.num_heads for layer in self.architecture.layers if isinstance(layer.cache, Latent)]
        return max((*heads, *latent), default=0)


def _head_dim(kind: LayerKind) -> int:
    inner = kind.attention if isinstance(kind, Parallel) else kind
    return inner.head_dim if isinstance(inner, Full | Sliding) else 0
