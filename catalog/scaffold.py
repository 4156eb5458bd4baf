"""A new entry and its implementation, begun: the facts given, and every key that still has to be filled in.

What is written validates only once the blanks are filled in, and the implementation refuses to be attached:
nothing begun passes for finished.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tomlkit

from catalog.entry import read_table
from catalog.errors import UsageError
from catalog.files import write_atomic
from catalog.locations import entries_root, entry_paths, implementation_folders, shipped_root
from catalog.taxonomy import Category, Kind, Modality

_SLUG = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*$")
_ARXIV = re.compile(r"^\d{2}(0[1-9]|1[0-2])\.\d{4,5}$")
_KEYWORDS = {"def", "class", "import", "from", "for", "if", "in", "is", "not", "or", "and", "with", "pass", "none"}


@dataclass(frozen=True)
class Draft:
    """What is known of a new entry."""

    slug: str
    category: str
    arxiv: str | None = None
    name: str | None = None
    title: str | None = None
    authors: Sequence[str] = field(default=())
    published: str | None = None


def scaffold(draft: Draft, root: Path | str | None = None, implementations: Path | str | None = None) -> list[Path]:
    """Write the entry and, unless its category is context, the implementation; the paths written."""
    folder = entries_root(root)
    category = _category(draft.category)
    _check_slug(draft.slug, folder)
    _check_arxiv(draft.arxiv, folder)
    paths = {folder / category / f"{draft.slug}.toml": entry_text(draft)}
    if category is not Category.CONTEXT:
        package = _package(folder, implementations)
        paths[package / category / f"{draft.slug.replace('-', '_')}.py"] = implementation_text(draft)
    for path in paths:
        _check_free(path)
    return [write_atomic(path, text) for path, text in paths.items()]


def entry_text(draft: Draft) -> str:
    """The TOML of a new entry."""
    document = tomlkit.document()
    document.add(tomlkit.comment("Fill in what is empty, leave out what is unknown, then run: peft-catalog lint"))
    document["slug"] = draft.slug
    document["name"] = draft.name or ""
    document["title"] = draft.title or ""
    document["authors"] = list(draft.authors)
    if draft.arxiv:
        document["arxiv"] = draft.arxiv
    document["published"] = draft.published or _month_of(draft.arxiv)
    document["kind"] = tomlkit.item(str(Kind.METHOD)).comment(_one_of(Kind.words()))
    document["category"] = draft.category
    document["subcategory"] = tomlkit.item("").comment("a word of catalog/taxonomy.py: Subcategory, or leave out")
    document["modality"] = tomlkit.item([]).comment(_one_of(Modality.words(), "some of"))
    document["builds_on"] = tomlkit.item([]).comment("slugs of entries")
    document["summary"] = tomlkit.item("").comment("three or four sentences of our own, not the abstract")
    document["how_it_differs"] = tomlkit.item("").comment("from the nearest entries")
    return tomlkit.dumps(document) + _TABLES


_TABLES = """
[mechanism]
equations = '''
'''
trained = ""
frozen = ""
insertion = ""
init = ""
backbone = ""  # the small model that shows the method as in the paper
hyperparameters = []
parameter_count = ""
golden_facts = []
pitfalls = []

[claims]
identity_at_init = ""  # true or false

[reversibility]
detachable = ""  # true or false
mergeable = ""  # true or false
strength = ""  # linear, antisymmetric, nonlinear or none
note = ""

[fidelity]
basis = ""  # paper, official-code, library or reconstruction

[sources]
checked = []
unverified = []
"""


def implementation_text(draft: Draft) -> str:
    """The Python of a new implementation, which cannot be attached yet."""
    name = draft.name or draft.slug
    reference = f"arXiv {draft.arxiv}" if draft.arxiv else "where it was published"
    words = f'"""{_docstring(draft.title or name)}\n\nAuthors; venue; {reference}, section and equation numbers.\n'
    return (
        words
        + _SKELETON_DOCSTRING
        + f'''

class {_class_name(name)}(Adapter):
    """What the method does, in one line."""


def attach(model: nn.Module) -> Adapter:
    """Freeze ``model`` and change it in place."""
    raise AdapterError("{draft.slug} is not implemented yet")
'''
    )


_SKELETON_DOCSTRING = '''
The equation with the shapes of its tensors.

Trained: which tensors, and where they sit.
Start: their initial values, and why.
"""

from __future__ import annotations

from torch import nn

from reference_impls.adapter import Adapter, AdapterError
'''


def _docstring(text: str) -> str:
    plain = " ".join(text.split()).replace("\\", "/").replace('"', "'")
    return plain if plain.endswith(".") else f"{plain}."


def _class_name(name: str) -> str:
    words = re.findall(r"[A-Za-z0-9]+", name)
    joined = "".join(word[0].upper() + word[1:] for word in words) or "Method"
    return f"Method{joined}" if joined[0].isdigit() else joined


def _category(word: str) -> Category:
    if word not in Category.words():
        near = difflib.get_close_matches(word.lower(), Category.words(), n=1)
        raise UsageError(
            f"{word!r} is not a category",
            allowed=Category.words(),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return next(category for category in Category if category == word)


def _check_slug(slug: str, folder: Path) -> None:
    if not _SLUG.match(slug) or slug.replace("-", "_") in _KEYWORDS or len(slug) > 60:
        allowed = "lower-case letters, digits and single dashes, such as p-tuning-v2"
        near = re.sub(r"[^a-z0-9]+", "-", slug.lower()).strip("-")
        hint = f"did you mean {near}?" if near and near != slug and near not in _KEYWORDS else None
        raise UsageError(f"{slug!r} cannot be a slug", allowed=allowed, hint=hint)
    for path in entry_paths(folder) if folder.is_dir() else []:
        if path.stem == slug:
            raise UsageError(
                f"there is an entry {slug} already", where=str(path), hint="edit it, or choose another slug"
            )


def _check_arxiv(arxiv: str | None, folder: Path) -> None:
    if arxiv is None:
        return
    if not _ARXIV.match(arxiv):
        bare = re.search(r"\d{4}\.\d{4,5}", arxiv)
        hint = f"did you mean {bare.group(0)}?" if bare else None
        raise UsageError(f"{arxiv!r} is not an arXiv id", allowed="YYMM.number, such as 2106.09685", hint=hint)
    for path in entry_paths(folder) if folder.is_dir() else []:
        if read_table(path).get("arxiv") == arxiv:
            raise UsageError(f"arXiv {arxiv} has an entry already: {path.stem}", where=str(path))


def _check_free(path: Path) -> None:
    if path.exists():
        raise UsageError("the file exists already, and is not overwritten", where=str(path), hint="choose another slug")


def _package(folder: Path, implementations: Path | str | None) -> Path:
    """The package that takes the implementation: given, else beside the entries, else the one of this checkout."""
    if implementations is not None:
        return Path(implementations)
    shipped = folder.resolve() == shipped_root().resolve()
    found = next(iter(implementation_folders()), None) if shipped else folder.parent / "reference_impls"
    if found is None or "site-packages" in found.parts or "site-packages" in folder.parts:
        raise UsageError(
            "entries are written in a checkout of the repository, not in an installed package",
            where=str(folder),
            hint="run this in a checkout, or give --root FOLDER",
        )
    return found


def _month_of(arxiv: str | None) -> str:
    return f"20{arxiv[:2]}-{arxiv[2:4]}" if arxiv else ""


def _one_of(words: Sequence[str], how: str = "one of") -> str:
    return f"{how} {', '.join(words)}"
