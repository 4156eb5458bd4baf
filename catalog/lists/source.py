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

MAX_BYTES = 1_000_000
MAX_LINE = 20_000

_COMMENT = re.compile(r"^\s*\[//\]: # ?[(\"'](?P<text>.*)[)\"']\s*$")
_OPEN, _CLOSE = "<!--", "-->"
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
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # no more: what is named may be a device without an end
    except OSError as error:
        raise CatalogError(f"cannot read the list: {error.strerror or error}", where=str(path)) from error
    if len(data) > MAX_BYTES:
        raise _unreadable(path, "the file is too large for a list", f"at most {MAX_BYTES:,} bytes")
    return clean(decode(data, path), path)


def decode(data: bytes, path: Path) -> str:
    """UTF-8 text, with or without byte order mark."""
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
    return text


def clean(text: str, path: Path | None = None) -> Source:
    """Text of a list, with any line ends, as the readers take it."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            raise _unreadable(path, "the line is too long for a list", f"at most {MAX_LINE:,} signs", line=number)
    body = [_BULLET.sub(r"\1- ", line) for line in _without_page(lines)]
    body, notices = _without_open_fence(body)
    shown, hidden, open_comments = _layers(body)
    return Source(tuple(lines), shown, hidden, (*notices, *open_comments))


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
    """Blank every fence that opens a code block and is never closed: it would swallow the rest of the list."""
    fences = [_fence(line) for line in lines]
    longest = _longest_closing(fences)
    body, notices = [*lines], []
    opened: _Fence | None = None
    for number, fence in enumerate(fences):
        if fence is None:
            continue
        if opened:
            opened = None if fence.closes(opened) else opened
        elif fence.opens and longest[number + 1].get(fence.sign, 0) >= fence.length:
            opened = fence
        elif fence.opens:
            body[number] = ""
            notices.append(Notice(number + 1, "the code block that begins here is never closed; read as text"))
    return body, notices


@dataclass(frozen=True)
class _Fence:
    """A line that opens or closes a code block."""

    sign: str
    length: int
    info: str

    @property
    def opens(self) -> bool:
        """Whether it may open a block: what follows backticks may hold none."""
        return self.sign != "`" or "`" not in self.info

    def closes(self, opened: _Fence) -> bool:
        """Whether it ends the block that the other one began."""
        return self.sign == opened.sign and self.length >= opened.length and not self.info


def _fence(line: str) -> _Fence | None:
    match = _FENCE.match(line)
    return _Fence(match[1][0], len(match[1]), match[2].strip()) if match else None


def _longest_closing(fences: list[_Fence | None]) -> list[dict[str, int]]:
    """For every line, by sign, the longest fence from there on that can close a block."""
    longest: list[dict[str, int]] = [{}]
    for fence in reversed(fences):
        after = longest[-1]
        if fence and not fence.info and fence.length > after.get(fence.sign, 0):
            after = after | {fence.sign: fence.length}
        longest.append(after)
    return longest[::-1]


def _layers(lines: list[str]) -> tuple[str, str, list[Notice]]:
    """What is shown, and what is commented out as `[//]: # (...)` or `<!-- ... -->`, both with every line in place.

    Headings stand in both, so that what is commented out has its section too.
    """
    shown, hidden = [], []
    for line in lines:
        match = _COMMENT.match(line)
        shown.append("" if match else line)
        hidden.append(html.unescape(match["text"]) if match else line if line.startswith("#") else "")
    text, comments, notices = _without_comments("\n".join(shown))
    for first, comment in comments:
        for number, line in enumerate(comment.split("\n"), first):
            hidden[number - 1] = hidden[number - 1] or line.strip()
    return text, "\n".join(hidden), notices


def _without_comments(text: str) -> tuple[str, list[tuple[int, str]], list[Notice]]:
    """Text without `<!-- ... -->`, the comments with their lines, and a notice where one is never closed."""
    kept: list[str] = []
    comments: list[tuple[int, str]] = []
    position, line = 0, 1
    while (start := text.find(_OPEN, position)) >= 0:
        kept.append(text[position:start])
        line += text.count("\n", position, start)
        end = text.find(_CLOSE, start + len(_OPEN))
        if end < 0:
            notice = Notice(line, "the comment that begins here is never closed; read as text")
            return "".join([*kept, text[start:]]), comments, [notice]
        comments.append((line, text[start + len(_OPEN) : end]))
        lines_inside = text.count("\n", start, end)
        kept.append("\n" * lines_inside)
        line, position = line + lines_inside, end + len(_CLOSE)
    return "".join([*kept, text[position:]]), comments, []
