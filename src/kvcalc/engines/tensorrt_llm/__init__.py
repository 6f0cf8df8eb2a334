"""TensorRT-LLM: ``models`` (what it runs, and what a layer keeps), and its two managers: ``shares`` and ``pools``."""

from kvcalc.engines.tensorrt_llm.engine import TensorRTLLM

__all__ = ["TensorRTLLM"]
