"""Make the chapters: NN_slug.py is the source, NN_slug.ipynb is built from it and executed. One way only.

    python tools/notebooks.py build           execute the chapters that changed and write their .ipynb
    python tools/notebooks.py build 00 07     only these (a chapter is named by how its name starts)
    python tools/notebooks.py build --all     execute every chapter, changed or not
    python tools/notebooks.py check           report pairs that have drifted apart; exit status 1 if any has
    python tools/notebooks.py run 00          execute a chapter and write nothing

Two builds of one source give the same bytes: cell ids come from the cells, execution leaves no times, paths
or widget state, and the kernel starts from a fixed environment with one thread.
"""

import hashlib
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import jupytext
import nbformat
import typer
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
CELL_TIMEOUT = 120  # seconds; pyproject.toml gives the tests the same, so what was built can also be tested
PNG_LIMIT = 150_000  # bytes
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "file_extension": ".py", "pygments_lexer": "ipython3"},
}


# --- source -> notebook -------------------------------------------------------------------------------------


def source_hash(source: Path) -> str:
    """SHA-256 of the source's text, whatever line endings the checkout has."""
    return hashlib.sha256(source.read_text(encoding="utf-8").encode()).hexdigest()


def notebook_of(source: Path) -> NotebookNode:
    """The notebook that `source` (percent format) describes, not executed."""
    cells = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells
    seen = Counter()
    for cell in cells:
        # An id depends on the text and how often that text came before: inserting a cell changes no other id.
        content = f"{cell.cell_type}\n{cell.source}"
        cell.id = hashlib.sha256(f"{seen[content]}\n{content}".encode()).hexdigest()[:12]
        seen[content] += 1
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
    stamp = {"difflesson": {"source_sha256": source_hash(source)}}
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA | stamp)


# --- execution ----------------------------------------------------------------------------------------------


class SameInterpreter(AsyncKernelManager):
    """Starts the kernel with the interpreter that runs this tool, whatever the machine knows as python3."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def kernel_environment(scratch: Path) -> dict[str, str]:
    """This process's environment, less what would make the outputs depend on whose machine it is."""
    (scratch / "matplotlibrc").write_text("svg.hashsalt: difflesson\n", encoding="utf-8")
    fixed = {
        "OMP_NUM_THREADS": "1",  # the order of a sum, so its last digits, depends on the number of threads
        "MKL_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": "0",  # matplotlib then dates every SVG alike
        "MATPLOTLIBRC": str(scratch / "matplotlibrc"),  # not the one in the author's home
        "IPYTHONDIR": str(scratch),  # nor the author's start-up files
    }
    dropped = {"MPLBACKEND", "PYTHONSTARTUP", "PYTHONWARNINGS", "FORCE_COLOR"}
    return {name: value for name, value in os.environ.items() if name not in dropped} | fixed


def execute(notebook: NotebookNode, folder: Path, name: str) -> NotebookNode:
    """Run every cell in `folder` and keep the outputs. Raises nbclient's exception where a cell does."""
    import matplotlib.font_manager  # noqa: F401  fills the font cache here, not with a message in a cell

    code_cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        tqdm(total=code_cells, desc=name, unit="cell", disable=None, leave=False) as bar,
    ):
        NotebookClient(
            notebook,
            kernel_name="python3",
            kernel_manager_class=SameInterpreter,
            extra_arguments=["--log-level=ERROR"],  # it warns that it talks unencrypted, to this process
            timeout=CELL_TIMEOUT,
            record_timing=False,
            store_widget_state=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
            on_cell_complete=lambda cell, cell_index: bar.update(),
        ).execute(env=kernel_environment(Path(scratch)))

    stamp = {"difflesson": notebook.metadata["difflesson"]}
    notebook.metadata = nbformat.from_dict(METADATA | stamp)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if output.output_type == "error":  # an error that is meant: its message, without the machine's paths
            output.traceback = [f"{output.ename}: {output.evalue}"]
    return notebook


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
    found = drift(notebook_of(source), notebook)
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
        notebook = execute(notebook_of(source), source.parent, name=source.stem)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
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
    """Report the notebooks that are not what their source gives; exit status 1 if there are any."""
    report(check(NOTEBOOKS))
    print(f"notebooks in order: {len(chapters([], NOTEBOOKS))}")


@app.command("run")
def run_command(names: Names = None) -> None:
    """Execute chapters and write nothing."""
    selected = chapters(names or [], NOTEBOOKS)
    report({source.stem: found for source in selected if (found := execute_chapter(source, write=False))})


if __name__ == "__main__":
    app()
