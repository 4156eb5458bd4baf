"""What each layout's writer makes of a paper."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from markdown_it import MarkdownIt

from catalog.entry import Entry
from catalog.lists import Style, write_list
from catalog.lists.writers.common import opening, short_venue
from catalog.taxonomy import Category

Get = Callable[[str], Entry]


def lines(papers: list[Entry], style: Style) -> list[str]:
    return write_list(papers, style).splitlines()


def test_awesome(entry: Get) -> None:
    written = lines([entry("lora"), entry("bitfit")], Style.AWESOME)
    assert written[0].startswith("# Awesome ")
    assert written[0].endswith("[![Awesome](https://awesome.re/badge.svg)](https://awesome.re)")
    assert written[written.index("## Contents") + 2 :][:2] == [
        "- [Selective](#selective)",
        "- [Reparameterized](#reparameterized)",
    ]
    assert "### Reparameterized: low rank" in written
    item = next(line for line in written if "2106.09685" in line)
    assert item.startswith(
        "- [LoRA: Low-Rank Adaptation of Large Language Models](https://arxiv.org/abs/2106.09685) - "
    )
    assert item.endswith(". *ICLR 2022*. [Code](https://github.com/microsoft/LoRA).")


def test_badges(entry: Get) -> None:
    written = lines([entry("lora"), entry("autofreeze")], Style.BADGES)
    start = next(n for n, line in enumerate(written) if line.startswith("- LoRA"))
    assert written[start - 2 : start] == ["## 🚀 Reparameterized: low rank", ""]
    paper, venue, code = written[start : start + 3]
    assert paper == ("- LoRA: Low-Rank Adaptation of Large Language Models [[Paper](https://arxiv.org/abs/2106.09685)]")
    assert re.fullmatch(r"  !\[ICLR 2022\]\(https://img\.shields\.io/badge/ICLR%202022-4a4a4a\?style=flat&.*\)", venue)
    assert re.fullmatch(
        r"  \[!\[Code\]\(https://img\.shields\.io/badge/\S+%20Code-2962FF\?\S+\)\]\(https://github.com/microsoft/LoRA\)",
        code,
    )
    assert any("/badge/arXiv-4a4a4a?style=flat&logo=arXiv&logoColor=white" in line for line in written)


def test_numbered(entry: Get) -> None:
    written = lines([entry("lora"), entry("dora"), entry("bitfit")], Style.NUMBERED)
    content = written[written.index("### [Content](#content)") + 2 :]
    assert content[:5] == [
        "<table>",
        "",
        '<tr><td><a href="#selective">1. Selective</a></td></tr>',
        '<tr><td><a href="#reparameterized">2. Reparameterized</a></td></tr>',
        "",
    ]
    start = written.index("### [Reparameterized](#content)")
    assert written[start : start + 11] == [
        "### [Reparameterized](#content)",
        "",
        "#### LLM",
        "",
        "##### Low rank",
        "",
        "1. **LoRA: Low-Rank Adaptation of Large Language Models**. **ICLR'2022**.",
        "",
        f"   *{', '.join(entry('lora').authors)}*",
        "",
        "   [paper](https://arxiv.org/abs/2106.09685) [code](https://github.com/microsoft/LoRA)",
    ]
    assert any(line.startswith("2. **DoRA") for line in written)
    assert any(line.startswith("1. **BitFit") for line in written)


def test_gist(entry: Get) -> None:
    written = lines([entry("lora"), entry("oft"), entry("boft")], Style.GIST)
    assert "Orthogonal: OFT, BOFT" in written
    assert "Linear: LoRA" in written
    start = written.index("### lora (2021)")
    assert written[start + 2 : start + 5] == [
        "- **Adapter**: LoraConfig (LoRA)",
        "- **Paper**: <https://arxiv.org/abs/2106.09685>",
        "- **Year**: 2021 (ICLR 2022)",
    ]
    assert written[start + 5].startswith("- **How it differs**: ")
    assert written[start + 6].startswith("- **Reversibility**: ✅ detachable; can be merged; linear in its strength (")
    assert written[start + 7] == "- **Code**: <https://github.com/microsoft/LoRA>"


def test_gist_names_that_could_be_taken_for_several_give_way_to_the_slug(entry: Get) -> None:
    papers = [entry("oft").model_copy(update={"name": "OFT, the first: one"}), entry("boft")]
    assert "Orthogonal: oft, BOFT" in lines(papers, Style.GIST)


def test_gist_marks_what_suits_steering(entry: Get) -> None:
    marks = {
        slug: next(mark for mark in "✅⚠❌" if f"**: {mark}" in write_list([entry(slug)], Style.GIST))
        for slug in ("lora", "oft", "autofreeze", "hra")
    }
    assert marks == {"lora": "✅", "oft": "⚠", "autofreeze": "⚠", "hra": "❌"}


@pytest.mark.parametrize("style", Style)
def test_every_list_says_how_it_is_made(entry: Get, style: Style) -> None:
    assert f"<!-- Written by peft-catalog list write --style {style};" in write_list([entry("lora")], style)


@pytest.mark.parametrize("style", Style)
def test_every_category_is_a_section_in_the_order_of_the_vocabulary(entries: tuple[Entry, ...], style: Style) -> None:
    text = write_list(entries, style)
    names = ["Related work" if category is Category.CONTEXT else str(category).capitalize() for category in Category]
    places = [re.search(rf"^##.*\b{name}\b", text, re.MULTILINE) for name in names]
    starts = [place.start() for place in places if place]
    assert len(starts) == len(names)
    assert starts == sorted(starts)


@pytest.mark.parametrize("style", Style)
def test_the_order_of_the_papers_does_not_matter(entries: tuple[Entry, ...], style: Style) -> None:
    assert write_list(reversed(entries), style) == write_list(entries, style)


@pytest.mark.parametrize("style", Style)
def test_no_papers_make_an_empty_list(style: Style) -> None:
    assert "Written by peft-catalog" in write_list([], style)


def test_papers_of_one_arxiv_id_get_different_links(entry: Get) -> None:
    written = write_list([entry("miss"), entry("bone")], Style.AWESOME)
    targets = re.findall(r"^- \[[^]]+\]\((https\S+)\)", written, re.MULTILINE)
    assert len(set(targets)) == 2


def test_no_address_of_another_kind_becomes_a_link(entry: Get) -> None:
    bad = entry("lora").model_copy(
        update={"arxiv": None, "doi": None, "url": "javascript:alert(1)", "code": "data:text/html,x"}
    )
    for style in Style:
        tokens = MarkdownIt("commonmark").parse(write_list([bad], style))
        hrefs = [child.attrs["href"] for token in tokens for child in token.children or [] if "href" in child.attrs]
        assert all(str(href).startswith(("#", "https://awesome.re")) for href in hrefs), style


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (
            "A first sentence that is long enough to say something. A second one.",
            "A first sentence that is long enough to say something.",
        ),
        ("Two stages. First one adapter a task is trained.", "Two stages. First one adapter a task is trained."),
        ("Short", "Short."),
        (
            "Is it a question? (Yes.) It is, and words follow, many words, more than enough.",
            "Is it a question? (Yes.) It is, and words follow, many words, more than enough.",
        ),
        (
            "Ends with a comma, as summaries should not, of course,",
            "Ends with a comma, as summaries should not, of course.",
        ),
    ],
)
def test_the_opening_of_a_summary(summary: str, expected: str) -> None:
    assert opening(summary) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"venue": "Findings of ACL 2022, pp. 1-9"}, "Findings of ACL 2022"),
        ({"venue": "ICLR 2022 (spotlight)"}, "ICLR 2022"),
        ({"venue": "Some Venue"}, "Some Venue 2021"),
        ({"venue": None}, "arXiv 2021"),
        ({"venue": None, "arxiv": None}, "2021"),
    ],
)
def test_short_venues(entry: Get, change: dict[str, str | None], expected: str) -> None:
    assert short_venue(entry("lora").model_copy(update=change)) == expected
