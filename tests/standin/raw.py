"""arXivRaw: a paper's record as the interface for harvests prints it, with its names and titles in TeX."""

from __future__ import annotations

import unicodedata
from xml.sax.saxutils import escape

from tests.standin.atom import wrapped
from tests.standin.papers import Paper

LICENSE = "http://arxiv.org/licenses/nonexclusive-distrib/1.0/"
_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030c": "v", "\u0327": "c"}
_LETTERS = {"ß": r"{\ss}", "ø": r"{\o}", "Ø": r"{\O}", "ł": r"{\l}", "Ł": r"{\L}", "æ": r"{\ae}", "å": r"{\aa}"}


def record(paper: Paper) -> str:
    """One paper, or that it was deleted."""
    deleted = ' status="deleted"' if paper.deleted else ""
    sets = "".join(f"<setSpec>{each.partition('.')[0]}:{each.replace('.', ':')}</setSpec>" for each in paper.categories)
    header = (
        f"<header{deleted}><identifier>oai:arXiv.org:{paper.arxiv}</identifier><datestamp>{paper.stamp}</datestamp>"
    )
    return f"<record>{header}{sets}</header>{'' if deleted else metadata(paper)}</record>\n"


def metadata(paper: Paper) -> str:
    """What arXivRaw says of a paper."""
    versions = "".join(
        f'<version version="v{number}"><date>{when:%a, %d %b %Y %H:%M:%S} GMT</date><size>{number}kb</size>'
        f"<source_type>D</source_type></version>"
        for number, when in enumerate(paper.versions, start=1)
    )
    said = {
        "title": tex(wrapped(paper.title)),
        "authors": escape(line(paper)),
        "categories": escape(" ".join(paper.categories)),
        "comments": escape(tex(paper.comment or "")),
        "journal-ref": escape(tex(paper.journal_ref or "")),
        "doi": escape(paper.doi or ""),
        "license": LICENSE,
    }
    texts = "".join(f"<{name}>{value}</{name}>\n" for name, value in said.items() if value)
    return f"""<metadata><arXivRaw xmlns="http://arxiv.org/OAI/arXivRaw/">
<id>{paper.arxiv}</id><submitter>{escape(paper.authors[0])}</submitter>
{versions}
{texts}<abstract>  {wrapped(paper.abstract)}
</abstract></arXivRaw></metadata>"""


def line(paper: Paper) -> str:
    """The authors in one line, with affiliations in numbered parentheses where there are any."""
    places = list(dict.fromkeys(paper.affiliations.values()))
    names = [
        tex(name) + (f" ({places.index(paper.affiliations[name]) + 1})" if name in paper.affiliations else "")
        for name in paper.authors
    ]
    joined = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    legend = ", ".join(f"({number}) {tex(place)}" for number, place in enumerate(places, start=1))
    return f"{joined} ({legend})" if legend else joined


def tex(text: str) -> str:
    """The text as it was submitted: accents in TeX, of which there are several spellings."""
    if text.isascii() or "$" in text:
        return text
    return "".join(_spelled(sign, place) for place, sign in enumerate(text))


def _spelled(sign: str, place: int) -> str:
    parts = unicodedata.normalize("NFD", sign)
    if len(parts) != 2 or parts[1] not in _ACCENTS or parts[0] not in "aceinosuyzACEINOSUYZ":
        return _LETTERS.get(sign, sign)
    accent = _ACCENTS[parts[1]]
    letter = "\\i" if parts[0] == "i" and accent.isascii() and not accent.isalpha() else parts[0]
    return (f"\\{accent}{{{letter}}}", f"{{\\{accent}{{{letter}}}}}")[place % 2]
