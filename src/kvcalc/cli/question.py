"""From what was typed to setups, and from a document to where it goes: what all commands share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvcalc.cli.options import OWN_CONTEXT, Room, Served
from kvcalc.cli.process import complain
from kvcalc.cli.words import COMMAND, COMMON_OPTIONS, option_name
from kvcalc.errors import InputError, printable, quote
from kvcalc.report.document import Derivation, Document
from kvcalc.report.files import check_outputs, write, write_file
from kvcalc.report.formats import FORMATS, PICTURES, format_of_file, render
from kvcalc.units import counted

if TYPE_CHECKING:
    from kvcalc.architecture import Architecture
    from kvcalc.device import Device
    from kvcalc.fitting import Memory
    from kvcalc.footprints import Footprint
    from kvcalc.setup import Setup


_AS_SHIPPED = Served()
#: Names that stand before a note.
_MOST_NAMES = 3


def setups(
    references: Sequence[str | Architecture],
    asked: Served = _AS_SHIPPED,
    engine: str | Sequence[str] = "ideal",
    tensor_parallel_size: int | Sequence[int] = 1,
    device: Device | None = None,
    draft: Architecture | Literal["mtp"] | None = None,
) -> list[Setup]:
    """Every combination of models, engines, sizes and formats, in the order in which they were typed.

    Args:
        references: as typed; or models that were read already, for a question that is asked many times.
        draft: the draft model likewise, where it was read already.
        device: what the engines choose by the device is an option of theirs, where it is not given.
    """
    from kvcalc.setup import prepare_on

    varied = (
        [load_with_hints(each) if isinstance(each, str) else each for each in references],
        parse_engines([engine] if isinstance(engine, str) else engine, asked.engine_option or ()),
        [tensor_parallel_size] if isinstance(tensor_parallel_size, int) else tensor_parallel_size,
        asked.weights_dtype or (None,),
        asked.kv_cache_dtype or (None,),
    )
    alike: dict[str, Any] = {**vars(asked), "draft": draft or read_draft(asked.draft)}
    for each in ("engine_option", "weights_dtype", "kv_cache_dtype"):
        del alike[each]
    return [
        prepare_on(
            device,
            model,
            engine=name,
            engine_options=options,
            kv_cache_dtype=kv_format,
            weights_dtype=weights_format,
            tensor_parallel_size=size,
            **alike,
        )
        for model, (name, options), size, weights_format, kv_format in product(*varied)
    ]


def parse_engines(names: Sequence[str], options: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Each engine with its options: ``KEY=VALUE``, or ``ENGINE.KEY=VALUE`` where there are several.

    >>> parse_engines(["ideal", "vLLM==0.25.1"], ["vllm.block-size=32"])
    [('ideal', {}), ('vllm', {'version': '0.25.1', 'block_size': '32'})]
    """
    from kvcalc.engines import REGISTRY, engine_class  # what a help page does not need

    engines = [_with_version(name) for name in names]
    known = {name for name, _ in engines}
    given: dict[str, dict[str, str]] = {name: {} for name in known}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"engine option {quote(text)} is not KEY=VALUE", hint="as in -E block_size=32")
        owner = next((name for name in REGISTRY if key.startswith(f"{name}.")), None)
        if owner is not None:
            key = key.removeprefix(f"{owner}.")
        elif len(known) == 1:
            owner = engines[0][0]
        else:
            hint = f"say whose option it is, as in -E {engines[-1][0]}.{key}={value}"
            raise InputError(f"engine option {quote(key)} among several engines", hint=hint)
        key = key.replace("-", "_")
        if owner not in given:
            raise InputError(f"option {quote(text)} is for {owner}, which was not asked for", hint=f"--engine {owner}")
        own = option_name(key)
        if own in COMMON_OPTIONS and key not in {option.name for option in engine_class(owner).option_help()}:
            raise InputError(f"{quote(key)} is no option of {owner} here", hint=f"--{own} {value}")
        if key in given[owner]:
            raise InputError(f"engine option {quote(key)} is given twice")
        given[owner][key] = value
    return [(name, {**version, **given[name]}) for name, version in engines]


def _with_version(text: str) -> tuple[str, dict[str, str]]:
    """An engine and the version behind ``==``, ``@`` or ``:``."""
    from kvcalc.engines import engine_name

    for mark in ("==", "@", ":"):
        name, found, version = text.partition(mark)
        if found:
            return engine_name(name), {"version": version}
    return engine_name(text), {}


def read_draft(draft: str | None) -> Architecture | Literal["mtp"] | None:
    """The draft model of ``--draft``: a reference, or ``mtp`` for the model's own prediction layers."""
    return None if draft is None else "mtp" if draft == "mtp" else load_with_hints(draft)


def memory_of(room: Room) -> Memory | None:
    """The memory of the device of that name, or of one of that size without a name; nothing where neither is given."""
    if room.memory is not None and room.device is not None:
        raise InputError("one memory is enough", hint="--memory or --device, not both")
    if room.memory is None and room.device is None:
        if room.reserve or room.gpu_memory_utilization is not None:
            raise InputError("a reserve or a utilization needs a memory", hint="add --memory 24GiB or --device NAME")
        return None
    from kvcalc.fitting import Memory  # a device is asked for: its file, and what checks it
    from kvcalc.sources.devices import find_device

    return Memory(None, find_device(room.device, room.memory), room.gpu_memory_utilization, room.reserve)


def load_with_hints(reference: str) -> Architecture:
    """The architecture of a reference; its hints go to standard error."""
    from kvcalc.sources.resolve import load  # what a help page does not need

    if "," in reference and not Path(reference).exists():
        raise InputError(f"{quote(reference)} is no model", hint=f"models stand apart: {reference.replace(',', ' ')}")
    architecture = load(reference)
    for hint in architecture.provenance.hints:
        say(f"hint: {hint}")
    return architecture


def resolved(contexts: Sequence[int], asked: Iterable[Setup]) -> Sequence[int]:
    """The contexts in tokens: the models' own in place of ``max``, and a warning where one is beyond it.

    Raises:
        InputError: the models' own context is asked for, and none of them states one.
    """
    made_for = {each.architecture.name: each.architecture.max_context for each in asked}
    stated = [tokens for tokens in made_for.values() if tokens is not None]
    if OWN_CONTEXT in contexts:
        if not stated:
            raise InputError(
                f"{next(iter(made_for))} does not state the context it was made for", hint="say it: -c 32k"
            )
        contexts = [tokens or min(stated) for tokens in contexts]
    longest = max(contexts)
    for name, most in made_for.items():
        if most is not None and longest > most:
            say(f"warning: {name} was made for {most:,} tokens; {longest:,} is beyond that")
    return contexts


def say(line: str) -> None:
    """One line for people, on standard error."""
    complain(printable(line))


def assumptions(asked: Sequence[Setup], context: int | None, batch_size: int | None) -> tuple[str, ...]:
    """What holds for every row, stated once; what differs between rows is left to them."""
    stated = []
    if context is not None:
        stated.append(f"context {counted(context, 'token')}")
    if batch_size is not None:
        stated.append(f"batch size {batch_size:,}")
    alike = [facts[0] for facts in zip(*map(_facts, asked), strict=True) if len(set(facts)) == 1]
    return (*stated, *(f"{what} {word}".strip() for what, word in alike if word))


def titled(setup: Setup) -> str:
    """A model as a title names it: as typed, and the preset that answers where that has another name."""
    name, base = setup.architecture.name, setup.reference.partition("@")[0]
    same = base.rpartition("/")[2] in (name, f"{name}.toml") or not setup.reference
    return setup.reference if same or base.startswith("hf:") else f"{setup.reference} ({name})"


def engine_label(setup: Setup) -> str:
    """An engine with its version and the options that were given."""
    engine = setup.engine
    listed = "".join(f" {key}={value}" for key, value in engine.given_options.items())
    version = "" if engine.name == "ideal" else f" {engine.followed_version}"
    return f"{engine.name}{version}{listed}"


def kv_format(setup: Setup) -> str:
    """The formats of K and V in a word."""
    key, value = setup.k_dtype.name, setup.v_dtype.name
    return key if key == value else f"{key}/{value}"


def _facts(setup: Setup) -> list[tuple[str, str]]:
    """What a setup is beside its model, and what that is called; what is alike is stated once, the rest names rows."""
    return [
        ("engine", engine_label(setup)),
        ("", f"one of {setup.devices} devices" if setup.devices > 1 else ""),
        ("weights", setup.weights.dtype),
        ("K and V", kv_format(setup)),
        *(("", words) for words in setup.words),
    ]


def labels(asked: Sequence[Setup]) -> list[str]:
    """The model of each row, with its engine, formats and devices where they differ between rows.

    One model throughout is in the title, and not said again.
    """
    parts: list[list[str]] = [[each.reference] for each in asked]
    for facts in zip(*map(_facts, asked), strict=True):
        if len(set(facts)) > 1:
            for part, (what, word) in zip(parts, facts, strict=True):
                part.append((f"weights {word}" if what == "weights" else word) or "one device")
    if len({part[0] for part in parts}) == 1 and len(parts[0]) > 1:
        parts = [part[1:] for part in parts]
    return [", ".join(part) for part in parts]


def notes(named: Iterable[tuple[str, Footprint]]) -> list[str]:
    """What a reader must know, and of which it holds where that is not all of them."""
    about: dict[str, dict[str, None]] = {}
    names = set()
    for name, made in named:
        names.add(name)
        for note in made.notes:
            about.setdefault(note, {})[name] = None
    return [note if len(of) == len(names) else f"{_listed([*of])}: {note}" for note, of in about.items()]


def _listed(names: Sequence[str]) -> str:
    """The first of some names, and how many there are besides."""
    return ", ".join(names) if len(names) <= _MOST_NAMES else f"{names[0]} and {len(names) - 1:,} more"


def derivation(footprint: Footprint, title: str) -> Derivation:
    """The engine's formula for a footprint."""
    from kvcalc.derivation import checked

    engine, plan = footprint.engine, footprint.setup.plan
    asked = footprint.context, footprint.batch_size
    excluded = ("activations, CUDA graphs and fragmentation", *engine.not_modelled)
    return Derivation(title, checked(plan.explain(*asked), plan.kv_bytes(*asked)), engine.sources, excluded)


def derivations(footprints: Iterable[Footprint], names: Iterable[str]) -> tuple[Derivation, ...]:
    """The formulas for several, each with the name that tells it from the others."""
    return tuple(map(derivation, footprints, (f"KV cache of {name}, step by step" for name in names)))


def weights_derivation(setup: Setup) -> Derivation:
    """The parameters by part and their bytes."""
    from kvcalc.derivation import checked
    from kvcalc.weights_steps import weights_steps

    steps = weights_steps(*setup.placement, setup.held, setup.fewer_devices)
    return Derivation("Weights, step by step", checked(steps, setup.weights.bytes), setup.served.provenance.sources)


@dataclass(frozen=True)
class Target:
    """Where an answer goes, and in which format.

    Attributes:
        format_name: a name of :data:`kvcalc.report.formats.FORMATS`; None where a picture is all that is wanted.
        path: the file, or None for standard output.
        plot: the file of a picture, or None.
    """

    format_name: str | None
    path: Path | None = None
    plot: Path | None = None

    @property
    def for_people(self) -> bool:
        """Whether the format shows the sections; programs read the records alone, and any number of them."""
        return self.format_name is None or FORMATS[self.format_name].reads == "sections"

    def write(self, document: Document) -> None:
        """Render a document to its place, and its charts to the picture; say which files were written."""
        check_outputs(self.path, self.plot)
        document = replace(document, command=COMMAND.get())
        if self.plot is not None:
            from kvcalc.report.charts import draw

            write_file(self.plot, [draw(document, self.plot)])
        if self.format_name is not None:
            write(render(document, self.format_name, to_file=self.path is not None), self.path)
        for written in (self.path, self.plot):
            if written is not None:
                say(f"wrote {written}")


def target(format_name: str | None, output: str | None, plot: str | None = None) -> Target:
    """Where an answer goes: the format as stated, else by the suffix of the file, else a table.

    A file that ends as a picture is one, in place of a table; ``plot`` is drawn beside it.

    Raises:
        InputError: a suffix that says another format, or a picture that cannot be drawn; before anything is computed.
    """
    if output is not None and Path(output).suffix.lower() in PICTURES:
        if format_name is not None or plot is not None:
            raise InputError(f"{quote(output)} is a picture alone", hint=f"--plot {output} draws it beside a table")
        return Target(None, None, _drawable(output))
    by_suffix = None if output is None else format_of_file(output)
    if format_name is not None and by_suffix not in (None, "table", format_name):
        hint = f"leave --format out, or name the file *{(FORMATS[format_name].suffixes or ('',))[0]}"
        raise InputError(f"--format {format_name} and a file {quote(output)} contradict each other", hint=hint)
    return Target(
        format_name or by_suffix or "table",
        None if output is None else Path(output),
        None if plot is None else _drawable(plot),
    )


def _drawable(picture: str) -> Path:
    from kvcalc.report.charts import check_target

    path = Path(picture)
    check_target(path)
    return path
