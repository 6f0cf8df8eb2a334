"""The calculator's file: its skeleton, style and script, and its data packed."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any
from zlib import compressobj

from kvcalc.page.packing import in_columns
from kvcalc.report.browser import page, shipped


def render(data: Mapping[str, Any]) -> Iterator[str]:
    """The page of some data, a part at a time."""
    own = {name: shipped(name, "kvcalc.page") for name in ("page.css", "page.html", "calculator.js", "page.js")}
    body = f'{own["page.html"]}<script type="text/plain" id="data">{_packed(data)}</script>\n'
    return page("kvcalc", own["page.css"], own["calculator.js"] + own["page.js"], [body])


def _packed(data: Mapping[str, Any]) -> str:
    """The data as JSON, deflated without a header, in base64."""
    data = {**data, "models": in_columns(data["models"])}
    deflate = compressobj(9, wbits=-15)
    packed = deflate.compress(json.dumps(data, separators=(",", ":")).encode()) + deflate.flush()
    return b64encode(packed).decode()
