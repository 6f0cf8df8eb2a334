"""``kvcalc search``: the front of section 5.2, rows that show reproduces, streams, Ctrl-C."""

import csv
import json
import shlex
from io import StringIO

import pytest
from answers import checked

SECTION_5_2 = (
    *("search", "gemma-2-2b", "--ratios", "1:1,3:1,5:1,7:1", "--windows", "512,1024,2048,4096"),
    *("-c", "32k,128k", "--memory", "8GiB"),
)


def found(kvcalc, *arguments):
    ran = kvcalc(*arguments, "--format", "json")
    checked("search", ran.out)
    return json.loads(ran.out)


def test_the_front_has_less_memory_for_every_local_layer_more(kvcalc):
    rows = found(kvcalc, *SECTION_5_2, "--pareto")["rows"]
    assert {row["workload"]["context"] for row in rows} == {32768, 131072}
    for context in (32768, 131072):
        front = [
            (row["search"]["local_layers"], row["total_bytes"]) for row in rows if row["workload"]["context"] == context
        ]
        assert front == sorted(front)
        assert [size for _, size in front] == sorted((size for _, size in front), reverse=True)
    assert all(row["search"]["pareto"] and row["search"]["fits"] for row in rows)


def test_the_pareto_table_says_what_the_report_measured_and_no_more(kvcalc):
    out = kvcalc(*SECTION_5_2, "--pareto").out
    assert "26 of 32 candidates for gemma-2-2b fit 8GiB" in out
    assert "ratio trained, window trained" in out
    assert "nothing is predicted" in out


def test_every_row_is_reproduced_by_the_command_it_prints(kvcalc):
    formats = ("--kv-cache-dtype", "bf16,fp8", "--weights-dtype", "bf16,int4", "--engine", "ideal,vllm", "-b", "2")
    rows = found(kvcalc, *SECTION_5_2, *formats, "-E", "vllm.block_size=32", "--top", "6")["rows"]
    roomy = (*SECTION_5_2[:-1], "24GiB")
    rows += found(kvcalc, *roomy, "--engine", "vllm", "--top", "2")["rows"]
    assert {row["engine"]["name"] for row in rows} == {"ideal", "vllm"}
    for row in rows:
        command = shlex.split(row["search"]["command"])
        (again,) = json.loads(kvcalc(*command[1:], "--format", "json").out)["rows"]
        assert again == {key: value for key, value in row.items() if key != "search"}


def test_all_streams_every_candidate_in_the_order_of_the_grid(kvcalc):
    rows = list(csv.DictReader(StringIO(kvcalc(*SECTION_5_2, "--all", "--format", "csv").out)))
    assert len(rows) == 32
    assert sum(row["search.fits"] == "true" for row in rows) == 26
    assert [row["reference"] for row in rows[:3]] == ["gemma-2-2b@1:1/sw=512"] * 2 + ["gemma-2-2b@1:1/sw=1024"]
    assert found(kvcalc, *SECTION_5_2, "--all")["search"]["candidates"] == 32


def test_a_memory_that_no_candidate_fits_is_the_answer_no(kvcalc):
    ran = kvcalc("search", "gemma-2-2b", "--ratios", "5:1", "--windows", "512", "-c", "32k", "--memory", "1GiB")
    assert ran.code == 1
    assert "no candidate fits" in ran.out


@pytest.mark.parametrize(
    "wrong",
    [
        ("gemma-2-2b@5:1", "--ratios", "5:1", "-c", "1k"),
        ("gemma-2-2b", "--ratios", "5:1/sw=512", "-c", "1k"),
        ("gemma-2-2b", "--ratios", "sw=512", "-c", "1k"),
        ("gemma-2-2b", "--windows", "512..256", "-c", "1k"),
        ("gemma-2-2b", "-c", "1k", "--memory", "1GiB", "--device", "h200"),
        ("gemma-2-2b", "-c", "1k", "--reserve", "1GiB"),
        ("gemma-2-2b", "-c", "1k", "--all"),
        ("gemma-2-2b", "-c", "1..2000"),
        ("llama-3.1-8b", "--ratios", "5:1", "-c", "1k"),
        ("gemma-2-2b", "-c", "1k", "--engine", "vlm"),
    ],
)
def test_a_question_without_a_grid_is_refused_with_a_hint(kvcalc, wrong):
    ran = kvcalc("search", *wrong)
    assert (ran.code, ran.out) == (2, "")
    assert "hint:" in ran.err


def test_a_search_explains_each_candidate_that_it_shows(kvcalc):
    ran = kvcalc("search", "gemma-2-2b", "--ratios", "5:1", "--windows", "512", "-c", "8k", "--explain")
    assert "KV cache of gemma-2-2b@5:1/sw=512 at 8,192 tokens, step by step" in ran.out
    assert "layers_1 = 22 * B * (4096 * min(T, 512))" in ran.out


def test_two_versions_of_an_engine_are_two_candidates(kvcalc):
    words = ("gemma-2-2b", "-c", "32k", "--engine", "vllm==0.10.2,vllm==0.33.0")
    rows = found(kvcalc, "search", *words)["rows"]
    by_version = {row["engine"]["version"]: row["kv_cache"]["bytes"] for row in rows}
    compared = json.loads(kvcalc("compare", *words, "--format", "json").out)["rows"]
    assert by_version == {row["engine"]["version"]: row["kv_cache"]["bytes"] for row in compared}
    assert len(set(by_version.values())) == 2
    assert all(shlex.split(row["search"]["command"])[-1] == f"version={row['engine']['version']}" for row in rows)
    assert "vllm 0.10.2" in kvcalc("search", *words).out.splitlines()[6]
