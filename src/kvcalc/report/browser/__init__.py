"""What a page in a browser is made of: one skeleton with its policy, and the style and script parts of all pages.

``formulas.js`` evaluates the engines' own formulas, ``numbers.js`` writes and reads numbers as :mod:`kvcalc.units`
does, ``parts.js`` makes tables, bars, charts and boxes; ``report.js`` is a report's own (:mod:`kvcalc.report.html`),
and the calculator adds its own in :mod:`kvcalc.page`.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from hashlib import sha256
from html import escape
from importlib.resources import files

_PARTS = ("formulas.js", "numbers.js", "parts.js")
#: Characters that a page may not hold, escaped or not.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def text(words: str) -> str:
    """Words as a page may hold them.

    >>> text("<b>&\\x1b")
    '&lt;b&gt;&amp;\\\\x1b'
    """
    return escape(_FORBIDDEN.sub(lambda match: ascii(match[0])[1:-1], words))


def shipped(name: str, package: str = "kvcalc.report.browser") -> str:
    """A file of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def scripts() -> str:
    """The script parts that pages share."""
    return "\n".join(('"use strict";', *map(shipped, _PARTS)))


def page(title: str, style: str, script: str, body: Iterable[str]) -> Iterator[str]:
    """One HTML file that loads nothing, a part at a time.

    Its policy names the style and the script by their hashes: no other text in it can run or colour anything, wherever
    it comes from.

    Args:
        style, script: what is added to the shared parts.
    """
    style, script = shipped("parts.css") + style, f"{scripts()}\n{script}"
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f'<link rel="icon" href="data:,">\n<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n'
    yield from body
    yield f"<script>{script}</script>\n</body>\n</html>\n"


def _hash(words: str) -> str:
    return f"'sha256-{b64encode(sha256(words.encode()).digest()).decode()}'"
