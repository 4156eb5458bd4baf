"""Commands for people who write entries: lint, new, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catalog.locations import ENTRIES_VARIABLE

Root = Annotated[
    Path | None,
    typer.Option("--root", envvar=ENTRIES_VARIABLE, help="Folder of entries. Default: the one shipped."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("lint")(lint_command)
    app.command("new")(new_command)
    app.command("schema")(schema_command)


def lint_command(
    slugs: Annotated[list[str] | None, typer.Argument(help="Report on these entries only.")] = None,
    root: Root = None,
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False,
) -> None:
    """Check the entry files: schema, vocabulary, names, dates, links, lists, spelling, and what drafts lack.

    Exit code 0 when all is well, 1 when there are findings.
    """
    from catalog.lint import lint

    findings = [finding for finding in lint(root) if not slugs or Path(finding.file).stem in slugs]
    if slugs:
        _require_known(slugs, root)
    if as_json:
        import json

        typer.echo(json.dumps([finding.as_dict() for finding in findings], indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            typer.echo(str(finding))
        typer.echo(_verdict(len(findings)), err=bool(findings))
    if findings:
        raise typer.Exit(1)


def new_command(
    slug: Annotated[str, typer.Argument(help="Name of the files, such as p-tuning-v2.")],
    category: Annotated[str, typer.Option(help="Where the method makes its change: a folder of entries/.")],
    arxiv: Annotated[str | None, typer.Option(help="arXiv id without version, such as 2106.09685.")] = None,
    name: Annotated[str | None, typer.Option(help="The short name the field uses.")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the paper.")] = None,
    author: Annotated[list[str] | None, typer.Option(help="An author; repeat for each, in order.")] = None,
    published: Annotated[str | None, typer.Option(help="First public date: YYYY-MM-DD, YYYY-MM or YYYY.")] = None,
    root: Root = None,
    implementations: Annotated[
        Path | None, typer.Option(help="Package for the implementation. Default: reference_impls beside the entries.")
    ] = None,
) -> None:
    """Begin an entry and its implementation: two files to fill in.

    The entry is a draft, which queries leave out until the line draft = true is removed.
    """
    from catalog.scaffold import Draft, scaffold, to_finish

    draft = Draft(slug, category, arxiv, name, title, tuple(author or ()), published)
    for path in scaffold(draft, root, implementations):
        typer.echo(f"wrote {path}")
    typer.echo(to_finish(slug))


def schema_command(
    write: Annotated[bool, typer.Option("--write", help="Write it to its file instead of printing it.")] = False,
) -> None:
    """Print the JSON Schema of an entry file, for editors."""
    from catalog.files import write_atomic
    from catalog.json_schema import SCHEMA_FILE, schema_text

    if write:
        typer.echo(f"wrote {write_atomic(SCHEMA_FILE, schema_text())}")
    else:
        typer.echo(schema_text(), nl=False)


def _require_known(slugs: list[str], root: Path | None) -> None:
    from catalog.errors import UnknownEntry
    from catalog.locations import entry_paths

    known = {path.stem for path in entry_paths(root)}
    for slug in slugs:
        if slug not in known:
            import difflib

            near = difflib.get_close_matches(slug, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "peft-catalog lint checks all entries"
            raise UnknownEntry(f"there is no entry file {slug}.toml", hint=hint)


def _verdict(count: int) -> str:
    if not count:
        return "no findings"
    return "1 finding" if count == 1 else f"{count} findings"
