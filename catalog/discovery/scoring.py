"""How much a paper looks like one on parameter-efficient tuning, with the words that say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from catalog.discovery.phrases import Phrases, Presence, Tokens, tokens
from catalog.discovery.queries import Rules

Where = Literal["title", "abstract", "category"]


@dataclass(frozen=True)
class Reason:
    """A word that counts for a paper or against it, where it stands, and how much it counts."""

    word: str
    where: Where
    points: float


@dataclass(frozen=True)
class Score:
    """The sum of the reasons, from 0 to the most there is."""

    points: float
    reasons: tuple[Reason, ...] = ()


class Scorer:
    """Scores papers by the rules."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._points = {**rules.support, **rules.against, **rules.core}
        self._phrases = Phrases(self._points, rules.as_written)
        self._core = Presence(rules.core)

    def score(self, title: str, abstract: str, categories: Sequence[str] = ()) -> Score:
        """The score of a paper; nothing without a word that PEFT calls itself or its methods by."""
        if not self._core.possible(f"{title}\n{abstract}"):
            return Score(0.0)
        return self.score_of(tokens(title), tokens(abstract), categories)

    def score_of(self, title: Tokens, abstract: Tokens, categories: Sequence[str] = ()) -> Score:
        """The same for texts whose words are known."""
        in_title, in_abstract = self._phrases.counts(title), self._phrases.counts(abstract)
        if self.rules.core.keys().isdisjoint([*in_title, *in_abstract]):
            return Score(0.0)
        reasons = [*self._worded(in_title, in_abstract), *self._classified(categories)]
        reasons.sort(key=lambda reason: (-abs(reason.points), reason.word))
        total = sum(reason.points for reason in reasons)
        return Score(round(min(max(total, 0.0), self.rules.most), 1), tuple(reasons))

    def _worded(self, title: Mapping[str, int], abstract: Mapping[str, int]) -> Iterator[Reason]:
        for word in title:
            yield Reason(word, "title", self._points[word] * self.rules.title)
        for word in abstract.keys() - title.keys():
            yield Reason(word, "abstract", self._points[word])

    def _classified(self, categories: Sequence[str]) -> Iterator[Reason]:
        """The best category that speaks for the paper and the worst against it: one in many is not counted for each."""
        known = self.rules.categories
        points = {name: known[rule] for name in categories if (rule := _rule(name, known))}
        best = max(points, key=lambda name: points[name], default=None)
        worst = min(points, key=lambda name: points[name], default=None)
        if best is not None and points[best] > 0:
            yield Reason(best, "category", points[best])
        if worst is not None and points[worst] < 0:
            yield Reason(worst, "category", points[worst])


def _rule(category: str, known: Mapping[str, float]) -> str | None:
    """The key that speaks of a category: itself, else its archive."""
    archive = category.split(".", 1)[0]
    return category if category in known else archive if archive in known else None
