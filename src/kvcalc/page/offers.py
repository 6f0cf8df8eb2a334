"""What may be picked of an engine: versions, its own options, drafts, sizes, and what it chooses on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import product
from typing import Any, Literal, get_args, get_origin

from kvcalc.architecture import Architecture
from kvcalc.device import Device
from kvcalc.engines import engine_class, make_engine
from kvcalc.engines.base import Engine
from kvcalc.engines.options import EngineOptions
from kvcalc.page.formulas import INPUTS
from kvcalc.serving import option_words
from kvcalc.setup import MTP

#: Tensor-parallel sizes that may be picked.
SIZES = (1, 2, 4, 8, 16, 32)
#: A version or a draft: the sizes of one machine, the model's own format and this one.
FEW_SIZES, SECOND_FORMAT = (1, 2, 4, 8), "fp8_e4m3"
#: An option: the model's own format in these sizes.
OPTION_SIZES = (1, 2, 4)
#: A draft that is another model of the page.
OTHER = "another model"
#: A device that a question gives the memory of, and nothing else.
UNNAMED = Device(name="", title="a device", memory_bytes=1, measured=False, source="as given", platform="cuda")
#: Numbers that may be picked of an option, by its name; words and switches are those that the option itself declares.
_NUMBERS: Mapping[str, tuple[int | float, ...]] = {
    "block_size": (32, 64),
    "cache_block_seq_len": (32, 128),
    "cache_max_entry_count": (0.5, 0.9),
    "decode_context_parallel_size": (2, 4),
    "free_gpu_memory_fraction": (0.8, 0.9),
    "kv_bits": (4, 8),
    "mamba_full_memory_ratio": (0.5,),
    "max_prefill_token_num": (4096,),
    "max_running_requests": (64,),
    "n_ubatch": (256, 1024),
    "num_batch": (256, 1024),
    "num_parallel": (1, 4),
    "page_size": (64,),
    "pipeline_parallel_size": (2,),
    "prefill_context_parallel_size": (2,),
    "prefill_step_size": (512, 4096),
    "swa_full_tokens_ratio": (0.5, 1.0),
    "tokens_per_block": (64,),
}
#: Options that a page has no picks of, although they are words or switches.
_NO_PICKS = frozenset({"version", "program"})


@dataclass(frozen=True)
class Row:
    """What changes the formulas of an engine, one at a time: a version, an option, or a draft.

    Attributes:
        options: the engine's options.
        draft: ``"mtp"``, :data:`OTHER` or nothing.
        is_whole: the newest version as it is, in every format and size.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    draft: str = ""
    is_whole: bool = False

    @property
    def is_option(self) -> bool:
        """Whether it is an option of the engine, other than its version."""
        return bool(self.options.keys() - {"version"})

    def has(self, size: int, kv_format: str | None = None, default: str = "") -> bool:
        """Whether a size may be picked with it, and a format of K and V: None and the default are the model's own."""
        if self.is_whole:
            return True
        if self.is_option:
            return size in OPTION_SIZES and kv_format in (None, default)
        return size in FEW_SIZES and kv_format in (None, default, SECOND_FORMAT)


class Offer:
    """An engine as a page knows it.

    Attributes:
        rows: versions, the newest first, then options and drafts of the newest.
        devices: those of the page.
        choices: the options that it chooses by itself, on no device and on each of the page's.
        made: the engine of a row, with a choice and its inputs.
    """

    def __init__(self, name: str, devices: Sequence[Device]) -> None:
        self.name, self.cls, self.devices = name, engine_class(name), devices
        self.weight_formats = (None, "bf16", *self.cls.weight_formats)
        self.choices: list[dict[str, Any]] = [{}]
        for device in devices:
            options = self.cls.device_options(device.memory_bytes, device.name)
            if options not in self.choices:
                self.choices.append(options)
        classes = {(each.platform, each.unified): each for each in (*devices, UNNAMED)}
        self.platforms = dict(sorted(classes.items()))
        versions = [{"version": group[0]} for group in self.cls.releases] or [{}]
        self.picks = tuple(_picks(self.cls))
        self.made = cache(self._made)
        self.rows = (
            Row(versions[0], is_whole=True),
            *map(Row, versions[1:]),
            *(Row({name: value}) for name, value in self.picks),
            *(Row(draft=draft) for draft in (MTP, OTHER)),
        )

    def elsewhere(self, model: Architecture) -> list[str]:
        """Devices on which the engine chooses options for this model that a page has no formulas of."""
        return [each.name for each in self.devices if self.cls.model_options(model, each)]

    @property
    def cells(self) -> Iterator[tuple[int, int]]:
        """Every row in every size, in the order of a table."""
        return product(range(len(self.rows)), SIZES)

    def _made(self, row: int = 0, choice: int = 0, **inputs: int) -> Engine:
        return make_engine(self.name, {**self.choices[choice], **self.rows[row].options, **inputs})

    @cached_property
    def takes_pairs(self) -> bool:
        """Whether K and V have formats of their own."""
        return self.cls.server is not None and "v_dtype" in self.cls.server.flags

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Options that are numbers of its formulas, which a page takes any of, with their defaults."""
        return {each.name: each.default for each in self.cls.option_help() if each.name in INPUTS}

    @cached_property
    def _stands_for(self) -> dict[int, str]:
        """A number that stands for each input, larger than any of a rule."""
        return {10**9 - number: name for number, name in enumerate(self.inputs)}

    def _with_inputs(self, row: int, choice: int) -> Engine:
        return self.made(row, choice, **{name: number for number, name in self._stands_for.items()})

    def flags(self, model: Architecture) -> list[list[str]]:
        """The options of each row as words of a server's line, by choice; an input has its name in braces there."""
        if self.cls.server is None:
            return []

        def words(row: int, choice: int) -> str:
            line = " ".join(option_words(self._with_inputs(row, choice), model, drafted=bool(self.rows[row].draft)))
            for number, name in self._stands_for.items():
                line = line.replace(str(number), f"{{{name}}}")
            return line

        found = [[words(row, choice) for row in range(len(self.rows))] for choice in range(len(self.choices))]
        return found if any(each != found[0] for each in found) else found[:1]

    def _limits(self, row: int, choice: int) -> list[str | None]:
        """The most sequences and the longest context that the options allow: none, a number, or an input's name."""
        made = self._with_inputs(row, choice)
        limits = (made.batch_limit, made.context_limit)
        return [None if limit is None else self._stands_for.get(limit, str(limit)) for limit in limits]

    def exported(self, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What a page knows of it beside the models, with the formats that any of these takes."""
        server = self.cls.server
        help_of = {each.name: each for each in self.cls.option_help()}
        return {
            "releases": self.cls.releases,
            "follows": self.cls.follows,
            "picks": [[name, _text(value)] for name, value in self.picks],
            "options": [
                {
                    "name": name,
                    "default": _text(help_of[name].default),
                    "description": help_of[name].description,
                    "is_input": name in self.inputs,
                }
                for name in (*self.inputs, *dict(self.picks))
            ],
            "utilization": [self.made(row).utilization_percent for row in range(len(self.rows))],
            "sets_aside": self.cls.sets_aside,
            "kv_formats": list(dict.fromkeys(each for cell in cells for table in cell["kv"] for each in table)),
            "weight_formats": [each or "" for each in self.weight_formats],
            "platforms": [f"{platform} {unified}" for platform, unified in self.platforms],
            "choices": [{name: str(value) for name, value in choice.items()} for choice in self.choices],
            "inputs": {name: str(default) for name, default in self.inputs.items()},
            "limits": [
                [self._limits(row, choice) for choice in range(len(self.choices))] for row in range(len(self.rows))
            ],
            "sources": self.cls.sources,
            "excluded": self.cls.not_modelled,
            "server": server and {"program": server.program, "flags": list(server.flags.items())},
        }


def _picks(engine: type[Engine]) -> Iterator[tuple[str, Any]]:
    """Every option's values that are not its default, in the order of the option table.

    >>> from kvcalc.engines import engine_class
    >>> list(_picks(engine_class("tensorrt-llm")))[:2]
    [('tokens_per_block', 64), ('free_gpu_memory_fraction', 0.8)]
    """
    if not issubclass(engine, EngineOptions):
        return
    for option in engine.option_help():
        if option.name in INPUTS or option.name in _NO_PICKS:
            continue
        values = _NUMBERS.get(option.name) or _declared(engine.model_fields[option.name].annotation)
        yield from ((option.name, value) for value in values if value != option.default)


def _declared(annotation: Any) -> tuple[Any, ...]:
    """The values of a switch or of a list of words."""
    return (False, True) if annotation is bool else get_args(annotation) if get_origin(annotation) is Literal else ()


def _text(value: Any) -> str:
    """An option's value as ``-E`` reads it."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
