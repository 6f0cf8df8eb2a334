"""The presets, wherever the package is: a checkout, a wheel, a zip."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kvcalc
from kvcalc.errors import InputError
from kvcalc.sources import shipped
from kvcalc.sources.preset import preset_text

PACKAGE = Path(kvcalc.__file__).parent
PRESETS = PACKAGE.parents[1] / "presets"
PRESETS = PRESETS if PRESETS.is_dir() else PACKAGE / "presets"


def packed(path: Path, with_presets: bool) -> None:
    """The package in a zip, as a wheel lays it out."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in PACKAGE.rglob("*.py"):
            archive.write(file, Path("kvcalc") / file.relative_to(PACKAGE))
        for file in PRESETS.rglob("*.toml") if with_presets else ():
            archive.write(file, Path("kvcalc/presets") / file.relative_to(PRESETS))


@pytest.mark.parametrize(("with_presets", "expected"), [(True, "3120562176 h100-80gb"), (False, "are missing")])
def test_presets_are_found_in_a_zip_and_their_absence_is_said(tmp_path, with_presets, expected):
    packed(tmp_path / "kvcalc.zip", with_presets)
    code = (
        "import sys; sys.path.insert(0, 'kvcalc.zip'); import kvcalc; from kvcalc.sources.devices import load_device\n"
        "assert 'kvcalc.zip' in kvcalc.__file__\n"
        "try:\n"
        "    print(kvcalc.kv_cache_bytes(kvcalc.load('gemma-3-27b'), context=32768), end=' ')\n"
        "    print(load_device('h100-80gb').name)\n"
        "except kvcalc.KVCalcError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert expected in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["../models/gemma-3-27b", "gemma-3-27b.toml", "", "/etc/passwd", "x" * 5000, "a\0"])
def test_a_name_with_a_path_in_it_is_none_of_ours(name):
    assert shipped.text("models", name) is None
    with pytest.raises(InputError, match="unknown preset"):
        preset_text(name)
