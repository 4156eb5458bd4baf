"""Linters of the entry files: many small rules, each with one thing to say.

findings = lint()              # the entries shipped with the program
findings = lint("my/entries")  # a folder of one's own
"""

from __future__ import annotations

from pathlib import Path

from catalog.lint import (
    claims,
    dates,
    equations,
    evidence,
    identity,
    implementations,
    lineage,
    links,
    people,
    placement,
    prose,
    references,
)
from catalog.lint.core import Collection, EntryFile, Finding, Linter
from catalog.lint.reading import Folder, read
from catalog.locations import entries_root, shipped_root

__all__ = ["LINTERS", "Collection", "EntryFile", "Finding", "Folder", "Linter", "lint", "read"]

LINTERS: tuple[Linter, ...] = (
    placement.slug_is_file_name,
    placement.folder_is_category,
    identity.slug_unique,
    identity.arxiv_unique,
    identity.doi_unique,
    identity.title_unique,
    identity.name_unique,
    identity.alias_unique,
    lineage.builds_on_known,
    lineage.builds_on_acyclic,
    lineage.builds_on_earlier,
    lineage.superseded_by_known,
    dates.date_exists,
    dates.date_plausible,
    dates.date_agrees_with_arxiv,
    dates.arxiv_month_exists,
    people.authors_unique,
    people.author_is_one_name,
    links.url_well_formed,
    links.url_alive,
    links.url_canonical,
    prose.no_html,
    prose.american_spelling,
    prose.own_words,
    prose.about_the_paper,
    references.list_known,
    references.listing_is_item,
    references.item_has_entry,
    evidence.reconstruction_is_explained,
    evidence.deviation_names_version,
    evidence.deviation_test_well_formed,
    implementations.implemented_is_described,
    implementations.no_implementation_is_true,
    implementations.implementation_has_entry,
    claims.formula_readable,
    claims.reported_model_known,
    claims.reported_count_follows,
    claims.hyperparameter_is_keyword,
    equations.latex_balanced,
)


def lint(root: Path | str | None = None) -> list[Finding]:
    """All findings in a folder of entries, sorted by file and key; files that break the schema come with its faults,
    drafts with what they lack."""
    folder = read(root)
    shipped = entries_root(root).resolve() == shipped_root().resolve()
    collect = Collection.shipped if shipped else Collection.foreign
    found = _of(collect(folder.files, folder.drafts))
    if folder.complete_drafts:  # held against the entries, which are not held against them
        names = {file.name for file in folder.complete_drafts}
        together = collect([*folder.files, *folder.complete_drafts], folder.drafts)
        found += [finding for finding in _of(together) if finding.file in names]
    return sorted({*folder.faults, *found}, key=lambda finding: (finding.file, finding.key, finding.rule))


def _of(collection: Collection) -> list[Finding]:
    return [finding for linter in LINTERS for finding in linter(collection)]
