"""Execute a notebook so that two runs of it leave the same bytes, on whatever machine."""

import copy
import os
import tempfile
from pathlib import Path

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm import tqdm


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


def cpu_of_children() -> float:
    """Seconds of a processor that the processes took which this one started and saw end; 0 on Windows."""
    times = os.times()
    return times.children_user + times.children_system


def execute(notebook: NotebookNode, folder: Path, name: str, timeout: int) -> NotebookNode:
    """Run every cell in `folder`, for `timeout` seconds at most, and keep the outputs.

    Raises: nbclient's exception where a cell raises.  Args: name: stands before the progress bar.
    """
    import matplotlib.font_manager  # noqa: F401  fills the font cache here, not with a message in a cell

    metadata = copy.deepcopy(notebook.metadata)
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
            timeout=timeout,
            record_timing=False,
            store_widget_state=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
            on_cell_complete=lambda cell, cell_index: bar.update(),
        ).execute(env=kernel_environment(Path(scratch)))

    notebook.metadata = metadata  # without the version of this machine's Python
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if output.output_type == "error":  # an error that is meant: its message, without the machine's paths
            output.traceback = [f"{output.ename}: {output.evalue}"]
    return notebook
