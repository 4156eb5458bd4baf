"""The texts of a new entry and of its implementation, with blanks for what is not known yet."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import tomlkit

from catalog.taxonomy import Kind, Modality
from catalog.terminal import clean
from catalog.words import sendable


@dataclass(frozen=True)
class Draft:
    """What is known of a new entry; ``hints`` are written as comments, for who fills in the rest."""

    slug: str
    category: str
    arxiv: str | None = None
    name: str | None = None
    title: str | None = None
    authors: Sequence[str] = field(default=())
    published: str | None = None
    arxiv_categories: Sequence[str] = field(default=())
    status: str | None = None
    hints: Sequence[str] = field(default=())


def entry_text(draft: Draft) -> str:
    """The TOML of a new entry, marked as a draft."""
    document = tomlkit.document()
    document.add(tomlkit.comment("Fill in what is empty and leave out what is unknown; peft-catalog lint says what"))
    document.add(tomlkit.comment("is missing. Queries leave a draft out: remove the next line when it is finished."))
    document["draft"] = True
    document["slug"] = draft.slug
    document["name"] = sendable(draft.name or "")
    document["title"] = sendable(draft.title or "")
    document["authors"] = [sendable(author) for author in draft.authors]
    if draft.arxiv:
        document["arxiv"] = draft.arxiv
    if draft.arxiv_categories:
        document["arxiv_categories"] = [sendable(category) for category in draft.arxiv_categories]
    document["published"] = draft.published or _month_of(draft.arxiv)
    for hint in draft.hints:
        document.add(tomlkit.comment(one_line(hint)))
    document["kind"] = tomlkit.item(str(Kind.METHOD)).comment(_one_of(Kind.words()))
    document["category"] = draft.category
    document["subcategory"] = tomlkit.item("").comment("a word of catalog/taxonomy.py: Subcategory, or leave out")
    document["modality"] = tomlkit.item([]).comment(_one_of(Modality.words(), "some of"))
    document["builds_on"] = tomlkit.item([]).comment("slugs of entries")
    document["summary"] = tomlkit.item("").comment("three or four sentences of our own, not the abstract")
    document["how_it_differs"] = tomlkit.item("").comment("from the nearest entries")
    if draft.status:
        document["status"] = draft.status
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
    plain = one_line(text).replace("\\", "/").replace('"', "'")
    return plain if plain.endswith(".") else f"{plain}."


def _class_name(name: str) -> str:
    words = re.findall(r"[A-Za-z0-9]+", name)
    joined = "".join(word[0].upper() + word[1:] for word in words) or "Method"
    taken = keyword.iskeyword(joined) or joined in ("Adapter", "AdapterError")
    return f"Method{joined}" if joined[0].isdigit() or taken else joined


def one_line(text: str) -> str:
    """Text of others on one line, without control characters: it may stand in a comment or a docstring."""
    return clean(" ".join(text.split()))


def _month_of(arxiv: str | None) -> str:
    return f"20{arxiv[:2]}-{arxiv[2:4]}" if arxiv else ""


def _one_of(words: Sequence[str], how: str = "one of") -> str:
    return f"{how} {', '.join(words)}"
