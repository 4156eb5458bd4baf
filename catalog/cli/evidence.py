"""`peft-catalog verify` and `peft-catalog bench`: run implementations and keep what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalog.cli.context import database
from catalog.terminal import console

if TYPE_CHECKING:
    from catalog.entry import Entry

Slugs = Annotated[list[str] | None, typer.Argument(help="Methods by slug or alias; all implemented ones if left out.")]
Json = Annotated[bool, typer.Option("--json", help="Print the rows as JSON lines instead of a table.")]
Record = Annotated[
    bool, typer.Option("--record", help="Also write the rows to catalog/measured, which is shipped with the catalog.")
]

VERIFY_KEY = ("slug", "backbone", "claim")
BENCH_KEY = ("slug", "backbone", "device")


def register(app: typer.Typer) -> None:
    """Add the two commands."""
    app.command(
        "verify", epilog="Examples:  peft-catalog verify lora  |  peft-catalog verify --claim mergeable --json"
    )(verify)
    app.command("bench", epilog="Examples:  peft-catalog bench lora dora  |  peft-catalog bench --device cuda")(bench)


def verify(
    ctx: typer.Context,
    slugs: Slugs = None,
    claim: Annotated[list[str] | None, typer.Option("--claim", help="Only this claim; may be repeated.")] = None,
    as_json: Json = False,
    record: Record = False,
) -> None:
    """Measure what entries claim on their implementations, and store the evidence.

    Exit code 1 when a measurement contradicts a claim.
    """
    from catalog import evidence

    entries = chosen(ctx, slugs)
    rows = with_progress(
        entries, "measuring", as_json, lambda entry: evidence.verify(entry, claim), store=keep(ctx, "record_evidence")
    )
    if record:
        evidence.record("claims", rows, VERIFY_KEY)
    contradicted = [row for row in rows if row["status"] == "contradicted"]
    if as_json:
        print_lines(rows)
    else:
        print_claims(rows, contradicted, one=len(entries) == 1)
    raise typer.Exit(1 if contradicted else 0)


def bench(
    ctx: typer.Context,
    slugs: Slugs = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; auto takes a GPU where there is one.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of models, batches and methods.")] = 0,
    as_json: Json = False,
    record: Record = False,
) -> None:
    """Measure what methods cost, beside the frozen model and LoRA in the same run.

    A method that fails is reported and does not stop the others; exit code 1 when one failed.
    """
    from catalog import evidence

    rows = with_progress(
        chosen(ctx, slugs),
        "benchmarking",
        as_json,
        lambda entry: iter([evidence.bench(entry, device, seed)]),
        store=keep(ctx, "record_bench"),
    )
    if record:
        evidence.record("bench", [row for row in rows if row["status"] == "ok"], BENCH_KEY)
    failed = [row for row in rows if row["status"] == "failed"]
    if as_json:
        print_lines(rows)
    else:
        print_costs(rows, failed)
    raise typer.Exit(1 if failed else 0)


def chosen(ctx: typer.Context, slugs: list[str] | None) -> list[Entry]:
    """The implemented entries asked for; a CatalogError for a name that has none."""
    import catalog
    from catalog.entry import load_entries
    from catalog.errors import UsageError
    from catalog.evidence import require_torch, runnable

    require_torch()
    entries = {entry.slug: entry for entry in runnable(load_entries())}
    if not slugs:
        return list(entries.values())
    with catalog.open(database(ctx)) as cat:
        wanted = [cat.paper(slug).slug for slug in slugs]
    for slug in wanted:
        if slug not in entries:
            raise UsageError(
                f"{slug} has no implementation yet",
                allowed=entries,
                hint="peft-catalog query --implemented lists the methods that run",
            )
    return [entries[slug] for slug in wanted]


def keep(ctx: typer.Context, function: str) -> Callable[[list[dict[str, Any]]], None]:
    """A function that stores rows in the database."""

    def store(rows: list[dict[str, Any]]) -> None:
        import catalog

        with catalog.open(database(ctx)) as cat:
            getattr(cat, function)(rows)

    return store


def with_progress(
    entries: list[Entry],
    verb: str,
    quiet: bool,
    run: Callable[[Entry], Iterator[dict[str, Any]]],
    store: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Run every entry behind a progress bar on stderr; each entry's rows are stored as soon as they are there."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    rows: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task(verb, total=len(entries))
        for entry in entries:
            progress.update(task, description=f"{verb} {entry.slug}")
            new = list(run(entry))
            store(new)
            rows += new
            progress.advance(task)
    return rows


def print_lines(rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    for row in rows:
        typer.echo(json.dumps(row, ensure_ascii=False, sort_keys=True))


MARKS = {"verified": "[green]✓[/]", "contradicted": "[red]✗[/]", "untestable": "–", "not-applicable": "·"}


def print_claims(rows: list[dict[str, Any]], contradicted: list[dict[str, Any]], *, one: bool) -> None:
    """A line a claim for one method, a line a method for many; every contradiction in full."""
    from rich.markup import escape
    from rich.table import Table

    screen = console()
    table = Table(box=None, pad_edge=False)
    if one:
        for heading in ("claim", "backbone", "", "expected", "measured"):
            table.add_column(heading, overflow="fold")
        for row in rows:
            cells = (row["claim"], row["backbone"], row["expected"], row["measured"])
            claim, backbone, expected, measured = map(escape, cells)
            table.add_row(claim, backbone, MARKS[row["status"]], expected, measured)
    else:
        for heading in ("method", "backbone", "verified", "contradicted", "untestable", "not applicable"):
            table.add_column(heading, justify="left" if heading in ("method", "backbone") else "right")
        for place in dict.fromkeys((row["slug"], row["backbone"]) for row in rows):
            states = [row["status"] for row in rows if (row["slug"], row["backbone"]) == place]
            table.add_row(*place, *(str(states.count(state)) for state in MARKS))
    screen.print(table)
    for row in contradicted:
        words = f"{row['slug']} on {row['backbone']}, {row['claim']}: expected {row['expected']}, "
        screen.print(escape(f"contradicted: {words}measured {row['measured']}; {row['detail']}"), style="red")
    verified = sum(row["status"] == "verified" for row in rows)
    screen.print(f"{verified} claims verified, {len(contradicted)} contradicted")


WIDE = 110
"""Columns of a terminal in which the whole table of costs fits; a narrower one gets the figures that matter most."""

COSTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "trained": lambda row: f"{row['trained']:,}",
    "share": lambda row: f"{100 * row['share']:.2f} %",
    "attach ms": lambda row: f"{1000 * row['attach_s']:.1f}",
    "forward": lambda row: ratio(row["forward_ratio"]),
    "step": lambda row: ratio(row["step_ratio"]),
    "forward /LoRA": lambda row: ratio(row["forward_vs_lora"]),
    "step /LoRA": lambda row: ratio(row["step_vs_lora"]),
    "peak MB": lambda row: "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}",
    "saved kB": lambda row: f"{row['saved_bytes'] / 1e3:.1f}",
    "gap closed": lambda row: f"{100 * row['gap_closed']:.0f} %",
}
"""Column -> what stands in it."""
LESS_IMPORTANT = ("attach ms", "forward", "forward /LoRA")


def ratio(value: float | None) -> str:
    """A ratio, or a dash where there is none."""
    return "–" if value is None else f"{value:.2f}"


def print_costs(rows: list[dict[str, Any]], failed: list[dict[str, Any]]) -> None:
    """The table of what methods cost."""
    from rich.markup import escape
    from rich.table import Table

    screen = console()
    if rows and rows[0]["device"] == "cpu":
        screen.print("no GPU in use: times and peak memory are the CPU's", style="dim")
    device = rows[0]["device_name"] if rows else ""
    shown = [name for name in COSTS if screen.width >= WIDE or name not in LESS_IMPORTANT]
    table = Table(
        box=None,
        pad_edge=False,
        title=f"forward and step: frozen model's forward = 1, on {device}",
        title_justify="left",
    )
    for heading in ("method", "backbone"):
        table.add_column(heading, no_wrap=True)
    for heading in shown:
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        if row["status"] == "ok":
            table.add_row(row["slug"], row["backbone"], *(COSTS[name](row) for name in shown))
    screen.print(table)
    for row in failed:
        screen.print(escape(f"failed: {row['slug']}: {row['error']}"), style="red")
