"""Pictures hold the figures of the table, in its order; the same answer is the same file."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from html import unescape
from pathlib import Path

import pytest

from kvcalc.cli.app import run
from kvcalc.report.axes import PALETTE, position_axis, value_axis
from kvcalc.report.document import Chart, Series

IMAGES = Path(__file__).parents[2] / ".github" / "images"
#: The pictures of the README and the commands that make them.
COMMANDS = {
    "growth.svg": ("sweep", "gemma-2-2b@global", "gemma-2-2b@5:1/sw=1024"),
    "engines.svg": ("compare", "gemma-3-27b", "--engine", "ideal,llama.cpp,vllm,sglang", "-c", "32k"),
}


def charts_in(svg: Path) -> list[dict]:
    """The charts that the metadata of a picture states."""
    stated = re.search(r"<dc:description>(.*?)</dc:description>", svg.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(unescape(stated[1]))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_pictures_of_the_readme_are_what_their_commands_draw(name, tmp_path, capsys):
    assert run([*COMMANDS[name], "--plot", str(tmp_path / name)]) == 0
    assert charts_in(tmp_path / name) == charts_in(IMAGES / name)
    assert (IMAGES / name).stat().st_size < 60_000


def test_a_picture_holds_the_bytes_of_the_json_in_the_same_order(tmp_path, capsys):
    target = tmp_path / "bars.svg"
    assert run([*COMMANDS["engines.svg"], "--plot", str(target), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    [chart] = charts_in(target)
    assert chart["series"][0]["values"] == [row["weights"]["bytes"] for row in rows]
    assert chart["series"][1]["values"] == [row["kv_cache"]["bytes"] for row in rows]
    assert [name.split(" ")[0].strip(",") for name in chart["names"]] == [row["engine"]["name"] for row in rows]


def test_the_same_answer_is_the_same_file_without_a_date(tmp_path, capsys):
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    for target in (first, second):
        run(["sweep", "gemma-3-1b", "-c", "1k,4k", "--log", "--plot", str(target)])
    assert first.read_bytes() == second.read_bytes()
    assert b"<dc:date>" not in first.read_bytes()


@pytest.mark.parametrize(
    ("words", "name", "magic"),
    [
        (("paper",), "all.pdf", b"%PDF"),  # all its figures in one file
        (("sweep", "gemma-2-2b", "-c", "1k,2k"), "curves.png", b"\x89PNG"),
    ],
)
def test_the_name_of_a_picture_says_its_format(words, name, magic, tmp_path, capsys):
    assert run([*words, "--plot", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_search_draws_candidates_and_the_front(tmp_path, capsys):
    target = tmp_path / "front.svg"
    grid = ("--ratios", "global,1:1,5:1", "--windows", "512,1024", "-c", "32k", "--format", "json")
    assert run(["search", "gemma-2-2b", *grid, "--plot", str(target)]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    [chart] = charts_in(target)
    front = {row["total_bytes"] for row in rows if row["search"]["pareto"]}
    others = {row["total_bytes"] for row in rows if not row["search"]["pareto"]}
    assert set(chart["series"][0]["values"]) == front
    assert set(chart["series"][1]["values"]) == others
    assert [series["joined"] for series in chart["series"]] == [True, False]


def test_a_suffix_that_is_no_picture_changes_nothing(tmp_path, capsys):
    target, output = tmp_path / "x.jpeg", tmp_path / "x.txt"
    arguments = ["compare", "gemma-3-1b", "-c", "1k", "--plot", str(target), "-o", str(output)]
    assert run(arguments) == 2
    assert "error: cannot draw 'x.jpeg'\nhint: name it *.svg, *.png, *.pdf" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_one_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["sweep", "gemma-3-1b", "--plot", str(tmp_path / "x.svg")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "matplotlib" in captured.err
    assert "hint: pip install 'kvcalc[plot]'" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_loaded_for_pictures_alone():
    code = (
        "import sys; from kvcalc.cli.app import run; run(['paper', '--format', 'html']); "
        "sys.stderr.write(str('matplotlib' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "False"


def test_colours_come_from_the_palette_for_colour_blind_readers():
    assert len(set(PALETTE)) == len(PALETTE) == 7


def curve(*values: int, logarithmic: str = "") -> Chart:
    positions = tuple(1024 * 2**number for number in range(len(values)))
    return Chart("curves", "", (Series("a", values, positions),), y_title="KV cache", logarithmic=logarithmic)


@pytest.mark.parametrize("values", [(1, 2), (0, 0), (1000, 10**12), (2**30, 2**31, 2**60), (7,)])
@pytest.mark.parametrize("logarithmic", ["", "x", "xy"])
@pytest.mark.parametrize("units", ["binary", "decimal", "bytes"])
def test_every_value_stands_on_its_axis_and_every_axis_has_ticks(values, logarithmic, units):
    chart = curve(*values, logarithmic=logarithmic)
    for axis, numbers in ((value_axis(chart, units), values), (position_axis(chart), chart.series[0].positions)):
        assert all(-1e-9 <= axis.place(number) <= 1 + 1e-9 for number in numbers)
        assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value, _ in axis.ticks)
        assert axis.ticks


def test_a_linear_axis_names_its_unit_and_a_logarithmic_one_names_it_at_every_tick():
    assert value_axis(curve(2**30, 2**33), "binary").title == "KV cache (GiB)"
    assert value_axis(curve(2**30, 2**33, logarithmic="xy"), "binary").ticks[0][1] == "1 GiB"


def test_a_chart_is_plain_data():
    assert json.loads(json.dumps(asdict(curve(1, 2))))["series"][0]["values"] == [1, 2]


def test_a_file_that_ends_as_a_picture_is_the_picture_alone(tmp_path, capsys):
    target = tmp_path / "fits.svg"
    assert run(["fit", "gemma-3-27b", "--kv-memory", "10GiB", "-e", "ideal", "-c", "32k", "-o", str(target)]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"wrote {target}\n")
    [chart] = charts_in(target)
    assert chart["names"] == ["KV memory, as given", "- KV cache of the workload", "= free"]
    assert chart["series"][0]["values"] == [10 * 2**30, 3_120_562_176, 10 * 2**30 - 3_120_562_176]


def test_a_picture_alone_has_no_format_and_no_other_picture(tmp_path, capsys):
    for more in (["--json"], ["--plot", str(tmp_path / "y.svg")]):
        assert run(["show", "gemma-3-1b", "-o", str(tmp_path / "x.svg"), *more]) == 2
        assert "is a picture alone\nhint: --plot" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_show_draws_the_weights_and_each_kind_of_layer(tmp_path, capsys):
    target = tmp_path / "x.svg"
    assert run(["show", "gemma-3-27b", "-e", "vllm", "-c", "8k", "--plot", str(target), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    [chart] = charts_in(target)
    assert chart["names"] == ["weights", "KV: sliding (1024)", "KV: full", "KV: padding"]
    cache = row["kv_cache"]
    sizes = [row["weights"]["bytes"], *(layer["bytes"] for layer in cache["layers"]), cache["padding_bytes"]]
    assert chart["series"][0]["values"] == sizes


def test_a_figure_of_the_report_stands_alone_in_its_orientation_and_unit(tmp_path, capsys):
    charts = {}
    for number in (3, 4, 5, 6):
        target = tmp_path / f"{number}.svg"
        assert run(["paper", "--figure", str(number), "-o", str(target)]) == 0
        (charts[number],) = charts_in(target)
    assert [chart["kind"] for chart in charts.values()] == ["bounds", "bounds", "columns", "curves"]
    assert (charts[5]["unit"], charts[6]["unit"], charts[6]["logarithmic"]) == ("MB", "MB", "x")
    assert [series["label"] for series in charts[5]["series"]] == ["model", "KV cache"]
    assert value_axis(Chart("columns", "", (Series("model", (4_870_000_000,)),), unit="MB"), "decimal").title == " (MB)"
    assert run(["paper", "--figure", "7"]) == 2
    assert "section 5.2 has no figure '7'" in capsys.readouterr().err


def test_one_figure_is_one_table_and_its_own_records(capsys):
    assert run(["paper", "--figure", "6"]) == 0
    shown = capsys.readouterr().out
    assert "Fig. 6" in shown and "Fig. 5" not in shown and "Claims" not in shown
    assert run(["paper", "--figure", "5", "--json"]) == 0
    assert {row["exhibit"] for row in json.loads(capsys.readouterr().out)["rows"]} == {"Fig. 5"}


def test_curves_that_coincide_are_one_with_both_names(tmp_path, capsys):
    target = tmp_path / "x.svg"
    assert run(["sweep", "llama-3.1-8b", "mistral-7b-v0.3", "gemma-3-1b", "-c", "1k,8k", "-o", str(target)]) == 0
    [chart] = charts_in(target)
    assert [series["label"] for series in chart["series"]] == ["llama-3.1-8b = mistral-7b-v0.3", "gemma-3-1b"]


def test_search_names_its_front_and_draws_the_memory(tmp_path, capsys):
    target = tmp_path / "x.svg"
    grid = ("--ratios", "1:1,7:1", "--windows", "512,1024", "-c", "8k", "--memory", "8GiB")
    assert run(["search", "gemma-2-2b", *grid, "-o", str(target)]) == 0
    [chart] = charts_in(target)
    assert chart["limit"] == [8 * 2**30, "8GiB"]
    assert [series["names"] for series in chart["series"]] == [["1:1/sw=512", "7:1/sw=512"], []]
