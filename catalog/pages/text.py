"""Text from papers and lists, made safe to stand in a page.

Pages are Markdown whose blocks are mostly HTML. Inside HTML, jinja escapes what it prints. In Markdown proper, every
sign that could start something is written as a character reference, which no Markdown engine reads as markup. Signs
that cannot be printed are dropped: Markdown engines use some of them as internal marks.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from markupsafe import Markup, escape

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
_MARKDOWN = re.compile(r"[\\`*_{}\[\]()<>#+\-.!|&~^=:;\"'$@%/?]")
_ADDRESS = re.compile(
    r"https?://[^\s<>\"'`]+|\barXiv[: ]\d{4}\.\d{4,5}\b|(?<![\w./@-])github\.com/[\w-]+/[\w.-]+", re.IGNORECASE
)
_TRAILING = ".,;:!?"


def plain(text: object) -> str:
    """One line of printable text."""
    return " ".join(_UNPRINTABLE.sub("", str(text).replace("\t", " ")).split())


def inline(text: object) -> Markup:
    """Text for a line of Markdown: shown as it is, whatever signs it holds."""
    return Markup(_MARKDOWN.sub(lambda sign: f"&#{ord(sign[0])};", plain(text)))


def attribute(text: object, limit: int = 0) -> str:
    """Text for the front matter, which the theme prints unescaped: escaped here, cut at a word when too long."""
    short = plain(text)
    if limit and len(short) > limit:
        short = short[:limit].rsplit(" ", 1)[0].rstrip(_TRAILING) + " …"
    return str(escape(short))


def address(url: object) -> str:
    """An address that may stand in `href`: http or https, else nothing."""
    text = plain(url) if url else ""
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    return text if parts.scheme in ("http", "https") and parts.netloc else ""


def linked(text: object) -> Markup:
    """Text whose web addresses, arXiv ids and GitHub repositories are links."""
    line, pieces, end = plain(text), [], 0
    for match in _ADDRESS.finditer(line):
        found = _balanced(match[0])
        target = _target(found)
        pieces += [escape(line[end : match.start()]), _link(target, found)]
        end = match.start() + len(found)
    return Markup("").join([*pieces, escape(line[end:])])


def _target(found: str) -> str:
    if found.lower().startswith("arxiv"):
        return f"https://arxiv.org/abs/{found[6:]}"
    return found if "://" in found else f"https://{found}"


def _link(target: str, label: str) -> Markup:
    url = address(target)
    return Markup('<a href="{}">{}</a>').format(url, label) if url else escape(label)


def _balanced(found: str) -> str:
    """The address without punctuation, or a bracket, that belongs to the sentence around it."""
    while found and (found[-1] in _TRAILING or (found[-1] in ")]" and found.count("(") + found.count("[") == 0)):
        found = found[:-1]
    return found


def fence(code: str, language: str) -> Markup:
    """A fenced code block; the fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
    ticks = "`" * (longest + 1)
    lines = (_UNPRINTABLE.sub("", line.replace("\t", "    ")).rstrip() for line in code.strip("\n").splitlines())
    return Markup("\n".join([f"{ticks}{language}", *lines, ticks]))


def slugified(text: str) -> str:
    """A name as part of an address: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def number(value: float | int | None) -> str:
    """A whole number with thin groups of three digits, or a dash."""
    return "–" if value is None else f"{value:,.0f}"


def ratio(value: float | None) -> str:
    """A ratio such as 1.23×, or a dash."""
    return "–" if value is None else f"{value:.2f}×"


def share(value: float | None) -> str:
    """A share in per cent with three significant digits, or a dash; number and sign stay on one line."""
    if value is None:
        return "–"
    percent = value * 100
    return f"{percent:,.0f}\u00a0%" if abs(percent) >= 100 else f"{percent:.3g}\u00a0%"
