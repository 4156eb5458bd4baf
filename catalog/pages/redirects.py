"""Names never die: small static pages that lead from an alias, or an arXiv id, to the entry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import escape

from catalog.pages.data import SiteData
from catalog.pages.text import plain, slugified
from catalog.taxonomy import Status

if TYPE_CHECKING:
    from catalog.query import Paper

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="robots" content="noindex">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{name}</title>
<link rel="icon" href="data:,">
<link rel="canonical" href="{target}">
<meta http-equiv="refresh" content="0; url={target}">
</head>
<body><p>This page is at <a href="{target}">{name}</a>.</p></body>
</html>
"""


def redirects(site: SiteData) -> dict[str, tuple[str, Paper]]:
    """Address to the way to an entry; an alias that two entries share, or that is itself a slug, leads nowhere.

    An arXiv id that several papers have leads to one that was not replaced.
    """
    found: dict[str, tuple[str, Paper]] = {}
    shared: set[str] = set()
    for paper in site.papers:
        for alias in {slugified(name) for name in (*paper.aliases, paper.name)} - {""}:
            if alias in site.by_slug:
                continue
            path = f"methods/{alias}"
            if path in found and found[path][1].slug != paper.slug:
                shared.add(path)
            found[path] = (f"../{paper.slug}/", paper)
        if paper.arxiv:
            path = f"arxiv/{paper.arxiv}"
            if path not in found or found[path][1].status == Status.SUPERSEDED:
                found[path] = ("../" * (paper.arxiv.count("/") + 2) + f"methods/{paper.slug}/", paper)
    return {path: target for path, target in found.items() if path not in shared}


def write_redirects(site: SiteData, folder: Path) -> int:
    """Write the redirecting pages; returns how many there are."""
    found = redirects(site)
    for path, (target, paper) in found.items():
        page = folder / path / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(_PAGE.format(name=escape(plain(paper.name)), target=escape(target)), encoding="utf-8")
    return len(found)
