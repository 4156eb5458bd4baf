"""What the files of the JSON API hold; their JSON Schema is made from these classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from catalog.json_schema import entry_schema
from catalog.paper import Bench, Evidence

SCHEMA_VERSION = "1.0"
"""Rises behind the dot when keys are added; keys are never renamed or removed within api/v1."""

Path = Annotated[str, Field(description="Address of a file relative to the folder of the API.")]
Slugs = Annotated[list[str], Field(description="Entries by slug; one that was replaced comes last.")]


@dataclass(frozen=True)
class Summary:
    """A paper in short."""

    slug: str
    name: str
    title: str
    year: int
    published: str
    venue: str | None
    arxiv: str | None
    doi: str | None
    kind: str
    category: str
    subcategory: str | None
    modality: list[str]
    implementation: Annotated[str | None, Field(description="Module that implements it.")]
    claim_status: Annotated[str, Field(description="verified, contradicted or unmeasured.")]
    file: Path


@dataclass(frozen=True)
class Index:
    """index.json: where everything is."""

    schema_version: str
    generated_at: Annotated[
        str,
        Field(
            description="Date of the newest fact, or SOURCE_DATE_EPOCH where it is set: equal data give equal files."
        ),
    ]
    license: str
    counts: dict[str, int]
    files: Annotated[dict[str, Path], Field(description="Name of a document to its address.")]
    papers: list[Summary]


@dataclass(frozen=True)
class CategoryDocument:
    """categories/CATEGORY.json: one category."""

    category: str
    definition: str
    subcategories: Annotated[dict[str, str], Field(description="Word to definition, those that have papers.")]
    papers: list[Summary]


@dataclass(frozen=True)
class CategorySummary:
    """A category in short."""

    category: str
    definition: str
    papers: int
    methods: int
    implemented: int
    verified: int
    file: Path


@dataclass(frozen=True)
class Categories:
    """categories.json: all categories."""

    categories: list[CategorySummary]


@dataclass(frozen=True)
class Item:
    """An appearance of a paper on a list, as printed there."""

    paper: str
    section: str | None
    printed_as: str
    link: str | None
    commented: bool


@dataclass(frozen=True)
class ListedErratum:
    """What a list says wrongly."""

    paper: str
    list: str
    claim: str
    fact: str
    evidence: str


@dataclass(frozen=True)
class ListDocument:
    """lists/LIST.json: one public list."""

    slug: str
    title: str
    url: str | None
    style: str
    read_on: str
    items: list[Item]
    errata: list[ListedErratum]


@dataclass(frozen=True)
class ListSummary:
    """A public list in short."""

    slug: str
    title: str
    url: str | None
    items: int
    errata: int
    file: Path


@dataclass(frozen=True)
class Lists:
    """lists.json: the public lists that entries come from."""

    lists: list[ListSummary]


@dataclass(frozen=True)
class Author:
    """A person with papers, oldest first."""

    name: str
    papers: list[str]


@dataclass(frozen=True)
class Authors:
    """authors.json: who wrote the papers, most papers first."""

    authors: list[Author]


@dataclass(frozen=True)
class PaperDeviation:
    """Someone who departs from a paper."""

    paper: str
    who: str
    what: str
    evidence: str
    test: str | None


@dataclass(frozen=True)
class Deviations:
    """deviations.json: official code, libraries and this catalog against the papers."""

    deviations: list[PaperDeviation]


@dataclass(frozen=True)
class Errata:
    """errata.json: what the public lists say wrongly."""

    errata: list[ListedErratum]


@dataclass(frozen=True)
class Measured:
    """evidence.json: every claim that was measured."""

    evidence: list[Evidence]


@dataclass(frozen=True)
class Costs:
    """bench.json: what methods cost on small models."""

    bench: list[Bench]


@dataclass(frozen=True)
class Lookup:
    """lookup.json: identifiers and names to entries."""

    arxiv: Annotated[dict[str, Slugs], Field(description="arXiv id without version.")]
    doi: Annotated[dict[str, Slugs], Field(description="DOI in lower case: case never tells two of them apart.")]
    name: Annotated[dict[str, Slugs], Field(description="Slug, name or alias, without accents and in lower case.")]


DOCUMENTS: tuple[type, ...] = (
    Index, Categories, CategoryDocument, Lists, ListDocument, Authors, Deviations, Errata, Measured, Costs, Lookup,
)  # fmt: skip


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of every document, under the name of its class."""
    entry = entry_schema()
    definitions: dict[str, Any] = entry.pop("$defs")
    for kind in (*DOCUMENTS, Evidence, Bench):
        found = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}", mode="serialization")
        definitions |= {**found.pop("$defs", {}), kind.__name__: found}
    definitions["Paper"] = _paper_schema(entry["properties"])
    definitions["Papers"] = {
        "description": "papers.json: the documents of all papers.",
        **_table({"papers": {"type": "array", "items": {"$ref": "#/$defs/Paper"}}}),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "peft-catalog API, version 1",
        "$defs": definitions,
    }


def _paper_schema(entry: dict[str, Any]) -> dict[str, Any]:
    """Every key of an entry is there, null or empty where nothing is known, and what was measured besides."""
    own = {
        "implementation": {"type": ["string", "null"], "description": "Module that implements it."},
        "claim_status": {"enum": ["verified", "contradicted", "unmeasured"]},
        "citation_key": {"type": "string", "description": "Its key in peft.bib."},
        "evidence": {"type": "array", "items": {"$ref": "#/$defs/Evidence"}},
        "bench": {"type": "array", "items": {"$ref": "#/$defs/Bench"}},
    }
    return {"description": "papers/SLUG.json: the whole entry and what was measured.", **_table({**entry, **own})}


def _table(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }
