"""What the pages say, checked on the shipped catalog without building the site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from catalog.errors import CatalogError
from catalog.pages import chart, claims, data, finder, redirects, table, timeline, writer
from catalog.pages.data import SiteData
from catalog.pages.sources import site_sources
from catalog.taxonomy import Backbone, Category
from tests.site.conftest import bench_row, evidence_row


def measured(site: SiteData, slug: str, **rows: Any) -> SiteData:
    """The catalog with other measurements for one paper."""
    papers = tuple(replace(paper, **rows) if paper.slug == slug else paper for paper in site.papers)
    return SiteData(papers, site.lists)


def rewritten(paper: Any, **changes: Any) -> Any:
    """A paper whose entry says something else."""
    entry = paper.entry.model_copy(update=changes)
    return replace(paper, slug=entry.slug, arxiv=entry.arxiv, entry_json=entry.model_dump_json(by_alias=True))


def evidence(*rows: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(SimpleNamespace(**row) for row in rows)


@pytest.fixture(scope="module")
def bare(site_data: SiteData) -> SiteData:
    """The catalog without any measurement."""
    return SiteData(tuple(replace(paper, evidence=(), bench=()) for paper in site_data.papers), site_data.lists)


def test_claims_without_measurement_are_unmeasured(bare: SiteData) -> None:
    rows = claims.rows(bare.by_slug["lora"])
    assert {row.state for row in rows} == {"unmeasured"}
    assert {"Merges", "Can be removed", "Strength"} <= {row.label for row in rows}
    assert {badge.state for badge in claims.badges(bare.by_slug["lora"])} == {"unmeasured"}


def test_a_measurement_is_shown_with_figure_version_device_and_date(bare: SiteData) -> None:
    site = measured(bare, "lora", evidence=evidence(evidence_row("lora", "mergeable", measured="3e-15")))
    row = next(row for row in claims.rows(site.by_slug["lora"]) if row.label == "Merges")
    assert (row.claimed, row.measured, row.tolerance, row.state) == ("yes", "3e-15", "1e-10", "verified")
    assert row.stamp == "torch 2.13.0, cpu, 2026-11-24"
    assert {badge.key: badge.state for badge in claims.badges(site.by_slug["lora"])}["merge"] == "verified"


def test_equal_results_on_several_models_share_a_line(bare: SiteData) -> None:
    rows = [
        evidence_row("lora", "mergeable", backbone="decoder", measured="2e-16"),
        evidence_row("lora", "mergeable", backbone="encoder", measured="2e-16"),
        evidence_row("lora", "mergeable", backbone="vit", measured="3e-16"),
    ]
    lines = [row for row in claims.rows(measured(bare, "lora", evidence=evidence(*rows)).by_slug["lora"]) if row.where]
    assert [(row.label, row.where, row.measured, row.again) for row in lines] == [
        ("Merges", "decoder, encoder", "2e-16", False),
        ("Merges", "vit", "3e-16", True),
    ]


def test_counts_that_agree_are_not_listed_again(bare: SiteData) -> None:
    rows = [
        evidence_row("lora", "reported-counts", expected="a: 1; b: 2", measured="a: 1; b: 2"),
        evidence_row("lora", "reported-counts", backbone="vit", expected="a: 1; b: 2", measured="a: 1; b: 3"),
    ]
    lines = [row for row in claims.rows(measured(bare, "lora", evidence=evidence(*rows)).by_slug["lora"]) if row.where]
    assert [row.measured for row in lines] == ["all as reported", "a: 1; b: 3"]


def test_one_contradiction_outweighs_any_agreement(bare: SiteData) -> None:
    rows = evidence(
        evidence_row("lora", "mergeable"), evidence_row("lora", "mergeable", "contradicted", backbone="encoder")
    )
    paper = measured(bare, "lora", evidence=rows).by_slug["lora"]
    assert claims.state_of(paper, "mergeable") == "contradicted"
    assert paper.claim_status == "contradicted"


def test_an_entry_without_a_method_has_no_badges(site_data: SiteData) -> None:
    assert claims.badges(site_data.by_slug["clip"]) == []


def test_parameters_follow_the_formula_at_base_size(bare: SiteData) -> None:
    lora = bare.by_slug["lora"]
    formula = lora.claims.model_copy(
        update={"parameters": "L * 2 * rank * 2 * d", "defaults": {"rank": 8}, "backbones": (Backbone.ENCODER,)}
    )
    counted = claims.parameters(rewritten(lora, claims=formula))
    assert counted is not None
    assert (counted.model, counted.trained) == ("roberta-base", 294_912)
    unbound = lora.claims.model_copy(update={"parameters": None})
    assert claims.parameters(rewritten(lora, claims=unbound)) is None


def test_finder_answers_every_combination_with_fitting_methods(site_data: SiteData) -> None:
    combinations = list(finder.combinations())
    assert len({answers.path for answers in combinations}) == len(combinations) == 4 * 2 * 2 * 7
    for answers in combinations:
        answer = finder.answer(site_data, answers)
        assert answer.count == sum(map(answers.allow, site_data.methods))
        for suggestion in answer.short:
            assert suggestion.reasons, suggestion.paper.slug
            assert not answers.merge or suggestion.paper.reversibility.mergeable
            assert not answers.model or answers.model in suggestion.paper.modality


def test_every_option_of_the_finder_says_what_it_leaves(site_data: SiteData) -> None:
    answer = finder.answer(site_data, finder.Answers("inputs", "", "reverse", ""))
    by_path = {item.path: item for item in finder.combinations()}
    for question in answer.questions:
        assert sum(option.chosen for option in question.options) == 1
        for option in question.options:
            assert option.count == finder.answer(site_data, by_path[option.path]).count


def test_measured_methods_come_first(bare: SiteData) -> None:
    site = measured(bare, "hra", evidence=evidence(evidence_row("hra", "mergeable")))
    first = finder.answer(site, finder.Answers(merge="merge")).short[0]
    assert first.paper.slug == "hra"
    assert first.reasons[0] == "folds into the base weights (measured)"


def test_context_is_never_suggested(site_data: SiteData) -> None:
    assert all(paper.category != Category.CONTEXT for paper in site_data.methods)
    assert "clip" not in {paper.slug for paper in site_data.methods}


def test_table_has_every_entry_once(site_data: SiteData) -> None:
    rows = table.table(site_data)
    assert sorted(row.paper.slug for row in rows) == sorted(site_data.by_slug)
    assert "loraconfig" in next(row for row in rows if row.paper.slug == "lora").hidden_words


def test_chart_is_empty_without_runs(bare: SiteData) -> None:
    assert chart.points(bare) == []
    assert chart.panels(bare) == []


def test_chart_places_every_run_once_and_is_xml(bare: SiteData) -> None:
    site = bare
    for slug in ("lora", "dora", "bitfit", "vera"):
        site = measured(site, slug, bench=evidence(bench_row(slug), bench_row(slug, status="failed", share=None)))
    panels = chart.panels(site)
    assert [panel.key for panel in panels] == ["step", "memory", "gap"]
    for panel in panels:
        tree = ElementTree.fromstring(str(panel.svg))
        assert sorted(link.get("href", "") for link in tree.iter("a")) == [
            f"../../methods/{slug}/" for slug in ("bitfit", "dora", "lora", "vera")
        ]
        for path in tree.iter("path"):
            x, y = map(float, (path.get("transform") or "").removeprefix("translate(").rstrip(")").split())
            assert 0 < x < chart.WIDTH
            assert 0 < y < chart.HEIGHT


@pytest.mark.parametrize(("low", "high", "ticks"), [(1e-4, 1.9, 4), (0.002, 0.009, 2), (0.09, 0.11, 1), (1, 100, 3)])
def test_ticks_of_a_logarithmic_axis(low: float, high: float, ticks: int) -> None:
    axis = chart.Axis(low, high, 0, 100, log=True)
    assert len(axis.ticks()) >= ticks
    assert all(0 <= axis.place(tick) <= 100 for tick in axis.ticks())


def test_chart_of_a_single_run_has_a_scale(bare: SiteData) -> None:
    site = measured(bare, "lora", bench=evidence(bench_row("lora")))
    assert len(chart.panels(site)) == 3


def test_lineage_runs_both_ways_and_names_everyone_once(site_data: SiteData) -> None:
    lora = site_data.by_slug["lora"]
    assert [node.paper.slug for node in data.ancestors(site_data, lora)] == list(lora.builds_on)

    def names(nodes: tuple[data.Node, ...]) -> list[str]:
        return [name for node in nodes for name in (node.paper.slug, *names(node.below))]

    below = names(data.descendants(site_data, lora))
    assert len(below) == len(set(below))
    assert "dora" in below
    assert "lora" not in below


def test_timeline_holds_every_paper(site_data: SiteData) -> None:
    years = timeline.years(site_data)
    assert sum(len(year.papers) for year in years) == len(site_data.papers)
    assert [year.year for year in years] == sorted((year.year for year in years), reverse=True)
    ElementTree.fromstring(str(timeline.bars(years)))


def test_redirects_never_shadow_an_entry_nor_leave_the_site(site_data: SiteData) -> None:
    lora = site_data.by_slug["lora"]
    twice = rewritten(lora, slug="other", aliases=("../../up", "dora", "LoraConfig"), arxiv="cs/0101001")
    found = redirects.redirects(SiteData((*site_data.papers, twice)))
    assert found["methods/up"][0] == "../other/"
    assert "methods/dora" not in found
    assert "methods/loraconfig" not in found, "an alias of two entries leads nowhere"
    assert found["arxiv/cs/0101001"][0] == "../../../methods/other/"
    assert all(".." not in path for path in found)


def test_a_shared_arxiv_id_leads_to_the_paper_that_stands(site_data: SiteData) -> None:
    bone, miss = site_data.by_slug["bone"], site_data.by_slug["miss"]
    assert bone.arxiv == miss.arxiv
    for papers in ((bone, miss), (miss, bone)):
        assert redirects.redirects(SiteData(papers))[f"arxiv/{miss.arxiv}"][1].slug == "miss"


def test_many_counts_are_not_repeated(bare: SiteData) -> None:
    lora = bare.by_slug["lora"]
    few = rewritten(lora, claims=lora.claims.model_copy(update={"counts": lora.claims.counts[:2]}))
    assert claims.claimed(few)["reported-counts"].count(" at ") == 2
    assert len(lora.claims.counts) > 2
    assert claims.claimed(lora)["reported-counts"] == f"{len(lora.claims.counts)} counts, listed below"


def test_lora_is_not_compared_with_itself(bare: SiteData) -> None:
    site = bare
    for slug in ("lora", "dora"):
        site = measured(site, slug, bench=evidence(bench_row(slug)))
    reasons = {slug: " ".join(finder.reasons(site, site.by_slug[slug], finder.Answers())) for slug in ("lora", "dora")}
    assert "LoRA's time" in reasons["dora"]
    assert "LoRA's time" not in reasons["lora"]


def test_a_kind_of_model_that_no_paper_adapts_is_no_option(bare: SiteData) -> None:
    labels = [option.label for option in finder.answer(bare, finder.Answers()).questions[3].options]
    adapted = {str(word) for paper in bare.methods for word in paper.modality}
    assert labels == ["any", *(label for key, label in finder.MODELS.items() if key in adapted)]


def test_root_is_relative_to_the_page() -> None:
    def root(path: str) -> str:
        return writer.Page(path, "", "", "", {}).root

    assert [root(path) for path in ("index.md", "methods/index.md", "methods/lora.md", "authors.md")] == [
        "./",
        "../",
        "../../",
        "../",
    ]


def test_templates_elsewhere_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_CATALOG_SITE", str(tmp_path))
    with pytest.raises(CatalogError) as caught:
        site_sources()
    assert str(tmp_path) in str(caught.value)
    assert "repository" in str(caught.value)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CatalogError, match="not rendered pages"):
        writer.render(SimpleNamespace(), tmp_path)
    assert (tmp_path / "thesis.txt").exists()
