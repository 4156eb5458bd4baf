"""Builds the rendered pages with mkdocs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from catalog.errors import CatalogError
from catalog.pages.sources import site_sources


@dataclass(frozen=True)
class Built:
    """A built site and how long mkdocs took."""

    folder: Path
    seconds: float


class _Warnings(logging.Handler):
    """Keeps what mkdocs warns about, which makes a strict build fail."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _listening() -> Iterator[list[str]]:
    handler, logger = _Warnings(), logging.getLogger("mkdocs")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def build(docs: Path | str, output: Path | str, sources: Path | str | None = None) -> Built:
    """Build rendered pages into `output`; a warning of mkdocs is an error."""
    try:
        from mkdocs.commands.build import build as mkdocs_build
        from mkdocs.config import load_config
        from mkdocs.exceptions import MkDocsException
    except ImportError as error:
        raise CatalogError(
            "building the site needs mkdocs and its theme, which are not installed",
            hint="pip install 'peft-catalog[site]'",
        ) from error
    configuration = site_sources(sources) / "mkdocs.yml"
    start = time.perf_counter()
    with _listening() as warnings:
        try:
            config = load_config(
                str(configuration),
                docs_dir=str(Path(docs).resolve()),
                site_dir=str(Path(output).resolve()),
                strict=True,
            )
            config.plugins.on_startup(command="build", dirty=False)
            mkdocs_build(config)
            config.plugins.on_shutdown()
        except (MkDocsException, SystemExit) as error:
            said = "\n".join(f"  {message}" for message in warnings[:10]) or f"  {error}"
            raise CatalogError(f"mkdocs cannot build the site:\n{said}", where=str(configuration)) from error
    return Built(Path(output), time.perf_counter() - start)
