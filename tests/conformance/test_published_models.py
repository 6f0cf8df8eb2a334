"""Configurations and presets of published models against their layouts and their parameter counts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from configs import read

import kvcalc
from kvcalc.architecture import State
from kvcalc.setup import prepare
from kvcalc.sources import shipped
from kvcalc.sources.config import config_to_spec, read_config
from kvcalc.sources.config.family import all_families
from kvcalc.sources.preset import export_spec, load_preset, load_spec, preset_tables, preset_text, spec_to_architecture
from kvcalc.weights import weights

CONFIGS = read("configs.json")
LAYOUTS = read("published_layouts.json")
OTHERS = read("other_configs.json")
INSTANTIATED = read("instantiated.json")
CONTEXTS = (1, 100, 4096, 32_768, 131_072, 1_000_001)
# The order of Ministral's layers is on its card, not in its file.
NOT_IN_THE_FILE = {"ministral-8b-2410"}


def _kind_bytes(kind: dict[str, Any], tokens: int) -> int:
    """Bytes of one sequence in one layer at two bytes a number, straight from a published layout."""
    match kind["kind"]:
        case "full" | "blocksparse" | "sliding" | "chunked":
            held = min(tokens, kind.get("window") or kind.get("chunk") or tokens)
            pair = kind["kv_heads"] * (kind["k_dim"] + kind["v_dim"])
            return 2 * held * (pair + kind.get("indexer_dim", 0)) + kind.get("extra_state_bytes", 0)
        case "mla":
            return 2 * tokens * (kind["latent"] + kind["rope"] + kind.get("indexer_dim", 0))
        case "state":
            return int(kind["bytes_per_seq"])
        case "parallel":
            return _kind_bytes(kind["attn"], tokens) + _kind_bytes(kind["state"], tokens)
        case "shared_kv_sliding":
            return 2 * min(tokens, kind["window"]) * kind["width"]
        case "compressed":
            entries = tokens // kind["rate"]
            return 2 * (
                min(tokens, kind["window"]) * kind["width"] + entries * (kind["width"] + kind.get("indexer_dim", 0))
            )
        case "shared" | "none":
            return 0
    raise AssertionError(kind)


def _published_bytes(name: str, tokens: int) -> int:
    layout = LAYOUTS[name]
    return sum(_kind_bytes(layout["kinds"][letter], tokens) for letter in layout["layers"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_preset_costs_what_its_published_layout_costs(name: str) -> None:
    model = load_preset(name)
    found = [kvcalc.kv_cache_bytes(model, context=tokens, kv_cache_dtype="bf16") for tokens in CONTEXTS]
    assert found == [_published_bytes(name, tokens) for tokens in CONTEXTS]


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - NOT_IN_THE_FILE))
def test_a_preset_and_the_config_of_the_same_model_are_equal(name: str) -> None:
    preset = load_preset(name)
    read_model = read_config(CONFIGS[name], name)
    # What a card says of the longest context is not always in the file.
    assert dataclasses.replace(read_model, max_context=preset.max_context) == preset


@pytest.mark.parametrize("name", OTHERS)
def test_a_config_alone_gives_the_cache_of_models_without_a_preset(name: str) -> None:
    row = OTHERS[name]
    model = read_config(row["config"], name)
    assert kvcalc.kv_cache_bytes(model, context=32_768, kv_cache_dtype="bf16") == row["kv_bytes"]
    if row["parameters"] is not None:
        assert weights(model, None).parameters == row["parameters"]


@pytest.mark.parametrize("name", INSTANTIATED)
def test_parameters_equal_the_instantiated_modules(name: str) -> None:
    row = INSTANTIATED[name]
    model = read_config(row["config"], name)
    assert weights(model, None).parameters == row["parameters"]
    for context, kv_bytes in row["kv_bytes"].items():
        assert kvcalc.kv_cache_bytes(model, context=int(context)) == kv_bytes


def test_every_published_count_is_held_by_its_preset() -> None:
    rows = all_families()
    for row in rows.values():
        for name, parameters in row.published.items():
            model = load_preset(name)
            counted, proved = weights(model, None).parameters, model.provenance.exact_parameters
            assert (rows[model.model_type], counted, proved) == (row, parameters, True), name


def test_every_state_of_qwen_3_5_and_after_has_a_recurrent_part_in_float32() -> None:
    # Their configs say "mamba_ssm_dtype". Servers of Qwen3.8 27B print blocks of 784 tokens; bfloat16 would give 400.
    presets = [
        load_preset(name) for name in shipped.names("models") if name.startswith(("qwen3.5", "qwen3.6", "qwen3.8"))
    ]
    assert len(presets) >= 15
    for preset in presets:
        assert {kind.recurrent_dtype for kind, _ in preset.caches if isinstance(kind, State)} == {"float32"}, (
            preset.name
        )


def test_presets_have_sources_and_names_of_their_own() -> None:
    names = shipped.names("models")
    assert len(names) >= 130
    answered: dict[str, str] = {}
    for name in names:
        tables = preset_tables(name)
        assert tables["sources"], name
        for other in (*tables.get("hf_ids", ()), *tables.get("ollama_tags", ())):
            assert answered.setdefault(other.casefold(), name) == name


def test_a_count_is_exact_only_where_it_is_published() -> None:
    estimated = {"phi-3-small-8k", "step-3", "hunyuan-large", "baichuan-m1-14b", "gemma3-report-2b"}
    estimated |= {"mimo-7b", "qwen3-vl-4b", "step-3.7-flash", "step-3.7-flash-fp8"}
    for name in shipped.names("models"):
        model = load_preset(name)
        assert model.provenance.exact_parameters == (name not in estimated), name
        assert weights(model, None).exact == (name not in estimated), name
    shrunk = read_config(CONFIGS["gemma-2-2b"] | {"intermediate_size": 9215})
    assert not weights(shrunk, None).exact


def test_every_preset_reads_back_from_its_export(tmp_path: Any) -> None:
    from kvcalc.sources.preset import preset_tables
    from kvcalc.sources.spec import ModelSpec

    for name in shipped.names("models"):
        spec = ModelSpec.model_validate(preset_tables(name))
        path = tmp_path / "spec.toml"
        path.write_text(export_spec(spec))
        assert load_spec(path) == load_preset(name), name


def test_a_config_can_be_exported_as_a_spec() -> None:
    import tomllib

    spec = config_to_spec(CONFIGS["gemma-4-26b-a4b"], "gemma-4-26b-a4b")
    again = spec_to_architecture(tomllib.loads(export_spec(spec)), "spec.toml")
    assert again == load_preset("gemma-4-26b-a4b")


def test_the_text_of_a_preset_is_its_file() -> None:
    assert preset_text("gemma-2-2b").startswith('name = "gemma-2-2b"')


def test_every_preset_states_where_its_numbers_come_from() -> None:
    for name in shipped.names("models"):
        model = load_preset(name)
        assert model.name == name
        assert model.provenance.sources, name


def test_active_parameters_stand_beside_the_total() -> None:
    counted = weights(load_preset("mixtral-8x7b"), None)
    # Two of eight experts of 3 x 4096 x 14336 numbers in each of 32 layers.
    assert counted.parameters - counted.active_parameters == 6 * 32 * 3 * 4096 * 14336


def test_multi_token_prediction_costs_only_when_asked_for() -> None:
    model = load_preset("deepseek-v3")
    assert model.num_layers == 61
    more = prepare(model, draft="mtp").served
    assert more.num_layers == 62
    assert kvcalc.kv_cache_bytes(more, context=1000) * 61 == kvcalc.kv_cache_bytes(model, context=1000) * 62
    # The last block once more, a projection of 2 D x D and three norms of D numbers.
    last = model.layers[model.order[-1]]
    block = sum(tensor.elements for tensor in (*last.mixer, *last.rest))
    added = weights(more, None).parameters - weights(model, None).parameters
    assert added == block + 2 * 7168**2 + 3 * 7168
