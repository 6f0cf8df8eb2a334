"""llama.cpp: cells padded to 256, a smaller cache for sliding layers, a float32 state per sequence.

``models`` knows what each model stores, ``plan`` how many cells there are, ``engine`` the options.
"""

from kvcalc.engines.llama_cpp.engine import LlamaCpp
from kvcalc.engines.llama_cpp.plan import LlamaCppPlan

__all__ = ["LlamaCpp", "LlamaCppPlan"]
