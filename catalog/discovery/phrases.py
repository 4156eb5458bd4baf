"""Words and phrases found in texts, whole words only, in time that grows with the length of the text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

_TOKEN = re.compile(r"[^\W_]+")
_JOINED = re.compile(r"\b(fine|pre)(?=tun|train)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The words of a text in order, as written and in lower case; without a plural's s."""

    written: list[str]
    lower: list[str]


def tokens(text: str) -> Tokens:
    """The words of a text; `finetuning` and `pretrained` are two each, as `fine-tuning` and `pre-trained` are."""
    written = [word[:-1] if word[-1] == "s" and len(word) > 3 else word for word in _TOKEN.findall(apart(text))]
    return Tokens(written, [word.lower() for word in written])


def apart(text: str) -> str:
    """The text with `fine` and `pre` apart from the tuning or training that they are joined to."""
    return _JOINED.sub(r"\1 ", text)


class Phrases:
    """A set of phrases to look for. ``as_written`` are those whose case matters; ``*`` stands for any beginning or
    ending of a phrase of one word."""

    def __init__(self, phrases: Iterable[str], as_written: Collection[str] = ()) -> None:
        self._any: dict[str, list[tuple[list[str], str]]] = defaultdict(list)
        self._exact: dict[str, list[tuple[list[str], str]]] = defaultdict(list)
        self._wild: list[tuple[bool, str, str, str]] = []
        for phrase in phrases:
            self._add(phrase, phrase in as_written)

    def _add(self, phrase: str, exact: bool) -> None:
        words = tokens(phrase).written if exact else tokens(phrase).lower
        if "*" in phrase:
            stem = words[0]
            self._wild.append((exact, "" if phrase[0] == "*" else stem, "" if phrase[-1] == "*" else stem, phrase))
        else:
            (self._exact if exact else self._any)[words[0]].append((words, phrase))

    def counts(self, text: Tokens) -> dict[str, int]:
        """Phrase -> how often it occurs; of two that overlap, the longer one, or the one that begins first."""
        found: dict[str, int] = {}
        place, end = 0, len(text.written)
        while place < end:
            length, phrase = self._at(text, place)
            if phrase is not None:
                found[phrase] = found.get(phrase, 0) + 1
            place += length
        return found

    def _at(self, text: Tokens, place: int) -> tuple[int, str | None]:
        """The longest phrase that begins at this word, with its length; one word and None for nothing."""
        best: tuple[int, str | None] = (1, None)
        for words, there in ((text.written, self._exact), (text.lower, self._any)):
            for phrase, name in there.get(words[place], ()):
                size = len(phrase)
                if (best[1] is None or size > best[0]) and words[place : place + size] == phrase:
                    best = size, name
        if best[1] is None and self._wild:
            return 1, self._wildly(text.written[place], text.lower[place])
        return best

    def _wildly(self, written: str, lower: str) -> str | None:
        for exact, start, end, phrase in self._wild:
            word = written if exact else lower
            if len(word) > len(start or end) and word.startswith(start) and word.endswith(end):
                return phrase
        return None


class Presence:
    """A quick test whether a text can hold one of some phrases at all; it may say yes in vain, never no."""

    def __init__(self, phrases: Iterable[str]) -> None:
        words = {phrase: tokens(phrase).lower for phrase in phrases}
        self._parts = tuple({heads[0] for phrase, heads in words.items() if "*" in phrase})
        whole = sorted(_spaced(heads) for phrase, heads in words.items() if "*" not in phrase)
        self._whole = re.compile(rf"(?<![^\W_])(?:{'|'.join(whole)})(?![^\W_])") if whole else None

    def possible(self, text: str) -> bool:
        """Whether letters occur that could be one of the phrases."""
        lower = apart(text).lower()
        if any(part in lower for part in self._parts):
            return True
        return self._whole is not None and self._whole.search(lower) is not None


def _spaced(words: list[str]) -> str:
    return r"[\W_]+".join(f"{re.escape(word)}s?" for word in words)
