"""Taking a method off again: detach, merge, unmerge."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Backbone, pretrained
from reference_impls.claims.training import settle
from reference_impls.claims.trial import Measurement, Trial, base_output, distance, judge


def detachable(trial: Trial) -> Measurement:
    """After training and detach: same keys, tensors, modules, flags and outputs as the base model."""
    model, adapter, batch = trial.away()
    settle(adapter)
    adapter.detach()
    base = pretrained(trial.kind).double()
    differing = differences(model, base)
    with torch.no_grad():
        if not torch.equal(model(batch), base(batch)):
            differing.append("outputs")
    ok = (not differing) == trial.expected.detachable
    return judge(
        "detachable",
        ok,
        expected="the base model" if trial.expected.detachable else "not the base model",
        measured="the base model" if not differing else f"{len(differing)} differences",
        tolerance="bit-identical",
        detail=", ".join(differing[:3]),
    )


def mergeable(trial: Trial) -> Measurement:
    """Merged: the base's module tree and the adapted outputs, at several strengths; unmerged: bit-exact."""
    model, adapter, batch = trial.away()
    if not trial.expected.mergeable:
        return refused(trial, model, adapter)
    base = pretrained(trial.kind).double()
    reference = base_output(trial.kind, torch.float64, batch)
    worst, faults = 0.0, []
    for strength in (1.0, -0.5) if adapter.has_strength else (1.0,):
        if adapter.has_strength:
            adapter.strength = strength
        before = output(model, batch)
        if distance(before, reference) < 0.01:
            faults.append(f"at strength {strength:g} the output is still the base's")
        adapter.merge()
        faults += tree(model, base)
        worst = max(worst, distance(output(model, batch), before))
        adapter.unmerge()
        if not torch.equal(output(model, batch), before):
            faults.append(f"unmerged output differs at strength {strength:g}")
    adapter.detach()
    faults += differences(model, base)
    return judge(
        "mergeable",
        worst <= 1e-10 and not faults,
        expected="equal outputs, exact unmerge",
        measured=f"{worst:.2g}" + (f", {len(faults)} faults" if faults else ", exact unmerge"),
        tolerance=1e-10,
        detail="; ".join(faults[:3]),
    )


def refused(trial: Trial, model: Backbone, adapter: object) -> Measurement:
    """A method that cannot be merged says so, and leaves the model as it was."""
    before = {name: t.clone() for name, t in model.state_dict().items()}
    try:
        adapter.merge()  # type: ignore[attr-defined]
        answer = "merged without complaint"
    except AdapterError as error:
        answer = f"refused: {error}"
    same = all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    ok = answer.startswith("refused") and same
    return judge("mergeable", ok, expected="no", measured="no" if ok else "yes", detail=answer)


def output(model: nn.Module, batch: object) -> Tensor:
    """The model's answer, without a graph."""
    with torch.no_grad():
        result: Tensor = model(batch)
    return result


def tree(model: nn.Module, base: nn.Module) -> list[str]:
    """Where the module trees differ: names, order or classes."""
    mine = [(name, type(m).__name__) for name, m in model.named_modules()]
    theirs = [(name, type(m).__name__) for name, m in base.named_modules()]
    return (
        []
        if mine == theirs
        else [f"module {a or b}" for a, b in zip(mine, theirs, strict=False) if a != b] or ["modules"]
    )


def differences(model: nn.Module, base: nn.Module) -> list[str]:
    """Where two models differ: module tree, hooks, keys, flags, bits."""
    found = tree(model, base)
    found += [f"hook on {n}" for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    mine, theirs = model.state_dict(), base.state_dict()
    if list(mine) != list(theirs):
        return [*found, "state dict keys"]
    found += [name for name in mine if not torch.equal(mine[name], theirs[name])]
    flags = dict(base.named_parameters())
    found += [f"flag of {n}" for n, p in model.named_parameters() if p.requires_grad != flags[n].requires_grad]
    return found
