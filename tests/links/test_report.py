"""Which addresses entries name, and what is proposed for those that died."""

from __future__ import annotations

import pytest

from catalog.entry import load_entries, load_entry
from catalog.links.addresses import Use, used
from catalog.links.advice import advice
from catalog.links.outcome import State
from catalog.locations import shipped_root
from tests.links.conftest import LIST, Write

PWC = "https://paperswithcode.com"


def test_addresses_of_an_entry(entry: Write) -> None:
    path = entry("one", url="https://a.org/x#y", code="https://b.org", doi="10.1000/x<1>#2?3%4", printed=("see c.org",))
    assert used([load_entry(path)]) == {
        "https://a.org/x": [Use("one", "url")],
        "https://doi.org/10.1000/x%3C1%3E%232%3F3%254": [Use("one", "doi")],
        "https://b.org": [Use("one", "code")],
        "see c.org": [Use("one", "listed_in[0].link", LIST)],
    }


def test_every_address_of_the_shipped_entries_is_looked_up_as_it_stands() -> None:
    entries = load_entries(shipped_root())
    addresses = used(entries)
    assert all(entry.url in addresses for entry in entries if entry.url and "#" not in entry.url)
    assert sum(map(len, addresses.values())) > len(addresses) > len(entries)


@pytest.mark.parametrize(
    ("keys", "url", "words"),
    [
        (
            {"arxiv": "2106.09685", "code": "https://c.org"},
            f"{PWC}/paper/x",
            "https://arxiv.org/abs/2106.09685 or https://huggingface.co/papers/2106.09685",
        ),
        ({"url": "https://u.org", "doi": "10.1000/x"}, f"{PWC}/paper/x", "https://u.org"),
        ({"doi": "10.1000/x"}, f"{PWC}/paper/x", "https://doi.org/10.1000/x"),
        ({"arxiv": "2106.09685", "code": "https://c.org"}, f"{PWC}/method/x", "https://c.org"),
        ({}, f"{PWC}/method/x", "remove it"),
        (
            {"arxiv": "2106.09685", "code": f"{PWC}/paper/x"},
            f"{PWC}/paper/x",
            "remove it; https://huggingface.co/papers/2106.09685 may name the code",
        ),
    ],
)
def test_replacements_of_a_closed_site(entry: Write, keys: dict[str, str], url: str, words: str) -> None:
    assert advice(load_entry(entry("one", **keys)), "url", url, State.CLOSED, None) == words


@pytest.mark.parametrize(
    ("url", "leads_to", "words"),
    [
        ("http://a.org/x", "https://a.org/x", "put https://a.org/x in its place"),
        ("http://a.org/x", "https://a.org/", "leads to a front page, https://a.org/: find the page itself"),
        ("http://a.org/", "https://a.org/", "put https://a.org/ in its place"),
    ],
)
def test_a_front_page_is_no_new_address_of_a_page(entry: Write, url: str, leads_to: str, words: str) -> None:
    assert advice(load_entry(entry("one")), "url", url, State.MOVED, leads_to) == words
