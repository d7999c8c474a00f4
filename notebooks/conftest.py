"""The cells of the chapters as tests: nbval runs each, in the surroundings in which the build ran it, and what comes out is
compared with what is committed (tools/outputs.py).
"""

import os
import tempfile
from pathlib import Path
from unittest import mock

from nbformat import NotebookNode
from nbval.plugin import IPyNbCell, IPyNbFile

from tools.execution import kernel_environment
from tools.outputs import differences, looseness

start_kernel = IPyNbFile.setup


def setup(chapter: IPyNbFile) -> None:
    """Start the kernel as the build does: one thread, no settings of this machine."""
    import matplotlib.font_manager  # noqa: F401  fills the font cache here, not with a message in a cell

    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    chapter.addfinalizer(scratch.cleanup)
    with mock.patch.dict(os.environ, kernel_environment(Path(scratch.name)), clear=True):
        start_kernel(chapter)


def compare_outputs(cell: IPyNbCell, computed: list[NotebookNode], committed: list[NotebookNode]) -> bool:
    """nbval asks this of each cell that it ran, and shows `comparison_traceback` if the answer is False."""
    cell.comparison_traceback = differences(committed, computed, looseness(cell.cell.metadata.get("tags", [])))
    return not cell.comparison_traceback


IPyNbFile.setup, IPyNbCell.compare_outputs = setup, compare_outputs
