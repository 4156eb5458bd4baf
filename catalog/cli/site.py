"""`peft-catalog site render|build|serve`: the documentation site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catalog.cli.context import database
from catalog.errors import CatalogError, UsageError

RENDERED = Path("build/site-src/docs")
BUILT = Path("build/site")

Sources = Annotated[
    Path | None,
    typer.Option(
        help="The repository's folder site/, with templates, assets and mkdocs.yml.", envvar="PEFT_CATALOG_SITE"
    ),
]
Pages = Annotated[Path, typer.Option(help="Folder of the rendered Markdown.")]


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(help="Render, build and show the documentation site.", no_args_is_help=True)
    group.command("render", epilog="Example:  peft-catalog site render --output build/site-src/docs")(render)
    group.command("build", epilog="Example:  peft-catalog site build --output build/site")(build)
    group.command("serve", epilog="Example:  peft-catalog site serve --port 8000")(serve)
    app.add_typer(group, name="site")


def render(
    ctx: typer.Context,
    output: Annotated[
        Path, typer.Option(help="Folder for the Markdown; replaced if it was rendered before.")
    ] = RENDERED,
    sources: Sources = None,
) -> None:
    """Render the pages as Markdown, which mkdocs or another engine can build."""
    import catalog
    from catalog.pages import render as render_pages
    from catalog.pages import site_sources

    site_sources(sources)  # before a database is built for nothing
    with catalog.open(database(ctx)) as cat:
        done = render_pages(cat, output, sources)
    typer.echo(f"{done.pages} pages for {done.entries} entries in {done.folder}")


def build(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(help="Folder for the site.")] = BUILT,
    pages: Pages = RENDERED,
    sources: Sources = None,
) -> None:
    """Render the pages and build the site with mkdocs."""
    from catalog.pages import build as build_pages

    render(ctx, pages, sources)
    done = build_pages(pages, output, sources)
    typer.echo(f"built in {done.seconds:.1f} s: {done.folder / 'index.html'}")


def serve(
    output: Annotated[Path, typer.Option(help="Folder of the built site.")] = BUILT,
    port: Annotated[int, typer.Option(help="Port on this machine; 0 takes a free one.")] = 8000,
) -> None:
    """Show the built site on this machine, to be read in a browser; ends with Ctrl-C."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    if not (output / "index.html").is_file():
        raise CatalogError("no site is built here", where=str(output), hint="peft-catalog site build")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=str(output)))
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen on port {port}: {error}", hint="choose another with --port, or 0 for any"
        ) from error
    with server:
        typer.echo(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo()
