"""The wrong formulas as tests/mutants/NN.toml lists them; tests/mutants/README.md says what the keys mean."""

import difflib
import tomllib
from collections import Counter
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from tools.equation_labels import MUTANTS

FAST_ONES = 2  # of each file: at twenty-one chapters `make test` then plants some sixty


@dataclass(frozen=True)
class Mutant:
    """One wrong formula: `new` for `old` in a file, and in words what mistake that is."""

    name: str
    equation: str  # the label whose tests must notice it
    file: str  # under difflesson/, or a chapter's source: notebooks/07_mean_shift.py
    old: str
    new: str
    why: str
    fast: bool = False
    cells: bool = False  # the chapter's own cells must notice it as well, not only the tests
    tests: tuple[str, ...] = ()  # files or node ids to run besides the marked ones

    @property
    def path(self) -> str:
        """From the root of the repository."""
        return self.file if self.file.startswith("notebooks/") else f"difflesson/{self.file}"

    def plant(self, source: str) -> str:
        """The text of the file with the mistake in it.  Raises: ValueError if it does not fit there exactly once."""
        count = source.count(self.old)
        if count != 1:
            raise ValueError(f"stale: its `old` occurs {count} times in {self.path}, once is needed")
        return source.replace(self.old, self.new)

    def diff(self) -> str:
        lines = difflib.unified_diff(self.old.splitlines(), self.new.splitlines(), lineterm="", n=9)
        return "\n".join(line for line in list(lines)[3:])


def load(folder: Path) -> list[Mutant]:
    """The mutants of a folder's files; one with several labels is one for each, so that the tests of all notice it.

    Raises: ValueError, with the file, if an entry has an unknown key or lacks one, or two have one name.
    """
    entries = [entry for file in sorted(folder.glob("*.toml")) for entry in entries_of(file)]
    name, count = Counter(entry["name"] for entry in entries).most_common(1)[0]
    if count > 1:
        raise ValueError(f"name must be unique in {folder.name}, {name!r} is not")
    return [
        Mutant(**entry | {"equation": label, "tests": tuple(entry.get("tests", ())), "cells": label in in_cells})
        for entry in entries
        for in_cells in [cell_labels(entry)]
        for label in several(entry["equation"])
    ]


def several(labels: str | list[str]) -> list[str]:
    return [labels] if isinstance(labels, str) else labels


def cell_labels(entry: dict) -> list[str]:
    """The equations whose cells must notice a mutant: all of its own for true, else those that `cells` names.

    Raises: ValueError if it names another.
    """
    cells, labels = entry.get("cells", False), several(entry["equation"])
    if isinstance(cells, bool):
        return labels if cells else []
    for label in several(cells):
        if label not in labels:
            raise ValueError(f"{MUTANTS}: cells of mutant {entry['name']!r} names {label!r}, which is not its equation")
    return several(cells)


def entries_of(file: Path) -> list[dict]:
    """The entries of one file.  Raises: ValueError if one has an unknown key or lacks one."""
    known = {one.name: one for one in fields(Mutant)}
    needed = {name for name, one in known.items() if one.default is MISSING}
    entries = tomllib.loads(file.read_text(encoding="utf-8")).get("mutant", [])
    for number, entry in enumerate(entries, start=1):
        where = f"{MUTANTS}/{file.name}: mutant {entry.get('name', number)!r}"
        for key in entry.keys() - known.keys():
            close = difflib.get_close_matches(key, known, 1)
            raise ValueError(f"{where} has an unknown key {key!r}" + (f"; is {close[0]!r} meant?" if close else ""))
        for key in sorted(needed - entry.keys()):
            raise ValueError(f"{where} lacks the key {key!r}")
    return entries


def few(folder: Path) -> set[str]:
    """The names of those that `make test` plants: of each file the first `FAST_ONES` that are fast."""
    files = (entries_of(file) for file in sorted(folder.glob("*.toml")))
    fast = ([entry["name"] for entry in entries if entry.get("fast")] for entries in files)
    return {name for names in fast for name in names[:FAST_ONES]}
