"""SGLang: what it keeps of a layer (layers), its pools of tokens (pools) and of states (states), what a workload costs
in them (plan), and its options (engine)."""

from kvcalc.engines.sglang.engine import SGLang
from kvcalc.engines.sglang.plan import SGLangPlan

__all__ = ["SGLang", "SGLangPlan"]
