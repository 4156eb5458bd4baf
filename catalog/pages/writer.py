"""Renders every page as finished Markdown into a folder that mkdocs, or another engine, builds as it stands."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from markupsafe import Markup

from catalog import taxonomy
from catalog.errors import CatalogError
from catalog.locations import MEASURED, implementation_folders
from catalog.pages import chart, claims, comparison, data, finder, strength, table, text, timeline
from catalog.pages.data import SiteData
from catalog.pages.downloads import write_downloads
from catalog.pages.equations import mathml
from catalog.pages.redirects import write_redirects
from catalog.pages.sources import site_sources
from catalog.upstream import upstream

if TYPE_CHECKING:
    from catalog.query import Paper

STATIC = "static"
"""Folder of our own assets within the site; the theme keeps `assets` for its own."""


@dataclass(frozen=True)
class Rendered:
    """What was written."""

    folder: Path
    pages: int
    entries: int


@dataclass(frozen=True)
class Page:
    """One page: where it goes, what it is rendered from, and how search and theme treat it."""

    path: str
    template: str
    title: str
    description: str
    values: Mapping[str, Any]
    hide: tuple[str, ...] = ()
    searched: bool = True
    boost: float = 1.0

    @property
    def root(self) -> str:
        """Address of the site's root relative to the page, as pages are served: each in a folder of its own."""
        folder = self.path.removesuffix("index.md").removesuffix(".md").strip("/")
        return "../" * len(folder.split("/")) if folder else "./"

    def front_matter(self) -> str:
        """Title, description and theme settings; JSON strings are YAML."""
        lines = [f"title: {_quoted(text.attribute(self.title))}"]
        lines.append(f"description: {_quoted(text.attribute(self.description, 200))}")
        if self.hide:
            lines.append(f"hide: [{', '.join(self.hide)}]")
        if not self.searched:
            lines.append("search: {exclude: true}")
        elif self.boost != 1.0:
            lines.append(f"search: {{boost: {self.boost:g}}}")
        return "\n".join(["---", *lines, "---", "", ""])


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def render(cat: Any, folder: Path | str, sources: Path | str | None = None) -> Rendered:
    """Write pages, assets, redirects and downloads of an open catalog into `folder`, replacing what was there."""
    from catalog.cli.reference import cli_reference

    folder, source = Path(folder), site_sources(sources)
    _empty(folder)
    site = data.read(cat, cli_reference())
    count = write_pages(site, folder, source)
    shutil.copytree(source / "assets", folder / STATIC)
    write_redirects(site, folder)
    write_downloads(cat, folder)
    return Rendered(folder, count, len(site.papers))


def _empty(folder: Path) -> None:
    """Clear a folder that an earlier rendering filled; any other folder with files in it is left alone."""
    mark = folder / ".rendered"
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise CatalogError(
            "this folder holds files that are not rendered pages",
            where=str(folder),
            hint="give --output an empty folder or one that does not exist",
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.touch()


def write_pages(site: SiteData, folder: Path, source: Path) -> int:
    """Write the Markdown of every page; returns how many there are."""
    environment = _environment(source)
    count = 0
    for page in pages(site):
        path = folder / page.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_markdown(environment, page, site), encoding="utf-8")
        count += 1
    return count


def _markdown(environment: Environment, page: Page, site: SiteData) -> str:
    try:
        body = environment.get_template(page.template).render(page.values, root=page.root, site=site, page=page)
        body += environment.get_template("_foot.jinja").render(root=page.root, site=site)
    except TemplateError as error:
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise CatalogError(
            f"the page {page.path} cannot be rendered: {error.message or error}",
            where=f"site/templates/{page.template}{line}",
        ) from error
    return page.front_matter() + body


def _environment(source: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(source / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "md": text.inline,
        "plain": text.plain,
        "linked": text.linked,
        "address": text.address,
        "number": text.number,
        "ratio": text.ratio,
        "share": text.share,
        "fence": text.fence,
        "anchor": text.slugified,
        "model": lambda word: finder.MODELS.get(str(word), str(word)),
        "bytes": _bytes,
    }
    environment.filters.update(filters)
    environment.tests["reversing"] = claims.reverses
    environment.globals.update(
        taxonomy=taxonomy, badges=claims.badges, reverses=claims.reverses, state_of=claims.state_of
    )
    return environment


def _bytes(value: float | None) -> str:
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g}\u00a0{unit}"
        value /= 1000
    return f"{value:.3g}\u00a0GB"


def pages(site: SiteData) -> Iterator[Page]:
    """Every page of the site."""
    for answers in finder.combinations():
        yield _finder_page(site, answers)
    yield Page(
        "methods/index.md",
        "table.md.jinja",
        "All entries",
        "Every paper of the catalog in one table, to be sorted and filtered.",
        {"rows": table.table(site), "years": sorted({paper.year for paper in site.papers})},
        hide=("navigation", "toc"),
        searched=False,
    )
    listed = prolific(site)
    for paper in site.papers:
        yield _entry_page(site, paper, listed)
    yield from _category_pages(site)
    yield from _comparison_pages(site)
    yield from _list_pages(site)
    yield from _other_pages(site, listed)


def _finder_page(site: SiteData, answers: finder.Answers) -> Page:
    start = answers == finder.Answers()
    return Page(
        "index.md" if start else f"{answers.path.rstrip('/')}.md",
        "start.md.jinja" if start else "finder.md.jinja",
        "Parameter-efficient fine-tuning, claim by claim" if start else f"Methods for {answers.words}",
        "A catalog of parameter-efficient fine-tuning in which every claim can be run."
        if start
        else f"Which fine-tuning method should I use? Methods for {answers.words}.",
        {"answer": finder.answer(site, answers), "measured": sum(bool(paper.evidence) for paper in site.papers)},
        hide=("navigation", "toc"),
        searched=start,
    )


def _entry_page(site: SiteData, paper: Paper, listed: Mapping[str, int]) -> Page:
    from catalog.exports.bibtex import to_bibtex

    values = {
        "paper": paper,
        "equations": [mathml(latex, paper.slug) for latex in paper.mechanism.latex],
        "source": implementation_source(paper),
        "claims": claims.rows(paper),
        "runs": claims.succeeded(paper.bench),
        "parameters": claims.parameters(paper),
        "ancestors": data.ancestors(site, paper),
        "descendants": data.descendants(site, paper),
        "bibtex": to_bibtex([paper]).strip(),
        "listed": listed,
        "lists": {item.slug: item for item in site.lists},
        "history": site.histories.get(paper.slug, ()),
    }
    return Page(
        f"methods/{paper.slug}.md",
        "entry.md.jinja",
        paper.name,
        paper.summary,
        values,
        hide=("navigation",),
        boost=_search_boost(site, paper),
    )


def _search_boost(site: SiteData, paper: Paper) -> float:
    """What much builds on comes first among names that begin alike, as LoRA before LoRand."""
    return round(2 + 2 * math.log2(1 + len(site.children(paper))), 1)


def implementation_source(paper: Paper) -> Markup | None:
    """The implementation's file as a fenced block, read without importing it."""
    if not paper.implementation:
        return None
    relative = Path(*str(paper.implementation).split(".")[1:]).with_suffix(".py")
    path = next((folder / relative for folder in implementation_folders() if (folder / relative).is_file()), None)
    return text.fence(path.read_text(encoding="utf-8"), "python") if path else None


def _category_pages(site: SiteData) -> Iterator[Page]:
    counts = Counter(str(paper.category) for paper in site.papers)
    yield Page(
        "categories/index.md",
        "categories.md.jinja",
        "Categories",
        "The categories of parameter-efficient fine-tuning, each with its definition.",
        {"counts": counts},
    )
    for category in taxonomy.Category:
        papers = site.of_category(category)
        families: dict[str, list[Paper]] = {}
        for paper in papers:
            families.setdefault(str(paper.subcategory or ""), []).append(paper)
        yield Page(
            f"categories/{category}.md",
            "category.md.jinja",
            str(category).capitalize(),
            category.definition,
            {"category": category, "papers": papers, "families": dict(sorted(families.items()))},
        )


def _comparison_pages(site: SiteData) -> Iterator[Page]:
    yield Page(
        "compare/reversibility.md",
        "reversibility.md.jinja",
        "Reversibility",
        "Which methods can be removed, merged, unmerged and reversed in sign.",
        {"categories": [(category, site.of_category(category)) for category in taxonomy.Category]},
        hide=("toc",),
        searched=False,
    )
    yield Page(
        "compare/strength.md",
        "strength.md.jinja",
        "Strength",
        "How the learned change of every method answers to a coefficient, and what merging leaves behind.",
        strength.values(site),
        hide=("toc",),
        searched=False,
    )
    yield Page(
        "compare/cost.md",
        "cost.md.jinja",
        "Cost",
        "Trained parameters against step time, memory and what is gained.",
        {"panels": chart.panels(site), "points": chart.points(site), "marks": chart.legend()},
        hide=("toc",),
        searched=False,
    )
    yield Page(
        "compare/peft.md",
        "compare_peft.md.jinja",
        "Beside peft",
        "The same methods here and in Hugging Face's peft, in time and memory.",
        comparison.values(site, site.comparisons),
        hide=("toc",),
        searched=False,
    )
    found = timeline.years(site)
    yield Page(
        "compare/timeline.md",
        "timeline.md.jinja",
        "Timeline",
        "The papers of the catalog by year.",
        {"years": found, "bars": timeline.bars(found)},
        searched=False,
    )


def _list_pages(site: SiteData) -> Iterator[Page]:
    summaries = []
    for item in site.lists:
        listings = [(row, paper) for paper in site.papers for row in paper.listed_in if row.list_slug == item.slug]
        errata = [(row, paper) for paper in site.papers for row in paper.errata if row.list_slug == item.slug]
        summaries.append((item, len(listings), len(errata)))
        yield Page(
            f"lists/{item.slug}.md",
            "list.md.jinja",
            item.title,
            f"What the public list {item.title} contains, and what it says wrongly.",
            {"item": item, "listings": listings, "errata": errata},
            hide=("navigation",),
        )
    yield Page(
        "lists/index.md",
        "lists.md.jinja",
        "Source lists",
        "The public lists the entries come from, with their errata.",
        {"summaries": summaries},
        hide=("navigation", "toc"),
    )
    rows = [(row, paper) for paper in site.papers for row in paper.deviations]
    yield Page(
        "compare/deviations.md",
        "deviations.md.jinja",
        "Deviations",
        "Who implements what the paper says: libraries, official code, this catalog.",
        {"rows": rows, "parity": parity(site), "upstream": upstream()},
        hide=("toc",),
        searched=False,
    )


def _other_pages(site: SiteData, listed: Mapping[str, int]) -> Iterator[Page]:
    by_author: dict[str, list[Paper]] = {}
    for paper in site.papers:
        for author in paper.authors:
            if author in listed:
                by_author.setdefault(author, []).append(paper)
    yield Page(
        "authors.md",
        "authors.md.jinja",
        "Authors",
        "Authors of several papers of the catalog.",
        {"authors": sorted(by_author.items(), key=lambda pair: (-len(pair[1]), pair[0]))},
        searched=False,
    )
    yield Page(
        "about/measured.md",
        "measured.md.jinja",
        "How it is measured",
        "Every claim of the catalog, and how it is measured on the implementation.",
        {"claims": list(claims.CLAIMS.values())},
    )
    yield Page(
        "about/arxiv.md",
        "arxiv.md.jinja",
        "Following arXiv",
        "How the catalog is kept in step with arXiv, and what happens when arXiv misbehaves.",
        {"mischief": misbehavior()},
    )
    yield Page(
        "about/vocabulary.md",
        "vocabulary.md.jinja",
        "Vocabulary",
        "The classifying words of the catalog with their definitions.",
        {},
    )
    yield Page(
        "about/cli.md",
        "cli.md.jinja",
        "Command line",
        "Every command of peft-catalog.",
        {"reference": Markup(site.cli)},
    )
    yield Page("about/downloads.md", "downloads.md.jinja", "Downloads", "The catalog as JSON, BibTeX and SQLite.", {})


def misbehavior() -> list[Mapping[str, Any]]:
    """What was tested against every way in which arXiv misbehaves, as the tests recorded it."""
    return recorded("misbehavior")


def parity(site: SiteData) -> list[tuple[Mapping[str, Any], Paper, int]]:
    """What tests compared with libraries, with the paper and how often the library departs from it, by name."""
    rows = [(row, site.by_slug[row["slug"]]) for row in recorded("parity") if row["slug"] in site.by_slug]
    found = [
        (
            row,
            paper,
            sum(d.who.split(" ")[0] in (row["library"], row["library"].partition("-")[0]) for d in paper.deviations),
        )
        for row, paper in rows
    ]
    return sorted(found, key=lambda item: (data.name_key(item[1]), item[0]["library"]))


def recorded(name: str) -> list[Mapping[str, Any]]:
    """The rows of a table that tests write."""
    path = MEASURED / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prolific(site: SiteData) -> dict[str, int]:
    """Authors of at least two papers, with how many."""
    counts = Counter(author for paper in site.papers for author in set(paper.authors))
    return {author: count for author, count in counts.items() if count > 1}
