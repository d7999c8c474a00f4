"""The figures of the book are what the built notebooks show: figures/NAME.png is the picture that
`plotting.show(figure, "NAME", alt)` put into its cell, and only the build writes it.
"""

import base64
from pathlib import Path

from nbformat import NotebookNode

from tools.chapter_parts import FIGURE


def pictures(notebook: NotebookNode) -> list[tuple[str, bytes]]:
    """The named pictures in a notebook's outputs, and their files' contents."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    named = [(output.get("metadata", {}).get("image/png", {}).get("figure"), output) for output in outputs]
    return [(name, base64.b64decode(output["data"]["image/png"])) for name, output in named if name]


def write_figures(notebook: NotebookNode, folder: Path) -> None:
    """Write each named picture to `folder`/NAME.png, those that are there as they are stay untouched."""
    for name, content in pictures(notebook):
        path = folder / f"{name}.png"
        if not path.exists() or path.read_bytes() != content:
            folder.mkdir(exist_ok=True)
            path.write_bytes(content)


def figure_problems(notebook: NotebookNode, folder: Path) -> list[str]:
    """Where the files in `folder` are not what the notebook shows."""
    found, names = [], [name for name, _ in pictures(notebook)]
    for name, content in pictures(notebook):
        path = folder / f"{name}.png"
        if names.count(name) > 1:
            found.append(f"two figures are named {name}")
        elif not path.exists() or path.read_bytes() != content:
            found.append(f"{folder.name}/{path.name} is not what the notebook shows; build the chapter again")
    return list(dict.fromkeys(found))


def orphans(folder: Path, sources: list[Path]) -> list[str]:
    """The files of chapters' figures that no cell of any source draws."""
    drawn = {name for source in sources for name in FIGURE.findall(source.read_text(encoding="utf-8"))}
    return [path.name for path in sorted(folder.glob("[0-9][0-9]_*.png")) if path.stem not in drawn]
