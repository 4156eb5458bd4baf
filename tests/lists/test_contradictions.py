"""Each way in which a list contradicts the catalog."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from catalog.lists import Comparison
from catalog.lists.contradictions import Contradiction, Kind

Held = Callable[[str], Comparison]
LORA = "LoRA: Low-Rank Adaptation of Large Language Models"
LORA_AUTHORS = (
    "Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen"
)


def awesome(title: str = LORA, url: str = "https://arxiv.org/abs/2106.09685", venue: str = "", code: str = "") -> str:
    parts = ["Words."] + ([f"*{venue}*."] if venue else []) + ([f"[Code]({code})."] if code else [])
    return f"# List\n\n## Papers\n\n- [{title}]({url}) - {' '.join(parts)}\n"


def numbered(
    title: str = LORA,
    venue: str = "**ICLR'2022**",
    authors: str = LORA_AUTHORS,
    link: str = "https://arxiv.org/abs/2106.09685",
) -> str:
    return f"### Papers\n\n1. **{title}**. {venue}.\n\n   *{authors}*\n\n   [paper]({link})\n"


def only(found: Comparison) -> Contradiction:
    assert len(found.contradictions) == 1, found.contradictions
    return found.contradictions[0]


@pytest.mark.parametrize("text", [awesome(), awesome(venue="ICLR 2022"), awesome(venue="arXiv 2021"), numbered()])
def test_a_list_that_is_right_is_consistent(held: Held, text: str) -> None:
    expected = [Kind.VENUE] if "arXiv 2021" in text else []
    found = held(text)
    assert [each.kind for each in found.contradictions] == expected
    assert found.consistent is not bool(expected)
    assert found.slugs == {"lora"}


def test_wrong_arxiv_id(held: Held) -> None:
    each = only(held(awesome(url="https://arxiv.org/abs/2401.99999")))
    assert (each.kind, each.says, each.line) == (Kind.ARXIV_ID, "2401.99999", 5)
    assert "2106.09685" in each.fact


def test_arxiv_id_of_a_paper_that_is_not_on_arxiv(held: Held) -> None:
    title = "BAD-X: Bilingual Adapters Improve Zero-Shot Cross-Lingual Transfer"
    each = only(held(awesome(title, "https://arxiv.org/abs/2401.99999")))
    assert each.kind is Kind.ARXIV_ID
    assert "not on arXiv: doi 10.18653/v1/2022.naacl-main.130" in each.fact


def test_wrong_doi(held: Held) -> None:
    title = "The Power of Scale for Parameter-Efficient Prompt Tuning"
    each = only(held(awesome(title, "https://doi.org/10.18653/v1/2021.emnlp-main.999")))
    assert (each.kind, each.says) == (Kind.DOI, "10.18653/v1/2021.emnlp-main.999")
    assert "10.18653/v1/2021.emnlp-main.243" in each.fact


def test_link_to_another_paper(held: Held) -> None:
    each = only(held(awesome(url="https://arxiv.org/abs/2305.14314")))
    assert (each.kind, each.slug) == (Kind.OTHER_PAPER, "lora")
    assert "QLoRA (qlora)" in each.fact
    assert "2106.09685" in each.fact


def test_title_cut_off(held: Held) -> None:
    each = only(held(awesome("LoRA: Low-Rank Adaptation of Large")))
    assert (each.kind, each.fact) == (Kind.CUT_TITLE, LORA)


def test_other_title(held: Held) -> None:
    each = only(held(awesome("LoRA: Low-Rank Adaption of Large Langauge Models")))
    assert (each.kind, each.fact) == (Kind.TITLE, LORA)


@pytest.mark.parametrize(
    "title", ["LoRA", "lora", "LoraConfig", LORA.upper(), LORA.replace("-", " "), LORA.replace(":", "")]
)
def test_names_and_other_signs_are_no_other_title(held: Held, title: str) -> None:
    assert held(awesome(title)).consistent


@pytest.mark.parametrize(
    "venue", ["ICLR 2021", "ICLR'2023", "International Conference on Learning Representations (2024)"]
)
def test_wrong_year(held: Held, venue: str) -> None:
    each = only(held(awesome(venue=venue)))
    assert each.kind is Kind.YEAR
    assert "first public 2021-06-17; published at ICLR 2022" in each.fact


@pytest.mark.parametrize("venue", ["ICML 2022", "NeurIPS 2021"])
def test_wrong_venue(held: Held, venue: str) -> None:
    each = only(held(awesome(venue=venue)))
    assert (each.kind, each.says) == (Kind.VENUE, venue)


def test_preprint_of_a_published_paper_and_its_year(held: Held) -> None:
    found = held(awesome(venue="CoRR 2022"))
    assert {each.kind for each in found.contradictions} == {Kind.VENUE, Kind.YEAR}


@pytest.mark.parametrize("venue", ["ACL 2022", "ACL'2022 Workshop"])
def test_findings_and_workshops_are_not_the_conference(held: Held, venue: str) -> None:
    title = "Cutting Down on Prompts and Parameters: Simple Few-Shot Learning with Language Models"
    found = held(awesome(title, "https://arxiv.org/abs/2106.13353", venue))
    assert only(found).kind is Kind.VENUE
    assert held(awesome(title, "https://arxiv.org/abs/2106.13353", "Findings of ACL 2022")).consistent


def test_no_venue(held: Held) -> None:
    each = only(held(numbered(venue="****")))
    assert (each.kind, each.says) == (Kind.VENUE, "no venue")


@pytest.mark.parametrize(
    ("authors", "fact"),
    [
        (LORA_AUTHORS.replace(" Lu Wang,", ""), "missing: Lu Wang"),
        (LORA_AUTHORS + ", Ann Lee", "not an author: Ann Lee"),
        (LORA_AUTHORS.replace("Edward J. Hu", "Bo Chan"), "missing: Edward J. Hu; not an author: Bo Chan"),
    ],
)
def test_authors(held: Held, authors: str, fact: str) -> None:
    each = only(held(numbered(authors=authors)))
    assert (each.kind, each.fact) == (Kind.AUTHORS, fact)


def test_spellings_of_authors_are_no_contradiction(held: Held) -> None:
    assert held(numbered(authors=LORA_AUTHORS.upper().replace("EDWARD J. HU", "E. J. Hu"))).consistent


def test_link_without_address(held: Held) -> None:
    each = only(held(numbered(link="")))
    assert (each.kind, each.line, each.fact) == (Kind.NO_ADDRESS, 7, "arXiv 2106.09685")


@pytest.mark.parametrize("role", ["url", "code"])
def test_dead_link(held: Held, role: str) -> None:
    dead = "https://paperswithcode.com/paper/lora-low-rank-adaptation-of-large-language"
    each = only(held(awesome(**{role: dead})))
    assert (each.kind, each.says) == (Kind.DEAD_LINK, dead)
    assert ("github.com/microsoft/LoRA" if role == "code" else "arXiv 2106.09685") in each.fact


@pytest.mark.parametrize("host", ["www.aminer.cn", "aminer.cn", "www.semanticscholar.org", "www.researchgate.net"])
def test_link_to_an_aggregator_instead_of_the_source(held: Held, host: str) -> None:
    each = only(held(awesome(url=f"https://{host}/pub/0123/lora")))
    assert (each.kind, each.fact) == (Kind.SECONDARY_LINK, "arXiv 2106.09685")


@pytest.mark.parametrize(
    "code",
    [
        "https://github.com/someone/notes/issues/1",
        "https://arxiv.org/abs/2106.09685v2",
        "https://github.com/someone/lora",
    ],
)
def test_code_that_is_not_the_papers(held: Held, code: str) -> None:
    each = only(held(awesome(code=code)))
    assert (each.kind, each.fact) == (Kind.CODE, "the code is https://github.com/microsoft/LoRA")


@pytest.mark.parametrize("path", ["", "/", ".git", "/tree/main/loralib", "?tab=readme-ov-file"])
def test_a_part_of_the_repository_is_the_papers_code(held: Held, path: str) -> None:
    assert held(awesome(code=f"https://github.com/microsoft/LoRA{path}")).consistent


def test_any_code_may_be_that_of_a_paper_without_known_code(held: Held, entry: Callable[[str], object]) -> None:
    title = "XMAdapter" if entry("xmadapter") else ""
    assert held(awesome(title, "https://arxiv.org/abs/2404.12588", code="https://github.com/someone/x")).consistent


def test_an_item_listed_twice_is_told(held: Held) -> None:
    text = awesome() + f"- [{LORA}](https://arxiv.org/abs/2106.09685) - Again.\n"
    found = held(text)
    assert [(notice.line, notice.message) for notice in found.notices] == [(6, "lora is listed before, on line 5")]
    assert not found.consistent


def test_new_items_are_told(held: Held) -> None:
    found = held(awesome() + "- [A paper nobody knows](https://arxiv.org/abs/2401.99999) - Words.\n")
    assert [item.title for item in found.new] == ["A paper nobody knows"]
    assert not found.consistent


def test_contradictions_are_counted_by_kind(held: Held) -> None:
    text = awesome(venue="CoRR 2022") + "- [QLoRA](https://arxiv.org/abs/2305.14314) - Words. *ICML 2023*.\n"
    assert held(text).kinds == {"venue": 2, "year": 1}
