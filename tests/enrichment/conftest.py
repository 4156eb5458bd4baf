"""OpenAlex and Crossref on a loopback address, and entries to ask them about."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from catalog.enrichment import client
from catalog.enrichment.sources import KEY_VARIABLE
from catalog.locations import ENTRIES_VARIABLE
from catalog.network.identity import CONTACT_VARIABLE

Answers = list[tuple[int, bytes, dict[str, str]]]
Write = Callable[..., Path]


NEVER, HANGS_UP = 0, 1
"""What stands in the place of a status where there is none."""


class Indexes:
    """Answers by source, in order, the last one for ever; and everything that was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answers] = {}
        self.asked: list[tuple[str, str, dict[str, list[str]], str]] = []
        self.over = threading.Event()

    def say(self, source: str, *answers: Any, status: int = 200, **headers: str) -> None:
        """What a source answers from now on: objects as JSON, bytes as they are."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        bodies = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in answers or (b"",)]
        self.answers[source] = [(status, body, names) for body in bodies]

    def then(self, source: str, *answers: Any, status: int = 200) -> None:
        """What a source answers after that."""
        earlier = self.answers[source]
        self.say(source, *answers, status=status)
        self.answers[source] = earlier + self.answers[source]

    def requests(self, source: str) -> list[str]:
        """The paths that a source was asked for."""
        return [path for name, path, _, _ in self.asked if name == source]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):
            self.reply()

    def reply(self) -> None:
        indexes: Indexes = self.server.indexes  # type: ignore[attr-defined]
        parts = urlsplit(self.path)
        _, source, path = parts.path.split("/", 2)
        indexes.asked.append((source, unquote(path), parse_qs(parts.query), self.headers["User-Agent"]))
        answers = indexes.answers[source]
        status, body, headers = answers.pop(0) if len(answers) > 1 else answers[0]
        if status == NEVER:
            indexes.over.wait(20)
        if status in (NEVER, HANGS_UP):
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if "X-Drip" in headers:  # a letter now and then, more often than a client waits for one
            for place in range(len(body)):
                self.wfile.write(body[place : place + 1])
                if indexes.over.wait(0.02):
                    return
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def indexes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Indexes]:
    """Both sources, which know nothing; asked without waiting."""
    found = Indexes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.indexes = found  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for source in ("openalex", "crossref"):
        found.say(source, status=404)
        address = f"http://127.0.0.1:{server.server_port}/{source}"
        monkeypatch.setenv(f"PEFT_CATALOG_{source.upper()}_URL", address)
    for variable in (KEY_VARIABLE, CONTACT_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(client, "SECONDS_APART", 0.0)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    yield found
    found.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes an entry into a folder that takes the place of the shipped ones."""
    root = tmp_path / "entries"
    monkeypatch.setenv(ENTRIES_VARIABLE, str(root))

    def write(slug: str, **keys: str) -> Path:
        given = {
            "slug": slug, "name": slug, "title": f"On {slug}", "published": "2021-06", "kind": "study",
            "category": "additive", "summary": "Words.", "arxiv": "2106.09685", **keys,
        }  # fmt: skip
        lines = [f"{key} = {json.dumps(value)}" for key, value in given.items() if value]
        path = root / "additive" / f"{slug}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*lines, 'authors = ["Edward J. Hu", "Zoé Ünal"]']) + "\n", "utf-8")
        return path

    return write


def openalex(**changes: Any) -> dict[str, Any]:
    """A work as OpenAlex describes it."""
    return {
        "id": "https://openalex.org/W1",
        "doi": "https://doi.org/10.1000/ABC",
        "title": "On one",
        "publication_year": 2022,
        "type": "article",
        "primary_location": {
            "landing_page_url": "https://arxiv.org/abs/2106.09685",
            "source": {"display_name": "arXiv (Cornell University)", "type": "repository"},
        },
        "locations": [
            {
                "landing_page_url": "https://publisher.org/one",
                "source": {
                    "display_name": "International Conference on Learning Representations",
                    "type": "conference",
                },
            }
        ],
        **changes,
    }


def crossref(**changes: Any) -> dict[str, Any]:
    """A work as Crossref describes it."""
    return {
        "DOI": "10.1000/abc",
        "title": ["On one"],
        "container-title": ["Proceedings of the Conference on One (ONEC)"],
        "URL": "https://doi.org/10.1000/abc",
        "issued": {"date-parts": [[2022, 5, 1]]},
        "author": [{"given": "E. J.", "family": "Hu"}],
        "type": "proceedings-article",
        **changes,
    }
