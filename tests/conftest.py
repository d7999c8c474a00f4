"""What every test folder shares. At the end of a run: where its time went."""

import time

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
