"""What is left out of a question is what is asked: engines and devices beside each other."""

import pytest

from kvcalc import load
from kvcalc.alternatives import in_engines, on_devices, runs_on, usual_engine
from kvcalc.device import Device
from kvcalc.errors import NotModelledError
from kvcalc.fitting import Memory
from kvcalc.serving import server_line
from kvcalc.setup import Setup, prepare
from kvcalc.sources.devices import load_device
from kvcalc.units import GiB

LLAMA = load("llama-3.1-8b")


def test_an_engine_that_refuses_is_listed_with_its_reason():
    def make(engine: str) -> Setup:
        return prepare(LLAMA, engine=engine, tensor_parallel_size=2)

    found = {each.engine: each for each in in_engines(("ideal", "vllm", "llama.cpp"), make, Memory(GiB), 1024, 1)}
    assert set(found) == {"vllm", "llama.cpp"}  # the accounting serves nobody
    assert found["vllm"].fits
    assert not found["llama.cpp"].fits
    assert "tensor parallel" in found["llama.cpp"].refusal


def test_a_device_is_named_with_the_fewest_of_it_that_serve():
    small, large = load_device("rtx-4090"), load_device("h200")

    def make(device: Device, count: int) -> Setup:
        return prepare(load("llama-3.3-70b"), engine="vllm", tensor_parallel_size=count)

    found = on_devices([small, large], make, lambda device: Memory(None, device), 8192, 1)
    assert [(each.device.name, each.count) for each in found if each.device] == [("rtx-4090", 8), ("h200", 2)]
    assert all(each.fits for each in found)


def test_a_platform_has_its_engines():
    mac, card = load_device("apple-m4-max-64gb"), load_device("h100-80gb")
    assert (usual_engine(mac), usual_engine(card), usual_engine(None)) == ("mlx-lm", "vllm", "vllm")
    assert runs_on("mlx-lm", mac)
    assert not runs_on("mlx-lm", card)
    assert not runs_on("ideal", None)


def test_a_flag_that_is_off_is_said():
    setup = prepare(LLAMA, engine="vllm", engine_options={"async_scheduling": False, "enforce_eager": True})
    assert server_line(setup, "a model", 8, 1).endswith("--no-async-scheduling --enforce-eager")
    assert server_line(setup, "a model", 8, 1).startswith("vllm serve 'a model' ")


def test_an_engine_without_a_server_says_so():
    with pytest.raises(NotModelledError, match="no server"):
        server_line(prepare(LLAMA), "llama-3.1-8b", 8, 1)


def test_the_line_of_llama_server_has_the_flags_of_its_options_and_the_file_of_a_draft():
    options = {"n_ubatch": 256, "swa_full": True, "kv_unified": False, "flash_attn": False, "mla": True}
    setup = prepare(LLAMA, engine="llama.cpp", engine_options=options | {"tensor_split": "3,1.5", "n_gpu_layers": 20})
    line = server_line(setup, "model.gguf", 8, 1)
    assert line == "llama-server -m model.gguf -c 8 -np 1 -ub 256 -no-kvu --swa-full -fa off -ngl 20 -ts 3,1.5"
    drafted = prepare(LLAMA, engine="llama.cpp", draft="llama-3.2-1b")
    assert server_line(drafted, "model.gguf", 8, 1) == "llama-server -m model.gguf -c 8 -np 1 -md llama-3.2-1b"
