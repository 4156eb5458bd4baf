"""Answers of OpenAlex and Crossref: untrusted JSON, of which only the expected is taken and the rest ignored."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from catalog.words import sendable

LONGEST = 500
"""Letters of a fact; longer ones are not taken."""
MOST = 50
"""Items of a list that are looked at."""
_DOI = re.compile(r"(?:https?://(?:dx\.)?doi\.org/)?(10\.\d{4,9}/[^\s\"<>]+)", re.IGNORECASE)
_URL = re.compile(r"https?://[^\s<>\"]+")


class Unusable(ValueError):
    """An answer that is not what was asked for."""


def _words(value: Any) -> str | None:
    """Text on one line; None for anything else."""
    if not isinstance(value, str):
        return None
    text = " ".join(sendable(value).split())
    return text if 0 < len(text) <= LONGEST else None


def _year(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 1900 <= value <= 2100 else None


def _doi(value: Any) -> str | None:
    match = _DOI.fullmatch(_words(value) or "")
    return match[1].lower() if match else None


def _url(value: Any) -> str | None:
    text = _words(value)
    return text if text and _URL.fullmatch(text) else None


def _object(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value[:MOST] if isinstance(each, dict)] if isinstance(value, list) else []


def _texts(value: Any) -> list[str]:
    texts = value[:MOST] if isinstance(value, list) else [value]
    return [text for text in map(_words, texts) if text]


def _first_year(value: Any) -> int | None:
    """The year of Crossref's date: {"date-parts": [[2021, 6, 17]]}."""
    try:
        return _year(value["date-parts"][0][0])
    except (TypeError, KeyError, IndexError):
        return None


Words = Annotated[str | None, BeforeValidator(_words)]
Texts = Annotated[list[str], BeforeValidator(_texts)]
Year = Annotated[int | None, BeforeValidator(_year)]
Doi = Annotated[str | None, BeforeValidator(_doi)]
Url = Annotated[str | None, BeforeValidator(_url)]


class Part(BaseModel):
    """A piece of an answer."""

    model_config = ConfigDict(extra="ignore")


class OpenAlexSource(Part):
    """A journal, conference or repository."""

    display_name: Words = None
    type: Words = None


class OpenAlexLocation(Part):
    """A place where a work can be read."""

    landing_page_url: Url = None
    source: Annotated[OpenAlexSource | None, BeforeValidator(_object)] = None


class OpenAlexWork(Part):
    """A work of OpenAlex."""

    id: Words = None
    doi: Doi = None
    title: Words = None
    publication_year: Year = None
    type: Words = None
    primary_location: Annotated[OpenAlexLocation | None, BeforeValidator(_object)] = None
    locations: Annotated[list[OpenAlexLocation], BeforeValidator(_objects)] = []


class CrossrefAuthor(Part):
    """An author; organizations have no family name."""

    family: Words = None


class CrossrefWork(Part):
    """A work of Crossref."""

    title: Texts = []
    venues: Texts = Field([], alias="container-title")
    doi: Doi = Field(None, alias="DOI")
    url: Url = Field(None, alias="URL")
    year: Annotated[int | None, BeforeValidator(_first_year)] = Field(None, alias="issued")
    author: Annotated[list[CrossrefAuthor], BeforeValidator(_objects)] = []
    type: Words = None


def openalex_work(body: bytes) -> OpenAlexWork:
    """The work in an answer; Unusable where there is none."""
    return OpenAlexWork.model_validate(_parsed(body))


def crossref_works(body: bytes) -> list[CrossrefWork]:
    """The work, or the works found, in an answer; Unusable where its form is another."""
    message = _parsed(body).get("message")
    if not isinstance(message, dict):
        raise Unusable("an answer without a message")
    items = _objects(message["items"]) if "items" in message else [message]
    return [CrossrefWork.model_validate(item) for item in items]


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unusable("an answer that is not JSON") from error
    if not isinstance(found, dict):
        raise Unusable("an answer that is no object")
    return found
