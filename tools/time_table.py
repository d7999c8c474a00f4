"""Where the time of the tests goes, by part, and what that comes to when all twenty-one chapters are there.

tests/conftest.py prints the table at the end of every run. The forecast takes what belongs to chapters (their
notebooks, their tests, their pages, their mutants) times the chapters still to come, and leaves the rest as it is.
"""

from collections.abc import Iterable
from typing import NamedTuple

CHAPTERS = 21
LIMIT = 15 * 60  # seconds of `make test` on two cores
PARTS = {  # the part of a test by how its node id begins, the first that fits; whether it grows with the chapters
    "notebooks": ("notebooks/", True),
    "chapters": ("tests/chapters/", True),
    "readings": ("tests/readings/", True),
    "pages": ("tests/book/test_book_in_browser.py", True),
    "book": ("tests/book/", False),
    "mutants": ("tests/tools/test_mutants.py::test_the_fast_wrong", True),
    "exercises": ("tests/package/test_exercises.py", True),
    "package": ("tests/package/", False),
    "peers": ("tests/peers/", False),
    "tools": ("tests/tools/", False),
    "reliability": ("tests/reliability/", False),
    "other": ("", False),
}


class Part(NamedTuple):
    name: str
    tests: int
    seconds: float  # of all workers together
    grows: bool


def part_of(node_id: str) -> str:
    return next(name for name, (start, _) in PARTS.items() if node_id.startswith(start))


def parts(durations: Iterable[tuple[str, float]]) -> list[Part]:
    """The parts that ran.  Args: durations: node id and seconds, of each phase of each test."""
    seconds, tests = {}, {}
    for node_id, took in durations:
        name = part_of(node_id)
        seconds[name] = seconds.get(name, 0.0) + took
        tests.setdefault(name, set()).add(node_id)
    return [Part(name, len(tests[name]), seconds[name], grows) for name, (_, grows) in PARTS.items() if name in tests]


def forecast(found: list[Part], chapters: int) -> float:
    """Seconds of all workers together when there are `CHAPTERS` of them, from a run with `chapters`."""
    return sum(part.seconds * (CHAPTERS / chapters if part.grows else 1) for part in found)


def table(found: list[Part], chapters: int, workers: int, wall: float) -> str:
    """The table, and where every part ran, the forecast."""
    lines = [f"{'part':12}{'tests':>7}{'seconds':>9}{f'at {CHAPTERS} chapters':>16}"]
    for part in found:
        later = forecast([part], chapters)
        lines.append(f"{part.name:12}{part.tests:7}{part.seconds:9.0f}{later:16.0f}")
    busy = sum(part.seconds for part in found)
    lines.append(f"{'together':12}{sum(part.tests for part in found):7}{busy:9.0f}{forecast(found, chapters):16.0f}")
    # What the workers did not do at the same time, starting and waiting for the last file, is paid then as well.
    lost = max(0.0, wall - busy / workers)
    later = forecast(found, chapters) / workers + lost
    if {"notebooks", "chapters", "package", "tools"} <= {part.name for part in found}:
        verdict = "within" if later <= LIMIT else "OVER"
        lines.append(
            f"{workers} workers took {wall:.0f} s; at {CHAPTERS} chapters {later / 60:.0f} minutes, {verdict} the "
            f"{LIMIT // 60} that `make test` may take"
        )
    return "\n".join(lines)
