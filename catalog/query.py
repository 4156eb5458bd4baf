"""Filters and full-text search: the one way to read the catalog, for the command line, lists, exports and site alike.

import catalog

with catalog.open() as cat:
    cat.papers(category="reparameterized", mergeable=True, strength="linear")
    cat.paper("(IA)^3")
    cat.lineage("lora").descendants
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import ColumnElement, Engine, Select, and_, column, exists, false, func, or_, table, text
from sqlmodel import col, select

from catalog import models
from catalog.database import database_path, open_engine, writing
from catalog.dimensions import model as dimensions_of
from catalog.errors import FormulaError, UnknownEntry, UsageError
from catalog.formula import evaluate
from catalog.store import build, fold, is_current, keep_bench, keep_evidence
from catalog.taxonomy import Category, Kind, Modality, Strength

if TYPE_CHECKING:
    from catalog.entry import (
        Claims,
        Deviation,
        Entry,
        Erratum,
        FidelityNote,
        Listing,
        Mechanism,
        Reversibility,
        Sources,
    )
    from catalog.lists_data import SourceList

CLAIM_STATES = ("verified", "contradicted", "unmeasured")
SORTS = ("name", "published", "slug", "relevance")
_KINDS = {str(word): word for word in Kind}
_CATEGORIES = {str(word): word for word in Category}
_TEXT = table("paper_text", column("rowid"))


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
    """Slug of a paper that this one builds on, directly or through others."""
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
    sort: str = "name"
    limit: int | None = None


@dataclass(frozen=True)
class Evidence:
    """One measured claim."""

    slug: str
    backbone: str
    claim: str
    source: str
    status: str
    expected: str
    measured: str
    tolerance: str
    detail: str
    torch: str
    device: str
    dtype: str
    python: str
    commit: str
    date: str
    implementation: str


@dataclass(frozen=True)
class Bench:
    """One row of the smoke benchmark; None where a figure does not exist."""

    slug: str
    backbone: str
    device: str
    device_name: str
    status: str
    error: str
    trained: int | None
    share: float | None
    attach_s: float | None
    forward_ratio: float | None
    step_ratio: float | None
    forward_vs_lora: float | None
    step_vs_lora: float | None
    peak_bytes: int | None
    saved_bytes: int | None
    gap_closed: float | None
    seed: int
    torch: str
    python: str
    commit: str
    date: str
    implementation: str
    source: str


@dataclass(frozen=True)
class Paper:
    """One paper: the facts that lists show, and everything its entry says, read when it is asked for."""

    slug: str
    name: str
    title: str
    arxiv: str | None
    doi: str | None
    url: str | None
    code: str | None
    venue: str | None
    published: str
    year: int
    kind: Kind
    category: Category
    summary: str
    implementation: str | None
    """Name of the module that implements it; None: not yet, or nothing to implement."""
    no_implementation: str | None
    evidence: tuple[Evidence, ...]
    bench: tuple[Bench, ...]
    entry_json: str

    @cached_property
    def entry(self) -> Entry:
        """The whole entry."""
        from catalog.entry import Entry

        return Entry.model_validate_json(self.entry_json)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names."""
        return self.entry.aliases

    @property
    def authors(self) -> tuple[str, ...]:
        """Authors in order."""
        return self.entry.authors

    @property
    def arxiv_categories(self) -> tuple[str, ...]:
        """Subject classes at arXiv."""
        return self.entry.arxiv_categories

    @property
    def subcategory(self) -> Any:
        """The finer class."""
        return self.entry.subcategory

    @property
    def modality(self) -> tuple[Modality, ...]:
        """Kinds of model it adapts."""
        return self.entry.modality

    @property
    def libraries(self) -> dict[str, str]:
        """Library -> the name it has there."""
        return self.entry.libraries

    @property
    def builds_on(self) -> tuple[str, ...]:
        """Slugs of what it builds on directly."""
        return self.entry.builds_on

    @property
    def how_it_differs(self) -> str | None:
        """What sets it apart from its neighbors."""
        return self.entry.how_it_differs

    @property
    def status(self) -> Any:
        """Whether the paper still stands."""
        return self.entry.status

    @property
    def superseded_by(self) -> str | None:
        """Slug of what replaced it."""
        return self.entry.superseded_by

    @property
    def mechanism(self) -> Mechanism:
        """Equations, what is trained, pitfalls."""
        return self.entry.mechanism

    @property
    def claims(self) -> Claims:
        """What is claimed."""
        return self.entry.claims

    @property
    def reversibility(self) -> Reversibility | None:
        """Whether the change can be removed, merged and scaled."""
        return self.entry.reversibility

    @property
    def fidelity(self) -> FidelityNote | None:
        """What the mechanism rests on."""
        return self.entry.fidelity

    @property
    def deviations(self) -> tuple[Deviation, ...]:
        """Who departs from the paper."""
        return self.entry.deviations

    @property
    def sources(self) -> Sources:
        """What was read."""
        return self.entry.sources

    @property
    def listed_in(self) -> tuple[Listing, ...]:
        """Where the public lists have it."""
        return self.entry.listed_in

    @property
    def errata(self) -> tuple[Erratum, ...]:
        """What the lists say wrongly about it."""
        return self.entry.errata

    @property
    def arxiv_url(self) -> str | None:
        """The abstract page at arXiv."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None

    @property
    def url_best(self) -> str | None:
        """Landing page, else arXiv, else DOI, else code."""
        return self.url or self.arxiv_url or (f"https://doi.org/{self.doi}" if self.doi else None) or self.code

    @property
    def claim_status(self) -> str:
        """contradicted when any measurement is, verified when some were made, unmeasured otherwise."""
        states = {row.status for row in self.evidence}
        return "contradicted" if "contradicted" in states else "verified" if "verified" in states else "unmeasured"

    def parameters_at(self, model: str) -> int | None:
        """Trained parameters at a model's dimensions and the paper's usual setting; None without a formula for it."""
        return parameters_at(self.entry, model)


@dataclass(frozen=True)
class CategoryCount:
    """How many papers of a category there are, and how many of them run."""

    category: Category
    papers: int
    methods: int
    implemented: int
    measured: int

    @property
    def definition(self) -> str:
        """What the category means."""
        return self.category.definition


@dataclass(frozen=True)
class AuthorCount:
    """An author and the number of papers."""

    name: str
    papers: int


@dataclass(frozen=True)
class Lineage:
    """What a paper builds on and what builds on it; slugs with the number of steps, nearest first."""

    slug: str
    ancestors: tuple[tuple[str, int], ...]
    descendants: tuple[tuple[str, int], ...]


class Catalog:
    """An open catalog; see :func:`open`."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._engine.dispose()

    # Papers.

    def papers(self, wanted: Filter | None = None, /, **conditions: Any) -> list[Paper]:
        """Papers that meet all conditions, given as a Filter or as its keywords; UsageError for a condition that
        makes no sense."""
        chosen = _filter(wanted, conditions)
        if chosen.builds_on is not None:
            chosen = replace(chosen, builds_on=self.paper(chosen.builds_on).slug)
        if chosen.listed_in is not None and chosen.listed_in not in (known := [s.slug for s in self.lists()]):
            raise UsageError(f"{chosen.listed_in!r} is not a list", allowed=known)
        statement = _where(_select(), chosen)
        if chosen.max_parameters is not None:
            statement = statement.where(col(models.PaperRow.id).in_(self._within(chosen)))
        statement = _order(statement, chosen)
        if chosen.limit is not None:
            statement = statement.limit(chosen.limit)
        return self._read(statement)

    def count(self, wanted: Filter | None = None, /, **conditions: Any) -> int:
        """How many papers meet the conditions."""
        return len(self.papers(wanted, **conditions))

    def paper(self, name: str) -> Paper:
        """A paper by slug, name, alias, arXiv id or DOI; UnknownEntry with near misses otherwise."""
        alias = models.Alias
        found = self._read(
            _select().join(alias, col(alias.paper_id) == col(models.PaperRow.id)).where(col(alias.folded) == fold(name))
        )
        if found:
            return found[0]
        with self._engine.connect() as connection:
            known = {row.folded: row.name for row in connection.execute(select(alias.folded, alias.name))}
        near = list(dict.fromkeys(known[f] for f in difflib.get_close_matches(fold(name), known, n=5, cutoff=0.6)))
        raise UnknownEntry(
            f"no paper is known as {name!r}",
            allowed=near or None,
            hint="did you mean one of these?" if near else f"peft-catalog query {name!r} searches the texts",
        )

    def _read(self, statement: Select[Any]) -> list[Paper]:
        with self._engine.connect() as connection:
            rows = connection.execute(statement).mappings().all()
            slugs = [row["slug"] for row in rows]
            evidence, bench = self._measured(connection, slugs)
        return [
            Paper(
                **{f.name: row[f.name] for f in fields(Paper) if f.name in row},
                evidence=tuple(evidence.get(row["slug"], ())),
                bench=tuple(bench.get(row["slug"], ())),
            )
            for row in map(_worded, rows)
        ]

    def _measured(self, connection: Any, slugs: list[str]) -> tuple[dict[str, list[Evidence]], dict[str, list[Bench]]]:
        """Evidence and benchmark rows of these papers, by slug."""
        evidence: dict[str, list[Evidence]] = {}
        bench: dict[str, list[Bench]] = {}
        some = col(models.EvidenceRow.slug).in_(slugs), col(models.BenchRow.slug).in_(slugs)
        many = len(slugs) > 500  # then reading all is quicker, and a statement has no room for so many names
        statement = select(models.EvidenceRow.__table__)  # type: ignore[attr-defined]
        for row in connection.execute(statement if many else statement.where(some[0])).mappings():
            evidence.setdefault(row["slug"], []).append(Evidence(**row))
        statement = select(models.BenchRow.__table__).order_by(models.BenchRow.__table__.c.id)  # type: ignore[attr-defined]
        for row in connection.execute(statement if many else statement.where(some[1])).mappings():
            values = {key: value for key, value in row.items() if key != "id"}
            bench.setdefault(row["slug"], []).append(Bench(**values))
        return {s: _latest(rows) for s, rows in evidence.items()}, {s: _newest(rows) for s, rows in bench.items()}

    def _within(self, wanted: Filter) -> list[int]:
        """Ids of papers whose formula gives at most so many parameters."""
        from catalog.entry import Entry

        assert wanted.max_parameters is not None
        table, method = models.PaperRow, models.MethodRow
        statement = (
            select(table.id, table.entry)
            .join(method, col(method.paper_id) == col(table.id))
            .where(col(method.parameters).is_not(None))
        )
        with self._engine.connect() as connection:
            rows = connection.execute(statement).all()
        counts = {row.id: parameters_at(Entry.model_validate_json(row.entry), wanted.at or "") for row in rows}
        return [number for number, count in counts.items() if count is not None and count <= wanted.max_parameters]

    # Overviews.

    def categories(self) -> list[CategoryCount]:
        """Every category with its counts, in the order of the vocabulary."""
        papers = self.papers()
        return [
            CategoryCount(
                category,
                len(of := [paper for paper in papers if paper.category == category]),
                sum(not paper.no_implementation for paper in of),
                sum(paper.implementation is not None for paper in of),
                sum(paper.claim_status == "verified" for paper in of),
            )
            for category in Category
        ]

    def authors(self, name: str | None = None, limit: int | None = None) -> list[AuthorCount]:
        """Authors by number of papers; ``name`` narrows to a part of the name."""
        author, link = models.Author, models.PaperAuthor
        number = func.count(col(link.paper_id))
        statement = (
            select(author.name, number)
            .join(link, col(link.author_id) == col(author.id))
            .group_by(col(author.id))
            .order_by(number.desc(), col(author.name))
        )
        if name:
            statement = statement.where(col(author.folded).contains(fold(name), autoescape=True))
        with self._engine.connect() as connection:
            rows = connection.execute(statement.limit(limit) if limit else statement)
            return [AuthorCount(*row) for row in rows]

    def lineage(self, name: str) -> Lineage:
        """What a paper builds on and what builds on it, through any number of steps."""
        slug = self.paper(name).slug
        return Lineage(slug, self._walk(slug, "paper_id", "base_id"), self._walk(slug, "base_id", "paper_id"))

    def _walk(self, slug: str, here: str, there: str) -> tuple[tuple[str, int], ...]:
        statement = text(
            f"""WITH RECURSIVE walk(id, steps) AS (
                SELECT {there}, 1 FROM builds_on WHERE {here} = (SELECT id FROM paper WHERE slug = :slug)
                UNION SELECT {there}, steps + 1 FROM builds_on JOIN walk ON {here} = walk.id WHERE steps < 50
            ) SELECT slug, min(steps) AS near FROM walk JOIN paper USING (id) GROUP BY slug ORDER BY near, slug"""
        )
        with self._engine.connect() as connection:
            return tuple((row.slug, row.near) for row in connection.execute(statement, {"slug": slug}))

    def lists(self) -> tuple[SourceList, ...]:
        """The public lists that entries come from, with their items as printed."""
        from catalog.lists_data import load_lists

        return load_lists()

    def listings(self, list_slug: str) -> list[tuple[Paper, Listing]]:
        """Every appearance of a paper on a list."""
        return [
            (paper, listing)
            for paper in self.papers(listed_in=list_slug)
            for listing in paper.listed_in
            if listing.list_slug == list_slug
        ]

    def errata(self, list_slug: str | None = None) -> list[tuple[Paper, Erratum]]:
        """What lists say wrongly."""
        return [
            (paper, erratum)
            for paper in self.papers()
            for erratum in paper.errata
            if list_slug in (None, erratum.list_slug)
        ]

    def deviations(self) -> list[tuple[Paper, Deviation]]:
        """Who departs from a paper."""
        return [(paper, deviation) for paper in self.papers() for deviation in paper.deviations]

    def evidence(self, slug: str | None = None) -> list[Evidence]:
        """What was measured."""
        papers = self.papers() if slug is None else [self.paper(slug)]
        return [row for paper in papers for row in paper.evidence]

    def bench(self, slug: str | None = None) -> list[Bench]:
        """What methods cost."""
        papers = self.papers() if slug is None else [self.paper(slug)]
        return [row for paper in papers for row in paper.bench]

    # What is measured here.

    def record_evidence(self, rows: Iterable[dict[str, Any]]) -> None:
        """Store measured claims."""
        with writing(self._engine) as connection:
            keep_evidence(connection, rows)

    def record_bench(self, rows: Iterable[dict[str, Any]]) -> None:
        """Store benchmark rows."""
        with writing(self._engine) as connection:
            keep_bench(connection, rows)


def open(db: Path | str | None = None, *, entries: Path | str | None = None) -> Catalog:
    """Open the catalog at ``db`` (else $PEFT_CATALOG_DB, else the user's data directory).

    The database is built at the first use and again whenever entries or implementations have changed.
    """
    path = database_path(db)
    engine = open_engine(path)
    if not is_current(engine, path, entries):
        build(engine, path, entries)
    return Catalog(engine, path)


def parameters_at(entry: Entry, model: str) -> int | None:
    """An entry's formula at a model's dimensions; None without a formula, or for a model of another kind."""
    dimensions = dimensions_of(model)
    kinds = {str(kind) for kind in entry.claim_backbones}
    if entry.claims.parameters is None or not kinds & {dimensions.kind, "mlp"}:
        return None
    settings = {
        name: len(value) if isinstance(value, list) else value
        for name, value in {**entry.claims.hyperparameters, **entry.claims.defaults}.items()
    }
    try:
        return evaluate(entry.claims.parameters, {**dimensions.variables(), **settings})
    except FormulaError:
        return None


def _filter(wanted: Filter | None, conditions: dict[str, Any]) -> Filter:
    known = {field.name for field in fields(Filter)}
    for name in conditions:
        if name not in known:
            raise UsageError(f"there is no condition {name!r}", allowed=sorted(known))
    chosen = replace(wanted or Filter(), **conditions)
    vocabularies: dict[str, Any] = {
        "category": Category,
        "kind": Kind,
        "modality": Modality,
        "strength": Strength,
        "status": CLAIM_STATES,
        "sort": SORTS,
    }
    for name, words in vocabularies.items():
        value = getattr(chosen, name)
        allowed = [str(word) for word in words]
        if value is not None and value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, n=1)
            hint = f"did you mean {near[0]}?" if near else None
            raise UsageError(f"{value!r} is not a {name.replace('_', ' ')}", allowed=allowed, hint=hint)
    if (chosen.max_parameters is None) != (chosen.at is None):
        raise UsageError(
            "a number of parameters needs a model, and a model a number", hint="--max-parameters 300k --at roberta-base"
        )
    if chosen.at is not None:
        dimensions_of(chosen.at)
    return chosen


def _select() -> Select[Any]:
    paper, method = models.PaperRow.__table__, models.MethodRow.__table__  # type: ignore[attr-defined]
    columns = [paper.c[f.name] for f in fields(Paper) if f.name in paper.c]
    columns += [paper.c.entry.label("entry_json"), method.c.implementation, method.c.no_implementation]
    return select(*columns).join(method, method.c.paper_id == paper.c.id)


def _where(statement: Select[Any], wanted: Filter) -> Select[Any]:
    paper, method = models.PaperRow, models.MethodRow
    conditions: list[ColumnElement[bool]] = []
    for name in ("category", "subcategory", "kind"):
        if (value := getattr(wanted, name)) is not None:
            conditions.append(getattr(paper, name) == value)
    for name in ("mergeable", "detachable", "strength", "identity_at_init"):
        if (value := getattr(wanted, name)) is not None:
            conditions.append(getattr(method, name) == value)
    if wanted.year_from is not None:
        conditions.append(col(paper.year) >= wanted.year_from)
    if wanted.year_to is not None:
        conditions.append(col(paper.year) <= wanted.year_to)
    if wanted.venue is not None:
        conditions.append(col(paper.venue).icontains(wanted.venue, autoescape=True))
    if wanted.has_code is not None:
        conditions.append(_given(paper.code, wanted.has_code))
    if wanted.has_implementation is not None:
        conditions.append(_given(method.implementation, wanted.has_implementation))
    conditions += _linked(wanted)
    if wanted.builds_on is not None:
        conditions.append(_descends(wanted.builds_on))
    if wanted.status is not None:
        conditions.append(_state(wanted.status, wanted.claim))
    if wanted.text is not None:
        statement, found = _matching(statement, wanted.text)
        conditions += found
    return statement.where(and_(*conditions)) if conditions else statement


def _given(column: Any, wanted: bool) -> ColumnElement[bool]:
    return col(column).is_not(None) if wanted else col(column).is_(None)


def _linked(wanted: Filter) -> list[ColumnElement[bool]]:
    """Conditions on tables that hold several rows a paper."""
    found: list[ColumnElement[bool]] = []
    links: tuple[tuple[str | None, Any, str], ...] = (
        (wanted.modality, models.PaperModality, "modality"),
        (wanted.library, models.PaperLibrary, "library"),
        (wanted.listed_in, models.ListingRow, "list_slug"),
    )
    for value, linked, name in links:
        if value is not None:
            found.append(col(models.PaperRow.id).in_(select(linked.paper_id).where(getattr(linked, name) == value)))
    if wanted.author is not None:
        author, link = models.Author, models.PaperAuthor
        people = select(author.id).where(col(author.folded).contains(fold(wanted.author), autoescape=True))
        found.append(col(models.PaperRow.id).in_(select(link.paper_id).where(col(link.author_id).in_(people))))
    return found


def _descends(slug: str) -> ColumnElement[bool]:
    """Papers that build on this one through any number of steps."""
    return text(  # type: ignore[return-value]
        """paper.id IN (WITH RECURSIVE walk(id) AS (
            SELECT paper_id FROM builds_on WHERE base_id = (SELECT paper_id FROM alias WHERE folded = :base)
            UNION SELECT paper_id FROM builds_on JOIN walk ON base_id = walk.id
        ) SELECT id FROM walk)"""
    ).bindparams(base=fold(slug))


def _state(status: str, claim: str | None) -> ColumnElement[bool]:
    row = models.EvidenceRow

    def some(state: str) -> ColumnElement[bool]:
        same = and_(col(row.slug) == col(models.PaperRow.slug), col(row.status) == state)
        return exists().where(and_(same, col(row.claim) == claim) if claim else same)

    if status == "contradicted":
        return some("contradicted")
    if status == "verified":
        return and_(some("verified"), ~some("contradicted"))
    return ~or_(some("verified"), some("contradicted"))


def _matching(statement: Select[Any], words: str) -> tuple[Select[Any], list[ColumnElement[bool]]]:
    query = match_expression(words)
    if query is None:
        return statement, [false()]
    statement = statement.join(_TEXT, _TEXT.c.rowid == col(models.PaperRow.id))
    return statement, [text("paper_text MATCH :words").bindparams(words=query)]  # type: ignore[list-item]


def match_expression(words: str) -> str | None:
    """A user's words as an FTS5 expression: every word quoted, the last one a beginning; None: no word in it.

    What separates words for the index separates them here, so "(IA)^3" asks for "ia" and "3".
    """
    found = re.findall(r"[^\W_]+", words)
    if not found:
        return None
    return " ".join([*(f'"{word}"' for word in found[:-1]), f'"{found[-1]}"*'])


def _order(statement: Select[Any], wanted: Filter) -> Select[Any]:
    paper = models.PaperRow
    if wanted.sort == "relevance" or (wanted.text and wanted.sort == "name"):
        if wanted.text and match_expression(wanted.text):
            # A hit in a name or alias counts more than one in a summary.
            return statement.order_by(text("bm25(paper_text, 10, 8, 4, 2, 1)"), col(paper.slug))
        return statement.order_by(col(paper.slug))
    if wanted.sort == "published":
        return statement.order_by(col(paper.published).desc(), col(paper.slug))
    return statement.order_by(
        col(paper.slug if wanted.sort == "slug" else paper.name).collate("NOCASE"), col(paper.slug)
    )


def _worded(row: Any) -> dict[str, Any]:
    return {**row, "kind": _KINDS[row["kind"]], "category": _CATEGORIES[row["category"]]}


def _latest(rows: list[Evidence]) -> list[Evidence]:
    """One row a claim and backbone: what was measured here, else what was shipped."""
    best: dict[tuple[str, str], Evidence] = {}
    for row in sorted(rows, key=lambda row: row.source, reverse=True):  # shipped, then local over it
        best[row.backbone, row.claim] = row
    return list(best.values())


def _newest(rows: list[Bench]) -> list[Bench]:
    """The newest good row of every backbone and device."""
    return list({(row.backbone, row.device): row for row in rows if row.status == "ok"}.values())
