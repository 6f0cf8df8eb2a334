"""What the commands answer, on standard output and nowhere else."""

import csv
import json
from io import StringIO

import pytest
from answers import checked

from kvcalc.report.shapes import ANSWERS

SECTION_5_2 = ("gemma-2-2b@global", "gemma-2-2b@1:1/sw=4096", "gemma-2-2b@3:1/sw=1024", "gemma-2-2b@5:1/sw=1024")
AT_32K = (3489660928, 1962934272, 889192448, 629145600)


def test_compare_gives_the_bytes_of_section_5_2(kvcalc):
    ran = kvcalc("compare", *SECTION_5_2, "-c", "32k", "--format", "json")
    rows = json.loads(ran.out)["rows"]
    assert ran.code == 0
    assert tuple(row["kv_cache"]["bytes"] for row in rows) == AT_32K
    assert [row["reference"] for row in rows] == list(SECTION_5_2)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("show", ("show", "gemma-3-27b", "-c", "128k")),
        ("compare", ("compare", *SECTION_5_2, "-c", "32k")),
        ("sweep", ("sweep", "gemma-2-2b", "gemma-2-2b@global", "-c", "1k,4k")),
        ("paper", ("paper",)),
        ("models", ("models",)),
        ("models", ("models", "gemma-3-27b")),
        ("devices", ("devices",)),
        ("engines", ("engines",)),
        ("engines", ("engines", "ideal")),
    ],
)
def test_json_follows_the_published_schema(kvcalc, command, arguments):
    ran = kvcalc(*arguments, "--format", "json")
    answer = checked(command, ran.out)
    assert answer["command"] == ["kvcalc", *arguments, "--format", "json"]


def test_a_schema_is_printed_for_every_answer_and_every_file(kvcalc):
    names = kvcalc("schema").out.split()
    assert {*ANSWERS, "spec"} <= set(names)
    for name in names:
        schema = json.loads(kvcalc("schema", name).out)
        assert schema["title"] == f"kvcalc {name}" and schema["properties"] and not schema["additionalProperties"]


def test_an_unknown_schema_is_refused_with_the_near_miss(kvcalc):
    ran = kvcalc("schema", "shwo")
    assert (ran.code, ran.out) == (2, "")
    assert "hint: did you mean 'show'?" in ran.err


def test_csv_columns_are_the_dotted_paths_of_the_json(kvcalc):
    arguments = ("compare", *SECTION_5_2, "-c", "32k", "--format")
    rows = list(csv.DictReader(StringIO(kvcalc(*arguments, "csv").out)))
    records = json.loads(kvcalc(*arguments, "json").out)["rows"]
    assert [int(row["kv_cache.bytes"]) for row in rows] == list(AT_32K)
    for row, record in zip(rows, records, strict=True):
        assert row["kv_cache.layers.0.kind"] == record["kv_cache"]["layers"][0]["kind"]
        assert row["workload.k_dtype"] == record["workload"]["k_dtype"] == "bfloat16"
    assert rows[0]["kv_cache.layers.1.kind"] == ""  # global only has one kind; the row is shorter, not the table


def test_one_unit_serves_a_whole_column_and_stands_in_its_header(kvcalc):
    lines = kvcalc("compare", *SECTION_5_2, "-c", "32k", "--format", "markdown").out.splitlines()
    assert "KV cache (GiB)" in lines[4]
    assert "3.25" in lines[6]
    assert "0.59" in lines[9]
    decimal = kvcalc("compare", *SECTION_5_2, "-c", "32k", "--units", "decimal", "--format", "markdown").out
    assert "KV cache (GB)" in decimal
    assert "3.49" in decimal
    assert "GiB" not in decimal


def test_a_value_that_one_unit_would_hide_has_its_own(kvcalc):
    out = kvcalc("compare", "deepseek-v3", "gemma-3-1b", "-c", "8k", "--weights-dtype", "bf16").out
    assert "1.22 TiB" in out and "1.86 GiB" in out and "549.00" in out and "43.00" in out
    assert "0.00" not in kvcalc("show", "deepseek-v3", "-c", "1").out


def test_show_prints_exact_bytes_overhead_and_the_resolved_context(kvcalc):
    out = kvcalc("show", "gemma-3-27b", "-c", "128k").out
    assert "context 131,072 tokens" in out
    assert "11,173,625,856" in out
    assert "27,009,346,304 parameters" in out
    assert "20.7 %" in out


def test_show_on_a_device_has_the_rows_of_fit_and_says_what_is_left_out(kvcalc):
    asked = ("-c", "32k", "--device", "h100-80gb", "-e", "vllm")
    shown, fitted = (kvcalc(command, "llama-3.1-8b", *asked).out for command in ("show", "fit"))
    for term in ("activations of one step", "runtime of the device", "CUDA graphs"):
        row = next(line for line in shown.splitlines() if line.startswith(term))
        assert row.split()[-1] in fitted
    left = next(line for line in shown.splitlines() if line.startswith("left of 72.85 GiB of the device"))
    assert left.split()[-1] in fitted
    part = (*asked, "--reserve", "2GiB", "--gpu-memory-utilization", "80%")
    shown, fitted = (kvcalc(command, "llama-3.1-8b", *part).out for command in ("show", "fit"))
    assert "2,147,483,648" in next(line for line in shown.splitlines() if line.startswith("reserve"))
    left = next(line for line in shown.splitlines() if line.startswith("left of 63.35 GiB of the device"))
    assert left.split()[-1] in fitted
    unified = kvcalc("show", "llama-3.1-8b", "-c", "32k", "--device", "dgx-spark", "-e", "vllm").out
    assert "is not modelled: leave a tenth of the device free" in unified
    assert "activations" not in unified


def test_a_note_says_which_model_it_is_about_where_there_are_others(kvcalc):
    asked = ("-c", "8k", "--format", "markdown")
    assert "- gpt-oss-20b: as shipped: mxfp4" in kvcalc("compare", "gemma-3-1b", "gpt-oss-20b", *asked).out
    assert "- as shipped: mxfp4" in kvcalc("compare", "gpt-oss-20b", *asked).out
    five = [f"gpt-oss-20b@sw={window}" for window in (64, 256, 512, 1024, 2048)]
    out = kvcalc("compare", *five, "gemma-3-1b", *asked).out
    assert "- gpt-oss-20b@sw=64 and 4 more: as shipped: mxfp4" in out


def test_an_estimated_count_says_so(kvcalc, tmp_path):
    spec = tmp_path / "mine.toml"
    spec.write_text(
        'name = "mine"\nnum_layers = 2\nhidden_size = 64\nvocab_size = 100\n'
        "[attention]\nnum_heads = 4\n[feed_forward]\nintermediate_size = 128\n"
    )
    assert "parameters (estimated)" in kvcalc("show", str(spec), "-c", "1k").out


def test_explain_shows_the_formula_and_the_same_formula_with_numbers(kvcalc):
    out = kvcalc("show", "gemma-3-27b", "-c", "128k", "--explain").out
    assert "layers_1 = 52 * B * (8192 * min(T, 1024)) = 52 * 1 * (8192 * min(131,072, 1024)) = 436,207,616 bytes" in out
    assert "source: Gemma 3 technical report" in out
    assert "not included: activations" in out


def test_sweep_has_a_row_a_context_and_a_column_a_configuration(kvcalc):
    out = kvcalc("sweep", "gemma-2-2b@global", "gemma-2-2b@5:1/sw=1024").out
    assert "gemma-2-2b@5:1/sw=1024 (GiB)" in out
    assert [line.split()[0] for line in out.splitlines()[4:]] == [
        "1,024",
        "4,096",
        "8,192",
        "16,384",
        "32,768",
        "65,536",
        "131,072",
    ]


def test_the_claims_hold_for_the_reconstruction_and_fail_honestly_for_gemma_2(kvcalc):
    claims = json.loads(kvcalc("paper", "--format", "json").out)["claims"]
    by_model = [(claim["published"][:12], claim["assumption"].split(",")[0], claim["holds"]) for claim in claims]
    assert ("global only:", "gemma3-report-2b", True) in by_model
    assert ("3:1 with a w", "gemma3-report-2b", True) in by_model
    assert ("global only:", "gemma-2-2b", False) in by_model
    assert ("3:1 with a w", "gemma-2-2b", False) in by_model


def test_markdown_tables_keep_their_columns_whatever_a_reference_holds(kvcalc, tmp_path):
    spec = tmp_path / "a|b.toml"
    spec.write_text('name = "a"\nnum_layers = 2\nhidden_size = 64\nvocab_size = 9\n[attention]\nnum_heads = 4\n')
    lines = kvcalc("compare", str(spec), "-c", "1k", "--format", "markdown").out.splitlines()
    table = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1


def test_an_output_file_holds_what_standard_output_would_have_shown(kvcalc, tmp_path):
    target = tmp_path / "report.csv"
    arguments = ("show", "gemma-3-1b", "-c", "4k", "--format", "csv")
    ran = kvcalc(*arguments, "-o", str(target))
    assert (ran.code, ran.out) == (0, "")
    assert target.read_text() == kvcalc(*arguments).out


def test_a_refused_question_leaves_the_output_file_as_it_was(kvcalc, tmp_path):
    target = tmp_path / "report.json"
    target.write_text("before")
    assert kvcalc("show", "gema-3-27b", "-c", "4k", "-o", str(target)).code == 2
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_wide_leaves_no_column_out(kvcalc, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    words = ("compare", "gemma-3-27b", "gemma-3-1b", "-c", "8k")
    narrow, wide = kvcalc(*words), kvcalc(*words, "--wide")
    assert "(--wide shows all)" in narrow.out
    assert "not shown" not in wide.out and "memory" in wide.out and "52 sliding (1024) + 10 full" in wide.out
