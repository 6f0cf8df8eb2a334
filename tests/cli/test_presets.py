"""What is shipped: models to list, to look at and to take away."""

import json
import tomllib

from answers import checked


def names(kvcalc, *filters: str) -> list[str]:
    return [row["name"] for row in json.loads(kvcalc("presets", *filters, "--format", "json").out)["rows"]]


def test_presets_are_grouped_by_family_and_filtered(kvcalc):
    every = names(kvcalc)
    assert len(every) >= 90
    assert names(kvcalc, "--family", "gemma", "--search", "27b") == ["gemma-2-27b", "gemma-3-27b"]
    assert "deepseek-v3" in names(kvcalc, "--kind", "latent")
    assert names(kvcalc, "--search", "no such model") == []


def test_a_preset_is_shown_with_its_layers_in_order_and_its_sources(kvcalc):
    out = kvcalc("presets", "show", "gemma-3-1b").out
    assert "▒▒▒▒▒█" * 4 + "▒▒\n" in out
    assert "999,885,952" in out
    assert "config.json of google/gemma-3-1b-pt" in out
    checked("models", kvcalc("presets", "show", "gemma-3-1b", "--format", "json").out)
    assert kvcalc("presets", "show", "gemma-3-1").code == 2


def test_an_exported_preset_is_a_spec_that_can_be_edited_and_used(kvcalc, tmp_path):
    spec = tmp_path / "mine.toml"
    assert kvcalc("presets", "export", "gemma-3-1b", "-o", str(spec)).code == 0
    spec.write_text(spec.read_text().replace("num_layers = 26", "num_layers = 12"))
    row = json.loads(kvcalc("show", str(spec), "-c", "1k", "--format", "json").out)["rows"][0]
    assert row["layout"] == "10 sliding (512) + 2 full"


def test_a_config_json_is_exported_as_the_spec_that_it_means(kvcalc, tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    config = folder / "config.json"
    config.write_text(
        json.dumps(
            {
                "model_type": "gemma3",
                "text_config": {
                    "hidden_size": 2560,
                    "intermediate_size": 10240,
                    "num_hidden_layers": 34,
                    "sliding_window": 1024,
                },
            }
        )
    )
    exported = kvcalc("presets", "export", str(config)).out
    assert tomllib.loads(exported)["name"] == "my-model"
    spec = tmp_path / "spec.toml"
    spec.write_text(exported)
    shown = [kvcalc("show", each, "-c", "32k", "--format", "json").out for each in (str(config), str(spec))]
    rows = [json.loads(out)["rows"][0] for out in shown]
    assert rows[0]["kv_cache"] == rows[1]["kv_cache"]
    assert rows[0]["weights"] == rows[1]["weights"]


def test_the_ratio_of_a_layout_is_told_in_its_own_notation(kvcalc):
    rows = {row["name"]: row["ratio"] for row in json.loads(kvcalc("presets", "--format", "json").out)["rows"]}
    assert rows["gemma-3-27b"] == "5:1"
    assert rows["gemma-2-2b"] == "1:1"
    assert rows["mistral-7b-v0.1"] == "1:0"
    assert rows["llama-3.1-8b"] is None
    assert rows["baichuan-m1-14b"] == "20:20"  # odd layers are local: no block of local layers first


def test_a_word_lists_the_models_that_have_it_and_a_name_shows_one(kvcalc):
    listed = names(kvcalc, "gemma")
    assert {"gemma-7b", "gemma-3-27b"} <= set(listed)
    assert all("gemma" in name for name in listed)
    for name in ("gemma3:27b", "google/gemma-3-27b-it", "gemma-3-27b"):
        assert [row["name"] for row in json.loads(kvcalc("models", name, "--json").out)["rows"]] == ["gemma-3-27b"]
    assert kvcalc("models", "gema-3-27b").err.endswith("did you mean 'gemma-3-27b'? see 'kvcalc models'\n")


def test_devices_are_listed_with_their_memory_and_by_their_words(kvcalc):
    rows = json.loads(kvcalc("devices", "H100", "--json").out)["rows"]
    assert [row["name"] for row in rows] == ["h100-pcie-80gb", "h100-80gb", "h100-nvl-94gb"]
    assert kvcalc("devices", "h100").out.splitlines()[0] == "3 devices with 'h100'"
    assert kvcalc("devices", "no such device").code == 2  # 1 is a well-formed question answered "no"
