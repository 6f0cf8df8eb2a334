"""vLLM: what its versions do (versions), how it groups layers (groups), how many blocks a group takes (blocks), what a
request costs (plan), what it refuses (checks), and its options (engine)."""

from kvcalc.engines.vllm.engine import Vllm
from kvcalc.engines.vllm.plan import VllmPlan

__all__ = ["Vllm", "VllmPlan"]
