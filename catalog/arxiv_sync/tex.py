"""TeX accents as letters: OAI-PMH prints names and titles as they were submitted, the query interface decodes them."""

from __future__ import annotations

import re
import unicodedata

_MARKS = {
    "`": "\u0300", "'": "\u0301", "^": "\u0302", "~": "\u0303", '"': "\u0308", "=": "\u0304", ".": "\u0307",
    "u": "\u0306", "v": "\u030c", "H": "\u030b", "c": "\u0327", "k": "\u0328", "r": "\u030a", "d": "\u0323",
    "b": "\u0331",
}  # fmt: skip
_LETTERS = {
    "ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "o": "ø", "O": "Ø", "l": "ł", "L": "Ł", "aa": "å", "AA": "Å",
    "i": "ı", "j": "ȷ", "dh": "ð", "DH": "Ð", "th": "þ", "TH": "Þ",
}  # fmt: skip
_CORE = (
    r"\\(?:([`'^~\"=.])\s*|([uvHckrdb])(?:\s+|(?=\{)))"  # the accent, a sign or a letter
    r"(?:\{([A-Za-z]|\\[ij])\}|([A-Za-z]|\\[ij](?![A-Za-z])))"  # what it stands on
)
_ACCENTS = (re.compile(r"\{" + _CORE + r"\}"), re.compile(_CORE))
_LETTER = re.compile(r"\{\\([A-Za-z]{1,2})\}|\\([A-Za-z]{1,2})(?:\{\}|\s+|(?![A-Za-z]))")
_MATH = re.compile(r"(\$[^$]*\$)")


def decoded(text: str) -> str:
    """The text with accents and letters of TeX as Unicode; formulas between dollar signs stay as they are."""
    if "\\" not in text:
        return unicodedata.normalize("NFC", text)
    parts = _MATH.split(text)
    parts[::2] = map(_plain, parts[::2])
    return unicodedata.normalize("NFC", "".join(parts))


def _plain(text: str) -> str:
    for pattern in _ACCENTS:
        text = pattern.sub(lambda m: (m[3] or m[4]).lstrip("\\") + _MARKS[m[1] or m[2]], text)
    return _LETTER.sub(lambda m: _LETTERS.get(m[1] or m[2], m[0]), text)
