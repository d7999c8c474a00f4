"""The page for those who teach: what needs what, ways through, minutes, misconceptions, exercises of all chapters."""

import re
from pathlib import Path

from book.excerpts import elsewhere, prose
from book.gallery import tags
from tools import reading_time
from tools.page_sentences import one_line, split

NEED = re.compile(r"^\*\*You need\*\*(.*?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\d._])([0-2]\d)(?![\d.:_])")  # of a chapter, in prose
LINK = re.compile(r"\]\((\d\d)_[^)]*\)")
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
EXERCISE = re.compile(r"^### Exercise (\d+\.\d+) \((\w+)\)(?:: (.+))?$", re.MULTILINE)
PITFALL = re.compile(r"^#{2,3} (Pitfall: (.+))\n+((?:.+\n?)+)", re.MULTILINE)
FEW_WORDS = 10  # so short a sentence needs the next
ROUTES = (  # name, chapters
    ("One guest lecture", "00 11 17"),
    ("Three weeks on guidance", "00 01 07 10 11 17"),
    ("A term", "00 01 05 07 06 08 10 11 13 15 17 18 19 20"),
)


def needed(text: str) -> list[str]:
    """The chapters that the line *You need* of a page names, in order.  Raises: ValueError without such a line."""
    found = NEED.search(text)
    if not found:
        raise ValueError("a chapter must say what one needs: **You need** ...")
    outside = re.sub(r"\(\[[^()]*\]\([^)]*\)[^()]*\)", "", found[1])  # a sentence in brackets needs nothing
    return sorted({*LINK.findall(outside), *NUMBER.findall(LINK.sub("]", outside))})


def stated(notebook: dict) -> tuple[int, int]:
    """Minutes of main line and Deeper, as the page says them."""
    found = reading_time.STATED.search(prose(notebook))
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def sections(cells: list) -> list[tuple[str, float]]:
    """The sections of a chapter's source that have a heading of the second level, and the minutes counted in each."""
    found: list[tuple[str, list]] = []
    for cell in cells:
        pieces = SECTION.split(cell.source) if cell.cell_type == "markdown" else [cell.source]
        for place, piece in enumerate(pieces):
            if place % 2:
                found.append((piece.strip(), []))
            elif found:
                part = cell.copy()
                part.source = piece
                found[-1][1].append(part)
    return [(title, sum(layer.minutes for layer in reading_time.layers(parts))) for title, parts in found]


def table(parts: list[dict], chapters: dict[str, dict], titles: dict[str, str]) -> str:
    """A row for each chapter that is there: what it needs, what helps, its minutes."""
    lines = ["| | chapter | needs | helps | minutes |", "|---|---|---|---|---|"]
    for chapter in (chapter for part in parts for chapter in part["chapters"]):
        name = next((name for name in chapters if name.startswith(chapter["number"])), None)
        if name:
            main, deeper = stated(chapters[name])
            other = (", ".join(chapter.get(kind, [])) for kind in ("needs", "helps"))
            link = f"[{titles[name]}](notebooks/{name}.ipynb)"
            lines.append(f"| {chapter['number']} | {link} | {' | '.join(other)} | {main}, {deeper} |")
    return "\n".join(lines)


def routes(chapters: dict[str, dict]) -> str:
    """The ways through, with the minutes of their main lines."""
    minutes = {name[:2]: stated(chapter)[0] for name, chapter in chapters.items()}
    return "\n".join(
        f"* {name}, {sum(minutes.get(number, 0) for number in way.split())} minutes to read: {', '.join(way.split())}."
        for name, way in ROUTES
    )


def folded(sources: dict[str, list], titles: dict[str, str]) -> str:
    """For each chapter its sections with their minutes, folded."""
    lines = []
    for name, cells in sources.items():
        if parts := [(title, minutes) for title, minutes in sections(cells) if round(minutes)]:
            lines.append(f"<details><summary>{name[:2]} · {titles[name].replace(chr(96), '')}</summary>\n")
            lines += ["| section | minutes |", "|---|---|", *(f"| {title} | {m:.0f} |" for title, m in parts), ""]
            lines.append("</details>\n")
    return "\n".join(lines)


def found_in(pattern: re.Pattern, chapters: dict[str, dict]) -> list[tuple[str, tuple]]:
    """Chapter and groups, for each place in the chapters' prose."""
    return [(name, found.groups()) for name, chapter in chapters.items() for found in pattern.finditer(prose(chapter))]


def pitfalls(chapters: dict[str, dict], slug) -> str:
    """The title of each pitfall, and the words it begins with: what somebody does, or thinks."""
    lines = []
    for name, (heading, said, paragraph) in found_in(PITFALL, chapters):
        first, *more = split(one_line(paragraph))
        words = f"{first} {more[0]}" if more and len(first.split()) < FEW_WORDS else first
        words = elsewhere(re.sub(r":$", ".", words.replace("**", "")), name, tags(chapters[name]))
        link = f"[{name[:2]}](notebooks/{name}.ipynb#{slug(heading)})"
        lines.append(f"* {link} **{said[:1].upper()}{said[1:]}.** {words}")
    return "\n".join(lines)


def exercises(chapters: dict[str, dict]) -> str:
    """How many there are, by what they ask of one, and which."""
    kinds: dict[str, list[str]] = {}
    for _, (number, kind, _) in found_in(EXERCISE, chapters):
        kinds.setdefault(kind, []).append(number)
    return "\n".join(f"* {len(numbers)} {kind}: {', '.join(numbers)}" for kind, numbers in kinds.items())


def bibtex(root: Path) -> str:
    """The entry that cites the course, from CITATION.cff."""
    told = dict(re.findall(r'^([a-z-]+): "?([^"\n]+?)"?$', (root / "CITATION.cff").read_text("utf-8"), re.MULTILINE))
    lines = [
        "@software{difflesson,",
        "  author  = {{The difflesson authors}},",
        f"  title   = {{{told['title']}}},",
        f"  year    = {{{told['date-released'][:4]}}},",
        f"  version = {{{told['version']}}},",
    ]
    if address := told.get("repository-code"):
        lines.append(f"  url     = {{{address}}},")
    return "\n".join([*lines, "}"])


def page(root: Path, parts: list[dict], chapters: dict[str, dict], titles: dict[str, str], sources: dict, slug) -> str:
    """The page in MyST Markdown.

    Args: parts: of chapters.toml;  chapters: name -> staged notebook;  titles: name -> title;  sources: name -> cells
    as their author wrote them;  slug: heading -> its anchor.
    """
    template = (root / "book" / "teaching.md").read_text(encoding="utf-8")
    made = {
        "chapters": table(parts, chapters, titles), "routes": routes(chapters), "sections": folded(sources, titles),
        "pitfalls": pitfalls(chapters, slug), "exercises": exercises(chapters), "bibtex": bibtex(root),
    }  # fmt: skip
    for name, text in made.items():
        template = template.replace(f"%{name}%", text)
    return template
