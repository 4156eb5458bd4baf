"""The start, what moves, and whether it learns."""

from __future__ import annotations

import copy
from functools import cache

import torch

from reference_impls.adapter import Adapter
from reference_impls.backbones import Backbone, pretrained, trained
from reference_impls.claims.trial import Measurement, Trial, base_output, distance, judge, like

STEPS = 200
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
LEAST = 0.01
"""Share of the gap that counts as learning."""


def identity_at_init(trial: Trial) -> Measurement:
    """Outputs of adapted and base model agree at the start, or measurably do not."""
    model, _ = trial.fresh()
    batch = like(model, model.batch(7))
    with torch.no_grad():
        measured = distance(model(batch), base_output(trial.kind, torch.float64, batch))
    if trial.expected.identity_at_init is None:
        return Measurement(
            "identity-at-init",
            "not-applicable",
            "depends",
            f"{measured:.3g}",
            detail="the entry claims neither",
        )
    ok = (measured <= 1e-12) == trial.expected.identity_at_init
    words = "the base model" if trial.expected.identity_at_init else "not the base model"
    return judge("identity-at-init", ok, expected=words, measured=measured, tolerance=1e-12)


def trained_tensors_learn(trial: Trial) -> Measurement:
    """Every trained tensor gets a gradient that is not zero within three steps."""
    model, adapter = trial.fresh()
    names = [name for name, _ in adapter.named_parameters()]
    if not names:
        return Measurement("trained-tensors-learn", "not-applicable", "", "", detail="nothing is trained by gradient")
    inert = {name for name in names if any(name.endswith(end) for end in adapter.inert)}
    alive: set[str] = set()
    optimizer = adapter.optimizer(1e-2)
    for step in range(3):
        optimizer.zero_grad()
        adapter.loss(like(model, model.batch(60 + step))).backward()
        sizes = {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in adapter.named_parameters()}
        floor = 1e-12 * max(sizes.values())
        alive |= {name for name, size in sizes.items() if size > floor}
        optimizer.step()
        adapter.after_step()
    still = sorted(set(names) - alive - inert)
    surprising = sorted(alive & inert)
    return judge(
        "trained-tensors-learn",
        not still and not surprising,
        expected=f"{len(names) - len(inert)} of {len(names)}",
        measured=f"{len(alive)} of {len(names)}",
        tolerance="gradient above 1e-12 of the largest",
        detail="; ".join(still[:3] + surprising[:3])
        or (f"provably inert: {', '.join(adapter.inert)}" if inert else ""),
    )


def only_trained_tensors_move(trial: Trial) -> Measurement:
    """No tensor of the base model is trained, gets a gradient or changes."""
    model = pretrained(trial.kind).double()
    base = [(name, p, p.detach().clone()) for name, p in model.named_parameters()]
    buffers = [(name, b, b.clone()) for name, b in model.named_buffers()]
    adapter = trial.attach(model)
    trained_ids = {id(p) for p in adapter.parameters()}
    adapter.fit([like(model, model.batch(60 + i)) for i in range(3)])
    moved = [
        name
        for name, p, before in base
        if p.requires_grad or p.grad is not None or id(p) in trained_ids or not torch.equal(p, before)
    ]
    moved += [name for name, b, before in buffers if not torch.equal(b, before)]
    return judge(
        "only-trained-tensors-move",
        not moved,
        expected="0 base tensors",
        measured=f"{len(moved)} base tensors",
        tolerance="bit-identical",
        detail=", ".join(moved[:3]),
    )


def it_learns(trial: Trial) -> Measurement:
    """The downstream loss falls; how much of the gap to full fine-tuning is closed."""
    share, rate = gap_closed(trial)
    return judge(
        "it-learns",
        share > LEAST,
        expected="more than 1 % of the gap",
        measured=f"{100 * share:.1f} % of the gap",
        tolerance="",
        detail=f"{STEPS} steps, best learning rate of {', '.join(f'{r:g}' for r in RATES)}: {rate:g}",
        dtype="float32",
    )


def learns_at_all(trial: Trial) -> bool:
    """Whether some learning rate closes more than 1 % of the gap: the claim without its figure, in less time."""
    return any(share_at(trial, rate, steps) > LEAST for steps in (STEPS // 5, STEPS) for rate in reversed(rates(trial)))


def gap_closed(trial: Trial, seed: int = 0) -> tuple[float, float]:
    """Share of the downstream-loss gap between pretrained and fully fine-tuned model that the method closes.

    Every method has the same number of steps and the best of the same learning rates (returned beside the share). The
    rate is picked on the held-out batches themselves, which flatters all methods a little; full fine-tuning, the other
    end, has one rate and the steps of pretraining. So shares order methods and are no score, and may pass 100 %.
    """
    return max((share_at(trial, rate, STEPS, seed), rate) for rate in rates(trial))


def rates(trial: Trial) -> tuple[float, ...]:
    """The learning rates to try: a method that trains nothing by gradient has no use for more than one."""
    return RATES if trial.fresh()[1].parameters() else RATES[:1]


def share_at(trial: Trial, rate: float, steps: int, seed: int = 0) -> float:
    """The share that ``steps`` steps at one learning rate close."""
    before, full = ends(trial.kind)
    model = pretrained(trial.kind)
    adapter = trial.attach(model, seed=seed)
    adapter.fit((model.batch(1000 * seed + 100 + i) for i in range(steps)), learning_rate=rate)
    return (before - held_out_loss(model)) / (before - full)


def held_out_loss(model: Backbone) -> float:
    """Mean downstream loss on batches no one trained on."""
    with torch.no_grad():
        return sum(model.loss(model.batch(50_000 + i)).item() for i in range(8)) / 8


@cache
def ends(kind: str) -> tuple[float, float]:
    """Held-out downstream loss of the pretrained and of the fully fine-tuned model."""
    return held_out_loss(pretrained(kind)), held_out_loss(trained(kind, "downstream"))


def determinism(trial: Trial) -> Measurement:
    """The same seed gives the same learned part after three steps, bit for bit."""
    states = []
    for _ in range(2):
        model, adapter = trial.fresh()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            adapter.fit([like(model, model.batch(60 + i)) for i in range(3)])
        states.append(copy.deepcopy(adapter.state_dict()))
    first, second = states
    unequal = [name for name in first if not torch.equal(first[name], second[name])]
    return judge(
        "determinism",
        bool(first) and not unequal and first.keys() == second.keys(),
        expected="equal",
        measured="equal" if not unequal else f"{len(unequal)} tensors differ",
        tolerance="bit-identical",
        detail=", ".join(unequal[:3]),
    )


def settle(adapter: Adapter) -> None:
    """Three steps of training, for claims that must hold after it."""
    model = adapter.model
    assert isinstance(model, Backbone)
    adapter.fit([like(model, model.batch(70 + i)) for i in range(3)])
