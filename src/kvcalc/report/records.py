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
    return {**footprint.to_dict(), "reference": reference}
