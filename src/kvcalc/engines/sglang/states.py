"""SGLang's slots of recurrent states, which take their part of the budget before the tokens do.

Source: sglang 0.5.23 ``mem_cache/kv_cache_configurator.py:3229``, ``mem_cache/memory_pool.py:505``.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvcalc.units import GiB, smallest_reaching

STATE_POOL = "sglang 0.5.23 mem_cache/kv_cache_configurator.py:3229, memory_pool.py:505"
#: Slots that a request may hold while the radix cache is on (kv_cache_configurator.py:227): its own, one that is being
#: written and one that the cache keeps; and those in which an extra buffer follows a prefill or a step.
SLOTS_PER_REQUEST = 3


@dataclass(frozen=True, slots=True)
class StatePool:
    """The slots of recurrent states, which take their part of the budget before the tokens do.

    Attributes:
        conv_bytes: bytes of one slot's convolution columns in all state layers on one device.
        ssm_bytes: bytes of one slot's recurrent part, likewise.
        slots_per_request: slots that one running request may hold: its own, and those that the radix cache keeps.
        ratio: bytes of states for each byte of tokens (``mamba_full_memory_ratio``).
        fixed_slots: the slots, where an option sets them.
        draft_tokens: states that a running request keeps while a draft's tokens are verified.
        most_running: requests that run at once, for those states.
        shared_bytes: bytes of the convolution columns that the windows of one request's drafted tokens share: they are
            paid for a window each, and allocated once (memory_pool.py:905).
    """

    conv_bytes: int
    ssm_bytes: int
    slots_per_request: int
    ratio: float
    fixed_slots: int | None = None
    draft_tokens: int = 0
    most_running: int = 0
    shared_bytes: int = 0

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return self.conv_bytes + self.ssm_bytes

    def slots(self, kv_memory: int) -> int:
        """Slots of a budget; one more is allocated as padding, and paid for first.

        Floats as in the engine, which counts its memory in GiB.
        """
        if self.fixed_slots is not None:
            return self.fixed_slots
        share = kv_memory / GiB * self.ratio / (1 + self.ratio) * GiB
        per_slot = self.slot_bytes * (1 + self.draft_tokens / self.slots_per_request)
        return int((share - self.slot_bytes * (1 + self.draft_tokens)) // per_slot)

    def _running(self, slots: int) -> int:
        """Requests that may run at once, of so many slots."""
        return min(self.most_running, slots // self.slots_per_request)

    def paid_bytes(self, slots: int) -> int:
        """What so many slots take of a budget: themselves, the padding one, and the states of drafted tokens."""
        return (slots + 1 + self.draft_tokens * (self._running(slots) + 1)) * self.slot_bytes

    def allocated_bytes(self, slots: int, tokens: int) -> int:
        """Bytes of so many slots and the padding one, and of the states of drafted tokens."""
        return (slots + 1) * self.slot_bytes + self.verified_bytes(slots, tokens)

    def verified_bytes(self, slots: int, tokens: int) -> int:
        """Bytes of the states that are kept while drafted tokens are verified; two tokens a request at least."""
        return sum(self.verified(slots, tokens))

    def verified(self, slots: int, tokens: int) -> tuple[int, int]:
        """The same by columns of convolutions and recurrent parts."""
        requests = min(self._running(slots), tokens // 2) + 1
        drafted = requests * self.draft_tokens
        return drafted * self.conv_bytes - requests * self.shared_bytes, drafted * self.ssm_bytes

    def left(self, kv_memory: int) -> int:
        """What the slots leave of a budget for tokens."""
        return kv_memory - self.paid_bytes(self.slots(kv_memory))

    def slots_for(self, batch_size: int, token_bytes: int) -> int:
        """The fewest slots from which on every larger budget has room for the requests and for the tokens.

        A budget grows by slots and by tokens in turn: each further slot takes its bytes from the tokens at once, so
        the tokens must still fit just after the next slot came.
        """
        if self.fixed_slots is not None:
            return self.fixed_slots
        needed = batch_size * self.slots_per_request
        guess = max(needed, int(token_bytes * self.ratio / self.slot_bytes) - 2)
        return max(needed, smallest_reaching(guess, lambda slots: self.left(self.start_of(slots + 1)) >= token_bytes))

    def start_of(self, slots: int) -> int:
        """The smallest budget that has so many slots."""
        slots_in_all = slots + 1 + self.draft_tokens * (slots // self.slots_per_request + 1)
        guess = int(slots_in_all * self.slot_bytes * (1 + self.ratio) / self.ratio)
        return smallest_reaching(guess, lambda budget: self.slots(budget) >= slots)

    def formulas(self, sequences: str) -> tuple[str, str]:
        """:meth:`slots_for` over ``each``, ``token_bytes`` and ``slot``; :meth:`slots` of ``required_bytes``."""
        if self.fixed_slots is not None:
            return str(self.fixed_slots), str(self.fixed_slots)
        start = self.start_formula("(count + 1)")
        left = f"(lambda budget: budget - {self.paid_formula(self._slots_formula('budget'))})({start})"
        guess = f"max({sequences} * each, int(token_bytes * {self.ratio!r} / slot) - 2)"
        least = f"max({sequences} * each, smallest_reaching({guess}, lambda count: {left} >= token_bytes))"
        return least, self._slots_formula("required_bytes")

    def start_formula(self, slots: str) -> str:
        """:meth:`start_of` over ``slot``."""
        drafted = f" + {self.draft_tokens} * ({slots} // each + 1)" if self.draft_tokens else ""
        guess = f"int(({slots} + 1{drafted}) * slot * (1 + {self.ratio!r}) / {self.ratio!r})"
        return f"smallest_reaching({guess}, lambda memory: {self._slots_formula('memory')} >= {slots})"

    def _slots_formula(self, memory: str) -> str:
        share = f"{memory} / {GiB} * {self.ratio!r} / (1 + {self.ratio!r}) * {GiB}"
        if not self.draft_tokens:
            return f"int(({share} - slot) // slot)"
        return f"int(({share} - slot * {1 + self.draft_tokens}) // (slot * (1 + {self.draft_tokens} / each)))"

    def paid_formula(self, slots: str) -> str:
        """:meth:`paid_bytes` over ``slot`` and ``each``."""
        drafted = f" + {self.draft_tokens} * (min({self.most_running}, {slots} // each) + 1)"
        return f"({slots} + 1{drafted if self.draft_tokens else ''}) * slot"

    def verified_formula(self) -> str:
        """:meth:`verified_bytes` over ``slots``, ``slot``, ``each`` and ``F``."""
        requests = f"min({self.most_running}, slots // each, F // 2) + 1"
        return f"({requests}) * ({self.draft_tokens} * slot - {self.shared_bytes})"

    def budget(self, batch_size: int, token_bytes: int) -> int:
        """The smallest budget from which on so many requests and bytes of tokens have room."""
        slots = self.slots_for(batch_size, token_bytes)
        with_tokens = token_bytes + self.paid_bytes(slots)
        return with_tokens if self.fixed_slots is not None else max(with_tokens, self.start_of(slots))
