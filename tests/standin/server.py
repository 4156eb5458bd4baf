"""The server: a thread a connection, a log of every request, and mischief that is served before honest replies."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from tests.standin import atom, oai
from tests.standin.atom import Form
from tests.standin.mischief import MISCHIEF, Mischief, Reply
from tests.standin.papers import Paper

MOST_ADDRESS = 8000
"""Characters of an address from which the honest server answers 414."""
_ID = re.compile(r"(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})(v\d+)?")
_PHRASE = re.compile(r'(?P<field>cat|abs|ti|all):(?:"(?P<phrase>[^"]+)"|(?P<word>[^\s()]+))')
_DAYS = re.compile(r"submittedDate:\[(\d{8})\d{4} TO (\d{8})\d{4}\]")


@dataclass(frozen=True)
class Logged:
    """A request: when it came and was answered (monotonic seconds), what it asked, how many were open with it."""

    at: float
    path: str
    parameters: dict[str, str]
    headers: dict[str, str]
    open: int
    status: int
    done: float

    @property
    def ids(self) -> list[str]:
        """The ids it asked for."""
        return [each for each in self.parameters.get("id_list", "").split(",") if each]


class StandIn:
    """arXiv on loopback, as a context manager. Ids in ``refused`` count as malformed.

    ``seen`` is set when the ``awaited``-th request of the log has come, before it is answered.
    """

    def __init__(self, papers: Iterable[Paper] = (), form: Form = "present", port: int = 0, page: int = 1000) -> None:
        self.papers = {paper.arxiv: paper for paper in papers}
        self.form: Form = form
        self.page = page
        self.log: list[Logged] = []
        self.refused: set[str] = set()
        self.awaited = 0
        self.seen = threading.Event()
        self.oai = oai.Interface(self)
        self._mischief: deque[Mischief] = deque()
        self._lasting: Mischief | None = None
        self._lock = threading.Lock()
        self._open = 0
        self._leaving = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.standin = self

    @property
    def url(self) -> str:
        """What --arxiv-url takes."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def misbehave(self, kind: str, times: int | None = 1, after: int = 0) -> None:
        """Serve a kind of mischief so many times, after so many honest replies; without end when ``times`` is None."""
        mischief = {**MISCHIEF, **oai.MISCHIEF}[kind]
        self._mischief += [_honest] * after + [mischief] * (times or 0)
        if times is None:
            self._lasting = mischief

    def behave(self) -> None:
        """Forget all mischief."""
        self._mischief.clear()
        self._lasting = None

    def put(self, *papers: Paper) -> None:
        """Add papers, or replace what is known of them."""
        self.papers |= {paper.arxiv: paper for paper in papers}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._leaving.set()
        self._server.shutdown()
        self._server.server_close()

    def forever(self) -> None:
        """Serve in this thread until interrupted."""
        self._server.serve_forever()

    # Replies.

    def reply(self, path: str, parameters: dict[str, str], headers: dict[str, str], length: int) -> Reply:
        """The honest reply, or what the next mischief makes of it."""
        honest = self._honest(path, parameters, headers, length)
        with self._lock:
            mischief = self._mischief.popleft() if self._mischief else self._lasting
        return mischief(honest) if mischief else honest

    def _honest(self, path: str, parameters: dict[str, str], headers: dict[str, str], length: int) -> Reply:
        if "accept" not in headers:
            return Reply(406, b"Not Acceptable", "text/plain")
        if length > MOST_ADDRESS:
            return Reply(414, b"Request-URI Too Large", "text/plain")
        if path == "/oai":
            return self.oai.reply(parameters)
        if path == "/api/query":
            return self._query(parameters)
        return Reply(404, b"Not Found", "text/plain")

    def _query(self, parameters: dict[str, str]) -> Reply:
        start, size = int(parameters.get("start", "0")), min(int(parameters.get("max_results", "10")), 2000)
        ids = [each for each in parameters.get("id_list", "").split(",") if each]
        bad = next((each for each in ids if each in self.refused or not _ID.fullmatch(each)), None)
        if bad is not None:
            status = 400 if self.form == "present" else 200
            return Reply(status, atom.error(f"incorrect id format for {bad}", self.form))
        found = self._named(ids) if ids else self._found(parameters.get("search_query", ""))
        page = found[start : start + size]
        return Reply(body=atom.feed(page, len(found), start, size, self.form, parameters.get("search_query", "")))

    def _named(self, ids: list[str]) -> list[Paper]:
        bare = [re.sub(r"v\d+$", "", each) for each in ids]
        return [self.papers[each] for each in bare if each in self.papers and not self.papers[each].deleted]

    def _found(self, query: str) -> list[Paper]:
        """Papers with any of the phrases of a query, in its days; newest first. Only as much grammar as is needed."""
        days = _DAYS.search(query)
        wanted = [(m["field"], (m["phrase"] or m["word"]).lower()) for m in _PHRASE.finditer(query)]
        phrases = [(name, phrase) for name, phrase in wanted if name != "cat"]
        categories = {phrase for name, phrase in wanted if name == "cat"}
        found = [
            paper
            for paper in self.papers.values()
            if not paper.deleted
            and (not days or days[1] <= f"{paper.versions[0]:%Y%m%d}" <= days[2])
            and (not categories or categories & {each.lower() for each in paper.categories})
            and (not phrases or any(_holds(paper, name, phrase) for name, phrase in phrases))
        ]
        return sorted(found, key=lambda paper: (paper.versions[0], paper.arxiv), reverse=True)

    # The log.

    def opened(self) -> int:
        """A request has come; how many are open now."""
        with self._lock:
            self._open += 1
            if len(self.log) + self._open == self.awaited:
                self.seen.set()
            return self._open

    def closed(self, logged: Logged) -> None:
        """A request has been answered."""
        with self._lock:
            self._open -= 1
            self.log.append(logged)

    def wait(self, seconds: float) -> None:
        """Hold a reply back, but not beyond the end of the server."""
        self._leaving.wait(seconds)


def _honest(reply: Reply) -> Reply:
    return reply


def _holds(paper: Paper, name: str, phrase: str) -> bool:
    text = {"ti": paper.title, "abs": paper.abstract}.get(name, f"{paper.title} {paper.abstract}")
    return f" {_words(phrase)} " in f" {_words(text)} "


def _words(text: str) -> str:
    """Words as arXiv's index holds them: without case and hyphens."""
    return " ".join(re.findall(r"\w+", text.lower()))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    standin: StandIn

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        standin, at = self.server.standin, time.monotonic()
        here = standin.opened()
        parts = urlsplit(self.path)
        parameters, headers = dict(parse_qsl(parts.query)), {k.lower(): v for k, v in self.headers.items()}
        reply = standin.reply(parts.path, parameters, headers, len(self.path))
        try:
            self._send(reply)
        except OSError:
            self.close_connection = True
        finally:
            done = time.monotonic()
            standin.closed(Logged(at, parts.path, parameters, headers, here, reply.status, done))

    def _send(self, reply: Reply) -> None:
        standin = self.server.standin
        if reply.hang:
            standin.wait(60)
            self.close_connection = True
            return
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers:
            self.send_header(name, value or self.path)
        self.end_headers()
        if reply.cut is not None:
            self.wfile.write(reply.body[: reply.cut])
            self._reset()
        elif reply.drip:
            for byte in range(len(reply.body)):
                self.wfile.write(reply.body[byte : byte + 1])
                standin.wait(reply.drip)
        else:
            self.wfile.write(reply.body)

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on the terminal; the log is in memory."""
