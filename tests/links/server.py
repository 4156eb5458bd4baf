"""A small web on loopback addresses: every path behaves badly in its own way, and everything asked is written down."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit


class Request(NamedTuple):
    """Something that was asked."""

    at: float
    host: str
    method: str
    path: str
    authorization: str | None


@dataclass
class Web:
    """Servers on 127.0.0.1, 127.0.0.2 and so on, what they were asked, and what holds their answers back."""

    log: list[Request] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    at_gate: threading.Event = field(default_factory=threading.Event)
    crowd: threading.Condition = field(default_factory=threading.Condition)
    inside: int = 0
    most_inside: int = 0
    servers: dict[str, ThreadingHTTPServer] = field(default_factory=dict)

    def host(self, number: int = 1) -> str:
        """The base address of a host."""
        address = f"127.0.0.{number}"
        if address not in self.servers:
            server = ThreadingHTTPServer((address, 0), Handler)
            server.web = self  # type: ignore[attr-defined]
            server.daemon_threads = True
            self.servers[address] = server
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://{address}:{self.servers[address].server_port}"

    def forget(self) -> None:
        """Begin anew: nothing asked, nobody inside, gate closed."""
        self.log.clear()
        self.gate.clear()
        self.at_gate.clear()
        self.inside = self.most_inside = 0

    def close(self) -> None:
        self.gate.set()
        for server in self.servers.values():
            server.shutdown()
            server.server_close()

    def asked(self, path: str) -> list[str]:
        """The methods with which a path was asked."""
        return [request.method for request in self.log if request.path == path]


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path."""

    protocol_version = "HTTP/1.1"

    @property
    def web(self) -> Web:
        web = self.server.web  # type: ignore[attr-defined]
        assert isinstance(web, Web)
        return web

    def do_HEAD(self) -> None:
        parts = urlsplit(self.path)
        host, authorization = self.headers["Host"].split(":")[0], self.headers["Authorization"]
        self.web.log.append(Request(time.monotonic(), host, self.command, self.path, authorization))
        self.query = parse_qs(parts.query)
        name, *self.words = parts.path.strip("/").split("/")
        with contextlib.suppress(ConnectionError):
            getattr(self, f"on_{name.replace('-', '_')}")()

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def hang_up(self, raw: bytes = b"") -> None:
        """Write something, or nothing, and end the connection."""
        self.wfile.write(raw)
        self.close_connection = True

    def on_ok(self) -> None:
        self.answer(200)

    def on_status(self) -> None:
        self.answer(int(self.words[0]))

    def on_head(self) -> None:
        """HEAD is answered with the status in the path."""
        self.answer(int(self.words[0]) if self.command == "HEAD" else 200)

    def on_head_dies(self) -> None:
        self.hang_up() if self.command == "HEAD" else self.answer(200)

    def on_to(self) -> None:
        """/to/301?u=address"""
        self.answer(int(self.words[0]), Location=self.query["u"][0])

    def on_secret(self) -> None:
        """Redirects to an address with credentials."""
        self.answer(301, Location=f"http://user:secret@{self.headers['Host']}/status/404")

    def on_nowhere(self) -> None:
        self.answer(302)

    def on_loop(self) -> None:
        self.answer(301, Location="/loop/b" if self.words == ["a"] else "/loop/a")

    def on_far(self) -> None:
        self.answer(301, Location=f"/far/{int(self.words[0]) + 1}")

    def on_drip(self) -> None:
        """A header without end, a letter at a time."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self.web.gate.wait(0.05):
            self.wfile.write(b"x")
        self.close_connection = True

    def on_reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def on_huge_header(self) -> None:
        self.hang_up(b"HTTP/1.1 200 OK\r\nX-Huge: " + b"x" * 1_000_000 + b"\r\n\r\n")

    def on_endless(self) -> None:
        """A body without end, for as long as anybody listens."""
        if self.command == "HEAD":
            return self.answer(405)
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")
        while not self.web.gate.is_set():
            self.wfile.write(b"x" * 65536)
        return self.hang_up()

    def on_busy(self) -> None:
        """/busy/times/seconds/status: so often this status, 429 by default, then 200."""
        earlier = len(self.web.asked(self.path)) - 1
        if earlier < int(self.words[0]):
            self.answer(int([*self.words, 429][2]), Retry_After=self.words[1])
        else:
            self.answer(200)

    def on_hostile(self) -> None:
        """Control sequences wherever a server can put them."""
        raw = b"HTTP/1.1 %b \x1b]0;owned\x07\x1b[2J\r\nX-\x1b: y\r\nContent-Length: 0\r\n\r\n"
        self.hang_up(raw.replace(b"X-\x1b", b"X-Odd") % self.words[0].encode())

    def on_hostile_location(self) -> None:
        """Control signs of two kinds in an address: bare, and as letters beyond ASCII."""
        signs = {"bare": b"\x1b[31m", "wide": "\u202e\x9b31m".encode()}[self.words[0]]
        self.hang_up(b"HTTP/1.1 301 Moved\r\nLocation: /ok/" + signs + b"x\r\nContent-Length: 0\r\n\r\n")

    def on_garbage(self) -> None:
        self.hang_up(b"\x00\xff not HTTP at all\r\n\r\n")

    def on_wait(self) -> None:
        """Answers when the gate opens."""
        self.web.at_gate.set()
        self.web.gate.wait(20)
        self.answer(200)

    def on_crowd(self) -> None:
        """Answers when as many as the path says are inside together, after a moment in which more could come."""
        web = self.web
        with web.crowd:
            web.inside += 1
            web.most_inside = max(web.inside, web.most_inside)
            web.crowd.notify_all()
            web.crowd.wait_for(lambda: web.most_inside >= int(self.words[0]), 5)
        web.gate.wait(0.15)
        with web.crowd:
            web.inside -= 1
        self.answer(200)
