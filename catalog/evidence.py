"""The one door between what is known and what runs: measures the claims and costs of entries.

torch is imported only inside the functions that run something.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.dimensions import model as dimensions_of
from catalog.entry import Entry
from catalog.errors import CatalogError, UsageError
from catalog.files import write_atomic
from catalog.formula import evaluate
from catalog.locations import MEASURED, implementation_folders

if TYPE_CHECKING:
    from reference_impls.claims import Expected, Trial

Row = dict[str, Any]


def require_torch() -> None:
    """CatalogError saying how to get torch, where it is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise CatalogError(
            "running an implementation needs torch, which is not installed",
            hint="pip install 'peft-catalog[run]'; queries, lists and exports work without it",
        ) from error


def runnable(entries: Iterable[Entry]) -> list[Entry]:
    """The entries that have an implementation."""
    return [entry for entry in entries if entry.has_implementation]


def expected_of(entry: Entry) -> Expected:
    """What the entry claims, in the terms of the measurements."""
    from reference_impls.claims import Expected

    formula, back = entry.claims.parameters, entry.reversibility
    return Expected(
        identity_at_init=entry.claims.identity_at_init,
        detachable=back.detachable if back else True,
        mergeable=back.mergeable if back else False,
        strength=str(back.strength) if back else "none",
        hyperparameters=keywords(entry.claims.hyperparameters),
        count=None if formula is None else _count(formula),
        reported=tuple(_reported(entry)),
    )


def _count(formula: str) -> Callable[[Mapping[str, float]], int]:
    return lambda variables: evaluate(formula, variables)


def _reported(entry: Entry) -> Iterator[Any]:
    from reference_impls.backbones import Size
    from reference_impls.claims import ReportedCount

    for count in entry.claims.counts:
        known = asdict(dimensions_of(count.at))
        size = Size(**{f.name: known[f.name] for f in fields(Size) if f.name in known})
        yield ReportedCount(count.at, known["kind"], size, keywords(count.hyperparameters), count.trained)


def keywords(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an entry as keywords of attach()."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def trials(entry: Entry) -> Iterator[Trial]:
    """The method on each of its small backbones."""
    from reference_impls.claims import Trial
    from reference_impls.registry import load

    for kind in entry.claim_backbones:
        yield Trial(load(entry.slug), str(kind), expected_of(entry))


def verify(entry: Entry, claims: Iterable[str] | None = None) -> Iterator[Row]:
    """Measure an entry's claims; one row each, as the database and claims.jsonl hold them."""
    require_torch()
    from reference_impls.claims import CLAIMS, measure

    wanted = list(claims or CLAIMS)
    unknown = [name for name in wanted if name not in CLAIMS]
    if unknown:
        raise UsageError(f"unknown claim {unknown[0]!r}", allowed=CLAIMS)
    reasons = {item.claim: item.why for item in entry.claims.untestable}
    for trial in trials(entry):
        for name in wanted:
            if name in reasons:
                row: Row = {"claim": name, "status": "untestable", "expected": "", "measured": "", "tolerance": ""}
                row |= {"detail": reasons[name], "dtype": ""}
            else:
                row = asdict(measure(name, trial))
            yield {"slug": entry.slug, "backbone": trial.kind, **row, **provenance(entry), "device": "cpu"}


def reversal(entry: Entry, cycles: int) -> Row:
    """How a method answers to its coefficient on its first backbone; ``points`` are those of its curves, as rows."""
    require_torch()
    from reference_impls.reversal import reversal as measure

    trial = next(trials(entry))
    found = measure(trial, cycles)
    place = {"slug": entry.slug, "backbone": trial.kind}
    drift = {f"{name}_{precision}": value for precision, d in found.drift.items() for name, value in asdict(d).items()}
    row = {"word": found.word, "zero_is_base": found.zero_is_base, "growth": found.growth, "cycles": found.cycles}
    points = [{**place, **asdict(point)} for point in found.points]
    return {**place, **row, **drift, **provenance(entry), "device": "cpu", "points": points}


def bench(entry: Entry, device: str = "auto", seed: int = 0) -> Row:
    """What a method costs on its first backbone; a method that fails gives a row that says so."""
    require_torch()
    import torch

    from reference_impls.benchmark import choose_device, cost

    try:
        place = choose_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    kind = str(entry.claim_backbones[0])
    row: Row = {
        "slug": entry.slug,
        "backbone": kind,
        "device": place.type,
        "device_name": torch.cuda.get_device_name(place) if place.type == "cuda" else _processor(),
        "seed": seed,
        **provenance(entry),
    }
    try:
        measured = asdict(cost(entry.slug, kind, keywords(entry.claims.hyperparameters), place, seed))
    except Exception as error:  # one method's fault must not cost the others their row
        return row | {"status": "failed", "error": f"{type(error).__name__}: {error}"[:500]}
    return row | measured | {"status": "ok", "error": ""}


def provenance(entry: Entry) -> Row:
    """With what, on which code and when something was measured."""
    import platform

    import torch

    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "implementation": fingerprint(entry),
    }


def fingerprint(entry: Entry) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the implementation's file; empty when there is none."""
    parts = Path(*entry.implementation.split(".")[1:]).with_suffix(".py")
    for folder in implementation_folders():
        if (folder / parts).is_file():
            return hashlib.sha256((folder / parts).read_bytes()).hexdigest()[:12]
    return ""


@cache
def commit() -> str:
    """The commit of the code in use, marked where files differ from it; empty outside a git checkout.

    The shipped measurements are no code: what one run wrote to them does not mark the next.
    """
    root = Path(__file__).parent
    try:
        number = _git("describe", "--always", folder=root)
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude)measured", folder=root)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{number}-dirty" if changed else number


def _git(*arguments: str, folder: Path) -> str:
    answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return answer.stdout.strip()


def _processor() -> str:
    import os
    import platform

    return f"{platform.machine()}, {os.cpu_count()} cores"


def record(name: str, rows: Iterable[Row], key: Iterable[str]) -> Path:
    """Put rows into the shipped file ``measured/<name>.jsonl``, replacing those with the same key."""
    path = MEASURED / f"{name}.jsonl"
    key = tuple(key)
    known = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    merged = {tuple(row[k] for k in key): row for row in [*known, *rows]}
    lines = [json.dumps(merged[k], ensure_ascii=False, sort_keys=True) for k in sorted(merged)]
    return write_atomic(path, "\n".join(lines) + "\n")
