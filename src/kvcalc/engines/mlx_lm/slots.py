"""Slots of MLX's buffers over a generation: full ones that grow by 256, rotating and chunked ones that shrink.

Source: mlx-lm 0.32.2 mlx_lm/models/cache.py (:345-360 KVCache, :462-520 rotating, ChunkedKVCache).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from kvcalc.units import round_up

#: Slots by which a buffer grows.
STEP = 256


class Moment(NamedTuple):
    """A point in a generation: full prefill chunks, tokens of a shorter one after them, tokens fed one by one."""

    chunks: int
    rest: int
    decoded: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Slots of a KVCache after equal prefill chunks: where the buffer grew, until the pattern repeats.

    A buffer that overflows at offset p is cut to p unless p is a multiple of 256, then grows by the chunk rounded up
    to 256. With chunks of 192: 256 slots, cut to 192 and 448, 384 and 640, 576 and 832; then, at 768 = 3 x 256, the
    832 are not cut and become 1088. So the slots depend on the history, and the history repeats.
    """

    chunk: int
    offsets: tuple[int, ...]
    slots: tuple[int, ...]
    cycle_start: int
    cycle_tokens: int

    @classmethod
    def of(cls, chunk: int) -> Growth:
        """The pattern of one chunk size, found by walking from one growth to the next (at most a few hundred)."""
        offsets: list[int] = []
        slots: list[int] = []
        seen: dict[tuple[int, int], int] = {}
        offset = held = 0
        while True:
            held = grown(offset, held, chunk)
            state = (offset % STEP, held - offset)
            if state in seen:
                start = offsets[seen[state]]
                return cls(chunk, tuple(offsets), tuple(slots), start, offset - start)
            seen[state] = len(offsets)
            offsets.append(offset)
            slots.append(held)
            offset = held // chunk * chunk  # the first chunk that does not fit any more

    def after(self, chunks: int) -> int:
        """Slots after that many chunks.

        >>> [Growth.of(192).after(chunks) for chunks in range(7)]
        [0, 256, 448, 640, 832, 1088, 1216]
        """
        if not chunks:
            return 0
        offset = (chunks - 1) * self.chunk
        laps = (offset - self.cycle_start) // self.cycle_tokens if offset >= self.cycle_start else 0
        skipped = laps * self.cycle_tokens
        return self.slots[bisect_right(self.offsets, offset - skipped) - 1] + skipped


def grown(offset: int, slots: int, arriving: int) -> int:
    """Slots of a KVCache of ``slots`` after ``arriving`` more tokens on the ``offset`` cached ones."""
    if offset + arriving <= slots:
        return slots
    return (offset if offset % STEP else slots) + round_up(arriving, STEP)
