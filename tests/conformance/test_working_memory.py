"""vLLM's memory besides weights and KV cache, beside what its start-ups printed."""

from dataclasses import replace
from statistics import median
from typing import Any

import pytest
from startups import STARTUPS, predicted

import kvcalc
from kvcalc.architecture import Architecture, Full, LargestImage, Layer
from kvcalc.derivation import evaluate
from kvcalc.device import Device
from kvcalc.engines.base import WorkingMemory
from kvcalc.engines.vllm_loading import mxfp4_loading
from kvcalc.engines.vllm_memory import Step, vllm_working_memory
from kvcalc.errors import NotModelledError
from kvcalc.fitting import Measured, Memory
from kvcalc.setup import prepare
from kvcalc.sources.devices import load_device
from kvcalc.units import GiB
from kvcalc.widths import Widths

TEXT = [row for row in STARTUPS if not row["sees"]]


def activation_error(row: dict[str, Any]) -> float:
    return abs(predicted(row).activation_bytes / GiB - row["activation_gib"])


@pytest.mark.parametrize("row", STARTUPS, ids=lambda row: f"{row['model']} {row['version']} tp {row['tp']}")
def test_the_activation_peak_is_within_its_band(row: dict[str, Any]) -> None:
    known = not row["sees"] or row["image_tokens"]
    assert activation_error(row) <= (0.05 if known else 0.2)


def test_the_median_of_the_errors_is_a_hundredth_of_a_gib() -> None:
    errors = sorted(map(activation_error, TEXT))
    assert (round(median(errors), 3), round(errors[int(0.9 * len(errors))], 3)) == (0.002, 0.011)
    left = []
    for row in TEXT:
        if row["weights_gib"] and None not in (row["requested_gib"], row["available_gib"]):
            taken = row["requested_gib"] - row["weights_gib"] - row["available_gib"]
            left.append(abs(taken - predicted(row).share_bytes / GiB))
    assert (len(left), round(median(left), 3)) == (40, 0.008)


def test_graphs_and_the_memory_outside_of_torch_are_within_theirs() -> None:
    graphs = [row for row in STARTUPS if row["cuda_graph_gib"] is not None]
    assert median(abs(predicted(row).graph_bytes / GiB - row["cuda_graph_gib"]) for row in graphs) <= 0.25
    outside = [row for row in STARTUPS if row["non_torch_gib"] is not None]
    assert median(abs(predicted(row).runtime_bytes / GiB - row["non_torch_gib"]) for row in outside) <= 0.04


def test_fewer_sequences_give_memory_back() -> None:
    llama = kvcalc.load("llama-3.1-8b")

    def activation(sequences: int) -> int:
        options = {"max_num_seqs": sequences}
        return kvcalc.working_memory(llama, device="h100-80gb", engine="vllm", engine_options=options).activation_bytes

    # Below 0.92 GiB the widest layer of a step of 8,192 tokens is the peak, and fewer logits give nothing more.
    assert round((activation(1024) - activation(256)) / GiB, 2) == 0.97
    assert activation(256) == activation(128)


@pytest.mark.parametrize(("sequences", "sizes"), [(1, 3), (4, 4), (16, 7), (128, 35), (200, 44), (256, 51), (1024, 51)])
def test_graphs_are_of_the_sizes_that_sequences_can_have(sequences: int, sizes: int) -> None:
    """4 sequences, two 5090s, Qwen3.8 27B: 0.13 GiB was estimated; all 51 sizes of 64 layers are 1.33."""
    working = kvcalc.working_memory(
        "qwen3.5-27b", device="rtx-5090", engine="vllm", engine_options={"max_num_seqs": sequences}
    )
    assert evaluate(working.quantities)["sizes"] == sizes
    all_sizes = GiB // 2 + 64 * 13 * GiB // 1000
    assert abs(working.graph_bytes - (GiB // 10 + (all_sizes - GiB // 10) * sizes // 51)) <= 2


def test_the_engine_chooses_its_step_by_the_device() -> None:
    small = kvcalc.working_memory(kvcalc.load("llama-3.1-8b"), device="rtx-4090", engine="vllm")
    large = kvcalc.working_memory(kvcalc.load("llama-3.1-8b"), device="b200", engine="vllm")
    assert small.activation_bytes < large.activation_bytes
    step = evaluate(large.quantities)
    assert (step["T"], step["B"]) == (16384, 1024)
    assert step["activation_bytes"] == large.activation_bytes


def test_graphs_before_0_21_are_beside_the_share() -> None:
    def working(**options: Any) -> WorkingMemory:
        llama = kvcalc.load("llama-3.1-8b")
        return kvcalc.working_memory(llama, device="h100-80gb", engine="vllm", engine_options=options)

    old, new, eager = working(version="0.17.1"), working(), working(enforce_eager=True)
    assert old.share_bytes == old.activation_bytes + old.runtime_bytes < old.total_bytes
    assert "beside its share" in old.notes[0]
    assert new.share_bytes == new.total_bytes
    assert eager.graph_bytes == 0
    assert eager.band_bytes < new.band_bytes


def test_more_devices_hold_the_buffers_of_their_links_and_a_stage_what_it_passes_on() -> None:
    llama = kvcalc.load("llama-3.1-8b")
    one, two = (
        kvcalc.working_memory(llama, device="h100-80gb", engine="vllm", tensor_parallel_size=tp) for tp in (1, 2)
    )
    assert two.runtime_bytes > 3 * one.runtime_bytes
    elsewhere = kvcalc.working_memory(llama, device="a100-80gb", engine="vllm", tensor_parallel_size=2)
    assert one.runtime_bytes < elsewhere.runtime_bytes < two.runtime_bytes
    step = Step(8192, 16, 2, pipeline_stages=2)
    staged = vllm_working_memory((0, 33), Widths(llama), step, H100)
    whole = vllm_working_memory((0, 33), Widths(llama), Step(8192, 16, 2), H100)
    assert staged.activation_bytes - whole.activation_bytes == 2 * 8192 * 4096 * 2


@pytest.mark.parametrize(
    ("name", "device", "tp", "options", "runtime", "band"),
    [
        ("llama-3.1-8b", "h100-80gb", 1, {}, GiB // 4, GiB // 20 + GiB // 5 + 2 * GiB // 5),
        ("llama-3.1-8b", "h100-80gb", 1, {"version": "0.20.2"}, GiB // 4, GiB // 20 + GiB // 5),  # graphs are beside
        ("llama-3.1-8b", "h100-80gb", 1, {"version": "0.18.0"}, GiB // 4, GiB // 20 + GiB // 5),
        ("llama-3.1-8b", "h100-80gb", 1, {"version": "0.17.1"}, 13 * GiB // 100, GiB // 20 + GiB // 5),
        ("llama-3.1-8b", "h100-80gb", 1, {"enforce_eager": True}, GiB // 4, GiB // 20 + GiB // 5),
        # Printed: 0.02 GiB (A100, 3090 and L40S with 0.10 and 0.11); 0.07 with 36 multiprocessors, 0.26 with 188.
        ("llama-3.1-8b", "a100-80gb", 1, {"version": "0.11.0"}, 3 * GiB // 100, GiB // 20 + GiB // 5),
        ("llama-3.1-8b", "rtx-5060-ti-16gb", 1, {"version": "0.19.0"}, GiB // 4 * 36 // 132, GiB // 20 + GiB // 5),
        ("llama-3.1-8b", "rtx-pro-6000", 1, {"version": "0.19.0"}, GiB // 4, GiB // 20 + GiB // 5),
        # Printed: 0.20 GiB (2080 Ti and 3090), 0.21 (L40S), 0.24 (4090).
        ("llama-3.1-8b", "rtx-3090", 4, {"version": "0.17.1"}, GiB // 5, GiB // 20 + GiB),
        ("llama-3.1-8b", "h100-80gb", 4, {"version": "0.11.0"}, 207 * GiB // 100, GiB // 20 + GiB),
        ("llama-3.1-8b", "h100-80gb", 2, {"version": "0.11.0"}, 97 * GiB // 100, GiB // 20 + GiB),
        ("llama-3.1-8b", "a100-80gb", 2, {"version": "0.17.1"}, 97 * GiB // 100, GiB // 20 + GiB),
        ("llama-3.1-8b", "h100-80gb", 2, {}, 207 * GiB // 100, GiB // 20 + GiB + 2 * GiB // 5),
        ("llama-3.1-8b", "a100-80gb", 2, {}, 97 * GiB // 100, GiB // 20 + GiB + 2 * GiB // 5),
        ("qwen3-next-80b-a3b", "h100-80gb", 1, {}, GiB // 4, 2 * GiB + GiB // 20 + GiB // 5 + 2 * GiB // 5),
        ("qwen3-next-80b-a3b", "h100-80gb", 1, {"version": "0.17.1"}, 13 * GiB // 100, GiB // 20 + GiB // 5),
    ],
)
def test_what_lies_outside_of_torch_and_how_far_the_sum_may_be_off(
    name: str, device: str, tp: int, options: dict[str, Any], runtime: int, band: int
) -> None:
    working = kvcalc.working_memory(
        kvcalc.load(name), device=device, engine="vllm", tensor_parallel_size=tp, engine_options=options
    )
    assert (working.runtime_bytes, working.band_bytes) == (runtime, band)


def test_an_image_encoder_has_a_wider_band() -> None:
    text, image = (
        vllm_working_memory(
            (0, 33), Widths(kvcalc.load("gemma-3-27b")), Step(8192, 1024, 2, has_image_encoder=seen), H100
        )
        for seen in (False, True)
    )
    assert image.activation_bytes > text.activation_bytes
    assert image.band_bytes - text.band_bytes == GiB // 5 - GiB // 20


H100 = load_device("h100-80gb")


def seeing(model_type: str, text: dict[str, Any], vision: dict[str, Any], **around: Any) -> Architecture:
    """A model that sees, as a config.json describes it."""
    shape = {"num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 8, **text}
    return kvcalc.read_config(
        {"model_type": model_type, "text_config": shape, "vision_config": vision, "torch_dtype": "bfloat16", **around}
    )


SIGLIP = {"hidden_size": 1152, "image_size": 896, "patch_size": 14, "num_hidden_layers": 2, "vision_use_head": False}
PIXTRAL = {"model_type": "pixtral", "hidden_size": 1024, "image_size": 1540, "patch_size": 14, "num_hidden_layers": 2}
QWEN = {"hidden_size": 1280, "patch_size": 14, "spatial_merge_size": 2, "depth": 2, "out_hidden_size": 4096}


@pytest.mark.parametrize(
    ("seen", "printed"),
    [
        # google/gemma-3-12b-it and -27b-it, mistralai/Mistral-Small-3.1-24B, XiaomiMiMo/MiMo-VL-7B on vLLM 0.19.
        (
            seeing(
                "gemma3",
                {"model_type": "gemma3_text", "hidden_size": 3840, "intermediate_size": 15360, "vocab_size": 262208},
                SIGLIP,
                mm_tokens_per_image=256,
            ),
            3.94,
        ),
        (
            seeing(
                "gemma3",
                {"model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504, "vocab_size": 262208},
                SIGLIP,
                mm_tokens_per_image=256,
            ),
            3.99,
        ),
        (
            seeing(
                "mistral3",
                {"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768, "vocab_size": 131072},
                PIXTRAL,
                spatial_merge_size=2,
            ),
            2.03,
        ),
        (
            seeing(
                "qwen2_5_vl",
                {
                    "model_type": "qwen2_5_vl_text",
                    "hidden_size": 4096,
                    "intermediate_size": 11008,
                    "vocab_size": 151680,
                },
                QWEN,
            ),
            2.49,
        ),
    ],
)
def test_the_images_of_a_step_stay_to_the_end_of_the_profile(seen: Architecture, printed: float) -> None:
    options = {"version": "0.19.0", "max_num_batched_tokens": 8192, "max_num_seqs": 1024}

    def activation(text_only: bool) -> int:
        return kvcalc.working_memory(
            seen, device="h100-80gb", engine="vllm", engine_options=options, text_only=text_only
        ).activation_bytes

    assert abs(activation(text_only=False) / GiB - printed) <= 0.02
    assert seen.image is not None
    images = 8192 // seen.image.tokens or 1
    added = images * 2 * (seen.image.numbers + seen.image.tokens * seen.hidden_size)
    assert activation(text_only=False) - activation(text_only=True) == added


def test_a_server_that_computes_in_float32_has_activations_of_four_bytes() -> None:
    llama, options = kvcalc.load("llama-3.1-8b"), {"version": "0.19.0"}
    working = kvcalc.working_memory(
        llama, device="h100-80gb", engine="vllm", engine_options=options, weights_dtype="float32"
    )
    assert round(working.activation_bytes / GiB, 2) == 2.19  # printed: 2.21


@pytest.mark.parametrize(
    ("kind", "device", "reason"),
    [
        (Full(8, 128, 128), "dgx-spark", "beside the CPU's"),
        (Full(8, 128, 128), "apple-m4-max-64gb", "not modelled"),
    ],
)
def test_what_no_formula_holds_for_says_so(kind: Any, device: str, reason: str) -> None:
    layers = (Layer(kind),)
    with pytest.raises(NotModelledError, match=reason) as caught:
        kvcalc.working_memory(Architecture("m", "m", layers, (0,), 64, 1000), device=device, engine="vllm")
    assert "Available KV cache memory" in (caught.value.hint or "")


def test_a_hybrid_that_sees_has_its_largest_image_beside_its_layers() -> None:
    """Qwen3.6-35B-A3B in NVFP4 on a 5090, 8,192 tokens of one sequence (vLLM 0.24; noonghunna/club-3090 issue 612).

    5.98 GiB were left of 0.92 x 31.36 beside 21.86 of weights: 1.01 for activations, what is outside of torch and
    graphs. An image of 16,384 tokens: 2 x (100,663,296 + 16,384 x 2,048) are 0.25 GiB of them.
    """
    text = kvcalc.load("qwen3.5-35b-a3b")
    model = replace(text, image=LargestImage(16384, 100_663_296))
    options = {"version": "0.24.0", "max_num_batched_tokens": 8192, "max_num_seqs": 1}
    seeing, blind = (
        kvcalc.working_memory(each, device="rtx-5090", engine="vllm", weights_dtype="nvfp4", engine_options=options)
        for each in (model, text)
    )
    assert seeing.activation_bytes - blind.activation_bytes == 2 * (100_663_296 + 16384 * 2048)
    assert seeing.share_bytes / GiB == pytest.approx(1.01, abs=0.2)


def test_a_pool_without_a_formula_says_why() -> None:
    pool = kvcalc.capacity("llama-3.1-8b", device="dgx-spark", context=8, engine="vllm").pool
    assert "beside the CPU's" in pool.not_modelled
    assert pool.working_memory == WorkingMemory()
    with pytest.raises(NotModelledError, match="working memory of tensorrt-llm"):
        kvcalc.working_memory(kvcalc.load("llama-3.1-8b"), device="h100-80gb", engine="tensorrt-llm")


def test_a_profile_does_not_see_recurrent_kernels() -> None:
    options = {"version": "0.11.0", "max_num_batched_tokens": 8192, "max_num_seqs": 1024}
    model = kvcalc.load("qwen3-next-80b-a3b")
    working = kvcalc.working_memory(model, device="h200", engine="vllm", engine_options=options, tensor_parallel_size=2)
    assert round(working.activation_bytes / GiB, 2) == 5.59  # printed: 5.58
    # Of one token, on both devices: w, u, v_new and o of 4,096 values, 384 bytes for 32 heads, states for 64 tokens.
    of_token = 4 * 4096 * 2 + 384 * 32 + 32 * 128 * 128 * 2 // 64
    assert f"about {of_token * 4096 // 2**20:.1f} MiB for 8,192 tokens" in working.notes[-1]
    later = kvcalc.working_memory(model, device="h200", engine="vllm", engine_options={"max_num_seqs": 256})
    assert later.band_bytes > working.band_bytes  # 0.18 holds more outside of torch
    mamba = kvcalc.working_memory("nemotron-nano-9b-v2", device="h200", engine="vllm")
    assert mamba.notes[-1].endswith("take in a prefill: leave it free")


@pytest.mark.parametrize(
    ("version", "longest", "keys"),
    [
        ("0.12.0", 163840, 0),
        ("0.14.0", 163840, 40),
        ("0.31.0", 819200, 40),
        ("0.33.0", 262144, 40),
        ("0.33.0", 819200, 16),
    ],
)
def test_an_indexer_gathers_keys_for_the_longest_sequence(version: str, longest: int, keys: int) -> None:
    working = kvcalc.working_memory(
        "glm-5.2", device="b200", engine="vllm", engine_options={"version": version}, context=longest
    )
    assert evaluate(working.quantities).get("indexer", 0) == keys * 132 * longest


def test_an_indexers_start_prints_what_it_gathers() -> None:
    options = {"version": "0.26.0", "max_num_batched_tokens": 8192, "max_num_seqs": 1024}
    working = kvcalc.working_memory(
        "glm-5.2",
        device="b200",
        engine="vllm",
        context=819200,
        weights_dtype="nvfp4",
        engine_options=options,
        tensor_parallel_size=4,
    )
    assert round(working.activation_bytes / GiB, 2) == 6.29  # printed: 6.31


def test_a_device_has_one_memory() -> None:
    llama = kvcalc.load("llama-3.1-8b")
    with pytest.raises(kvcalc.KVCalcError, match="its own memory"):
        kvcalc.capacity(llama, device="h100-80gb", device_memory=80 * GiB)
    unnamed = Device(name="", title="a card", memory_bytes=80 * GiB, measured=False, source="as given", platform="cuda")
    assert kvcalc.capacity(llama, device=unnamed).fits


@pytest.mark.parametrize(
    ("version", "device", "added"),
    [
        # Bytes of one expert of 2,880 x 2,880 with gate, up and down: 777,600 of scales, 17,280 of biases in two bytes.
        # Scales twice, their rows in 256 (28,800), biases in four bytes.
        ("0.14.0", "h100-80gb", 777_600 + 28_800 + 17_280),
        # And values of 1,440 bytes a row in tiles of 64: 32 for each of 8,640 rows.
        ("0.19.0", "h100-80gb", 777_600 + 28_800 + 17_280 + 32 * 8640),
        ("0.24.0", "h200", 777_600 + 28_800 + 17_280),
        ("0.25.1", "h100-80gb", 28_800 + 17_280),
        # Groups of scales in fours: 92 for 90 in 8,960 rows.
        ("0.33.0", "h100-80gb", 92 * 8960 - 777_600 + 17_280),
        # Marlin: 2,944 x 3,072. FlashInfer: the same with biases in four bytes, and 3,072 x 3,072 before 0.27.
        ("0.33.0", "rtx-4090", 3 * (2944 * 3072 - 2880 * 2880) * 17 // 32 + 2 * 320),
        ("0.33.0", "b200", 3 * (2944 * 3072 - 2880 * 2880) * 17 // 32 + 4 * 8960 - 17_280),
        ("0.21.0", "b200", 3 * (3072 * 3072 - 2880 * 2880) * 17 // 32 + 4 * 9216 - 17_280),
    ],
)
def test_loading_lays_out_the_experts_of_gpt_oss_for_the_devices_kernel(version: str, device: str, added: int) -> None:
    options = {"version": version}
    pool = kvcalc.capacity("gpt-oss-20b", device=device, engine="vllm", engine_options=options).pool
    work = evaluate(pool.loading)
    assert work["experts_bytes"] == 24 * 32 * added
    assert work["rotary_bytes"] == 131072 * 64 * 4
    assert pool.loading_bytes == work["experts_bytes"] + work["rotary_bytes"]
    assert evaluate(pool.loading)["loading_bytes"] == pool.loading_bytes
    shipped = kvcalc.footprint("gpt-oss-20b", context=8, engine="vllm", engine_options=options).weights.bytes
    assert pool.weights_bytes == shipped + pool.loading_bytes


@pytest.mark.parametrize(
    ("device", "spans"),
    [
        # Bytes that loading adds to one expert, from this version on.
        (
            "h100-80gb",
            {11: 823_680, 17: 823_680 + 276_480, 22: 823_680, 25: 46_080, 26: 64_000},
        ),
        ("b200", {11: 1_821_312 + 19_584, 27: 1_194_624 + 18_560}),
        ("l40s", {11: 1_194_624 + 640}),
    ],
)
def test_loading_changes_with_the_version(device: str, spans: dict[int, int]) -> None:
    widths, place = Widths(kvcalc.load("gpt-oss-20b")), load_device(device)
    for minor in range(11, 34):
        expected = next(spans[first] for first in sorted(spans, reverse=True) if first <= minor)
        assert mxfp4_loading((0, minor), widths, 1, place)["experts_bytes"] == 768 * expected, minor
    # Two devices have halves of the width, 1,440: 1,472 in steps of 64 on Hopper, 1,536 in steps of 128 elsewhere.
    halves = mxfp4_loading((0, 33), widths, 2, place)
    assert (halves["width"], halves["stepped"], halves["padded"]) == (1440, 1472, 1536)


#: model, its shipped format, version, devices, GiB printed by "Model loading took".
PRINTED = [
    ("deepseek-v2-lite", None, "0.19.0", 1, 29.43),
    ("gemma-2-2b", None, "0.19.0", 1, 4.90),
    ("gemma-3-12b", None, "0.19.0", 1, 23.31),
    ("granite-3.3-8b", None, "0.19.0", 1, 15.25),
    ("llama-3.1-8b", None, "0.19.0", 1, 14.99),
    ("llama-3.1-8b", "float32", "0.19.0", 1, 29.98),
    ("llama-3.1-8b", None, "0.19.0", 2, 7.51),
    ("phi-4", None, "0.19.0", 1, 27.39),
    ("mixtral-8x7b", None, "0.19.0", 2, 43.51),
    ("qwen2.5-7b", None, "0.19.0", 1, 14.25),
    ("qwen2.5-7b", None, "0.19.0", 2, 7.12),
    ("qwen2.5-72b", None, "0.19.0", 2, 67.80),
    ("qwen3-14b", None, "0.18.0", 1, 27.52),
    ("qwen3-0.6b", None, "0.14.0", 1, 1.12),
    ("deepseek-r1-0528-qwen3-8b", None, "0.8.5", 4, 3.85),
    ("qwen3-30b-a3b", None, "0.8.5", 4, 14.2474),
    ("deepseek-r1-distill-qwen-14b", None, "0.7.3", 2, 13.9476),
    ("gemma-3-27b", None, "0.8.2", 4, 13.1665),
    ("llama-3.1-8b-fp8-dynamic", None, "0.19.0", 1, 8.49),
    ("llama-3.1-8b-w4a16", None, "0.19.0", 1, 5.38),
]


@pytest.mark.parametrize(("model", "dtype", "version", "tp", "printed"), PRINTED)
def test_loading_is_as_servers_print_it(model: str, dtype: str | None, version: str, tp: int, printed: float) -> None:
    pool = kvcalc.capacity(
        model,
        device="h100-80gb",
        engine="vllm",
        engine_options={"version": version},
        weights_dtype=dtype,
        tensor_parallel_size=tp,
    ).pool
    assert pool.weights_bytes is not None
    assert abs(pool.weights_bytes / GiB - printed) < 0.0076  # the print's half digit, and small pieces


def test_loading_is_near_what_servers_print_of_gpt_oss() -> None:
    for model, version, printed in (
        ("gpt-oss-20b", "0.19.0", 13.64),  # the file alone: 12.82
        ("gpt-oss-20b", "0.14.0", 13.47),  # a version that was not printed
        ("gpt-oss-120b", "0.14.0", 64.38),
    ):
        options = {"version": version}
        held = kvcalc.capacity(model, device="h100-80gb", engine="vllm", engine_options=options).pool.weights_bytes
        assert held is not None and abs(held / GiB - printed) < 0.1
    elsewhere = kvcalc.capacity("gpt-oss-20b", device="mi300x", engine="vllm").pool
    work = evaluate(elsewhere.loading)  # no kernel's layout, and tables all the same
    assert ("experts_bytes" in work, work["rotary_bytes"]) == (False, 131072 * 64 * 4)
    assert kvcalc.capacity("llama-3.1-8b", device="apple-m4-max-64gb", engine="vllm").pool.loading_bytes == 0


def test_what_loading_adds_by_cause() -> None:
    def added(model: str, tp: int = 1, **options: Any) -> dict[str, Any]:
        found = kvcalc.capacity(
            model, device="h100-80gb", engine="vllm", engine_options=options, tensor_parallel_size=tp
        ).pool
        return evaluate(found.loading)

    # 49,159 rows in steps of 64 are 57 more, of 4,096 numbers in two bytes.
    assert added("granite-3.3-8b")["vocabulary_bytes"] == 57 * 4096 * 2
    # kv_b_proj of 61 layers, 128 heads of 128 + 128 over a rank of 512: fp8 in the file, two bytes beside it.
    assert added("deepseek-v3", tp=8)["latent_bytes"] == 61 * 16 * 256 * 512 * 2
    assert added("deepseek-v3.2", tp=8, max_num_batched_tokens=4096)["chosen_bytes"] == 4096 * 2048 * 4
    assert "chosen_bytes" not in added("deepseek-v3", tp=8)
    assert added("deepseek-v2", version="0.24.0")["workspace_bytes"] == 128 * 2**20
    assert "workspace_bytes" not in added("deepseek-v2", version="0.25.0")
    # Qwen3.5: tables of four times the context before 0.32.
    assert [added("qwen3.5-27b", version=each)["rotary_bytes"] // 2**20 for each in ("0.31.0", "0.32.0")] == [128, 32]
    # Qwen2.5 7B, 28 layers: 259 MiB for gate and up take 260, 31.5 for QKV 32, 129.5 for down 130. o_proj's 24.5 stay;
    # the embedding's and the head's 1,039.5 take 1,040.
    assert added("qwen2.5-7b")["allocator_bytes"] == 28 * 2 * 2**20 + 2**20


def test_a_log_that_prints_weights_has_what_loading_added() -> None:
    setup = prepare("gpt-oss-20b", engine="vllm")
    terms = Measured("server.log", weights_bytes=13 * GiB)
    pool = Memory(device=load_device("h100-80gb"), measured=(terms, setup)).pool(setup, 8, 1)
    assert (pool.weights_bytes, pool.loading_bytes) == (13 * GiB, 0)


@pytest.mark.parametrize(
    ("model", "context", "chunk", "gigabytes"),
    [
        # mlx-lm 0.31.3 on an M5 Max, Qwen3.8-27B in 4 bits (ml-explore/mlx-lm pull 1781), of the same widths.
        ("qwen3.5-27b", 131072, 2048, 39.78),
        ("qwen3.5-27b", 131072, 1024, 32.26),
        ("qwen3.5-27b", 131072, 512, 28.54),
        ("qwen3.5-27b", 131072, 256, 26.52),
        # The same on an M5 Max, Qwen3.6-35B-A3B in 4 bits (ml-explore/mlx-lm issue 1480).
        ("qwen3.5-35b-a3b", 8192, 2048, 21.7),
        ("qwen3.5-35b-a3b", 65536, 2048, 26.7),
        ("qwen3.5-35b-a3b", 131072, 2048, 32.5),
        ("qwen3.5-35b-a3b", 196608, 2048, 38.0),
        # An M2 Ultra, Mistral 7B in 4 bits (ml-explore/mlx-lm pull 40).
        ("mistral-7b-v0.3", 33898, 2048, 9.111),
    ],
)
def test_mlx_has_the_peak_that_it_prints(model: str, context: int, chunk: int, gigabytes: float) -> None:
    options = {"prefill_step_size": chunk}
    setup = prepare(model, engine="mlx-lm", engine_options=options)
    weights = setup.weights.parameters * 9 // 16  # 4 bits a number, a scale and a bias in two bytes for 64
    cache = setup.plan.kv_bytes(context, 1)
    working = setup.engine.working_memory(setup, load_device("apple-m4-max-64gb"), context, 1)
    assert (weights + cache + working.activation_bytes) / 1e9 == pytest.approx(gigabytes, rel=0.011)
    assert working.notes == (() if chunk <= 512 else working.notes)


def test_mlx_writes_scores_where_no_kernel_is_fused() -> None:
    def activation(model: str, **options: Any) -> int:
        return kvcalc.working_memory(
            model, device="apple-m4-max-64gb", context=3000, engine="mlx-lm", engine_options=options
        ).activation_bytes

    # The fullest chunk is the first: 2,048 tokens against as many keys, 32 heads, 2 bytes.
    assert activation("llama-3.1-8b", kv_bits=8) - activation("llama-3.1-8b") == 32 * 2048 * 2048 * 2
    dense, sparse = 2 * 2048 * 2 * 4 * 2048, 2 * 2048 * 2 * 8 * (3 * 768 + 2048)
    assert activation("qwen3-30b-a3b") == dense + sparse + 3000 * 2 * 4 * 256


@pytest.mark.parametrize(
    ("model", "device", "reason"),
    [
        ("deepseek-v3", "apple-m4-max-64gb", "latents and indexers"),
        ("nemotron-nano-9b-v2", "apple-m4-max-64gb", "Mamba's scan"),
        ("llama-3.1-8b", "h100-80gb", "on NVIDIA H100"),
    ],
)
def test_what_mlx_was_not_seen_to_take_is_refused(model: str, device: str, reason: str) -> None:
    with pytest.raises(NotModelledError, match=reason):
        kvcalc.working_memory(model, device=device, context=8192, engine="mlx-lm")
