"""Schema and loader of an entry file: one TOML file a paper, the source of truth of the catalog.

An error names the file, the key, the value found and what is allowed, with near misses for words of the vocabulary.
A file with `draft = true` is no entry yet, whatever else it says.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from catalog.errors import EntryError, Problem
from catalog.locations import entry_paths, implementation_folders
from catalog.taxonomy import Backbone, Category, Fidelity, Kind, Modality, Status, Strength, Subcategory

_SLUG = r"^[a-z0-9]+(-[a-z0-9]+)*$"
_DATE = r"^\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?$"
_MONTH = r"^\d{4}-(0[1-9]|1[0-2])$"
_ARXIV = r"^(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})$"
_DOI = r"^10\.\d{4,9}/\S+$"
_URL = r"^https?://[^\s<>\"]+$"

_FORMATS = {
    _SLUG: "lower-case letters, digits and single dashes, such as 'p-tuning-v2'",
    _DATE: "YYYY-MM-DD, YYYY-MM or YYYY",
    _MONTH: "YYYY-MM",
    _ARXIV: "an arXiv id without version, such as '2106.09685'",
    _DOI: "a DOI without resolver, such as '10.18653/v1/2021.acl-long.353'",
    _URL: "an address that starts with https:// or http://",
}

Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Slug = Annotated[str, StringConstraints(pattern=_SLUG)]
PartialDate = Annotated[str, StringConstraints(pattern=_DATE)]
Month = Annotated[str, StringConstraints(pattern=_MONTH)]
ArxivId = Annotated[str, StringConstraints(pattern=_ARXIV)]
Doi = Annotated[str, StringConstraints(pattern=_DOI)]
Url = Annotated[str, StringConstraints(pattern=_URL)]


def _no_draft(value: bool) -> bool:
    if value:
        raise PydanticCustomError("draft", "is true: the entry is a draft, which queries leave out")
    return value


Finished = Annotated[StrictBool, AfterValidator(_no_draft)]
Setting = bool | int | float | str | list[int] | list[str]


class Part(BaseModel):
    """A piece of an entry: cannot be changed once read, and rejects keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Mechanism(Part):
    """What the method computes, trains and freezes, in words and equations."""

    equations: Text | None = Field(default=None, description="The defining equations as plain text, with shapes.")
    latex: tuple[Text, ...] = Field(default=(), max_length=4, description="One to four key display equations in LaTeX.")
    trained: Text | None = Field(default=None, description="What gradient descent changes.")
    frozen: Text | None = Field(default=None, description="What stays as pretrained.")
    insertion: Text | None = Field(default=None, description="Where in the model the change sits.")
    init: Text | None = Field(default=None, description="Values of the trained tensors at the start.")
    training: Text | None = Field(default=None, description="Loss, schedule and stages.")
    backbone: Backbone | None = Field(default=None, description="Small model that shows the method as in the paper.")
    hyperparameters: tuple[Text, ...] = Field(
        default=(), description="One hyperparameter with its usual values a line."
    )
    parameter_count: Text | None = Field(
        default=None, description="Trained parameters in words or a formula for readers."
    )
    golden_facts: tuple[Text, ...] = Field(default=(), description="Statements about the method that can be checked.")
    pitfalls: tuple[Text, ...] = Field(
        default=(), description="What goes wrong when the method is implemented or used."
    )


class ReportedCount(Part):
    """A number of trained parameters that the paper reports, at a named model."""

    at: Text = Field(description="Model whose dimensions are meant, a name of catalog.dimensions.")
    hyperparameters: dict[str, Setting] = Field(default_factory=dict, description="Setting of the count.")
    trained: int = Field(gt=0, description="Trained parameters.")
    source: Text = Field(description="Where the paper says so.")


class Untestable(Part):
    """A claim that cannot be measured on a small model, and the reason."""

    claim: Text
    why: Text


class Claims(Part):
    """What is measured on the implementation."""

    identity_at_init: StrictBool | None = Field(
        default=None, description="Adapted model equals the base model at the start."
    )
    parameters: Text | None = Field(default=None, description="Formula for the trained parameters (catalog.formula).")
    hyperparameters: dict[str, Setting] = Field(default_factory=dict, description="Keywords of attach().")
    defaults: dict[str, Setting] = Field(default_factory=dict, description="The paper's usual setting.")
    backbones: tuple[Backbone, ...] = Field(default=(), description="Small models the claims are measured on.")
    note: Text | None = Field(default=None, description="On what a claim depends.")
    counts: tuple[ReportedCount, ...] = ()
    untestable: tuple[Untestable, ...] = ()


class Reversibility(Part):
    """Whether the change can be removed, folded in, taken out again and scaled."""

    detachable: StrictBool
    mergeable: StrictBool
    unmergeable: Text | None = Field(default=None, description="How a merged change is taken out again.")
    strength: Strength
    strength_knob: Text | None = Field(default=None, description="What the coefficient multiplies.")
    note: Text | None = None


class FidelityNote(Part):
    """What the mechanism rests on."""

    basis: Fidelity
    note: Text | None = None


class Deviation(Part):
    """Someone who departs from the paper, and how."""

    who: Text = Field(description="'official code', 'peft 0.21.2', 'this catalog' ...")
    what: Text
    evidence: Text = Field(description="File, section or measurement that shows it.")
    test: Text | None = Field(default=None, description="Test id that shows it by running.")


class Sources(Part):
    """What was read, and what could not be confirmed."""

    checked: tuple[Text, ...] = ()
    unverified: tuple[Text, ...] = ()
    checked_on: Month | None = Field(default=None, description="Month in which the sources were last read.")


class Listing(Part):
    """One appearance of the paper on a public list, as printed there."""

    list_slug: Slug = Field(alias="list", description="The list, a slug of lists.toml.")
    section: Text | None = None
    printed_as: Text = Field(alias="as", description="The words of the list.")
    link: Text | None = Field(default=None, description="The link as the list prints it.")
    commented: StrictBool = Field(default=False, description="Present only in a comment of the list's source.")


class Erratum(Part):
    """Something a public list says wrongly about the paper, the fact, and the evidence."""

    list_slug: Slug = Field(alias="list", description="The list, a slug of lists.toml.")
    claim: Text
    fact: Text
    evidence: Text


class Entry(Part):
    """One paper: its facts, its classification, our words on it, and what is claimed and known about it."""

    slug: Slug
    name: Text = Field(description="The short name the field uses.")
    aliases: tuple[Text, ...] = Field(default=(), description="Other spellings, old slugs, library class names.")
    title: Text
    authors: tuple[Text, ...] = Field(min_length=1)
    arxiv: ArxivId | None = None
    arxiv_categories: tuple[Text, ...] = ()
    arxiv_differs: dict[
        Literal["title", "authors", "published", "doi", "venue", "status", "arxiv_categories"], Text
    ] = Field(default_factory=dict, description="Key in which the entry rightly differs from arXiv's record, and why.")
    published: PartialDate = Field(description="First public date: YYYY-MM-DD, YYYY-MM or YYYY.")
    venue: Text | None = None
    doi: Doi | None = None
    url: Url | None = Field(default=None, description="Landing page of the published version.")
    code: Url | None = Field(default=None, description="The authors' code.")
    libraries: dict[str, Text] = Field(default_factory=dict, description="Library to the name it uses.")
    kind: Kind
    category: Category
    subcategory: Subcategory | None = None
    modality: tuple[Modality, ...] = ()
    builds_on: tuple[Slug, ...] = Field(default=(), description="Slugs of the entries this one builds on.")
    summary: Text
    how_it_differs: Text | None = None
    status: Status = Status.CURRENT
    superseded_by: Slug | None = None
    no_implementation: Text | None = Field(default=None, description="Why there is nothing to implement.")
    mechanism: Mechanism = Mechanism()
    claims: Claims = Claims()
    reversibility: Reversibility | None = None
    fidelity: FidelityNote | None = None
    deviations: tuple[Deviation, ...] = ()
    sources: Sources = Sources()
    listed_in: tuple[Listing, ...] = ()
    errata: tuple[Erratum, ...] = ()
    draft: Finished = Field(default=False, description="True until the entry is filled in; then the key is removed.")

    @property
    def year(self) -> int:
        """Year of the first public date."""
        return int(self.published[:4])

    @property
    def implementation(self) -> str:
        """Dotted name of the module that implements the entry, whether or not it exists yet."""
        return f"reference_impls.{self.category}.{self.slug.replace('-', '_')}"

    @property
    def has_implementation(self) -> bool:
        """Whether the implementation's file exists; found without importing it."""
        relative = Path(self.category) / f"{self.slug.replace('-', '_')}.py"
        return any((folder / relative).is_file() for folder in implementation_folders())

    @property
    def claim_backbones(self) -> tuple[Backbone, ...]:
        """The small models on which the claims are measured."""
        if self.claims.backbones:
            return self.claims.backbones
        return (self.mechanism.backbone,) if self.mechanism.backbone else ()


def load_entries(root: Path | str | None = None) -> list[Entry]:
    """All entries but drafts, sorted by category and slug; EntryError for a file that is neither."""
    tables = ((path, read_table(path)) for path in entry_paths(root))
    return [_entry(path, table) for path, table in tables if not is_draft(table)]


def load_entry(path: Path | str) -> Entry:
    """Read and validate one entry file; a draft is refused with what is still missing."""
    return _entry(path, read_table(path))


def is_draft(data: dict[str, Any]) -> bool:
    """Whether a table says that it is an entry only begun."""
    return data.get("draft") is True


def _entry(path: Path | str, data: dict[str, Any]) -> Entry:
    entry, problems = validate(data)
    if entry is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise EntryError(f"{count} in the entry {Path(path).name}", where=str(path), problems=problems)
    return entry


def read_table(path: Path | str) -> dict[str, Any]:
    """The TOML table of one file, not validated."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise EntryError(f"cannot read the entry: {error.strerror or error}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise EntryError(
            "the entry is not UTF-8 text", where=f"{path}, byte {error.start}", hint="save the file as UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise EntryError(
            f"the entry is not valid TOML: {error}",
            where=str(path),
            hint="quote strings, and use ''' for text with backslashes",
        ) from error


def validate(data: dict[str, Any]) -> tuple[Entry | None, tuple[Problem, ...]]:
    """The entry that a table describes, or None and every fault found in it."""
    try:
        return Entry.model_validate(data), ()
    except ValidationError as error:
        return None, tuple(_problem(details) for details in error.errors(include_url=False))


def _problem(details: Any) -> Problem:
    """A pydantic error in words for people."""
    location, kind, context = details["loc"], details["type"], details.get("ctx", {})
    key = _key(location)
    value = _shown(details["input"])
    if kind == "missing":
        return Problem(key, "is required and missing", hint="add it")
    if kind == "extra_forbidden":
        known = _keys_beside(location)
        return Problem(key, "is not a key of an entry", allowed=", ".join(known), hint=_near(location[-1], known))
    if kind == "enum":
        known = re.findall(r"'([^']+)'", context["expected"])
        return Problem(key, "is not a word of the vocabulary", value, ", ".join(known), _near(details["input"], known))
    if kind == "string_pattern_mismatch":
        return Problem(key, "is not well formed", value, _FORMATS.get(context["pattern"], context["pattern"]))
    if kind == "draft":
        return Problem(key, str(details["msg"]), hint="remove the line when nothing else is missing")
    if kind.startswith("bool"):
        return Problem(key, "is neither true nor false", value, "true, false")
    if kind in ("string_too_short", "too_short"):
        optional = not _is_required(location)
        hint = "fill it in, or leave the key out when nothing is known" if optional else "fill it in"
        return Problem(key, "is empty", hint=hint)
    return Problem(key, str(details["msg"]).lower(), value)


def _key(location: tuple[str | int, ...]) -> str:
    """A location such as ('listed_in', 0, 'link') as listed_in[0].link."""
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _near(word: Any, known: list[str]) -> str | None:
    matches = difflib.get_close_matches(str(word).lower().replace("_", "-"), known, n=3, cutoff=0.6)
    matches = matches or difflib.get_close_matches(str(word), known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(matches)}?" if matches else None


def _keys_beside(location: tuple[str | int, ...]) -> list[str]:
    """Keys that the table at this location may have."""
    return [field.alias or name for name, field in _part_at(location).model_fields.items()]


def _is_required(location: tuple[str | int, ...]) -> bool:
    """Whether the key at this location must be there; an item of a list may always be left out."""
    fields = _part_at(location).model_fields
    keys = {field.alias or name: field for name, field in fields.items()}
    last = location[-1]
    return isinstance(last, str) and last in keys and keys[last].is_required()


def _part_at(location: tuple[str | int, ...]) -> type[Part]:
    """The kind of table that holds the key at this location."""
    part: type[Part] = Entry
    for name in location[:-1]:
        if isinstance(name, str) and name in part.model_fields:
            part = _part_of(part.model_fields[name].annotation) or part
    return part


def _part_of(annotation: Any) -> type[Part] | None:
    """The table type inside an annotation such as tuple[Listing, ...] or Reversibility | None."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, Part) and not issubclass(annotation, Enum) else None
    return next((part for part in map(_part_of, typing.get_args(annotation)) if part), None)
