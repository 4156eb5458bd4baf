"""What queries answer with: papers and what was measured on them, as values that hold no database open."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from catalog.taxonomy import Category, Kind, Strength, Subcategory

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
    from catalog.taxonomy import Modality, Status


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
    peak_vs_lora: float | None
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
    """One paper: the facts that tables show, and everything its entry says, read when it is asked for."""

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
    subcategory: Subcategory | None
    implementation: str | None
    """Name of the module that implements it; None: not yet, or nothing to implement."""
    no_implementation: str | None
    detachable: bool | None
    """Like ``mergeable`` and ``strength``: None where there is no method to have the property."""
    mergeable: bool | None
    strength: Strength | None
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
    def arxiv_differs(self) -> dict[str, str]:
        """Keys in which the entry rightly differs from arXiv's record, with the reasons."""
        return {str(key): why for key, why in self.entry.arxiv_differs.items()}

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
    def summary(self) -> str:
        """What it does, in our words."""
        return self.entry.summary

    @property
    def how_it_differs(self) -> str | None:
        """What sets it apart from its neighbors."""
        return self.entry.how_it_differs

    @property
    def status(self) -> Status:
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
        from catalog.parameters import trained_at

        return trained_at(self.entry, model)


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
