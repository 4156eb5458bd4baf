"""What a web address says about a paper: its arXiv id, its DOI, and a form in which equal addresses are equal."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, unquote, urlsplit

_ARXIV = re.compile(
    r"(?:arxiv\.org/(?:abs|pdf|html|format|e-print)/|ar5iv\.[\w.]+/(?:abs|html)/|alphaxiv\.org/(?:abs|pdf)/"
    r"|huggingface\.co/papers/|10\.48550/arxiv\.|^arxiv:\s*)"
    r"(?P<id>\d{4}\.\d{4,5}|[a-z-]+(?:\.[a-z]{2})?/\d{7})",
    re.IGNORECASE,
)
_DOI = re.compile(r"(?:doi\.org/|^doi:\s*|/doi/(?:abs/|full/|pdf/)?)(?P<doi>10\.\d{4,9}/[^\s?#]+)", re.IGNORECASE)
_ANTHOLOGY = re.compile(r"(?:aclanthology\.org|aclweb\.org/anthology)/(?P<id>[A-Z]\d\d-\d+|\d{4}\.[\w-]+\.\d+)")
_ANTHOLOGY_DOI = "10.18653/v1/"

# Pages that aggregate papers instead of publishing them. The first group has closed.
CLOSED = ("paperswithcode.com",)
SECONDARY = ("aminer.cn", "aminer.org", "catalyzex.com", "scirate.com", "semanticscholar.org", "researchgate.net")
_CODE_HOSTS = ("github.com", "gitlab.com", "bitbucket.org", "huggingface.co", "gitee.com", "codeberg.org")
_PRIMARY_CODE_PATH = 2  # owner/repository


def arxiv_id(url: str) -> str | None:
    """The arXiv id in an address, without version."""
    match = _ARXIV.search(url)
    return match["id"] if match else None


def doi(url: str) -> str | None:
    """The DOI in an address, in lower case; addresses of the ACL Anthology have one too."""
    match = _DOI.search(unquote(url))
    if match:
        return match["doi"].rstrip("/.").removesuffix(".pdf").lower()
    anthology = _ANTHOLOGY.search(url)
    return f"{_ANTHOLOGY_DOI}{anthology['id']}".lower() if anthology else None


def host(url: str) -> str:
    """The host of an address without `www.`; empty when there is none."""
    try:
        return (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:
        return ""


def is_on(url: str, hosts: tuple[str, ...]) -> bool:
    """Whether an address is on one of these hosts, or below one."""
    found = host(url)
    return any(found == name or found.endswith(f".{name}") for name in hosts)


def canonical(url: str) -> str:
    """An address such that two spellings of one page are equal."""
    try:
        parts = urlsplit(unquote(url.strip()))
        identity = parse_qs(parts.query).get("id", [""])[0]
    except ValueError:
        return url.strip()
    path = parts.path.rstrip("/").removesuffix(".pdf").removesuffix(".git")
    if host(url) == "openreview.net":
        path = ""
    return f"{host(url)}{' '.join(path.split())}{'?' + identity if identity else ''}".casefold()


def is_code(url: str) -> bool:
    """Whether an address can be that of code: a repository, or a page outside the hosts of code."""
    if is_on(url, CLOSED) or is_on(url, SECONDARY) or arxiv_id(url):
        return False
    try:
        parts = [part for part in urlsplit(url).path.split("/") if part]
    except ValueError:
        return False
    if is_on(url, _CODE_HOSTS):
        return len(parts) >= 1 and not (
            len(parts) > _PRIMARY_CODE_PATH and parts[_PRIMARY_CODE_PATH] in ("issues", "pull", "discussions", "wiki")
        )
    return True
