"""The page on strength: order, bounds, what a list says, and drawings that are XML."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from catalog.pages import strength
from catalog.pages.data import SiteData


def row(slug: str, word: str, growth: float | None = 10.0, **change: Any) -> dict[str, Any]:
    figures = {f"{kind}_{name}": None for kind in ("kept", "once", "often") for name in ("bfloat16", "float32")}
    return {
        "slug": slug,
        "backbone": "decoder",
        "word": word,
        "zero_is_base": True,
        "growth": growth,
        "cycles": 10,
        **figures,
    } | change


def point(slug: str, level: str, c: float, along: float, off: float = 0.0) -> dict[str, Any]:
    return {"slug": slug, "backbone": "decoder", "level": level, "c": c, "along": along, "off": off}


@pytest.fixture
def measured(site_data: SiteData) -> SiteData:
    rows = [
        row("oft", "nonlinear", 3.0),
        row("lora", "linear", often_bfloat16=0.5, once_bfloat16=0.1, often_float32=0.01, kept_float32=0.002),
        row("hra", "none", 1.2),
        row("loha", "linear"),
        row("a-slug-that-is-gone", "linear"),
    ]
    points = [point("lora", "module", c, c) for c in (-1.0, 0.0, 1.0, 2.0)]
    points += [point("lora", "output", c, 0.5 * c, 0.3) for c in (2.0, -1.0)]
    points += [point("oft", "output", -1.0, -30.0), point("oft", "output", 1.0, 1.0)]
    return replace(site_data, reversals=rows, strength_points=points)


def test_linear_methods_come_first_and_unknown_ones_are_left_out(measured: SiteData) -> None:
    assert [m.paper.slug for m in strength.methods(measured)] == ["loha", "lora", "oft", "hra"]


def test_what_the_page_says_follows_from_the_rows(measured: SiteData) -> None:
    values = strength.values(measured)
    assert (values["best"], values["worst"], values["exact"]) == (-30.0, -0.5, 0)
    drift = {"once_bfloat16": 0.1, "often_bfloat16": 0.5, "often_float32": 0.01, "cycles": 10, "kept": 0.002}
    assert values["drift"] == drift
    by_slug = {m.paper.slug: m for m in values["methods"]}
    assert [slug for slug, m in by_slug.items() if m.bounded] == ["hra"]
    assert by_slug["lora"].at("output", -1.0) == (-0.5, 0.3)
    assert by_slug["lora"].at("output", 0.5) is None
    assert (values["scaled"], values["linear"], values["base_at_zero"], values["bounded"]) == (2, 1, 2, ["HRA"])
    ((_, advice),) = values["advice"]
    # The list says to avoid all three; LoHa is linear.
    assert [(m.paper.slug, says, agrees) for m, says, agrees in advice] == [
        ("loha", "avoid it", False),
        ("oft", "avoid it", True),
        ("hra", "avoid it", True),
    ]


def test_drawings_are_xml_within_their_frame(measured: SiteData) -> None:
    by_slug = {m.paper.slug: m for m in strength.methods(measured)}
    assert by_slug["hra"].picture == ""
    for slug, curves in (("lora", 2), ("oft", 1)):
        drawing = ElementTree.fromstring(str(by_slug[slug].picture))
        lines = [e for e in drawing.iter() if e.tag.endswith("polyline")]
        assert len(lines) == curves
        for line in lines:
            places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
            assert places == sorted(places)  # from left to right, whatever the order of the rows
            assert all(0 <= y <= 84 for _, y in places)


def test_names_are_escaped_in_drawings() -> None:
    assert "<b>" not in strength.sparkline("<b>", {"module": [(0.0, 0.0, 0.0)]})


def test_every_method_on_which_a_list_gives_advice_is_an_entry(site_data: SiteData) -> None:
    advised = {slug for item in site_data.lists for slug in (*item.steer_with, *item.steer_without)}
    assert advised
    assert advised <= set(site_data.by_slug)
