"""From the bytes of a log to its starts: encodings, colours, JSON lines, and the markers of every engine.

Nothing here knows a model or computes a prediction.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

from kvcalc.logs.base import LONGEST_LINE, Line, LogReader, LogReport, Marker

_ENCODINGS = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def bounded_lines(file: BinaryIO) -> Iterator[tuple[str, bool]]:
    """The lines of a file, and whether each was cut; what lies behind the limit is skipped, not kept.

    UTF-8 with anything else replaced, or UTF-16 as PowerShell's ``>`` writes it.
    """
    data = file.readline(LONGEST_LINE)
    encoding = _utf16(data[:4])
    if encoding is not None:
        yield from _wide_lines(file, data, encoding)
        return
    data = data.removeprefix(codecs.BOM_UTF8)
    while data:
        cut = len(data) == LONGEST_LINE and not data.endswith(b"\n")
        rest = data
        while cut and rest and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)
        yield data.decode("utf-8", "replace"), cut
        data = file.readline(LONGEST_LINE)


def _utf16(head: bytes) -> str | None:
    for mark, encoding in _ENCODINGS:
        if head.startswith(mark):
            return encoding
    if len(head) == 4 and head[1] == head[3] == 0 != head[0]:
        return "utf-16-le"
    return "utf-16-be" if len(head) == 4 and head[0] == head[2] == 0 != head[1] else None


def _wide_lines(file: BinaryIO, first: bytes, encoding: str) -> Iterator[tuple[str, bool]]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    rest, cut, chunk = "", False, first
    while chunk:
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        for line in lines:
            yield line[:LONGEST_LINE].lstrip("\ufeff"), cut or len(line) > LONGEST_LINE
            cut = False
        cut, rest = cut or len(rest) > LONGEST_LINE, rest[:LONGEST_LINE]
        chunk = file.read(LONGEST_LINE)
    if rest:
        yield rest.lstrip("\ufeff"), cut


def read_log(
    lines: Iterable[tuple[str, bool]], markers: tuple[Marker, ...], commands: Mapping[str, Mapping[str, str]]
) -> LogReport:
    """Read the lines of :func:`bounded_lines`; the first marker that stands in a line says who reads it."""
    reader = LogReader(commands)
    number = cut = 0
    for number, (text, was_cut) in enumerate(lines, start=1):
        cut += was_cut
        if text.isspace() or any(repeated in text for repeated in _REPEATED):
            continue
        for plain in _messages(text):
            _read(reader, plain, number, markers)
    return LogReport(tuple(start for start in reader.starts if start.says_something), number, cut)


#: What a server repeats for as long as it runs, and what no figure stands beside.
_REPEATED = ("throughput: ", "throughput (token/s): ", ' HTTP/1.1" ')


def _read(reader: LogReader, text: str, number: int, markers: tuple[Marker, ...]) -> None:
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    for marker, read in markers:
        if marker in text:
            read(reader, Line(_LOST_ESCAPES.sub("", text) if "[" in text else text, number))
            return
    if text.lstrip()[:1] == "-":  # a further line of a command
        reader.continued(Line(text, number))


#: What a terminal obeys: colours, cursor moves and titles.
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]{0,20}[ -/]{0,2}[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)?|[@-Z\\-_])")
#: Colours whose escape character was lost on the way, or shown: "[36m", "^[[0m", "#033[0m", "\u001b[0m".
_LOST_ESCAPES = re.compile(r"(?:\^\[|#033|\\u001b|\\x1b|\\033)?\[(?:\d{1,3}(?:;\d{1,3}){0,4})?m")

#: Where loggers put a line in a JSON record: docker, journald, Python's JSON loggers, Elasticsearch, structlog, Loki.
_MESSAGE_KEYS = ("log", "message", "MESSAGE", "msg", "event", "line", "text", "textPayload", "body", "@message")
_MOST_WRAPPINGS = 3


def _messages(text: str, wrappings: int = 0) -> Iterator[str]:
    """The lines within a line: itself, or the message of a JSON record, which may hold several, or another record.

    >>> list(_messages('{"log": "GPU KV cache size: 1 tokens\\\\n", "stream": "stderr"}'))
    ['GPU KV cache size: 1 tokens']
    """
    at = text.find('{"', 0, 200)
    record = None
    if at >= 0 and wrappings < _MOST_WRAPPINGS and text.rstrip().endswith("}"):
        try:
            record = json.loads(text[at:])
        except (ValueError, RecursionError):
            record = None
    message = _message(record) if isinstance(record, dict) else None
    if message is None:
        yield text
        return
    for line in message.splitlines():
        yield from _messages(line, wrappings + 1)


def _message(record: dict[str, object]) -> str | None:
    for key in _MESSAGE_KEYS:
        value = record.get(key)
        if isinstance(value, str):
            return value
        if isinstance(value, dict):
            return _message(value)
        if isinstance(value, list) and all(isinstance(each, int) and 0 <= each < 256 for each in value):
            return bytes(value).decode("utf-8", "replace")  # journald's way to say a line with colours
    return None
