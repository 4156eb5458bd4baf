"""The authors' line of a paper, as OAI-PMH gives it in one string, as names.

Names are set apart by commas, `and`, `&`, or the colon after a collaboration's name; what stands in parentheses is
affiliations. arXiv itself splits the line in this way for its query interface.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_MARK = re.compile(r"[(),:]| (?:and|&)(?= )")
_SUFFIX = re.compile(r"(?:Jr|Sr)\.?|II|III|IV")
_OTHERS = re.compile(r"et\.? al\.?")


def names(line: str) -> tuple[str, ...]:
    """The names in a line without breaks; a suffix after a comma (`Jr.`, `III`) stays with its name.

    The time grows with the length of the line. A parenthesis that is never closed reaches to the end.
    """
    found: list[str] = []
    complete = True
    for part, follows in _parts(f" {line} "):
        if follows and not complete and _SUFFIX.fullmatch(part):
            found[-1] += f", {part}"
            complete = True
        elif any(sign.isalnum() for sign in part) and not _OTHERS.fullmatch(part):
            found.append(part)
            complete = False
    return tuple(found)


def _parts(line: str) -> Iterator[tuple[str, bool]]:
    """What stands between the marks outside of parentheses, and whether it follows a comma after a bare name."""
    words: list[str] = []
    depth = start = 0
    comma = affiliated = False
    for mark in _MARK.finditer(line):
        sign = mark[0].strip()
        if depth == 0:
            words.append(line[start : mark.start()])
        start = mark.end()
        if sign == "(":
            depth += 1
            affiliated = True
        elif sign == ")":
            depth = max(depth - 1, 0)
        elif depth == 0:
            yield " ".join(" ".join(words).split()), comma
            words.clear()
            comma, affiliated = sign == "," and not affiliated, False
    if depth == 0:
        words.append(line[start:])
    yield " ".join(" ".join(words).split()), comma
