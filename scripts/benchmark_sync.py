"""Measures what following arXiv costs beside the waiting: harvesting 100,000 records, and syncing 10,000 papers.

    python scripts/benchmark_sync.py                            as a table
    python scripts/benchmark_sync.py --json --records 10000     as JSON, over fewer records

A stand-in on loopback, in a process of its own, serves records rendered in advance, and nothing waits between requests.
Goals: 2,000 records a second into a fresh database; no more than 40 MB of memory more at any page after the twentieth
than at the twentieth; 10,000 papers asked for by id, stored and held against their entries in 30 seconds. Exit code 1
when a goal is missed.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the stand-in, which no package holds

import catalog
from catalog.arxiv_sync.bookmark import Bookmark, Window
from catalog.arxiv_sync.harvest import Outcome, harvest
from catalog.arxiv_sync.settings import Settings
from catalog.arxiv_sync.sync import sync
from catalog.arxiv_sync.transport import Transport
from catalog.discovery.sieve import Sieve
from catalog.entry import Entry, load_entries
from tests.standin import StandIn
from tests.standin.papers import Paper, invented

RATE_GOAL = 2_000.0
MEMORY_GOAL_MB = 40.0
SYNC_GOAL_S = 30.0
SETTLED = 20
"""Pages after which memory may not grow."""
SPAWN = multiprocessing.get_context("spawn")


def main(
    records: Annotated[int, typer.Option(min=1_000, help="Records to harvest.")] = 100_000,
    papers: Annotated[int, typer.Option(min=100, help="Papers to sync.")] = 10_000,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Measure harvests and a sync."""
    with tempfile.TemporaryDirectory() as name, served(max(records, papers)) as url:
        os.environ["PEFT_CATALOG_STATE"] = f"{name}/state"
        os.environ["PEFT_CATALOG_DB"] = f"{name}/catalog.sqlite"
        figures = {
            "python": sys.version.split()[0],
            "cores": os.cpu_count(),
            "records": records,
            "first": apart(measure_harvest, url),
            "again": apart(measure_harvest, url),
            "bytes": Path(f"{name}/catalog.sqlite").stat().st_size,
            "sync": apart(measure_sync, url, papers),
        }
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        show(figures)
    raise typer.Exit(0 if met(figures) else 1)


def met(figures: dict[str, Any]) -> bool:
    """Whether every goal is reached."""
    first = figures["first"]
    fast = first["per_second"] >= RATE_GOAL and figures["sync"]["seconds"] <= SYNC_GOAL_S
    return bool(fast and first["grown_mb"] <= MEMORY_GOAL_MB)


# Processes.


@contextmanager
def served(number: int) -> Iterator[str]:
    """The address of a stand-in with so many made-up papers."""
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=serve, args=(number, there), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def serve(number: int, pipe: Connection) -> None:
    with StandIn(invented(number)) as arxiv:
        arxiv.oai.prepare()
        pipe.send(arxiv.url)
        while True:
            arxiv.wait(3600)


def apart(measure: Any, *arguments: Any) -> Any:
    """What a function returns in a fresh process."""
    with SPAWN.Pool(1) as pool:
        return pool.apply(measure, arguments)


# Harvesting.


@dataclass
class Memory:
    """What the process has taken from the system after each page, in bytes; pages of files are not its own."""

    used: list[int] = field(default_factory=list)

    def arrived(self, outcome: Outcome) -> None:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                self.used.append(1024 * int(line.split()[1]))


def measure_harvest(url: str) -> dict[str, float]:
    """Records a second over the whole harvest, and the growth of memory after the first pages."""
    gc.set_threshold(50_000)  # as the command line does
    settings, memory = unhurried(url), Memory()
    with catalog.open() as cat, Transport(settings) as transport:
        sieve = Sieve(cat.engine)
        bookmark = Bookmark(settings.oai, "cs", Window.parse("2020-01-01"))
        start, worked = time.perf_counter(), time.process_time()
        outcome = harvest(cat.engine, transport, sieve, bookmark, arrived=memory.arrived)
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
    assert outcome.complete, outcome.failure
    settled = memory.used[SETTLED - 1 :] or memory.used[-1:]
    return {
        "seconds": seconds,
        "processor_s": worked,
        "pages": outcome.pages,
        "new": outcome.new,
        "per_second": outcome.records / seconds,
        "memory_mb": max(memory.used) / 1e6,
        "grown_mb": (max(settled) - settled[0]) / 1e6,
    }


def unhurried(url: str) -> Settings:
    return Settings(f"{url}/api/query", f"{url}/oai", pace=0.0)


# Syncing.


def measure_sync(url: str, number: int) -> dict[str, float]:
    """Seconds to ask for so many papers by id, store what is new, and hold it against entries."""
    model = load_entries()[0]
    entries = [entry_of(paper, place, model) for place, paper in enumerate(invented(number))]
    with catalog.open() as cat, Transport(unhurried(url)) as transport:
        start = time.perf_counter()
        outcome = sync(cat.engine, transport, entries)
        seconds = time.perf_counter() - start
    assert outcome.received == number, outcome.failure
    return {"papers": number, "seconds": seconds, "requests": outcome.requests, "drifts": len(outcome.drifts)}


def entry_of(paper: Paper, place: int, model: Entry) -> Entry:
    """An entry that agrees with a paper, but for the title of every tenth."""
    title = paper.title if place % 10 else f"{paper.title}, revisited"
    facts = {"slug": f"paper-{place}", "arxiv": paper.arxiv, "title": title, "authors": paper.authors}
    dated = {"published": f"{paper.versions[0]:%Y-%m-%d}", "arxiv_categories": paper.categories, "doi": None}
    return model.model_copy(update=facts | dated)


def show(figures: dict[str, Any]) -> None:
    """The figures as a table."""
    from rich.console import Console
    from rich.table import Table

    first, again, synced = figures["first"], figures["again"], figures["sync"]
    table = Table(box=None, pad_edge=False, title=f"Python {figures['python']}, {figures['cores']} cores")
    for heading in ("what", "measured", "goal"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    rows = [
        (f"harvest of {figures['records']:,} new records", f"{first['seconds']:.1f} s", ""),
        ("  of them at work", f"{first['processor_s']:.1f} s", ""),
        ("  records a second", f"{first['per_second']:,.0f}", f"≥ {RATE_GOAL:,.0f}"),
        ("  memory at most", f"{first['memory_mb']:.0f} MB", ""),
        (f"  memory grown since page {SETTLED}", f"{first['grown_mb']:.1f} MB", f"≤ {MEMORY_GOAL_MB:.0f} MB"),
        ("  database", f"{figures['bytes'] / 1e6:.0f} MB", ""),
        ("the same again, nothing new", f"{again['seconds']:.1f} s", ""),
        ("  of them at work", f"{again['processor_s']:.1f} s", ""),
        ("  records a second", f"{again['per_second']:,.0f}", ""),
        (f"sync of {synced['papers']:,} papers", f"{synced['seconds']:.1f} s", f"≤ {SYNC_GOAL_S:.0f} s"),
    ]
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"goals: {'reached' if met(figures) else 'missed'}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
