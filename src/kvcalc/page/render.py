"""One HTML file: the page's skeleton, style and script, and its data packed; nothing is loaded from anywhere."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib.resources import files
from typing import Any
from zlib import compressobj


def render(data: Mapping[str, Any]) -> Iterator[str]:
    """The page of some data, a part at a time.

    Its policy names the style and the script by their hashes: no other text in it can run, wherever it comes from.
    """
    style, script = _shipped("page.css"), f"{_shipped('calculator.js')}\n{_shipped('page.js')}"
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield '<link rel="icon" href="data:,">\n<title>kvcalc</title>\n'
    yield f"<style>{style}</style>\n</head>\n<body>\n{_shipped('page.html')}"
    yield f'<script type="text/plain" id="data">{_packed(data)}</script>\n'
    yield f"<script>{script}</script>\n</body>\n</html>\n"


def _shipped(name: str) -> str:
    return files("kvcalc.page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _packed(data: Mapping[str, Any]) -> str:
    """The data as JSON, deflated without a header, in base64."""
    deflate = compressobj(9, wbits=-15)
    packed = deflate.compress(json.dumps(data, separators=(",", ":")).encode()) + deflate.flush()
    return b64encode(packed).decode()
