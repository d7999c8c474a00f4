"""Parts that answer the hand: mixtures under guidance, computed by the browser, in the web book and in a notebook.

The modules (`*.mjs`) are plain JavaScript without a library, with this package's names, and tested against its numbers.
"""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from difflesson.interactive import joining

if TYPE_CHECKING:
    from IPython.display import HTML

FOLDER = Path(__file__).resolve().parent
PARTS = ("turn-the-knob", "one-step")
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>
:root {{ --pst-color-primary: #0057b8; --pst-color-surface: #f3f4f5; --pst-color-border: #c9cdd2;
--pst-color-text-base: #222; --pst-color-text-muted: #48566b }}
body {{ background: #fff; font-family: sans-serif; margin: 0 }}
{style}</style></head><body>{section}<script>{script}</script></body></html>"""


def script() -> str:
    """All modules, joined into one classic script: it fills each element that says `data-interactive`."""
    return joining.join(FOLDER / "start.mjs")


def style() -> str:
    """The style sheet of the parts."""
    return (FOLDER / "interactive.css").read_text(encoding="utf-8")


def section(name: str) -> str:
    """The element that the script fills, with its words.  Raises: ValueError if there is no part of this name."""
    if name not in PARTS:
        raise ValueError(f"name must be one of {list(PARTS)}, got {name!r}")
    text = (FOLDER / f"{name}.html").read_text(encoding="utf-8")
    return (
        f'<section class="interactive" id="{name}" data-interactive="{name}" aria-labelledby="{name}-title">\n'
        f"{text}</section>"
    )


def show(name: str) -> "HTML":
    """A part as a notebook's output: `interactive.show("turn-the-knob")`, the last line of a cell.

    It stands in a frame of its own and asks neither kernel nor network; what does not run scripts shows nothing.
    Args: name: one of PARTS.  Raises: ValueError if there is no part of this name.
    """
    from IPython.display import HTML

    page = PAGE.format(name=name, style=style(), section=section(name), script=script())
    frame = f'<iframe title="{name}" srcdoc="{escape(page)}" style="border: 0; width: 100%; height: 860px"></iframe>'
    return HTML(f"<div>{frame}</div>")
