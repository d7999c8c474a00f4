"""The exercises in a chapter's source: from each solved one, the stub that readers fill in and a folded solution.

# %% [markdown]
# ### Exercise 7.1 (easy)                       the text: its number, and a hint
# ... <details><summary>Hint</summary> ... </details>

# %% tags=["exercise"]
def shifted_mean(mean, variance, gradient):     the solved function
    ### BEGIN SOLUTION
    return ...
    ### END SOLUTION

# %%
exercises.check("7.1", shifted_mean)            the check, right after it
"""

import re
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
REGION = re.compile(rf"^([ \t]*){BEGIN}[ \t]*\n(.*?)^[ \t]*{END}[ \t]*$", re.MULTILINE | re.DOTALL)
CHECK = re.compile(r"^exercises\.check\(\s*[\"']([^\"']+)[\"']\s*,\s*(\w+)\s*\)", re.MULTILINE)
HINT = re.compile(r"<details>\s*<summary>Hint</summary>\s*\S.*?</details>", re.DOTALL)


class SourceError(ValueError):
    """A chapter's source cannot be made into a notebook."""


@dataclass(frozen=True)
class SolvedExercise:
    """One exercise of a source: where its solved cell is, its number, its function's name, and both versions."""

    index: int
    number: str
    name: str
    solution: str
    stub: str


def find_exercises(cells: list[NotebookNode]) -> list[SolvedExercise]:
    """The exercises among a source's cells, in order.

    Raises: SourceError if one lacks its markers, its text with the number and a hint, or the check right after it.
    """
    return [solved(cells, index) for index, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", [])]


def solved(cells: list[NotebookNode], index: int) -> SolvedExercise:
    source = cells[index].source
    where = f"exercise cell {source.splitlines()[0]!r}" if source else "empty exercise cell"
    regions = REGION.findall(source)
    if len(regions) != 1 or source.count(BEGIN) != 1 or source.count(END) != 1:
        raise SourceError(f"{where}: needs one line {BEGIN!r}, then one line {END!r}, and no more of them")
    check = CHECK.search(cells[index + 1].source) if index + 1 < len(cells) else None
    if check is None:
        raise SourceError(f"{where}: the next cell must hold its check, exercises.check('7.1', function)")
    number, name = check.groups()
    if not re.search(rf"^(def {name}\(|{name}\s*=)", source, re.MULTILINE):
        raise SourceError(f"{where}: its check names {name}, which it does not define")
    text = cells[index - 1].source if index and cells[index - 1].cell_type == "markdown" else ""
    if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text):
        raise SourceError(f"{where}: its check says {number!r}, which the Markdown cell before it does not mention")
    if not HINT.search(text):
        raise SourceError(f"{where}: {number} has no <details><summary>Hint</summary> ... </details> in its text")
    return SolvedExercise(
        index=index,
        number=number,
        name=name,
        solution="\n".join(line for line in source.splitlines() if line.strip() not in (BEGIN, END)),
        stub=REGION.sub(r'\1raise NotImplementedError("your turn")', source),
    )


def for_readers(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells with every solution taken out and folded away behind the check.  Raises: as `find_exercises`."""
    exercises = {exercise.index: exercise for exercise in find_exercises(cells)}
    result = []
    for index, cell in enumerate(cells):
        if index in exercises:
            cell.source = exercises[index].stub
        result.append(cell)
        if index - 1 in exercises:
            exercise = exercises[index - 1]
            folded = f"```python\n{exercise.solution}\n```\n\n</details>"
            summary = f"<details><summary>Solution of {exercise.number}</summary>"
            result.append(nbformat.v4.new_markdown_cell(f"{summary}\n\n{folded}"))
    return result
