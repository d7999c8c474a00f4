"""Sphinx configuration of the web book. `python book/build.py` prepares what it reads and calls Sphinx."""

project = "difflesson"
author = "The difflesson authors"
copyright = "2026, the difflesson authors. Text and figures CC BY 4.0, code MIT"

extensions = ["myst_nb"]
nb_render_markdown_format = "myst"  # Markdown that a cell displays has tables too
nb_execution_mode = "off"  # the notebooks come executed; `make notebooks` is what runs them
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3  # [text](07_mean_shift.ipynb#heading-slug)

smartquotes = False  # an option such as --scale is two hyphens

html_theme = "sphinx_book_theme"
html_title = "difflesson"
html_static_path = ["_build/static"]
mathjax_path = "mathjax/tex-mml-chtml.js"  # put there by build.py: equations also show without a network
html_theme_options = {"navbar_persistent": [], "home_page_in_toc": True}
