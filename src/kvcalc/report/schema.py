"""The shapes of ``--format json``, as pydantic models: the source of the shipped JSON Schemas.

No command loads this module; ``python -m kvcalc.report.schema`` writes ``schemas/*.schema.json`` anew, and a test holds
both the files and the commands' output against the models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

SCHEMAS = Path(__file__).with_name("schemas")


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class EngineShape(_Shape):
    """The engine, the version whose rule answers, and the options that were given."""

    name: str
    version: str
    options: dict[str, Any]


class WorkloadShape(_Shape):
    """What was asked."""

    context: int = Field(description="tokens in the cache of one sequence")
    batch_size: int = Field(description="sequences")
    k_dtype: str
    v_dtype: str
    tensor_parallel_size: int
    encoder_tokens: NonNegativeInt
    draft: str | None = Field(description="the draft model, or null")


class WeightsShape(_Shape):
    """The weights: parameters of the whole model, bytes on one device."""

    parameters: NonNegativeInt
    active_parameters: NonNegativeInt = Field(description="parameters read for one token")
    bytes: NonNegativeInt
    dtype: str
    exact: bool = Field(description="proved against a published or instantiated count, or measured in files")
    parts: dict[str, NonNegativeInt] = Field(description="parameters by part")


class LayersShape(_Shape):
    """All layers of one kind."""

    kind: str
    count: int
    window: int | None = Field(description="tokens beyond which such a layer keeps no more")
    tokens: NonNegativeInt = Field(description="token slots of each of these layers, all sequences together")
    bytes: NonNegativeInt


class KVCacheShape(_Shape):
    """The KV cache on one device; the layers and the padding add up to ``bytes``."""

    bytes: NonNegativeInt = Field(description="the engine's reservation or its peak: the number to budget")
    steady_bytes: NonNegativeInt = Field(description="held while decoding at that context")
    ideal_bytes: NonNegativeInt = Field(description="the report's accounting")
    layers: list[LayersShape]
    padding_bytes: NonNegativeInt
    notes: list[str]


class FootprintShape(_Shape):
    """One configuration; every byte figure is for one device."""

    reference: str = Field(description="the model as typed")
    model: str
    layout: str
    engine: EngineShape
    workload: WorkloadShape
    weights: WeightsShape
    kv_cache: KVCacheShape
    total_bytes: NonNegativeInt
    overhead: float | None = Field(description="KV cache over weights; null for a model without weights")
    devices: int
    notes: list[str]


class _Answer(_Shape):
    schema_version: Literal[1]
    tool_version: str


class ShowShape(_Answer):
    """``kvcalc show``: one row."""

    rows: list[FootprintShape]


class CompareShape(_Answer):
    """``kvcalc compare``: a row a configuration, in the order in which they were typed."""

    rows: list[FootprintShape]


class GrowthShape(_Shape):
    """How one configuration grows; a rate or a context that does not exist is null."""

    reference: str
    engine: str
    early_bytes_per_token: int | float | None = Field(description="the rate below the smallest window")
    late_bytes_per_token: int | float = Field(description="the rate beyond every window")
    saturation_context: int | None = Field(description="from here the windowed layers hold no more")
    overtakes_weights_context: int | None = Field(description="the first context whose cache exceeds the weights")
    small_share_context: int | None = Field(description="from here the windowed layers are under 1 % of the cache")


class SweepShape(_Answer):
    """``kvcalc sweep``: a row a context and configuration; ``growth`` only with ``--growth``."""

    growth: list[GrowthShape] | None = None
    rows: list[FootprintShape]


class ExhibitShape(FootprintShape):
    """A configuration of one of the report's figures."""

    exhibit: Literal["Fig. 5", "Fig. 6"]


class ClaimShape(_Shape):
    """A sentence of the report held against the cost model."""

    published: str
    computed: str
    holds: bool
    assumption: str


class EvidenceShape(_Shape):
    """What the report published about quality."""

    figure: str
    varied: str
    models: str
    bound: float


class PaperShape(_Answer):
    """``kvcalc paper``."""

    claims: list[ClaimShape]
    evidence: list[EvidenceShape]
    caveats: list[str]
    rows: list[ExhibitShape]


class PresetShape(_Shape):
    """One model preset."""

    name: str
    family: str | None
    model_type: str
    layout: str
    ratio: str | None = Field(description="local to global attention layers")
    windows: list[int]
    kinds: list[str]
    parameters: NonNegativeInt
    active_parameters: NonNegativeInt
    exact_weights: bool
    bytes_per_token: NonNegativeInt
    max_context: int | None
    dtype: str
    hf_id: str | None
    sources: list[str]
    notes: list[str]


class PresetsShape(_Answer):
    """``kvcalc presets``."""

    rows: list[PresetShape]


class OptionShape(_Shape):
    """One option of an engine."""

    name: str
    default: Any
    description: str


class EngineHelpShape(_Shape):
    """One engine with its rule."""

    name: str
    summary: str
    follows: str
    evidence: str
    formula: str
    sources: list[str]
    not_modelled: list[str]
    options: list[OptionShape]


class EnginesShape(_Answer):
    """``kvcalc engines``."""

    rows: list[EngineHelpShape]


class CheckedShape(_Shape):
    """One limit of a budget."""

    rule: str
    verdict: Literal["pass", "warn", "fail"]
    used_bytes: NonNegativeInt
    limit_bytes: NonNegativeInt
    headroom_bytes: int


class InputChangeShape(_Shape):
    """An input that is not what it was in the baseline."""

    input: str
    before: Any
    now: Any


class ChangeShape(_Shape):
    """The difference from the baseline; the parts add up to the total."""

    total_bytes: int
    parts: dict[str, int]
    inputs: list[InputChangeShape]


class BudgetShape(_Shape):
    """One budget; the limit with the least headroom stands at the top. A removed budget has no configuration."""

    name: str
    verdict: Literal["pass", "warn", "fail", "added", "removed"]
    sentence: str
    details: list[str]
    rule: str | None
    used_bytes: NonNegativeInt | None
    limit_bytes: NonNegativeInt | None
    headroom_bytes: int | None
    headroom: float | None = Field(description="as a share of the limit")
    checks: list[CheckedShape]
    hints: list[str] = Field(description="what would fit, each computed")
    message: str | None
    change: ChangeShape | None
    file: str | None
    line: int | None
    table: str | None


class JudgedShape(BudgetShape, FootprintShape):
    """A budget with what its configuration takes."""


class CheckShape(_Answer):
    """``kvcalc check``: a row a budget, in the order of the files; then those that only the baseline knows."""

    rows: list[JudgedShape | BudgetShape]


class AuditedShape(_Shape):
    """One figure of a log; reported and predicted as printed."""

    figure: str
    line: int | None
    reported: str
    predicted: str
    unit: str
    difference: str | None
    agrees: bool


class AuditShape(_Answer):
    """``kvcalc audit``: a row a figure."""

    reference: str
    agrees: bool
    reason: str | None
    notes: list[str]
    rows: list[AuditedShape]


class PoolShape(_Shape):
    """From a device to a pool; all but ``kv_memory`` are null where the pool was given as such."""

    kv_memory: int = Field(description="bytes for the KV cache; negative where the weights alone do not fit")
    device_memory: int | None
    utilization: str | None = Field(description="the part of the device that the engine takes, as a decimal")
    usable_bytes: int | None
    weights_bytes: int | None
    reserve_bytes: int | None


class CapacityShape(_Shape):
    """What fits into the pool."""

    fits: bool
    context: int | None
    batch_size: int
    max_context: int | None = Field(description="tokens a sequence; 0: none fits, null: nothing bounds it")
    max_batch_size: int | None = Field(description="sequences of the stated context; null without one, or unbounded")
    required_kv_memory: int | None
    missing_bytes: int | None
    reported_context: int = Field(description="the context of the engine's figures and of the row")
    engine_report: dict[str, Any] = Field(description="the engine's own names and figures")
    refusal: str | None = Field(description="why the engine refuses to start with this pool")


class PointShape(_Shape):
    """A workload that fits, where one sequence or one token more does not."""

    context: int
    batch_size: int
    required_kv_memory: int


class LeverShape(_Shape):
    """One change with which the workload fits."""

    lever: str
    flags: str
    consequence: str
    required_kv_memory: int | None
    kv_memory: int


class SplitShape(_Shape):
    """Groups of devices that share every layer, and replicas of them."""

    tensor_parallel_size: int
    devices_per_replica: int
    kv_memory: int | None
    sequences_per_replica: int | None
    replicas: int | None
    sequences: int | None
    devices_needed: int | None
    refusal: str


class FitShape(_Answer):
    """``kvcalc fit``: the footprint at the stated context, or at the longest that fits."""

    pool: PoolShape
    capacity: CapacityShape
    frontier: list[PointShape]
    levers: list[LeverShape]
    splits: list[SplitShape]
    rows: list[FootprintShape]


class StandingShape(_Shape):
    """Where a layout stands against the report's ablations."""

    ratio: str
    window: str
    text: str


class CandidateShape(_Shape):
    """A candidate among the others."""

    command: str = Field(description="what shows the row again")
    fits: bool | None = Field(description="null without a memory")
    local_layers: int
    attention_layers: int
    local_share: float
    pareto: bool | None = Field(description="on the front of its context; null with --all")
    evidence: StandingShape


class FoundShape(FootprintShape):
    """A footprint that a search found."""

    search: CandidateShape


class WalkShape(_Shape):
    """The grid; with ``--all`` only its size is known."""

    candidates: int
    walked: int | None = None
    fitting: int | None = None
    refused: int | None = None
    interrupted: bool | None = None


class SearchShape(_Answer):
    """``kvcalc search``: the candidates with the least memory and those on a front."""

    search: WalkShape
    rows: list[FoundShape]


#: Command -> the shape of its JSON.
SHAPES: dict[str, type[_Answer]] = {
    "show": ShowShape,
    "compare": CompareShape,
    "sweep": SweepShape,
    "fit": FitShape,
    "search": SearchShape,
    "paper": PaperShape,
    "presets": PresetsShape,
    "engines": EnginesShape,
    "check": CheckShape,
    "audit": AuditShape,
}


def schema_text(command: str) -> str:
    """The JSON Schema of a command's output, as its file holds it."""
    schema = json.loads(json.dumps(SHAPES[command].model_json_schema()), object_hook=_without_defaults)
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def _without_defaults(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a schema without ``"additionalProperties": true``: the default, which pydantic 2.10 leaves out."""
    return {key: value for key, value in part.items() if (key, value) != ("additionalProperties", True)}


if __name__ == "__main__":
    for each in SHAPES:
        SCHEMAS.joinpath(f"{each}.schema.json").write_text(schema_text(each), encoding="utf-8")
