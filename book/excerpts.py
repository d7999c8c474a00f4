"""A piece of a chapter's text, to stand on a page beside the folder of the chapters."""

import html
import re


def prose(notebook: dict) -> str:
    """The Markdown of a chapter."""
    return "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def elsewhere(markdown: str, chapter: str, tags: dict[str, str]) -> str:
    """The text with the links that it needs there: to its own page, to other chapters, to its numbered equations.

    Args: chapter: 07_mean_shift;  tags: label -> number of the equations on its page.
    """
    text = re.sub(r"\]\(#", f"](notebooks/{chapter}.ipynb#", markdown)
    text = re.sub(r"\]\((\d\d_\w+\.ipynb)", r"](notebooks/\1", text)
    return re.sub(r"\$\\eqref\{([^}]*)\}\$", lambda found: to_equation(chapter, found[1], tags[found[1]]), text)


def to_equation(chapter: str, label: str, tag: str) -> str:
    """A link to a numbered equation; MathJax makes its target, which Sphinx does not know."""
    return f'<a href="notebooks/{chapter}.html#mjx-eqn%3A{html.escape(label)}">({html.escape(tag)})</a>'
