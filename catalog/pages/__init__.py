"""The documentation site: Markdown pages rendered from the database, and their build with mkdocs.

    with catalog.open() as cat:
        render(cat, Path("build/site-src/docs"))
    build(Path("build/site-src/docs"), Path("build/site"))

Templates, styles and the mkdocs configuration live in the repository's folder `site/`, which is not part of the wheel.
"""

from __future__ import annotations

from catalog.pages.engine import build
from catalog.pages.sources import site_sources
from catalog.pages.writer import Rendered, render

__all__ = ["Rendered", "build", "render", "site_sources"]
