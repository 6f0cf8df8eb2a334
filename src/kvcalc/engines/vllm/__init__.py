"""vLLM: what its versions do (versions), how it groups layers (groups), and what a block and a request cost (plan)."""

from kvcalc.engines.vllm.plan import Vllm, VllmPlan

__all__ = ["Vllm", "VllmPlan"]
