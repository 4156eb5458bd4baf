"""The finder: four questions, and for every combination of answers a page that is rendered beforehand.

Every answer is a link to the page on which it is given, so that the finder needs no script.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from catalog.pages.claims import VERIFIED, parameters, reverses, state_of, step_ratio
from catalog.pages.data import SiteData
from catalog.pages.text import number, ratio, share
from catalog.taxonomy import Category, Modality, Strength

if TYPE_CHECKING:
    from catalog.query import Paper

SHORT = 5
"""Methods shown with reasons; the others follow as links."""

_TRAINED = {
    "weights": ("the weights", (Category.SELECTIVE, Category.REPARAMETERIZED)),
    "modules": ("inserted modules", (Category.ADDITIVE, Category.HYBRID)),
    "inputs": ("the inputs", (Category.PROMPT,)),
}
MODELS = {
    str(Modality.LLM): "language",
    str(Modality.VFM): "vision",
    str(Modality.VLM): "vision-language",
    str(Modality.VGM): "image generation",
    str(Modality.AUDIO): "speech",
    str(Modality.MFM): "multimodal",
}


@dataclass(frozen=True)
class Answers:
    """The answers given so far; an empty one means that it does not matter."""

    trained: str = ""
    merge: str = ""
    reverse: str = ""
    model: str = ""

    @property
    def path(self) -> str:
        """Address of the page of these answers, relative to the site's root."""
        words = [word for word in (self.trained, self.merge, self.reverse, self.model) if word]
        return f"find/{'-'.join(words)}/" if words else ""

    @property
    def words(self) -> str:
        """The answers as the title of a page."""
        parts = []
        if self.trained:
            parts.append(f"training {_TRAINED[self.trained][0]}")
        if self.merge:
            parts.append("merging into the model")
        if self.reverse:
            parts.append("reversing in sign")
        if self.model:
            parts.append(f"for {MODELS[self.model]} models")
        return ", ".join(parts) or "any method"

    @property
    def query(self) -> str:
        """The same answers as filters of the table of all entries."""
        claims = [word for word in ("merge" if self.merge else "", "reverse" if self.reverse else "") if word]
        pairs = {"trained": self.trained, "claims": ",".join(claims), "model": self.model}
        return urlencode({key: value for key, value in pairs.items() if value})

    def allow(self, paper: Paper) -> bool:
        """Whether a method fits."""
        back = paper.reversibility
        return (
            (not self.trained or paper.category in _TRAINED[self.trained][1])
            and (not self.merge or (back is not None and back.mergeable))
            and (not self.reverse or reverses(paper))
            and (not self.model or self.model in paper.modality)
        )


@dataclass(frozen=True)
class Option:
    """One possible answer to a question: a link to the page on which it is given."""

    label: str
    path: str
    chosen: bool
    count: int


@dataclass(frozen=True)
class Question:
    """A question of the finder."""

    label: str
    help: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Suggestion:
    """A method on the short list, and why it is there."""

    paper: Paper
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """A page of the finder."""

    answers: Answers
    questions: tuple[Question, ...]
    short: tuple[Suggestion, ...]
    others: tuple[Paper, ...]

    @property
    def count(self) -> int:
        """How many methods fit."""
        return len(self.short) + len(self.others)


def trained_part(category: str) -> str:
    """What methods of a category train, as a word of the finder; empty where nothing is trained."""
    return next((key for key, (_, categories) in _TRAINED.items() if category in categories), "")


def combinations() -> Iterator[Answers]:
    """Every combination of answers, the one without any first."""
    for words in product(("", *_TRAINED), ("", "merge"), ("", "reverse"), ("", *MODELS)):
        yield Answers(*words)


def answer(data: SiteData, answers: Answers) -> Answer:
    """The page for these answers."""
    fitting = sorted((paper for paper in data.methods if answers.allow(paper)), key=lambda paper: _rank(data, paper))
    short = tuple(Suggestion(paper, reasons(data, paper, answers)) for paper in fitting[:SHORT])
    return Answer(answers, tuple(_questions(data, answers)), short, tuple(fitting[SHORT:]))


def _questions(data: SiteData, answers: Answers) -> Iterator[Question]:
    adapted = {str(word) for paper in data.methods for word in paper.modality} | {answers.model}

    def option(label: str, **change: str) -> Option:
        changed = replace(answers, **change)
        count = sum(map(changed.allow, data.methods))
        return Option(label, changed.path, changed == answers, count)

    yield Question(
        "What may be trained?",
        "Modules and prompts stay in the model's way; changed weights can often be folded in.",
        (option("anything", trained=""), *(option(label, trained=key) for key, (label, _) in _TRAINED.items())),
    )
    yield Question(
        "Must it merge?",
        "Folded into the base weights, a method costs nothing at inference.",
        (option("either way", merge=""), option("must merge", merge="merge")),
    )
    yield Question(
        "Must it reverse in sign?",
        "A coefficient of -1 gives exactly the opposite of what was learned.",
        (option("either way", reverse=""), option("must reverse", reverse="reverse")),
    )
    yield Question(
        "Which kind of model?",
        "What the paper adapts; many methods carry over.",
        (option("any", model=""), *(option(label, model=key) for key, label in MODELS.items() if key in adapted)),
    )


def _rank(data: SiteData, paper: Paper) -> tuple[int, int, int, int, str]:
    """Measured claims first, then an implementation, then use: libraries, methods that build on it, lists."""
    verified = sum(str(row.status) == VERIFIED for row in paper.evidence)
    use = 2 * len(paper.libraries) + len(data.children(paper)) + len({row.list_slug for row in paper.listed_in})
    return (-bool(verified), -bool(paper.implementation), -use, paper.year, paper.slug)


def reasons(data: SiteData, paper: Paper, answers: Answers) -> tuple[str, ...]:
    """Why a method is on the short list, the answers that were given first."""
    found = [*_asked(paper, answers), *_cost(paper), *_use(data, paper)]
    return tuple(found[:4])


def _asked(paper: Paper, answers: Answers) -> Iterator[str]:
    if answers.merge:
        yield _measured(paper, "mergeable", "folds into the base weights")
    if answers.reverse and paper.reversibility:
        linear = paper.reversibility.strength == Strength.LINEAR
        word = (
            "strength is linear, so -1 is the exact opposite" if linear else "a coefficient of -1 is the exact opposite"
        )
        yield _measured(paper, "strength", word)
    if paper.claims.identity_at_init:
        yield _measured(paper, "identity-at-init", "starts as the base model")


def _measured(paper: Paper, claim: str, words: str) -> str:
    return f"{words} (measured)" if state_of(paper, claim) == VERIFIED else f"{words} (claimed)"


def _cost(paper: Paper) -> Iterator[str]:
    counted, step = parameters(paper), step_ratio(paper)
    if counted:
        yield f"trains {number(counted.trained)} parameters at {counted.model}, {share(counted.share)}"
    if step is not None and paper.slug != "lora":
        yield f"a training step takes {ratio(step)} LoRA's time"


def _use(data: SiteData, paper: Paper) -> Iterator[str]:
    if paper.libraries:
        yield f"ships in {', '.join(sorted(paper.libraries))}"
    children = len(data.children(paper))
    if children:
        yield f"{children} {'method builds' if children == 1 else 'methods build'} on it"
    if paper.code:
        yield "has official code"
    if paper.subcategory:
        words = paper.subcategory.definition.rstrip(".")
        yield words[:1].lower() + words[1:]
