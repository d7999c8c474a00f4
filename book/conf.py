"""Sphinx configuration of the web book. `python -m book.build` prepares what it reads and calls Sphinx."""

from dataclasses import dataclass, field
from pathlib import Path

from docutils import nodes
from sphinxcontrib.bibtex.plugin import register_plugin
from sphinxcontrib.bibtex.style.referencing import BracketStyle, PersonStyle
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle

from tools.address import repository

address = repository(Path(__file__).resolve().parent.parent)  # without one, no button leads anywhere

project = "difflesson"
author = "The difflesson authors"
copyright = "2026, the difflesson authors. Text and figures CC BY 4.0, code MIT"

extensions = ["myst_nb", "sphinxcontrib.bibtex"]
nb_render_markdown_format = "myst"  # Markdown that a cell displays has tables too
nb_code_prompt_show = "Show the {type}"
nb_code_prompt_hide = "Hide the {type}"
nb_execution_mode = "off"  # the notebooks come executed; `make notebooks` is what runs them
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3  # [text](07_mean_shift.ipynb#heading-slug)

smartquotes = False  # an option such as --scale is two hyphens

html_theme = "sphinx_book_theme"
html_title = "difflesson"
html_static_path = ["_build/static", "static"]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_use_index = False
mathjax_path = "mathjax/tex-mml-chtml.js"  # put there by build.py: equations also show without a network
mathjax3_config = {"chtml": {"matchFontHeight": False, "scale": 1.15}}  # the same size in every font of the text
html_context = {"default_mode": "auto"}  # light or dark as the reader's system
html_theme_options = {
    "navbar_persistent": [],
    "home_page_in_toc": False,
    "repository_url": address,
    "repository_branch": "main",
    "use_repository_button": bool(address),
    "launch_buttons": {
        "colab_url": "https://colab.research.google.com",
        "binderhub_url": "https://mybinder.org",
        "notebook_interface": "jupyterlab",
    }
    if address
    else {},
}


# --- citations: Ho & Salimans (2022), as the chapters write them --------------------------------------------


def round_brackets() -> BracketStyle:
    return BracketStyle(left="(", right=")")


@dataclass
class Citations(AuthorYearReferenceStyle):
    bracket_parenthetical: BracketStyle = field(default_factory=round_brackets)
    bracket_textual: BracketStyle = field(default_factory=round_brackets)
    person: PersonStyle = field(default_factory=lambda: PersonStyle(sep2=" & ", other=" et al."))


register_plugin("sphinxcontrib.bibtex.style.referencing", "difflesson", Citations)
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "difflesson"
bibtex_default_style = "plain"


# --- what Sphinx and the theme do not do by themselves ------------------------------------------------------


def keep_equations(app, doctree) -> None:
    """Give a displayed equation to MathJax as the chapter has it, as JupyterLab does: numbers are the chapter's \\tags.

    Sphinx wraps one that has a line break into an environment in which a \\tag is an error, and numbers some itself.
    """
    for equation in doctree.findall(nodes.math_block):
        equation["number"] = None
        if not equation.get("no-wrap", equation.get("nowrap", False)):
            equation.children = [nodes.Text(rf"\[{equation.astext()}\]")]
            equation["no-wrap"] = True


def mark_deeper(app, doctree) -> None:
    """Give a chapter's sections `## Deeper: ...` a class of their own: book.css sets them apart, book.js folds them."""
    for section in doctree.findall(nodes.section):
        is_second_level = isinstance(section.parent, nodes.section) and section.parent.parent is doctree
        if is_second_level and section.next_node(nodes.title).astext().startswith("Deeper:"):
            section["classes"].append("deeper")


def set_buttons(app, pagename, templatename, context, doctree) -> None:
    """A chapter's repository button leads to its source; only chapters are for downloading."""
    chapter = pagename.startswith("notebooks/")
    context["header_buttons"] = [
        button for button in context["header_buttons"] if chapter or button["label"] != "download-buttons"
    ]
    for button in context["header_buttons"]:
        if chapter and button["label"] == "source-repository-button":
            button["url"] += f"/blob/main/{pagename}.py"
            button["tooltip"] = "Source of this chapter"


def setup(app) -> None:
    app.connect("doctree-read", keep_equations)
    app.connect("doctree-read", mark_deeper)
    app.connect("html-page-context", set_buttons, priority=502)  # the theme makes its buttons at 501
