"""Mistakes of a list that are on record: reported at their line as long as the list makes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from catalog.entry import Entry, Erratum, Listing
from catalog.lists import compare, read_text
from catalog.lists.contradictions import Contradiction, Kind
from tests.lists.test_contradictions import LORA, LORA_AUTHORS

NUMBERED = "awesome-peft-for-foundation-models"
GIST = "peft-adapter-papers-gist"
ADDRESS = "https://www.aminer.cn/pub/1/lora"

Find = Callable[..., list[Contradiction]]


@pytest.fixture
def find(entry: Callable[[str], Entry]) -> Find:
    """Contradictions of a list with one mistake on record about LoRA."""

    def contradictions(text: str, claim: str, *, listed: Listing, kind: Kind | None = None) -> list[Contradiction]:
        erratum = Erratum(list=listed.list_slug, claim=claim, fact="THE FACT", evidence="THE EVIDENCE")
        paper = entry("lora").model_copy(update={"errata": (erratum,), "listed_in": (listed,)})
        found = compare(read_text(text), [paper]).contradictions
        return [each for each in found if each.evidence == "THE EVIDENCE" and kind in (None, each.kind)]

    return contradictions


def numbered(venue: str = "CoRR'2022", authors: str = "Ann Lee", section: str = "Prompt") -> str:
    return (
        f"### [{section}](#content)\n\n#### LLM\n\n1. **{LORA}**. **{venue}**.\n\n"
        f"   *{authors}*\n\n   [paper]({ADDRESS})\n"
    )


def listing(section: str = "Prompt / LLM") -> Listing:
    title = f"{LORA}. CoRR'2022"
    return Listing.model_validate({"list": NUMBERED, "section": section, "as": title, "link": ADDRESS})


def gist(how: str, adapter: str = "LoraModel", after: str = "") -> str:
    return (
        "# Methods\n\n### lora (2021)\n\n"
        f"- **Adapter**: {adapter}\n- **Paper**: https://arxiv.org/abs/2106.09685\n- **How it differs**: {how}\n{after}"
    )


def noted() -> Listing:
    link = "https://arxiv.org/abs/2106.09685"
    return Listing.model_validate({"list": GIST, "section": "Methods", "as": "lora (2021)", "link": link})


@pytest.mark.parametrize(
    ("claim", "kind", "line"),
    [
        ("CoRR'2022", Kind.VENUE, 5),
        ("authors: Ann Lee (one)", Kind.AUTHORS, 7),
        ("filed under Prompt", Kind.PLACE, 5),
        ("category Prompt", Kind.PLACE, 5),
    ],
)
def test_a_mistake_is_reported_with_fact_evidence_kind_and_line(find: Find, claim: str, kind: Kind, line: int) -> None:
    found = find(numbered(), claim, listed=listing(), kind=kind)
    assert [(each.slug, each.kind) for each in found] == [("lora", kind)]
    assert found[0].line == (5 if kind is Kind.AUTHORS else line)
    assert kind is Kind.AUTHORS or found[0].fact == "THE FACT"


def test_a_mistake_that_a_check_finds_as_well_is_reported_once(find: Find, entry: Callable[[str], Entry]) -> None:
    found = compare(read_text(numbered()), [entry("lora")]).contradictions
    assert [each.says for each in found].count("CoRR'2022") == 1


@pytest.mark.parametrize(
    ("claim", "mended"),
    [
        ("CoRR'2022", numbered(venue="ICLR'2022")),
        ("filed under Prompt", numbered(section="Reparameterized")),
        ("first author 'Ann Lee'", numbered(authors=LORA_AUTHORS)),
    ],
)
def test_a_mistake_that_was_mended_is_not_reported(find: Find, claim: str, mended: str) -> None:
    assert find(numbered(), claim, listed=listing())
    assert find(mended, claim, listed=listing()) == []


def test_a_mistake_of_one_list_is_not_looked_for_in_lists_of_another_layout(find: Find) -> None:
    awesome = "## Prompt\n\n### LLM\n\n- [LoRA](https://www.aminer.cn/pub/1/lora) - Words. *CoRR'2022*.\n"
    assert find(awesome, "filed under Prompt", listed=listing()) == []


def test_a_mistake_is_looked_for_only_where_the_list_had_the_item(find: Find) -> None:
    elsewhere = numbered().replace(ADDRESS, "https://arxiv.org/abs/2106.09685")
    assert find(elsewhere, "filed under Prompt", listed=listing()) == []


@pytest.mark.parametrize(
    ("claim", "how", "line"),
    [
        ("Adapter: LoraModel", "the base case", 5),
        ("trains A and B and the bias", "it trains A and B and the bias, nothing else", 7),
        ("How it differs: 'the first of all methods'", "the first of all methods; simple", 7),
        ("abstract text of an earlier version (a trade-off of speed and size)", "on a trade-off of speed and size", 7),
        (
            "low-rank updates lose geometric properties, and orthogonal ones are the fix",
            "with orthogonal updates comes the fix: geometric properties, which low-rank ones lose",
            7,
        ),
        (
            "says that every other low-rank method builds upon this one",
            "every other low-rank method builds on this one",
            7,
        ),
    ],
)
def test_a_statement_is_found_at_its_line(find: Find, claim: str, how: str, line: int) -> None:
    found = find(gist(how), claim, listed=noted())
    assert [(each.line, each.kind, each.fact) for each in found] == [(line, Kind.STATEMENT, "THE FACT")]


@pytest.mark.parametrize(
    ("claim", "mended"),
    [
        ("Adapter: LoraModel", gist("the base case", adapter="LoraConfig")),
        ("trains A and B and the bias", gist("the two factors alone are trained")),
        ("Status: not yet in peft", gist("the base case", after="\nIt has been in peft for long.\n")),
    ],
)
def test_a_statement_no_longer_made_is_not_reported(find: Find, claim: str, mended: str) -> None:
    assert find(mended, claim, listed=noted()) == []


@pytest.mark.parametrize("claim", ["'??????' and (????????)", "'-----'", "(((((((((("])
def test_a_claim_of_signs_alone_is_found_nowhere(find: Find, claim: str) -> None:
    assert find(gist("the base case -----"), claim, listed=noted()) == []


def test_a_statement_in_running_text_is_found_there(find: Find) -> None:
    text = gist(
        "the base case", after="\n# Advice\n\nAvoid: prompts (wrong paradigm), low-rank methods (LoRA - slow)\n"
    )
    found = find(text, "Avoid: low-rank methods (LoRA - slow)", listed=noted())
    assert [each.line for each in found] == [11]


def test_the_year_of_a_note_is_one_mistake(find: Find) -> None:
    text = gist("the base case", after="- **Year**: 2019\n")
    assert [(each.line, each.kind) for each in find(text, "Year: 2019", listed=noted())] == [(3, Kind.YEAR)]


def test_an_empty_link_and_an_empty_venue_are_one_mistake_each(find: Find) -> None:
    text = numbered(venue="X").replace("**X**", "****").replace(ADDRESS, "")
    row = listing().model_copy(update={"link": None})
    assert [each.kind for each in find(text, "paper link is empty", listed=row)] == [Kind.NO_ADDRESS]
    assert [each.kind for each in find(text, "venue and year are empty", listed=row)] == [Kind.VENUE]


def test_a_mistake_about_a_paper_that_another_item_links_to(entry: Callable[[str], Entry]) -> None:
    claim = "entry lora gives this paper's arXiv id with words that start 'Quantized and then tuned'"
    erratum = Erratum(list=GIST, claim=claim, fact="THE FACT", evidence="THE EVIDENCE")
    papers = [entry("lora"), entry("qlora").model_copy(update={"errata": (erratum,)})]
    text = gist("Quantized and then tuned, layer by layer").replace("2106.09685", "2305.14314")
    found = compare(read_text(text), papers).contradictions
    assert [(each.slug, each.line) for each in found if each.evidence == "THE EVIDENCE"] == [("qlora", 7)]
