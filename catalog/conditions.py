"""What can be asked of the catalog, and how SQLite is asked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, false, func, literal, literal_column, or_, select, union_all

from catalog.columns import (
    ALIAS,
    AUTHOR,
    BUILDS_ON,
    COUNT,
    EVIDENCE,
    LIBRARY,
    LISTING,
    METHOD,
    MODALITY,
    PAPER,
    PAPER_AUTHOR,
    TEXT,
)
from catalog.errors import UsageError
from catalog.taxonomy import Category, Kind, Modality, Strength, Subcategory
from catalog.words import fold, sendable

CLAIM_STATES = ("verified", "contradicted", "unmeasured")
SORTS = ("name", "published", "slug", "relevance")
CLAIMS = (
    "trained-parameters",
    "reported-counts",
    "identity-at-init",
    "trained-tensors-learn",
    "only-trained-tensors-move",
    "it-learns",
    "detachable",
    "mergeable",
    "strength",
    "saves",
    "two-faces",
    "family-invariant",
    "device-dtype",
    "determinism",
)
"""What is measured on an implementation."""
WEIGHED = 500
"""Most hits of a text whose relevance is compared."""
LARGEST = 2**63 - 1
"""The largest number SQLite can hold; no limit or number of parameters above it means more."""


@dataclass(frozen=True)
class Filter:
    """What papers are asked for; every condition given must hold, and None asks for nothing."""

    text: str | None = None
    """Words in names, titles, authors or summaries; the last one may be the beginning of a word."""
    category: str | None = None
    subcategory: str | None = None
    kind: str | None = None
    modality: str | None = None
    year_from: int | None = None
    year_to: int | None = None
    venue: str | None = None
    """Part of the venue's name, such as ICLR."""
    author: str | None = None
    """Part of an author's name; accents and case do not matter."""
    library: str | None = None
    """A library that ships the method, such as peft."""
    listed_in: str | None = None
    """Slug of a public list."""
    builds_on: str | None = None
    """A paper that this one builds on, directly or through others."""
    has_code: bool | None = None
    has_implementation: bool | None = None
    mergeable: bool | None = None
    detachable: bool | None = None
    strength: str | None = None
    identity_at_init: bool | None = None
    claim: str | None = None
    """With ``status``: the claim that is meant, such as mergeable; any claim otherwise."""
    status: str | None = None
    """verified (measured, nothing contradicted), contradicted or unmeasured."""
    max_parameters: int | None = None
    """Most trained parameters, at the dimensions ``at`` and the paper's usual hyperparameters."""
    at: str | None = None
    """A model of :mod:`catalog.dimensions`, such as roberta-base."""
    sort: str | None = None
    """name, published (newest first), slug or relevance; left out, relevance where there is text and name elsewhere."""
    limit: int | None = None


VOCABULARIES: dict[str, Iterable[str]] = {
    "category": Category,
    "subcategory": Subcategory,
    "kind": Kind,
    "modality": Modality,
    "strength": Strength,
    "status": CLAIM_STATES,
    "claim": CLAIMS,
    "sort": SORTS,
}


def checked(wanted: Filter | None, conditions: dict[str, Any]) -> Filter:
    """The filter, with these conditions in place of its own; UsageError for one that makes no sense."""
    known = [field.name for field in fields(Filter)]
    for name in conditions:
        if name not in known:
            raise unknown(name, "condition", known)
    chosen = replace(wanted or Filter(), **conditions)
    for name, words in VOCABULARIES.items():
        value = getattr(chosen, name)
        allowed = [str(word) for word in words]
        if value is not None and value not in allowed:
            raise unknown(value, name, allowed)
    if (chosen.max_parameters is None) != (chosen.at is None):
        raise UsageError(
            "a number of parameters needs a model, and a model a number", hint="--max-parameters 300k --at roberta-base"
        )
    if chosen.claim is not None and chosen.status is None:
        raise UsageError("a claim needs a status", allowed=CLAIM_STATES, hint="--claim mergeable --status verified")
    if chosen.limit is not None and chosen.limit < 1:
        raise UsageError(f"{chosen.limit} is not a number of papers", allowed="1 or more")
    if chosen.at is not None:
        from catalog.dimensions import model

        model(chosen.at)
    return replace(chosen, **{name: storable(getattr(chosen, name)) for name in known})


def unknown(value: str, what: str, allowed: Iterable[str]) -> UsageError:
    """The error for a word that is none of those allowed, with the nearest of them."""
    allowed = list(allowed)
    near = difflib.get_close_matches(str(value), allowed, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else None
    return UsageError(f"{value!r} is not a {what}", allowed=allowed, hint=hint)


def storable(value: Any) -> Any:
    """The value as SQLite can take it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-LARGEST, min(value, LARGEST))
    return sendable(value) if isinstance(value, str) else value


def matching(wanted: Filter) -> Select[Any]:
    """The numbers of the papers that meet a checked filter, in its order."""
    conditions = [*plain(wanted), *of_method(wanted), *linked(wanted)]
    if wanted.status is not None:
        conditions.append(measured(wanted.status, wanted.claim))
    if wanted.text is None:
        return select(PAPER.id).where(*conditions).order_by(*order(wanted.sort or "name")).limit(wanted.limit)
    expression = match_expression(wanted.text)
    if expression is None:
        return select(PAPER.id).where(false())
    if wanted.sort in (None, "relevance"):
        return by_relevance(wanted, expression, conditions)
    return select(PAPER.id).where(*conditions, *has(expression)).order_by(*order(wanted.sort)).limit(wanted.limit)


def by_relevance(wanted: Filter, expression: str, conditions: list[ColumnElement[bool]]) -> Select[Any]:
    """The paper of this very name, then those with the words in a name, then those with them anywhere.

    Where only the first few of very many are wanted, not all are weighed: words that so many papers have say little.
    """
    weighed = WEIGHED if wanted.limit is not None and wanted.limit <= WEIGHED else None
    score: ColumnElement[float] = literal_column("bm25(paper_text, 10, 8, 4, 2, 1)")
    tiers = []
    for tier, asked in enumerate((f"{{name aliases}}: ({expression})", expression)):
        found = select(PAPER.id, PAPER.slug, literal(tier).label("tier"), score.label("score")).where(
            *conditions, *has(asked)
        )
        tiers.append(select(found.limit(weighed).subquery()))
    hits = union_all(*tiers).subquery().c
    named = select(ALIAS.paper_id).where(ALIAS.folded == fold(wanted.text or "")).scalar_subquery()
    ranks = (hits.id == named).desc(), func.min(hits.tier), func.min(hits.score), hits.slug
    return select(hits.id).group_by(hits.id).order_by(*ranks).limit(wanted.limit)


def has(expression: str) -> list[ColumnElement[bool]]:
    """The condition that a paper's texts match an FTS5 expression."""
    return [TEXT.rowid == PAPER.id, literal_column("paper_text").op("MATCH")(expression)]


def of_method(wanted: Filter) -> list[ColumnElement[bool]]:
    """Conditions on the columns of a paper's method."""
    names = ("mergeable", "detachable", "strength", "identity_at_init")
    found = [METHOD[name] == value for name in names if (value := getattr(wanted, name)) is not None]
    if wanted.has_implementation is not None:
        found.append(METHOD.implementation.is_not(None) == wanted.has_implementation)
    return [METHOD.paper_id == PAPER.id, *found] if found else []


def plain(wanted: Filter) -> list[ColumnElement[bool]]:
    """Conditions on the columns of a paper."""
    names = ("category", "subcategory", "kind")
    found = [PAPER[name] == value for name in names if (value := getattr(wanted, name)) is not None]
    if wanted.has_code is not None:
        found.append(PAPER.code.is_not(None) == wanted.has_code)
    if wanted.year_from is not None:
        found.append(PAPER.year >= wanted.year_from)
    if wanted.year_to is not None:
        found.append(PAPER.year <= wanted.year_to)
    if wanted.venue is not None:
        found.append(PAPER.venue.icontains(wanted.venue, autoescape=True))
    return found


def linked(wanted: Filter) -> list[ColumnElement[bool]]:
    """Conditions on tables that hold several rows a paper."""
    many = (
        (MODALITY, MODALITY.modality, wanted.modality),
        (LIBRARY, LIBRARY.library, wanted.library),
        (LISTING, LISTING.list_slug, wanted.listed_in),
    )
    # Each of these words holds for many papers. The sum keeps SQLite from looking every one of them up by its number
    # and sorting them: it goes through the papers in order instead, and stops at the limit.
    found = [
        (PAPER.id + 0).in_(select(row.paper_id).where(name == word)) for row, name, word in many if word is not None
    ]
    if wanted.author is not None:
        people = select(AUTHOR.id).where(func.instr(AUTHOR.folded, fold(wanted.author)) > 0)
        found.append(PAPER.id.in_(select(PAPER_AUTHOR.paper_id).where(PAPER_AUTHOR.author_id.in_(people))))
    if wanted.builds_on is not None:
        found.append(PAPER.id.in_(descendants(wanted.builds_on)))
    if wanted.max_parameters is not None:
        few = COUNT.model == wanted.at, COUNT.trained <= wanted.max_parameters
        found.append(PAPER.id.in_(select(COUNT.paper_id).where(*few)))
    return found


def descendants(name: str) -> Select[Any]:
    """Ids of papers that build on this one through any number of steps."""
    base = select(ALIAS.paper_id).where(ALIAS.folded == fold(name)).scalar_subquery()
    walk = select(BUILDS_ON.paper_id.label("id")).where(BUILDS_ON.base_id == base).cte("walk", recursive=True)
    further = select(BUILDS_ON.paper_id).join(walk, BUILDS_ON.base_id == walk.c.id)
    return select(walk.union(further).c.id)


def measured(status: str, claim: str | None) -> ColumnElement[bool]:
    """Whether what was measured on a paper, or of one claim of it, has this status."""

    def some(state: str) -> ColumnElement[bool]:
        conditions = [EVIDENCE.slug == PAPER.slug, EVIDENCE.status == state, in_force()]
        if claim is not None:
            conditions.append(EVIDENCE.claim == claim)
        return exists().where(*conditions)

    if status == "contradicted":
        return some("contradicted")
    if status == "verified":
        return and_(some("verified"), ~some("contradicted"))
    return ~or_(some("verified"), some("contradicted"))


def in_force() -> ColumnElement[bool]:
    """Whether no measurement made here takes this one's place: a local row goes before a shipped one."""
    local = EVIDENCE.slug.table.alias().c
    same = [local[name] == EVIDENCE[name] for name in ("slug", "backbone", "claim")]
    return or_(EVIDENCE.source == "local", ~exists().where(local.source == "local", *same))


def match_expression(words: str) -> str | None:
    """A user's words as an FTS5 expression: each a phrase in quotes, the last one the beginning of one.

    FTS5 itself takes the phrases apart, as it did with the texts: "(IA)^3" asks for "ia" followed by "3".
    None when there is no letter or digit to look for.
    """
    found = [word for word in words.replace("\0", " ").split() if any(sign.isalnum() for sign in word)]
    if not found:
        return None
    quoted = " ".join('"{}"'.format(word.replace('"', '""')) for word in found)
    return f"{quoted}*" if len(found[-1]) > 1 else quoted


def order(sort: str) -> list[Any]:
    """Columns to sort by; the column of names sorts without regard to case."""
    if sort == "published":
        return [PAPER.published.desc(), PAPER.slug]
    return [PAPER.name, PAPER.slug] if sort == "name" else [PAPER.slug]
