"""Figures that people reported, by the command that they would type: a log, or a model with flags."""

import json
from pathlib import Path

import pytest

DATA = json.loads((Path(__file__).parents[1] / "data" / "field_cases.json").read_text(encoding="utf-8"))
CASES = {each["id"]: each for each in DATA["cases"]}


@pytest.fixture
def ran(kvcalc, tmp_path):
    """A case's command, with its log and its model's config.json in files."""

    def run(case):
        places = {"LOG": tmp_path / "server.log", "CONFIG": tmp_path / "config.json", "DRAFT": tmp_path / "draft.json"}
        places["LOG"].write_text("\n".join(case.get("log", ())), encoding="utf-8")
        for place in ("CONFIG", "DRAFT"):
            if place.lower() in case:
                places[place].write_text(json.dumps(DATA["configs"][case[place.lower()]]), encoding="utf-8")
        words = [str(places.get(word, word)) for word in case["command"]]
        return kvcalc(*words, "--format", "json")

    return run


def figures(rows, verdict):
    return [row["figure"] for row in rows if row["verdict"] == verdict]


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_reported_figure_is_right_to_the_printed_digit(ran, name):
    case = CASES[name]
    found = ran(case)
    answer = json.loads(found.out)
    if "mebibytes" in case:
        assert [row["kv_cache"]["bytes"] / 2**20 for row in answer["rows"]] == case["mebibytes"]
    elif "layers" in case:
        sizes = {layer["kind"]: layer["bytes"] / 2**20 for layer in answer["rows"][0]["kv_cache"]["layers"]}
        assert sizes.items() >= case["layers"].items()
    elif "reason" in case:
        assert found.code == 1
        assert case["reason"] in answer["reason"]
    else:
        assert figures(answer["rows"], "disagrees") == []
        assert found.code == 0
        if not case.get("none_disagrees"):
            assert figures(answer["rows"], "agrees") == case.get("agrees", [])
            assert figures(answer["rows"], "not checked") == case.get("unchecked", [])
        else:
            assert figures(answer["rows"], "agrees") != []
