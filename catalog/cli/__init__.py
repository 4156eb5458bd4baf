"""The command `peft-catalog`: one module an area, imported only when one of its commands is run.

Exit codes: 0 all is well; 1 something was checked and problems were found; 2 bad input or usage; 3 something outside
could not be reached; 130 interrupted.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from catalog.errors import CatalogError

AREAS: dict[str, tuple[str, ...]] = {
    "query": ("query", "show", "categories", "authors", "lineage"),
    "build": ("build", "info"),
    "lists": ("list",),
    "export": ("export",),
    "evidence": ("verify", "bench"),
    "strength": ("strength",),
    "entries": ("lint", "new", "schema"),
    "site": ("site",),
    "sync": ("sync", "history", "status"),
    "discover": ("discover",),
    "harvest": ("harvest",),
    "inbox": ("inbox",),
    "links": ("links",),
    "enrich": ("enrich",),
}
"""Module -> the commands it registers."""

EPILOG = "Examples:  peft-catalog query --category reparameterized --mergeable  |  peft-catalog show lora"


def make_app(*areas: str) -> typer.Typer:
    """The program with the commands of these areas; all of them by default."""
    app = typer.Typer(
        name="peft-catalog",
        help="A literature catalog of parameter-efficient fine-tuning whose every claim can be run.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    for area in areas or AREAS:
        import_module(f"catalog.cli.{area}").register(app)
    return app


def options(
    ctx: typer.Context,
    db: Annotated[
        Path | None,
        typer.Option(
            "--db", envvar="PEFT_CATALOG_DB", help="Database file. Default: catalog.sqlite in the user's data folder."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=lambda value: show_version() if value else None, is_eager=True)
    ] = False,
) -> None:
    """Options before the command hold for every command."""
    ctx.obj = {"db": db}


def show_version() -> None:
    """Print the version and stop."""
    from importlib.metadata import version

    typer.echo(f"peft-catalog {version('peft-catalog')}")
    raise typer.Exit


def area_of(arguments: list[str]) -> list[str]:
    """The area whose command the arguments name first; empty when that is not plain, as in --help."""
    skip = False
    for word in arguments:
        if skip or word.startswith("-"):
            skip = word == "--db"
            continue
        return [area for area, commands in AREAS.items() if word in commands]
    return []


def main() -> None:
    """Run the program; a CatalogError becomes a message and its exit code."""
    # A command imports much and throws little of it away: collecting garbage meanwhile costs a tenth of its time.
    gc.set_threshold(50_000)
    try:
        make_app(*area_of(sys.argv[1:]))()
    except CatalogError as error:
        from catalog.terminal import clean

        print(f"peft-catalog: {clean(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; what was stored so far is kept", file=sys.stderr)
        sys.exit(130)
