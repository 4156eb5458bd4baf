r"""BibTeX records that no title can break.

Text is UTF-8, as LaTeX has read it by default since 2018; only the signs that LaTeX or BibTeX would obey are written
as commands, and braces never as ``\{``, which BibTeX would count. Words whose capitals carry meaning are kept from
styles that lower the case: ``{LoRA}``, ``{BERT}``, ``{P}-Tuning``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import quote

from catalog.exports.people import Person, person
from catalog.exports.places import Publication, landing_page, publication
from catalog.markdown import plain
from catalog.taxonomy import Status
from catalog.terminal import harmless
from catalog.words import fold

if TYPE_CHECKING:
    from catalog.entry import Entry
    from catalog.paper import Paper

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_COMMANDS = {
    "\\": r"{\textbackslash}",
    "{": r"{\textbraceleft}",
    "}": r"{\textbraceright}",
    "<": r"{\textless}",
    ">": r"{\textgreater}",
    "|": r"{\textbar}",
    "^": r"{\textasciicircum}",
    "~": r"{\textasciitilde}",
    **{sign: f"\\{sign}" for sign in "%#$&_"},
}
_NAMES = frozenset(
    ("Bayes", "Bayesian", "Cayley", "Fisher", "Fourier", "Gaussian", "Givens", "Hadamard", "Householder", "Kronecker")
)
"""Words that stay capital because they are people's names."""
_RUN = re.compile(r"[^\W_]+")
_SAFE_IN_ADDRESS = "/:?#@!$&'()*+,;=%~-._[]"


def to_bibtex(papers: Iterable[Paper | Entry]) -> str:
    """One record a paper, in the order given; empty for no papers."""
    return "\n".join(record(paper) for paper in papers)


def record(paper: Paper | Entry) -> str:
    """The record of one paper."""
    place = publication(paper)
    found = {name: value for name, value in _fields(paper, place).items() if value}
    width = max(map(len, found))
    lines = [f"  {name:<{width}} = {value}," for name, value in found.items()]
    kind = "misc" if place.container is None else "article" if place.journal else "inproceedings"
    return "\n".join([f"@{kind}{{{citation_key(paper)},", *lines, "}", ""])


def citation_key(paper: Paper | Entry) -> str:
    """First author, first public year and slug, as in `hu2021lora`: no later publication changes them."""
    first = person(plain(paper.authors[0]))
    family = first.family.split()[0] if first.group else first.surname
    letters = re.sub(r"[^a-z]", "", fold(family)) or "anon"
    return f"{letters}{paper.year}{paper.slug}"


def _fields(paper: Paper | Entry, place: Publication) -> dict[str, str]:
    arxiv = paper.arxiv
    container = "journal" if place.journal else "booktitle"
    return {
        "title": f"{{{title(paper.title)}}}",
        "author": f"{{{' and '.join(_name(person(plain(author))) for author in paper.authors)}}}",
        container: _braced(place.container),
        "year": f"{{{place.year}}}",
        "month": _MONTHS[place.month - 1] if place.month else "",
        "volume": _braced(place.volume),
        "number": _braced(place.number),
        "pages": _braced((place.pages or "").replace("-", "--")),
        "eprint": _verbatim(arxiv),
        "archivePrefix": "{arXiv}" if arxiv else "",
        "primaryClass": _braced(paper.arxiv_categories[0]) if arxiv and paper.arxiv_categories else "",
        "doi": _verbatim(paper.doi),
        "url": _verbatim(landing_page(paper)),
        "note": _note(paper, place),
    }


def _note(paper: Paper | Entry, place: Publication) -> str:
    if paper.status == Status.WITHDRAWN:
        return "{Withdrawn}"
    return f"{{Published as ``{title(place.other_title)}''}}" if place.other_title else ""


def _braced(text: object) -> str:
    return f"{{{escape(text)}}}" if text else ""


def _verbatim(address: str | None) -> str:
    """An address or identifier, which styles take as it stands: what could break the field is written in per cent."""
    return f"{{{quote(plain(address), safe=_SAFE_IN_ADDRESS)}}}" if address else ""


def _name(who: Person) -> str:
    """A name as BibTeX reads it; one that holds `and` or a comma of its own is kept together by braces."""
    if who.group:
        return f"{{{escape(who.family)}}}"
    parts = [f"{_kept(who.particle)} {_kept(who.family)}".strip(), _kept(who.suffix), _kept(who.given)]
    return ", ".join(part for part in parts if part)


def _kept(text: str) -> str:
    escaped = escape(text)
    return f"{{{escaped}}}" if "," in text or re.search(r"\band\b", text, re.IGNORECASE) else escaped


def escape(text: object) -> str:
    """Text for a braced field: one line, its braces balanced, nothing in it obeyed by BibTeX or LaTeX."""
    return _commands(_line(text))


def title(text: object) -> str:
    """A title, with braces around the words whose capitals must stay."""
    line, parts, end = _line(text), [], 0
    for run in _RUN.finditer(line):
        parts += [_commands(line[end : run.start()]), f"{{{run[0]}}}" if keeps_case(run[0]) else run[0]]
        end = run.end()
    return "".join([*parts, _commands(line[end:])])


def keeps_case(word: str) -> bool:
    """Whether a word's capitals carry meaning: they stand within it or beside a digit, or it is a lone letter or a
    person's name; the article `A` may be lowered."""
    if len(word) == 1:
        return word.isupper() and word != "A"
    digit = any(sign.isdigit() for sign in word)
    return word in _NAMES or any(sign.isupper() for sign in word[1:]) or (digit and word[0].isupper())


def _line(text: object) -> str:
    """One line of composed, printable signs: LaTeX stops at letters with loose accents and at invisible marks."""
    return unicodedata.normalize("NFC", "".join(filter(harmless, plain(text))))


def _commands(line: str) -> str:
    return "".join(_COMMANDS.get(sign, sign) for sign in line)
