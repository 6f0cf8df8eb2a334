"""transformers: its options and what each layer kind keeps (engine), what a cache holds after a forward (plan), and
what of it stands on the device where the host keeps it (offloaded)."""

from kvcalc.engines.transformers.engine import Transformers
from kvcalc.engines.transformers.plan import TransformersPlan

__all__ = ["Transformers", "TransformersPlan"]
