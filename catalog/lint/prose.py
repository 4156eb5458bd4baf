"""Our own words are plain text in American spelling, and are our own."""

from __future__ import annotations

import re
from collections.abc import Iterator

from catalog.entry import Entry
from catalog.lint.core import Collection, EntryFile, Finding

_TAG = re.compile(
    r"</?(a|abbr|b|br|code|div|em|h\d|hr|i|img|li|ol|p|pre|script|span|strong|style|sub|sup|table|tt|u|ul)\b[^>]*>",
    re.I,
)
_ENTITY = re.compile(r"&(amp|lt|gt|quot|nbsp|#\d+|#x[0-9a-f]+);", re.I)
_WORKSHOP = re.compile(
    r"\b((could not|cannot) be read|not re-read|(was|were) not read|not opened|left empty|this entry|chosen by us)\b",
    re.I,
)
_FIRST_PERSON = re.compile(r"\b(in this (paper|work)|we (propose|present|introduce|show|demonstrate|find))\b", re.I)

_STEMS = (
    "initial|optim|normal|general|regular|parameter|reparameter|quant|token|minim|maxim|factor|summar|special|"
    "standard|stabil|personal|penal|random|material|character|util|emphas|local|vector|linear|memor|organ|visual|"
    "recogn|synthes|symmetr|custom|binar"
)
BRITISH = {
    re.compile(rf"\b(?:un|re|de|over)?(?:{_STEMS})is(?:e[sdr]?|ers|ing|ations?)\b", re.I): "-ize, -ization",
    re.compile(r"\b(?:behaviou|neighbou|favou|colou|honou|humou)r\w*", re.I): "-or",
    re.compile(r"\b(?:un|re|mis)?(?:label|model|cancel|signal|travel|dial)l(?:ed|ing)\b", re.I): "-led, -ling",
    re.compile(r"\b(?:re|un)?cent(?:re[sd]?|ring)\b", re.I): "center",
    re.compile(
        r"\b(?:analys(?:e|ed|ing)|(?:artefact|licence|programme|defence|judgement)s?|grey\w*|learnt|whilst)\b", re.I
    ): ("analyze, artifact, gray, license, learned, while, program, defense, judgment"),
}
_CODE = re.compile(r"https?://\S+|\S*(?:[/_]|\.\w)\S*|'[^']*'")
"""Addresses, identifiers and quoted words keep their spelling."""


def no_html(collection: Collection) -> Iterator[Finding]:
    """Prose has no HTML: it is shown in terminals and lists as well."""
    for file, key, text in _prose(collection):
        match = _TAG.search(text) or _ENTITY.search(text)
        if match:
            yield file.finding("no-html", key, "contains HTML", match.group(0), "plain text")


def american_spelling(collection: Collection) -> Iterator[Finding]:
    """Our words are in American spelling."""
    for file, key, text in _prose(collection):
        plain = _CODE.sub(" ", text)
        for pattern, american in BRITISH.items():
            match = pattern.search(plain)
            if match:
                message = "is British spelling"
                yield file.finding("american-spelling", key, message, match.group(0), american)


def own_words(collection: Collection) -> Iterator[Finding]:
    """A summary is ours: it does not speak as the authors do in their abstract."""
    for file in collection.files:
        for key in ("summary", "how_it_differs"):
            match = _FIRST_PERSON.search(getattr(file.entry, key) or "")
            if match:
                message = "speaks as the paper's authors"
                yield file.finding("own-words", key, message, match.group(0), "our words on the paper")


def about_the_paper(collection: Collection) -> Iterator[Finding]:
    """Our words speak of the paper and the method, not of how the entry came to be written."""
    for file, key, text in _prose(collection):
        match = _WORKSHOP.search(text)
        if match:
            message = "speaks of the making of the entry"
            yield file.finding("about-the-paper", key, message, match.group(0), "what is known, or 'not confirmed'")


def _prose(collection: Collection) -> Iterator[tuple[EntryFile, str, str]]:
    for file in collection.files:
        for key, text in _texts(file.entry):
            if text:
                yield file, key, text


def _texts(entry: Entry) -> Iterator[tuple[str, str | None]]:
    mechanism, reversibility = entry.mechanism, entry.reversibility
    for key in ("summary", "how_it_differs", "no_implementation"):
        yield key, getattr(entry, key)
    for key in ("equations", "trained", "frozen", "insertion", "init", "training", "parameter_count"):
        yield f"mechanism.{key}", getattr(mechanism, key)
    for key in ("hyperparameters", "golden_facts", "pitfalls"):
        for index, item in enumerate(getattr(mechanism, key)):
            yield f"mechanism.{key}[{index}]", item
    if reversibility:
        for key in ("unmergeable", "strength_knob", "note"):
            yield f"reversibility.{key}", getattr(reversibility, key)
    yield "claims.note", entry.claims.note
    for index, untestable in enumerate(entry.claims.untestable):
        yield f"claims.untestable[{index}].why", untestable.why
    yield "fidelity.note", entry.fidelity.note if entry.fidelity else None
    for index, deviation in enumerate(entry.deviations):
        yield f"deviations[{index}].what", deviation.what
        yield f"deviations[{index}].evidence", deviation.evidence
    for index, doubt in enumerate(entry.sources.unverified):
        yield f"sources.unverified[{index}]", doubt
    for index, erratum in enumerate(entry.errata):
        yield f"errata[{index}].fact", erratum.fact
        yield f"errata[{index}].evidence", erratum.evidence
