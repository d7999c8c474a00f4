"""What a chapter's place in the repository asks: rows in README.md and book/chapters.toml, papers in the bibliography,
no figure that no cell draws, no norm that a table loses, nothing left to do. Each problem names file and line.
"""

import re
import tomllib
from pathlib import Path

from tools.citations import bibliography, faults
from tools.figures import orphans

COMPANIONS = (
    "difflesson/exercises/chapter{}.py",
    "tests/chapters/test_chapter_{}.py",
    "tests/readings/chapter_{}.py",
    "tests/chapters/test_answers_{}.py",
    "tests/claims/{}.toml",
    "tests/mutants/{}.toml",
)


def problems(root: Path) -> list[str]:
    """What is not in order around the chapters of the repository at `root`. Empty: nothing."""
    sources = sorted((root / "notebooks").glob("[0-9][0-9]_*.py"))
    return [
        *missing_rows(root, sources),
        *citation_problems(root, sources),
        *(problem for source in sources for problem in lost_bars(source)),
        *(f"figures/{name}: no cell draws it; delete it" for name in orphans(root / "figures", sources)),
    ]


def missing_rows(root: Path, sources: list[Path]) -> list[str]:
    readme = (root / "README.md").read_text(encoding="utf-8")
    parts = tomllib.loads((root / "book" / "chapters.toml").read_text(encoding="utf-8"))["parts"]
    listed = {chapter["number"] for part in parts for chapter in part["chapters"]}
    found = []
    for source in sources:
        if not re.search(rf"^\|.*\]\(notebooks/{source.stem}\.ipynb\)", readme, re.MULTILINE):
            found.append(f"README.md: the table of chapters has no row that links to notebooks/{source.stem}.ipynb")
        if source.name[:2] not in listed:
            found.append(f"book/chapters.toml has no chapter {source.name[:2]}: add it to a part")
    return found


def citation_problems(root: Path, sources: list[Path]) -> list[str]:
    try:
        papers = bibliography(root / "book" / "references.bib")
    except ValueError as error:
        return [f"book/{error}"]
    found = []
    for source in sources:
        text = re.sub(r"^# ?", "", source.read_text(encoding="utf-8"), flags=re.MULTILINE)  # Markdown behind "# "
        for url, sentence in faults(text, papers):
            found.append(f"notebooks/{source.name}:{line_with(url, text)} {sentence}")
    return found


def lost_bars(source: Path) -> list[str]:
    r"""The rows of a chapter's tables with `\|` in a formula: the web page's tables make one bar of it."""
    return [
        f"notebooks/{source.name}:{number} has \\| in a formula of a table, which the web page shows as one bar: write "
        "\\lVert ... \\rVert"
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1)
        if line.startswith("# |") and any(r"\|" in formula for formula in line.split("$")[1::2])
    ]


def line_with(words: str, text: str) -> int:
    return text[: text.index(words)].count("\n") + 1


def todos(source: Path) -> list[str]:
    """What is left to do in a chapter's source and in the files that go with it, with file and line."""
    root = source.parent.parent
    paths = [source, *(root / name.format(source.name[:2]) for name in COMPANIONS)]
    return [
        f"{path.relative_to(root).as_posix()}:{number}: still {line[line.index('TODO') :].strip()}"
        for path in paths
        if path.exists()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if "TODO" in line
    ]
