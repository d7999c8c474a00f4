"""A chapter's stamp changes with what its numbers depend on in the package, and with nothing else."""

from pathlib import Path

import pytest

from tools.package_stamp import changed, modules, stamp

LINES = '''"""Lines."""

from difflesson.points import Point


def line(x):
    """A line."""
    return 2 * x  # twice
'''
FILES = {
    "__init__.py": '__version__ = "1"\n',
    "lines.py": LINES,
    "points.py": "def later():\n    from difflesson.deep import deep\n\n\nclass Point:\n    pass\n",
    "deep.py": "deep = 1\n",
    "other.py": "import difflesson.lines\n",
    "digits/__init__.py": "",
    "digits/checkpoints.py": "def load(name):\n    pass\n",
    "digits/weights/judge.safetensors": "judge",
    "digits/weights/judge.json": "{}",
    "digits/weights/guide.safetensors": "guide",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "difflesson" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "cell",
    [
        "import difflesson.lines",
        "import difflesson.lines as l",
        "from difflesson import lines, nothing",
        "from difflesson.lines import line as straight",
        "def f():\n    from difflesson.lines import line",
        "%time\nfrom difflesson.lines import line",
    ],
)
def test_a_chapter_depends_on_what_it_imports_and_what_that_imports(root: Path, cell: str):
    assert modules(["1 + 1", cell], root) == ["difflesson.deep", "difflesson.lines", "difflesson.points"]


def test_a_chapter_that_imports_nothing_depends_on_nothing(root: Path):
    assert modules(["import numpy as difflesson", "not python ("], root) == []
    assert stamp(["from difflesson import lines"], root / "elsewhere") == {}


def edited(root: Path, name: str, old: str, new: str) -> list[str]:
    """What an edit changes in the stamp of a chapter that imports lines and a network."""
    cells = ["from difflesson import lines", "from difflesson.digits import checkpoints\ncheckpoints.load('judge')"]
    before = stamp(cells, root)
    path = root / "difflesson" / name
    assert old in FILES[name]
    path.write_text(FILES[name].replace(old, new), encoding="utf-8")
    return changed(before, stamp(cells, root))


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("lines.py", "2 * x", "3 * x", ["difflesson.lines"]),
        ("points.py", "pass", "x = 1", ["difflesson.points"]),
        ("deep.py", "1", "2", ["difflesson.deep"]),
        ("points.py", "difflesson.deep", "difflesson.gone", ["difflesson.deep", "difflesson.points"]),
        ("digits/checkpoints.py", "pass", "return 1", ["difflesson.digits.checkpoints"]),
        ("digits/weights/judge.safetensors", "judge", "retrained", ["difflesson/digits/weights/judge.safetensors"]),
        ("digits/weights/judge.json", "{}", "[]", ["difflesson/digits/weights/judge.json"]),
        ("digits/weights/guide.safetensors", "guide", "retrained", []),  # the chapter loads another
        ("other.py", "lines", "points", []),
        ("__init__.py", "1", "2", []),
        ("lines.py", "A line.", "A line, explained.", []),
        ("lines.py", '"""Lines."""', '"""Lines.\n\nAnd more about them.\n"""', []),
        ("lines.py", "  # twice", "", []),
        ("lines.py", "\n\n\ndef", "\n# why\n\n\n\ndef", []),
        ("lines.py", "return 2 * x  # twice", "y = '# no comment'; return 2 * x", ["difflesson.lines"]),
    ],
)
def test_what_the_code_means_counts_and_its_explanation_does_not(root: Path, name, old, new, expected):
    assert edited(root, name, old, new) == expected


def test_a_one_line_class_with_a_docstring_keeps_its_name(root: Path):
    path = root / "difflesson" / "deep.py"
    path.write_text('class Deep: "deep"\n', encoding="utf-8")
    before = stamp(["import difflesson.deep"], root)
    path.write_text('class Shallow: "deep"\n', encoding="utf-8")
    assert changed(before, stamp(["import difflesson.deep"], root)) == ["difflesson.deep"]


def test_line_endings_do_not_count(root: Path):
    before = stamp(["import difflesson.lines"], root)
    path = root / "difflesson" / "lines.py"
    path.write_bytes(FILES["lines.py"].replace("\n", "\r\n").encode())
    assert changed(before, stamp(["import difflesson.lines"], root)) == []
