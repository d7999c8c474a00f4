"""Start a chapter: python -m tools.chapter 12 "When the classifier only knows clean data"

Writes notebooks/12_slug.py, difflesson/exercises/chapter12.py, and under tests/: its tests, what reads its
equations, what computes its exercises a third way, what proves its sentences. They build and pass as they are; what is
to be replaced says TODO, and
`python -m tools.notebooks check` lists what is left of that.
"""

import re
import sys
import tomllib
import unicodedata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKELETON = Path(__file__).resolve().parent / "skeleton"
USAGE = 'make chapter NN=12 TITLE="When the classifier only knows clean data: does it still guide?"'


def slug(title: str) -> str:
    """The part of a title before the colon as a file name: "The mean shift: what ...?" gives mean_shift."""
    plain = unicodedata.normalize("NFKD", title.split(":")[0]).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain.replace("'", ""))
    return "_".join(words[1:] if words[:1] in (["a"], ["an"], ["the"]) and words[1:] else words)


def start_chapter(number: str, title: str, root: Path = ROOT) -> list[Path]:
    """Write the files of a new chapter and return their paths.

    Args: number: 1 to 99, as text;  title: one line of at most 90 characters.
    Raises: ValueError if they are not so, or if something of that number is there: nothing is ever overwritten.
    """
    if not re.fullmatch(r"[0-9]{1,2}", number) or int(number) == 0:
        raise ValueError(f"NN must be a chapter number from 1 to 99, got {number!r}. Example: {USAGE}")
    title = title.strip()
    if not slug(title) or len(title) > 90 or not title.isprintable():
        allowed = "one line of 1 to 90 characters, with a letter from a to z"
        raise ValueError(f"TITLE must be {allowed}, got {title!r}. Example: {USAGE}")
    nn = f"{int(number):02d}"
    files = {
        "chapter.py.txt": root / "notebooks" / f"{nn}_{slug(title)}.py",
        "exercises.py.txt": root / "difflesson" / "exercises" / f"chapter{nn}.py",
        "test_chapter.py.txt": root / "tests" / "chapters" / f"test_chapter_{nn}.py",
        "readings.py.txt": root / "tests" / "readings" / f"chapter_{nn}.py",
        "answers.py.txt": root / "tests" / "chapters" / f"test_answers_{nn}.py",
        "claims.toml.txt": root / "tests" / "claims" / f"{nn}.toml",
    }
    there = sorted({*(root / "notebooks").glob(f"{nn}_*"), *(path for path in files.values() if path.exists())})
    if there:
        names = ", ".join(path.relative_to(root).as_posix() for path in there)
        raise ValueError(f"NN={nn} is taken, nothing was written: {names}")

    heading = title if "?" in title else f"{title}: TODO the question that this chapter answers?"
    for template, path in files.items():
        text = (SKELETON / template).read_text(encoding="utf-8")
        for mark, value in {"@NN@": nn, "@N@": str(int(nn)), "@TITLE@": heading}.items():
            text = text.replace(mark, value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return list(files.values())


def next_steps(paths: list[Path], root: Path = ROOT) -> str:
    """What to do with the files that were written."""
    nn = paths[0].name[:2]
    with (root / "book" / "planned_equations.toml").open("rb") as file:
        waiting = tomllib.load(file).get(nn, [])
    lines = ["written:", *(f"  {path.relative_to(root).as_posix()}" for path in paths), "next:"]
    if waiting:
        lines.append(f"  show these equations, then take them off book/planned_equations.toml: {', '.join(waiting)}")
    lines += [
        f"  python -m tools.notebooks build {nn}   executes the chapter; it builds as it is",
        "  python -m tools.notebooks check      lists every TODO that is left",
        "  CONTRIBUTING.md                      says how to go on from here",
    ]
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(f"chapter: expected a number and a title. {USAGE}")
    try:
        print(next_steps(start_chapter(*sys.argv[1:])))
    except ValueError as error:
        sys.exit(f"chapter: {error}")


if __name__ == "__main__":
    main()
