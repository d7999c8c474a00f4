"""The tests have teeth: wrong formulas are noticed, and the tool that plants them is not fooled by broken ones."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.equation_labels import MUTANTS
from tools.mutant_files import FAST_ONES, few, load
from tools.mutants import ROOT, Job, Outcome, broken, judge

PACKAGE = '''"""A line.  [eq-line]"""

SLOPE = 2.0


def line(x):
    """`2 x + 1`.  [eq-line]"""
    unused = 7
    return SLOPE * x + 1
'''
TESTS = """import pytest
from difflesson.line import line


@pytest.mark.equation("eq-line")
def test_the_line_goes_through_one_and_three():
    assert line(0) == 1 and line(1) == 3


@pytest.mark.equation("eq-red")
def test_that_nobody_can_pass():
    assert False


@pytest.mark.equation("eq-wrapped")
def test_that_wraps_what_goes_wrong():
    try:
        line(1)
    except Exception as error:
        raise AssertionError("no line") from error


@pytest.mark.equation("eq-told")
def test_that_tells_what_went_wrong():
    try:
        text = str(line(1))
    except Exception as error:
        text = f"it raises {type(error).__name__}: {error}"
    assert text == "3.0", text


@pytest.mark.equation("eq-torn")
def test_with_a_fixture_that_fails_last(torn_down):
    pass


@pytest.fixture
def torn_down():
    yield
    assert line(1) == 3


@pytest.mark.equation("eq-fixture")
def test_with_a_fixture_that_fails_first(slope):
    pass


@pytest.fixture
def slope():
    assert line(1) == 3
"""
MUTANT = """
[[mutant]]
name = "{name}"
equation = "{equation}"
file = "line.py"
old = "{old}"
new = "{new}"
why = "the reason given for {name}"
"""
PLANTED = {  # name: (equation, old, new)
    "slope-forgotten": ("eq-line", "SLOPE * x + 1", "x + 1"),
    "harmless": ("eq-line", "unused = 7", "unused = 8"),
    "gone": ("eq-line", "SLOPE * x + 2", "x"),
    "twice": ("eq-line", "SLOPE", "SLANT"),
    "import-broken": ("eq-line", "SLOPE = 2.0", "SLOPE = does_not_exist"),
    "syntax-broken": ("eq-line", "return SLOPE", "return return SLOPE"),
    "name-broken": ("eq-line", "SLOPE * x + 1", "SLOPE * y + 1"),
    "setup-broken": ("eq-fixture", "SLOPE * x + 1", "x + 1"),
    "type-broken": ("eq-line", "SLOPE * x + 1", "SLOPE(x) + 1"),
    "local-broken": ("eq-line", "SLOPE * x + 1", "unset * x + 1; unset = 2"),
    "wrapped-broken": ("eq-wrapped", "SLOPE * x + 1", "SLOPE(x) + 1"),
    "told-broken": ("eq-told", "SLOPE * x + 1", "SLOPE(x) + 1"),
    "teardown-broken": ("eq-torn", "SLOPE * x + 1", "x + 1"),
    "red-anyway": ("eq-red", "SLOPE * x + 1", "x + 1"),
    "untested": ("eq-else", "SLOPE * x + 1", "x + 1"),
}


def plant(root: Path, *options: str) -> subprocess.CompletedProcess:
    """Run the tool in a process of its own: it forks, which this process, full of torch's threads, must not."""
    command = [sys.executable, "-m", "tools.mutants", "--root", str(root), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600, check=False)


def write(root: Path, mutants: dict[str, tuple[str, str, str]]) -> None:
    for folder in ("difflesson", MUTANTS):
        (root / folder).mkdir(parents=True)
    (root / "difflesson" / "__init__.py").touch()
    (root / "difflesson" / "line.py").write_text(PACKAGE, encoding="utf-8")
    (root / "tests" / "test_line.py").write_text(TESTS, encoding="utf-8")
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["equation(label)"]\n', encoding="utf-8")
    entries = [MUTANT.format(name=name, equation=e, old=old, new=new) for name, (e, old, new) in mutants.items()]
    (root / MUTANTS / "07.toml").write_text("".join(entries), encoding="utf-8")


@pytest.mark.slow
def test_the_fast_wrong_formulas_are_all_noticed():
    run = plant(ROOT, "--fast", "--workers", "1")
    assert run.returncode == 0, run.stdout + run.stderr
    planted, killed = map(int, re.search(r"^(\d+) planted, (\d+) killed", run.stdout, re.MULTILINE).groups())
    assert planted == killed >= 10


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What the tool says of each mutant of a small package, and its exit status."""
    root = tmp_path_factory.mktemp("course")
    write(root, PLANTED)
    run = plant(root)
    pieces = re.split(rf"^({'|'.join(PLANTED)}), eq-\w+: ", run.stderr, flags=re.MULTILINE)
    reports = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    assert reports.keys() == PLANTED.keys() - {"slope-forgotten"}, run.stdout + run.stderr
    assert f"{len(PLANTED)} planted, 1 killed" in run.stdout
    assert run.returncode == 1
    return reports


def test_a_survivor_is_reported_with_its_mistake_and_its_diff(reports):
    assert "SURVIVED" in reports["harmless"]
    assert "the reason given for harmless" in reports["harmless"]
    assert "-unused = 7\n+unused = 8" in reports["harmless"]


@pytest.mark.parametrize(("name", "count"), [("gone", 0), ("twice", 2)])
def test_a_mutant_that_does_not_fit_exactly_once_is_stale(reports, name, count):
    assert f"stale: its `old` occurs {count} times in difflesson/line.py" in reports[name]


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("import-broken", "NameError: name 'does_not_exist'"),
        ("syntax-broken", "SyntaxError: invalid syntax"),
        ("name-broken", "NameError in the call"),
        ("setup-broken", "AssertionError in the setup"),
        ("teardown-broken", "AssertionError in the teardown"),
        ("type-broken", "TypeError in the call"),
        ("local-broken", "NameError in the call"),
        ("wrapped-broken", "TypeError in the call"),
        ("told-broken", "TypeError in the call"),
    ],
)
def test_broken_code_is_no_proper_kill(reports, name, sign):
    assert reports[name].startswith("no proper kill") and sign in reports[name]


def test_an_assertion_about_the_kind_of_error_is_a_proper_kill():
    """`DID NOT RAISE <class 'TypeError'>` says what the code should have done."""
    wrong = AssertionError("DID NOT RAISE <class 'TypeError'>")
    assert broken(wrong) == ""
    group = ExceptionGroup("two examples", [wrong, TypeError("unhashable")])
    assert broken(group) == "TypeError" and broken(None) == ""


def test_a_test_that_fails_without_the_mutant_kills_nothing(reports):
    assert "test_that_nobody_can_pass also fails without it" in reports["red-anyway"]


def test_a_kill_of_another_copy_of_the_package_does_not_count(tmp_path):
    failed = [("tests/test_line.py::test_line", "call", "AssertionError")]
    job = Job(tmp_path, [])
    assert judge(job, Outcome(1, str(tmp_path / "difflesson" / "__init__.py"), failed)) == failed[0][0]
    with pytest.raises(ValueError, match="not judged, the tests imported .*elsewhere"):
        judge(job, Outcome(1, str(tmp_path.with_name("elsewhere") / "difflesson" / "__init__.py"), failed))


def test_the_tests_of_every_equation_of_an_entry_must_notice_it(tmp_path):
    write(tmp_path, {"slope-forgotten": PLANTED["slope-forgotten"]})
    file = tmp_path / MUTANTS / "07.toml"
    file.write_text(file.read_text("utf-8").replace('"eq-line"', '["eq-line", "eq-fixture"]'), encoding="utf-8")
    assert [mutant.equation for mutant in load(tmp_path / MUTANTS)] == ["eq-line", "eq-fixture"]
    run = plant(tmp_path)
    assert run.returncode == 1 and "1 planted, 0 killed" in run.stdout
    assert run.stderr.strip().startswith("slope-forgotten, eq-fixture: no proper kill")


def test_a_mutant_without_a_test_is_reported(reports):
    assert "no test is marked with its equation" in reports["untested"]


def test_a_mutant_that_is_noticed_leaves_nothing_to_report(tmp_path):
    write(tmp_path, {"slope-forgotten": PLANTED["slope-forgotten"]})
    run = plant(tmp_path)
    assert run.returncode == 0 and run.stderr == ""
    assert re.search(r"slope-forgotten +eq-line +test_the_line_goes_through_one_and_three", run.stdout)


CHAPTER = """# %%
import math

# %% [markdown]
# $$ y = 3 x \\label{eq-own} $$

# %%
# [eq-own]
def steep(x):
    return 3 * x
"""
OF_A_CELL = """import pytest
from tests.oracles.chapter_cells import names_of


@pytest.mark.equation("eq-own")
def test_it_is_steep():
    assert names_of("00", "eq-own")["steep"](2) == 6
"""


def test_a_wrong_formula_may_be_planted_in_a_cell_of_a_chapter(tmp_path):
    write(tmp_path, {"flat": ("eq-own", "return 3 * x", "return x"), "nowhere": ("eq-own", "return 4 * x", "return x")})
    for folder, name, text in (("notebooks", "00_line.py", CHAPTER), ("tests", "test_chapter_00.py", OF_A_CELL)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "tests" / "oracles", tmp_path / "tests" / "oracles")
    file = tmp_path / MUTANTS / "07.toml"
    file.write_text(file.read_text("utf-8").replace('"line.py"', '"notebooks/00_line.py"'), encoding="utf-8")
    run = plant(tmp_path)
    assert re.search(r"flat +eq-own +test_it_is_steep", run.stdout), run.stdout + run.stderr
    assert "nowhere, eq-own: stale: its `old` occurs 0 times in notebooks/00_line.py" in run.stderr
    assert (tmp_path / "notebooks" / "00_line.py").read_text(encoding="utf-8") == CHAPTER


def test_make_test_plants_the_first_fast_ones_of_each_file(tmp_path):
    for chapter in ("07", "11"):
        names = [f"{chapter}-{letter}" for letter in "abcdef"]
        entries = [MUTANT.format(name=name, equation="eq-line", old="a", new="b") + "fast = true\n" for name in names]
        entries[1] = entries[1].replace("fast = true", "fast = false")
        (tmp_path / f"{chapter}.toml").write_text("".join(entries), encoding="utf-8")
    assert FAST_ONES == 2
    assert few(tmp_path) == {"07-a", "07-c", "11-a", "11-c"}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("why =", "because =", "mutant 'same' has an unknown key 'because'"),
        ("why =", "tets = []\nwhy =", "mutant 'same' has an unknown key 'tets'; is 'tests' meant?"),
        ('new = "b"\n', "", "mutant 'same' lacks the key 'new'"),
        ('name = "same"\n', "", "mutant 1 lacks the key 'name'"),
    ],
)
def test_a_wrong_key_is_named_with_its_file_and_mutant(tmp_path, old, new, sentence):
    entry = MUTANT.format(name="same", equation="eq-line", old="a", new="b")
    assert old in entry
    (tmp_path / "07.toml").write_text(entry.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=f"^tests/mutants/07.toml: {re.escape(sentence)}$"):
        load(tmp_path)


def test_every_entry_fits_its_file_once_and_changes_it():
    mutants = load(ROOT / MUTANTS)
    for mutant in mutants:
        source = (ROOT / mutant.path).read_text(encoding="utf-8")
        assert mutant.plant(source) != source, mutant.name
        assert mutant.why and not set(mutant.name) - set("abcdefghijklmnopqrstuvwxyz0123456789-"), mutant.name
    assert len({(m.file, m.old, m.new, m.equation) for m in mutants}) == len(mutants)


def test_two_mutants_of_one_name_are_refused(tmp_path):
    entry = MUTANT.format(name="same", equation="eq-line", old="a", new="b")
    for chapter in ("07", "11"):
        (tmp_path / f"{chapter}.toml").write_text(entry, encoding="utf-8")
    with pytest.raises(ValueError, match="name must be unique in .*, 'same' is not"):
        load(tmp_path)


def test_the_list_is_printed_and_nothing_planted():
    run = plant(ROOT, "--list", "-k", "w-taken-for-gamma")
    assert "w-taken-for-gamma" in [mutant.name for mutant in load(ROOT / MUTANTS)] and run.returncode == 0
    assert [line.split()[0] for line in run.stdout.splitlines()] == ["w-taken-for-gamma"]
