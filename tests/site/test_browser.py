"""The site as a reader meets it, in the system's Chromium."""

from __future__ import annotations

from typing import Any

import pytest

from catalog.pages.claims import CLAIMS

pytestmark = pytest.mark.browser

BROKEN_IN = """() => {
  const seen = new Set(), problems = [];
  for (const node of document.querySelectorAll('[id]')) {
    if (seen.has(node.id)) problems.push('id twice: ' + node.id);
    seen.add(node.id);
  }
  let level = 0;
  for (const head of document.querySelectorAll('main :is(h1,h2,h3,h4,h5,h6)')) {
    const next = Number(head.tagName[1]);
    if (next > level + 1) problems.push('heading jumps: ' + head.textContent);
    level = next;
  }
  const named = (node) => node.getAttribute('aria-label') || node.textContent.trim() || node.title
    || (node.labels && node.labels.length) || node.querySelector('img[alt], svg [aria-label], svg title');
  for (const node of document.querySelectorAll('a[href], button, input:not([type=hidden]), select')) {
    if (!named(node) && node.checkVisibility() && node.getAttribute('aria-hidden') !== 'true')
      problems.push('no name: ' + node.outerHTML.slice(0, 90));
  }
  if (!document.documentElement.lang) problems.push('no language');
  return problems;
}"""

LOW_CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgba(getComputedStyle(node).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const problems = new Set();
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    if (node.closest('nav, script, .md-top')) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) problems.add(`${node.tagName}.${node.className} ${ratio.toFixed(2)}`);
  }
  return [...problems];
}"""

PAGES = [
    "",
    "find/weights-merge-reverse-llm/",
    "methods/",
    "methods/lora/",
    "methods/clip/",
    "categories/prompt/",
    "compare/reversibility/",
    "compare/strength/",
    "compare/peft/",
    "compare/cost/",
    "compare/timeline/",
    "compare/deviations/",
    "lists/",
    "lists/awesome-peft-for-foundation-models/",
    "methods/miss/",
    "authors/",
    "about/measured/",
    "about/downloads/",
]


def visible(page: Any) -> list[str]:
    """Names of the entries the table shows."""
    names: list[str] = page.locator("#entries-table tbody tr:visible th > a").all_inner_texts()
    return names


def search(page: Any, words: str) -> str:
    """Type into the search field; the text of the first result."""
    page.locator("[data-md-component=search-query]").click()
    page.locator("[data-md-component=search-query]").press_sequentially(words)  # it listens to keys
    first = page.locator(".md-search-result__item").first
    first.wait_for(state="visible", timeout=60_000)  # the index is built in the browser
    text: str = first.inner_text()
    return text


def test_search_finds_lora(tab: Any) -> None:
    assert search(tab.open(), "LoRA").startswith("LoRA")


def test_search_finds_a_name_made_of_signs(tab: Any) -> None:
    page = tab.open()
    assert "(IA)^3" in search(page, "(IA)^3")
    page.locator(".md-search-result__item a").first.click()
    page.wait_for_url("**/methods/ia3/**")


def test_hostile_text_stays_text_in_search_results(tab: Any) -> None:
    page = tab.open()
    assert "Evil <script>window.pwned=1</script>" in search(page, "Evil")
    assert page.evaluate("window.pwned") is None


def test_hostile_page_runs_nothing(tab: Any) -> None:
    page = tab.open("methods/hostile/")
    assert "<script>window.pwned=1</script> | `x` {{ 7*7 }}" in page.locator("h1").inner_text()
    assert (
        page.locator("article :is(script, style, img, [onerror], [onload], [onmouseover], a[href^=javascript])").count()
        == 0
    )
    assert page.evaluate("window.pwned") is None
    assert "{{ config }} {% raw %} # not a heading <!-- comment" in page.locator(".pc-title").inner_text()


def test_filter_narrows_and_its_address_restores_it(tabs: Any) -> None:
    tab = tabs()
    page = tab.open("methods/")
    every = len(visible(page))
    page.get_by_label("Category").select_option("prompt")
    page.get_by_label("mergeable").check()
    few = visible(page)
    assert 0 < len(few) < every
    page.get_by_role("button", name="Name").click()
    page.get_by_role("button", name="Name").click()
    shown, kept = visible(page), page.url
    assert "category=prompt" in kept
    assert "claims=merge" in kept
    assert "sort=-name" in kept
    again = tabs().open(kept.removeprefix(tab.root))
    assert visible(again) == shown
    assert shown == sorted(few, key=str.lower, reverse=True)
    assert again.locator("th[data-key=name]").get_attribute("aria-sort") == "descending"


def test_text_filter_finds_aliases_and_says_when_nothing_is_left(tab: Any) -> None:
    page = tab.open("methods/")
    field = page.get_by_label("Search names")
    field.fill("IA3Config")
    assert visible(page) == ["(IA)^3"]
    field.fill("no such method")
    assert visible(page) == []
    assert "0 of" in page.locator("#table-status").inner_text()
    page.get_by_role("button", name="Clear all").click()
    page.wait_for_function("!location.search")
    assert len(visible(page)) > 100


def test_numbers_sort_by_size_and_gaps_stay_last(tab: Any) -> None:
    page = tab.open("methods/?sort=step")
    cells = page.locator("#entries-table tbody td[data-label='Step time']").all_inner_texts()
    figures = [float(text.rstrip("×")) for text in cells if "×" in text]
    assert len(figures) >= 3
    assert figures == sorted(figures)
    assert all("×" in text for text in cells[: len(figures)])
    page.get_by_role("button", name="Step time").click()
    down = page.locator("#entries-table tbody td[data-label='Step time']").all_inner_texts()
    assert [float(text.rstrip("×")) for text in down[: len(figures)]] == figures[::-1]


def test_table_and_finder_work_without_javascript(tabs: Any) -> None:
    page = tabs(java_script_enabled=False).open("methods/")
    assert page.locator("#entries-table tbody tr:visible").count() > 100
    assert not page.locator("#filters").is_visible()
    page.goto(page.url.replace("methods/", ""))
    page.get_by_role("link", name="the inputs").click()
    page.get_by_role("link", name="must reverse").click()
    assert "find/inputs-reverse/" in page.url
    assert page.locator(".pc-short > li").count() > 0
    page.get_by_role("link", name="speech").click()
    assert page.get_by_text("No method in the catalog fits").is_visible()


def test_finder_leads_to_the_same_methods_in_the_table(tab: Any) -> None:
    page = tab.open("find/weights-merge-reverse-llm/")
    count = int(page.locator(".pc-verdict strong").inner_text().split()[0])
    page.get_by_role("link", name="See them in the table").click()
    page.wait_for_url("**/methods/**")
    assert len(visible(page)) == count


def test_entry_page_shows_code_and_badges(tab: Any) -> None:
    page = tab.open("methods/lora/")
    assert "class LoRALinear" in page.locator(".language-python code").inner_text()
    badges = page.locator(".pc-badges").first.inner_text()
    assert "mergeable" in badges
    assert "removable" in badges
    verified = page.locator(".pc-claims tbody tr:has(.pc-is-verified) th").all_inner_texts()
    labels = {CLAIMS[key].label for key in ("detachable", "mergeable", "determinism")}
    assert labels <= {text.split("\n")[0] for text in verified}
    assert page.locator(".pc-claims .pc-is-contradicted").count() == 0
    assert "torch 2.13.0" in page.locator(".pc-claims").inner_text()


def test_code_fits_beside_the_contents(tab: Any) -> None:
    page = tab.open("methods/lora/")
    code = page.locator(".language-python pre > code")
    assert code.evaluate("node => node.scrollWidth - node.clientWidth") <= 0
    citation = page.locator(".language-bibtex pre > code")
    assert citation.evaluate("node => node.scrollWidth - node.clientWidth") <= 0


def test_columns_of_a_matrix_stand_below_each_other(tab: Any) -> None:
    page = tab.open("compare/reversibility/")
    places = page.locator(".pc-matrix:not(.pc-glance)").evaluate_all(
        "tables => tables.map(t => [...t.tHead.rows[0].cells].map(c => Math.round(c.getBoundingClientRect().x)).join())"
    )
    assert len(places) >= 5
    assert len(set(places)) == 1


def test_a_matrix_stays_one_on_a_phone(tabs: Any) -> None:
    page = tabs(width=390).open("compare/reversibility/")
    row = page.locator("#selective ~ table").first.locator("tbody tr").first
    tops = row.locator("th, td").evaluate_all(
        "cells => cells.filter(c => c.checkVisibility()).map(c => c.getBoundingClientRect().y)"
    )
    assert len(tops) == 5
    assert len(set(tops)) == 1


ASTRAY = """() => [...document.querySelectorAll('.pc-table td[data-label]')].filter(cell => {
  if (!cell.checkVisibility()) return false;
  const range = document.createRange();
  range.selectNodeContents(cell);
  return [...range.getClientRects()].some(box => box.width && box.x < cell.getBoundingClientRect().x + 110);
}).map(cell => cell.textContent)"""


@pytest.mark.parametrize("path", ["lists/peft-state-of-the-art/", "methods/lora/", "compare/deviations/"])
def test_words_of_a_cell_stay_beside_its_label_on_a_phone(tabs: Any, path: str) -> None:
    assert tabs(width=390).open(path).evaluate(ASTRAY) == []


def test_a_phone_sorts_by_a_list(tabs: Any) -> None:
    tab = tabs(width=390)
    page = tab.open("methods/?sort=year")
    assert page.get_by_label("Sort by").input_value() == "year"
    page.get_by_label("Sort by").select_option("-year")
    assert "sort=-year" in page.url
    years = [int(text) for text in page.locator("#entries-table td[data-label=Year]").all_inner_texts()]
    assert years == sorted(years, reverse=True)
    page.get_by_role("button", name="Clear all").click()
    page.wait_for_function("!location.search")
    assert visible(page)[:3] == visible(tabs(width=390).open("methods/"))[:3]


def test_drawings_can_be_read_on_a_phone(tabs: Any) -> None:
    page = tabs(width=390).open("compare/cost/")
    sizes = page.locator(".pc-chart text").evaluate_all("texts => texts.map(t => t.getBoundingClientRect().height)")
    assert min(size for size in sizes if size) >= 9


def test_equations_are_drawn(tab: Any) -> None:
    page = tab.open("methods/hostile/")
    box = page.locator(".pc-equation math").bounding_box()
    assert box["width"] > 50
    assert box["height"] > 10


def test_citation_is_copied(tabs: Any) -> None:
    tab = tabs(permissions=["clipboard-read", "clipboard-write"])
    page = tab.open("methods/lora/")
    page.locator(".language-bibtex").scroll_into_view_if_needed()
    page.locator(".language-bibtex .md-code__button, .language-bibtex .md-clipboard").first.click()
    page.wait_for_function("navigator.clipboard.readText().then((text) => text.includes('Low-Rank Adaptation'))")
    assert page.evaluate("navigator.clipboard.readText()").lstrip().startswith("@")


def test_dark_mode_follows_the_toggle_and_is_kept(tab: Any) -> None:
    page = tab.open()
    color = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(color)
    page.locator("label[title='Switch to dark mode']").click()
    assert page.locator("body").get_attribute("data-md-color-scheme") == "slate"
    dark = page.evaluate(color)
    assert dark != light
    tab.open("methods/lora/")
    assert page.evaluate(color) == dark


def test_keyboard_alone_is_enough(tab: Any) -> None:
    page = tab.open("methods/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('.md-skip')")
    page.get_by_label("Search names").focus()
    page.keyboard.type("dora")
    page.locator("th[data-key=year] button").focus()
    page.keyboard.press("Enter")
    assert page.locator("th[data-key=year]").get_attribute("aria-sort") == "ascending"
    page.locator("th[data-key=step] button").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('tbody th') !== null")
    page.keyboard.press("Enter")
    page.wait_for_url("**/methods/**/")
    assert "DoRA" in page.locator("h1").inner_text()


def test_alias_leads_to_the_entry(tab: Any) -> None:
    page = tab.open("methods/loraconfig/")
    page.wait_for_url("**/methods/lora/")
    page.goto(tab.root + "arxiv/2106.09685/")
    page.wait_for_url("**/methods/lora/")


@pytest.mark.parametrize("path", PAGES)
def test_page_is_well_formed_for_assistive_technology(tab: Any, path: str) -> None:
    assert tab.open(path).evaluate(BROKEN_IN) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(tabs: Any, scheme: str) -> None:
    page = tabs(color_scheme=scheme)
    found = {path: page.open(path).evaluate(LOW_CONTRAST) for path in PAGES}
    assert {path: problems for path, problems in found.items() if problems} == {}


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_screen(tabs: Any, width: int) -> None:
    tab = tabs(width=width)
    wide = {path: tab.open(path).evaluate("document.documentElement.scrollWidth - innerWidth") for path in PAGES}
    assert {path: excess for path, excess in wide.items() if excess > 0} == {}
