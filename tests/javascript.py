"""The script parts of pages in a JavaScript engine, beside which tests evaluate their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from py_mini_racer import MiniRacer

from kvcalc.report.browser import scripts, shipped

Run = Callable[[str], Any]


def javascript() -> Run:
    """Evaluates an expression; an answer is what JSON.stringify makes of it, and a BigInt its text."""
    racer = MiniRacer()
    racer.eval(scripts() + shipped("calculator.js", "kvcalc.page"))
    text = '(_, value) => (typeof value === "bigint" ? String(value) : value)'
    return lambda script: json.loads(racer.eval(f"JSON.stringify({script}, {text})"))
