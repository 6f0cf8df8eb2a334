"""The tables of ``kvcalc fit`` and the records of its JSON: what a decision says, term by term."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvcalc.alternatives import Alternative
from kvcalc.beside import Neighbour
from kvcalc.cli import fit_words, pictures, question
from kvcalc.cli.options import Shown
from kvcalc.deciding import Decision, closing
from kvcalc.fitting import Capacity, Point, Pool, Replica, required_memory
from kvcalc.fitting import frontier as what_fits
from kvcalc.footprints import Footprint, footprint_of
from kvcalc.levers import Lever
from kvcalc.report.document import Column, Derivation, Document, Section
from kvcalc.setup import Setup
from kvcalc.units import decimal_text, format_bytes
from kvcalc.users import Users

if TYPE_CHECKING:
    from kvcalc.report.shapes import AlternativeRecord, LeverRecord, NeighbourRecord, SplitRecord

#: Devices that a table shows.
_MOST_DEVICES = 12


Closes = Sequence[tuple[Lever, Capacity]]
Points = tuple[Sequence[Point], Sequence[Point]]


def document(decision: Decision, reference: str, said: Sequence[str], shown: Shown, frontier: str) -> Document:
    """The answer in its tables, term by term, and for programs.

    Args:
        reference: the model as typed, without a layout.
        said: notes on a log's terms.
        frontier: whether the frontier is wanted, in "tables" or in "records" alone.
    """
    closes = [] if decision.fits else closing(decision, reference)
    points = what_fits(decision.setup, decision.place.memory) if frontier else ([], [])
    answer = decision.capacity
    made = footprint_of(decision.setup, answer.reported_context, answer.batch_size)
    sections = [*_sections(decision, closes), *(_frontier_sections(decision, points) if frontier == "tables" else ())]
    said_in_a_line = fit_words.verdict(decision)
    where = f"{question.titled(decision.setup)} in {decision.place.label}"
    return Document(
        title=said_in_a_line,
        assumptions=(where, *question.assumptions([decision.setup], None, None)),
        sections=tuple(sections),
        records=[made.to_dict()],
        schema="fit",
        extra={
            "verdict": said_in_a_line,
            "pool": answer.pool.to_dict(),
            "capacity": answer.to_dict(),
            "frontier": [vars(point) for each in points for point in each],
            "levers": [_lever_record(*each) for each in closes],
            "splits": _split_records(decision),
            "alternatives": [_alternative_record(each) for each in decision.alternatives],
            "users": [vars(each) for each in decision.users],
            "beside": [_neighbour_record(each) for each in decision.neighbours],
            "server_command": fit_words.starting_line(decision),
        },
        notes=(*fit_words.notes(decision, said, closes), *made.notes),
        derivations=_derivations(decision, made) if shown.explain else (),
        units=shown.units,
        charts=(pictures.terms(where, ((label, abs(size)) for label, size, _ in sections[0].rows)),),
    )


def _sections(decision: Decision, closes: Closes) -> Iterator[Section]:
    """The tables of an answer; the first is the account."""
    yield _account(decision)
    if decision.users:
        yield _users_section(decision.users)
    if decision.neighbours:
        yield _neighbours_section(decision.neighbours)
    if decision.replicas:
        yield _splits_section(decision)
    if closes:
        yield _levers_section(closes, decision.capacity)
    if decision.alternatives:
        yield _alternatives_section(decision.alternatives)


def _account(decision: Decision) -> Section:
    """The device as an account: what each term takes, and a bar for all of it."""
    setup, answer, sense = decision.setup, decision.capacity, decision.answered
    pool = answer.pool
    needed, workload = answer.required_kv_memory, f"{answer.context or 0:,} x {answer.batch_size:,}"
    if sense is not None:
        needed, workload = sense.required_kv_memory, f"{sense.context:,} x {answer.batch_size:,}"
    rows: list[tuple[str, int, str]] = []
    if pool.device_memory is not None and pool.utilization is not None:
        assert pool.usable_bytes is not None
        beside = ", and models beside it" if decision.neighbours else ""
        weighed = pool.measured.source if pool.measured and "weights_bytes" in pool.measured.printed else ""
        rows = [
            ("device memory", pool.device_memory, ""),
            (f"x utilization {decimal_text(pool.utilization)}", pool.usable_bytes, ""),
            ("- weights on one device", -(pool.weights_bytes or 0), _said(weighed) or setup.weights.dtype),
            *([("  of them added by loading", -pool.loading_bytes, "")] if pool.loading_bytes else []),
            *_term_rows(pool),
            *([(f"- reserve{beside}", -pool.reserve_bytes, "")] if pool.reserve_bytes else []),
        ]
    rows.append(("= KV memory" if rows else "KV memory, as given", pool.kv_memory, ""))
    total = len(rows) - 1
    if needed is not None:
        rows.append(("- KV cache of the workload", -needed, workload))
        rows.append(("= free" if needed <= pool.kv_memory else "= short", pool.kv_memory - needed, ""))
    largest = max(abs(size) for _, size, _ in rows)
    columns = (
        Column("", lambda row: row[0]),
        Column("memory", lambda row: row[1], "bytes"),
        Column("", lambda row: (abs(row[1]),), "bars", drop_order=2, largest=largest),
        Column("exactly", lambda row: row[1], "exact_bytes", drop_order=1),
        Column("", lambda row: row[2], drop_order=3),
    )
    return Section(columns, rows, "", frozenset({total, len(rows) - 1}))


def _term_rows(pool: Pool) -> Iterator[tuple[str, int, str]]:
    """The working memory, term by term; where no log printed them, the first says how far they may be off."""
    band = f"the three within {format_bytes(pool.working_memory.band_bytes)}" if pool.working_memory else ""
    for term in pool.terms:
        said = _said(term.source) or (band if term.name == "activation_bytes" else "")
        yield f"- {term.words}", -term.size, said


def _said(source: str) -> str:
    """Where a term comes from, if a log printed it."""
    return f"as {source} has it" if source else ""


def _alternatives_section(alternatives: Sequence[Alternative]) -> Section:
    """The engines or devices beside each other, and why the others do not serve it."""

    def sequences(row: Alternative) -> str | None:
        if row.capacity is None:
            return None
        most = row.capacity.max_batch_size if row.capacity.context is not None else row.capacity.max_context
        return "no bound" if most is None else f"{most:,}"

    by_device = len({each.device.name for each in alternatives if each.device is not None}) > 1
    asked = next((each.capacity for each in alternatives if each.capacity is not None), None)
    most = "sequences" if asked is not None and asked.context is not None else "longest context"
    named = Column("devices", lambda row: f"{row.count} x {row.device.name}")
    engine = Column("engine", lambda row: row.engine)
    columns = (
        *([named, engine] if by_device else [engine]),
        Column("", _standing, "verdict"),
        Column(most, sequences),
        Column("KV memory", lambda row: row.capacity and row.capacity.kv_memory, "bytes"),
        Column("why", _remark, "remark"),
    )
    shown = alternatives[:_MOST_DEVICES] if by_device else alternatives
    title = "In each engine that runs there"
    if by_device:
        rest = f" ({len(shown)} of {len(alternatives)}; json has all)" if len(shown) < len(alternatives) else ""
        title = f"Devices that serve it, the fewest and smallest first{rest}"
    return Section(columns, shown, title)


def _remark(row: Alternative) -> str | None:
    """Why an engine does not serve it, or what its figure leaves out."""
    return row.refusal or (f"before working memory: {row.not_modelled}" if row.not_modelled else None)


def _standing(row: Alternative) -> str:
    if row.capacity is None:
        return "not known"
    return "fits" if row.capacity.fits else "does not fit"


def _answer_section(setup: Setup, answer: Capacity, on_replica: bool) -> Section:
    rows = []
    required = answer.required_kv_memory
    if answer.context is not None:
        said = f"{answer.context:,} tokens x {answer.batch_size:,}"
        if answer.fits:
            verdict = "fits"
        elif required is None:
            verdict = "does not fit, whatever the memory: the engine's options leave no room for it"
        else:
            verdict = "does not fit"
        rows.append({"what": said, "answer": verdict, "needs": required, "missing": answer.missing_bytes or None})
    rows.append(_extreme(setup, answer, f"longest context, batch size {answer.batch_size:,}", "tokens"))
    if answer.context is not None:
        rows.append(_extreme(setup, answer, f"largest batch, {answer.context:,} tokens each", "sequences"))
    columns = [
        Column("workload", lambda row: row["what"]),
        Column("answer", lambda row: row["answer"]),
        # Exact, because the two often agree to all the digits that a GiB is shown with.
        Column("KV memory needed", lambda row: row["needs"], "exact_bytes"),
        Column("one more needs", lambda row: row.get("next"), "exact_bytes", drop_order=1),
    ]
    if answer.missing_bytes:
        columns.append(Column("missing", lambda row: row.get("missing"), "bytes"))
    size = setup.tensor_parallel_size
    return Section(tuple(columns), rows, f"What fits on one replica (tp {size})" if on_replica else "What fits")


def _extreme(setup: Setup, answer: Capacity, what: str, unit: str) -> dict[str, str | int | None]:
    of_context = unit == "tokens"
    most = answer.max_context if of_context else answer.max_batch_size
    if most is None:
        return {"what": what, "answer": "nothing bounds it", "needs": None}

    def needs(number: int) -> int | None:
        if not number:
            return None
        if of_context:
            return required_memory(setup, number, answer.batch_size)
        return required_memory(setup, answer.context or 1, number)

    return {"what": what, "answer": f"{most:,} {unit}", "needs": needs(most), "next": needs(most + 1)}


def _report_section(answer: Capacity) -> Section:
    def shown(value: object) -> str:
        if isinstance(value, bool) or value is None:
            return {True: "yes", False: "no", None: "none"}[value]
        # vLLM logs its concurrency with two decimals.
        return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    rows = [
        (name, each)
        for name, value in answer.engine_report.items()
        for each in (value if isinstance(value, list | tuple) else [value])
    ]
    columns = (Column("figure", lambda row: row[0]), Column("value", lambda row: shown(row[1])))
    return Section(columns, rows, f"The engine's own figures at {answer.reported_context:,} tokens")


def _frontier_sections(decision: Decision, points: Points) -> Iterator[Section]:
    """What fits to the token, the engine's own figures, and the frontier."""
    yield _answer_section(decision.setup, decision.capacity, bool(decision.replicas))
    if decision.capacity.engine_report:
        yield _report_section(decision.capacity)
    by_context = (
        Column("context", lambda point: point.context, "count"),
        Column("largest batch", lambda point: point.batch_size, "count"),
        Column("KV memory needed", lambda point: point.required_kv_memory, "bytes"),
    )
    by_batch = (
        Column("batch size", lambda point: point.batch_size, "count"),
        Column("longest context", lambda point: point.context, "count"),
        Column("KV memory needed", lambda point: point.required_kv_memory, "bytes"),
    )
    titles = ("The frontier: the largest batch at each context", "The longest context at each batch size")
    for columns, along, title in zip((by_context, by_batch), points, titles, strict=True):
        if along:
            yield Section(columns, along, title)


def _levers_section(levers: Closes, answer: Capacity) -> Section:
    columns = (
        Column("lever", lambda row: row[0].name),
        Column("change", lambda row: row[0].flags),
        Column("which is", lambda row: row[0].consequence, drop_order=2),
        Column("KV memory", lambda row: row[1].kv_memory, "bytes", drop_order=1),
        Column("needed", lambda row: row[1].required_kv_memory, "bytes"),
    )
    workload = f"{answer.context or 1:,} tokens x {answer.batch_size:,}"
    return Section(columns, levers, f"What makes {workload} fit: any one of these, or less of it")


def _splits_section(decision: Decision) -> Section:
    count, total = decision.place.count, decision.total
    rows = _split_records(decision)
    most = max((row["sequences"] for row in rows if row["sequences"] is not None), default=0)
    needed = [each for row in rows if (each := row["devices_needed"]) is not None and each <= (count or each)]
    fewest = min(needed, default=None)

    def verdict(row: SplitRecord) -> str:
        if row["refusal"]:
            return str(row["refusal"])
        words = []
        if count is not None and most and row["sequences"] == most:
            words.append("serves the most sequences")
        if total is not None and fewest is not None and row["devices_needed"] == fewest:
            words.append(f"the fewest devices for {total:,} sequences")
        return ", ".join(words)

    columns = [
        Column("tp", lambda row: row["tensor_parallel_size"], "count"),
        Column("KV memory a device", lambda row: row["kv_memory"], "bytes", drop_order=1),
        Column("sequences a replica", lambda row: row["sequences_per_replica"], "count"),
    ]
    if count is not None:
        columns.append(Column("replicas", lambda row: row["replicas"], "count"))
        columns.append(Column("sequences", lambda row: row["sequences"], "count"))
    if total is not None:
        columns.append(Column("devices needed", lambda row: row["devices_needed"], "count"))
    columns.append(Column("", verdict))
    return Section(tuple(columns), rows, "Tensor parallel groups, and replicas of them")


def _lever_record(lever: Lever, answer: Capacity) -> LeverRecord:
    return {
        "lever": lever.name,
        "flags": lever.flags,
        "consequence": lever.consequence,
        "required_kv_memory": answer.required_kv_memory,
        "kv_memory": answer.kv_memory,
    }


def _split_record(split: Replica, count: int | None, total: int | None) -> SplitRecord:
    return {
        "tensor_parallel_size": split.tensor_parallel_size,
        "devices_per_replica": split.devices,
        "kv_memory": None if split.capacity is None else split.capacity.kv_memory,
        "sequences_per_replica": None if split.capacity is None else split.capacity.max_batch_size,
        "replicas": None if count is None else count // split.devices,
        "sequences": None if count is None else split.sequences(count),
        "devices_needed": None if total is None else split.devices_for(total),
        "refusal": split.refusal,
    }


def _alternative_record(each: Alternative) -> AlternativeRecord:
    answer = each.capacity
    return {
        "engine": each.engine,
        "device": each.device.name if each.device is not None and each.device.name else None,
        "devices": each.count,
        "fits": each.fits,
        "max_context": None if answer is None else answer.max_context,
        "max_batch_size": None if answer is None else answer.max_batch_size,
        "kv_memory": None if answer is None else answer.kv_memory,
        "refusal": each.refusal,
        "not_modelled": each.not_modelled or None,
    }


def _split_records(decision: Decision) -> list[SplitRecord]:
    return [_split_record(each, decision.place.count, decision.total) for each in decision.replicas]


def _users_section(users: Sequence[Users]) -> Section:
    """How many sequences run, in each sense, and what the engine prints of it."""
    columns = (
        Column("users at a time", _sense),
        Column("sequences", lambda row: _number(row.sequences, row.refusal)),
        Column("why", lambda row: row.refusal or None, "remark"),
    )
    return Section(columns, users, "How many users")


def _sense(row: Users) -> str:
    if row.printed:
        return f"{row.printed}, {row.context:,} tokens each"
    shared = f", the first {row.shared_prefix:,} the same for all" if row.shared_prefix else ""
    return f"of {row.context:,} tokens{shared}"


def _number(value: int | float | None, refusal: str) -> str:
    if value is None:
        return "not shared" if refusal else "no bound"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def _neighbours_section(neighbours: Sequence[Neighbour]) -> Section:
    """The other models on the device: what each takes, and what it serves in that."""
    columns = (
        Column("beside it", lambda row: row.setup.reference),
        Column("part", lambda row: None if row.part is None else decimal_text(row.part)),
        Column("takes", lambda row: row.taken_bytes, "bytes"),
        Column("KV memory", lambda row: row.capacity.kv_memory, "bytes"),
        Column("", lambda row: "fits" if row.capacity.fits else "does not fit", "verdict"),
        Column("sequences", lambda row: _number(row.capacity.max_batch_size, "")),
    )
    return Section(columns, neighbours, "Other models on the device, each in an engine of its own")


def _neighbour_record(row: Neighbour) -> NeighbourRecord:
    return {
        "reference": row.setup.reference,
        "utilization": None if row.part is None else decimal_text(row.part),
        "taken_bytes": row.taken_bytes,
        "kv_memory": row.capacity.kv_memory,
        "context": row.capacity.context,
        "fits": row.capacity.fits,
        "max_batch_size": row.capacity.max_batch_size,
    }


def _derivations(decision: Decision, shown: Footprint) -> tuple[Derivation, ...]:
    """The cache's formula, and that of the working memory where there is one."""
    working, loading = decision.capacity.pool.working_memory, decision.capacity.pool.loading
    found = [question.derivation(shown, "KV cache, step by step")]
    if loading:
        found.append(Derivation("What loading adds to the weights, step by step", loading))
    if working is not None and working.quantities:
        found.append(Derivation("Working memory, step by step", working.quantities))
    return tuple(found)
