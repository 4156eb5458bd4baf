"""What an entry claims beside what was measured, in the words the pages show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from catalog.dimensions import MODELS
from catalog.pages.text import number, plain
from catalog.taxonomy import Strength

if TYPE_CHECKING:
    from catalog.entry import ReportedCount
    from catalog.query import Paper


@dataclass(frozen=True)
class Claim:
    """A measurable claim: its name, and how it is measured."""

    key: str
    label: str
    how: str


CLAIMS: Mapping[str, Claim] = {
    claim.key: claim
    for claim in (
        Claim(
            "trained-parameters",
            "Trained parameters",
            "The number of trained parameters equals the entry's formula at three sizes of the small model.",
        ),
        Claim(
            "reported-counts",
            "Reported counts",
            "The counts a paper prints come out at the real dimensions of the model it names.",
        ),
        Claim(
            "identity-at-init",
            "Starts as the base model",
            "Before training, the outputs of the adapted and of the base model are compared.",
        ),
        Claim(
            "trained-tensors-learn",
            "Every trained tensor learns",
            "Within three steps each trained tensor gets a gradient that is not zero.",
        ),
        Claim(
            "only-trained-tensors-move",
            "Nothing else moves",
            "After training, every other tensor is bit for bit as it was.",
        ),
        Claim("it-learns", "It learns", "The loss on the downstream task falls."),
        Claim(
            "detachable",
            "Can be removed",
            "After training and removal, the base model's tensors and outputs are there again, bit for bit.",
        ),
        Claim(
            "mergeable",
            "Merges",
            "In float64 and away from the start, the merged model has the base's modules and equal outputs.",
        ),
        Claim(
            "strength",
            "Strength",
            "The change at the adapted module is compared at the coefficients -1, 0, 1/2, 1 and 2.",
        ),
        Claim("saves", "Saves", "The learned part, saved and loaded into a fresh attachment, gives equal outputs."),
        Claim(
            "two-faces",
            "Fast form equals definition",
            "The efficient forward pass equals the one the equation defines.",
        ),
        Claim(
            "family-invariant",
            "Family invariant",
            "What the family promises: singular values kept, rank bounded, support of the change fixed, and so on.",
        ),
        Claim(
            "device-dtype",
            "Device and precision",
            "Forward and backward run on one device throughout, and in bfloat16.",
        ),
        Claim("determinism", "Determinism", "Two runs under one seed are equal."),
    )
}

VERIFIED, CONTRADICTED, UNMEASURED = "verified", "contradicted", "unmeasured"
_STATES = {
    "verified": "verified",
    "contradicted": "contradicted",
    "untestable": "untestable",
    "not-applicable": "not applicable",
    "unmeasured": "unmeasured",
}


@dataclass(frozen=True)
class Row:
    """One line of the table of claims on an entry's page; ``again`` where the line above is about the same claim."""

    label: str
    how: str
    claimed: str
    measured: str
    tolerance: str
    state: str
    where: str
    stamp: str
    detail: str = ""
    again: bool = False

    @property
    def state_label(self) -> str:
        """The state in words."""
        return _STATES.get(self.state, self.state)


@dataclass(frozen=True)
class Badge:
    """A claim in short: what it says, and whether it was measured."""

    key: str
    label: str
    state: str
    title: str


def claimed(paper: Paper) -> dict[str, str]:
    """What the entry itself says, by claim, in words."""
    said: dict[str, str] = {}
    back, claims = paper.reversibility, paper.claims
    if claims.parameters:
        said["trained-parameters"] = claims.parameters
    if claims.counts:
        said["reported-counts"] = _counts(claims.counts)
    if claims.identity_at_init is not None:
        said["identity-at-init"] = "yes" if claims.identity_at_init else "no"
    if back and not paper.no_implementation:
        said["detachable"] = "yes" if back.detachable else "no"
        said["mergeable"] = "yes" if back.mergeable else "no"
        said["strength"] = str(back.strength)
    return said


def _counts(counts: Sequence[ReportedCount]) -> str:
    if len(counts) > 2:
        return f"{len(counts)} counts, listed below"
    return "; ".join(f"{number(count.trained)} at {count.at}" for count in counts)


def rows(paper: Paper) -> list[Row]:
    """Every claim that is made or was measured, in a fixed order; once for each small model it was measured on."""
    said = claimed(paper)
    table: list[Row] = []
    for key, claim in CLAIMS.items():
        measured = sorted((row for row in paper.evidence if row.claim == key), key=lambda row: str(row.backbone))
        table += _together(_measured_row(claim, row, said.get(key)) for row in measured)
        if not measured and key in said:
            table.append(Row(claim.label, claim.how, said[key], "–", "", UNMEASURED, "", ""))
    table += [
        Row(plain(item.claim), "", "", "cannot be measured on a small model", "", "untestable", "", "", item.why)
        for item in paper.claims.untestable
    ]
    return table


def _together(rows: Iterable[Row]) -> list[Row]:
    """The lines of one claim; small models with the same result share a line."""
    places: dict[Row, list[str]] = {}
    for row in rows:
        places.setdefault(replace(row, where=""), []).append(row.where)
    return [
        replace(row, where=", ".join(where), again=number > 0) for number, (row, where) in enumerate(places.items())
    ]


def _measured_row(claim: Claim, row: Any, said: str | None) -> Row:
    stamp = ", ".join(
        part
        for part in (
            f"torch {str(row.torch).split('+')[0]}" if row.torch else "",
            str(row.device or ""),
            str(row.date or "")[:10],
        )
        if part
    )
    return Row(
        claim.label,
        claim.how,
        said or str(row.expected or ""),
        _measured(row),
        str(row.tolerance or ""),
        str(row.status),
        str(row.backbone or ""),
        stamp,
        str(row.detail or ""),
    )


def _measured(row: Any) -> str:
    if row.claim == "reported-counts" and row.measured and row.measured == row.expected:
        return "all as reported"
    return str(row.measured if row.measured not in (None, "") else row.status)


def state_of(paper: Paper, key: str) -> str:
    """What measurement says about one claim."""
    states = {str(row.status) for row in paper.evidence if row.claim == key}
    return next((state for state in (CONTRADICTED, VERIFIED) if state in states), UNMEASURED)


def badges(paper: Paper) -> list[Badge]:
    """The claims that help in choosing; one that a paper does not make has no badge."""
    back = paper.reversibility
    if paper.no_implementation or back is None:
        return []
    made = [
        ("identity", "identity-at-init", "starts as base", bool(paper.claims.identity_at_init)),
        ("detach", "detachable", "removable", back.detachable),
        ("merge", "mergeable", "mergeable", back.mergeable),
        ("reverse", "strength", _strength_label(back.strength), reverses(paper)),
    ]
    return [_badge(paper, key, claim, label) for key, claim, label, holds in made if holds]


def _badge(paper: Paper, key: str, claim: str, label: str) -> Badge:
    state = state_of(paper, claim)
    words = {VERIFIED: "measured", CONTRADICTED: "contradicted by measurement", UNMEASURED: "claimed, not measured yet"}
    return Badge(key, label, state, f"{CLAIMS[claim].label}: {words[state]}")


def _strength_label(strength: str) -> str:
    return "linear strength" if strength == Strength.LINEAR else "reverses sign"


def reverses(paper: Paper) -> bool:
    """Whether a coefficient of -1 gives the opposite of the learned change."""
    return paper.reversibility is not None and paper.reversibility.strength in (
        Strength.LINEAR,
        Strength.ANTISYMMETRIC,
    )


@dataclass(frozen=True)
class Parameters:
    """Trained parameters of a method at the dimensions of a well-known model of base size."""

    model: str
    trained: int
    share: float
    setting: str


# All of base size: twelve blocks of width 768, so that counts can be compared across kinds of model.
_REFERENCE = {"decoder": "gpt2", "encoder": "roberta-base", "encoder-decoder": "t5-base", "vit": "vit-b16"}


def parameters(paper: Paper) -> Parameters | None:
    """The formula of the entry at base size, in the paper's usual setting; None while the entry has no formula."""
    if not paper.claims.parameters:
        return None
    backbones = [str(name) for name in (*paper.claims.backbones, paper.mechanism.backbone) if name]
    model = next((_REFERENCE[name] for name in backbones if name in _REFERENCE), "roberta-base")
    trained = paper.parameters_at(model)
    if trained is None:
        return None
    words = ", ".join(f"{key} = {value}" for key, value in paper.claims.defaults.items())
    return Parameters(model, trained, trained / MODELS[model].total, words)


def step_ratio(paper: Paper) -> float | None:
    """Median time of a training step relative to LoRA's in the same run."""
    return next((row.step_vs_lora for row in succeeded(paper.bench) if row.step_vs_lora is not None), None)


def succeeded(runs: Iterable[Any]) -> list[Any]:
    """Benchmark runs that have figures, newest first."""
    done = [row for row in runs if row.status == "ok"]
    return sorted(done, key=lambda row: str(row.date), reverse=True)
