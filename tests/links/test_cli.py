"""`peft-catalog links`, as people and programs use it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from catalog.links import record
from tests.conftest import Answer, Ask
from tests.links.conftest import LIST, Names, Write
from tests.links.server import Web

Links = Callable[..., Answer]
PWC = "https://paperswithcode.com/paper/on-one"


def by_path(answer: Answer) -> dict[str, dict[str, Any]]:
    """The addresses of the JSON by what follows the host."""
    return {link["url"].split("/", 3)[-1]: link for link in json.loads(answer.out)["links"]}


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the time at which outcomes are stored."""
    return lambda date: monkeypatch.setattr(record, "now", lambda: f"{date}T12:00:00Z")


def test_all_alive_is_well(web: Web, entry: Write, links: Links) -> None:
    entry("one", url=f"{web.host()}/ok", code=f"{web.host()}/status/403")
    answer = links()
    assert answer.code == 0
    assert "not alive" not in answer.out
    assert "addresses of entries: 1 alive, 1 refused" in answer.out
    assert "look in a browser: 127.0.0.1 (1)" in answer.out
    assert "asked now: 2; known from before: 0" in answer.out


@pytest.mark.parametrize("path", ["/status/404", "/to/301?u=/ok"])
def test_what_an_entry_should_change_gives_exit_code_1(web: Web, entry: Write, links: Links, path: str) -> None:
    entry("one", url=web.host() + path, code=f"{web.host()}/ok")
    assert links().code == 1


def test_what_a_list_printed_is_history(web: Web, entry: Write, links: Links) -> None:
    entry("one", url=f"{web.host()}/ok", printed=(f"{web.host()}/status/404", PWC, "no address", f"{web.host()}/ok"))
    answer = links()
    assert answer.code == 0
    assert "links printed by lists only, kept as their history: 1 gone, 1 closed, 1 no address" in answer.out
    assert "addresses of entries: 1 alive\n" in answer.out
    assert "/status/404" not in answer.out


def test_an_address_is_asked_once_however_often_it_is_used(web: Web, entry: Write, links: Links) -> None:
    address = f"{web.host()}/status/410"
    entry("one", url=address, code=address, printed=(address,))
    entry("two", url=address + "#part")
    answer = links("--json")
    assert web.asked("/status/410") == ["HEAD"]
    assert by_path(answer)["status/410"]["uses"] == [
        {"slug": "one", "key": "url", "list": None},
        {"slug": "one", "key": "code", "list": None},
        {"slug": "one", "key": "listed_in[0].link", "list": LIST},
        {"slug": "two", "key": "url", "list": None},
    ]
    rows = [line.split() for line in links().out.splitlines() if "Gone" in line]
    assert [row[:2] for row in rows] == [["one", "url"], ["one", "code"], ["two", "url"]]


def test_json_says_everything(web: Web, entry: Write, links: Links) -> None:
    base = web.host()
    entry("one", url=f"{base}/to/301?u=/ok", code=f"{base}/ok", printed=(f"{base}/status/404",))
    answer = links("--json")
    assert answer.code == 1
    document = json.loads(answer.out)
    assert (document["addresses"], document["asked"]) == (3, 3)
    assert document["counts"] == {"moved": 1, "alive": 1}
    assert document["printed_by_lists"] == {"gone": 1}
    moved = by_path(answer)["to/301?u=/ok"]
    assert moved["redirects"] == [{"status": 301, "to": f"{base}/ok"}]
    assert moved["advice"] == f"put {base}/ok in its place"
    assert (moved["status"], moved["only_printed_by_lists"]) == (200, False)
    assert answer.err == ""


def test_a_closed_site_is_not_asked_and_its_links_get_replacements(entry: Write, links: Links) -> None:
    entry("one", url=PWC, arxiv="2106.09685")
    entry("two", url="https://www.paperswithcode.com/method/two", code="https://nobody.example/two")
    answer = links("--json")
    assert answer.code == 1
    paper, method = by_path(answer)["paper/on-one"], by_path(answer)["method/two"]
    assert (paper["state"], paper["dead_since"]) == ("closed", "2025-07")
    assert paper["advice"] == "https://arxiv.org/abs/2106.09685 or https://huggingface.co/papers/2106.09685"
    assert method["advice"] == "https://nobody.example/two"
    assert json.loads(answer.out)["asked"] == 1


def test_arxiv_is_left_to_sync(entry: Write, links: Links) -> None:
    entry("one", url="https://arxiv.org/abs/2106.09685")
    answer = links()
    assert answer.code == 0
    assert "1 on arXiv (peft-catalog sync checks them)" in answer.out
    assert "asked now: 0" in answer.out


def test_dead_since_is_kept_until_an_address_lives(
    web: Web, names: Names, entry: Write, links: Links, day: Callable[[str], None]
) -> None:
    address = f"http://paper.example:{web.host().rpartition(':')[2]}/ok"
    entry("one", url=address)
    other = f"{web.host(2)}/ok"
    entry("two", url=other)

    def seen(date: str) -> tuple[str, str | None, str | None]:
        day(date)
        link = next(link for link in json.loads(links("--recheck", "--json").out)["links"] if link["url"] == address)
        return link["state"], link["alive_at"] and link["alive_at"][:10], link["dead_since"]

    assert seen("2026-01-01") == ("gone", None, "2026-01-01")
    assert seen("2026-01-02") == ("gone", None, "2026-01-01")
    names["paper.example"] = ["127.0.0.3"]  # where nobody listens
    assert seen("2026-01-03") == ("unreachable", None, "2026-01-01")
    names["paper.example"] = ["127.0.0.1"]
    assert seen("2026-01-04") == ("alive", "2026-01-04", None)
    names["paper.example"] = ["127.0.0.3"]
    assert seen("2026-01-05") == ("unreachable", "2026-01-04", None)
    assert "alive on 2026-01-04" in links("--recheck").out
    del names["paper.example"]
    assert seen("2026-01-06") == ("gone", "2026-01-04", "2026-01-06")


def test_what_was_answered_lately_is_not_asked_again(
    web: Web, entry: Write, links: Links, day: Callable[[str], None]
) -> None:
    entry("one", url=f"{web.host()}/ok", code=f"{web.host()}/status/500")
    ago = datetime.now(UTC) - timedelta(days=3)
    day(ago.strftime("%Y-%m-%d"))
    links()
    web.forget()
    assert "asked now: 1; known from before: 1" in links().out
    assert web.asked("/ok") == []  # answered; the other one was not, and is asked again
    links("--older-than", "2")
    assert web.asked("/ok") == ["HEAD"]
    day("2999-12-31")  # by a clock that was wrong
    links("--recheck")
    links("--older-than", "0")
    assert web.asked("/ok") == ["HEAD"] * 3


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on_where_it_was(
    web: Web, entry: Write, links: Links, tmp_path: Path, stop: signal.Signals
) -> None:
    for name, path in (("a", "ok/1"), ("b", "ok/2"), ("c", "wait"), ("d", "ok/3")):
        entry(name, url=f"{web.host()}/{path}")
    environment = {**os.environ, "PEFT_CATALOG_DB": str(tmp_path / "catalog.sqlite")}
    program = "from catalog.cli import main; main()"
    arguments = [sys.executable, "-c", program, "links", "--allow-private", "--per-host", "0"]
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as run:
        assert web.at_gate.wait(30)
        run.send_signal(stop)
        _, err = run.communicate(timeout=30)
    if stop == signal.SIGINT:
        assert run.returncode == 130
        assert "stopped; kept: 2 of 4 addresses, and the same command goes on" in err
        assert "Traceback" not in err
    web.gate.set()
    answer = links()
    assert (answer.code, "4 alive" in answer.out) == (0, True)
    assert "asked now: 2; known from before: 2" in answer.out
    assert [len(web.asked(path)) for path in ("/ok/1", "/ok/2", "/ok/3")] == [1, 1, 1]


def test_private_addresses_are_refused_unless_allowed(web: Web, entry: Write, ask_own: Ask, links: Links) -> None:
    entry("one", url=f"{web.host()}/ok")
    answer = ask_own("links")
    assert answer.code == 1
    assert "private" in answer.out
    assert not web.log
    assert links().code == 0


def test_no_network_gives_exit_code_3(names: Names, entry: Write, links: Links) -> None:
    entry("one", url="http://nobody.example/", code="http://127.0.0.1:1/")
    names.clear()
    answer = links()
    assert answer.code == 3
    assert "2 unreachable" in answer.out
    assert "nobody answered, and host names cannot be looked up" in answer.err


def test_one_server_that_is_down_is_no_lack_of_network(web: Web, entry: Write, links: Links) -> None:
    entry("one", url=f"{web.host()}/ok", code=f"{web.host(2)}/status/500")
    assert links().code == 0
    assert links().code == 0  # asks the one that is down alone
    assert links("--recheck", "one").code == 0


def test_text_of_servers_cannot_steer_the_terminal(web: Web, entry: Write, links: Links) -> None:
    base = web.host()
    paths = ("hostile/404", "hostile/500", "hostile-location/bare", "hostile-location/wide", "garbage")
    for number, path in enumerate(paths):
        entry(f"entry-{number}", url=f"{base}/{path}")
    entry("live", url=f"{base}/ok", printed=("\\u001b[2Jhttp://x", "http://\\u202e"))
    for answer in (links(), links("--json", "--recheck")):
        assert answer.code == 1
        for sign in ("\x1b", "\x07", "\u202e", "\x9b", "owned"):
            assert sign not in answer.out + answer.err
    states = {path: link["state"] for path, link in by_path(links("--json")).items() if path in paths}
    assert states == {
        "hostile/404": "gone",
        "hostile/500": "unreachable",
        "hostile-location/bare": "unreachable",
        "hostile-location/wide": "moved",
        "garbage": "unreachable",
    }


def test_credentials_are_neither_sent_nor_shown(web: Web, entry: Write, links: Links, tmp_path: Path) -> None:
    address = web.host().replace("http://", "http://user:secret@")
    entry("one", url=f"{address}/secret", printed=("ftp://user:secret@example.org/",))
    shown, document = links(), links("--json")
    assert document.out.count("/status/404") == 2  # as the redirect, and as where it leads
    for answer in (shown, document):
        assert "secret@" not in answer.out + answer.err
    assert [request.authorization for request in web.log] == [None] * len(web.log)
    stored = sqlite3.connect(tmp_path / "catalog.sqlite").execute("SELECT * FROM link_check").fetchall()
    assert "user" not in str(stored)


def test_papers_are_chosen_by_name_or_category(web: Web, entry: Write, links: Links) -> None:
    entry("one", url=f"{web.host()}/ok/1")
    entry("two", url=f"{web.host()}/ok/2")
    links("one")
    assert [request.path for request in web.log] == ["/ok/1"]
    links("--category", "additive")
    assert [request.path for request in web.log] == ["/ok/1", "/ok/2"]
    links("--category", "prompt", "--recheck")
    assert len(web.log) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ones",), "did you mean one?"),
        (("--category", "nothing"), "nothing"),
        (("one", "--category", "additive"), "by name or by category"),
    ],
)
def test_wrong_arguments(entry: Write, links: Links, arguments: tuple[str, ...], words: str) -> None:
    entry("one")
    answer = links(*arguments)
    assert answer.code == 2
    assert words in answer.err


def test_servers_of_others_are_asked_no_faster_than_once_a_second(entry: Write, ask_own: Ask) -> None:
    entry("one")
    answer = ask_own("links", "--per-host", "0.5")
    assert answer.code == 2
    assert "--allow-private" in answer.err


def test_a_whole_run_is_noted(web: Web, entry: Write, links: Links, tmp_path: Path) -> None:
    entry("one", url=f"{web.host()}/ok")

    def noted() -> list[Any]:
        rows = sqlite3.connect(tmp_path / "catalog.sqlite").execute("SELECT kind, learned, note FROM follow")
        return rows.fetchall()

    links("one")
    assert noted() == []
    links("--recheck")
    assert noted() == [("links", None, "1 alive")]


def test_entries_without_addresses(entry: Write, links: Links) -> None:
    entry("one")
    answer = links()
    assert (answer.code, "addresses of entries: none" in answer.out) == (0, True)
