"""The category of the catalog that a paper's words lead to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from catalog.discovery.phrases import Phrases, Tokens
from catalog.discovery.queries import Rules

MOST_COUNTED = 3
"""Times that a word of an abstract counts: more say that the abstract is long."""


@dataclass(frozen=True)
class Suggestion:
    """A category, and the words that lead to it with what they count; none of both where no word leads anywhere."""

    category: str = ""
    words: tuple[tuple[str, float], ...] = ()


class Suggester:
    """Suggests categories by the rules."""

    def __init__(self, rules: Rules) -> None:
        self._title = rules.title
        self._leads: dict[str, dict[str, float]] = defaultdict(dict)
        for category, words in rules.leads.items():
            for word, weight in words.items():
                self._leads[word][category] = weight
        self._phrases = Phrases(self._leads, rules.as_written)

    def suggest(self, title: Tokens, abstract: Tokens) -> Suggestion:
        """The category whose words count most; of equals, the first in the vocabulary's order."""
        times = self._times(self._phrases.counts(title), self._phrases.counts(abstract))
        sums: dict[str, dict[str, float]] = defaultdict(dict)
        for word, number in times.items():
            for category, weight in self._leads[word].items():
                sums[category][word] = round(weight * number, 1)
        best = max(sums, key=lambda category: sum(sums[category].values()), default="")
        words = sorted(sums.get(best, {}).items(), key=lambda item: (-item[1], item[0]))
        return Suggestion(best, tuple(words))

    def _times(self, title: Mapping[str, int], abstract: Mapping[str, int]) -> dict[str, float]:
        times = {word: self._title for word in title}
        for word, number in abstract.items():
            times[word] = times.get(word, 0.0) + min(number, MOST_COUNTED)
        return times
