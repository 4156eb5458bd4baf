"""The JSON API: static files that any web server can hand out, described by the schema.json beside them.

    index.json              version, counts, addresses of all documents, every paper in short
    papers/SLUG.json        one paper: its entry and what was measured; papers.json has all of them
    categories.json         categories/CATEGORY.json
    lists.json              lists/LIST.json: a public list's items and errata
    authors.json  deviations.json  errata.json  evidence.json  bench.json
    lookup.json             arXiv id, DOI, name or alias -> slugs

Keys are sorted, never renamed within a version, and always there: null or empty where nothing is known. Equal data
give equal files.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.errors import CatalogError, UsageError
from catalog.exports import documents as doc
from catalog.exports.bibtex import citation_key
from catalog.taxonomy import Status, Subcategory
from catalog.terminal import escaped
from catalog.words import fold

if TYPE_CHECKING:
    from catalog.lists_data import SourceList
    from catalog.paper import Paper
    from catalog.query import Catalog

LICENSE = "CC0-1.0"
EPOCH = "SOURCE_DATE_EPOCH"


def write_api(cat: Catalog, folder: Path | str) -> int:
    """Write the files into a folder, in place of an earlier API that is there; returns how many they are.

    All of them are written before the folder takes the old one's place: nobody reads a mixture.
    """
    folder = Path(folder)
    _require_own(folder)
    found = {path: _text(content) for path, content in api_documents(cat)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            fresh, old = Path(temporary) / "new", Path(temporary) / "old"
            for path, text in found.items():
                (fresh / path).parent.mkdir(parents=True, exist_ok=True)
                (fresh / path).write_text(text, encoding="utf-8", newline="\n")
            if folder.exists():
                folder.rename(old)
            try:
                fresh.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise CatalogError(
            f"cannot write the API: {error.strerror or error}",
            where=str(folder),
            hint="choose a folder you may write to, or free some space",
        ) from error
    return len(found)


def _require_own(folder: Path) -> None:
    """UsageError for a folder with files of another kind, which writing would throw away."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        ours = "schema_version" in index and "papers" in index
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise UsageError(
            "this is not a folder that an earlier export filled",
            where=str(folder),
            hint="name one that is empty or does not exist",
        )


def _text(content: Any) -> str:
    return escaped(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)) + "\n"


def api_documents(cat: Catalog) -> Iterator[tuple[str, dict[str, Any]]]:
    """Address and content of every file."""
    papers = sorted(cat.papers(), key=lambda paper: (str(paper.category), paper.slug))
    lists, full = cat.lists(), {paper.slug: paper_document(paper) for paper in papers}
    yield "index.json", asdict(_index(papers))
    yield "schema.json", doc.schema()
    yield "papers.json", {"papers": list(full.values())}
    yield from ((f"papers/{slug}.json", content) for slug, content in full.items())
    yield from _categories(cat, papers)
    yield from _lists(lists, papers)
    yield "authors.json", asdict(doc.Authors(_authors(papers)))
    yield "deviations.json", asdict(doc.Deviations([_deviation(p.slug, row) for p in papers for row in p.deviations]))
    yield "errata.json", asdict(doc.Errata([_erratum(p.slug, row) for p in papers for row in p.errata]))
    yield "evidence.json", asdict(doc.Measured([row for paper in papers for row in paper.evidence]))
    yield "bench.json", asdict(doc.Costs([row for paper in papers for row in paper.bench]))
    yield "lookup.json", asdict(lookup(papers))


def paper_document(paper: Paper) -> dict[str, Any]:
    """The whole entry of a paper, all keys there, and what was measured."""
    return {
        **paper.entry.model_dump(mode="json", by_alias=True),
        "implementation": paper.implementation,
        "claim_status": paper.claim_status,
        "citation_key": citation_key(paper),
        "evidence": [asdict(row) for row in paper.evidence],
        "bench": [asdict(row) for row in paper.bench],
    }


def summary(paper: Paper) -> doc.Summary:
    """A paper in short."""
    return doc.Summary(
        slug=paper.slug,
        name=paper.name,
        title=paper.title,
        year=paper.year,
        published=paper.published,
        venue=paper.venue,
        arxiv=paper.arxiv,
        doi=paper.doi,
        kind=str(paper.kind),
        category=str(paper.category),
        subcategory=str(paper.subcategory) if paper.subcategory else None,
        modality=[str(word) for word in paper.modality],
        implementation=paper.implementation,
        claim_status=paper.claim_status,
        file=f"papers/{paper.slug}.json",
    )


def _index(papers: list[Paper]) -> doc.Index:
    rows = [row for paper in papers for row in paper.evidence]
    names = ("papers", "categories", "lists", "authors", "deviations", "errata", "evidence", "bench", "lookup")
    return doc.Index(
        schema_version=doc.SCHEMA_VERSION,
        generated_at=generated_at(papers),
        license=LICENSE,
        counts={
            "papers": len(papers),
            "implementations": sum(paper.implementation is not None for paper in papers),
            "verified": sum(row.status == "verified" for row in rows),
            "contradicted": sum(row.status == "contradicted" for row in rows),
        },
        files={name: f"{name}.json" for name in (*names, "schema")},
        papers=[summary(paper) for paper in papers],
    )


def generated_at(papers: Iterable[Paper]) -> str:
    """$SOURCE_DATE_EPOCH where it is set, as reproducible builds do; else the date of the newest fact: publication,
    check of sources or measurement."""
    epoch = os.environ.get(EPOCH)
    if epoch:
        try:
            moment = datetime.fromtimestamp(int(epoch), UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise UsageError(f"{EPOCH} is {epoch!r}", allowed="seconds since 1970, a whole number") from error
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    dates = [date for paper in papers for date in _dates(paper)]
    newest = max((f"{date[:10]}-01-01"[:10] for date in dates), default="1970-01-01")
    return f"{newest}T00:00:00Z"


def _dates(paper: Paper) -> Iterator[str]:
    measured = [*(row.date for row in paper.evidence), *(row.date for row in paper.bench)]
    yield from filter(None, [paper.published, paper.sources.checked_on, *measured])


def _categories(cat: Catalog, papers: list[Paper]) -> Iterator[tuple[str, dict[str, Any]]]:
    counted = []
    for count in cat.categories():
        word, path = str(count.category), f"categories/{count.category}.json"
        members = [paper for paper in papers if paper.category == count.category]
        used = {str(paper.subcategory) for paper in members if paper.subcategory}
        counted.append(
            doc.CategorySummary(
                word, count.definition, count.papers, count.methods, count.implemented, count.measured, path
            )
        )
        yield (
            path,
            asdict(
                doc.CategoryDocument(
                    category=word,
                    definition=count.definition,
                    subcategories={str(sub): sub.definition for sub in Subcategory if str(sub) in used},
                    papers=[summary(paper) for paper in members],
                )
            ),
        )
    yield "categories.json", asdict(doc.Categories(counted))


def _lists(lists: Iterable[SourceList], papers: list[Paper]) -> Iterator[tuple[str, dict[str, Any]]]:
    counted = []
    for source in lists:
        path = f"lists/{source.slug}.json"
        items = [
            doc.Item(paper.slug, row.section, row.printed_as, row.link, row.commented)
            for paper in papers
            for row in paper.listed_in
            if row.list_slug == source.slug
        ]
        errata = [_erratum(p.slug, row) for p in papers for row in p.errata if row.list_slug == source.slug]
        facts = (source.slug, source.title, source.url)
        counted.append(doc.ListSummary(*facts, len(items), len(errata), path))
        yield path, asdict(doc.ListDocument(*facts, str(source.style), source.read_on, items, errata))
    yield "lists.json", asdict(doc.Lists(counted))


def _erratum(slug: str, row: Any) -> doc.ListedErratum:
    return doc.ListedErratum(slug, row.list_slug, row.claim, row.fact, row.evidence)


def _deviation(slug: str, row: Any) -> doc.PaperDeviation:
    return doc.PaperDeviation(slug, row.who, row.what, row.evidence, row.test)


def _authors(papers: Iterable[Paper]) -> list[doc.Author]:
    written: dict[str, list[str]] = {}
    for paper in sorted(papers, key=lambda paper: (paper.published, paper.slug)):
        for author in paper.authors:
            written.setdefault(author, []).append(paper.slug)
    ordered = sorted(written.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return [doc.Author(name, slugs) for name, slugs in ordered]


def lookup(papers: Iterable[Paper]) -> doc.Lookup:
    """Identifiers and names of all papers; where several share one, a paper that was replaced comes last."""
    arxiv: dict[str, list[str]] = {}
    doi: dict[str, list[str]] = {}
    name: dict[str, list[str]] = {}
    for paper in sorted(papers, key=lambda paper: (paper.status == Status.SUPERSEDED, paper.slug)):
        names = dict.fromkeys(map(fold, (paper.slug, paper.name, *paper.aliases)))
        for found, keys in ((arxiv, [paper.arxiv]), (doi, [paper.doi and paper.doi.lower()]), (name, names)):
            for key in filter(None, keys):
                # A slug always means its own entry, whoever else has it as a name.
                slugs = found.setdefault(key, [])
                slugs.insert(0 if key == paper.slug else len(slugs), paper.slug)
    return doc.Lookup(arxiv, doi, name)
