"""Lists of ids, asked in few requests, so that no paper is lost to a bad id, a short answer or a long address."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import arxiv

from catalog.arxiv_sync.feed import Feed, RefusedRequest, read_feed
from catalog.arxiv_sync.record import Record, bare_id
from catalog.arxiv_sync.search import parameters
from catalog.arxiv_sync.transport import Again, Answer, TooLong, Transport
from catalog.errors import Unreachable

SIZE = 200
"""Ids a request; some hundred fit into an address."""
FEW = 5
"""Ids of which all may be unknown, or refused one after the other; with more, it is the answers that are wrong."""


@dataclass
class Batch:
    """What became of some ids: the records, and for the others the reason; ``withheld`` are counted and not sent."""

    records: list[Record] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    malformed: dict[str, str] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)


def by_ids(transport: Transport, ids: Sequence[str], size: int = SIZE) -> Iterator[Batch]:
    """Every id is in exactly one batch. Unreachable when an answer does not come; earlier batches have been given."""
    wanted = list(dict.fromkeys(ids))
    odd = [each for each in wanted if bare_id(each) is None]
    if odd:
        yield Batch(malformed=dict.fromkeys(odd, "not the form of an arXiv id; not asked"))
    good = [each for each in wanted if bare_id(each) is not None]
    asking = _Asking(transport)
    for start in range(0, len(good), size):
        yield from asking.batch(good[start : start + size])


class _Asking:
    """Asks for batches, and for parts of those that are refused as a whole."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._refused = 0

    def batch(self, ids: list[str]) -> Iterator[Batch]:
        """What became of these ids."""
        try:
            feed = self._ask(ids, may_be_empty=len(ids) <= FEW)
        except (TooLong, RefusedRequest) as refusal:
            reason = str(refusal) or "the request is too long"
            yield from self._refusal(ids[0], reason) if len(ids) == 1 else self._parts(ids, reason)
        else:
            self._refused = 0
            yield from self._completed(ids, feed)

    def _completed(self, ids: list[str], feed: Feed) -> Iterator[Batch]:
        """The records that arrived. Those that are missing are asked once more: an answer may have been short."""
        found = {record.arxiv: record for record in feed.records}
        yield Batch([found[each] for each in ids if each in found], unusable=list(feed.unusable))
        missing = [each for each in ids if each not in found and not any(each in why for why in feed.unusable)]
        if not missing:
            return
        try:
            again = self._ask(missing, may_be_empty=True)
        except RefusedRequest as refusal:
            yield Batch(malformed=dict.fromkeys(missing, str(refusal)))
            return
        if again.records:
            yield from self._completed(missing, again)
        else:
            unknown, withheld = ([], missing) if again.total else (missing, [])
            yield Batch(unknown=unknown, withheld=withheld, unusable=list(again.unusable))

    def _parts(self, ids: list[str], reason: str) -> Iterator[Batch]:
        """The id that the refusal names, and the others; two halves when it names none."""
        named = [each for each in ids if each in reason.split()]
        middle = len(ids) // 2
        parts = (
            (named, [each for each in ids if each not in named]) if len(named) == 1 else (ids[:middle], ids[middle:])
        )
        for part in parts:
            yield from self.batch(part)

    def _refusal(self, wanted: str, reason: str) -> Iterator[Batch]:
        self._refused += 1
        if self._refused > FEW:
            raise Unreachable(f"one id after the other is refused: {reason}", hint="try again later")
        yield Batch(malformed={wanted: reason})

    def _ask(self, ids: list[str], *, may_be_empty: bool) -> Feed:
        def read(answer: Answer) -> Feed:
            feed = read_feed(answer)
            if not (feed.records or feed.unusable or may_be_empty):
                raise Again(f"an empty answer about {len(ids)} papers")
            return feed

        query = parameters(arxiv.Search(id_list=ids), start=0, size=len(ids))
        return self._transport.ask(self._transport.settings.query, query, read)
