"""Papers as chapters cite them: a plain link, named as the book names the paper, [Ho & Salimans (2022)](address).

The address says which paper is meant. Two of one year by the same authors get letters in the order in which they stand
in book/references.bib: the chapter may write "Song et al. (2021)" for both, the book says 2021a and 2021b.
"""

import re
from pathlib import Path
from typing import NamedTuple

LINK = re.compile(r"\[([^][]+)\]\((https?://[^)\s]+)\)")
TO_A_PAPER = re.compile(r"https?://(?:www\.|dx\.)?(?:arxiv|doi)\.org/[^\s)>\]\"']+")


class Paper(NamedTuple):
    """An entry of references.bib, and how a chapter names it: "Ho & Salimans", "Song et al."."""

    key: str
    authors: str
    year: str
    letter: str = ""  # where another entry reads alike


def address(url: str) -> str:
    """What is the same in all links to a paper: no protocol, no version, the page and not the PDF."""
    plain = re.sub(r"^https?://(www\.|dx\.)?", "", url).rstrip("/.,;")
    return re.sub(r"v\d+$", "", plain.removesuffix(".pdf").replace("arxiv.org/pdf/", "arxiv.org/abs/"))


def bibliography(path: Path) -> dict[str, Paper]:
    """The papers of a .bib file by their address.  Raises: ValueError where one has none, or that of another."""
    from pybtex.database import parse_file  # comes with the extra `book`

    papers = {}
    for key, entry in parse_file(str(path), bib_format="bibtex").entries.items():
        if "url" not in entry.fields:
            raise ValueError(f"{path.name}: entry {key} needs a url, the address that chapters link to")
        names = [" ".join([*person.prelast_names, *person.last_names]) for person in entry.persons["author"]]
        authors = " & ".join(names) if len(names) < 3 else f"{names[0]} et al."
        where = address(entry.fields["url"])
        if where in papers:
            raise ValueError(f"{path.name}: {key} and {papers[where].key} have the same address")
        papers[where] = Paper(key, authors, entry.fields["year"])
    alike = {}
    for where, paper in papers.items():
        alike.setdefault((paper.authors, paper.year), []).append(where)
    for group in (group for group in alike.values() if len(group) > 1):
        papers |= {where: papers[where]._replace(letter="abcdefghijklm"[i]) for i, where in enumerate(group)}
    return papers


def named(words: str, paper: Paper) -> re.Match | None:
    """The part of a link's words that names its paper, "Ho & Salimans (2022)"; groups: year, letter."""
    authors = re.escape(paper.authors).replace(r"\&", "&").replace("&", "(?:&|and)")
    return re.match(rf"{authors},?\s+\(?(\d{{4}})([a-z]?)\)?", words.replace("\n", " "))


def faults(markdown: str, papers: dict[str, Paper]) -> list[tuple[str, str]]:
    """What keeps links to papers from becoming citations: the link's address, and a sentence."""
    found = []
    for url in TO_A_PAPER.findall(markdown):
        if address(url) not in papers:
            found.append((url, f"links to {url}, which no entry of book/references.bib has as its url: add one"))
    for words, url in LINK.findall(markdown):
        paper = papers.get(address(url))
        name = paper and named(words, paper)
        if name and (name[1] != paper.year or name[2] not in ("", paper.letter)):
            year = paper.year + paper.letter
            found.append((url, f"says {words!r}; book/references.bib gives {paper.authors} the year {year}"))
        if paper and not name and any(named(words, other) for other in papers.values()):
            found.append((url, f"says {words!r}; the address is that of {paper.authors} ({paper.year}{paper.letter})"))
    return found


def cite(markdown: str, papers: dict[str, Paper], where: str) -> str:
    """`markdown` with each link that names its paper as "Ho & Salimans (2022)" turned into a citation.

    A link with other words stays a link. Raises ValueError for a paper that is not in `papers`, or of another year.
    """
    for _, sentence in faults(markdown, papers):
        raise ValueError(f"{where} {sentence}")

    def citation(link: re.Match) -> str:
        paper = papers.get(address(link[2]))
        name = paper and named(link[1], paper)
        return f"{{cite:t}}`{paper.key}`{link[1][name.end() :]}" if name else link[0]

    return LINK.sub(citation, markdown)


def with_letters(bib: str, papers: dict[str, Paper]) -> str:
    """The text of references.bib with the letters behind the years of papers that read alike."""
    for paper in papers.values():
        if paper.letter:
            year = rf"(@\w+\{{\s*{re.escape(paper.key)}\s*,.*?\byear\s*=\s*[{{\"]?){paper.year}"
            bib = re.sub(year, rf"\g<1>{paper.year}{paper.letter}", bib, count=1, flags=re.DOTALL)
    return bib
