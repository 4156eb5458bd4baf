"""Runs the stand-in by hand.

python -m tests.standin --port 8099 --misbehave "short page:2" --misbehave "rate text with status 200"
PEFT_CATALOG_ARXIV_PACE=0.5 peft-catalog sync --arxiv-url http://127.0.0.1:8099
"""

from __future__ import annotations

from typing import Annotated

import typer

from tests.standin import StandIn, papers
from tests.standin.atom import Form
from tests.standin.mischief import MISCHIEF as QUERIES
from tests.standin.oai import MISCHIEF as HARVESTS

MISCHIEF = QUERIES | HARVESTS


def main(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8099,
    form: Annotated[Form, typer.Option(help="The feed of 2026, or the one until 2025.")] = "present",
    invented: Annotated[int, typer.Option(min=0, help="Made-up papers beside those of the catalog.")] = 0,
    misbehave: Annotated[list[str] | None, typer.Option(help="KIND or KIND:TIMES; repeat for several.")] = None,
    kinds: Annotated[bool, typer.Option("--kinds", help="List the kinds of misbehavior and stop.")] = False,
) -> None:
    """Serve the catalog's own facts as arXiv would."""
    if kinds:
        typer.echo("\n".join(sorted(MISCHIEF)))
        return
    with StandIn([*papers.catalogued(), *papers.invented(invented)], form, port) as arxiv:
        for wish in misbehave or ():
            kind, _, times = wish.partition(":")
            if kind not in MISCHIEF:
                raise typer.BadParameter(f"{kind!r} is no kind of misbehavior; --kinds lists them")
            arxiv.misbehave(kind, int(times or 1))
        typer.echo(f"arXiv's stand-in: {arxiv.url} ({len(arxiv.papers)} papers); Ctrl-C stops it")
        try:
            while True:
                arxiv.wait(3600)
        except KeyboardInterrupt:
            typer.echo(f"{len(arxiv.log)} requests served")


typer.run(main)
