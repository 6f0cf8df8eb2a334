"""Encoders of images: their parameters by the defaults of transformers 5.24.0's classes, and what a device holds."""

import json
from pathlib import Path

import pytest

import kvcalc
from kvcalc.errors import InputError
from kvcalc.serving import server_line
from kvcalc.sources.config.images import largest_image
from kvcalc.sources.config.towers import tower_parameters
from kvcalc.weights import weights

SIGLIP_400M = {
    "hidden_size": 1152,
    "intermediate_size": 4096,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}
DEEPSEEK_OCR = {
    "model_type": "deepseek_vl_v2",
    "architectures": ["DeepseekOCRForCausalLM"],
    "vision_config": {"image_size": 1024, "model_type": "vision"},
}
#: Random sizes, by tests/oracles/towers.py.
RECORDED = json.loads((Path(__file__).parents[1] / "data" / "towers.json").read_text(encoding="utf-8"))
# Counted by building each class with its default configuration, encoder and projector together; Kimi K3, which has no
# class there, is what its checkpoint holds: 802,428,928 bytes of an encoder and 92,289,024 of a projector.
DEFAULTS = {
    "qwen2_vl": (8192, 675_759_104, {}),
    "qwen2_5_vl": (8192, 3_083_025_152, {}),
    "qwen3_vl": (4096, 566_949_104, {}),
    "qwen3_5": (4096, 453_650_672, {}),
    "gemma3": (2304, 94_654_464, {}),
    "paligemma": (2048, 401_858_816, SIGLIP_400M),
    "llava": (4096, 324_487_168, {}),
    "mistral3": (5120, 438_958_080, {"patch_size": 14}),
    "llama4": (5120, 455_178_240, {}),
    "mllama": (4096, 867_749_395, {}),
    "internvl": (4096, 337_509_376, {}),
    "glm4v": (4096, 892_498_432, {}),
    "kimi_k25": (7168, 471_143_920, {}),
    "kimi_k3": (7168, 447_358_976, {}),
    "idefics3": (4096, 171_270_144, {}),
}


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_an_encoder_has_the_parameters_of_its_class(model_type):
    width, parameters, stated = DEFAULTS[model_type]
    config = {"model_type": model_type, "vision_config": {"model_type": "vision"} | stated}
    assert tower_parameters(config, width) == ({"vision": parameters}, [])


@pytest.mark.parametrize("row", RECORDED, ids=[row["config"]["model_type"] for row in RECORDED])
def test_encoders_have_the_parameters_of_their_class_whatever_their_sizes(row):
    towers, unknown = tower_parameters(row["config"], row["text_width"])
    assert (sum(towers.values()), unknown) == (row["parameters"], [])


@pytest.mark.parametrize(
    ("config", "width", "parameters"),
    [
        # What the published totals have beside the text: DeepSeek-OCR, Phi-3.5-vision, Molmo-7B-D.
        (DEEPSEEK_OCR, 1280, 3_336_106_240 - 2_934_734_080),
        ({"model_type": "phi3_v", "img_processor": {"name": "clip_vision_model"}}, 3072, 4_146_621_440 - 3_821_079_552),
        ({"model_type": "molmo", "intermediate_size": 37888}, 3584, 8_021_025_280 - 7_616_075_264),
        # UnlimitedOcr of transformers 5.24.0 without its separator; MiniCPM-V 2 counted by hand.
        ({"model_type": "unlimited-ocr"}, 1280, 3_335_504_128 - 2_934_735_360),
        ({"model_type": "minicpmv"}, 2304, 397_747_744 + 29_514_240),
    ],
)  # fmt: skip
def test_encoders_that_no_table_of_the_file_states(config, width, parameters):
    assert tower_parameters(config, width) == ({"vision": parameters}, [])


def test_an_encoder_that_a_file_only_names_is_said_not_to_be_counted():
    config = {"model_type": "llava_qwen", "mm_vision_tower": "google/siglip-so400m-patch14-384"}
    assert tower_parameters(config, 3584) == (
        {},
        ["not modelled: the image encoder of 'llava_qwen'; its weights are not counted"],
    )


def test_encoders_of_images_and_sound_are_a_row_each():
    config = next(row["config"] for row in RECORDED if row["config"]["model_type"] == "qwen2_5_omni_thinker")
    towers, _ = tower_parameters(config, 3584)
    assert set(towers) == {"vision", "audio"}
    text = {"model_type": "qwen2_5_omni_text", "num_hidden_layers": 2}
    counted = weights(kvcalc.read_config(config | {"text_config": text}), None)
    width = kvcalc.read_config(config | {"text_config": text}).hidden_size
    assert counted.beside == {sense: 2 * size for sense, size in tower_parameters(config, width)[0].items()}


def test_the_sizes_of_an_encoder_are_counts():
    broken = {"model_type": "gemma3", "vision_config": {"hidden_size": "wide"}}
    with pytest.raises(InputError, match="hidden_size must be a whole number"):
        tower_parameters(broken, 2304)
    folded = {"model_type": "internvl", "downsample_ratio": 0, "vision_config": {"hidden_size": 64}}
    with pytest.raises(InputError, match="the sizes of the image encoder fit no model"):
        tower_parameters(folded, 2304)
    listed = {
        "model_type": "internvl",
        "vision_config": {"image_size": [], "patch_size": [14, 14], "num_channels": 3.0},
    }
    assert tower_parameters(listed, 2304) == tower_parameters(
        {"model_type": "internvl", "vision_config": {"a": 1}}, 2304
    )


def test_an_encoder_is_a_row_of_the_weights_and_no_parameter_of_the_text_model():
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    alone = kvcalc.read_config({"model_type": "gemma3", "text_config": text})
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
    tower |= {"image_size": 896, "vision_use_head": False}
    both = kvcalc.read_config({"model_type": "gemma3", "text_config": text, "vision_config": tower})
    counted, plain = weights(both, None), weights(alone, None)
    assert counted.parameters == plain.parameters
    assert counted.beside == {"vision": counted.bytes - plain.bytes}
    # google/gemma-3-4b-it: 4,300,079,472 parameters, of which the language model has 3,880,263,168
    assert counted.beside["vision"] == 2 * (4_300_079_472 - 3_880_263_168)


def test_an_encoder_without_a_rule_is_said_to_be_left_out():
    model = kvcalc.read_config(
        {"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}, "vision_config": {"hidden_size": 2048}}
    )
    assert any(note.startswith("not modelled: the image encoder of 'gemma3n'") for note in model.provenance.notes)


@pytest.mark.parametrize(
    ("model_type", "vision", "image"),
    [
        # Numbers of a square of so many pixels and three channels; Qwen hands over two frames.
        ("gemma3", {"image_size": 896}, {"tokens": 256, "numbers": 3 * 896 * 896}),
        ("paligemma", {"image_size": 448, "patch_size": 14}, {"tokens": 1024, "numbers": 3 * 448 * 448}),
        ("llava", {"image_size": 336, "patch_size": 14}, {"tokens": 576, "numbers": 3 * 336 * 336}),
        (
            "llava",
            {"model_type": "pixtral", "image_size": 1024, "patch_size": 16},
            {"tokens": 4096, "numbers": 3 * 1024 * 1024},
        ),
        ("mistral3", {"image_size": 1540, "patch_size": 14}, {"tokens": 3025, "numbers": 3 * 1540 * 1540}),
        ("qwen2_5_vl", {"patch_size": 14}, {"tokens": 16384, "numbers": 16384 * 3 * 2 * 28 * 28}),
        ("qwen3_vl", {"patch_size": 16}, {"tokens": 16384, "numbers": 16384 * 3 * 2 * 32 * 32}),
        ("llama4", {"image_size": 336, "patch_size": 14}, {"tokens": 17 * 144, "numbers": 17 * 3 * 336 * 336}),
        ("internvl", {"image_size": [448, 448]}, {"tokens": 13 * 256, "numbers": 13 * 3 * 448 * 448}),
        ("llava_next", {"image_size": 336}, {"tokens": 5 * 576 + 48, "numbers": 5 * 3 * 336 * 336}),
        ("llava", {"image_size": "large"}, None),
        ("llava", {"image_size": 336, "patch_size": 400}, {"tokens": 1, "numbers": 3 * 336 * 336}),
        ("internvl", {"image_size": 2, "patch_size": 14}, None),
        ("mllama", {}, None),
        ("gemma3", None, None),
    ],
)
def test_the_largest_image_is_what_the_encoder_takes(model_type, vision, image):
    assert largest_image({"model_type": model_type, "vision_config": vision}) == image


def test_a_text_only_setup_leaves_the_encoder_out():
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
    seen = kvcalc.read_config({"model_type": "gemma3", "text_config": text, "vision_config": tower})
    whole, alone = (kvcalc.footprint(seen, context=1024, engine="vllm", text_only=only) for only in (False, True))
    assert whole.weights.bytes - alone.weights.bytes == whole.weights.beside["vision"]
    assert alone.to_dict()["workload"]["text_only"] is True
    assert server_line(alone.setup, "google/gemma-3-4b-it", 1024, 1).endswith("--language-model-only")
    with pytest.raises(kvcalc.KVCalcError, match="True or False"):
        kvcalc.footprint(seen, context=1024, text_only=1)


def test_the_largest_grid_of_tiles_is_the_largest_image():
    # granite-vision-3.3-2b: 27 x 27 patches a tile, at most ten tiles above one another, and a break after each row.
    grids = [[384, 384], [384, 768], [768, 1152], [3840, 384], [384, 3840]]
    config = {"model_type": "llava_next", "image_grid_pinpoints": grids}
    vision = {"image_size": 384, "patch_size": 14}
    image = largest_image(config | {"vision_config": vision})
    assert image == {"tokens": 27 * 27 * 11 + 270, "numbers": 11 * 3 * 384 * 384}
    strange = config | {"image_grid_pinpoints": 7, "vision_config": vision}
    assert largest_image(strange) == {"tokens": 5 * 729 + 54, "numbers": 5 * 3 * 384 * 384}


@pytest.mark.parametrize(
    ("engine", "encoder"), [("sglang", 2 * 421_290_864), ("transformers", 2 * 421_290_864), ("ideal", 0)]
)
def test_a_preset_is_its_text_and_a_device_holds_its_encoder_too(engine, encoder):
    text = 2 * 11_766_034_176
    assert kvcalc.footprint("gemma-3-12b", context=1024, engine=engine).weights.bytes == text
    held = [
        kvcalc.capacity("gemma-3-12b", device="h100-80gb", engine=engine, text_only=only).pool.weights_bytes
        for only in (False, True)
    ]
    assert held == [text + encoder, text]


def test_a_tower_is_shared_by_the_devices_and_none_is_added_to_a_model_without():
    tower = kvcalc.capacity("gemma-3-27b", device="h100-80gb", engine="sglang", tensor_parallel_size=4).pool
    assert tower.loading_bytes == 2 * 423_060_336 // 4
    assert kvcalc.capacity("llama-3.1-8b", device="h100-80gb", engine="sglang").pool.loading == ()
