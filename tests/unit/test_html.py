"""A report as a page: its formulas are footprint's, it loads nothing, and no name in it can become markup."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import pytest

import kvcalc
from kvcalc.cli.app import run
from kvcalc.derivation import Derivation, Quantity, evaluate
from kvcalc.report.document import Column, Document, Live, LiveRow, Section
from kvcalc.report.html import render

ENGINES = ("ideal", "llama.cpp", "vllm", "sglang")
HOSTILE = "</script><script>alert(1)</script>\x1b\"'&<b>"


def page(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run([*arguments, "--format", "html"]) == 0
    return capsys.readouterr().out


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="document">(.*?)</script>', text, re.DOTALL)[1])


class Elements(HTMLParser):
    """The elements of a page, which must be closed in order."""

    EMPTY = frozenset({"meta", "input", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def test_the_embedded_formulas_are_what_footprint_gives(capsys):
    live = data_of(page(capsys, "compare", "gemma-3-27b", "--engine", ",".join(ENGINES), "-c", "32k"))["live"]
    model = kvcalc.load("gemma-3-27b")
    assert (live["context"], live["batch_size"], live["longest"]) == ("32768", "1", "131072")
    for engine, row in zip(ENGINES, live["rows"], strict=True):
        assert int(row["weights_bytes"]) == kvcalc.footprint(model, context=1, engine=engine).weights.bytes
        for context, batch_size in ((1, 1), (131072, 1), (4097, 7), (2**40, 2**20)):
            texts = row["one"] if batch_size == 1 or not row["several"] else row["several"]
            work = Derivation(context, batch_size)
            lines = [Quantity(symbol, "", formula, 0) for symbol, formula in texts]
            made = kvcalc.kv_cache_bytes(model, context=context, batch_size=batch_size, engine=engine)
            assert evaluate([*work.quantities, *lines])["kv_bytes"] == made


def test_a_configuration_whose_formulas_hold_for_one_context_alone_says_so(capsys):
    text = page(capsys, "show", "gemma-3-1b", "--engine", "mlx-lm", "-E", "prefill_step_size=192", "-c", "8k")
    [row] = data_of(text)["live"]["rows"]
    assert (row["one"], row["several"]) == ([], [])


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "gemma-3-27b", "-c", "128k", "--explain"),
        ("compare", "gemma-3-27b", "gemma-2-2b@5:1/sw=1024", "-c", "32k", "--explain"),
        ("sweep", "gemma-2-2b@global", "gemma-2-2b@5:1/sw=1024"),
        ("search", "gemma-2-2b", "--ratios", "1:1,5:1", "--windows", "512,1024", "-c", "8k,32k"),
        ("fit", "gemma-3-1b", "--memory", "24GiB", "-c", "8k"),
        ("paper", "--explain"),
        ("presets",),
        ("engines",),
    ],
)
def test_every_page_is_small_well_formed_and_loads_nothing(capsys, arguments):
    text = page(capsys, *arguments)
    elements = Elements(text)
    assert elements.open == []
    assert len(text.encode()) < 300_000
    for tag, attributes in elements.seen:
        assert tag not in ("iframe", "img", "object", "base")
        assert attributes.get("href", "data:,") == "data:,"
        assert "src" not in attributes
    markup = re.sub(r"<td.*?</td>|<p.*?</p>|http://www.w3.org/2000/svg", "", text)
    assert not re.findall(r"(?:url\(|@import|fetch\(|XMLHttpRequest|https?:)[^)]*", markup)
    assert "default-src 'none'" in text
    assert 'name="viewport"' in text


def test_a_page_of_a_hundred_configurations_stays_small(capsys):
    models = [f"gemma-2-2b@5:1/sw={window}" for window in range(64, 6464, 64)]
    assert len(page(capsys, "compare", *models, "-c", "32k").encode()) < 300_000


def test_a_hostile_name_stays_text(capsys, tmp_path):
    column = Column(HOSTILE, lambda row: row)
    live = Live((LiveRow(HOSTILE, 1, (), ()),), 1, 1, 1)
    section = Section((column,), [HOSTILE, HOSTILE], HOSTILE)
    text = "".join(render(Document(HOSTILE, (HOSTILE,), (section,), (), "x", notes=(HOSTILE,), live=live)))
    elements = Elements(text)
    assert [tag for tag, _ in elements.seen].count("script") == 2
    assert "b" not in [tag for tag, _ in elements.seen]
    assert "\x1b" not in text
    assert data_of(text)["live"]["rows"][0]["label"] == HOSTILE


def test_without_javascript_the_page_shows_the_table_and_hides_the_sliders(capsys):
    text = page(capsys, "compare", "gemma-3-27b", "gemma-3-27b@global", "-c", "32k")
    assert '<section id="live" class="card" aria-labelledby="live-title" hidden>' in text
    assert 'data-value="3120562176">2.91</td>' in text


def test_charts_and_layers_are_drawn_from_the_data_of_the_document(capsys):
    text = page(capsys, "compare", "gemma-3-27b", "gemma-3-27b@global", "-c", "32k")
    data = data_of(text)
    [chart] = data["charts"]
    assert [series["values"][0] for series in chart["series"]] == ["54018692608", "3120562176"]
    assert chart["names"] == ["gemma-3-27b", "gemma-3-27b@global"]
    strip = data["strips"][0]
    assert strip["kinds"] == [["sliding (1024)", True], ["full", False]]
    assert [number for number, kind in enumerate(strip["order"]) if kind == 1] == list(range(5, 62, 6))
    places = {attributes.get("id") for _, attributes in Elements(text).seen}
    assert {"chart-0", "strip-0", "strip-1", "context", "batch", "live-table"} <= places


def test_without_javascript_the_layers_are_counted_in_words(capsys):
    text = page(capsys, "show", "gemma-3-27b", "-c", "32k")
    assert "<figcaption>gemma-3-27b: 62 layers: 52 sliding (1024), 10 full</figcaption>" in text
    assert '<section class="drawn" hidden>\n<h2>Charts</h2>' in text


def test_nothing_runs_in_a_report_but_what_its_policy_names(capsys):
    text = page(capsys, "sweep", "gemma-3-1b")
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        [own] = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        assert f"{kind}-src 'sha256-{b64encode(sha256(own.encode()).digest()).decode()}'" in policy
    assert not [attributes for _, attributes in Elements(text).seen if "style" in attributes]


def test_a_derivation_shows_formula_numbers_value_and_source(capsys):
    text = page(capsys, "show", "gemma-3-27b", "-c", "128k", "--explain")
    assert "<code>52 * 1 * (8192 * min(131,072, 1024))</code>" in text
    assert '<td class="number">11,173,625,856 bytes</td>' in text
    assert "<code>27,009,346,304 * 2</code>" in text
