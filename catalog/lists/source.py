"""The file of a list as clean lines: decoded, without page furniture, with what is commented out set apart.

Every step keeps the number of lines, so that a line number always means a line of the file.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path

from catalog.errors import CatalogError
from catalog.lists.item import Notice

MAX_BYTES = 5_000_000
MAX_LINE = 50_000

_COMMENT = re.compile(r"^\s*\[//\]: # ?[(\"'](?P<text>.*)[)\"']\s*$")
_HTML_COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$")
_BULLET = re.compile(r"^(\s*)[•◦▪‣]\s+")
_PAGE_STARTS = "Instantly share code, notes, and snippets."
_PAGE_HEADER_ENDS = "to your computer and use it in GitHub Desktop."
_PAGE_FOOTER = re.compile(r"^(@\S+|Sign up for free to join this conversation on GitHub\b.*)$")


@dataclass(frozen=True)
class Source:
    """A list's text in two layers of equally many lines: what is shown, and what is commented out."""

    lines: tuple[str, ...]
    shown: str
    hidden: str
    notices: tuple[Notice, ...] = ()


def load(path: Path) -> Source:
    """The file at `path`; a CatalogError says why it cannot be read as a list."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _unreadable(path, f"{size:,} bytes are too many for a list", f"at most {MAX_BYTES:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise CatalogError(f"cannot read the list: {error.strerror or error}", where=str(path)) from error
    return clean(decode(data, path), path)


def decode(data: bytes, path: Path) -> str:
    """UTF-8 text, with or without byte order mark, with any line ends."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _unreadable(path, "the file is UTF-16 text", "UTF-8", "save it as UTF-8")
    if b"\x00" in data:
        line = data[: data.index(b"\x00")].count(b"\n") + 1
        raise _unreadable(path, "the file is binary, not text", "Markdown in UTF-8", line=line)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _unreadable(path, "the file is not UTF-8 text", "UTF-8", "save it as UTF-8", line=line) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def clean(text: str, path: Path | None = None) -> Source:
    """Text of a list as the readers take it."""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            raise _unreadable(path, "the line is too long for a list", f"at most {MAX_LINE:,} signs", line=number)
    body = [_BULLET.sub(r"\1- ", line) for line in _without_page(lines)]
    body, notices = _without_open_fence(body)
    shown, hidden = _layers(body)
    return Source(tuple(lines), shown, hidden, tuple(notices))


def _unreadable(
    path: Path | None, message: str, allowed: str, hint: str | None = None, line: int | None = None
) -> CatalogError:
    where = str(path) if path else "the list"
    return CatalogError(message, where=f"{where}, line {line}" if line else where, allowed=allowed, hint=hint)


def _without_page(lines: list[str]) -> list[str]:
    """Blank what a gist's web page puts around the text, where the page was copied instead of the file."""
    if not any(line.strip() == _PAGE_STARTS for line in lines[:20]):
        return lines
    start = next((n + 1 for n, line in enumerate(lines) if line.strip().endswith(_PAGE_HEADER_ENDS)), 0)
    start = next((n for n in range(start, len(lines)) if _is_title(lines[n])), start)
    end = next((n for n in range(start, len(lines)) if _PAGE_FOOTER.match(lines[n].strip())), len(lines))
    return ["" if n < start or n >= end else line for n, line in enumerate(lines)]


def _is_title(line: str) -> bool:
    return bool(line.strip()) and not line.startswith(("Save ", "Select ", " "))


def _without_open_fence(lines: list[str]) -> tuple[list[str], list[Notice]]:
    """Blank a fence that opens a code block and is never closed: it would swallow the rest of the list."""
    opened: tuple[int, str] | None = None
    for number, line in enumerate(lines, 1):
        match = _FENCE.match(line)
        if not match:
            continue
        marks, info = match[1], match[2]
        if opened is None:
            opened = None if marks[0] == "`" and "`" in info else (number, marks)
        elif marks.startswith(opened[1]) and not info.strip():
            opened = None
    if opened is None:
        return lines, []
    rest = [*lines]
    rest[opened[0] - 1] = ""
    body, notices = _without_open_fence(rest)
    return body, [Notice(opened[0], "the code block that begins here is never closed; read as text"), *notices]


def _layers(lines: list[str]) -> tuple[str, str]:
    """What is shown, and what is commented out as `[//]: # (...)` or `<!-- ... -->`, both with every line in place.

    Headings stand in both, so that what is commented out has its section too.
    """
    shown, hidden = [], []
    for line in lines:
        match = _COMMENT.match(line)
        shown.append("" if match else line)
        hidden.append(html.unescape(match["text"]) if match else line if line.startswith("#") else "")
    text = "\n".join(shown)
    for comment in _HTML_COMMENT.finditer(text):
        first = text.count("\n", 0, comment.start())
        for offset, line in enumerate(comment[1].split("\n")):
            hidden[first + offset] = hidden[first + offset] or line.strip()
    text = _HTML_COMMENT.sub(lambda match: "\n" * match[0].count("\n"), text)
    return text, "\n".join(hidden)
