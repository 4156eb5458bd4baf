"""The smoke benchmark's figures: what they are, not how fast the machine is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from reference_impls import benchmark
from reference_impls.backbones import SMALL, build
from reference_impls.benchmark import Cost, choose_device, cost, interleaved, peak_bytes

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SIZES", SMALL)
    monkeypatch.setattr(benchmark, "ROUNDS", 3)
    monkeypatch.setattr(benchmark, "LENGTH", 16)
    monkeypatch.setattr(benchmark, "gap_closed", lambda trial, seed: (0.5, 1e-2))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder-decoder", "vit"])
def test_every_figure_of_lora_is_there(kind: str) -> None:
    measured = cost("lora", kind, {"rank": 4}, CPU)
    model = build(kind, SMALL[kind])
    places = sum(name.rpartition(".")[2] in ("q", "v") for name, _ in model.named_modules())
    assert measured.trained == places * 4 * 2 * SMALL[kind].d
    assert measured.share == measured.trained / sum(p.numel() for p in model.parameters())
    assert measured.saved_bytes > 4 * measured.trained
    assert measured.peak_bytes is not None
    assert measured.peak_bytes > 4 * measured.trained
    assert measured.peak_vs_lora is not None
    assert min(measured.attach_s, measured.forward_ratio, measured.forward_vs_lora) > 0
    assert measured.step_ratio is not None
    assert measured.step_ratio > 1  # a step is a forward pass and more
    assert measured.gap_closed == 0.5


@pytest.mark.usefixtures("small")
def test_a_method_that_trains_nothing_by_gradient_has_no_step() -> None:
    measured = cost("autoprompt", "encoder", {}, CPU)
    assert isinstance(measured, Cost)
    assert measured.trained == 0
    assert measured.step_ratio is measured.step_vs_lora is measured.peak_bytes is measured.peak_vs_lora is None
    assert measured.forward_ratio > 0


def test_peak_memory_is_what_was_alive_at_once() -> None:
    million = 1_000_000

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.empty(million, dtype=torch.uint8)

    def at_once() -> None:
        kept = [torch.empty(million, dtype=torch.uint8) for _ in range(3)]
        kept.clear()

    assert million <= peak_bytes(one_after_the_other, CPU) < 1.1 * million
    assert 3 * million <= peak_bytes(at_once, CPU) < 3.1 * million


def test_works_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    monkeypatch.setattr(benchmark, "ROUNDS", 3)
    interleaved({"a": note("a"), "b": note("b")}, CPU)
    assert order == ["a", "a", "b", "b", *["a", "b"] * 3]


def test_a_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(ValueError, match="no CUDA device"):
        choose_device("cuda")
    with pytest.raises(ValueError, match="allowed: auto, cpu, cuda"):
        choose_device("gpu")
