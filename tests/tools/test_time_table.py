"""The table of where the tests' time goes, and its forecast."""

import subprocess
import sys

import pytest

from tools.pairs import ROOT
from tools.time_table import Part, forecast, part_of, parts, table


@pytest.mark.parametrize(
    ("node_id", "part"),
    [
        ("notebooks/07_mean_shift.ipynb::Cell 3", "notebooks"),
        ("tests/chapters/test_chapter_07.py::test_a", "chapters"),
        ("tests/package/digits/test_data.py::test_a", "package"),
        ("tests/package/test_exercises.py::test_a[7.1]", "exercises"),
        ("tests/tools/test_mutants.py::test_the_fast_wrong_formulas_are_all_noticed", "mutants"),
        ("tests/tools/test_mutants.py::test_a_survivor_is_reported", "tools"),
        ("tests/tools/test_ledger.py::test_a", "tools"),
        ("tests/book/test_book.py::test_a", "book"),
        ("tests/book/test_book_in_browser.py::test_a", "pages"),
        ("tests/peers/test_diffusers.py::test_a", "peers"),
        ("tests/reliability/test_new.py::test_a", "reliability"),
        ("tests/elsewhere/test_new.py::test_a", "other"),
    ],
)
def test_every_test_belongs_to_a_part(node_id, part):
    assert part_of(node_id) == part


def test_the_phases_of_a_test_add_up():
    phases = [("tests/peers/a.py::x", 1.0), ("tests/peers/a.py::x", 2.0), ("notebooks/00.ipynb::Cell 0", 4.0)]
    assert parts(phases) == [Part("notebooks", 1, 4.0, True), Part("peers", 1, 3.0, False)]


def test_only_what_belongs_to_chapters_grows():
    found = [Part("notebooks", 90, 60.0, True), Part("package", 500, 30.0, False)]
    assert forecast(found, chapters=3) == 7 * 60 + 30


def test_the_forecast_says_whether_it_fits():
    found = [
        Part(name, 1, 30.0, name in ("notebooks", "chapters")) for name in ("notebooks", "chapters", "package", "tools")
    ]
    text = table(found, chapters=3, workers=2, wall=70.0)  # ten seconds more than two busy workers need
    assert text.splitlines()[-2].split() == ["together", "4", "120", "480"]
    assert text.splitlines()[-1].startswith("2 workers took 70 s; at 21 chapters 4 minutes, within the 15")
    assert "OVER the 15" in table(found, chapters=1, workers=1, wall=120.0)
    assert "workers" not in table(found[:2], chapters=3, workers=2, wall=70.0)  # a part of the suite has no forecast


def test_a_large_run_prints_the_table(tmp_path):
    """Two folders of this suite's shape, under its own conftest."""
    for folder in ("tests/package", "tests/tools"):
        (tmp_path / folder).mkdir(parents=True)
    lines = "import pytest\n\n\n@pytest.mark.parametrize('x', range(60))\ndef test_x(x):\n    pass\n"
    (tmp_path / "tests" / "package" / "test_a.py").write_text(lines)
    (tmp_path / "tests" / "tools" / "test_b.py").write_text(lines)
    (tmp_path / "tests" / "conftest.py").write_text(
        (ROOT / "tests" / "conftest.py").read_text("utf-8"), encoding="utf-8"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        tmp_path,
        "-n",
        "2",
        tmp_path,
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    printed = run.stdout[run.stdout.index("where the time went") :].splitlines()
    assert [line.split()[:2] for line in printed[2:5]] == [["package", "60"], ["tools", "60"], ["together", "120"]]
