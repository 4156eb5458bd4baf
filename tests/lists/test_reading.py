"""What each layout's reader takes from a list: items, sections, links, venues, years, authors, line numbers."""

from __future__ import annotations

import pytest

from catalog.lists import Style, read_file, read_text
from catalog.lists.item import Item, Link, Role

AWESOME = """\
# Awesome Things

## Contents

- [Low rank](#low-rank)
  - [Others](#others)

## Low rank

Words on the section.

- [LoRA: Low-Rank Adaptation](https://arxiv.org/abs/2106.09685) - Two factors. *ICLR 2022*. [Code](https://github.com/microsoft/LoRA).
- [No venue](https://arxiv.org/abs/2401.00001) - Says nothing.
  - [Nested](https://arxiv.org/abs/2401.00002) - Below another.
- No link - A description.

## Others

* [Starred](<https://arxiv.org/abs/2401.00003>)
"""

BADGES = """\
# Techniques

## 🚀 Serial Adapters

- Title One: with a colon [[Paper](https://arxiv.org/pdf/1902.00751)]
  ![arXiv](https://img.shields.io/badge/arXiv-4a4a4a?style=flat)
  [![Code](https://img.shields.io/badge/Code-2962FF)](https://github.com/google-research/adapter-bert)

- Title Two [[Paper](https://aclanthology.org/2023.findings-acl.13.pdf)]
  ![EMNLP 2023](https://img.shields.io/badge/EMNLP-4a4a4a)

## 🚀 Prompts

- Title Three without a paper
"""

NUMBERED = """\
# Lists

## PEFT paper lists

### [Content](#content)

<table>
<tr><td><a href="#Selective">1. Selective</a></td></tr>
</table>

1. [Selective](#selective)

### [Selective](#content)

#### LLM

##### Masks

1. **Title One**. **EMNLP'2020.**

   *Ann Lee, Bo Chan*

   [paper](https://arxiv.org/abs/2401.00001) [code](https://github.com/a/b)


3. **Title Two**.**Journal of Things（2021）**.

*Cy Dee*.

[paper](https://arxiv.org/abs/2401.00002)

#### VFM

1. **Title Three**. ****.

   *Eve Fox and Gil Hay*

   [paper]()

[//]: # (4. **Hidden Title**. **ACL'2021**.)

[//]: # ()
[//]: # ([paper]&#40;https://arxiv.org/abs/2401.00004&#41;)
"""

GIST = """\
Orthogonal methods: OFT, BOFT, HRA Low-rank methods: LoRA, AdaLoRA

# Steering

Best candidates (clean):

- IA3: pure scaling
- VeRA: scales vectors

## lora (2021)

- **Adapter**: LoraModel
- **Paper**: https://arxiv.org/abs/2106.09685 (ICLR 2022)
- **Year**: 2021
- **Authors**: Edward J. Hu, Yelong Shen
- **How it differs**: the base case. OFT, BOFT
- **Code**: <https://github.com/microsoft/LoRA>
- https://github.com/huggingface/peft

vera (2023)

  • Adapter: VeraModel
  • Paper: https://arxiv.org/abs/2310.11454
  • Year: 2023 (ICLR 2024)

Others:

  • ETHER https://arxiv.org/html/2405.20271v1 (elsewhere)
  • PiSSA
    • words on it
"""


def titles(text: str) -> list[str]:
    return [item.title for item in read_text(text).items]


def item(text: str, title: str) -> Item:
    return next(item for item in read_text(text).items if item.title == title)


# awesome


def test_awesome_items_are_bullets_under_sections_that_hold_papers() -> None:
    assert read_text(AWESOME).style is Style.AWESOME
    assert titles(AWESOME) == ["LoRA: Low-Rank Adaptation", "No venue", "Nested", "No link", "Starred"]


def test_awesome_item_has_link_venue_year_code_section_and_line() -> None:
    found = item(AWESOME, "LoRA: Low-Rank Adaptation")
    assert (found.line, found.section, found.venue, found.year) == (12, "Low rank", "ICLR 2022", 2022)
    assert found.links == (
        Link("https://arxiv.org/abs/2106.09685", 12, Role.PAPER),
        Link("https://github.com/microsoft/LoRA", 12, Role.CODE),
    )
    assert item(AWESOME, "No venue").venue is None


def test_awesome_links_in_a_description_are_not_the_paper() -> None:
    text = "- [A title](https://arxiv.org/abs/2401.00001) - As in [another](https://arxiv.org/abs/2401.00002).\n"
    assert [link.role for link in item(text, "A title").links] == [Role.PAPER, Role.OTHER]


@pytest.mark.parametrize("heading", ["Contents", "License", "Citation", "Contributing", "Footnotes"])
def test_sections_about_the_list_hold_no_papers(heading: str) -> None:
    sections = {"Papers": "A", heading: "B", "More": "C"}
    text = "\n".join(f"## {words}\n\n- [{title}](https://x.org)\n" for words, title in sections.items())
    assert titles(text) == ["A", "C"]


# badges


def test_badges_items_end_where_the_bracketed_link_begins() -> None:
    assert read_text(BADGES).style is Style.BADGES
    assert titles(BADGES) == ["Title One: with a colon", "Title Two", "Title Three without a paper"]


def test_badges_sections_lose_their_emoji() -> None:
    assert [found.section for found in read_text(BADGES).items] == ["Serial Adapters", "Serial Adapters", "Prompts"]


def test_badges_sections_saved_in_the_wrong_encoding_are_mended() -> None:
    garbled = "🚀".encode().decode("mac_roman")
    read = read_text(BADGES.replace("🚀", garbled))
    assert [found.section for found in read.items] == ["Serial Adapters", "Serial Adapters", "Prompts"]
    assert [(notice.line, "wrong encoding" in notice.message) for notice in read.notices] == [(3, True)]


def test_badges_are_code_links_and_venues() -> None:
    one, two = item(BADGES, "Title One: with a colon"), item(BADGES, "Title Two")
    assert one.links == (
        Link("https://arxiv.org/pdf/1902.00751", 5, Role.PAPER),
        Link("https://github.com/google-research/adapter-bert", 7, Role.CODE),
    )
    assert (one.venue, two.venue, two.year) == (None, "EMNLP 2023", 2023)


# numbered


def test_numbered_items_are_bold_and_the_content_is_none() -> None:
    assert read_text(NUMBERED).style is Style.NUMBERED
    assert titles(NUMBERED) == ["Title One", "Title Two", "Title Three", "Hidden Title"]


def test_numbered_item_has_authors_venue_links_and_section() -> None:
    found = item(NUMBERED, "Title One")
    assert (found.venue, found.year, found.authors) == ("EMNLP'2020", 2020, ("Ann Lee", "Bo Chan"))
    assert found.section == "PEFT paper lists / Selective / LLM / Masks"
    assert [(link.url, link.line, link.role) for link in found.links] == [
        ("https://arxiv.org/abs/2401.00001", 23, Role.PAPER),
        ("https://github.com/a/b", 23, Role.CODE),
    ]


def test_numbered_details_may_stand_without_indent() -> None:
    found = item(NUMBERED, "Title Two")
    assert (found.year, found.authors, found.links[0].line) == (2021, ("Cy Dee",), 30)


def test_numbered_item_may_lack_venue_and_address() -> None:
    found = item(NUMBERED, "Title Three")
    assert (found.venue, found.year, found.authors) == ("", None, ("Eve Fox", "Gil Hay"))
    assert [link.url for link in found.links] == [""]


def test_numbered_links_may_stand_as_bare_addresses_but_not_in_titles_and_names() -> None:
    text = (
        "1. **On https://a.org/x**. **ACL'2021**.\n\n   *Ann Lee https://b.org/y*\n\n   https://c.org/z\n\n"
        "2. **Second**. **ACL'2021**.\n\n   paper](https://d.org)\n"
    )
    assert [[link.url for link in found.links] for found in read_text(text).items] == [
        ["https://c.org/z"],
        ["https://d.org"],
    ]


def test_numbered_items_in_comments_are_read_and_marked() -> None:
    found = item(NUMBERED, "Hidden Title")
    assert (found.commented, found.venue, found.line) == (True, "ACL'2021", 40)
    assert [(link.url, link.line) for link in found.links] == [("https://arxiv.org/abs/2401.00004", 43)]
    assert not item(NUMBERED, "Title Three").commented


def test_items_in_html_comments_are_read_and_marked() -> None:
    text = "## Papers\n\n- [A](https://a.org)\n\n<!--\n- [B](https://b.org)\n-->\n"
    assert [(found.title, found.line, found.commented) for found in read_text(text).items] == [
        ("A", 3, False),
        ("B", 6, True),
    ]


# gist


def test_gist_items_are_headings_bullets_and_names_in_passing() -> None:
    assert read_text(GIST).style is Style.GIST
    found = [(each.title, each.mention) for each in read_text(GIST).items]
    assert found == [
        *((name, True) for name in ("OFT", "BOFT", "HRA", "LoRA", "AdaLoRA")),
        ("IA3", True),
        ("VeRA", True),
        ("lora", False),
        ("OFT", True),
        ("BOFT", True),
        ("vera", False),
        ("ETHER", False),
        ("PiSSA", True),
    ]


def test_gist_names_in_running_text_have_their_label_as_section() -> None:
    sections = {found.title: found.section for found in read_text(GIST).items[:5]}
    assert sections["HRA"] == "Overview / Orthogonal methods"
    assert sections["LoRA"] == "Overview / Low-rank methods"


def test_gist_fields_make_up_the_item() -> None:
    found = item(GIST, "lora")
    assert (found.line, found.section, found.year, found.venue) == (
        10,
        "Steering",
        2021,
        "ICLR 2022",
    )
    assert found.authors == ("Edward J. Hu", "Yelong Shen")
    assert [(link.url, link.role) for link in found.links] == [
        ("https://arxiv.org/abs/2106.09685", Role.PAPER),
        ("https://github.com/microsoft/LoRA", Role.CODE),
        ("https://github.com/huggingface/peft", Role.OTHER),
    ]


def test_gist_copied_from_its_web_page_reads_the_same() -> None:
    found = item(GIST, "vera")
    assert (found.year, found.venue, found.links[0].line) == (2023, "ICLR 2024", 23)
    page = (
        "Skip to content\n\nInstantly share code, notes, and snippets.\n\n@someone\nLast active November 25, 2025\n"
        "Select an option\n  • Save someone/0123 to your computer and use it in GitHub Desktop.\n\n"
        f"{GIST}\n@someone\nCopy link\n\n- LoRA-XYZ\n"
    )
    assert [each.title for each in read_text(page).items] == titles(GIST)
    assert item(page, "vera").line == item(GIST, "vera").line + 9


def test_gist_bullets_with_an_address_are_items() -> None:
    found = item(GIST, "ETHER")
    assert (found.links[0].url, found.section) == ("https://arxiv.org/html/2405.20271v1", "Steering / Others")


# files


@pytest.mark.parametrize("text", [AWESOME, BADGES, NUMBERED, GIST], ids=["awesome", "badges", "numbered", "gist"])
def test_byte_order_mark_and_line_ends_do_not_matter(text: str, tmp_path) -> None:
    path = tmp_path / "list.md"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_file(path).items == read_text(text).items
    path.write_bytes(text.replace("\n", "\r").encode())
    assert read_file(path).items == read_text(text).items


def test_every_item_knows_its_lines() -> None:
    found = item(NUMBERED, "Title One")
    assert [number for number, _ in found.lines] == [19, 21, 23]
    assert "Ann Lee" in found.text
    assert "Title Two" not in found.text
