"""Random cases to an engine's own code and to kvcalc: the run, the smallest case that differs, and the table.

The scripts of tests/oracles have this here, because a file there may have the name of the package that it imports.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy


class Different(AssertionError):
    """Both answers to a case, where they differ."""


@dataclass
class Outcome:
    """How often each end was seen, the reasons of refusals by one side alone, and whether a case differs."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    different: bool = False


def say(*lines: object) -> None:
    """Write lines to the standard output at once."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def write_rows(path: Path, data: Mapping[str, Any]) -> None:
    """Write a file of tests/data: a line for each of its ``rows``, and one for all that stands around them."""
    rows = ",\n".join(map(json.dumps, data["rows"]))
    text = json.dumps({**data, "rows": []}).replace('"rows": []', f'"rows": [\n{rows}\n]')
    path.write_text(text + "\n", encoding="utf-8")


def shape_of(error: object) -> str:
    """A message without its numbers, so that refusals for one reason count as one."""
    text = f"{type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}"
    return "".join("N" if letter.isdigit() else letter for letter in text)[:110]


def add_options(arguments: argparse.ArgumentParser, *, cases: int, fault: str) -> None:
    """The words that every comparison takes: how many cases, a known fault to be found, and the seed."""
    arguments.add_argument("cases", type=int, nargs="?", default=cases)
    arguments.add_argument("--fault", action="store_true", help=f"{fault}: to be found")
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))


def run(
    cases: SearchStrategy[Any], compared: Callable[[Any, Counter[str], Counter[str]], None], count: int, start: int
) -> Outcome:
    """Give cases to ``compared``, which counts how each ends and raises ``Different``; that case is made smaller."""
    outcome = Outcome()

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def one(case: Any) -> None:
        outcome.counts["cases"] += 1
        compared(case, outcome.counts, outcome.reasons)

    try:
        one()
    except Different as found:
        outcome.different = True
        say(f"the smallest case that differs: {found}", *getattr(found, "__notes__", ()))
    return outcome


def table(outcome: Outcome, rows: Sequence[str], *lines: str) -> int:
    """Write the counts of these rows, more lines, and the commonest reasons; the exit code."""
    for name in rows:
        say(f"{name:32} {outcome.counts[name]:8,}")
    say(f"{'different':32} {'1, shrunk above' if outcome.different else '0':>8}", *lines)
    for reason, count in outcome.reasons.most_common(30):
        say(f"  {count:6,} {reason}")
    return 1 if outcome.different else 0
