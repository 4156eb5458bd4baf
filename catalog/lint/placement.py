"""An entry lies where its slug and category say."""

from __future__ import annotations

from collections.abc import Iterator

from catalog.lint.core import Collection, Finding


def slug_is_file_name(collection: Collection) -> Iterator[Finding]:
    """The file is named as the slug."""
    for file in collection.files:
        if file.path.stem != file.entry.slug:
            message = f"differs from the file's name {file.path.stem}"
            yield file.finding("slug-is-file-name", "slug", message, file.entry.slug, file.path.stem)


def folder_is_category(collection: Collection) -> Iterator[Finding]:
    """The folder is named as the category."""
    for file in collection.files:
        folder = file.path.parent.name
        if folder != file.entry.category:
            message = f"differs from the folder {folder}/"
            yield file.finding("folder-is-category", "category", message, str(file.entry.category), folder)
