"""Broken Markdown and files that are no lists: a line number and words, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalog.errors import CatalogError
from catalog.lists import read_file, read_text
from catalog.lists.source import MAX_BYTES, MAX_LINE

GOOD = "## Papers\n\n- [Good](https://good.org) - Well.\n"


def notices(text: str) -> list[tuple[int, str]]:
    return [(notice.line, notice.message) for notice in read_text(text).notices]


def titles(text: str) -> list[str]:
    return [item.title for item in read_text(text).items]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("- [Title](https://a.org - Never closed.", "a link that is broken off; read as text"),
        ("- [Title] (https://a.org) - A space between.", "a link that is broken off; read as text"),
        ("- Title](https://a.org) - Never opened.", "a link without its opening bracket; read as a link"),
        ("- [Title](https://a.org) - Words **never closed.", "bold text that is never closed"),
    ],
)
def test_marks_that_come_to_nothing_are_told_with_their_line(line: str, message: str) -> None:
    text = f"{GOOD}{line}\n- [After](https://b.org) - Well.\n"
    assert notices(text) == [(4, message)]
    assert titles(text)[0] == "Good"
    assert titles(text)[-1] == "After"


def test_the_line_is_that_within_a_longer_item() -> None:
    text = f"{GOOD}- [Title](https://a.org) -\n  words on\n  [more](https://b.org\n  and more.\n"
    assert notices(text) == [(6, "a link that is broken off; read as text")]


def test_a_heading_without_space_is_told() -> None:
    assert notices(f"{GOOD}\n##Section\n") == [(5, "a heading without a space after its signs; read as text")]
    assert notices(f"{GOOD}\n#1 in the ranking\n") == []


@pytest.mark.parametrize(
    "line",
    [
        r"- [Title \](x) in it](https://a.org) - Well.",
        "- [Title](https://a.org) - Code `[x](` and `**kwargs`.",
        r"- [Title](https://a.org) - A power x\*\*2.",
        "- [Title](https://a.org) - [![Badge](https://a.org/b.svg)](https://a.org), see https://a.org/**.",
        "- [Title](<https://a.org>) - <https://b.org/](x>.",
        "- [Title](https://a.org) - An empty ****.",
    ],
)
def test_marks_that_are_meant_are_not_told(line: str) -> None:
    assert notices(f"{GOOD}{line}\n") == []


def test_a_numbered_item_with_broken_bold_is_an_item_all_the_same() -> None:
    text = (
        "## Papers\n\n1. **First**. **ACL'2021**.\n\n   *Ann Lee*\n\n   [paper](https://a.org)\n\n"
        "2. **Second. **EMNLP'2022**.\n\n   *Bo Chan*\n\n   [paper](https://b.org)\n\n"
        "3. Third. **EMNLP'2023**.\n\n   [paper](https://c.org)\n"
    )
    read = read_text(text)
    assert [item.title for item in read.items] == ["First", "Second", "Third"]
    assert [item.links[0].url for item in read.items] == ["https://a.org", "https://b.org", "https://c.org"]
    assert [notice.line for notice in read.notices] == [9]


@pytest.mark.parametrize("fence", ["```py", "~~~", "````"])
def test_a_code_block_never_closed_hides_nothing(fence: str) -> None:
    text = f"{GOOD}\n{fence}\n\n- [After](https://b.org)\n"
    assert titles(text) == ["Good", "After"]
    assert notices(text) == [(5, "the code block that begins here is never closed; read as text")]


def test_code_blocks_that_are_closed_hold_no_items() -> None:
    assert titles(f"{GOOD}\n```\n- [Code](https://b.org)\n```\n\n~~~ md\n- [Code](https://b.org)\n~~~~\n") == ["Good"]


def test_every_fence_never_closed_is_told() -> None:
    text = f"{GOOD}\n`````\n\n```py\n\n```sh\n\n- [After](https://b.org)\n"
    assert [line for line, _ in notices(text)] == [5, 7, 9]
    assert titles(text) == ["Good", "After"]


def test_a_comment_never_closed_hides_nothing() -> None:
    text = f"{GOOD}\n<!-- closed --> <!-- open\n\n- [After](https://b.org)\n"
    assert titles(text) == ["Good", "After"]
    assert notices(text) == [(5, "the comment that begins here is never closed; read as text")]


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# A title\n\nAnd words.\n", "| a | b |\n| --- | --- |\n", "- plain\n- bullets\n"]
)
def test_what_is_no_list_is_an_error_for_people(text: str) -> None:
    with pytest.raises(CatalogError, match="no list is recognized here") as error:
        read_text(text)
    assert "awesome, badges, numbered, gist" in str(error.value)
    assert error.value.exit_code == 2


def test_a_list_all_of_whose_links_are_broken_says_where() -> None:
    with pytest.raises(CatalogError) as error:
        read_text("# List\n\n- [Title](https://a.org\n- [Other](https://b.org\n")
    assert "line 3: a link that is broken off" in str(error.value)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (GOOD.encode("utf-16"), ["UTF-16"]),
        (GOOD.encode() + b"\n\xff\xfe\n", ["not UTF-8", "line 5"]),
        (GOOD.encode() + b"- \x00", ["binary", "line 4"]),
        (GOOD.encode() + b"x" * (MAX_LINE + 1), ["too long", "line 4", f"{MAX_LINE:,}"]),
        (b"- [a](https://a.org)\n" * (MAX_BYTES // 20), ["too large", f"{MAX_BYTES:,}"]),
    ],
)
def test_files_that_are_no_text_are_errors_for_people(data: bytes, parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "list.md"
    path.write_bytes(data)
    with pytest.raises(CatalogError) as error:
        read_file(path)
    for part in ["list.md", *parts]:
        assert part in str(error.value)


def test_a_missing_file_and_a_folder_are_errors_for_people(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.md", tmp_path):
        with pytest.raises(CatalogError, match="cannot read the list"):
            read_file(path)


def test_a_device_without_an_end_is_read_no_further_than_a_list_may_be_long() -> None:
    with pytest.raises(CatalogError, match="too large"):
        read_file(Path("/dev/zero"))


@pytest.mark.parametrize("sign", ["[", "![", "*", "_*", "`", "<!--", "> ", "- ", "(", "[a](http://x", "a](http://b) "])
def test_a_long_line_of_marks_is_read_in_reasonable_time(sign: str) -> None:
    """Hangs where a rule needs exponential time."""
    for text in (sign * (5_000 // len(sign)), f"- {sign}\n" * 500):
        read_text(f"{GOOD}\n{text}\n")
