"""`peft-catalog strength`: what a method's coefficient does, and what merging leaves behind."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from catalog.cli.context import database
from catalog.cli.evidence import Json, Record, Slugs, chosen, print_lines, with_progress
from catalog.cli.output import table

KEY = ("slug", "backbone")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "strength", epilog="Examples:  peft-catalog strength lora dora  |  peft-catalog strength --cycles 10 --json"
    )(strength)


def strength(
    ctx: typer.Context,
    slugs: Slugs = None,
    cycles: Annotated[int, typer.Option(min=1, help="How often to merge and unmerge.")] = 1000,
    as_json: Json = False,
    record: Record = False,
) -> None:
    """Measure how methods answer to the coefficient c on what they learned, and whether merging moves the base.

    The change at c = -1, -1/2, 0, 1/2, 1 and 2 at the adapted modules and at the model's output, whether c = 0 is the
    base model bit for bit, whether the change has a bound, and how far the base weights are from where they were after
    merging and unmerging in bfloat16 and float32.
    """
    from catalog import evidence

    rows = with_progress(
        chosen(ctx, slugs),
        "measuring",
        as_json,
        lambda e: iter([evidence.reversal(e, cycles)]),
        lambda rows: keep(ctx, rows),
    )
    if record:
        evidence.record("reversal", [without_points(row) for row in rows], KEY)
        evidence.record("strength", [p for row in rows for p in row["points"]], (*KEY, "level", "c"))
    if as_json:
        print_lines(rows)
        return
    headings = ("method", "backbone", "strength", "c = 0", "output at c = -1", "growth", "drift, bfloat16", "float32")
    table("how the learned change answers to c", headings, map(line, rows))


def keep(ctx: typer.Context, rows: list[dict[str, Any]]) -> None:
    """Store rows and their points in the database."""
    import catalog

    with catalog.open(database(ctx)) as cat:
        cat.record_reversals(map(without_points, rows), [point for row in rows for point in row["points"]])


def without_points(row: dict[str, Any]) -> dict[str, Any]:
    """The row alone."""
    return {key: value for key, value in row.items() if key != "points"}


def line(row: dict[str, Any]) -> tuple[str, ...]:
    """One method's cells."""
    zero = {True: "the base", False: "not the base", None: "–"}[row["zero_is_base"]]
    back = [p["along"] for p in row["points"] if p["level"] == "output" and p["c"] == -1]
    return (
        row["slug"],
        row["backbone"],
        row["word"],
        zero,
        f"{back[0]:.2f}" if back else "–",
        "–" if row["growth"] is None else f"{row['growth']:.3g}",
        *(f"{row[f'often_{name}']:.1e}" if f"often_{name}" in row else "–" for name in ("bfloat16", "float32")),
    )
