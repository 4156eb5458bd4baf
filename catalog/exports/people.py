"""Names of people as printed, taken apart into what bibliographies ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Words that belong to the family name though they stand before its last word: any in lower case, a few in upper case,
# where the others are mostly names of their own.
_PARTICLE = re.compile(r"[a-z]+|Ben|De|Del|Della|Den|Der|La|Le|Ter|Van|Von")
# Family names of two words that nothing in the printed name gives away.
_DOUBLE = ("Hassan Awadallah", "Karimi Mahabadi")
_SUFFIX = re.compile(r",? (Jr\.?|Sr\.?|II|III|IV)$")
_GROUP = re.compile(r"\b(authors|collaboration|consortium|contributors|developers|group|team)$|\band\b", re.IGNORECASE)


@dataclass(frozen=True)
class Person:
    """An author; a group of people has its whole name as ``family`` and is marked."""

    family: str
    given: str = ""
    particle: str = ""
    suffix: str = ""
    group: bool = False

    @property
    def surname(self) -> str:
        """The family name with its particle, as in `van den Hengel`."""
        return f"{self.particle} {self.family}".strip()


def person(printed: str) -> Person:
    """The parts of a name printed given name first."""
    name = " ".join(printed.split())
    if _GROUP.search(name):
        return Person(name, group=True)
    ending = _SUFFIX.search(name)
    suffix, name = (ending[1], name[: ending.start()]) if ending else ("", name)
    words = name.replace(",", " ").split()
    start = _family_at(words)
    particles = start
    while particles < len(words) - 1 and words[particles].islower():
        particles += 1
    return Person(
        family=" ".join(words[particles:]),
        given=" ".join(words[:start]),
        particle=" ".join(words[start:particles]),
        suffix=suffix,
    )


def _family_at(words: list[str]) -> int:
    """Where the family name starts."""
    if " ".join(words[-2:]) in _DOUBLE:
        return len(words) - 2
    start = max(len(words) - 1, 0)
    while start > 1 and _PARTICLE.fullmatch(words[start - 1]):
        start -= 1
    return start
