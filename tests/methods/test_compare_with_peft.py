"""The comparison with peft: that both sides are the same method, that every figure is there, never how fast it is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from catalog.entry import load_entries
from catalog.pages import comparison
from catalog.pages.data import SiteData
from catalog.pages.sources import site_sources
from catalog.pages.writer import _environment

pytest.importorskip("peft")

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_with_peft.py"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_with_peft", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


script = loaded()
SMALL = script.Size(width=256, hidden=512, blocks=2, count=2, length=8)
RANDOM_STARTS = {"fourierft", "c3a", "vblora", "adalora"}
"""Not the base model at the start, or with a penalty on it; compared with copied values in their own tests."""
BOTH = [pair for pair in script.PAIRS if pair.config]


def slugs(pairs: list[Any]) -> list[str]:
    return [pair.slug for pair in pairs]


@pytest.fixture(autouse=True)
def quiet(recwarn: pytest.WarningsRecorder) -> None:
    """What peft warns about is no finding of these tests."""


def subject(pair: Any, side: Any) -> Any:
    return script.ready(side, pair, script.Ground.drawn(SMALL, pair.part))


def small_pair(slug: str) -> Any:
    return next(pair for pair in script.PAIRS if pair.slug == slug)


def test_every_method_of_peft_that_is_implemented_is_compared_or_left_out_with_a_reason() -> None:
    shipped = {entry.slug for entry in load_entries() if "peft" in entry.libraries and entry.has_implementation}
    assert shipped - set(comparison.LEFT_OUT) == set(slugs(BOTH))
    assert not set(comparison.LEFT_OUT) & set(slugs(script.PAIRS))
    assert all(comparison.LEFT_OUT.values())
    assert script.PAIRS[0].slug == comparison.BASELINE


def test_methods_of_which_goals_speak_are_compared() -> None:
    assert set(slugs(script.PAIRS)) >= comparison.ORTHOGONAL | comparison.NEARER
    assert {slug for _, slug in comparison.WHY} <= {"", *slugs(script.PAIRS)}


@pytest.mark.parametrize("pair", BOTH, ids=slugs(BOTH))
def test_both_sides_adapt_the_same_layers_and_train_the_same_number_of_values(pair: Any) -> None:
    ours, theirs = (subject(pair, side) for side in script.sides(pair))
    assert (ours.trained() != theirs.trained()) == bool(pair.counts)
    assert adapted(ours.stack) == adapted(theirs.stack)


def adapted(stack: nn.Module) -> set[str]:
    """Paths of the layers of the stack that something is trained in."""
    trained = [name for name, p in stack.named_parameters() if p.requires_grad]
    words = [name.split(".") for name in trained]
    return {".".join(w[:3]) if w[0] == "blocks" else w[0] for w in words if w[0] in ("blocks", "embed")}


@pytest.mark.parametrize("pair", BOTH, ids=slugs(BOTH))
def test_both_sides_start_alike_and_learn(pair: Any) -> None:
    """Where the start is the base model on both sides, the losses are equal; and both move."""
    ours, theirs = (subject(pair, side) for side in script.sides(pair))
    first, other = ours.loss().item(), theirs.loss().item()
    if pair.slug not in RANDOM_STARTS:
        assert first == pytest.approx(other, rel=1e-4)
    for each in (ours, theirs):
        before = [p.detach().clone() for p in each.stack.parameters() if p.requires_grad]
        for _ in range(2):
            assert script.step(each) > 0
        after = [p for p in each.stack.parameters() if p.requires_grad]
        assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


@pytest.mark.parametrize("slug", ["lora", "oft", "hra", "road", "ia3", "pissa", "ln-tuning", "trainable-tokens"])
def test_ours_unmerges_exactly_and_the_base_that_others_share_stays_as_it_was(slug: str) -> None:
    pair = small_pair(slug)
    ground = script.Ground.drawn(SMALL, pair.part)
    kept = {name: tensor.clone() for name, tensor in ground.weights.items()}
    for side in script.sides(pair):
        each = script.ready(side, pair, ground)
        script.step(each)
        seconds, error = script.unmerging(each)
        assert seconds > 0
        assert error == 0 if side is script.Ours else error < 1e-3
    assert all(torch.equal(tensor, kept[name]) for name, tensor in ground.weights.items())


def test_what_autograd_keeps_is_counted_without_parameters_and_each_storage_once() -> None:
    layer = nn.Linear(4, 3)
    x = torch.randn(5, 4, requires_grad=True)

    def loss() -> torch.Tensor:
        h = torch.tanh(layer(x))  # keeps h; the layer keeps x and its weight
        return (h * h[:, :]).sum()  # keeps h again, as a view

    each = SimpleNamespace(model=layer, stack=layer, loss=loss)
    assert script.saved_bytes(each) == 4 * (5 * 4 + 5 * 3)


def test_a_subject_that_has_had_its_seconds_sits_out(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def step(each: Any) -> float:
        turns.append(each.name)
        return each.seconds

    monkeypatch.setattr(script, "step", step)
    monkeypatch.setattr(script, "clock", lambda work: 0.5)
    slow, quick = SimpleNamespace(name="slow", seconds=9.0), SimpleNamespace(name="quick", seconds=0.5)
    assert script.take_turns([slow, quick], 4, 2.5, lambda text: None) == [(0.5, 9.0), (0.5, 0.5)]
    assert turns == ["slow", "quick", "quick", "quick"]


def test_rows_have_every_figure() -> None:
    small = ("--width", "256", "--hidden", "512", "--length", "8", "--threads", "1", "--rounds", "1")
    command = [sys.executable, str(SCRIPT), "--method", "ether", *small, "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert answer.returncode in (0, 1), answer.stderr
    assert "256 wide: 1 thread: round 1 of 1" in answer.stderr
    found = json.loads(answer.stdout)
    rows = found["rows"]
    places = {(row["slug"], row["library"]) for row in rows}
    assert places == {("lora", "peft-catalog"), ("lora", "peft"), ("ether", "peft-catalog")}
    for row in rows:
        assert (row["width"], row["threads"]) == (256, 1)
        figures = ("trained", "attach_s", "forward_s", "step_s", "saved_bytes", "peak_bytes", "unmerge_s")
        assert all(row[key] > 0 for key in figures)
        assert row["peak_bytes"] > row["saved_bytes"]
        assert all(row[key] for key in ("settings", "version", "torch", "python", "device_name", "date"))
        assert bool(row["implementation"]) == (row["library"] == "peft-catalog")
        assert row["unmerge_error"] == 0 if row["library"] == "peft-catalog" else row["unmerge_error"] < 1e-3
    assert answer.returncode == (0 if all(goal["met"] for goal in found["goals"]) else 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "qlora"), "bitsandbytes"),
        (("--method", "lorra"), "allowed: lora, lora-fa"),
        (("--record", "--hidden", "512"), "leave --hidden and --length out"),
    ],
)
def test_refuses(arguments: tuple[str, ...], message: str) -> None:
    assert_refused(arguments, message)


def test_says_what_to_install_where_peft_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    assert_refused((), "pip install 'peft-catalog[run,parity]'")


def assert_refused(arguments: tuple[str, ...], message: str) -> None:
    app = typer.Typer()
    app.command()(script.main)
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert isinstance(answer.exception, SystemExit)


# Goals and page, from made-up figures.


def row(slug: str, library: str, **figures: Any) -> dict[str, Any]:
    known = {"attach_s": 1.0, "forward_s": 1.0, "step_s": 1.0, "saved_bytes": 100, "peak_bytes": 100}
    known |= {"unmerge_s": 1e-3, "unmerge_error": 0.0 if library == "peft-catalog" else 1e-7, "trained": 7}
    stamp = {"version": "1.2", "torch": "2", "python": "3", "device_name": "x, 2 cores", "date": "2026-11-26"}
    return {
        "slug": slug,
        "library": library,
        "width": 512,
        "threads": 2,
        "settings": "r = 8",
        **stamp,
        **known,
        **figures,
    }


def both(slug: str, mine: dict[str, Any], theirs: dict[str, Any]) -> list[dict[str, Any]]:
    return [row(slug, "peft-catalog", **mine), row(slug, "peft", **theirs)]


LORA = both("lora", {"step_s": 0.2}, {"step_s": 1.0})


def missed(rows: list[dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    return {g.key: [(m.slug, m.figure) for m in g.misses] for g in comparison.goals(rows) if not g.met}


def test_goals_are_met_by_figures_that_meet_them() -> None:
    assert missed(LORA) == {}
    assert missed(LORA + both("dora", {"step_s": 0.4}, {"step_s": 1.0})) == {}


@pytest.mark.parametrize(
    ("rows", "goal", "slug"),
    [
        (both("vera", {"step_s": 1.06}, {}), "step", "vera"),
        (both("vera", {"step_s": 1.04}, {}) + both("ia3", {"step_s": 1.04}, {}) + both("miss", {}, {}), "mean", ""),
        (both("oft", {"step_s": 0.27}, {"step_s": 9.0}), "orthogonal", "oft"),
        ([row("ether", "peft-catalog", step_s=0.27)], "orthogonal", "ether"),
        (both("loha", {"step_s": 0.45}, {"step_s": 1.0}), "nearer", "loha"),
        (both("vera", {"step_s": 0.2, "saved_bytes": 151}, {}), "saved", "vera"),
        (both("vera", {"step_s": 0.2, "attach_s": 1.06}, {}), "attach", "vera"),
        (both("vera", {"step_s": 0.2, "unmerge_error": 1e-9}, {}), "unmerge", "vera"),
        (both("vera", {"step_s": 0.2, "unmerge_s": 0.02}, {}), "unmerge", "vera"),
    ],
)
def test_a_goal_names_who_misses_it(rows: list[dict[str, Any]], goal: str, slug: str) -> None:
    found = missed(LORA + rows)
    assert list(found) == [goal]
    assert [name for name, _ in found[goal]] == [slug]


def test_a_method_that_cannot_be_merged_misses_nothing() -> None:
    assert missed(LORA + both("vera", {"step_s": 0.2, "unmerge_s": None, "unmerge_error": None}, {})) == {}


def rendered(rows: list[dict[str, Any]]) -> str:
    papers = tuple(
        SimpleNamespace(slug=slug, name=f"{slug.upper()} <b>", category="reparameterized")
        for slug in ("lora", "oft", "ether", "qlora")
    )
    site: Any = SiteData(papers)  # type: ignore[arg-type]
    environment = _environment(site_sources(None))
    return environment.get_template("compare_peft.md.jinja").render(
        comparison.values(site, rows), root="../../", site=site
    )


def test_page_shows_figures_goals_and_reasons() -> None:
    rows = LORA + both("oft", {"step_s": 0.264}, {"step_s": 0.5}) + [row("ether", "peft-catalog", step_s=0.5)]
    rows += [{**each, "threads": 1} for each in rows]
    text = rendered(rows)
    assert text.index("512 wide, 2 threads {") < text.index("512 wide, 1 thread {")
    assert text.count("<table") == text.count("<svg") == 2
    assert "264 : 500\u00a0ms" in text
    assert "1.32 × LoRA (512 wide, 2 threads); 1.32 × LoRA (512 wide, 1 thread)" in text
    assert "peft 1 ms, error 1e-07" in text
    assert "bitsandbytes" in text
    assert "<b>" not in text.replace("&lt;b&gt;", "")


def test_page_without_measurements_says_so() -> None:
    assert "No measurements on record" in rendered([])
