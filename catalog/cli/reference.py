"""The command-line reference, written from the program itself."""

from __future__ import annotations

from typing import Any

import typer

from catalog.cli import make_app


def cli_reference() -> str:
    """Every command with its help text, as Markdown."""
    app = make_app()
    app.rich_markup_mode = None  # boxes and colors are for terminals
    program = typer.main.get_command(app)
    return "\n".join(sections(program, None, "peft-catalog"))


def sections(command: Any, parent: Any, name: str) -> list[str]:
    """A command's section and those of its own commands."""
    context = command.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=80, max_content_width=80
    )
    level = "##" if parent is None else "###"
    found = [f"{level} `{context.command_path}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n"]
    for child_name, child in getattr(command, "commands", {}).items():
        found += sections(child, context, child_name)
    return found
