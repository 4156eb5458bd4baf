"""Which paper an item means, and by what that is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import pytest
from rapidfuzz import fuzz

from catalog.entry import Entry
from catalog.lists import addresses
from catalog.lists.item import Item, Link, Role
from catalog.lists.matching import SAME_TITLE, Index, Match, folded, same_person

Find = Callable[..., Match | None]


@pytest.fixture(scope="module")
def index(entries: tuple[Entry, ...]) -> Index:
    return Index(entries)


@pytest.fixture
def find(index: Index) -> Find:
    def match(title: str, *urls: str, authors: Sequence[str] = ()) -> Match | None:
        return index.match(Item(1, title, links=tuple(Link(url, 1) for url in urls), authors=tuple(authors)))

    return match


LORA_TITLE = "LoRA: Low-Rank Adaptation of Large Language Models"


@pytest.mark.parametrize(
    ("title", "url", "slug", "ways"),
    [
        (LORA_TITLE, "", "lora", ("title",)),
        ("lora - LOW RANK adaptation of large language models!", "", "lora", ("title",)),
        (LORA_TITLE, "https://arxiv.org/pdf/2106.09685v2", "lora", ("arXiv id", "title")),
        (LORA_TITLE, "https://openreview.net/pdf?id=nZeVKeeFYf9", "lora", ("address", "title")),
        ("LoRA", "", "lora", ("name",)),
        ("lora", "", "lora", ("name",)),
        ("LoraConfig", "", "lora", ("name",)),
        ("(IA)^3", "", "ia3", ("name",)),
        ("LoRA: Low-Rank Adaption of Large Langauge Models", "", "lora", ("similar title",)),
        ("LoRA: Low-Rank Adaptation of Large", "", "lora", ("beginning of the title",)),
        ("Some words of our own", "https://arxiv.org/abs/2106.09685", "lora", ("arXiv id",)),
        ("Some words of our own", "https://doi.org/10.48550/arXiv.2106.09685", "lora", ("arXiv id",)),
        ("Some words of our own", "https://huggingface.co/papers/2106.09685", "lora", ("arXiv id",)),
        ("Some words of our own", "https://openreview.net/forum?id=nZeVKeeFYf9&noteId=x", "lora", ("address",)),
        ("Some words of our own", "https://github.com/microsoft/LoRA.git", "lora", ("address",)),
        ("Some words of our own", "https://aclanthology.org/2021.emnlp-main.243.pdf", "prompt-tuning", ("DOI",)),
        ("Some words of our own", "https://doi.org/10.18653/V1/2021.emnlp-main.243", "prompt-tuning", ("DOI",)),
    ],
)
def test_each_way(find: Find, title: str, url: str, slug: str, ways: tuple[str, ...]) -> None:
    match = find(title, *([url] if url else []))
    assert match
    assert (match.paper.slug, match.ways) == (slug, ways)


def test_a_title_whose_short_name_and_authors_are_known(find: Find, entry: Callable[[str], Entry]) -> None:
    authors = entry("lora").authors
    match = find("LoRA: an early title nobody uses now", authors=authors[:3])
    assert match
    assert (match.paper.slug, match.ways) == ("lora", ("short name",))
    assert find("LoRA: an early title nobody uses now", authors=["Ann Lee", "Bo Chan"]) is None


@pytest.mark.parametrize(
    ("title", "url"),
    [
        ("Some words of our own", ""),
        ("", ""),
        ("!!!", ""),
        ("Some words of our own", "https://arxiv.org/abs/2401.99999"),
        ("PEFT, a library", "https://github.com/huggingface/peft"),
        ("LoRA: Low-Rank", ""),
    ],
)
def test_what_the_catalog_does_not_have_is_new(find: Find, title: str, url: str) -> None:
    assert find(title, *([url] if url else [])) is None


def test_a_title_beats_a_link_to_another_paper(find: Find) -> None:
    match = find(LORA_TITLE, "https://arxiv.org/abs/2305.14314")
    assert match
    assert (match.paper.slug, match.ways) == ("lora", ("title",))
    assert [(link.url, other.slug) for link, other in match.linked] == [("https://arxiv.org/abs/2305.14314", "qlora")]


def test_the_link_tells_papers_of_one_name_apart(entry: Callable[[str], Entry]) -> None:
    one = entry("lora")
    two = one.model_copy(update={"slug": "lora-too", "arxiv": "2401.00001", "url": None, "code": None})
    item = Item(1, one.title, links=(Link("https://arxiv.org/abs/2401.00001", 1),))
    match = Index([one, two]).match(item)
    assert match
    assert (match.paper.slug, match.ways) == ("lora-too", ("arXiv id", "title"))


def test_papers_of_one_arxiv_id_are_told_apart_by_name(find: Find) -> None:
    """MiSS is what Bone became under the same number."""
    for name in ("MiSS", "Bone"):
        match = find(name, "https://arxiv.org/abs/2409.15371")
        assert match
        assert (match.paper.slug, match.ways, match.linked) == (name.lower(), ("arXiv id", "name"), ())


def test_code_links_do_not_say_which_paper_is_meant(index: Index) -> None:
    item = Item(1, "Some words of our own", links=(Link("https://github.com/microsoft/LoRA", 1, Role.CODE),))
    assert index.match(item) is None


def test_no_two_titles_of_the_catalog_are_taken_for_one(entries: tuple[Entry, ...]) -> None:
    titles = {folded(entry.title) for entry in entries}
    assert len(titles) == len(entries)
    nearest = max(fuzz.ratio(one, other) for one, other in combinations(titles, 2))
    assert nearest < SAME_TITLE


def test_a_title_with_one_wrong_letter_in_twenty_is_recognized(entries: tuple[Entry, ...], index: Index) -> None:
    for entry in entries:
        letters = list(entry.title)
        letters[10::20] = "q" * len(letters[10::20])
        match = index.match(Item(1, "".join(letters)))
        assert match, entry.title
        assert match.paper.slug == entry.slug


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Andreas Rueckle", "Andreas Rücklé", True),
        ("Hinrich Schutze", "Hinrich Schütze", True),
        ("Pfeiffer Jonas", "Jonas Pfeiffer", True),
        ("E. Hu", "Edward Hu", True),
        ("Edward Hu", "Edward J. Hu", True),
        ("DONGXU LI", "Dongxu Li", True),
        ("Elad Ben-Zaken", "Elad Ben Zaken", True),
        ("Jie Zhou", "Jie Fu", False),
        ("Peng Li", "Juanzi Li", False),
        ("A. Hu", "Edward Hu", False),
        ("", "Edward Hu", False),
    ],
)
def test_spellings_of_one_author(one: str, other: str, same: bool) -> None:
    assert same_person(one, other) is same
    assert same_person(other, one) is same


# Addresses.


@pytest.mark.parametrize(
    ("url", "arxiv"),
    [
        ("https://arxiv.org/abs/2106.09685", "2106.09685"),
        ("http://www.arxiv.org/pdf/2106.09685v2.pdf", "2106.09685"),
        ("https://web3.arxiv.org/pdf/2106.09685", "2106.09685"),
        ("https://arxiv.org/html/2401.12200v2", "2401.12200"),
        ("https://ar5iv.labs.arxiv.org/html/2106.09685", "2106.09685"),
        ("https://doi.org/10.48550/arXiv.2106.09685", "2106.09685"),
        ("https://arxiv.org/abs/cs/0112017", "cs/0112017"),
        ("https://arxiv.org/list/cs.CL/recent", None),
        ("https://example.org/2106.09685", None),
    ],
)
def test_arxiv_ids(url: str, arxiv: str | None) -> None:
    assert addresses.arxiv_id(url) == arxiv


@pytest.mark.parametrize(
    ("url", "doi"),
    [
        ("https://doi.org/10.1109/CVPR52733.2024.01306", "10.1109/cvpr52733.2024.01306"),
        ("https://dl.acm.org/doi/abs/10.1145/3641519.3657407", "10.1145/3641519.3657407"),
        ("https://aclanthology.org/2021.emnlp-main.243/", "10.18653/v1/2021.emnlp-main.243"),
        ("https://aclanthology.org/D19-1165.pdf", "10.18653/v1/d19-1165"),
        ("https://aclweb.org/anthology/D19-1165", "10.18653/v1/d19-1165"),
        ("https://doi.org/10.1000%2Fabc?x=1#y", "10.1000/abc"),
        ("https://example.org/10.1000/abc", None),
    ],
)
def test_dois(url: str, doi: str | None) -> None:
    assert addresses.doi(url) == doi


def test_spellings_of_one_address_are_equal() -> None:
    spellings = ("https://www.example.org/a%20b/", "http://example.org/a b", "https://EXAMPLE.org/A%20B.pdf")
    assert len(set(map(addresses.canonical, spellings))) == 1
    assert addresses.canonical("https://example.org/a") != addresses.canonical("https://example.org/b")


@pytest.mark.parametrize("url", ["http://[", "https://[::1", "", "::", "http://a\ud800.org/"])
def test_broken_addresses_are_harmless(url: str) -> None:
    addresses.canonical(url)
    assert addresses.arxiv_id(url) is None
    assert addresses.doi(url) is None
    assert not addresses.is_on(url, addresses.CLOSED)
    addresses.is_code(url)
