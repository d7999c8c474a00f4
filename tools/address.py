"""The address of the course's repository: the one value that decides whether anything links there or installs from it.

It is `repository-code` in CITATION.cff. As long as that line is missing, the pages have no buttons for Colab, Binder
and the source, the ledger has no links, and the notebooks install nothing: whoever owns a name that is not yet ours
would run his code on the readers' machines.
"""

import re
from pathlib import Path


def repository(root: Path) -> str:
    """The address as the repository at `root` states it, empty if it states none."""
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    found = re.search(r"^repository-code:\s*[\"']?([^\"'\s]+)", citation, re.MULTILINE)
    return found[1] if found else ""
