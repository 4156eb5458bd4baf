"""The site of all entries and a hostile one, built once for the whole run, and a browser to read it with."""

from __future__ import annotations

import fcntl
import functools
import http.server
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import catalog
from catalog.locations import entries_root
from catalog.pages import build, render
from catalog.pages.data import SiteData, read
from tests.conftest import missing

BROWSER = "the site's browser tests are left out (Debian: apt-get install chromium)"
HOSTILE = Path(__file__).parent / "hostile.toml"
MEASURED = ("lora", "dora", "bitfit", "prompt-tuning", "houlsby-adapter")


@dataclass(frozen=True)
class BuiltSite:
    """Where the pages and the site are, and the processor time that mkdocs took."""

    docs: Path
    folder: Path
    seconds: float

    def page(self, address: str) -> str:
        """HTML of the page at an address below the root."""
        return (self.folder / address / "index.html").read_text(encoding="utf-8")


def evidence_row(slug: str, claim: str, status: str = "verified", **change: Any) -> dict[str, Any]:
    """A measured claim as `catalog verify` would record it."""
    return {
        "slug": slug,
        "claim": claim,
        "backbone": "decoder",
        "status": status,
        "expected": "yes",
        "measured": "0.0",
        "tolerance": "1e-10",
        "detail": "",
        "torch": "2.13.0",
        "device": "cpu",
        "dtype": "float64",
        "commit": "0123abc",
        "date": "2026-11-24",
        "implementation": "0123456789ab",
        "source": "local",
    } | change


def bench_row(slug: str, **change: Any) -> dict[str, Any]:
    """A benchmark run as `catalog bench` would record it."""
    number = sum(map(ord, slug)) % 17 + 1
    return {
        "slug": slug,
        "backbone": "decoder",
        "device": "cpu",
        "device_name": "a test machine",
        "trained": 1000 * number,
        "share": 0.0005 * number,
        "attach_s": 0.01,
        "forward_ratio": 1.1,
        "step_ratio": 2.8,
        "forward_vs_lora": 1.0,
        "step_vs_lora": 0.6 + number / 10,
        "peak_bytes": 1_000_000 * number,
        "peak_vs_lora": 0.8 + number / 20,
        "saved_bytes": 4000 * number,
        "gap_closed": number / 18,
        "seed": 0,
        "torch": "2.13.0",
        "python": "3.11",
        "commit": "0123abc",
        "date": "2026-11-24",
        "status": "ok",
        "error": "",
    } | change


def _rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    claims = [evidence_row(slug, claim) for slug in MEASURED for claim in ("detachable", "mergeable", "determinism")]
    claims.append(evidence_row("dora", "strength", "contradicted", expected="linear", measured="nonlinear"))
    return claims, [bench_row(slug) for slug in MEASURED]


def _build(folder: Path) -> None:
    """Entries, database, pages, site: the way a user's go, with one entry more."""
    entries = folder / "entries"
    shutil.copytree(entries_root(), entries)
    shutil.copy(HOSTILE, entries / "reparameterized" / "hostile.toml")
    with catalog.open(folder / "site.sqlite", entries=entries) as cat:
        claims, runs = _rows()
        cat.record_evidence(claims)
        cat.record_bench(runs)
        render(cat, folder / "docs")
    start = time.process_time()
    build(folder / "docs", folder / "site")
    (folder / "seconds").write_text(str(time.process_time() - start))


@pytest.fixture(scope="session")
def built_site(tmp_path_factory: pytest.TempPathFactory) -> BuiltSite:
    """The whole site; parallel workers share one build."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "peft-catalog-site"
    with (shared / "peft-catalog-site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "seconds").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _build(folder)
    return BuiltSite(folder / "docs", folder / "site", float((folder / "seconds").read_text()))


@pytest.fixture(scope="session")
def site_data(tmp_path_factory: pytest.TempPathFactory) -> SiteData:
    """The shipped catalog as the pages see it."""
    with catalog.open(tmp_path_factory.mktemp("catalog") / "catalog.sqlite") as cat:
        return read(cat)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test output clean."""


@pytest.fixture(scope="session")
def address(built_site: BuiltSite) -> Iterator[str]:
    """The site served on loopback."""
    handler = functools.partial(_Quiet, directory=str(built_site.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The system's Chromium, headless."""
    program = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
    if program is None:
        missing("Chromium is not installed", BROWSER)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed", BROWSER)
    switches = ["no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update"]
    switches += ["disable-sync", "no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[f"--{switch}" for switch in switches])
        yield browser
        browser.close()


@dataclass
class Tab:
    """A page of the browser together with everything that must not happen on it."""

    page: Any
    root: str
    console: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def open(self, path: str = "") -> Any:
        """Go to a path below the site's root."""
        self.page.goto(self.root + path)
        return self.page


@pytest.fixture
def tabs(chromium: Any, address: str) -> Iterator[Any]:
    """Opens tabs; at the end no error was logged, nothing was asked of another host and no script got in."""
    opened: list[Tab] = []
    contexts = []

    def new(width: int = 1280, **settings: Any) -> Tab:
        context = chromium.new_context(viewport={"width": width, "height": 900}, **settings)
        tab = Tab(context.new_page(), address)
        tab.page.set_default_timeout(10_000)
        tab.page.on("console", lambda message: message.type == "error" and tab.console.append(message.text))
        tab.page.on("pageerror", lambda error: tab.console.append(str(error)))
        tab.page.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:", "blob:" + address)) or tab.foreign.append(request.url)
            ),
        )
        opened.append(tab)
        contexts.append(context)
        return tab

    yield new
    problems = [(tab.console, tab.foreign) for tab in opened if tab.console or tab.foreign]
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def tab(tabs: Any) -> Tab:
    """One tab of desktop width."""
    return tabs()
