"""Takes the picture of the site that the README shows, from a built site.

    make && python scripts/screenshot.py                        writes site/screenshot.png
    python scripts/screenshot.py --page methods/lora/ --output lora.png

Needs playwright and a Chromium on the PATH (or --browser PATH).
"""

from __future__ import annotations

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import typer


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        """Keep requests to itself."""


def main(
    site: Annotated[Path, typer.Option(help="Folder of the built site.")] = Path("build/site"),
    page: Annotated[str, typer.Option(help="Page below the start.")] = "",
    output: Annotated[Path, typer.Option(help="Picture to write.")] = Path("site/screenshot.png"),
    width: int = 1280,
    height: int = 860,
    browser: Annotated[str | None, typer.Option(help="Chromium to use. Default: the one on the PATH.")] = None,
) -> None:
    """Serve the site on this machine, open a page and take its picture."""
    from playwright.sync_api import sync_playwright

    program = browser or shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None or not (site / "index.html").is_file():
        typer.echo(f"needs a Chromium on the PATH and a site in {site}: run make first", err=True)
        raise typer.Exit(2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": width, "height": height})
        tab.goto(f"http://127.0.0.1:{server.server_port}/{page}", wait_until="load")
        tab.screenshot(path=output)
        chromium.close()
    server.shutdown()
    typer.echo(f"wrote {output}")


if __name__ == "__main__":
    typer.run(main)
