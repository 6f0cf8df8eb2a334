"""``kvcalc paper``: section 5.2 of the Gemma 3 report, published beside computed."""

from __future__ import annotations

from typing import Annotated

from kvcalc.cli import options, question
from kvcalc.errors import InputError, quote

EXAMPLES = (
    "kvcalc paper\nkvcalc paper -o figures.pdf\nkvcalc paper --figure 5 -o figure-5.pdf\n"
    "kvcalc paper --format json\nkvcalc paper -o section-5.2.md"
)


def _figure(text: str, _: str) -> int:
    if text.strip() not in ("3", "4", "5", "6"):
        raise InputError(f"section 5.2 has no figure {quote(text)}", hint="3, 4, 5 or 6")
    return int(text)


_IN_MEGABYTES = options.Shown(units="decimal")
Figure = Annotated[int | None, options.option("--figure", "NUMBER", "One figure alone: 3 to 6.", _figure)]


def paper(
    figure: Figure = None,
    shown: options.Shown = _IN_MEGABYTES,
) -> int:
    from kvcalc.cli import paper_tables

    target = question.target(shown.format, shown.output, shown.plot)
    target.write(paper_tables.document(figure, shown.explain, shown.units, target.format_name == "html"))
    return 0
