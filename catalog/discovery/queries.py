"""What is searched for on arXiv, and the words by which papers are scored: queries.toml, merged with the user's own."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError

from catalog.discovery.phrases import tokens
from catalog.errors import CatalogError
from catalog.taxonomy import Category

VARIABLE = "PEFT_CATALOG_QUERIES"
SHIPPED = Path(__file__).with_name("queries.toml")
LONGEST_QUERY = 1_500
"""Characters of a query, which becomes part of an address."""


class QueriesError(CatalogError):
    """A file of queries and words that cannot be read or says what makes no sense."""


def _phrase(text: str) -> str:
    words = tokens(text).lower
    if not words:
        raise ValueError("has neither letters nor digits")
    if "*" in text and (len(words) > 1 or text.count("*") > 1 or "*" not in (text[0], text[-1])):
        raise ValueError("has a * elsewhere than at the beginning or the end of a single word")
    return text


def _search(text: str) -> str:
    text = " ".join(text.split())
    depth, quoted = 0, False
    for sign in text:
        quoted ^= sign == '"'
        depth += 0 if quoted else (sign == "(") - (sign == ")")
        if depth < 0:
            break
    if quoted or depth:
        raise ValueError("has a quote or a parenthesis without its other half")
    if not text.isprintable():
        raise ValueError("has a control character")
    return text


def _category(text: str) -> str:
    if text not in Category.words():
        raise ValueError(f"is no category of the catalog; allowed: {', '.join(Category.words())}")
    return text


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Search = Annotated[Text, StringConstraints(max_length=LONGEST_QUERY), AfterValidator(_search)]
Phrase = Annotated[Text, AfterValidator(_phrase)]
ArxivCategory = Annotated[str, StringConstraints(pattern=r"^[a-z-]+(\.[A-Za-z-]+)?$")]
Points = dict[Phrase, FiniteFloat]


class Part(BaseModel):
    """A table of the file, which rejects keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Query(Part):
    """A stored query, and what it is for."""

    name: Name
    comment: Text
    search: Search
    categories: tuple[ArxivCategory, ...] | None = Field(default=None, min_length=1)


class Score(Part):
    """Words with points, and from how many points a paper is a candidate."""

    threshold: FiniteFloat | None = Field(default=None, gt=0)
    most: FiniteFloat | None = Field(default=None, gt=0)
    title: FiniteFloat | None = Field(default=None, ge=1)
    as_written: tuple[Phrase, ...] = ()
    core: Points = {}
    support: Points = {}
    against: Points = {}
    categories: dict[ArxivCategory, FiniteFloat] = {}


class File(Part):
    """A whole file; every key may be left out."""

    categories: tuple[ArxivCategory, ...] | None = Field(default=None, min_length=1)
    query: tuple[Query, ...] = ()
    score: Score = Score()
    leads: dict[Annotated[str, AfterValidator(_category)], Points] = {}


@dataclass(frozen=True)
class Rules:
    """All files merged."""

    queries: Mapping[str, str]
    """Name -> the whole query, categories included, in arXiv's syntax."""
    comments: Mapping[str, str]
    threshold: float
    most: float
    title: float
    as_written: frozenset[str]
    core: Mapping[str, float]
    support: Mapping[str, float]
    against: Mapping[str, float]
    categories: Mapping[str, float]
    leads: Mapping[str, Mapping[str, float]]


def load(path: Path | str | None = None) -> Rules:
    """The rules that are shipped, merged with those of ``path``, else of the file that $PEFT_CATALOG_QUERIES names."""
    own = path or os.environ.get(VARIABLE)
    return merged([read(SHIPPED), *([read(Path(own).expanduser())] if own else [])])


def read(path: Path) -> File:
    """One file, validated; QueriesError names the key and what is wrong with it."""
    try:
        return File.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise QueriesError(f"cannot read the queries: {error.strerror or error}", where=str(path)) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise QueriesError(f"the queries are not valid TOML: {error}", where=str(path)) from error
    except ValidationError as error:
        faults = "\n".join(f"  - {_fault(details)}" for details in error.errors(include_url=False))
        hint = f"see {SHIPPED} for what may stand there"
        raise QueriesError(f"the queries make no sense:\n{faults}", where=str(path), hint=hint) from error


def merged(files: list[File]) -> Rules:
    """Later files go before earlier ones, word by word and query by query; a word with 0 points is switched off."""
    everywhere = _last([file.categories for file in files])
    queries = {query.name: query for file in files for query in file.query}
    scores = [file.score for file in files]

    def points(tables: list[dict[str, float]]) -> dict[str, float]:
        return {word: value for table in tables for word, value in table.items() if _last_of(tables, word)}

    return Rules(
        queries={name: _restricted(query.search, query.categories or everywhere) for name, query in queries.items()},
        comments={name: query.comment for name, query in queries.items()},
        threshold=_last([score.threshold for score in scores]),
        most=_last([score.most for score in scores]),
        title=_last([score.title for score in scores]),
        as_written=frozenset(word for score in scores for word in score.as_written),
        core=points([score.core for score in scores]),
        support=points([score.support for score in scores]),
        against=points([score.against for score in scores]),
        categories=points([score.categories for score in scores]),
        leads={str(word): points([file.leads.get(word, {}) for file in files]) for word in Category},
    )


def _restricted(search: str, categories: tuple[str, ...]) -> str:
    return f"({' OR '.join(f'cat:{category}' for category in categories)}) AND ({search})"


def _last(values: list[Any]) -> Any:
    return next(value for value in reversed(values) if value is not None)


def _last_of(tables: list[dict[str, float]], word: str) -> float:
    return next(table[word] for table in reversed(tables) if word in table)


def _fault(details: Any) -> str:
    key = ".".join(str(part) for part in details["loc"] if part != "[key]")
    shown = repr(details["input"])
    message = str(details["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}" + ("" if details["type"] == "missing" else f"; found {shown[:80]}")
