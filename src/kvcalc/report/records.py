"""The one shape in which programs read a footprint."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcalc.footprints import Footprint
    from kvcalc.report.shapes import FootprintRecord


def footprint_record(reference: str, footprint: Footprint) -> FootprintRecord:
    """One row of ``--format json``: every byte figure an integer, for one device.

    Args:
        reference: the model as typed.
    """
    architecture, cache, weights = footprint.architecture, footprint.kv_cache, footprint.weights
    setup = footprint.setup
    return {
        "reference": reference,
        "model": architecture.name,
        "layout": architecture.layout,
        "engine": {
            "name": footprint.engine.name,
            "version": footprint.engine.followed_version,
            "options": footprint.engine.given_options,
        },
        "workload": {
            "context": footprint.context,
            "batch_size": footprint.batch_size,
            "k_dtype": setup.k_dtype.name,
            "v_dtype": setup.v_dtype.name,
            "tensor_parallel_size": setup.tensor_parallel_size,
            "encoder_tokens": setup.encoder_tokens,
            "draft": setup.draft.name if setup.draft else None,
        },
        "weights": {
            "parameters": weights.parameters,
            "active_parameters": weights.active_parameters,
            "bytes": weights.bytes,
            "dtype": weights.dtype,
            "exact": weights.exact,
            "parts": weights.parts,
        },
        "kv_cache": {
            "bytes": cache.bytes,
            "steady_bytes": cache.steady_bytes,
            "ideal_bytes": cache.ideal_bytes,
            "layers": [
                {
                    "kind": row.kind,
                    "count": row.count,
                    "window": row.window,
                    "tokens": row.tokens,
                    "bytes": row.bytes,
                }
                for row in cache.layers
            ],
            "padding_bytes": cache.padding_bytes,
            "draft_bytes": cache.draft_bytes,
            "notes": list(cache.notes),
        },
        "total_bytes": footprint.total_bytes,
        "overhead": footprint.overhead,
        "devices": footprint.devices,
        "notes": list(footprint.notes),
    }
