"""What every test folder shares: the command line, run in this process. At the end of a run: where its time went."""

import sys
import time
from types import SimpleNamespace

import pytest

from tools.pairs import NOTEBOOKS
from tools.time_table import parts, table

START = time.perf_counter()


def pytest_terminal_summary(terminalreporter, config):
    """Print the seconds of each part (notebooks, chapters, package, ...), and what they come to at 21 chapters."""
    reports = [report for group in terminalreporter.stats.values() for report in group if hasattr(report, "duration")]
    found = parts((report.nodeid, report.duration) for report in reports)
    if len(reports) > 100 and len(found) > 1:  # a run of something in particular knows what it waited for
        chapters = len(list(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")))
        workers = config.getoption("numprocesses", None) or 1
        terminalreporter.section("where the time went")
        terminalreporter.write_line(table(found, max(chapters, 1), workers, time.perf_counter() - START))


@pytest.fixture
def difflesson(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, in an empty folder: `difflesson("sample", "--label", 7)`."""
    from difflesson import cli  # only here: most tests need neither it nor what it imports

    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["difflesson", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=stop.value.code or 0, out=out, err=err)

    return run
