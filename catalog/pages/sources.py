"""Where the site's templates, assets and configuration are."""

from __future__ import annotations

import os
from pathlib import Path

from catalog.errors import CatalogError

SOURCES_VARIABLE = "PEFT_CATALOG_SITE"
_NEEDED = ("mkdocs.yml", "templates", "assets", "theme")


def site_sources(folder: Path | str | None = None) -> Path:
    """The folder `site/`: as given, else $PEFT_CATALOG_SITE, else beside the package, as in a checkout."""
    chosen = folder or os.environ.get(SOURCES_VARIABLE)
    path = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "site"
    missing = [name for name in _NEEDED if not (path / name).exists()]
    if missing:
        raise CatalogError(
            f"the site's templates are not here: {', '.join(missing)} missing",
            where=str(path),
            hint="they are in the folder site/ of the repository, not in the installed package: clone it and run "
            f"the command there, or name that folder with --sources or {SOURCES_VARIABLE}",
        )
    return path
