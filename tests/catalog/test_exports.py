"""BibTeX, CSL-JSON, the JSON API and the copied database, and the command that writes them."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import catalog
from catalog.entry import Entry, load_entry
from catalog.errors import CatalogError, UsageError
from catalog.exports import copy_database, to_bibtex, to_csl, write_api
from catalog.exports import documents as doc
from catalog.exports.api import api_documents, generated_at, lookup
from catalog.exports.bibtex import citation_key, escape, keeps_case, title
from catalog.exports.people import Person, person
from catalog.exports.places import publication
from catalog.locations import shipped_root
from catalog.markdown import plain
from catalog.query import Catalog
from catalog.taxonomy import Status
from catalog.terminal import harmless
from catalog.words import fold
from tests.catalog.rows import ARXIV_RECORD, ARXIV_STATEMENT, bench_row, evidence_row
from tests.conftest import Ask, nothing_shipped

LORA = load_entry(shipped_root() / "reparameterized" / "lora.toml")
HOSTILE = '}, } @article{x,\n title={y} \\ % # & _ $ ^ ~ " { {{ \\end{document} \\input|"ls" \u202e<b>'


def but(**change: Any) -> Entry:
    """The entry of LoRA, saying something else; not validated, as hostile text may come from elsewhere."""
    return LORA.model_copy(update=change)


# A reader of BibTeX that forgives nothing.

RECORD = re.compile(r"@([a-z]+)\{([a-z0-9-]+),\n")
FIELD = re.compile(r"  ([A-Za-z]+) += ")
MONTH = re.compile(r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec),\n")


def read_bibtex(text: str) -> dict[str, dict[str, str]]:
    """Key -> fields; braces are counted as BibTeX does, whatever stands before them."""
    records: dict[str, dict[str, str]] = {}
    at = 0
    while at < len(text):
        start = RECORD.match(text, at)
        assert start, f"no record at {text[at : at + 40]!r}"
        assert start[2] not in records
        fields, at = {"type": start[1]}, start.end()
        while text[at] != "}":
            name = FIELD.match(text, at)
            assert name, f"no field at {text[at : at + 40]!r}"
            assert name[1] not in fields
            fields[name[1]], at = read_value(text, name.end())
        records[start[2]] = fields
        assert text[at : at + 2] == "}\n"
        at += 3 if text[at + 2 : at + 3] == "\n" else 2
    return records


def read_value(text: str, start: int) -> tuple[str, int]:
    """A value and where the next line starts."""
    if month := MONTH.match(text, start):
        return month[1], month.end()
    assert text[start] == "{"
    depth, at = 1, start + 1
    while depth:
        assert text[at] != "\n"
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    assert text[at : at + 2] == ",\n"
    return text[start + 1 : at - 1], at + 2


COMMAND = re.compile(r"\{\\text([a-z]+)\}|\\([%#$&_])|[{}]")
SIGNS = {
    "backslash": "\\",
    "braceleft": "{",
    "braceright": "}",
    "less": "<",
    "greater": ">",
    "bar": "|",
    "asciicircum": "^",
    "asciitilde": "~",
}


def printed(value: str) -> str:
    """What LaTeX would print; nothing in it may be obeyed otherwise."""
    rest = COMMAND.sub("", value)
    assert not re.search(r"[\\%#$&_^~]", rest), rest
    return COMMAND.sub(lambda found: SIGNS[found[1]] if found[1] else found[2] or "", value)


def line(text: str) -> str:
    """A text as a line of printable signs."""
    return unicodedata.normalize("NFC", "".join(filter(harmless, plain(text))))


anything = st.text(alphabet=st.one_of(st.sampled_from('\\{}%#$&_^~"@,\n<>|aB1 '), st.characters()))


@given(anything)
def test_escaped_text_is_printed_as_written(text: str) -> None:
    assert printed(escape(text)) == line(text)
    assert printed(title(text)) == line(text)


@given(title=anything, author=anything.filter(plain), venue=anything, url=anything, doi=anything)
def test_no_text_breaks_a_record(title: str, author: str, venue: str, url: str, doi: str) -> None:
    hostile = but(title=title, authors=(author, "Edward J. Hu"), venue=venue or None, url=url or None, doi=doi or None)
    found = read_bibtex(to_bibtex([hostile, but(slug="other")]))
    assert len(found) == 2
    fields = found[citation_key(hostile)]
    assert printed(fields["title"]) == line(title)
    assert fields["author"].endswith(" and Hu, Edward J.")
    assert fields["eprint"] == "2106.09685"
    for name in ("url", "doi"):
        assert not re.search(r"[{}\\\s]", fields.get(name, ""))


@given(st.lists(anything, min_size=1))
def test_authors_are_as_many_as_they_were(names: list[str]) -> None:
    names = [f"{name} Hu" for name in names]
    authors = read_bibtex(to_bibtex([but(authors=tuple(names))])).popitem()[1]["author"]
    depth, outside = 0, ""
    for sign in authors:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        outside += sign if not depth else ""
    assert len(re.split(r"\band\b", outside, flags=re.IGNORECASE)) == len(names)


def test_every_paper_is_a_record(cat: Catalog) -> None:
    papers = cat.papers()
    found = read_bibtex(to_bibtex(papers))
    assert list(found) == [citation_key(paper) for paper in papers]
    for paper in papers:
        fields = found[citation_key(paper)]
        assert printed(fields["title"]) == paper.title
        assert len(fields["author"].split(" and ")) == len(paper.authors)
        assert fields.get("eprint") == paper.arxiv
        assert fields.get("doi") == paper.doi
        assert "url" in fields or paper.doi or paper.slug == "lorand"
    assert to_bibtex([]) == ""


def test_a_conference_paper() -> None:
    assert to_bibtex([LORA]) == (
        "@inproceedings{hu2021lora,\n"
        "  title         = {{LoRA}: Low-Rank Adaptation of Large Language Models},\n"
        "  author        = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi "
        "and Wang, Shean and Wang, Lu and Chen, Weizhu},\n"
        "  booktitle     = {International Conference on Learning Representations (ICLR)},\n"
        "  year          = {2022},\n"
        "  eprint        = {2106.09685},\n"
        "  archivePrefix = {arXiv},\n"
        "  primaryClass  = {cs.CL},\n"
        "  url           = {https://openreview.net/forum?id=nZeVKeeFYf9},\n"
        "}\n"
    )


@pytest.mark.parametrize(
    ("venue", "kind", "place", "year", "more"),
    [
        (None, "misc", None, "2021", {"month": "jun"}),
        ("arXiv preprint 2021", "misc", None, "2021", {"month": "jun"}),
        (
            "NeurIPS 2022 (spotlight)",
            "inproceedings",
            "Advances in Neural Information Processing Systems (NeurIPS)",
            "2022",
            {},
        ),
        (
            "AAAI 2024, pp. 12082-12090",
            "inproceedings",
            "AAAI Conference on Artificial Intelligence (AAAI)",
            "2024",
            {"pages": "12082--12090"},
        ),
        (
            "Findings of ACL-IJCNLP 2021",
            "inproceedings",
            "Findings of the Association for Computational Linguistics: ACL-IJCNLP 2021",
            "2021",
            {},
        ),
        (
            "EMNLP-IJCNLP 2019",
            "inproceedings",
            "Conference on Empirical Methods in Natural Language Processing and International Joint Conference on "
            "Natural Language Processing (EMNLP-IJCNLP)",
            "2019",
            {},
        ),
        (
            "ICLR 2024 workshop",
            "inproceedings",
            "International Conference on Learning Representations (ICLR) Workshop",
            "2024",
            {},
        ),
        ("SIGGRAPH 2024 (Conference Papers)", "inproceedings", "SIGGRAPH", "2024", {}),
        ("ACL Rolling Review 2024", "inproceedings", "ACL Rolling Review", "2024", {}),
        ("TMLR 2024", "article", "Transactions on Machine Learning Research", "2024", {}),
        (
            "IEEE Transactions on Pattern Analysis and Machine Intelligence 47(7), 2025, 5268-5280 (online 2024)",
            "article",
            "IEEE Transactions on Pattern Analysis and Machine Intelligence",
            "2025",
            {"volume": "47", "number": "7", "pages": "5268--5280"},
        ),
        (
            "APL Machine Learning 2(2), 026119 (2024)",
            "article",
            "APL Machine Learning",
            "2024",
            {"volume": "2", "number": "2", "pages": "026119"},
        ),
        (
            "EACL 2023 (as 'Modules of 100% {Skill}')",
            "inproceedings",
            "Conference of the European Chapter of the Association for Computational Linguistics (EACL)",
            "2023",
            {"note": r"Published as ``Modules of 100\% {\textbraceleft}Skill{\textbraceright}''"},
        ),
    ],
)
def test_a_venue_gives_type_place_and_year(
    venue: str | None, kind: str, place: str | None, year: str, more: dict[str, str]
) -> None:
    fields = read_bibtex(to_bibtex([but(venue=venue)]))["hu2021lora"]
    assert (fields["type"], fields["year"]) == (kind, year)
    assert fields.get("booktitle", fields.get("journal")) == place
    assert ("journal" in fields) == (kind == "article")
    extra = ("month", "volume", "number", "pages", "note")
    assert {name: fields[name] for name in extra if name in fields} == more


def test_every_venue_of_the_catalog_has_a_full_name(entries: list[Entry]) -> None:
    places = {publication(entry).container for entry in entries} - {None, "SIGGRAPH", "AI Open", "APL Machine Learning"}
    assert [place for place in places if len(str(place).split()) < 3] == []


def test_the_day_of_a_preprint_is_not_the_papers() -> None:
    assert publication(but(venue="ICLR 2021")).month is None
    assert publication(but(venue="EMNLP 2023", arxiv=None, published="2023-12-06")).month == 12
    assert publication(but(venue=None, published="2019")).month is None


def test_a_page_at_the_resolver_of_the_doi_is_not_said_twice() -> None:
    paper = but(doi="10.1063/5.02", url="https://doi.org/10.1063/5.02", arxiv=None)
    fields = read_bibtex(to_bibtex([paper]))["hu2021lora"]
    assert fields["doi"] == "10.1063/5.02"
    assert "url" not in fields


def test_a_withdrawn_paper_says_so() -> None:
    assert read_bibtex(to_bibtex([but(status=Status.WITHDRAWN)]))["hu2021lora"]["note"] == "Withdrawn"


@pytest.mark.parametrize(
    ("printed_name", "found"),
    [
        ("Edward J. Hu", Person("Hu", "Edward J.")),
        ("Quentin de Laroussilhe", Person("Laroussilhe", "Quentin", "de")),
        ("Anton van den Hengel", Person("Hengel", "Anton", "van den")),
        ("Hugo Van hamme", Person("Van hamme", "Hugo")),
        ("Elad Ben Zaken", Person("Ben Zaken", "Elad")),
        ("Nicolas Le Roux", Person("Le Roux", "Nicolas")),
        ("Rabeeh Karimi Mahabadi", Person("Karimi Mahabadi", "Rabeeh")),
        ("Robert L. Logan IV", Person("Logan", "Robert L.", suffix="IV")),
        ("Martin Luther King, Jr.", Person("King", "Martin Luther", suffix="Jr.")),
        ("Chen Change Loy", Person("Loy", "Chen Change")),
        ("Quoc V. Le", Person("Le", "Quoc V.")),
        ("Plato", Person("Plato")),
        ("Hugging Face PEFT contributors", Person("Hugging Face PEFT contributors", group=True)),
        ("", Person("")),
    ],
)
def test_parts_of_a_name(printed_name: str, found: Person) -> None:
    assert person(printed_name) == found


@given(st.text().filter(lambda name: "," not in name))
def test_no_word_of_a_name_is_lost(name: str) -> None:
    who = person(name)
    assert " ".join((who.given, who.particle, who.family, who.suffix)).split() == name.split()


def test_names_in_a_record() -> None:
    people = ("Anton van den Hengel", "Robert L. Logan IV", "Fund and Sons", "Hugging Face PEFT contributors")
    author = read_bibtex(to_bibtex([but(authors=people)])).popitem()[1]["author"]
    assert author == (
        "van den Hengel, Anton and Logan, IV, Robert L. and {Fund and Sons} and {Hugging Face PEFT contributors}"
    )


@pytest.mark.parametrize("word", ["LoRA", "BERT", "LLMs", "P", "V2", "2D", "I2V", "Fourier", "ConvNets", "I"])
def test_capitals_with_a_meaning_are_kept(word: str) -> None:
    assert keeps_case(word)


@pytest.mark.parametrize("word", ["Low", "A", "of", "v2", "3", "Prompt", "1"])
def test_other_capitals_are_left_to_the_style(word: str) -> None:
    assert not keeps_case(word)


def test_a_title_keeps_its_accents_composed_and_no_invisible_marks() -> None:
    assert title("Ru\u0308cklé of\u200d BAD-X\u200b") == "Rücklé of {BAD}-{X}"


def test_keys_are_unique_and_do_not_depend_on_the_venue(entries: list[Entry]) -> None:
    keys = [citation_key(entry) for entry in entries]
    assert len(set(keys)) == len(keys)
    assert citation_key(but(venue=None)) == citation_key(LORA) == "hu2021lora"
    assert citation_key(but(authors=("Quentin de Laroussilhe",))) == "delaroussilhe2021lora"
    assert citation_key(but(authors=("Иван",))) == "anon2021lora"


# CSL-JSON.


def test_csl_of_every_paper(cat: Catalog) -> None:
    papers = cat.papers()
    items = json.loads(to_csl(papers))
    assert [item["id"] for item in items] == [citation_key(paper) for paper in papers]
    assert {item["type"] for item in items} == {"article", "article-journal", "paper-conference"}
    for paper, item in zip(papers, items, strict=True):
        assert item["title"] == paper.title
        assert len(item["author"]) == len(paper.authors)
        assert (item["type"] == "article") == ("container-title" not in item)
        assert all(part for part in item["issued"]["date-parts"][0])
        assert item.get("DOI") == paper.doi


def test_csl_of_a_preprint() -> None:
    item = json.loads(to_csl([but(venue=None, authors=("Anton van den Hengel", "PEFT contributors"))]))[0]
    assert item["issued"] == {"date-parts": [[2021, 6, 17]]}
    assert (item["publisher"], item["number"]) == ("arXiv", "arXiv:2106.09685")
    assert item["author"] == [
        {"family": "Hengel", "given": "Anton", "non-dropping-particle": "van den"},
        {"literal": "PEFT contributors"},
    ]


@given(anything)
def test_csl_keeps_any_title(title: str) -> None:
    text = to_csl([but(title=title)])
    assert json.loads(text)[0]["title"] == title
    assert all(sign == "\n" or harmless(sign) for sign in text)


# The JSON API.


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The API of the shipped catalog with a few measurements."""
    folder = tmp_path_factory.mktemp("api")
    with nothing_shipped(folder), catalog.open(folder / "catalog.sqlite") as cat:
        cat.record_evidence([evidence_row("lora"), evidence_row("dora", status="contradicted", date="2026-12-31")])
        cat.record_bench([bench_row("lora", status="ok", date="2026-11-25")])
        write_api(cat, folder / "v1")
    return folder / "v1"


def load(api: Path, name: str) -> Any:
    return json.loads((api / name).read_text(encoding="utf-8"))


def test_the_index_leads_to_every_file(api: Path, entries: list[Entry]) -> None:
    index = load(api, "index.json")
    assert index["schema_version"] == doc.SCHEMA_VERSION
    assert index["license"] == "CC0-1.0"
    assert index["counts"]["papers"] == len(entries)
    assert (index["counts"]["verified"], index["counts"]["contradicted"]) == (1, 1)
    named = {"index.json", *index["files"].values(), *(paper["file"] for paper in index["papers"])}
    named |= {item["file"] for item in load(api, "categories.json")["categories"]}
    named |= {item["file"] for item in load(api, "lists.json")["lists"]}
    assert {str(path.relative_to(api)) for path in api.rglob("*.json")} == named


def test_a_paper_is_its_whole_entry_and_what_was_measured(api: Path, entries: list[Entry]) -> None:
    for entry in entries:
        data = load(api, f"papers/{entry.slug}.json")
        rest = {
            name: data.pop(name) for name in ("implementation", "claim_status", "citation_key", "evidence", "bench")
        }
        assert Entry.model_validate(data) == entry
        assert rest["citation_key"] == citation_key(entry)
        assert (rest["implementation"] is not None) == entry.has_implementation
    assert load(api, "papers/lora.json")["claim_status"] == "verified"
    assert load(api, "papers/lora.json")["bench"][0]["step_ratio"] == 2.5
    assert load(api, "papers/dora.json")["evidence"][0]["status"] == "contradicted"
    everything = load(api, "papers.json")["papers"]
    assert everything == [load(api, f"papers/{paper['slug']}.json") for paper in everything]
    assert len(everything) == len(entries)


def test_overviews_agree_with_the_entries(api: Path, entries: list[Entry]) -> None:
    categories = load(api, "categories.json")["categories"]
    for category in categories:
        members = [entry.slug for entry in entries if entry.category == category["category"]]
        assert sorted(paper["slug"] for paper in load(api, category["file"])["papers"]) == sorted(members)
        assert category["papers"] == len(members)
    for source in load(api, "lists.json")["lists"]:
        document = load(api, source["file"])
        assert len(document["items"]) == source["items"] > 0
        assert len(document["errata"]) == source["errata"]
    assert len(load(api, "errata.json")["errata"]) == sum(len(entry.errata) for entry in entries)
    assert len(load(api, "deviations.json")["deviations"]) == sum(len(entry.deviations) for entry in entries)
    authors = {author["name"]: author["papers"] for author in load(api, "authors.json")["authors"]}
    assert authors["Jonas Pfeiffer"][0] == "mad-x"
    assert {slug for slugs in authors.values() for slug in slugs} == {entry.slug for entry in entries}
    assert [row["slug"] for row in load(api, "evidence.json")["evidence"]] == ["dora", "lora"]
    assert [row["slug"] for row in load(api, "bench.json")["bench"]] == ["lora"]


def test_papers_are_found_by_identifier_and_alias(api: Path, cat: Catalog, entries: list[Entry]) -> None:
    found = load(api, "lookup.json")
    assert found["arxiv"]["2106.09685"] == ["lora"]
    assert found["arxiv"]["2409.15371"] == ["miss", "bone"], "the current paper goes before the one it replaced"
    assert found["doi"]["10.1109/cvpr52733.2024.01306"] == ["lora-sparse"]
    assert found["name"]["loraconfig"] == ["lora"]
    for entry in entries:
        assert found["name"][entry.slug][0] == entry.slug
        for name in (entry.name, *entry.aliases):
            assert entry.slug in found["name"][fold(name)]
            assert cat.paper(name).slug in found["name"][fold(name)]


def test_a_slug_means_its_own_entry_whoever_has_it_as_a_name(cat: Catalog) -> None:
    from dataclasses import replace

    other = but(slug="aaa", aliases=("lora",))
    borrowed = replace(cat.paper("lora"), slug="aaa", entry_json=other.model_dump_json(by_alias=True))
    assert lookup([borrowed, cat.paper("lora")]).name["lora"] == ["lora", "aaa"]


def resolved(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][part["$ref"].rsplit("/", 1)[-1]] if "$ref" in part else part


def faults(value: Any, part: dict[str, Any], schema: dict[str, Any], at: str = "") -> Iterator[str]:
    """Where a value does not follow the part of JSON Schema that ours uses."""
    part = resolved(part, schema)
    if "anyOf" in part:
        if all(list(faults(value, option, schema, at)) for option in part["anyOf"]):
            yield f"{at}: {value!r} is none of {part['anyOf']}"
        return
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    names = part.get("type", [])
    names = [names] if isinstance(names, str) else names
    if names and not any(value is None if name == "null" else isinstance(value, kinds[name]) for name in names):
        yield f"{at}: {value!r} is no {names}"
        return
    if "enum" in part and value not in part["enum"]:
        yield f"{at}: {value!r} is not in {part['enum']}"
    if "pattern" in part and not re.search(part["pattern"], value):
        yield f"{at}: {value!r} does not match {part['pattern']}"
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from faults(item, part.get("items", {}), schema, f"{at}[{number}]")
    if isinstance(value, dict):
        yield from (f"{at}: {name} is missing" for name in part.get("required", []) if name not in value)
        extra = part.get("additionalProperties", True)
        for name, item in value.items():
            known = part.get("properties", {}).get(name)
            if known is None and extra is False:
                yield f"{at}: {name} is not described"
            elif known is not None or isinstance(extra, dict):
                yield from faults(item, known if known is not None else extra, schema, f"{at}.{name}")


def test_every_file_follows_the_schema(api: Path) -> None:
    schema = load(api, "schema.json")
    single = {
        "index": "Index", "papers": "Papers", "categories": "Categories", "lists": "Lists", "authors": "Authors",
        "deviations": "Deviations", "errata": "Errata", "evidence": "Measured", "bench": "Costs", "lookup": "Lookup",
    }  # fmt: skip
    groups = {"papers": "Paper", "categories": "CategoryDocument", "lists": "ListDocument"}
    for path in sorted(api.rglob("*.json")):
        if path.name != "schema.json":
            name = single[path.stem] if path.parent == api else groups[path.parent.name]
            assert list(faults(load(api, str(path.relative_to(api))), schema["$defs"][name], schema, path.name)) == []
    assert list(faults({**load(api, "index.json"), "license": 1}, schema["$defs"]["Index"], schema)) != []
    broken = load(api, "papers/lora.json") | {"category": "x"}
    assert list(faults(broken, schema["$defs"]["Paper"], schema)) != []


def test_every_document_of_the_schema_has_all_its_keys_required(api: Path) -> None:
    definitions = load(api, "schema.json")["$defs"]
    for kind in doc.DOCUMENTS:
        part = definitions[kind.__name__]
        assert sorted(part["required"]) == sorted(part["properties"])
        assert ".json" in part["description"]


def test_keys_are_sorted_and_control_characters_escaped(api: Path) -> None:
    for path in api.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        assert text.endswith("}\n")


def test_equal_data_give_equal_files(tmp_path: Path, database: Path) -> None:
    again = tmp_path / "again.sqlite"
    for number, path in enumerate((database, again)):
        with catalog.open(path) as opened:
            assert write_api(opened, tmp_path / str(number)) == len(list((tmp_path / str(number)).rglob("*.json")))
    files = sorted(path.relative_to(tmp_path / "0") for path in (tmp_path / "0").rglob("*.json"))
    assert files
    for path in files:
        assert (tmp_path / "0" / path).read_bytes() == (tmp_path / "1" / path).read_bytes()


def test_the_date_is_that_of_the_newest_fact(
    api: Path, cat: Catalog, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert load(api, "index.json")["generated_at"] == "2026-12-31T00:00:00Z"
    assert generated_at([]) == "1970-01-01T00:00:00Z"
    bare = [replace(paper, evidence=(), bench=()) for paper in cat.papers()]
    month = max(filter(None, (paper.sources.checked_on for paper in bare)))
    assert generated_at(bare) == f"{month}-01T00:00:00Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    assert generated_at(cat.papers()) == "2001-09-09T01:46:40Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="yesterday"):
        generated_at(cat.papers())


def test_an_earlier_api_is_replaced_and_nothing_else_is(cat: Catalog, tmp_path: Path) -> None:
    folder = tmp_path / "v1"
    write_api(cat, folder)
    (folder / "papers" / "gone.json").write_text("{}")
    write_api(cat, folder)
    assert not (folder / "papers" / "gone.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    write_api(cat, thesis)
    for number, content in enumerate(("[]", "{}", "not json")):
        other = tmp_path / str(number)
        other.mkdir()
        (other / "index.json").write_text(content)
        with pytest.raises(UsageError, match="earlier export"):
            write_api(cat, other)
        assert (other / "index.json").read_text() == content


def test_a_failure_leaves_the_earlier_api(cat: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "v1"
    write_api(cat, folder)
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(CatalogError, match="No space left"):
        write_api(cat, folder)
    assert (folder / "index.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_documents_are_made_without_writing(cat: Catalog) -> None:
    assert dict(api_documents(cat))["papers/lora.json"]["name"] == "LoRA"


# The database.


@pytest.mark.usefixtures("unmeasured")
def test_the_copy_is_one_file_without_abstracts(tmp_path: Path) -> None:
    source, target = tmp_path / "a.sqlite", tmp_path / "out" / "b.sqlite"
    with catalog.open(source) as cat:
        cat.record_evidence([evidence_row("lora")])
        with closing(sqlite3.connect(source)) as connection:
            rows = {
                "arxiv_statement": ARXIV_STATEMENT | {"record": "Words of the authors."},
                "arxiv_record": ARXIV_RECORD,
            }
            for table, row in rows.items():
                marks = ", ".join("?" * len(row))
                connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
            connection.commit()
        copy_database(source, target)
        copy_database(source, target)
    assert [path.name for path in target.parent.iterdir()] == ["b.sqlite"]
    assert b"Words of the authors" not in target.read_bytes()
    with closing(sqlite3.connect(target)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("SELECT count(*) FROM evidence").fetchone() == (1,)
    with closing(sqlite3.connect(source)) as connection:
        assert connection.execute("SELECT count(*) FROM arxiv_record").fetchone() == (1,)
    with catalog.open(target) as copied:
        assert copied.paper("lora").claim_status == "verified"


def test_the_database_is_not_written_over_itself(database: Path) -> None:
    with pytest.raises(UsageError, match="itself"):
        copy_database(database, database)


def test_a_folder_that_cannot_be_written_is_told(database: Path) -> None:
    with pytest.raises(CatalogError, match="cannot write"):
        copy_database(database, Path("/dev/null/x/catalog.sqlite"))


# The command.


@pytest.fixture
def ask(ask_of: Callable[[Path], Ask], database: Path) -> Ask:
    """Runs `peft-catalog export`."""
    run = ask_of(database)
    return lambda *arguments: run("export", *arguments)


def test_formats_on_standard_output(ask: Ask, cat: Catalog, entries: list[Entry]) -> None:
    total = len(entries)
    assert len(read_bibtex(ask("bibtex")[1])) == total
    assert len(json.loads(ask("csl")[1])) == total
    assert len(json.loads(ask("json")[1])) == total
    assert [json.loads(row)["slug"] for row in ask("jsonl")[1].splitlines()] == [paper.slug for paper in cat.papers()]
    assert len(list(csv.DictReader(io.StringIO(ask("csv")[1])))) == total
    assert len(ask("markdown")[1].splitlines()) == total + 2
    assert ask("bibtex", "-o", "-")[1] == ask("bibtex")[1]


def test_conditions_and_names_choose_papers(ask: Ask, cat: Catalog) -> None:
    found = json.loads(ask("csl", "--category", "prompt", "--year", "2021-2022", "--modality", "llm")[1])
    wanted = cat.papers(category="prompt", year_from=2021, year_to=2022, modality="llm")
    assert [item["id"] for item in found] == [citation_key(paper) for paper in wanted] != []
    assert list(read_bibtex(ask("bibtex", "(IA)^3", "2106.09685", "ia3")[1])) == ["liu2022ia3", "hu2021lora"]
    assert ask("bibtex", "--category", "context", "--implemented")[:2] == (0, "")


def test_files_are_replaced_in_one_step(ask: Ask, tmp_path: Path) -> None:
    target = tmp_path / "new" / "peft.bib"
    assert ask("bibtex", "lora", "--output", str(target))[1] == f"wrote 1 paper to {target}\n"
    assert list(read_bibtex(target.read_text("utf-8"))) == ["hu2021lora"]
    assert "papers to" in ask("bibtex", "-o", str(target))[1]
    assert len(read_bibtex(target.read_text("utf-8"))) > 100
    assert [path.name for path in target.parent.iterdir()] == ["peft.bib"]


def test_the_whole_catalog_goes_to_a_folder_or_a_file(ask: Ask, tmp_path: Path) -> None:
    code, out, _ = ask("api", "-o", str(tmp_path / "v1"))
    assert (code, out) == (0, f"wrote {len(list((tmp_path / 'v1').rglob('*.json')))} files to {tmp_path / 'v1'}\n")
    assert ask("sqlite", "-o", str(tmp_path / "c.sqlite"))[1] == f"wrote {tmp_path / 'c.sqlite'}\n"
    with catalog.open(tmp_path / "c.sqlite") as cat:
        assert cat.paper("lora").name == "LoRA"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["bib"], ["'bib' is not a format", "did you mean bibtex", "sqlite"]),
        (["yaml"], ["'yaml' is not a format", "jsonl"]),
        (["api"], ["api is written to a folder", "--output"]),
        (["sqlite", "-o", "-"], ["sqlite is written to a file", "--output"]),
        (["api", "-o", "x", "--category", "prompt"], ["always holds the whole catalog"]),
        (["sqlite", "lora", "-o", "x"], ["always holds the whole catalog"]),
        (["bibtex", "lora", "--category", "prompt"], ["by name or by condition"]),
        (["bibtex", "lorra"], ["no paper is known as 'lorra'", "LoRA"]),
        (["bibtex", "--category", "promt"], ["did you mean prompt"]),
        (["bibtex", "--list", "peft-state"], ["did you mean peft-state-of-the-art"]),
        (["bibtex", "--year", "then"], ["2021-2023"]),
        (["json", "-o", "/dev/null/x.json"], ["cannot write x.json", "/dev/null"]),
        (["api", "-o", "/dev/null/x"], ["cannot write the API"]),
        ([], ["Missing argument"]),
    ],
)
def test_mistakes_get_a_message_and_exit_code_2(
    ask: Ask, arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ask(*arguments)
    assert (code, out) == (2, "")
    for part in parts:
        assert part in err
    assert list(tmp_path.iterdir()) == []


def test_the_help_has_an_example_and_every_format(ask: Ask) -> None:
    code, out, _ = ask("--help")
    assert code == 0
    assert "peft-catalog export bibtex" in out.split("Example")[1]
    for form in ("bibtex", "csl", "json", "jsonl", "csv", "markdown", "api", "sqlite"):
        assert f"{form}:" in out


@pytest.mark.parametrize("form", ["bibtex", "csl", "json", "jsonl", "csv", "markdown"])
def test_hostile_text_steers_no_terminal(
    ask: Ask,
    few: Path,
    tmp_path: Path,
    edit: Callable[[str, str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    edit("reparameterized/lora", 'title = "LoRA: Low-Rank', r'title = "\u001b[2J\u202e' + json.dumps(HOSTILE)[1:-1])
    edit("reparameterized/lora", '"Edward J. Hu"', r'"Edward\u001b[2J J. Hu, and"')
    monkeypatch.setenv("PEFT_CATALOG_ENTRIES", str(few))
    monkeypatch.setenv("PEFT_CATALOG_DB", str(tmp_path / "hostile.sqlite"))
    code, out, _ = ask(form)
    assert code == 0
    assert [sign for sign in out if sign != "\n" and not harmless(sign)] == []
    if form == "bibtex":
        assert len(read_bibtex(out)) == 3
