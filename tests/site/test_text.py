"""Text from papers stays text."""

from __future__ import annotations

import markdown
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import CatalogError
from catalog.pages.equations import mathml
from catalog.pages.text import address, attribute, fence, inline, linked, plain, slugified


def shown(html: str) -> str:
    """The words a browser would show."""
    from html import unescape
    from re import sub

    return unescape(sub(r"<[^>]*>", "", html))


@given(st.text())
def test_inline_is_shown_as_written_whatever_it_holds(text: str) -> None:
    html = markdown.markdown(
        f"# a {inline(text)} b {{ #here }}", extensions=["attr_list", "toc", "pymdownx.superfences"]
    )
    assert html.startswith('<h1 id="here">')
    assert html.count("<") == 2
    assert " ".join(shown(html).split()) == " ".join(f"a {plain(text)} b".split())


@given(st.text())
def test_linked_text_holds_no_tags_but_links(text: str) -> None:
    html = str(linked(text))
    assert html.replace("</a>", "").count("<") == html.count('<a href="http')
    assert shown(html) == plain(text)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("see https://arxiv.org/abs/2106.09685.", "https://arxiv.org/abs/2106.09685"),
        ("(https://example.org/a)", "https://example.org/a"),
        ("https://example.org/a_(b)", "https://example.org/a_(b)"),
        ("arXiv 2106.09685, section 4", "https://arxiv.org/abs/2106.09685"),
        ("in github.com/microsoft/LoRA.", "https://github.com/microsoft/LoRA"),
        ('https://example.org/"onclick="x', "https://example.org/"),
    ],
)
def test_addresses_become_links(text: str, target: str) -> None:
    assert f'<a href="{target}">' in linked(text)


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", "//example.org", "https://[", "", None])
def test_other_schemes_are_no_address(url: str | None) -> None:
    assert address(url) == ""


def test_attribute_is_cut_at_a_word_before_it_is_escaped() -> None:
    assert attribute('a "quoted" & long text', 12) == "a &#34;quoted&#34; …"


def test_fence_outlasts_the_backticks_inside() -> None:
    assert str(fence("a\n`````\nb", "text")).splitlines()[0] == "``````text"


@given(st.text())
def test_fence_holds_any_code(code: str) -> None:
    html = markdown.markdown(f"before\n\n{fence(code, 'text')}\n\nafter", extensions=["fenced_code"])
    assert html.startswith("<p>before</p>")
    assert html.endswith("<p>after</p>")
    assert html.count("<code") == 1


def test_control_characters_are_dropped() -> None:
    assert plain("a\x02b\x03 \u2028c\td") == "ab c d"


def test_slugs() -> None:
    assert slugified("(IA)^3") == "ia-3"
    assert slugified("../../escape") == "escape"


def test_equation_keeps_its_source_and_escapes_text() -> None:
    drawn = mathml(r"h = W_0 x + \text{<b>}", "lora")
    assert "<b>" not in drawn
    assert "&lt;b&gt;" in drawn
    assert "<msub>" in drawn
    assert 'aria-label="Equation h = W_0 x + \\text{&lt;b&gt;}"' in drawn


@pytest.mark.parametrize("latex", [r"\nosuchcommand x", r"\frac{a", r"\begin{aligned} a"])
def test_latex_that_cannot_be_drawn_is_named(latex: str) -> None:
    with pytest.raises(CatalogError) as caught:
        mathml(latex, "lora")
    assert "lora, mechanism.latex" in str(caught.value)
