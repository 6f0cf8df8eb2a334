"""What ``kvcalc check`` writes: a first file of budgets, and the baseline of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kvcalc.budgets.checking import new_baseline
from kvcalc.budgets.verdict import Verdict
from kvcalc.cli import question
from kvcalc.errors import InputError, printable
from kvcalc.footprints import footprint
from kvcalc.report.files import write_file
from kvcalc.sources.preset import toml_text
from kvcalc.units import GiB, MiB, ceil_div, exact_bytes, format_count


def save_baseline(path: Path, verdicts: Sequence[Verdict], partial: bool) -> None:
    """Write the baseline; one that is there is not moved while a budget does not hold."""
    if partial:
        raise InputError("a baseline holds every budget", hint="leave --only out, or --save-baseline")
    if any(verdict.status == "error" for verdict in verdicts):
        question.say(f"warning: {path} is not written: not every budget could be judged")
        return
    if path.exists() and not all(verdict.ok for verdict in verdicts):
        question.say(f"warning: {path} stays as it was: not every budget holds")
        return
    text = json.dumps(new_baseline(verdicts).model_dump(), indent=1, allow_nan=False) + "\n"
    write_file(path, [text.encode()])


_FIRST = """\
# Memory budgets: 'kvcalc check' fails where one of them is exceeded. Sizes are for one device.
# Weights and KV cache; activations, CUDA graphs and fragmentation are not in it.

[[budget]]
name = {name}
model = {model}
context = {context}
batch_size = 1
engine = "ideal"        # or the one that you serve with; see 'kvcalc engines'
limit = "{limit}"  # now {total:,} B; or device = "h200"
warn_at = "95%"
"""
_DEFAULT_CONTEXT = 32768


def first_budgets(references: Sequence[str]) -> int:
    """Write a first budgets.toml beside nothing else; an existing one stays as it is."""
    path = Path("budgets.toml")
    if path.exists():
        raise InputError("budgets.toml is there already", hint="edit it, or move it away", location=str(path))
    if len(references) > 1:
        raise InputError("--init writes a budget for one model", hint="kvcalc check --init gemma-3-27b")
    reference = references[0] if references else _model_here()
    model = question.load_with_hints(reference)
    context = min(_DEFAULT_CONTEXT, model.max_context or _DEFAULT_CONTEXT)
    total = footprint(model, context=context).total_bytes
    step = GiB if total > 4 * GiB else 16 * MiB
    limit = ceil_div(total * 11, 10 * step) * step
    text = _FIRST.format(
        name=toml_text(printable(model.name)),
        model=toml_text(reference),
        context=toml_text(format_count(context)),
        limit=exact_bytes(limit),
        total=total,
    )
    write_file(path, [text.encode("utf-8", "backslashreplace")])
    question.say(
        f"wrote {path}: {model.name} at {context:,} tokens; now 'kvcalc check' holds it to {exact_bytes(limit)}"
    )
    return 0


def _model_here() -> str:
    found = [name for name in ("config.json", "model.toml") if Path(name).is_file()]
    found += sorted(str(path) for path in Path().glob("*.gguf"))
    if not found:
        raise InputError("no config.json and no GGUF file here", hint="name a model: kvcalc check --init gemma-3-27b")
    return found[0]
