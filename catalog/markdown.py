"""Text from papers and lists as Markdown: shown exactly as it is, whatever signs it holds.

The escapes hold in CommonMark (GitHub) as well as in Python-Markdown with the extensions of mkdocs-material, inside
paragraphs, headings, list items, links and table cells, and leave nothing for a template engine to run.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote, urlsplit

# A backslash before these is an escape in both dialects.
_BACKSLASHED = frozenset("*[]")
# These start something in one of the dialects where a backslash is not an escape for them, or in a template language.
_REFERENCED = {sign: f"&#{ord(sign)};" for sign in "\\`{}|"} | {"<": "&lt;", ">": "&gt;"}
# These mean something only in pairs: super- and subscript, strikethrough, mathematics, marks, insertions.
_PAIRED = ("^", "~", "$", "==", "++")
_ENTITY = re.compile(r"&(?=#?\w+;)")
_EDGE_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
_EMOJI_CODE = re.compile(r":(?=[\w+-]+:)")
_BLOCK_START = re.compile(r"^(?:(?P<number>\d+)(?P<dot>[.)])|(?P<sign>[-+#=:!?%~]))")
_SAFE_IN_URL = "/:?#@!$&'*+,;=%~-._"
_SCHEMES = ("http", "https")


def plain(text: object) -> str:
    """One line of printable text: no control signs, no signs that reverse or hide text, single spaces."""
    kept = (sign if _printable(sign) else " " if sign in "\t\n\r\v\f\x85" else "" for sign in str(text))
    return " ".join("".join(kept).split())


def escape(text: object) -> str:
    """Text for a line of Markdown; it reads back as `plain(text)`."""
    line = _ENTITY.sub("&amp;", plain(text))
    line = "".join(f"\\{sign}" if sign in _BACKSLASHED else _REFERENCED.get(sign, sign) for sign in line)
    line = _EDGE_UNDERSCORE.sub(r"\\_", line)
    line = _EMOJI_CODE.sub("&#58;", line)
    for mark in _PAIRED:
        if line.count(mark) > 1 or (len(mark) > 1 and mark in line):
            line = line.replace(mark, "".join(f"&#{ord(sign)};" for sign in mark))
    return _BLOCK_START.sub(_inert_start, line)


def link(text: object, url: object) -> str:
    """A link with escaped text; the text alone where the address is not one of the web."""
    target = address(url)
    return f"[{escape(text)}]({target})" if target else escape(text)


def image(text: object, url: object) -> str:
    """An image with escaped replacement text; the text alone where the address is not one of the web."""
    linked = link(text, url)
    return f"!{linked}" if address(url) else linked


def address(url: object) -> str:
    """A web address fit for a Markdown link, or nothing: other schemes, such as javascript:, are refused."""
    text = plain(url) if url else ""
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    if parts.scheme.lower() not in _SCHEMES or not parts.netloc or " " in parts.netloc:
        return ""
    return _ENTITY.sub("&amp;", quote(text, safe=_SAFE_IN_URL))


def _printable(sign: str) -> bool:
    # Cc control, Cf format (zero width, bidirectional overrides), Cs surrogates, Co private use, Cn unassigned, Zl/Zp.
    return sign in "\u200c\u200d" or unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _inert_start(match: re.Match[str]) -> str:
    """What would begin a list, heading, rule, definition or admonition, made plain text."""
    if match["number"]:
        return f"{match['number']}&#{ord(match['dot'])};"
    return f"&#{ord(match['sign'])};"
