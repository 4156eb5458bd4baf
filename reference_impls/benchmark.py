"""The smoke benchmark: what a method costs, beside the frozen model and LoRA in the same run.

Times are ratios of medians of interleaved rounds, so that a busy machine slows all sides alike. On a GPU they come from
CUDA events and the peak from its allocator; on a CPU from a clock and from torch's own record of every allocation.
"""

from __future__ import annotations

import inspect
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from reference_impls.adapter import Adapter
from reference_impls.backbones import Backbone, Batch, Size, build
from reference_impls.claims.training import gap_closed
from reference_impls.claims.trial import Expected, Trial, like
from reference_impls.registry import load

ROUNDS = 15
LENGTH = 64
COUNT = 8

_WIDE = Size(L=4, d=256, f=1024, heads=8, head_dim=32, V=1000, positions=160)
_WIDE_PAIR = replace(_WIDE, L_dec=4, positions=0, norm="rms", bias=False)
SIZES: dict[str, Size] = {
    "decoder": _WIDE,
    "encoder": _WIDE,
    "encoder-decoder": _WIDE_PAIR,
    "vit": Size(L=4, d=256, f=1024, heads=8, head_dim=32, positions=65, image=32, C=10),
    "mlp": Size(L=4, d=256, f=1024, C=10),
    "multitask-decoder": _WIDE,
    "multitask-encoder-decoder": _WIDE_PAIR,
    "unet": Size(L=2, d=128, f=512, heads=4, head_dim=32, V=13, C=10, image=16),
}
"""Large enough that arithmetic, not Python, takes the time; small enough for a laptop."""


@dataclass(frozen=True)
class Cost:
    """What a method costs on one backbone; a figure that does not exist is None (no training step, say)."""

    trained: int
    share: float
    attach_s: float
    forward_ratio: float
    step_ratio: float | None
    forward_vs_lora: float
    step_vs_lora: float | None
    peak_bytes: int | None
    peak_vs_lora: float | None
    saved_bytes: int
    gap_closed: float


def choose_device(wanted: str) -> torch.device:
    """``auto`` is CUDA where there is one; ValueError when ``cuda`` is asked for and absent."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available here; use --device cpu or --device auto")
    if wanted not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {wanted!r}; allowed: auto, cpu, cuda")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def cost(slug: str, kind: str, hyperparameters: dict[str, Any], device: torch.device, seed: int = 0) -> Cost:
    """Measure one method on the benchmark's backbone of this kind."""
    trial = Trial(load(slug), kind, Expected(None, True, False, "none", hyperparameters))
    subject = Subject.attached(trial, device, seed)
    lora = Subject.attached(
        Trial(load("lora"), kind, Expected(None, True, True, "linear", _lora_on(kind))), device, seed
    )
    frozen = build(kind, SIZES[kind], seed=seed).to(device)
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    trains = bool(subject.adapter.parameters())
    works: dict[str, Callable[[], Any]] = {
        "frozen": lambda: forward(frozen, subject.batch),
        "lora forward": lambda: forward(lora.model, lora.batch),
        "lora step": lora.step,
        "forward": lambda: forward(subject.model, subject.batch),
    }
    if trains:
        works["step"] = subject.step
    times = interleaved(works, device)
    peak = peak_bytes(subject.step, device) if trains else None
    share, _ = gap_closed(trial, seed=seed)
    trained = subject.adapter.count()
    return Cost(
        trained=trained,
        share=trained / sum(p.numel() for p in frozen.parameters()),
        attach_s=subject.attach_s,
        forward_ratio=times["forward"] / times["frozen"],
        step_ratio=times["step"] / times["frozen"] if trains else None,
        forward_vs_lora=times["forward"] / times["lora forward"],
        step_vs_lora=times["step"] / times["lora step"] if trains else None,
        peak_bytes=peak,
        peak_vs_lora=None if peak is None else peak / peak_bytes(lora.step, device),
        saved_bytes=saved_bytes(subject),
        gap_closed=share,
    )


@dataclass
class Subject:
    """A method on the benchmark's model, with a batch and an optimizer."""

    model: Backbone
    adapter: Adapter
    batch: Batch
    attach_s: float

    @classmethod
    def attached(cls, trial: Trial, device: torch.device, seed: int) -> Subject:
        """Build the model, attach the method and clock that."""
        model = build(trial.kind, SIZES[trial.kind], seed=seed).to(device)
        batch = like(model, make_batch(model))
        begin = clock(device)
        adapter = trial.attach(model, seed=seed)
        return cls(model, adapter, batch, clock(device) - begin)

    def step(self) -> None:
        """One training step."""
        if not hasattr(self, "optimizer"):
            self.optimizer = self.adapter.optimizer(1e-3)
        self.optimizer.zero_grad()
        self.adapter.loss(self.batch).backward()
        self.optimizer.step()
        self.adapter.after_step()


def _lora_on(kind: str) -> dict[str, Any]:
    """LoRA where the paper puts it; a stack without attention has only its feed-forward layers."""
    return {"rank": 8, "targets": ("up", "down")} if kind == "mlp" else {"rank": 8}


def make_batch(model: Backbone) -> Batch:
    """8 sequences of 64 tokens, 8 images, or 512 vectors."""
    if "length" in inspect.signature(model.batch).parameters:
        return model.batch(0, count=COUNT, length=LENGTH)  # type: ignore[call-arg]
    return model.batch(0, count=COUNT * LENGTH if model.kind == "mlp" else COUNT)


def forward(model: Backbone, batch: Batch) -> None:
    """One forward pass without a graph."""
    with torch.no_grad():
        model(batch)


def interleaved(works: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    """Median seconds of each work over rounds in which all take their turn."""
    for work in works.values():
        work()
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return {name: statistics.median(values) for name, values in times.items()}


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long a work takes: CUDA events on a GPU, a clock on a CPU."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def clock(device: torch.device) -> float:
    """Now, when everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Most memory in use during a work, beyond what was in use before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler's C++ part from writing over a progress bar: it knows no setting for that."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def saved_bytes(subject: Subject) -> int:
    """Size of the learned part on disk, after training: some methods keep less than they train."""
    subject.adapter.fit([subject.batch] * 2)
    with tempfile.TemporaryDirectory() as folder:
        return subject.adapter.save(Path(folder) / "learned.safetensors")
