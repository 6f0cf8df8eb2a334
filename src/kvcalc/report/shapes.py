"""The shapes of ``--format json``: what the builders of records are typed by, and what ``kvcalc schema`` prints.

Each is written once. A record is a plain dictionary at run time; a type checker holds its builder to the shape, and the
JSON Schema of an answer is made from it on demand.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic reads no other TypedDict before Python 3.12

from kvcalc.device import Device
from kvcalc.engines.base import OptionHelp
from kvcalc.fitting import Point
from kvcalc.paper import Claim, Evidence
from kvcalc.users import Users

Count = Annotated[int, Field(ge=0)]


class EngineRecord(TypedDict):
    """The engine, the version whose rule answers, and the options that were given."""

    name: str
    version: str
    options: dict[str, object]


class WorkloadRecord(TypedDict):
    """What was asked."""

    context: Annotated[int, Field(description="tokens in the cache of one sequence")]
    batch_size: Annotated[int, Field(description="sequences")]
    k_dtype: str
    v_dtype: str
    tensor_parallel_size: int
    encoder_tokens: Count
    draft: Annotated[str | None, Field(description="the draft model, or null")]
    text_only: Annotated[bool, Field(description="the encoders of images and sound are left out")]


class WeightsRecord(TypedDict):
    """The weights: parameters of the whole model, bytes on one device."""

    parameters: Count
    active_parameters: Annotated[Count, Field(description="parameters read for one token")]
    bytes: Count
    dtype: str
    exact_parameters: Annotated[bool, Field(description="proved against a published or instantiated count")]
    exact: Annotated[bool, Field(description="the bytes are those of the files: counted exactly, or measured in them")]
    parts: Annotated[dict[str, Count], Field(description="parameters by part")]
    beside: Annotated[
        dict[str, Count], Field(description="bytes of the encoders and prediction layers held, by what they are")
    ]
    shipped_bytes: Annotated[Count, Field(description="the whole checkpoint, whatever an engine loads of it")]


class LayersRecord(TypedDict):
    """All layers of one kind."""

    kind: str
    count: int
    window: Annotated[int | None, Field(description="tokens beyond which such a layer keeps no more")]
    tokens: Annotated[Count, Field(description="token slots of each of these layers, all sequences together")]
    bytes: Count


class KVCacheRecord(TypedDict):
    """The KV cache on one device; the layers, the padding and a draft's own cache add up to ``bytes``."""

    bytes: Annotated[Count, Field(description="the engine's reservation or its peak: the number to budget")]
    steady_bytes: Annotated[Count, Field(description="held while decoding at that context")]
    ideal_bytes: Annotated[Count, Field(description="the report's accounting")]
    layers: list[LayersRecord]
    padding_bytes: Count
    draft_bytes: Annotated[Count, Field(description="the cache of a draft model that the engine keeps apart")]
    notes: list[str]


class FootprintRecord(TypedDict):
    """One configuration; every byte figure is for one device."""

    reference: Annotated[str, Field(description="the model as typed")]
    model: str
    layout: str
    engine: EngineRecord
    workload: WorkloadRecord
    weights: WeightsRecord
    kv_cache: KVCacheRecord
    total_bytes: Count
    overhead: Annotated[float | None, Field(description="KV cache over weights; null for a model without weights")]
    devices: int
    notes: list[str]


@with_config(extra="forbid", strict=True)
class _Answer(TypedDict):
    schema_version: Literal[2]
    tool_version: str
    command: Annotated[list[str], Field(description="the command line that gave the answer")]


class PoolRecord(TypedDict):
    """From a device to a pool; all but ``kv_memory`` are null where the pool was given as such."""

    kv_memory: Annotated[int, Field(description="bytes for the KV cache; negative where the weights alone do not fit")]
    device_memory: int | None
    utilization: Annotated[str | None, Field(description="the part of the device that the engine takes, as a decimal")]
    usable_bytes: int | None
    weights_bytes: Annotated[int | None, Field(description="as the engine holds them")]
    loading_bytes: Annotated[int | None, Field(description="of those what loading adds to the files' bytes")]
    activation_bytes: Annotated[int | None, Field(description="the peak of one step beyond what stays")]
    runtime_bytes: Annotated[int | None, Field(description="what driver and libraries hold")]
    graph_bytes: Annotated[int | None, Field(description="captured graphs")]
    band_bytes: Annotated[int | None, Field(description="how far the three may be off together")]
    reserve_bytes: int | None
    not_modelled: Annotated[str | None, Field(description="why the three are not known, or null")]
    measured: Annotated[list[str] | None, Field(description="the terms that a log printed, in place of a formula's")]


class ShowAnswer(_Answer):
    """``kvcalc show``: one row, and with a device what the engine takes of it besides."""

    rows: list[FootprintRecord]
    pool: PoolRecord | None


class CompareAnswer(_Answer):
    """``kvcalc compare``: a row a configuration, in the order in which they were typed."""

    rows: list[FootprintRecord]


class GrowthRecord(TypedDict):
    """How one configuration grows; a rate or a context that does not exist is null."""

    reference: str
    engine: str
    early_bytes_per_token: Annotated[int | float | None, Field(description="the rate below the smallest window")]
    late_bytes_per_token: Annotated[int | float, Field(description="the rate beyond every window")]
    saturation_context: Annotated[int | None, Field(description="from here the windowed layers hold no more")]
    overtakes_weights_context: Annotated[
        int | None, Field(description="the first context whose cache exceeds the weights")
    ]
    small_share_context: Annotated[
        int | None, Field(description="from here the windowed layers are under 1 % of the cache")
    ]


class SweepAnswer(_Answer):
    """``kvcalc sweep``: a row a context and configuration; ``growth`` only with ``--growth``."""

    growth: NotRequired[list[GrowthRecord]]
    rows: list[FootprintRecord]


class ExhibitRecord(FootprintRecord):
    """A configuration of one of the report's figures."""

    exhibit: Literal["Fig. 5", "Fig. 6"]


class PaperAnswer(_Answer):
    """``kvcalc paper``."""

    claims: list[Claim]
    evidence: list[Evidence]
    caveats: list[str]
    rows: list[ExhibitRecord]


class PresetRecord(TypedDict):
    """One model preset."""

    name: str
    family: str | None
    model_type: str
    layout: str
    ratio: Annotated[str | None, Field(description="local to global attention layers")]
    windows: list[int]
    kinds: list[str]
    parameters: Count
    active_parameters: Count
    exact_parameters: bool
    bytes_per_token: Count
    max_context: int | None
    dtype: str
    hf_ids: Annotated[list[str], Field(description="the Hub's names: that of these numbers, then others alike")]
    ollama_tags: list[str]
    sources: list[str]
    notes: list[str]


class ModelsAnswer(_Answer):
    """``kvcalc models``."""

    rows: list[PresetRecord]


class DevicesAnswer(_Answer):
    """``kvcalc devices``."""

    rows: list[Device]


class EngineHelpRecord(TypedDict):
    """One engine with its rule."""

    name: str
    summary: str
    follows: str
    evidence: str
    formula: str
    sources: list[str]
    not_modelled: list[str]
    platforms: Annotated[list[str], Field(description="what it runs on; empty for an accounting")]
    options: list[OptionHelp]


class EnginesAnswer(_Answer):
    """``kvcalc engines``."""

    rows: list[EngineHelpRecord]


class PartRecord(TypedDict):
    """A part of a workload."""

    batch_size: int
    context: int


class CheckedRecord(TypedDict):
    """One limit of a budget."""

    rule: str
    verdict: Literal["pass", "warn", "fail"]
    used_bytes: Count
    limit_bytes: Count
    headroom_bytes: int
    terms: Annotated[str, Field(description="how the limit of a device came about")]
    pool: Annotated[PoolRecord | None, Field(description="the same, term by term")]


class InputChangeRecord(TypedDict):
    """An input that is not what it was in the baseline."""

    input: str
    before: object
    now: object


class ChangeRecord(TypedDict):
    """The difference from the baseline; the parts add up to the total."""

    total_bytes: int
    parts: dict[str, int]
    inputs: list[InputChangeRecord]


class BudgetRecord(TypedDict):
    """One budget; the limit with the least headroom stands at the top.

    A budget that was removed, or that could not be judged, has no footprint.
    """

    name: str
    verdict: Literal["pass", "warn", "fail", "error", "added", "removed"]
    sentence: str
    details: list[str]
    rule: str | None
    used_bytes: Count | None
    limit_bytes: Count | None
    headroom_bytes: int | None
    headroom: Annotated[float | None, Field(description="as a share of the limit")]
    checks: list[CheckedRecord]
    hints: Annotated[list[str], Field(description="what would fit, each computed")]
    message: str | None
    error: Annotated[str | None, Field(description="why the budget could not be judged")]
    mix: Annotated[list[PartRecord] | None, Field(description="sequences of several contexts at a time")]
    change: ChangeRecord | None
    file: str | None
    line: int | None
    table: str | None


class JudgedRecord(BudgetRecord, FootprintRecord):
    """A budget with what its configuration takes."""


class CheckAnswer(_Answer):
    """``kvcalc check``: a row a budget, in the order of the files; then those that only the baseline knows."""

    rows: list[JudgedRecord | BudgetRecord]


Verdict = Literal["agrees", "disagrees", "not checked"]


class AuditedRecord(TypedDict):
    """One figure of a log; reported and predicted as printed."""

    start: Annotated[int, Field(description="which start of the log, from 1")]
    figure: str
    line: int | None
    reported: str
    predicted: Annotated[str | None, Field(description="null where nothing says what it should be")]
    unit: str
    difference: str | None
    verdict: Verdict


class TermRecord(TypedDict):
    """Another part of the device's memory, as printed: weights, activation, CUDA graphs ..."""

    name: str
    reported: str
    unit: str
    line: int


class DeviceTermRecord(TypedDict):
    """Another part of the device's memory beside what weights and formulas say."""

    name: str
    reported_bytes: Annotated[Count, Field(description="as far as the printed digits go")]
    predicted_bytes: Count


class AuditedStart(TypedDict):
    """One start of one engine in the log."""

    number: int
    line: int | None
    engine: str | None
    version: str | None
    reference: str | None
    verdict: Verdict
    counts: Annotated[bool, Field(description="whether its figures are among the rows, and decide")]
    reason: str | None
    difference: str | None
    terms: list[TermRecord]
    device_terms: Annotated[list[DeviceTermRecord], Field(description="only where a device was named")]
    notes: list[str]


class AuditAnswer(_Answer):
    """``kvcalc audit``: a row per figure."""

    reference: str
    agrees: Annotated[bool, Field(description="no start that counts has a figure that disagrees")]
    reason: str | None
    notes: list[str]
    starts: list[AuditedStart]
    rows: list[AuditedRecord]


class CapacityRecord(TypedDict):
    """What fits into the pool."""

    fits: bool
    context: int | None
    batch_size: int
    max_context: Annotated[int | None, Field(description="tokens a sequence; 0: none fits, null: nothing bounds it")]
    max_batch_size: Annotated[
        int | None, Field(description="sequences of that context; null without one, or unbounded")
    ]
    required_kv_memory: int | None
    missing_bytes: int | None
    reported_context: Annotated[int, Field(description="the context of the engine's figures and of the row")]
    engine_report: Annotated[dict[str, object], Field(description="the engine's own names and figures")]
    refusal: Annotated[str | None, Field(description="why the engine refuses to start with this pool")]


class LeverRecord(TypedDict):
    """One change with which the workload fits."""

    lever: str
    flags: str
    consequence: str
    required_kv_memory: int | None
    kv_memory: int


class SplitRecord(TypedDict):
    """Groups of devices that share every layer, and replicas of them."""

    tensor_parallel_size: int
    devices_per_replica: int
    kv_memory: int | None
    sequences_per_replica: int | None
    replicas: int | None
    sequences: int | None
    devices_needed: int | None
    refusal: str


class AlternativeRecord(TypedDict):
    """One engine or device that was not named."""

    engine: str
    device: str | None
    devices: Annotated[int, Field(description="devices that share every layer")]
    fits: bool
    max_context: int | None
    max_batch_size: int | None
    kv_memory: Annotated[int | None, Field(description="of one device; null where the engine refuses")]
    refusal: str
    not_modelled: Annotated[str | None, Field(description="why activations, runtime and graphs are not counted")]


class NeighbourRecord(TypedDict):
    """Another model on the device."""

    reference: str
    utilization: Annotated[str | None, Field(description="its engine's part of the device, as a decimal")]
    taken_bytes: Annotated[int, Field(description="memory of the device that is its own")]
    kv_memory: int
    context: int | None
    fits: bool
    max_batch_size: int | None


class FitAnswer(_Answer):
    """``kvcalc fit``: the footprint at the stated context, or at the longest that fits."""

    verdict: Annotated[str, Field(description="the answer in a sentence")]
    pool: PoolRecord
    capacity: CapacityRecord
    frontier: list[Point]
    levers: list[LeverRecord]
    splits: list[SplitRecord]
    alternatives: list[AlternativeRecord]
    users: list[Users]
    beside: list[NeighbourRecord]
    server_command: Annotated[str | None, Field(description="the line that starts the server")]
    rows: list[FootprintRecord]


class StandingRecord(TypedDict):
    """Where a layout stands against the report's ablations."""

    ratio: str
    window: str
    text: str


class CandidateRecord(TypedDict):
    """A candidate among the others."""

    command: Annotated[str, Field(description="what shows the row again")]
    fits: Annotated[bool | None, Field(description="null without a memory")]
    local_layers: int
    attention_layers: int
    local_share: float
    pareto: Annotated[bool | None, Field(description="on the front of its context; null with --all")]
    evidence: StandingRecord


class FoundRecord(FootprintRecord):
    """A footprint that a search found."""

    search: CandidateRecord


class WalkRecord(TypedDict):
    """The grid; with ``--all`` only its size is known."""

    candidates: int
    walked: NotRequired[int]
    fitting: NotRequired[int]
    refused: NotRequired[int]
    interrupted: NotRequired[bool]


class SearchAnswer(_Answer):
    """``kvcalc search``: the candidates with the least memory and those on a front."""

    search: WalkRecord
    rows: list[FoundRecord]


#: Command -> the shape of its JSON.
ANSWERS = {
    "show": ShowAnswer,
    "compare": CompareAnswer,
    "sweep": SweepAnswer,
    "fit": FitAnswer,
    "search": SearchAnswer,
    "paper": PaperAnswer,
    "models": ModelsAnswer,
    "devices": DevicesAnswer,
    "engines": EnginesAnswer,
    "check": CheckAnswer,
    "audit": AuditAnswer,
}
