"""transformers: its options and what each layer kind keeps (engine), and what a cache holds after a forward (plan)."""

from kvcalc.engines.transformers.engine import Transformers
from kvcalc.engines.transformers.plan import TransformersPlan

__all__ = ["Transformers", "TransformersPlan"]
