"""`peft-catalog build` and `peft-catalog info`: the database, and what is in it."""

from __future__ import annotations

from typing import Annotated

import typer

from catalog.cli.context import database


def register(app: typer.Typer) -> None:
    """Add the two commands."""
    app.command("build", epilog="Example:  peft-catalog --db catalog.sqlite build")(build)
    app.command("info", epilog="Example:  peft-catalog info --json")(info)


def build(ctx: typer.Context) -> None:
    """Build the database from the entries; what was fetched or measured stays.

    Queries do this by themselves when entries have changed.
    """
    from catalog import store
    from catalog.database import database_path, open_engine

    path = database_path(database(ctx))
    engine = open_engine(path)
    store.build(engine)
    engine.dispose()
    typer.echo(f"built {path}")


def info(
    ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False
) -> None:
    """What there is: papers by category, implementations, claims measured."""
    import catalog

    with catalog.open(database(ctx)) as cat:
        categories = cat.categories()
        evidence = cat.evidence()
        path = cat.path
    states = [row.status for row in evidence]
    figures = {
        "database": str(path),
        "papers": sum(c.papers for c in categories),
        "categories": {
            str(c.category): {"papers": c.papers, "methods": c.methods, "implemented": c.implemented}
            for c in categories
        },
        "implementations": sum(c.implemented for c in categories),
        "claims": {state: states.count(state) for state in ("verified", "contradicted", "untestable")},
    }
    if as_json:
        import json

        typer.echo(json.dumps(figures, indent=2))
        return
    for category in categories:
        line = f"  {category.category!s:16} {category.papers:4} papers  {category.implemented:3} implemented"
        typer.echo(line)
    claims = figures["claims"]
    assert isinstance(claims, dict)
    typer.echo(f"{figures['papers']} papers, {figures['implementations']} implementations")
    typer.echo(f"{claims['verified']} claims verified, {claims['contradicted']} contradicted")
    typer.echo(f"database: {path}")
    typer.echo("\ntry next:")
    for example in ("query --category reparameterized --strength linear --mergeable", "show lora", "verify lora"):
        typer.echo(f"  {program()} {example}")


def program() -> str:
    """What to type to run this program: its name, or its path where the name alone is not found."""
    import os
    import shutil
    import sys

    name = "peft-catalog"
    called = sys.argv[0]
    return name if shutil.which(name) or not os.path.isfile(called) else os.path.relpath(called)
