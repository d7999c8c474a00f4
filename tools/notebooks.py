"""Make the chapters: NN_slug.py is the source, NN_slug.ipynb is built from it and executed. One way only.

    python -m tools.notebooks build           execute the chapters that changed and write their .ipynb
    python -m tools.notebooks build 00 07     only these (a chapter is named by how its name starts)
    python -m tools.notebooks build --all     execute every chapter, changed or not
    python -m tools.notebooks check           report drifted pairs and unfinished chapters; exit status 1 if any
    python -m tools.notebooks run 00          execute a chapter and write nothing

The notebook is the source with two additions. Every solved exercise becomes a stub and a folded solution
(tools/exercise_cells.py), and one cell before the first code cell installs the package on Colab.

Two builds of one source give the same bytes: cell ids come from the cells, execution leaves no times, paths
or widget state, and the kernel starts from a fixed environment with one thread.
"""

import hashlib
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import jupytext
import nbformat
import typer
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from tools.chapter_parts import missing_parts
from tools.equation_labels import number_equations
from tools.execution import execute
from tools.exercise_cells import SourceError, for_readers

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
CELL_TIMEOUT = 120  # seconds; pyproject.toml gives the tests the same, so what was built can also be tested
PNG_LIMIT = 150_000  # bytes
ON_COLAB = """\
# Only for Colab, which starts without this course; elsewhere this cell does nothing.
from importlib.util import find_spec

if find_spec("difflesson") is None:
    %pip install -q git+{address}"""
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "file_extension": ".py", "pygments_lexer": "ipython3"},
}


# --- source -> notebook -------------------------------------------------------------------------------------


def source_hash(source: Path) -> str:
    """SHA-256 of the source's text, whatever line endings the checkout has."""
    return hashlib.sha256(source.read_text(encoding="utf-8").encode()).hexdigest()


def repository() -> str:
    """The address of the repository, from the one place where it stands."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    return re.search(r"^repository-code:\s*[\"']?([^\"'\s]+)", citation, re.MULTILINE).group(1)


def cells_of(source: Path) -> list[NotebookNode]:
    """The cells of `source` (percent format) as its author wrote them."""
    return jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells


def notebook_of(source: Path) -> NotebookNode:
    """The notebook that `source` describes, not executed.  Raises: SourceError if an exercise is incomplete."""
    cells = for_readers(cells_of(source))
    number_equations(cells, source.name[:2])
    first_code = next((index for index, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
    aside = {"tags": ["remove-cell"], "jupyter": {"source_hidden": True}}  # off the web page, folded in JupyterLab
    cells.insert(first_code, nbformat.v4.new_code_cell(ON_COLAB.format(address=repository()), metadata=aside))
    seen = Counter()
    for cell in cells:
        # An id depends on the text and how often that text came before: inserting a cell changes no other id.
        content = f"{cell.cell_type}\n{cell.source}"
        cell.id = hashlib.sha256(f"{seen[content]}\n{content}".encode()).hexdigest()[:12]
        seen[content] += 1
        cell.metadata = {key: cell.metadata[key] for key in ("tags", "jupyter") if cell.metadata.get(key)}
    stamp = {"difflesson": {"source_sha256": source_hash(source)}}
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA | stamp)


# --- what can be wrong with a pair --------------------------------------------------------------------------


def drift(expected: NotebookNode, found: NotebookNode) -> list[str]:
    """Where the input cells differ from the source: the first such cell."""
    want, have = (
        [
            {"type": cell.cell_type, "source": cell.source, "tags": cell.metadata.get("tags", [])}
            for cell in notebook.cells
        ]
        for notebook in (expected, found)
    )
    for index, (a, b) in enumerate(zip(want, have, strict=False)):
        for part in a:
            if a[part] != b[part]:
                return [f"cell {index}: {part} differs from the source"]
    return [] if len(want) == len(have) else [f"{len(have)} cells, the source has {len(want)}"]


def output_problems(output: NotebookNode, tags: list[str]) -> list[str]:
    data = output.get("data", {})
    kinds = ("text/plain", "text/html", "text/markdown")
    text = output.get("text", "") + "".join(data.get(kind, "") for kind in kinds)
    png = len(data.get("image/png", "")) * 3 // 4
    described = output.get("metadata", {}).get("image/png", {}).get("alt")
    is_error = output.output_type == "error"
    checks = {
        f"error output: {output.get('ename')}": is_error and "raises-exception" not in tags,
        "writes to stderr": output.get("name") == "stderr",
        "leaves a widget (in chapters: from tqdm import tqdm, with disable=None)": WIDGET in data,
        "shows a memory address, which changes from run to run": re.search(r"\b0x[0-9a-f]{6,}", text),
        "shows a path of this machine": str(ROOT) in text or sys.prefix in text,
        "a picture without alt text (in chapters: end the cell with plotting.show)": png and not described,
        f"a picture of {png // 1000} kB; the limit is {PNG_LIMIT // 1000} kB": png > PNG_LIMIT,
    }
    return [message for message, is_wrong in checks.items() if is_wrong]


def cell_problems(cell: NotebookNode) -> list[str]:
    if cell.cell_type != "code" or not cell.source.strip():
        return []
    tags = cell.metadata.get("tags", [])
    found = [message for output in cell.outputs for message in output_problems(output, tags)]
    if cell.get("execution_count") is None:
        found.append("never executed, so the tests would not compare it")
    if "raises-exception" in tags and all(output.output_type != "error" for output in cell.outputs):
        found.append("tagged raises-exception, raised nothing")
    return found


def problems(source: Path) -> list[str]:
    """All that keeps the committed notebook from being what its source gives. Empty: the pair is in order."""
    target = source.with_suffix(".ipynb")
    if not target.exists():
        return ["not built yet"]
    try:
        notebook = nbformat.read(target, as_version=4)
    except ValueError as error:
        return [f"not a notebook: {error}"]
    try:
        found = drift(notebook_of(source), notebook)
    except SourceError as error:
        return [str(error)]
    if notebook.metadata.get("difflesson", {}).get("source_sha256") != source_hash(source):
        found.append("built from another version of the source")
    if "widgets" in notebook.metadata:
        found.append("carries widget state")
    for index, cell in enumerate(notebook.cells):
        found += [f"cell {index}: {message}" for message in cell_problems(cell)]
    return found


# --- commands -----------------------------------------------------------------------------------------------


def chapters(names: list[str], folder: Path) -> list[Path]:
    """The sources whose names start with one of `names`; all of them when none is given."""
    sources = sorted(folder.glob("[0-9][0-9]_*.py"))
    for name in names:
        if not any(source.stem.startswith(name) for source in sources):
            known = ", ".join(source.stem for source in sources) or "none"
            raise typer.BadParameter(f"no chapter starts with {name!r}; chapters: {known}")
    return [source for source in sources if not names or source.stem.startswith(tuple(names))]


def execute_chapter(source: Path, write: bool) -> list[str]:
    """Execute one chapter. Returns what is wrong; a chapter that fails leaves its old notebook as it was."""
    start = time.perf_counter()
    try:
        notebook = execute(notebook_of(source), source.parent, source.stem, CELL_TIMEOUT)
    except (SourceError, CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return [str(error)]
    print(f"{source.stem}: executed in {time.perf_counter() - start:.1f} s", flush=True)
    if not write:
        return []
    text = nbformat.writes(notebook) + "\n"
    source.with_suffix(".ipynb").write_text(text, encoding="utf-8", newline="\n")
    return problems(source)


def build(names: list[str], folder: Path, force: bool = False) -> dict[str, list[str]]:
    """Execute the chapters that are not in order; all with `force`. Returns the problems left, by chapter."""
    remaining = {}
    for source in chapters(names, folder):
        if force or problems(source):
            remaining[source.stem] = execute_chapter(source, write=True)
        else:
            print(f"{source.stem}: up to date", flush=True)
    return {name: found for name, found in remaining.items() if found}


def check(folder: Path) -> dict[str, list[str]]:
    """The problems of every pair, by chapter; a notebook without a source is one."""
    found = {source.stem: problems(source) for source in chapters([], folder)}
    for notebook in sorted(folder.glob("*.ipynb")):
        found.setdefault(notebook.stem, ["has no source of that name"])
    return {name: messages for name, messages in found.items() if messages}


def unfinished(folder: Path) -> dict[str, list[str]]:
    """What the chapters still lack of a chapter's seven parts, and what is still to do in their tests, by chapter."""
    missing = {}
    for source in chapters([], folder):
        missing[source.stem] = missing_parts(cells_of(source))
        for companion in ("difflesson/exercises/chapter{}.py", "tests/chapters/test_chapter_{}.py"):
            path = folder.parent / companion.format(source.stem[:2])
            if path.exists() and (todo := re.search(r"TODO.*", path.read_text(encoding="utf-8"))):
                missing[source.stem].append(f"{path.name}: still {todo[0]}")
    return {name: messages for name, messages in missing.items() if messages}


def report(found: dict[str, list[str]]) -> None:
    for name, messages in found.items():
        for message in messages:
            print(f"{name}: {message}", file=sys.stderr)
    if found:
        raise typer.Exit(1)


app = typer.Typer(add_completion=False, no_args_is_help=True)
Names = Annotated[list[str] | None, typer.Argument(help="How the chapters' names start: 00. Default: all.")]
All = Annotated[bool, typer.Option("--all", help="Execute also what has not changed.")]


@app.command("build")
def build_command(names: Names = None, force: All = False) -> None:
    """Execute the chapters that changed and write their notebooks."""
    report(build(names or [], NOTEBOOKS, force))


@app.command("check")
def check_command() -> None:
    """Report notebooks that are not what their source gives, and chapters with parts missing; then exit status 1."""
    drifted, missing = check(NOTEBOOKS), unfinished(NOTEBOOKS)
    report({name: drifted.get(name, []) + missing.get(name, []) for name in sorted(drifted | missing)})
    print(f"notebooks in order: {len(chapters([], NOTEBOOKS))}")


@app.command("run")
def run_command(names: Names = None) -> None:
    """Execute chapters and write nothing."""
    selected = chapters(names or [], NOTEBOOKS)
    report({source.stem: found for source in selected if (found := execute_chapter(source, write=False))})


if __name__ == "__main__":
    app()
