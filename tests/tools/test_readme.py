"""README.md says of the chapters and of the shipped networks what their sources and cards say."""

import inspect
import json
import re
import shutil
from pathlib import Path

import pytest

from difflesson import cli
from tools.pairs import ROOT
from tools.reading_time import LIMIT
from tools.readme import BEGIN, WEIGHTS, expected, problems


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """README.md, the chapters' sources, the cards and the denoiser's weights."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / WEIGHTS).mkdir(parents=True)
    shutil.copy(ROOT / "README.md", tmp_path)
    cards = (ROOT / WEIGHTS).glob("*.json")
    for path in [*(ROOT / "notebooks").glob("*.py"), *cards, ROOT / WEIGHTS / "denoiser.safetensors"]:
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    return tmp_path


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_readme_is_in_order():
    assert problems(ROOT) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| 99.14 % |", "| 97.1 % |"),
        ("| 0.062 |", "| 0.026 |"),
        ("1.6 M parameters", "1.7 M parameters"),
        ("(3.3 MB)", "(3.2 MB)"),
        ("18,000 steps", "16,000 steps"),
        ("in 93 minutes", "in 39 minutes"),
        ("99.65 %", "99.56 %"),
        ("is 0.028.", "is 0.018."),
        ("| 24, 10 |", "| 24, 11 |"),
        ("| 32, 21 |", "| 23, 21 |"),
        ("--gamma 1 --device cpu --precision bf16", "--gamma 1 --device cpu"),
    ],
)
def test_a_changed_number_is_named_with_its_line_and_written_again(root: Path, old: str, new: str):
    rewrite(root / "README.md", old, new)
    found = problems(root)
    form = re.compile(r"README.md:\d+: should read .*; python -m tools.readme write")
    assert found and all(form.fullmatch(line) for line in found)
    assert old.strip("| ") in found[0]
    assert expected(root) == (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_changed_card_and_a_changed_time_are_seen(root: Path):
    path = root / WEIGHTS / "denoiser.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    next(iter(card["metrics"].values()))["1"]["accuracy"] = 0.97
    path.write_text(json.dumps(card), encoding="utf-8")
    chapter = next((root / "notebooks").glob("07_*.py"))
    text = chapter.read_text(encoding="utf-8")
    deeper = re.search(r"minutes to read, (\d+) more", text)[1]
    chapter.write_text(re.sub(r"\*\d+ minutes to read", "*41 minutes to read", text), encoding="utf-8")
    (of_time, of_card) = problems(root)
    assert f"| 41, {deeper} |" in of_time and "| 97 % |" in of_card


def test_the_package_in_one_screen_runs_as_it_stands():
    """It draws what was asked for: at gamma 3, of the label of which the whole mixture has less than half."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"## The package in one screen\n.*?```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["samples"].shape == (200, 2) and repr(names["kernel"]).startswith("ddim(denoiser=classifier_free(")
    mixture = names["mixture"]
    share = mixture.class_log_prob(names["samples"], 1).exp().mean()
    assert mixture.class_weights()[1] < 0.5 and share > 0.95


def test_lines_that_should_not_be_there_and_a_mark_that_is_missing_are_seen(root: Path):
    rewrite(root / "README.md", BEGIN, BEGIN + "\n\nIt is the best network there is.")
    (problem,) = problems(root)
    assert "too many" in problem
    rewrite(root / "README.md", BEGIN, "")
    (problem,) = problems(root)
    assert "README.md needs the line" in problem


def test_what_the_readme_says_of_the_tools_is_so():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"a main line of at most {LIMIT} minutes" in text
    assert f"a sheet of {inspect.signature(cli.sample).parameters['count'].default} sevens" in text
