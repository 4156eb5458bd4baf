"""The tables. Those of the first part are derived from entry files and refilled by every build; the others are kept."""

from __future__ import annotations

from sqlalchemy import Index, String
from sqlmodel import Field, SQLModel

# Derived from entry files.


class Meta(SQLModel, table=True):
    """What the database was built from."""

    key: str = Field(primary_key=True)
    value: str


class PaperRow(SQLModel, table=True):
    """One paper: what queries filter and sort by. Its texts are elsewhere, so that many rows share a page."""

    __tablename__ = "paper"
    __table_args__ = (
        Index("ix_paper_name", "name", "slug"),
        Index("ix_paper_published", "published", "slug"),
        Index("ix_paper_year", "year", "name", "slug"),
        Index("ix_paper_category", "category", "name", "slug"),
        Index("ix_paper_subcategory", "subcategory", "name", "slug"),
    )
    id: int | None = Field(default=None, primary_key=True)
    slug: str = Field(unique=True)
    name: str = Field(sa_type=String(collation="NOCASE"))
    title: str
    arxiv: str | None = Field(default=None, index=True)
    doi: str | None = Field(default=None, index=True)
    url: str | None = None
    code: str | None = Field(default=None, index=True)
    venue: str | None = Field(default=None, index=True)
    published: str
    year: int
    kind: str = Field(index=True)
    category: str
    subcategory: str | None = None
    status: str


class EntryRow(SQLModel, table=True):
    """The whole entry of a paper, as JSON."""

    __tablename__ = "entry"
    paper_id: int = Field(primary_key=True, foreign_key="paper.id")
    json_text: str


class MethodRow(SQLModel, table=True):
    """What is claimed about the method of a paper."""

    __tablename__ = "method"
    paper_id: int = Field(primary_key=True, foreign_key="paper.id")
    implementation: str | None = Field(default=None, index=True)
    no_implementation: str | None = None
    detachable: bool | None = Field(default=None, index=True)
    mergeable: bool | None = Field(default=None, index=True)
    strength: str | None = Field(default=None, index=True)
    strength_knob: str | None = None
    identity_at_init: bool | None = Field(default=None, index=True)
    parameters: str | None = None


class Author(SQLModel, table=True):
    """A person as papers print the name; ``folded`` is the name without accents and case."""

    __tablename__ = "author"
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    folded: str = Field(index=True)


class PaperAuthor(SQLModel, table=True):
    """Who wrote a paper, in order."""

    __tablename__ = "paper_author"
    __table_args__ = (Index("ix_paper_author_author", "author_id"),)
    paper_id: int = Field(primary_key=True, foreign_key="paper.id")
    position: int = Field(primary_key=True)
    author_id: int = Field(foreign_key="author.id")


class PaperModality(SQLModel, table=True):
    """Kind of model that a paper adapts."""

    __tablename__ = "paper_modality"
    __table_args__ = (Index("ix_paper_modality_modality", "modality"),)
    paper_id: int = Field(primary_key=True, foreign_key="paper.id")
    modality: str = Field(primary_key=True)


class PaperLibrary(SQLModel, table=True):
    """Library that ships a method, and the name it has there."""

    __tablename__ = "paper_library"
    __table_args__ = (Index("ix_paper_library_library", "library"),)
    paper_id: int = Field(primary_key=True, foreign_key="paper.id")
    library: str = Field(primary_key=True)
    name: str


class Alias(SQLModel, table=True):
    """Another name that leads to a paper; ``folded`` is what is looked up."""

    __tablename__ = "alias"
    folded: str = Field(primary_key=True)
    name: str
    paper_id: int = Field(foreign_key="paper.id", index=True)


class BuildsOn(SQLModel, table=True):
    """An edge of the lineage: ``paper_id`` builds on ``base_id``."""

    __tablename__ = "builds_on"
    __table_args__ = (Index("ix_builds_on_base", "base_id"),)
    paper_id: int = Field(primary_key=True, foreign_key="paper.id")
    base_id: int = Field(primary_key=True, foreign_key="paper.id")


class SourceListRow(SQLModel, table=True):
    """A public list that entries come from."""

    __tablename__ = "source_list"
    slug: str = Field(primary_key=True)
    title: str
    url: str | None = None
    style: str


class ListingRow(SQLModel, table=True):
    """One appearance of a paper on a list."""

    __tablename__ = "listing"
    __table_args__ = (Index("ix_listing_list", "list_slug", "paper_id"),)
    id: int | None = Field(default=None, primary_key=True)
    paper_id: int = Field(foreign_key="paper.id", index=True)
    list_slug: str = Field(foreign_key="source_list.slug")
    section: str | None = None
    printed_as: str
    link: str | None = None
    commented: bool = False


class ErratumRow(SQLModel, table=True):
    """What a list says wrongly, the fact, and the evidence."""

    __tablename__ = "erratum"
    id: int | None = Field(default=None, primary_key=True)
    paper_id: int = Field(foreign_key="paper.id", index=True)
    list_slug: str = Field(foreign_key="source_list.slug", index=True)
    claim: str
    fact: str
    evidence: str


class DeviationRow(SQLModel, table=True):
    """Who departs from a paper, and how."""

    __tablename__ = "deviation"
    id: int | None = Field(default=None, primary_key=True)
    paper_id: int = Field(foreign_key="paper.id", index=True)
    who: str
    what: str
    evidence: str
    test: str | None = None


class ParameterCount(SQLModel, table=True):
    """Parameters that a method trains on a well-known model, at the paper's usual setting."""

    __tablename__ = "parameter_count"
    __table_args__ = (Index("ix_parameter_count_model", "model", "trained"),)
    paper_id: int = Field(primary_key=True, foreign_key="paper.id")
    model: str = Field(primary_key=True)
    trained: int


class ClaimRow(SQLModel, table=True):
    """What an entry claims, by the name under which it is measured."""

    __tablename__ = "claim"
    paper_id: int = Field(primary_key=True, foreign_key="paper.id")
    claim: str = Field(primary_key=True)
    expected: str


# Measured or fetched: never thrown away by a build. They name papers by slug, which outlives row numbers.


class EvidenceRow(SQLModel, table=True):
    """One measured claim. ``source`` is shipped (came with the catalog) or local (measured here)."""

    __tablename__ = "evidence"
    slug: str = Field(primary_key=True)
    backbone: str = Field(primary_key=True)
    claim: str = Field(primary_key=True)
    source: str = Field(primary_key=True, default="local")
    status: str = Field(index=True)
    expected: str = ""
    measured: str = ""
    tolerance: str = ""
    detail: str = ""
    torch: str = ""
    device: str = ""
    dtype: str = ""
    python: str = ""
    commit: str = ""
    date: str = ""
    implementation: str = ""


class BenchRow(SQLModel, table=True):
    """One row of the smoke benchmark; local runs are all kept."""

    __tablename__ = "bench_run"
    id: int | None = Field(default=None, primary_key=True)
    slug: str = Field(index=True)
    backbone: str
    device: str
    device_name: str = ""
    status: str = "ok"
    error: str = ""
    trained: int | None = None
    share: float | None = None
    attach_s: float | None = None
    forward_ratio: float | None = None
    step_ratio: float | None = None
    forward_vs_lora: float | None = None
    step_vs_lora: float | None = None
    peak_bytes: int | None = None
    peak_vs_lora: float | None = None
    saved_bytes: int | None = None
    gap_closed: float | None = None
    seed: int = 0
    torch: str = ""
    python: str = ""
    commit: str = ""
    date: str = ""
    implementation: str = ""
    source: str = "local"


class ReversalRow(SQLModel, table=True):
    """How one method answers to its coefficient, and what merging and unmerging leaves behind."""

    __tablename__ = "reversal"
    slug: str = Field(primary_key=True)
    backbone: str = Field(primary_key=True)
    source: str = Field(primary_key=True, default="local")
    word: str
    zero_is_base: bool | None = None
    growth: float | None = None
    cycles: int = 0
    kept_bfloat16: float | None = None
    once_bfloat16: float | None = None
    often_bfloat16: float | None = None
    kept_float32: float | None = None
    once_float32: float | None = None
    often_float32: float | None = None
    torch: str = ""
    python: str = ""
    device: str = ""
    commit: str = ""
    date: str = ""
    implementation: str = ""


class StrengthPointRow(SQLModel, table=True):
    """The change at coefficient ``c``, relative to that at 1: how far along it, and how far off."""

    __tablename__ = "strength_point"
    slug: str = Field(primary_key=True)
    backbone: str = Field(primary_key=True)
    source: str = Field(primary_key=True, default="local")
    level: str = Field(primary_key=True)
    c: float = Field(primary_key=True)
    along: float
    off: float


class ComparisonRow(SQLModel, table=True):
    """One implementation of a method, ours or a library's, on the same layers in the same run as the other's."""

    __tablename__ = "comparison"
    slug: str = Field(primary_key=True)
    width: int = Field(primary_key=True)
    threads: int = Field(primary_key=True)
    library: str = Field(primary_key=True)
    source: str = Field(primary_key=True, default="local")
    version: str = ""
    settings: str = ""
    trained: int | None = None
    attach_s: float | None = None
    forward_s: float | None = None
    step_s: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None
    unmerge_s: float | None = None
    unmerge_error: float | None = None
    torch: str = ""
    python: str = ""
    device_name: str = ""
    commit: str = ""
    date: str = ""
    implementation: str = ""


class ArxivRecord(SQLModel, table=True):
    """What arXiv says about a paper now: the newest of its statements, with what is asked for most."""

    __tablename__ = "arxiv_record"
    __table_args__ = (Index("ix_arxiv_record_published", "published"),)
    arxiv: str = Field(primary_key=True)
    version: int
    title: str
    published: str
    updated: str
    state: str
    as_of: str
    statement_id: int = Field(foreign_key="arxiv_statement.id")


class ArxivStatement(SQLModel, table=True):
    """What arXiv said when: one row for every different thing it said about a paper, never changed, never deleted.

    ``as_of`` is when it was asked, ``datestamp`` the day of the metadata where OAI-PMH gives one, ``record`` a
    catalog.arxiv_sync.record.Record as JSON, ``digest`` that of its contents.
    """

    __tablename__ = "arxiv_statement"
    __table_args__ = (Index("ix_arxiv_statement_arxiv", "arxiv", "as_of"),)
    id: int | None = Field(default=None, primary_key=True)
    arxiv: str
    version: int
    as_of: str
    source: str
    datestamp: str = ""
    digest: str
    record: str


class FollowRow(SQLModel, table=True):
    """How following a source goes: one row a kind of run (sync, discover, harvest, links, enrich)."""

    __tablename__ = "follow"
    kind: str = Field(primary_key=True)
    succeeded: str | None = None
    learned: str | None = None
    newest: str | None = None
    note: str = ""


class HarvestRow(SQLModel, table=True):
    """A harvest that is under way, or the day from which the next one goes on."""

    __tablename__ = "harvest"
    address: str = Field(primary_key=True)
    set_name: str = Field(primary_key=True)
    since: str
    token: str | None = None
    token_at: str | None = None
    pages: int = 0
    records: int = 0
    complete_to: str | None = None


class CandidateRow(SQLModel, table=True):
    """A paper that may belong into the catalog. ``state`` is waiting, accepted or rejected; rejected is for good."""

    __tablename__ = "candidate"
    __table_args__ = (Index("ix_candidate_state", "state", "score"),)
    arxiv: str = Field(primary_key=True)
    slug: str = Field(unique=True)
    title: str
    published: str
    found: str
    source: str
    score: float
    reasons: str
    category: str
    words: str
    state: str = "waiting"
    reason: str = ""
    decided: str | None = None


class LinkRow(SQLModel, table=True):
    """What became of an address when it was last asked; ``state`` is a catalog.links.outcome.State."""

    __tablename__ = "link_check"
    url: str = Field(primary_key=True)
    state: str = Field(index=True)
    status: int | None = None
    leads_to: str | None = None
    redirects: str = "[]"
    detail: str = ""
    checked: str
    alive_at: str | None = None
    dead_since: str | None = None


class EnrichmentRow(SQLModel, table=True):
    """What another index says about a paper, kept with where and when it was said."""

    __tablename__ = "enrichment"
    source: str = Field(primary_key=True)
    arxiv: str = Field(primary_key=True)
    fetched: str
    facts: str


DERIVED = (
    Meta,
    ParameterCount,
    ClaimRow,
    DeviationRow,
    ErratumRow,
    ListingRow,
    SourceListRow,
    BuildsOn,
    Alias,
    PaperLibrary,
    PaperModality,
    PaperAuthor,
    Author,
    MethodRow,
    EntryRow,
    PaperRow,
)
"""Tables that a build empties and fills, children before parents."""
