"""Whether what an entry calls its venue and what an index calls it mean one place."""

from __future__ import annotations

import re

from catalog.venues import parse

_SERIES = re.compile(
    r"^lecture notes in\b|^communications in computer\b|^advances in intelligent systems\b", re.IGNORECASE
)
_SHORTEST = 4
"""Letters from which the initials of a name tell something."""


def publishing(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names that say where a paper appeared: no series of books, and no server of preprints."""
    return tuple(name for name in names if not _SERIES.search(name) and not parse(name).is_preprint)


def same_venue(known: str, name: str) -> bool:
    """Whether both mean one place, and both or neither its findings."""
    one, other = parse(known), parse(name)
    if (one.track == "findings") != (other.track == "findings"):
        return False
    return bool(one.places & other.places) or any(_are_initials(place, name) for place in one.places)


def _are_initials(short: str, name: str) -> bool:
    """Whether a short name such as CIKM is made of initials of the name, in their order."""
    if len(short) < _SHORTEST:
        return False
    initials = iter(word[0] for word in re.findall(r"\b[A-Z]\w*", name))
    return all(letter in initials for letter in short.upper())
