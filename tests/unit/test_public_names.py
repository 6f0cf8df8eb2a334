"""The public names, whatever was imported before."""

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import kvcalc
from kvcalc.setup import Setup, SetupOptions


@pytest.mark.parametrize("name", kvcalc.__all__)
def test_a_public_name_is_what_its_module_calls_so(name: str) -> None:
    if name == "__version__":
        return
    assert getattr(kvcalc, name) is getattr(import_module(kvcalc._HOMES[name]), name)
    assert name in dir(kvcalc)


def test_no_module_hides_a_public_name() -> None:
    modules = {path.stem for path in Path(kvcalc.__file__).parent.iterdir()}
    assert modules.isdisjoint(kvcalc.__all__)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'footprnt'"):
        kvcalc.footprnt  # noqa: B018 - the access is what fails


def test_the_package_alone_loads_nothing() -> None:
    code = "import sys, kvcalc; print(*(name for name in sys.modules if name.startswith('kvcalc.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("name", ["footprint", "kv_cache_bytes", "sweep", "capacity", "working_memory"])
def test_the_signature_names_every_argument_of_a_setup(name: str) -> None:
    shown = inspect.signature(getattr(kvcalc, name)).parameters
    assert shown.keys() >= SetupOptions.__annotations__.keys()
    usual = "vllm" if name == "working_memory" else "ideal"
    assert (shown["engine"].default, shown["text_only"].default) == (usual, Setup.text_only)
    assert all(f"{each}:" in kvcalc.footprint.__doc__ for each in SetupOptions.__annotations__)
