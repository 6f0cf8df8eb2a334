"""MLX-LM: caches that grow by 256 slots, and rotating buffers that a prefill chunk stretches beyond their window.

``generate_step`` feeds the prompt but its last token in chunks, then that token and the generated ones one at a time.
A KVCache that overflows takes ceil(arriving / 256) x 256 more slots; a RotatingKVCache of window W holds
min(past, W - 1) + arriving slots after a chunk, and W again after the first single token. MLX counts the array, so the
padding is in the bytes.

Source: mlx-lm 0.32.2 mlx_lm/models/cache.py (:251-300 quantised, :345-360 KVCache, :462-520 rotating).

``classes`` knows what the class of a model type keeps, ``slots`` how buffers grow and shrink, ``plan`` the largest
moment, ``engine`` the options.
"""

from kvcalc.engines.mlx_lm.engine import MlxLm
from kvcalc.engines.mlx_lm.plan import MlxLmPlan

__all__ = ["MlxLm", "MlxLmPlan"]
