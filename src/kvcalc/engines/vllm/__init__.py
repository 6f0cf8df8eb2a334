"""vLLM: what its versions do (versions), what a layer's caches are to it (specs), how it groups them (groups), how many
blocks a group takes (blocks), what a request costs (plan), what it refuses (checks), its options (options), and what
holds them together (engine)."""

from kvcalc.engines.vllm.engine import Vllm
from kvcalc.engines.vllm.plan import VllmPlan

__all__ = ["Vllm", "VllmPlan"]
