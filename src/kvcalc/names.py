"""Names as people write them: in any case, with any separator, with some of the words left out.

A name is compared by its words, never by its letters alone: ``gemma-22b`` is not ``gemma-2-2b``, and a suggestion that
changes a number (27b for 7b, h200 for h100) would be an answer to another question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_WORD = re.compile(r"[0-9]+(?: ?g(?:i?b)?\b|[a-z]*)|[a-z]+|[^\W\d_]+")
_DECIMAL = re.compile(r"([0-9]+)\.([0-9]+)")
_GIGABYTES = re.compile(r"([0-9]+) ?g(?:i?b)?")
_LONGEST = 200
#: Suggestions that a line can list.
_MOST = 8


def words(name: str) -> tuple[str, ...]:
    """The words of a name: letters, and numbers with their unit.

    >>> words("gemma3:27B"), words("NVIDIA H100 80GiB"), words("llama-3.1-8b")
    (('gemma', '3', '27b'), ('nvidia', 'h', '100', '80gb'), ('llama', '3', '1', '8b'))
    """
    found = _WORD.findall(name[:_LONGEST].casefold())
    return tuple(_GIGABYTES.sub(r"\1gb", word) for word in found)


def numbers(name: str) -> list[str]:
    """The words of a name that tell a size or a version, sorted.

    >>> numbers("gemma-3-27b")
    ['27b', '3']
    """
    return sorted(word for word in words(name) if word[0].isdigit())


def with_words(name: str, known: Iterable[str]) -> list[str]:
    """The known names that have all the words of ``name``, in their order there; half a decimal is no word.

    >>> with_words("h100", ["h100-80gb", "h200", "h100-nvl-94gb"])
    ['h100-80gb', 'h100-nvl-94gb']
    >>> with_words("phi-5", ["phi-3.5-mini", "phi-5-mini"])
    ['phi-5-mini']
    """
    asked = words(name)
    return [each for each in known if asked and within(asked, words(each)) and not _halves(each, asked)]


def _halves(name: str, asked: tuple[str, ...]) -> bool:
    """Whether the words take what stands behind a point in the name, and not what stands before it."""
    return any(after in asked and before not in asked for before, after in _DECIMAL.findall(name))


def within(few: tuple[str, ...], many: tuple[str, ...]) -> bool:
    """Whether all of the few words stand among the many, in their order."""
    rest = iter(many)
    return all(word in rest for word in few)


def near(name: str, known: Iterable[str]) -> list[str]:
    """What was probably meant: names with the same words and more, else the nearest by letters with the same numbers.

    >>> near("gemma-27b", ["gemma-2-27b", "gemma-3-27b", "gemma-7b"])
    ['gemma-2-27b', 'gemma-3-27b']
    >>> near("gema-3-27b", ["gemma-3-27b", "gemma-3-12b"]), near("h300", ["h200"])
    (['gemma-3-27b'], [])
    """
    if len(name) > _LONGEST:
        return []
    names = list(dict.fromkeys(known))
    same_words = with_words(name, names)
    if same_words:
        return same_words[:_MOST]
    letters = {each: _letters(each) for each in names if numbers(each) == numbers(name)}
    matches = get_close_matches(_letters(name), letters.values(), n=1, cutoff=0.7)
    return [each for each, spelt in letters.items() if spelt in matches][:1]


def _letters(name: str) -> str:
    """A name without its numbers.

    >>> _letters("gemma-3-27b")
    'gemma'
    """
    return " ".join(word for word in words(name) if not word[0].isdigit())
