"""Where a paper appeared: the words of a venue taken apart, and whether two of them mean the same place."""

from __future__ import annotations

import re
from dataclasses import dataclass

YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")

# Words that give a place away, and the short name the field uses for it.
_SHORT_NAMES: tuple[tuple[str, str], ...] = (
    (r"\bcorr\b|\barxiv\b|\bpreprint\b", "arXiv"),
    (r"international conference on machine learning", "ICML"),
    (r"neural information processing|\bnips\b", "NeurIPS"),
    (r"learning representations", "ICLR"),
    (r"european conference on computer vision", "ECCV"),
    (r"international journal of computer vision", "IJCV"),
    (r"pattern analysis and machine intelligence", "TPAMI"),
    (r"human-computer studies", "IJHCS"),
    (r"frontiers of computer science", "FCS"),
    (r"north american chapter of the association for comp", "NAACL"),
    (r"european chapter of the association for comp", "EACL"),
    (r"empirical methods in natural language", "EMNLP"),
    (r"(?<!chapter of the )association for computational linguistics", "ACL"),
    (r"transactions on machine learning research", "TMLR"),
)
_JOURNAL = re.compile(r"\bjournal\b|\btransactions\b|^AI Open\b|^TACL\b|^TMLR\b|^Frontiers of\b|^APL\b", re.IGNORECASE)
_ACRONYM = re.compile(r"\b[A-Z][A-Za-z]*[A-Z][A-Za-z]*\b")
_NO_PLACE = frozenset({"VOL", "NO", "AAAI-"})
_VOLUME = re.compile(r"(?P<volume>\d+)\((?P<number>\d+)\)|vol\. (?P<vol>\d+)|[a-z] (?P<plain>\d+) \(\d{4}\)")
_PAGES = re.compile(r"pp\. (?P<pp>\d+-\d+)|, (?P<range>\d+-\d+)|[:,] (?P<article>\d{5,6})\b")


@dataclass(frozen=True)
class Venue:
    """A venue: its name without year and remarks, its year, and what else is known of the place."""

    text: str
    name: str
    year: int | None
    journal: bool
    volume: str | None = None
    number: str | None = None
    pages: str | None = None

    @property
    def years(self) -> frozenset[int]:
        """Every year the words name: a journal paper may be online a year before its issue."""
        return frozenset(int(year) for year in YEAR.findall(self.text))

    @property
    def places(self) -> frozenset[str]:
        """Short names of the place; joint conferences have several."""
        low = self.text.casefold()
        found = {short for pattern, short in _SHORT_NAMES if re.search(pattern, low)}
        found |= {word for word in _ACRONYM.findall(self.name) if word not in _NO_PLACE}
        return frozenset(found or {" ".join(re.findall(r"\w+", self.name.casefold()))})

    @property
    def is_preprint(self) -> bool:
        """Whether this names a preprint server and no venue."""
        return self.places == {"arXiv"} or "CoRR" in self.places

    @property
    def track(self) -> str:
        """Findings and workshops are not the main conference."""
        low = self.text.casefold()
        return "findings" if "findings" in low else "workshop" if "workshop" in low else "main"

    def same_place(self, other: Venue) -> bool:
        """Whether both name one place and one track of it, whatever the year."""
        return bool(self.places & other.places) and self.track == other.track


def parse(text: str) -> Venue:
    """The parts of a venue such as `Findings of ACL 2022, pp. 1-9` or `ACL'2022`."""
    words = " ".join(text.replace("（", " (").replace("）", ") ").split())
    year = YEAR.search(words)
    volume, pages = _VOLUME.search(words), _PAGES.search(words)
    return Venue(
        text=words,
        name=_name(words),
        year=int(year[0]) if year else None,
        journal=bool(_JOURNAL.search(words)),
        volume=(volume["volume"] or volume["vol"] or volume["plain"]) if volume else None,
        number=volume["number"] if volume else None,
        pages=(pages["pp"] or pages["range"] or pages["article"]) if pages else None,
    )


def _name(words: str) -> str:
    """The place alone: everything before the year or volume, with `workshop` kept where it stands behind the year."""
    name = re.split(r"[\s,('‘’`]*(?:(?:19|20)\d\d(?!\d)|\b\d+\(\d+\)|\b\d+ \()", words)[0].strip(" ,'‘’.(") or words
    later = re.search(r"\bworkshops?\b", words[len(name) :], re.IGNORECASE)
    return f"{name} {later[0]}" if later else name
